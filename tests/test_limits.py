"""Limits: the numbers that hold inside a block, and only there."""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import fields
from typing import Any

import pytest

import woodbury
from woodbury.errors import WoodburyError
from woodbury.limits import Limits


def test_the_innermost_limits_hold_until_their_block_ends() -> None:
    assert Limits.current() == Limits()
    with Limits(memory=100):
        assert Limits.current().memory == 100
        with Limits(temporary=5):
            assert (Limits.current().memory, Limits.current().temporary) == (Limits().memory, 5)
        assert Limits.current().memory == 100
    assert Limits.current() == Limits()


def test_an_error_ends_the_block() -> None:
    with pytest.raises(KeyError), Limits(memory=100):
        raise KeyError
    assert Limits.current() == Limits()


def test_other_contexts_have_limits_of_their_own() -> None:
    outside = copy_context()
    with Limits(memory=100):
        assert outside.run(Limits.current) == Limits()


def test_one_value_may_be_entered_again_inside_itself() -> None:
    limits = Limits(memory=100)
    with limits, Limits(memory=50), limits:
        assert Limits.current().memory == 100
    assert Limits.current() == Limits()


@pytest.mark.parametrize("value", [0, -1, float("nan"), "8 GiB", None, True])
@pytest.mark.parametrize("field", [field.name for field in fields(Limits)])
def test_limits_are_positive_numbers(field: str, value: Any) -> None:
    if field == "memory" and value is None:  # as much as the process may have
        assert Limits(memory=None) == Limits()
        return
    with pytest.raises(WoodburyError, match=f"Limits got {field}=.*: give a positive number"):
        Limits(**{field: value})


def test_limits_are_a_public_name() -> None:
    assert woodbury.Limits is Limits
