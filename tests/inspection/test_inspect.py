"""All questions in one call: complete, repeatable, and refused where `prune` refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from inspection.inspected import classes, dense_hessian, perceptron, trained
from support.limits import Limited
from support.once_differentiable import SquareOnce
from support.random import normal
from support.unchanged import unchanged
from torch import nn

import woodbury
from woodbury.errors import WoodburyError
from woodbury.inspection.findings import Inspection, Settings
from woodbury.inspection.questions import answers, prepared
from woodbury.monitor import progress

ALL = [
    *("along magnitude pruning", "along the joint update", "Hessian"),
    *("damping", "rows", "block", "kind of rows", "samples per row", "seed", "samples", "forecast"),
    "magnitude",
]


@pytest.fixture(scope="module")
def told() -> list[tuple[str, int, int]]:
    """What the inspection of `whole` reported."""
    return []


@pytest.fixture(scope="module")
def whole(told: list[tuple[str, int, int]]) -> Inspection:
    model, batches = trained(), classes(80, 0)
    with unchanged(model, batches), progress(lambda *what: told.append(what)):
        return woodbury.inspect(model, batches, 0.4, count=30, sparsities=(0.2, 0.6))


def test_every_question_has_its_answer(whole: Inspection) -> None:
    assert whole.is_complete and not whole.left_out
    assert list(whole.verdicts) == ALL
    assert whole.verdict.splitlines() == list(whole.verdicts.values())
    assert (whole.weights, whole.count, whole.samples_held_back) == (35, 30, 32)
    assert whole.hessian is not None and whole.hessian.samples == 30
    assert set(whole.hessian.matches) == {
        *("gauss_newton", "empirical", "kfac", "kfac_swapped", "diagonal"),
    }
    for step in whole.along:
        assert step.scales == {name: whole.hessian.scales[name] for name in step.curvatures}
    assert whole.forecast is not None
    assert set(whole.forecast.points) == {"gauss_newton", "empirical", "kfac", "diagonal"}
    assert "K-FAC: the forecast held" in whole.verdicts["forecast"]


def test_the_same_seed_gives_the_same_numbers(whole: Inspection) -> None:
    again = woodbury.inspect(trained(), classes(80, 0), 0.4, count=30, sparsities=(0.2, 0.6))
    assert again == whole


def test_the_steps_are_those_of_pruning(whole: Inspection) -> None:
    """Along magnitude pruning the exact curvature is that of the samples held back."""
    objective = perceptron()
    magnitude = objective.weights.abs()
    keep = magnitude > magnitude.sort().values[13]
    step = torch.where(keep, 0, -objective.weights)
    held_back = [tuple(part[48:] for part in classes(80, 0)[0])]
    hessian = dense_hessian(replace(objective, batches=held_back))
    assert whole.along[0].hessian == pytest.approx(float(step @ hessian @ step), rel=1e-7)


def test_answers_come_one_by_one_and_keep_those_before() -> None:
    settings = Settings(0.4, 30, sparsities=(0.3,))
    network = prepared(perceptron(80), settings)
    known = list(answers(network, settings))
    assert [sum(map(bool, (k.hessian, k.along, k.sensitivity, k.forecast))) for k in known] == [
        *(1, 2, 3, 4),
    ]
    assert [each.is_complete for each in known] == [False, False, False, True]
    assert known[1].hessian is known[3].hessian


def test_progress_counts_the_parts(whole: Inspection, told: list[tuple[str, int, int]]) -> None:
    assert [done for what, done, _ in told if what == "inspection"] == [1, 2, 3, 4, 5]


def test_batches_held_back_may_be_given() -> None:
    network = prepared(perceptron(40), Settings(count=400), classes(25, seed=9))
    assert network.count == 40 and network.has_labels
    torch.testing.assert_close(next(iter(network.held_back)), classes(25, seed=9)[0])


def test_without_labels_the_model_draws_them() -> None:
    unlabelled = [(x, None) for x, _ in classes(80, 0)]
    found = woodbury.inspect(trained(), unlabelled, count=30, sparsities=(0.3,))
    assert found.is_complete and found.left_out == {"empirical": "The data has no labels."}
    assert found.hessian is not None and "empirical" not in found.hessian.matches


def test_a_model_without_second_derivatives_is_inspected_without_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), SquareOnce(), nn.Linear(5, 3)).double()
    found = woodbury.inspect(model, classes(60, 0), count=30, sparsities=(0.3,))
    assert found.hessian is None and "differentiated twice" in found.left_out["hessian"]
    assert [step.hessian for step in found.along] == [None, None] and found.is_complete
    assert "says" in found.verdicts["along the joint update"]


def test_zeros_that_stay_are_no_weights() -> None:
    model = trained()
    model[0].weight.data[:2] = 0
    batches = classes(80, 0)
    found = woodbury.inspect(model, batches, 0.5, count=30, keep_zeros=True, sparsities=(0.1, 0.6))
    assert found.weights == 27
    assert found.forecast is not None
    reached = [point.sparsity for point in found.forecast.points["diagonal"]]
    assert reached == [0.6], "a tenth is removed already"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sparsity": 0.0}, "sparsity is 0.0"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"count": 3}, "count is 3"),
        ({"damping": -1.0}, "damping is -1"),
        ({"sparsities": (0.5, 1.5)}, "sparsities is"),
        ({"sparsities": ()}, "sparsities is"),
        ({"held_back": 1.0}, "held_back is 1.0"),
        ({"held_back": 0.01}, "too few to hold a part of them back"),
        ({"memory": "1kB"}, "takes at least"),
        ({"include": "nothing*"}, "matches no parameter"),
        ({"batches": iter(classes(80, 0))}, "only once"),
        ({"batches": [(normal(20, 7), torch.arange(20) % 3)]}, "refuses"),
        ({"batches": []}, "no samples"),
        ({"sparsity": "much"}, "sparsity"),
    ],
)
def test_bad_requests_are_named(changes: dict[str, Any], says: str) -> None:
    model = trained()
    given = {"batches": classes(80, 0), **changes}
    with unchanged(model, given["batches"]), pytest.raises(WoodburyError, match=says):
        woodbury.inspect(model, **given)


@pytest.mark.parametrize(
    "changes",
    [
        {"batches": []},
        {"batches": [(normal(20, 7), torch.arange(20) % 3)]},
        {"batches": [(normal(20, 4).float(), torch.arange(20) % 3)]},
        {"batches": [(normal(20, 4), torch.zeros(20))]},
        {"batches": [(normal(20, 4), torch.full((20,), 7))]},
        {"batches": [(normal(20, 4), torch.arange(19) % 3)]},
        {"batches": iter(classes(80, 0))},
        {"batches": 3},
        {"likelihood": nn.functional.cross_entropy},
        {"model": trained},
        {"include": "nothing*"},
        {"exclude": "*"},
        {"memory": "many"},
    ],
)
def test_what_prune_refuses_is_refused_by_the_same_sentence(changes: dict[str, Any]) -> None:
    def sentence(call: Callable[..., Any]) -> tuple[type, str]:
        given = {"model": trained(), "batches": classes(80, 0), "sparsity": 0.5, **changes}
        with pytest.raises(WoodburyError) as refused:
            call(**given)
        return type(refused.value), str(refused.value).replace("inspect", "prune")

    assert sentence(woodbury.inspect) == sentence(woodbury.prune)


def test_a_small_memory_takes_fewer_rows(limited: Limited) -> None:
    limited(memory=8 * 35 * (80 + 3 * 12))
    assert prepared(perceptron(80), Settings(count=30)).count == 12
    limited(memory=8 * 35 * (80 + 3 * 7))
    with pytest.raises(WoodburyError, match=r"Inspecting 35 weights takes at least 58\.3 kB"):
        prepared(perceptron(80), Settings(count=30))


def test_settings_are_what_inspect_takes() -> None:
    import inspect

    taken = set(inspect.signature(woodbury.inspect).parameters)
    assert {each.name for each in fields(Settings)} < taken
