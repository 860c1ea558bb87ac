"""Blocks whose sums have no room at once: groups of tensors, each with its own passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support import dense
from support.limits import Limited
from support.random import normal
from torch import Tensor, nn

import woodbury
from woodbury import Pruner, WoodburyError, woodfisher
from woodbury.estimation.gradients import gradient_chunks, gradient_rows
from woodbury.estimation.grouped_blocks import on_tensors
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.rebuilt import Rebuilt
from woodbury.model.objective import Objective

COUNT, BLOCK, DAMPING = 12, 4, 0.02

PER_BLOCK = 8 * BLOCK * (BLOCK + 4)
"""Bytes of the sums of a block and of four of its rows."""

BESIDE = 28
"""Bytes of a weight that a budget keeps free beside sums."""

RECIPE = woodfisher(COUNT, BLOCK, DAMPING)


def rows_in(blocks: int, objective: Objective) -> int:
    """`Limits.memory` under which just so many blocks have room."""
    room, beside = blocks * PER_BLOCK, BESIDE * objective.space.d
    return (room + beside) // 2 if room >= beside else room


def whole() -> Objective:
    """Tensors of 20, 5, 15 and 3 weights in 5, 2, 4 and 1 blocks, off the model's own weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batches = [(normal(12, 4), torch.arange(12) % 3)]
    objective = Objective.from_model(model, batches)
    return objective.at(1.5 * objective.weights)


def restricted() -> Objective:
    objective = whole()
    keep = torch.arange(objective.space.d) % 5 != 2
    return objective.at(objective.weights[keep], objective.space.restrict(keep))


@pytest.fixture(params=[whole, restricted])
def objective(request: pytest.FixtureRequest) -> Objective:
    return request.param()


@pytest.mark.parametrize(
    ("blocks", "groups"), [(12, 1), (11, 2), (7, 2), (6, 3), (5, 3), (4, 5), (2, 7), (1, 12)]
)
def test_groups_are_the_dense_fisher(
    objective: Objective, blocks: int, groups: int, limited: Limited
) -> None:
    truth = dense.low_rank(gradient_rows(objective, COUNT), DAMPING)
    truth = dense.blocks_only(truth, objective.space.block_sizes(BLOCK))
    limited(memory=rows_in(blocks, objective))
    fisher = RECIPE(objective)
    if objective.space.kept is None:
        assert len(getattr(fisher, "parts", "1")) == groups
    keep, v = torch.arange(fisher.d) % 3 != 0, normal(fisher.d, seed=1)
    units = torch.tensor([[0, 1], [3, 20], [30, 31]])
    for operator, matrix, x in (
        (fisher, truth, v),
        (fisher.restrict(keep), truth[keep][:, keep], v[keep]),
        (fisher.with_damping(1.0), truth + (1 - DAMPING) * torch.eye(fisher.d).double(), v),
    ):
        torch.testing.assert_close(operator @ x, matrix @ x)
        torch.testing.assert_close(operator.solve(x), torch.linalg.solve(matrix, x))
        torch.testing.assert_close(operator.diagonal(), matrix.diagonal())
        torch.testing.assert_close(operator.inverse_diagonal(), torch.linalg.inv(matrix).diagonal())
    torch.testing.assert_close(fisher.inverse_blocks(units), dense.inverse_blocks(truth, units))
    assert fisher.logdet() == pytest.approx(float(torch.logdet(truth)))
    removed = v.masked_fill(keep, 0)
    step = fisher.compensate(keep, removed, v)
    inner = torch.linalg.solve(truth[keep][:, keep], (truth @ removed - v)[keep])
    torch.testing.assert_close(step, inner)
    moved = -removed
    moved[keep] = step
    torch.testing.assert_close(fisher @ moved, truth @ moved)
    torch.testing.assert_close(fisher @ (2 * moved), truth @ (2 * moved))


@pytest.mark.parametrize("first_order", [False, True])
def test_a_step_in_groups_is_the_step_at_once_in_two_passes_each(
    objective: Objective, limited: Limited, monkeypatch: pytest.MonkeyPatch, first_order: bool
) -> None:
    pruner = Pruner(RECIPE, first_order=first_order)
    target = objective.space.sparsity + 0.4
    at_once = pruner(objective, target)
    passes = []

    def counted(*arguments: object, **options: object) -> Iterator[Tensor]:
        passes.append(1)
        return gradient_chunks(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("woodbury.estimation.recipes.gradient_chunks", counted)
    limited(memory=rows_in(5, objective))
    fisher = RECIPE(objective)
    assert isinstance(fisher, BlockDiagonal)
    assert all(isinstance(part, Rebuilt) for part in fisher.parts)
    grouped = pruner(objective, target)
    assert torch.equal(grouped.keep, at_once.keep)
    torch.testing.assert_close(grouped.weights, at_once.weights)
    assert grouped.predicted == pytest.approx(at_once.predicted)
    assert len(passes) == 2 * len(fisher.parts)


def test_other_tensors_stay_at_the_weights_of_the_objective() -> None:
    objective = whole()
    names = ("0.bias", "2.weight")
    part = on_tensors(on_tensors(objective, ("0.weight", *names)), names)
    assert part.space.d == 20
    assert part.loss() == pytest.approx(objective.loss())
    expected = gradient_rows(objective, 3)[:, 20:40]
    torch.testing.assert_close(gradient_rows(part, 3), expected)


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        (10_000, "more than 32 times the 1e-05 GB.*blocks of at most 62 weights"),
        (2000, "blocks of at most 7 weights"),
        (10, "take diagonal_fisher, or more memory"),
    ],
)
def test_what_no_number_of_groups_can_hold_is_refused_before_any_gradient(
    memory: int, says: str, limited: Limited
) -> None:
    model = nn.Linear(1000, 1, bias=False)
    objective = Objective.from_model(model, [(torch.ones(4, 1000), torch.zeros(4, 1))])
    limited(memory=memory)
    with pytest.raises(WoodburyError, match=says):
        woodbury.woodfisher(10**6, 1000)(objective)
