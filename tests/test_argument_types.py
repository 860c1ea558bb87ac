"""Arguments of the wrong type: one sentence for each, and annotations that can all be read."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.random import normal

import woodbury
from woodbury.argument_types import hints_of, is_of
from woodbury.errors import WoodburyError, WrongType
from woodbury.pruning.schedule import geometric, polynomial, pruning_steps

WRONG: dict[str, Any] = {
    "text": "quick",
    "a flag": True,
    "a function that gives nothing": lambda *_: None,
    "a class": int,
    "NaN": float("nan"),
    "a huge number": 10**30,
    "a dict": {},
    "an object": object(),
    "a tensor": torch.ones(2),
    "an array": np.ones(2),
}
OPTIONS = [
    *("effort", "pruner", "stages", "likelihood", "include", "exclude", "memory", "sparsity"),
]


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (2, int, True),
        (np.int64(2), int, True),
        (2.0, int, False),
        (True, int, False),
        (True, float, False),
        (np.float32(2), float, True),
        (torch.tensor(2.0), float, True),
        (torch.ones(2), float, False),
        ("2", float, False),
        (None, int | None, True),
        (None, int, False),
        (print, Callable[[int], None], True),
        ({}, Mapping[str, int], True),
        ([1], tuple[int, ...], True),
        ((1, "a"), tuple[int, ...], False),
        ((1, "a"), tuple[int, str], True),
        (np.ones(2), tuple[float, ...], False),
        (range(3), Sequence[int], True),
        (np.ones(2), Sequence[float], True),
        (torch.tensor(1.0), Sequence[float], False),
        (0.5, Sequence[float], False),
        ("0.5", Sequence[float], False),
        ({0.5}, Sequence[float], False),
        ([[1], [2, 3]], Sequence[Sequence[int]], True),
        ([1, 2], Sequence[Sequence[int]], False),
        ([0.5, {"*": 0.7}], Sequence[float | Mapping[str, float]], True),
        (object(), Any, True),
    ],
)
def test_what_fits_an_annotation(value: Any, hint: Any, fits: bool) -> None:
    assert is_of(value, hint) is fits


def test_every_annotation_can_be_read() -> None:
    for found in pkgutil.walk_packages(woodbury.__path__, "woodbury."):
        if found.name.startswith("woodbury.cli") or found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for thing in vars(module).values():
            if getattr(thing, "__module__", None) == found.name and (
                inspect.isfunction(thing) or inspect.isclass(thing)
            ):
                hints_of(thing)


def test_the_name_of_an_effort_is_answered_with_where_it_is() -> None:
    with pytest.raises(WrongType, match=r"effort is 'quick': .* woodbury.presets.quick"):
        woodbury.prune(torch.nn.Linear(3, 2), [], 0.5, effort="quick")  # pyright: ignore


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_prune_answers_any_option_in_a_sentence(option: str, value: Any) -> None:
    model = torch.nn.Linear(3, 2)
    before = model.weight.detach().clone()
    arguments: dict[str, Any] = {"sparsity": 0.5}
    if option not in ("effort", "pruner"):
        arguments["pruner"] = woodbury.Pruner(None, woodbury.saliencies.magnitude)
    arguments[option] = value
    with pytest.raises(WoodburyError):
        woodbury.prune(model, [(normal(6, 3).float(), torch.arange(6) % 2)], **arguments)
    torch.testing.assert_close(model.weight.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: woodbury.progress(True), "callback is True: progress takes a function or None"),
        (lambda: woodbury.save_sparse(torch.nn.Linear(1, 1), "x"), "path is a Linear"),
        (lambda: woodbury.mfac(count=2.0), "count is 2.0: mfac takes a whole number"),
        (lambda: woodbury.mfac(damping="1"), "damping is '1': mfac takes a number"),
        (lambda: woodbury.Pruner(woodbury.mfac(8), saliency=3), "saliency is 3"),
        (lambda: woodbury.selections.iterative_greedy(10**12), "a whole number from 1 to 100,000"),
        (lambda: geometric(0.5, 10**12), "give 1 to 100,000"),
        (lambda: polynomial(0.5, 10**12), "give 1 to 100,000"),
        (lambda: pruning_steps(1, 10**12, every=1), "more than 100,000"),
        (lambda: woodbury.units.block(0), "at least 1"),
        (lambda: woodbury.optim.whole([3, 4]), r"sizes\[0\] is 3: whole takes a list there"),
        (lambda: woodbury.optim.per_group([[3], [4.5]]), r"sizes\[1\]\[0\] is 4.5"),
        (lambda: woodbury.training.cosine_restarts(3, 9), "pruning_steps is 3"),
        (lambda: woodbury.costs.power(3, 0.5), "cost is 3: power takes a function"),
        (lambda: woodbury.Pruned(None, ()), "objective is None: Pruned takes an Objective"),
        (lambda: woodbury.fisher.Window(2, 3, group=3), "group is a int: give a process group"),
        (lambda: woodbury.fisher.Window(2, 3).widen(-1), "columns is -1"),
        (lambda: woodbury.fisher.LowRank(torch.ones(1, 2), 1.0, group=[]), "group is a list"),
        (
            lambda: woodbury.fisher.KroneckerRows(torch.ones(2), torch.eye(2), 0.0, keep=[1]),
            r"keep is int64 of shape \(1,\): give a bool mask of shape \(2, 2\)",
        ),
        (
            lambda: woodbury.MFAC([torch.nn.Parameter(torch.ones(2))]).add_param_group({}),
            "params cannot be optimized",
        ),
        (lambda: woodbury.units.custom([3]), "a unit that is no dict"),  # type: ignore[list-item]
        (lambda: woodbury.ParameterSpace({"a": torch.Size((3,))}, [True]), "kept is a list"),
        (lambda: woodbury.ParameterSpace.from_model(torch.nn.Linear(1, 1), 3), "include is 3"),
    ],
)
def test_a_sentence_says_what_was_given(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(WoodburyError, match=sentence):
        call()


def test_arrays_and_lists_are_taken_as_batches() -> None:
    inputs, labels = normal(12, 4).float(), torch.arange(12) % 3
    weights = []
    for batch in (
        (inputs, labels),
        (inputs.numpy(), labels.numpy()),
        (inputs.tolist(), labels.tolist()),
    ):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        woodbury.prune(model, [batch], 0.5, pruner=woodbury.Pruner(woodbury.mfac(12)))
        weights.append(model.weight.detach())
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    torch.testing.assert_close(weights[2], weights[0], rtol=0, atol=0)


def test_batches_that_cannot_be_read_are_named() -> None:
    class Broken:
        def __iter__(self) -> Any:
            yield normal(2, 3).float(), torch.tensor([0, 1])
            raise OSError("the disk is gone")

    with pytest.raises(WoodburyError, match=r"Batch 1 cannot be read.*the disk is gone"):
        woodbury.prune(torch.nn.Linear(3, 2), Broken(), 0.5)
    with pytest.raises(WrongType, match="An input of batch 0 is sparse"):
        woodbury.prune(torch.nn.Linear(2, 2), [(torch.eye(2).to_sparse(), torch.arange(2))], 0.5)


def test_a_tied_name_is_said_to_be_tied() -> None:
    embedding, head = torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4)
    head.weight = embedding.weight
    model = torch.nn.ModuleDict({"embed": embedding, "lm_head": head})
    with pytest.raises(WoodburyError, match=r"'lm_head.weight', which is tied to 'embed.weight'"):
        woodbury.ParameterSpace.from_model(model, exclude="lm_head.w*")


def test_results_print_one_line() -> None:
    batches = [(normal(8, 4).float(), torch.arange(8) % 2)]
    objective = woodbury.Objective.from_model(torch.nn.Linear(4, 2, bias=False), batches)
    pruned = woodbury.Pruner(woodbury.mfac(8))(objective, 0.5)
    assert repr(pruned) == "Pruned(sparsity=0.5000, weights=8, stages=1)"
    assert repr(objective) == "Objective(Linear, weights=8)"
    assert repr(woodbury.mfac(8, damping=0.5)(objective)) == "LowRank(d=8, damping=0.5)"


def test_all_tensors_that_no_gradient_reached_are_left_alone_by_one_option() -> None:
    class Unused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Linear(4, 2) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + 0 * self.b(x) + self.c(x).detach()

    batches = [(normal(8, 4).float(), torch.arange(8) % 2)]
    pruner = woodbury.Pruner(woodbury.mfac(8))
    with pytest.raises(WoodburyError, match=r"exclude=\['b.weight', 'c.weight'\]"):
        woodbury.prune(Unused(), batches, 0.5, pruner=pruner)
    found = woodbury.prune(Unused(), batches, 0.5, pruner=pruner, exclude=["b.weight", "c.weight"])
    assert found.sparsity == 0.5
