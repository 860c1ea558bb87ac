"""What prune says on all ranks where one is killed or has something else, and shares of samples."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from support.processes import on_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import woodbury
from woodbury import Pruner

SAMPLES = 48
PRUNER = Pruner(woodbury.mfac(SAMPLES, 1e-2))


class Heard(NamedTuple):
    """What one rank heard, after how many seconds, and whether its model is as it was."""

    said: str
    seconds: float
    unchanged: bool


class Deadly:
    """Batches the third of which kills the process when it is read."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def network(width: int = 9) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)).double()


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 6, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(3, (SAMPLES,), generator=generator))


def data() -> list[Any]:
    inputs, labels = samples().tensors
    return list(zip(inputs.split(12), labels.split(12), strict=True))


def disturbed(rank: int, way: str) -> Heard:
    """Rank 1 of three has something else."""
    other = rank == 1
    model = network(8) if other and way == "model" else network()
    if other and way == "weights":
        model.requires_grad_(False)[0].weight[0, 0] += 1.0  # type: ignore[index]
        model.requires_grad_(True)
    before = [each.detach().clone() for each in model.parameters()]
    batches: Any = data()[: 3 if other and way == "samples" else 4]
    if other and way == "killed":
        batches = Deadly(batches)
    sparsity = 0.7 if other and way == "settings" else 0.6
    begun = time.monotonic()
    try:
        woodbury.prune(model, batches, sparsity, pruner=PRUNER)
        said = "nothing"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    same = zip(before, model.parameters(), strict=True)
    unchanged = all(torch.equal(one, another) for one, another in same)
    return Heard(said, time.monotonic() - begun, unchanged)


@pytest.mark.parametrize(
    ("way", "sentence"),
    [
        ("killed", "RankError: A rank of 3 has ended"),
        ("settings", "RankError: The ranks differ in sparsity: 0.6 on ranks 0, 2"),
        ("model", "RankError: The ranks differ in "),
        ("weights", "RankError: The ranks differ in the weights of the model: "),
        ("samples", "The data gave 12 of the 16 rows"),
    ],
)
def test_the_others_end_with_a_sentence(way: str, sentence: str, tmp_path: Path) -> None:
    killed = (1,) if way == "killed" else ()
    found = on_ranks(3, tmp_path, disturbed, way, killed=killed)
    assert (found[1] is None) == (way == "killed")
    for heard in filter(None, found):
        assert sentence in heard.said and "\n" not in heard.said, heard
        assert heard.seconds < 30 and heard.unchanged


def of_a_sampler(rank: int) -> Tensor:
    """By the share of the samples that torch's sampler gives a rank."""
    dataset: Dataset[Any] = samples()
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, shuffle=True, seed=5)
    loader = DataLoader(dataset, batch_size=8, sampler=sampler)
    assert len(sampler) == SAMPLES // dist.get_world_size()
    return woodbury.prune(network(), loader, 0.6, pruner=PRUNER).weights


def test_shares_of_a_sampler_are_all_samples(tmp_path: Path) -> None:
    alone = woodbury.prune(network(), data(), 0.6, pruner=PRUNER).weights
    found = on_ranks(2, tmp_path, of_a_sampler)
    for weights in found:
        assert not isinstance(weights, Exception), weights
        assert torch.equal(weights, found[0]) and torch.equal(weights != 0, alone != 0)
        torch.testing.assert_close(weights, alone, rtol=1e-8, atol=1e-10)
