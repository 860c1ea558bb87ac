"""When callbacks prune, on which samples, and that the loop's random numbers are left alone."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import mfac
from woodbury.integrations.in_trainers import Schedule, TrainingSamples, last_step_in_numbers
from woodbury.model.random_numbers import random_state, set_random_state
from woodbury.pruning.pruner import Pruner
from woodbury.training.gradual import Gradual


@pytest.mark.parametrize(
    ("start", "end", "total", "expected"),
    [
        (0.1, 0.7, 100, (10, 70)),
        (5, 0.5, 100, (5, 50)),
        (1, 100, 100, (1, 100)),
        (0.0, 1.0, 9, (1, 9)),
        (3, 8, float("inf"), (3, 8)),
    ],
)
def test_steps_and_fractions(start: Any, end: Any, total: float, expected: tuple[int, int]) -> None:
    found = Schedule(start, end, 2).within(total)
    assert (found["start"], found["end"]) == expected and found["steps"] == 2


def test_the_last_step_is_logged_with_its_interval() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = [(torch.randn(40, 6), torch.arange(40) % 3) for _ in range(2)]
    pruner = Pruner(mfac(40, 1e-2))
    gradual = Gradual(
        model, optimizer, data[:1], 0.5, end=1, steps=1, pruner=pruner, held_back=data[1:]
    )
    model(data[0][0]).sum().backward()
    optimizer.step()
    logged, done = last_step_in_numbers(gradual), gradual.history[0]
    assert done.predicted_interval is not None and logged["predicted_loss"] == done.predicted
    assert logged["held_back_loss"] == done.predicted_interval.mean
    assert logged["held_back_loss_low"] < logged["held_back_loss"] < logged["held_back_loss_high"]


class Noisy(Dataset):
    """Samples that are augmented by random numbers of all kinds."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        self.read.append(index)
        drawn = random.random() + numpy.random.rand() + float(torch.rand(()))  # noqa: NPY002
        return torch.tensor([index, drawn])


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return (torch.tensor([i, 0.0]) for i in range(10**9))


def samples_of(data: Dataset, count: int = 8) -> TrainingSamples:
    model = nn.Linear(1, 1)
    return TrainingSamples(DataLoader(data), 3, count, lambda x: (x[:, 1:], x[:, 0]), model)


def test_samples_depend_on_the_step_alone_and_draw_nothing_from_the_loop() -> None:
    data = Noisy()
    samples = samples_of(data)
    before = random_state()
    first, other, again = (list(samples(step)) for step in (3, 4, 3))
    assert [len(inputs) for inputs, _ in first] == [3, 3, 2]
    for (inputs, target), (same, label) in zip(first, again, strict=True):
        assert torch.equal(inputs, same) and torch.equal(target, label)
    assert not torch.equal(first[0][1], other[0][1])
    after = random_state()
    assert before["python"] == after["python"] and before["numpy"] == after["numpy"]
    assert torch.equal(before["torch"], after["torch"])
    assert len(data.read) == 24 and len(set(data.read[:8])) == 8


def test_fewer_samples_and_streams() -> None:
    assert sum(len(inputs) for inputs, _ in samples_of(Noisy(), 50)(1)) == 20
    (_, first), (_, second) = samples_of(Endless(), 5)(1)
    assert [*first.tolist(), *second.tolist()] == [0, 1, 2, 3, 4]


def test_data_that_cannot_be_read_are_one_sentence() -> None:
    class Broken(Noisy):
        def __getitem__(self, index: int) -> Tensor:
            raise OSError("no such image")

    with pytest.raises(WoodburyError, match=r"training data cannot be read\. .*no such image"):
        samples_of(Broken())(1)


def test_random_numbers_go_on_where_they_were_saved(tmp_path: Any) -> None:
    torch.save(random_state(), tmp_path / "state.pt")
    draws = [
        (random.random(), numpy.random.rand(), float(torch.rand(())))  # noqa: NPY002
        for _ in range(2)
    ]
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (random.random(), numpy.random.rand(), float(torch.rand(()))) == draws[0]  # noqa: NPY002


IMPORTS = """
import sys

import woodbury
import woodbury.integrations.transformers

found = {"transformers", "accelerate", "lightning", "datasets"} & set(sys.modules)
assert not found, found

sys.modules["transformers"] = sys.modules["lightning.pytorch"] = None
for name, extra in (("transformers", "models"), ("lightning", "lightning")):
    try:
        __import__(f"woodbury.integrations.{name}", fromlist=["PruningCallback"]).PruningCallback
    except woodbury.MissingDependency as error:
        assert f"pip install 'woodbury[{extra}]'" in str(error), error
    else:
        raise AssertionError(name)
"""


def test_trainers_are_imported_when_needed_and_named_with_their_extra_when_missing() -> None:
    command = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
