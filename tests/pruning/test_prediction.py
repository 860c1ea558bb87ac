"""What is said of a predicted increase: coverage where the truth is known, on every route."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support import dense as truth_of
from support.random import normal
from torch import Tensor, nn

import woodbury
from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.pruning import (
    DampingSearch,
    LayerByLayer,
    LayerSequence,
    ShareSearch,
    WithRefit,
    prediction,
)
from woodbury.pruning.held_back import split_samples
from woodbury.pruning.planning import pruning_objective
from woodbury.pruning.prediction import IncreaseInterval, increase_interval, warning_of
from woodbury.pruning.presets import Effort, quick, standard, thorough
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.refit.layer_by_layer import WithLayers

INPUTS, NOISE = 6, 0.5
FEW = replace(quick, samples=64)
INTERVAL = IncreaseInterval(0.01, 0.02, 0.04, 0.95, 256, 0.3)
BELOW = IncreaseInterval(-0.04, -0.02, -0.01, 0.95, 256, 0.1)


def linear_data(samples: int, seed: int) -> list[Batch]:
    """Normal inputs, and a linear function of them with noise."""
    inputs = normal(samples, INPUTS, seed=seed, dtype=torch.float32)
    noise = NOISE * normal(samples, 1, seed=seed + 10_000, dtype=torch.float32)
    return [(inputs, inputs @ true_weights()[:, None] + noise)]


def true_weights() -> Tensor:
    return torch.linspace(-1, 1, INPUTS)


def linear_model() -> nn.Module:
    """Near the truth, so that every weight is worth keeping."""
    model = nn.Linear(INPUTS, 1, bias=False)
    model.weight.data = true_weights()[None] + 0.1 * normal(1, INPUTS, dtype=torch.float32)
    return model


def true_increase(pruned: Pruned, dense: Objective) -> float:
    """Of ½ (output − target)² over the whole distribution, whose inputs are uncorrelated."""
    before, after = dense.space.expand(dense.weights), pruned.weights
    off = [float((w - true_weights()).double().square().sum()) for w in (before, after)]
    return 0.5 * (off[1] - off[0])


def pruner() -> woodbury.Pruner:
    return woodbury.Pruner(woodbury.gauss_newton(woodbury.mfac(64, damping=1e-3)))


ROUTES: dict[str, Callable[[Objective], Pruned]] = {
    "one step": lambda dense: pruner()(dense, 0.5),
    "magnitude": lambda dense: woodbury.Pruner(
        None, woodbury.saliencies.magnitude, woodbury.updates.zero
    )(dense, 0.5),
    "chosen damping": lambda dense: DampingSearch(pruner())(dense, 0.5),
    "refit": lambda dense: WithRefit.around(pruner(), dense)(dense, 0.5),
    "layers": lambda dense: WithLayers(pruner(), dense, LayerByLayer())(dense, 0.5),
    "layer sequence": lambda dense: LayerSequence()(dense, 0.5),
    "quick": lambda dense: ShareSearch()(dense, 0.5),
    "quick, then a refit": lambda dense: WithRefit.around(ShareSearch(), dense)(dense, 0.5),
    "stages": lambda dense: woodbury.pruning.run_stages(pruner(), dense, [0.25, 0.5]),
}


@pytest.mark.parametrize("route", ROUTES)
def test_the_interval_holds_the_increase_in_the_distribution(route: str) -> None:
    dense = Objective.from_model(linear_model(), linear_data(64, 1), woodbury.squared_error)
    pruned = ROUTES[route](dense)
    truth, sets = true_increase(pruned, dense), 20
    missed = 0
    for seed in range(sets):
        interval = pruned.checked_on(dense, linear_data(48, 100 + seed)).predicted_interval
        assert interval is not None and interval.samples == 48
        missed += not interval.low <= truth <= interval.high
    assert missed <= 5  # of 20 at 5 %: more than five are 1 in 3,000


def test_without_labels_it_is_the_divergence_from_the_dense_network() -> None:
    torch.manual_seed(0)
    model, places = nn.Linear(3, 4), torch.randn(8, 3)
    dense = Objective.from_model(model, [(places, None)])
    other = dense.at(0.3 * dense.weights)
    before, after = (
        each.forward(each.parameters, places).log_softmax(1).double() for each in (dense, other)
    )
    truth = float((before.exp() * (before - after)).sum(1).mean())
    missed = 0
    for seed in range(20):
        drawn = torch.randint(8, (64,), generator=torch.Generator().manual_seed(seed))
        interval = increase_interval(dense, other, [(places[drawn], None)])
        missed += not interval.low <= truth <= interval.high
    assert missed <= 5


def test_mean_and_dense_loss_are_those_of_the_samples() -> None:
    dense = Objective.from_model(linear_model(), linear_data(64, 1), woodbury.squared_error)
    other, held_back = dense.at(0 * dense.weights), linear_data(37, 2)
    interval = increase_interval(dense, other, held_back)
    increase = other.loss(held_back) - dense.loss(held_back)
    assert interval.mean == pytest.approx(increase, rel=1e-5)
    assert interval.dense_loss == pytest.approx(dense.loss(held_back), rel=1e-5)
    wider = increase_interval(dense, other, held_back, confidence=0.99)
    assert wider.low < interval.low < interval.mean < interval.high < wider.high


def images(samples: int) -> list[Batch]:
    """Three classes, in batches of 50."""
    inputs = normal(samples, INPUTS, dtype=torch.float32)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1)
    return list(zip(inputs.split(50), labels.split(50), strict=True))


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh(), nn.Linear(8, 3))


def all_matrices(batches: list[Batch]) -> Objective:
    """The dense network on what `prune` prunes."""
    return pruning_objective(classifier(), batches, woodbury.cross_entropy, None, (), False)


EFFORTS = [FEW, replace(standard, samples=64), replace(thorough, samples=64)]


@pytest.mark.parametrize("effort", EFFORTS, ids=["quick", "standard", "thorough"])
def test_an_effort_is_checked_on_the_samples_after_its_own(effort: Effort) -> None:
    data = images(200)
    inputs, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    pruned = woodbury.prune(classifier(), data, 0.5, effort=effort)
    by_hand = pruned.checked_on(all_matrices(data), [(inputs[64:], labels[64:])])
    assert by_hand.predicted_interval is not None and pruned.predicted_interval is not None
    assert pruned.predicted_interval.samples == by_hand.predicted_interval.samples == 136
    assert pruned.predicted_interval.mean == pytest.approx(by_hand.predicted_interval.mean)
    unchecked = woodbury.prune(classifier(), [(inputs[:64], labels[:64])], 0.5, effort=effort)
    assert unchecked.predicted_interval is None
    assert "give prune held_back=0.1, or more samples" in unchecked.predicted_warning
    assert torch.equal(unchecked.weights, pruned.weights)


def test_few_samples_beyond_an_effort_are_left_alone() -> None:
    assert woodbury.prune(classifier(), images(90), 0.5, effort=FEW).predicted_interval is None


@pytest.mark.parametrize("recipe", [None, pruner()], ids=["effort", "pruner"])
def test_a_share_of_the_calibration_set_can_be_held_back(recipe: woodbury.Pruner | None) -> None:
    data = images(64)
    pruned = woodbury.prune(classifier(), data, 0.5, effort=FEW, pruner=recipe, held_back=0.25)
    dense = all_matrices(data)
    rest, aside = split_samples(dense, 0.25)
    assert torch.equal(
        pruned.weights, woodbury.prune(classifier(), rest, 0.5, effort=FEW, pruner=recipe).weights
    )
    assert pruned.predicted_interval == pruned.checked_on(dense, aside).predicted_interval


def test_other_data_can_be_held_back() -> None:
    data, others = images(64), images(128)[-1:]
    pruned = woodbury.prune(classifier(), data, 0.5, pruner=pruner(), held_back=others)
    assert pruned.predicted_interval is not None and pruned.predicted_interval.samples == 28
    alone = woodbury.prune(classifier(), data, 0.5, pruner=pruner())
    assert alone.predicted_interval is None and torch.equal(alone.weights, pruned.weights)


NOT_A_NUMBER = [(torch.full((40, INPUTS), math.nan), torch.zeros(40, dtype=torch.long))]


@pytest.mark.parametrize("recipe", [None, pruner()], ids=["effort", "pruner"])
@pytest.mark.parametrize(
    ("held_back", "sentence"),
    [
        (0.0, r"held_back is 0.0: .* \(0, 1\)"),
        (1, r"held_back is 1: .* \(0, 1\)"),
        (0.01, "too small to hold a part of it back"),
        (iter(images(50)), "only once"),
        ([], "needs at least 2 samples that are held back, not 0"),
        ([(torch.zeros(1, INPUTS), torch.zeros(1, dtype=torch.long))], "at least 2 .* not 1"),
        (NOT_A_NUMBER, "dense network on the samples held back is not finite"),
        ("data", "Batch 0 is a str"),
    ],
)
def test_what_cannot_be_held_back(
    held_back: object, sentence: str, recipe: woodbury.Pruner | None
) -> None:
    model = classifier()
    with pytest.raises(WoodburyError, match=sentence):
        woodbury.prune(
            model,
            images(64),
            0.5,
            effort=FEW,
            pruner=recipe,
            held_back=held_back,  # type: ignore
        )
    for name, parameter in classifier().named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
def test_a_confidence_lies_between_0_and_1(confidence: float) -> None:
    dense = all_matrices(images(50))
    with pytest.raises(WoodburyError, match="confidence is"):
        increase_interval(dense, dense, images(50), confidence)


def test_a_network_that_diverged_is_not_finite_on_other_samples() -> None:
    data = images(50)
    dense = all_matrices(data)
    pruned = Pruned(dense.at(1e38 * torch.ones_like(dense.weights)), pruner()(dense, 0.5).steps)
    checked = pruned.checked_on(dense, data)
    assert checked.predicted_interval is not None
    assert checked.predicted_interval.mean == math.inf
    assert "on 50 samples held back the loss is not finite" in checked.predicted_warning
    assert "not finite" in checked.predicted_interval.in_words()


@pytest.mark.parametrize(
    ("predicted", "refuted"),
    [
        (0.01, False),  # an end
        (0.03, False),
        (0.0055, False),  # less than a factor of two below
        (0.0045, True),
        (0.07, False),
        (0.09, True),
        (-0.001, True),
        (math.inf, True),
        (math.nan, True),
    ],
)
def test_a_prediction_beyond_twice_an_end_is_refuted(predicted: float, refuted: bool) -> None:
    assert replace(INTERVAL, dense_loss=0.1).refutes(predicted) == refuted
    assert BELOW.refutes(-predicted) == refuted


def test_a_hundredth_of_the_dense_loss_is_negligible() -> None:
    assert replace(INTERVAL, dense_loss=0.9).refutes(1e-4)
    assert not replace(INTERVAL, dense_loss=1.1).refutes(1e-4)


@pytest.mark.parametrize(
    ("predicted", "interval", "doubt", "sentence"),
    [
        (None, None, "", ""),
        (None, INTERVAL, "why", ""),
        (0.03, INTERVAL, "", ""),
        (0.03, INTERVAL, "why", "0.03 is no forecast: why; on other samples it is 0.01 to 0.04"),
        (math.nan, INTERVAL, "", "not finite: raise the damping"),
        (1e-5, INTERVAL, "why", "1e-05 does not hold: on other samples it is 0.01 to 0.04"),
        (0.03, None, "", "0.03 is not checked, as no sample was held back: do this."),
        (0.03, None, "why", "0.03 is no forecast: why; do this."),
        (-0.5, BELOW, "", "of −0.5 does not hold: on other samples it is −0.04 to −0.01 ("),
    ],
)
def test_the_warning(
    predicted: float | None, interval: IncreaseInterval | None, doubt: str, sentence: str
) -> None:
    warning = warning_of(predicted, interval, doubt, "do this")
    assert sentence in warning and bool(sentence) == bool(warning)


@pytest.mark.parametrize(("samples", "is_doubted"), [(35, True), (36, False)])
def test_a_refit_of_fewer_equations_than_weights_is_no_forecast(
    samples: int, is_doubted: bool
) -> None:
    dense = all_matrices(images(100))
    refit = woodbury.Refit(mc_samples=1, damping=1e-2, samples=samples)
    pruned = WithRefit.around(pruner(), dense, refit)(dense, 0.5)
    assert pruned.objective.space.d == 36 and pruned.steps[-1].equations == samples
    assert pruned.predicted == pruned.steps[-1].distance
    doubt = f"the refit fits {samples} equations by 36 weights" if is_doubted else ""
    assert pruned.predicted_doubt == doubt and doubt in pruned.predicted_warning


def test_the_share_of_the_damping_is_that_of_the_dense_matrix() -> None:
    dense = Objective.from_model(classifier().double(), doubled(images(20)))
    rows = 20
    recipe = woodbury.Pruner(woodbury.mfac(rows, damping=1e-4))
    fisher = recipe.quadratic(dense).fisher
    assert isinstance(fisher, woodbury.fisher.LowRank)
    pruned = recipe(dense, 0.5)
    delta = pruned.weights - dense.weights
    matrix = truth_of.low_rank(fisher.rows, 1e-4)
    share = 1e-4 * float(delta @ delta) / float(delta @ matrix @ delta)
    assert pruned.damping_share == pytest.approx(share, rel=1e-6)
    assert share > prediction.MOST_DAMPING  # 20 rows on 83 weights of which 41 are kept
    assert "the update fits all gradient rows" in pruned.predicted_warning
    checked = pruned.checked_on(dense, doubled(images(50)))
    assert "on other samples it is" in checked.predicted_warning
    certain = woodbury.Pruner(woodbury.mfac(20, damping=1e-4), update=woodbury.updates.zero)
    assert (certain(dense, 0.5).damping_share or 1) < prediction.MOST_DAMPING
    assert recipe_with_gradient(recipe)(dense, 0.5).damping_share is None


def recipe_with_gradient(recipe: woodbury.Pruner) -> woodbury.Pruner:
    return replace(recipe, first_order=True)


def doubled(batches: list[Batch]) -> list[Batch]:
    return [(inputs.double(), labels) for inputs, labels in batches]
