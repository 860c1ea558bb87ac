"""What the package raises, and in which types."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from woodbury.errors import (
    MissingDependency,
    WoodburyError,
    WrongType,
    check_whole_number,
    reason,
    user_code,
)


def test_errors_are_of_the_types_that_python_has_for_them() -> None:
    assert issubclass(WoodburyError, ValueError)
    assert issubclass(WrongType, WoodburyError) and issubclass(WrongType, TypeError)
    assert issubclass(MissingDependency, WoodburyError)
    assert issubclass(MissingDependency, ImportError)


@pytest.mark.parametrize("value", [1, 10**9, np.int64(3)])
def test_whole_numbers_pass(value: Any) -> None:
    check_whole_number(value, "count", "the number of samples")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0, WoodburyError),
        (-1, WoodburyError),
        (1.0, WrongType),
        (True, WrongType),
        (None, WrongType),
    ],
)
def test_other_numbers_are_named(value: Any, kind: type[WoodburyError]) -> None:
    with pytest.raises(
        WoodburyError, match="the number of samples, a whole number of at least 1"
    ) as e:
        check_whole_number(value, "count", "the number of samples")
    assert type(e.value) is kind
    assert str(e.value).startswith(f"count is {value!r}: ")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("\n  shapes differ\n and so on"), "RuntimeError: shapes differ"),
        (KeyError("logits"), "KeyError: 'logits'"),
        (AssertionError(), "AssertionError: no message"),
    ],
)
def test_a_reason_is_one_line(error: Exception, line: str) -> None:
    assert reason(error) == line


def test_errors_of_the_users_code_become_one_sentence() -> None:
    cause = RuntimeError("shapes differ")
    with pytest.raises(WoodburyError) as caught, user_code("Refused."):
        raise cause
    line = "test_errors.py, line [0-9]+"
    assert re.fullmatch(rf"Refused\. \(RuntimeError: shapes differ; {line}\)", str(caught.value))
    assert caught.value.__cause__ is cause
    with pytest.raises(WrongType, match=r"^already a sentence$"), user_code("Refused."):
        raise WrongType("already a sentence")
    with pytest.raises(KeyboardInterrupt), user_code("Refused."):
        raise KeyboardInterrupt
