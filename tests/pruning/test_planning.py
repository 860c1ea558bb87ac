"""plan(): what a run will take is what runs, and what does not fit is refused before any work."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import woodbury
from woodbury.errors import WoodburyError
from woodbury.memory import budget_bytes
from woodbury.pruning.presets import quick, standard
from woodbury.pruning.run_plan import Phase, Plan

IN_STAGES = replace(standard, in_turn=None)


def small() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    return model, [(torch.randn(32, 8), torch.arange(32) % 4) for _ in range(4)]


def test_the_plan_is_what_runs() -> None:
    model, batches = small()
    planned = woodbury.plan(model, batches, 0.7, effort=quick, memory="1GiB")
    done = woodbury.prune(model, batches, 0.7, effort=quick, memory="1GiB").plan
    assert done is not None
    # The seconds and what torch retains are those of another trial.
    same = replace(done, phases=planned.phases, retained_bytes=planned.retained_bytes)
    assert same == planned
    assert [phase.peak_bytes for phase in done.phases] == [
        phase.peak_bytes for phase in planned.phases
    ]


def test_a_plan_says_what_a_run_does() -> None:
    model, batches = small()
    pruned = woodbury.prune(model, batches, 0.7, effort=standard)
    plan = pruned.plan
    assert plan is not None
    assert plan.stages == len(pruned.steps)
    assert plan.weights == 8 * 32 + 32 * 4
    assert plan.samples == 128
    assert plan.refit == pruned.settings["refit_per_stage"]
    assert plan.budget_bytes <= budget_bytes() * 1.5
    assert json.loads(json.dumps(plan.facts()))["seconds"] == plan.seconds > 0


def test_a_plan_changes_nothing() -> None:
    model, batches = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    woodbury.plan(model, batches, 0.7)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training


def test_less_memory_takes_less() -> None:
    model, batches = small()
    roomy = woodbury.plan(model, batches, 0.7, effort=IN_STAGES)
    less = roomy.held_bytes - 1
    tight = woodbury.plan(model, batches, 0.7, effort=IN_STAGES, memory=less)
    assert tight.held_bytes < roomy.held_bytes
    assert roomy.structure in tight.better and tight.better in tight.in_one_line()
    assert not roomy.better and "More exact" not in roomy.in_one_line()


def test_a_cheaper_refit_of_the_same_curvature_is_said_too() -> None:
    model, batches = small()
    roomy = woodbury.plan(model, batches, 0.7, effort=IN_STAGES)
    less = roomy.held_bytes * 6 // 10
    tight = woodbury.plan(model, batches, 0.7, effort=IN_STAGES, memory=less)
    assert tight.structure == roomy.structure and tight.refit != roomy.refit
    assert roomy.refit in tight.better


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    model, batches = small()
    before = model[0].weight.detach().clone()
    with pytest.raises(WoodburyError, match=r"at least .*give memory='.*B', prune fewer"):
        woodbury.prune(model, batches, 0.7, memory=1000)
    assert torch.equal(model[0].weight, before)


def test_a_table_and_a_line() -> None:
    phases = (Phase("gradient rows", 100.0, 2**31, 2), Phase("refit", 1.0, 2**20, 3))
    plan = Plan(
        weights=1_000_000,
        samples=256,
        rows=512,
        structure="blocks of 500",
        dtype="float32",
        stages=2,
        refit="none",
        phases=phases,
        budget_bytes=6 * 2**30,
    )
    assert plan.in_one_line() == (
        "1,000,000 weights by blocks of 500, 2 stages: about 2 min, 2.15 GB of 6.45 GB."
    )
    assert "samples          256, 5 times through the network" in str(plan)
    assert "  refit          1 s, 1.05 MB" in str(plan)


def test_every_damping_that_is_tried_is_in_the_plan() -> None:
    model, batches = small()
    thorough = replace(IN_STAGES, held_back=0.25, dampings=(1e-4, 1e-3, 1e-2, 1e-1) * 50)
    several = choice_seconds(woodbury.plan(model, batches, 0.7, effort=thorough))
    one = choice_seconds(
        woodbury.plan(model, batches, 0.7, effort=replace(thorough, dampings=(1e-3,)))
    )
    assert several > 20 * one


def choice_seconds(plan: Plan) -> float:
    return sum(phase.seconds for phase in plan.phases if phase.name == "choice")


def test_where_the_process_has_less_than_was_asked_for_its_limit_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batches = small()
    monkeypatch.setattr("woodbury.pruning.planning.available_bytes", lambda device: 1000)
    with pytest.raises(WoodburyError, match=r"may hold 950 B: free memory, or raise the limit"):
        woodbury.prune(model, batches, 0.7, memory="1GiB")
