"""What a stage carries to the next: the Fisher of its rows, and the dense network's outputs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from support.random import normal
from torch import Tensor, nn
from torch.testing import assert_close

from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_rows
from woodbury.estimation.output_residuals import Residuals
from woodbury.estimation.recipes import Estimate, gauss_newton, mfac
from woodbury.fisher.base import Fisher
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit.layer_goal import Reconstruction
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.staged import run_stages, stages
from woodbury.pruning.step_choice import EveryNthRow

FISHER = mfac(40, 1e-2, block=5)
REFIT = Refit(mc_samples=2, damping=1e-2, reconstruction=Reconstruction())
SPARSITIES = [0.2, 0.4, 0.6]


@dataclass(frozen=True)
class Counted:
    """A recipe that counts how often it is asked."""

    recipe: Estimate
    asked: list[int] = field(default_factory=list)

    def __call__(self, objective: Objective) -> Fisher:
        self.asked.append(objective.space.d)
        return self.recipe(objective)


def dense() -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    batches = [(normal(20, 6), torch.arange(20) % 3)]
    return Objective.from_model(model, batches, space=ParameterSpace.from_model(model, min_ndim=2))


def recipe(start: Objective, asked: list[int], reuse: bool = True) -> WithRefit:
    pruner = Pruner(Counted(gauss_newton(FISHER, 2), asked))
    return WithRefit.around(pruner, start, REFIT, FISHER.of_rows if reuse else None)


@pytest.mark.parametrize("fisher", [FISHER, mfac(40, 1e-2), mfac(40, 1e-2, block=150)])
def test_the_fisher_of_rows_is_the_recipes_own_and_outlives_them(fisher: mfac) -> None:
    torch.manual_seed(0)
    model = nn.Linear(100, 3, bias=False).double()
    start = Objective.from_model(model, [(normal(20, 100), torch.arange(20) % 3)])
    own = gauss_newton(fisher, 2)(start)
    rows = gradient_rows(gauss_newton_rows(start, 2), 40)
    found = fisher.of_rows(rows, start.space)
    rows.zero_()
    v = normal(300, seed=1)
    assert_close(found @ v, own @ v)
    assert_close(found.solve(v), own.solve(v))
    assert_close(found.inverse_diagonal(), own.inverse_diagonal())


def test_the_curvature_is_estimated_once_and_then_carried() -> None:
    start = dense()
    asked: list[int] = []
    path = list(stages(recipe(start, asked), start, SPARSITIES))
    assert asked == [start.space.d]
    every: list[int] = []
    anew = list(stages(recipe(start, every, reuse=False), start, SPARSITIES))
    assert len(every) == 3
    assert_close(path[0].weights, anew[0].weights)  # nothing was carried to the first
    assert path[-1].sparsity == anew[-1].sparsity
    assert not torch.equal(path[-1].weights, anew[-1].weights)


def test_the_carried_fisher_is_that_of_the_weights_before_the_refit() -> None:
    start = dense()
    step = recipe(start, [])
    pruned = step.recipe(start, 0.4)
    reached = step(start, 0.4)
    assert reached.carried is not None and reached.carried.fisher is not None
    residuals = Residuals.between(
        pruned.objective, start, 2, REFIT.seed + 2 * pruned.objective.space.d
    )
    rows = residuals.jacobian()
    expected = FISHER.of_rows(rows, pruned.objective.space)
    v = normal(pruned.objective.space.d, seed=1)
    assert_close(reached.carried.fisher @ v, expected @ v)


def passes(start: Objective, step: WithRefit) -> list[Tensor]:
    """The inputs that the copy of the dense network gets in a path."""
    seen: list[Tensor] = []
    step.dense.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run_stages(step, start, SPARSITIES)
    return seen


def test_the_dense_network_is_run_for_the_first_stage_alone() -> None:
    start = dense()
    whole = [len(inputs) for inputs in passes(start, recipe(start, [])) if len(inputs) == 20]
    assert whole == [20, 20]  # its outputs, and those of its layers


def test_fresh_batches_carry_nothing_and_the_last_stage_neither() -> None:
    start = dense()
    asked: list[int] = []
    fresh = [(normal(20, 6, seed=9), None)]
    list(stages(recipe(start, asked), start, SPARSITIES, lambda _: fresh))
    assert len(asked) == 3
    assert run_stages(recipe(start, []), start, SPARSITIES).carried is None


def test_a_search_for_the_damping_takes_the_carried_curvature() -> None:
    start = dense()
    asked: list[int] = []
    pruner = Pruner(Counted(gauss_newton(FISHER, 2), asked))
    search = DampingSearch(pruner, start.batches, (1e-3, 1e-1))
    step = WithRefit.around(search, start, REFIT, FISHER.of_rows)
    reached: Pruned = run_stages(step, start, SPARSITIES)
    assert asked == [start.space.d] and len(reached.steps) == 3


def test_distance_needs_no_pass_of_its_own() -> None:
    start = dense()
    pruned = Pruner(gauss_newton(FISHER, 2))(start, 0.4).objective
    for refit in (REFIT, replace(REFIT, steps=3), replace(REFIT, reconstruction=None)):
        refitted = refit.run(pruned, start)
        assert refitted.distance == pytest.approx(refit.distance(refitted.objective, start))


def test_every_nth_row_is_the_fisher_of_these_alone() -> None:
    start = dense()
    rows = normal(40, start.space.d)
    fisher = mfac(20, 1e-2)
    found = EveryNthRow(fisher, 2)(rows, start.space)
    rows_kept = rows[::2].clone()
    rows.zero_()
    expected = rows_kept.mT @ rows_kept / 20 + 1e-2 * torch.eye(start.space.d, dtype=rows.dtype)
    assert_close(found @ torch.eye(start.space.d, dtype=rows.dtype), expected)
