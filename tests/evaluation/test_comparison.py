"""The engine behind compare: what is computed once, and what is counted."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import Estimate, diagonal_fisher, mfac
from woodbury.evaluation.comparison import choose_damping, compare
from woodbury.evaluation.methods import ByEffort, Method, run
from woodbury.evaluation.metrics import accuracy
from woodbury.evaluation.resources import Resources
from woodbury.evaluation.results import Result, summary
from woodbury.fisher.base import Fisher
from woodbury.fisher.lowrank import LowRank
from woodbury.memory import row_bytes
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.monitor import progress
from woodbury.pruning.api import prune
from woodbury.pruning.presets import quick
from woodbury.pruning.pruner import NEGLIGIBLE_DAMPING, Pruner
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.saliencies import magnitude, obd, obs
from woodbury.pruning.schedule import geometric
from woodbury.pruning.units import block
from woodbury.pruning.updates import independent, joint, zero

COUNT = 24

few_samples = replace(quick, samples=32)


def problem(seed: int = 0) -> Objective:
    """A small net that the data's labels agree with, and a calibration sample drawn by the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).requires_grad_(False)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(seed))
    return Objective.from_model(
        model, [(x, model(3 * x).argmax(1))], space=ParameterSpace.from_model(model, min_ndim=2)
    )


def evaluate(objective: Objective) -> float:
    return accuracy(objective, problem(99).batches)


METHODS = {
    "magnitude": Method(Pruner(None, magnitude, zero)),
    "obd": Method(Pruner(diagonal_fisher(COUNT, 1e-3), obd, zero)),
    "joint": Method(Pruner(mfac(COUNT, 1e-3), obs, joint), settings={"recipe": "mfac"}),
}


def counted(recipe: Estimate, calls: list[Objective]) -> Estimate:
    def estimate(objective: Objective) -> Fisher:
        calls.append(objective)
        return recipe(objective)

    return estimate


def test_every_cell_is_there_and_agrees_with_the_pruner_alone() -> None:
    moves: list[tuple[str, int, int]] = []
    with progress(lambda *move: moves.append(move)):
        results = compare(METHODS, [0.5, 0.75], [3, 4], problem, evaluate)
    assert [(r.method, r.sparsity, r.seed) for r in results] == [
        (name, sparsity, seed) for seed in (3, 4) for name in METHODS for sparsity in (0.5, 0.75)
    ]
    cells = [move for move in moves if move[0] == "pruning"]
    assert cells == [("pruning", done, 12) for done in range(1, 13)]
    for result in results:
        objective = problem(result.seed)
        pruned = METHODS[result.method].pruner(objective, result.sparsity)
        assert result.reached == pruned.sparsity == result.sparsity
        assert result.accuracy == pytest.approx(evaluate(pruned.objective))
        assert result.loss_before == pytest.approx(objective.loss())
        assert result.measured == pytest.approx(
            pruned.objective.loss() - objective.loss(), rel=1e-3, abs=1e-6
        )
        assert result.predicted == (
            None if result.method == "magnitude" else pytest.approx(pruned.predicted, rel=1e-3)
        )
        kept = pruned.keep
        zeroed = objective.at(objective.weights[kept], objective.space.restrict(kept))
        assert result.removed == pytest.approx(zeroed.loss() - objective.loss(), rel=1e-3, abs=1e-6)
        assert result.accuracy_removed == pytest.approx(evaluate(zeroed))
        if result.method != "joint":  # their update moves nothing else
            assert result.removed == pytest.approx(result.measured, abs=1e-9)
        assert result.damping == (None if result.method == "magnitude" else 1e-3)
        assert result.seconds > 0 and result.memory > 1
    assert results[-1].settings == {"stages": 1, "recipe": "mfac"}


def test_the_fisher_of_one_stage_is_estimated_once_per_seed_and_counted_in_every_row() -> None:
    calls: list[Objective] = []
    once = replace(METHODS["joint"], pruner=Pruner(counted(mfac(COUNT, 1e-3), calls), obs, joint))
    compare({"once": once}, [0.2, 0.4, 0.6], [0, 1], problem, evaluate)
    assert len(calls) == 2
    calls.clear()
    compare({"stages": replace(once, stages=3)}, [0.2, 0.6], [0], problem, evaluate)
    assert len(calls) == 6
    assert [objective.space.d for objective in calls[:3]] == sorted(
        {objective.space.d for objective in calls[:3]}
    )[::-1]


def test_a_fisher_is_factored_once_per_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    with_damping = LowRank.with_damping

    def recorded(fisher: LowRank, damping: float) -> LowRank:
        made.append(damping)
        return with_damping(fisher, damping)

    monkeypatch.setattr(LowRank, "with_damping", recorded)
    several = replace(METHODS["joint"], dampings=(1e-4, 1e-3, 1e-2))  # the second is its own
    calls: list[Objective] = []
    several = replace(several, pruner=Pruner(counted(mfac(COUNT, 1e-3), calls), obs, joint))
    compare({"m": several}, [0.3, 0.6], [0], problem, evaluate, validate=lambda o: -o.loss())
    assert len(calls) == 1
    # A check of every pruning reads the diagonal with a negligible damping, without factors.
    assert [damping for damping in made if damping != NEGLIGIBLE_DAMPING] == [1e-4, 1e-2]


@pytest.mark.parametrize("stages", [1, 3])
def test_a_damping_is_chosen_once_and_then_the_method_runs_once(
    stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Objective] = []
    refits: list[Objective] = []
    refit = Refit.run

    def recorded(self: Refit, objective: Objective, *others: Any, **options: Any) -> Any:
        refits.append(objective)
        return refit(self, objective, *others, **options)

    monkeypatch.setattr(Refit, "run", recorded)
    method = Method(
        Pruner(counted(mfac(COUNT, 1e-3), calls), obs, joint),
        stages=stages,
        dampings=(1e-4, 1e-2, 1.0),
        refit=Refit(damping=1e-2),
    )
    tried: list[float] = []

    def middle_is_best(objective: Objective) -> float:
        tried.append(objective.space.sparsity)
        return -abs(len(tried) - 2.0)

    best = run(method, problem(), 0.6, validate=middle_is_best)
    assert best.damping == 1e-2 and len(set(tried)) == 1 and len(tried) == 3
    assert tried[0] == pytest.approx(geometric(0.6, stages)[0], abs=0.05)
    assert len(calls) == (1 if stages == 1 else 1 + stages) and len(refits) == stages
    alone = run(replace(method, dampings=(1e-2,)), problem(), 0.6)
    torch.testing.assert_close(best.pruned.objective.weights, alone.pruned.objective.weights)


def test_the_seconds_of_a_choice_are_those_of_all_that_was_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def a_second(call: Callable[[], Any]) -> tuple[Any, Resources]:
        return call(), Resources(1.0, 0.0)

    monkeypatch.setattr("woodbury.evaluation.methods.measured", a_second)
    method = replace(METHODS["joint"], dampings=(1e-4, 1e-3, 1e-2))
    for extra, seconds in (
        ({"dampings": (1e-3,)}, 3),  # estimate, factor, prune
        ({}, 1 + 3 + 3 + 3),  # once; a factor, a pruning and a score for each
        ({"stages": 2}, 1 + 3 + 3 + 3 + 1),
        ({"refit": Refit(damping=1e-2)}, 1 + 3 + 3 + 3 + 1 + 1),  # the best is factored again
    ):
        tried = replace(method, **extra)
        best = run(tried, problem(), 0.5, validate=lambda o: -o.loss())
        assert best.cost.seconds == seconds


def test_a_memory_holds_for_every_method_and_is_refused_where_it_is_none() -> None:
    seen: list[int] = []

    def recipe(objective: Objective) -> Fisher:
        seen.append(row_bytes())
        return mfac(COUNT)(objective)

    method = Method(Pruner(recipe))
    compare({"m": method}, [0.5], [0], problem, evaluate, memory="1MB")
    assert seen == [500_000]
    for memory, sentence in (("much", "give bytes"), ("1kB", "takes at least")):
        with pytest.raises(WoodburyError, match=sentence):
            compare({"m": method}, [0.5], [0], problem, evaluate, memory=memory)


def test_stages_go_on_from_weights_that_are_zero_already() -> None:
    objective = problem()
    keep = torch.rand(objective.space.n, generator=torch.Generator().manual_seed(0)) > 0.5
    sparse = objective.at(objective.weights[keep], objective.space.restrict(keep))
    best = run(replace(METHODS["joint"], stages=2), sparse, 0.75)
    assert best.pruned.sparsity == 0.75
    assert not best.pruned.keep[~keep].any()


def test_a_damping_is_chosen_by_the_score_given() -> None:
    several = replace(METHODS["joint"], dampings=(1e-4, 1e-2, 1.0))
    scores: list[float] = []

    def last_is_best(objective: Objective) -> float:
        scores.append(objective.loss())
        return float(len(scores))

    (result,) = compare({"m": several}, [0.5], [0], problem, evaluate, validate=last_is_best)
    assert result.damping == 1.0 and len(set(scores)) == 3
    best = run(
        several, problem(), 0.5, validate=lambda objective: -objective.loss(problem(5).batches)
    )
    losses = {
        d: run(replace(several, dampings=(d,)), problem(), 0.5).pruned for d in several.dampings
    }
    losses = {d: pruned.objective.loss(problem(5).batches) for d, pruned in losses.items()}
    assert best.damping == min(losses, key=losses.__getitem__)
    held_out = problem(5).batches
    assert (
        choose_damping(several, several.dampings, [0.5], problem(), lambda o: -o.loss(held_out))
        == best.damping
    )


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(WoodburyError, match="nothing to compare"):
        compare({}, [0.5], [0], problem, evaluate)
    several = replace(METHODS["joint"], dampings=(1e-4, 1e-2))
    with pytest.raises(WoodburyError, match="There are several dampings: give `validate`"):
        compare({"m": several}, [0.5], [0], problem, evaluate)
    with pytest.raises(WoodburyError, match="give `validate`"):
        run(several, problem(), 0.5)
    with pytest.raises(WoodburyError, match="no Fisher"):
        choose_damping(METHODS["magnitude"], [1.0], [0.5], problem(), evaluate)


def test_an_impossible_target_is_named_before_any_gradient() -> None:
    calls: list[Objective] = []
    impossible = Method(Pruner(counted(mfac(COUNT, 1e-3), calls), unit=block(5)))
    for act in (
        lambda: compare({**METHODS, "m": impossible}, [0.5], [0], problem, evaluate),
        lambda: run(impossible, problem(), 0.5),
    ):
        with pytest.raises(WoodburyError, match=r"Blocks of 5 do not tile '0\.weight'"):
            act()
    assert not calls


def a_result(**changes: object) -> Result:
    plain = Result(
        "m",
        0.9,
        0.9,
        0,
        0.8,
        0.1,
        0.3,
        0.1,
        0.2,
        1.0,
        100.0,
        1e-3,
        {"stages": 1, "update": "joint"},
    )
    return replace(plain, **changes)


def test_summaries_are_means_and_population_deviations() -> None:
    results = [
        a_result(accuracy=a, memory=m, seed=s)
        for s, (a, m) in enumerate([(0.7, 90.0), (0.9, 120.0), (0.8, 1.0)])
    ]
    other = a_result(method="o", predicted=None)
    cell, last = summary([results[0], other, *results[1:]])
    assert (cell.method, cell.sparsity, cell.seeds, cell.memory) == ("m", 0.9, 3, 120.0)
    assert cell.accuracy == pytest.approx(fmean([0.7, 0.9, 0.8])) and cell.spread == pytest.approx(
        pstdev([0.7, 0.9, 0.8])
    )
    assert last.spread == 0 and last.predicted is None


def test_the_independent_update_shares_nothing_with_the_joint_one() -> None:
    methods = {"i": Method(Pruner(mfac(COUNT, 1e-3), obs, independent)), "j": METHODS["joint"]}
    apart, together = compare(methods, [0.8], [0], problem, evaluate)
    assert apart.predicted is not None and together.predicted is not None
    assert together.predicted <= apart.predicted  # the joint optimum of the same quadratic


def test_a_damping_whose_score_is_nan_is_never_chosen() -> None:
    objective = Objective.from_model(
        nn.Linear(4, 3), [(torch.randn(50, 4), torch.randint(3, (50,)))]
    )
    scores = iter([math.nan, -1.0, math.nan])
    method = Method(Pruner(mfac(20)), dampings=(1e-6, 1e-3, 1.0))
    assert run(method, objective, 0.5, lambda _: next(scores)).damping == 1e-3


def test_by_effort_is_prune() -> None:
    dense = problem()
    (result,) = compare({"by effort": ByEffort(quick)}, [0.75], [0], problem, evaluate)
    model = copy.deepcopy(dense.model)
    pruned = prune(model, dense.batches, 0.75, effort=quick)
    assert result.accuracy == accuracy(pruned.objective, problem(99).batches)
    assert result.predicted == pytest.approx(pruned.predicted)
    assert result.damping == pruned.steps[-1].damping and result.settings["stages"] == 1
    with pytest.raises(WoodburyError, match="must lie in"):
        run(ByEffort(), dense, 1.5)


def test_each_method_may_have_calibration_sets_of_its_own() -> None:
    def other(seed: int) -> Objective:
        return problem(seed + 50)

    methods = {"ours": METHODS["joint"], "theirs": METHODS["joint"]}
    makers = {"ours": problem, "theirs": other}
    ours, theirs = compare(methods, [0.5], [3], makers, evaluate)
    (alone,) = compare({"theirs": METHODS["joint"]}, [0.5], [53], problem, evaluate)
    assert ours.loss_before != theirs.loss_before == alone.loss_before
    assert theirs.predicted == alone.predicted
    with pytest.raises(WoodburyError, match="no function for 'theirs'"):
        compare(methods, [0.5], [3], {"ours": problem}, evaluate)


def test_increases_have_an_interval_on_samples_held_back() -> None:
    def beside(seed: int) -> list[Batch]:
        return list(problem(seed + 70).batches)

    asked = (METHODS, [0.5, 0.75], [3, 4], problem, evaluate)
    checked, plain = compare(*asked, held_back=beside), compare(*asked)
    for result, without in zip(checked, plain, strict=True):
        dense = problem(result.seed)
        pruned = METHODS[result.method].pruner(dense, result.sparsity)
        known = pruned.checked_on(dense, beside(result.seed))
        interval = result.predicted_interval
        assert interval is not None and known.predicted_interval is not None
        assert interval.mean == pytest.approx(known.predicted_interval.mean, rel=1e-4)
        assert interval.high == pytest.approx(known.predicted_interval.high, rel=1e-4)
        assert bool(result.predicted_warning) == bool(known.predicted_warning)
        assert without.predicted_interval is None and without.predicted_warning == ""
    warned = [result for result in checked if result.predicted_warning]
    assert warned and all(result.predicted is not None for result in warned)
    (first, *_) = summary(checked)
    means = [each.predicted_interval.mean for each in checked[:1] + checked[6:7]]  # type: ignore
    assert first.held_back == pytest.approx(fmean(means)) and first.warnings == 0
    assert sum(cell.warnings for cell in summary(checked)) == len(warned)


def test_samples_held_back_are_those_of_the_method_and_may_be_too_few() -> None:
    methods = {"ours": METHODS["joint"], "theirs": METHODS["joint"]}

    def few(seed: int) -> list[Batch]:
        return [(x[:1], y[:1]) for x, y in problem(seed).batches]

    by_name = {"ours": lambda seed: None, "theirs": lambda seed: list(problem(70).batches)}
    ours, theirs = compare(methods, [0.5], [0], problem, evaluate, held_back=by_name)
    assert ours.predicted_interval is None and theirs.predicted_interval is not None
    with pytest.raises(WoodburyError, match="held_back has no function for 'theirs'"):
        compare(methods, [0.5], [0], problem, evaluate, held_back={"ours": few})
    calls: list[Objective] = []
    counting = {"m": Method(Pruner(counted(mfac(COUNT), calls)))}
    with pytest.raises(WoodburyError, match="at least 2 samples"):
        compare(counting, [0.5], [0], problem, evaluate, held_back=few)
    assert not calls  # before any gradient


def test_by_effort_keeps_the_interval_of_its_own_samples() -> None:
    """What `prune` holds back by itself is reported, unless other samples are given."""
    (own,) = compare({"m": ByEffort(few_samples)}, [0.5], [0], problem, evaluate)
    others = list(problem(70).batches)
    (given,) = compare(
        {"m": ByEffort(few_samples)}, [0.5], [0], problem, evaluate, held_back=lambda _: others
    )
    assert own.predicted_interval is not None and own.predicted_interval.samples == 32
    assert given.predicted_interval is not None and given.predicted_interval.samples == 64
