"""Fingerprints: equal for equal things, and a difference is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.io.fingerprint import check_same, checksum, facts_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64], ids=str)
def test_checksums_depend_on_bytes_alone(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).view(3, 4).to(dtype)
    assert checksum(tensor) == checksum(tensor.clone()) == checksum(tensor.mT.contiguous().mT)
    changed = tensor.clone()
    changed[2, 3] = 0
    assert checksum(tensor) != checksum(changed)


def test_facts_tell_networks_and_numbers_of_samples_apart() -> None:
    model = nn.BatchNorm1d(3)
    facts = facts_of(model, 100)
    assert facts == facts_of(model, 100)
    assert facts != facts_of(model, 99)
    assert model.running_mean is not None
    model.running_mean += 1  # buffers count too
    with pytest.raises(WoodburyError, match="The run was made with a checksum of running_mean"):
        check_same(facts, facts_of(model, 100), "The run")


def test_the_first_difference_is_named_and_shortened() -> None:
    check_same({"lr": 0.1}, {"lr": 0.1}, "The run")
    with pytest.raises(WoodburyError, match=r"made with lr 0\.1, now it is 0\.2: give"):
        check_same({"lr": 0.1}, {"lr": 0.2}, "The run")
    with pytest.raises(WoodburyError, match="with seed 3, now it is None"):
        check_same({"lr": 0.1, "seed": 3}, {"lr": 0.1}, "The run")
    with pytest.raises(WoodburyError, match=f"with names {'x' * 60}…, now it is y"):
        check_same({"names": "x" * 99}, {"names": "y"}, "The run")
