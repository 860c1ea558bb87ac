"""Dampings and trust chosen by the loss on held-back data, stages with fresh samples, efforts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.limits import Limited
from support.random import normal
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import gauss_newton, mfac, woodfisher
from woodbury.fisher.lowrank import LowRank
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.api import prune
from woodbury.pruning.autoconfig import choose
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.presets import Effort, quick, standard, thorough
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude, obs, woodtaylor
from woodbury.pruning.staged import inner_stages, run_stages, stages
from woodbury.pruning.updates import joint, zero

ONE_STAGE, SEVERAL = (replace(effort, in_turn=None) for effort in (quick, standard))


def data(seed: int = 0, samples: int = 60) -> list[Batch]:
    label = torch.arange(samples) % 3
    inputs = normal(samples, 8, seed=seed) + 2 * torch.eye(3, 8, dtype=torch.float64)[label]
    return list(zip(inputs.split(20), label.split(20), strict=True))


def network(epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, target in data() * epochs:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def objective() -> Objective:
    model = network(15)
    return Objective.from_model(model, data(), space=ParameterSpace.from_model(model, min_ndim=2))


DAMPINGS = (1e-6, 1e-3, 1e-1, 10.0)


@pytest.mark.parametrize("recipe", [mfac(30), woodfisher(30, 16)])
def test_the_damping_of_least_held_back_loss_is_taken(recipe, objective: Objective) -> None:
    held = data(seed=5)
    losses = {}
    for damping in DAMPINGS:
        pruner = Pruner(lambda o, damping=damping: recipe(o).with_damping(damping))
        losses[damping] = pruner(objective, 0.8).objective.loss(held)
    found = DampingSearch(Pruner(recipe), held, DAMPINGS)(objective, 0.8)
    assert found.steps[0].damping == min(losses, key=losses.__getitem__)
    assert found.objective.loss(held) == pytest.approx(min(losses.values()))
    assert found.sparsity == pytest.approx(0.8)
    assert found.steps[0].trust is None


def test_the_gradient_is_followed_as_far_as_the_measured_loss_falls() -> None:
    model = network(1)  # not converged
    objective = Objective.from_model(
        model, data(), space=ParameterSpace.from_model(model, min_ndim=2)
    )
    held, pruner = data(seed=5), Pruner(gauss_newton(mfac(60, 1e-2)), woodtaylor, first_order=True)
    found = DampingSearch(pruner, held, (1e-2,))(objective, 0.5)
    without = Pruner(gauss_newton(mfac(60, 1e-2)))(objective, 0.5)
    assert found.steps[0].trust is not None and found.steps[0].trust > 0
    assert found.objective.loss(held) < without.objective.loss(held)
    converged = Objective.from_model(network(15), data(), space=objective.space)
    reckless = DampingSearch(replace(pruner, fisher=mfac(3, 1e-6)), held, (1e-6,))(converged, 0.3)
    assert reckless.steps[0].trust is not None and reckless.steps[0].trust < 1


def test_stages_take_fresh_samples_and_yield_what_each_reached(objective: Objective) -> None:
    asked: list[int] = []

    def fresh(stage: int) -> list[Batch]:
        asked.append(stage)
        return data(seed=stage + 1)

    pruner, levels = Pruner(mfac(30, 1e-3)), [0.3, 0.5, 0.7]
    reached = list(stages(pruner, objective, levels, fresh))
    assert asked == [0, 1, 2]
    assert [pruned.sparsity for pruned in reached] == pytest.approx(levels, abs=0.01)
    assert [len(pruned.steps) for pruned in reached] == [1, 2, 3]
    assert bool((reached[0].keep | ~reached[2].keep).all())
    first = pruner(replace(objective, batches=data(seed=1)), 0.3)
    torch.testing.assert_close(reached[0].weights, first.weights)
    torch.testing.assert_close(
        run_stages(pruner, objective, levels).weights,
        list(stages(pruner, objective, levels))[-1].weights,
    )


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("recipe", [mfac(30, 1e-3), woodfisher(30, 16, 1e-3)])
def test_inner_stages_remove_the_cheapest_and_end_at_the_optimum_of_one_quadratic(
    recipe, first_order: bool, objective: Objective
) -> None:
    pruner = Pruner(recipe, woodtaylor if first_order else obs, first_order=first_order)
    quadratic, stays = pruner.quadratic(objective), objective.space.keep
    for pruned in inner_stages(pruner, quadratic, objective, [0.3, 0.5, 0.8]):
        costs = torch.full((objective.space.d,), torch.inf, dtype=torch.float64)
        for q in stays.nonzero()[:, 0].tolist():
            without = stays.clone()
            without[q] = False
            costs[q] = quadratic.increase(joint(quadratic, without))
        gone = stays & ~pruned.keep
        assert set(gone.nonzero()[:, 0].tolist()) == set(
            costs.argsort()[: int(gone.sum())].tolist()
        )
        stays = pruned.keep
        delta = joint(quadratic, stays)
        torch.testing.assert_close(pruned.weights, objective.weights + delta)
        assert pruned.predicted == pytest.approx(quadratic.increase(delta), rel=1e-9)
    assert pruned.sparsity == pytest.approx(0.8, abs=0.01) and len(pruned.steps) == 3


@pytest.mark.parametrize(
    ("pruner", "levels", "message"),
    [
        (Pruner(mfac(30), update=zero), [0.5], "use update=joint"),
        (Pruner(mfac(30)), [], "no sparsity"),
        (Pruner(mfac(30)), [0.5, 1.5], "1.5"),
    ],
)
def test_impossible_inner_stages_are_refused_at_once(
    pruner, levels, message: str, objective: Objective
) -> None:
    with pytest.raises(WoodburyError, match=message):
        inner_stages(pruner, pruner.quadratic(objective), objective, levels)


@pytest.mark.parametrize("effort", [ONE_STAGE, SEVERAL, thorough])
@pytest.mark.parametrize("likelihood", [cross_entropy, Likelihood(cross_entropy.loss)])
def test_an_effort_reports_its_settings(effort: Effort, likelihood: Likelihood) -> None:
    model = network(15)
    pruned = prune(model, data(), 0.6, effort=effort, likelihood=likelihood)
    assert pruned.sparsity == pytest.approx(0.6)
    assert (
        pruned.settings["stages"]
        == len(pruned.steps)
        == {ONE_STAGE: 1, SEVERAL: 3, thorough: 6}[effort]
    )
    assert ("Gauss–Newton" in str(pruned.settings["rows"])) == (likelihood is cross_entropy)
    assert pruned.settings["structure"] == "whole matrix"
    assert (pruned.settings["samples_held_back"] == 0) == (effort is not thorough)


def test_large_spaces_are_taken_in_blocks(objective: Objective, limited: Limited) -> None:
    limited(whole_matrix=100)
    assert choose(objective, 0.5, ONE_STAGE).settings["structure"] == "blocks of 128"


def test_all_dampings_on_one_eigendecomposition() -> None:
    rows = normal(12, 40) * torch.logspace(0, -3, 40, dtype=torch.float64)
    for weights in (
        None,
        torch.rand(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1,
    ):
        plain = LowRank(rows, 1e-4, weights)
        spectral = plain.spectral()
        for damping in (1e-8, 1e-4, 1.0):
            truth, found = plain.with_damping(damping), spectral.with_damping(damping)
            torch.testing.assert_close(
                found.inverse_diagonal(), truth.inverse_diagonal(), rtol=1e-8, atol=0
            )
            torch.testing.assert_close(
                found.solve(rows[0]), truth.solve(rows[0]), rtol=1e-5, atol=1e-12
            )
            keep = torch.arange(40) % 3 > 0
            torch.testing.assert_close(
                found.restrict(keep).inverse_diagonal(),
                truth.restrict(keep).inverse_diagonal(),
                rtol=1e-8,
                atol=0,
            )
            torch.testing.assert_close(
                found.conditional_curvature(keep),
                truth.conditional_curvature(keep),
                rtol=1e-8,
                atol=0,
            )


@pytest.mark.parametrize(
    "effort", [quick, ONE_STAGE, standard, thorough, replace(thorough, samples=30, held_back=0.9)]
)
@pytest.mark.parametrize("likelihood", [cross_entropy, replace(cross_entropy, directions=None)])
def test_no_effort_needs_labels(effort: Effort, likelihood: Likelihood) -> None:
    model = network(1)
    pruned = prune(
        model, [(inputs, None) for inputs, _ in data()], 0.5, effort=effort, likelihood=likelihood
    )
    assert pruned.sparsity == 0.5 and all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("effort", [quick, standard, thorough])
def test_zeros_are_kept_under_targets_by_name(effort: Effort) -> None:
    """Half of the first layer is zero already: the stages of the second layer start from none."""
    model = network(1)
    with torch.no_grad():
        model[0].weight[:, ::2] = 0  # type: ignore[index,operator]
    prune(model, data(), {"0.*": 0.9, "*": 0.1}, effort=effort, keep_zeros=True)
    first, second = model[0].weight, model[2].weight  # type: ignore[index]
    assert int((first == 0).sum()) == 72 and int((second == 0).sum()) == 3
    assert not first[:, ::2].any()


def test_impossible_arguments_are_named(objective: Objective) -> None:
    pruner, empty = Pruner(mfac(10)), nn.Linear(8, 3).double()
    nn.init.zeros_(empty.weight)
    for call, says in (
        (lambda: DampingSearch(Pruner(None, magnitude, zero), data()), "no damping to choose"),
        (lambda: DampingSearch(pruner, data(), ()), "nothing to choose"),
        (lambda: DampingSearch(pruner, data(), (0.0,)), "positive"),
        (lambda: DampingSearch(pruner, data(), trust=(2.0,)), r"in \[0, 1\]"),
        (lambda: DampingSearch(pruner, [])(objective, 0.5), "at least one sample"),
        (lambda: DampingSearch(pruner, iter(data())), "read only once"),
        (lambda: stages(pruner, objective, []), "no sparsity"),
        (lambda: choose(replace(objective, batches=[]), 0.5, standard), "no samples"),
        (lambda: prune(objective.model, data(), {}), "No target is given"),
        (lambda: prune(empty, data(), 0.5, keep_zeros=True), "below what is reached already"),
        (lambda: Effort(0, 1, 0.5), "samples is 0"),
        (lambda: Effort(9, 0, 0.5), "mc_samples is 0"),
        (lambda: Effort(9, 1, 1.0), r"keep_per_stage is 1.0: .* \[0, 1\)"),
        (lambda: Effort(9, 1, 0.5, ()), "dampings is empty"),
        (lambda: Effort(9, 1, 0.5, (0.0,)), "positive"),
        (lambda: Effort(9, 1, 0.5, held_back=-0.1), r"held_back is -0.1: .* \[0, 1\)"),
        (lambda: Effort(9, 1, 0.5, refits=-1), "refits is -1"),
        (lambda: prune(objective.model, data(), 1.5), r"in \[0, 1\)"),
    ):
        with pytest.raises(WoodburyError, match=says):
            call()


def test_a_share_of_the_calibration_set_is_held_back() -> None:
    """What is chosen on the last fifth by itself is chosen on it where it is given."""
    model = network(15)
    space = ParameterSpace.from_model(model, min_ndim=2)
    dense = Objective.from_model(model, data(samples=160), space=space)
    ours = DampingSearch(Pruner(mfac(128)), dampings=DAMPINGS)(dense, 0.8)
    calibration, held_back = (list(dense.batches.in_batches(16))[part] for part in SPLIT)
    theirs = DampingSearch(Pruner(mfac(128)), held_back, DAMPINGS)(
        replace(dense, batches=calibration), 0.8
    )
    assert ours.steps[0].damping == theirs.steps[0].damping
    torch.testing.assert_close(ours.objective.weights, theirs.objective.weights)
    assert ours.objective.batches is dense.batches, "the next stage has all of them again"


SPLIT = (slice(8), slice(8, None))


def test_a_search_is_a_pruner_of_prune_and_serves_every_stage() -> None:
    pruned = prune(
        network(15), data(samples=160), 0.8, pruner=DampingSearch(Pruner(mfac(128))), stages=3
    )
    assert len(pruned.steps) == 3 and pruned.sparsity == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("held_back", "samples", "sentence"),
    [
        (0.0, 60, r"held_back is 0.0: .* \(0, 1\)"),
        (1, 60, r"held_back is 1: .* \(0, 1\)"),
        (0.2, 20, "too small to hold a part of it back"),
    ],
)
def test_shares_that_cannot_be(held_back: float, samples: int, sentence: str) -> None:
    with pytest.raises(WoodburyError, match=sentence):
        prune(network(1), data(samples=samples), 0.5, pruner=DampingSearch(Pruner(), held_back))
