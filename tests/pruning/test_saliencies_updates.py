"""Saliencies and updates against brute force on quadratics of at most 8 weights."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from support import dense
from support.random import normal
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.dense import Dense
from woodbury.fisher.diagonal import Diagonal
from woodbury.fisher.lowrank import LowRank
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import magnitude, obd, obs, woodtaylor
from woodbury.pruning.updates import independent, joint, zero

D, DAMPING = 7, 0.02


ROWS, WEIGHTS, GRADIENT = normal(4, D), normal(D, seed=1), 0.3 * normal(D, seed=2)
MATRIX = dense.low_rank(ROWS, DAMPING)
EYE = torch.eye(D, dtype=torch.float64)
FISHERS: list[Fisher] = [
    LowRank(ROWS, DAMPING),
    Dense(MATRIX - DAMPING * EYE, DAMPING),
    BlockDiagonal((LowRank(ROWS[:, :3], DAMPING), Diagonal(ROWS[0, 3:].square(), DAMPING))),
]
GRADIENTS = [None, GRADIENT]


@pytest.fixture(params=FISHERS, ids=lambda fisher: type(fisher).__name__)
def fisher(request: pytest.FixtureRequest) -> Fisher:
    return request.param


@pytest.fixture(params=GRADIENTS, ids=["converged", "with gradient"])
def quadratic(request: pytest.FixtureRequest, fisher: Fisher) -> Quadratic:
    return Quadratic(WEIGHTS, fisher, request.param)


def slope(quadratic: Quadratic) -> Tensor:
    return torch.zeros(D, dtype=torch.float64) if quadratic.gradient is None else quadratic.gradient


def increase(quadratic: Quadratic, delta: Tensor) -> Tensor:
    """gᵀδ + ½ δᵀFδ, by the matrix written out."""
    assert quadratic.fisher is not None
    return slope(quadratic) @ delta + 0.5 * delta @ (quadratic.fisher @ EYE) @ delta


def constrained(quadratic: Quadratic, removed: tuple[int, ...]) -> Tensor:
    """argmin of the increase with δ_q = −w_q for q removed, by the Lagrangian's linear system."""
    assert quadratic.fisher is not None
    k = len(removed)
    system = torch.zeros(D + k, D + k, dtype=torch.float64)
    system[:D, :D] = quadratic.fisher @ EYE
    for i, q in enumerate(removed):
        system[D + i, q] = system[q, D + i] = 1
    right = torch.cat([-slope(quadratic), -WEIGHTS[list(removed)]])
    return torch.linalg.solve(system, right)[:D]


def minimum(quadratic: Quadratic, removed: tuple[int, ...]) -> Tensor:
    """The least increase that removing these weights can cost, above that of the free minimum."""
    return increase(quadratic, constrained(quadratic, removed)) - increase(
        quadratic, constrained(quadratic, ())
    )


def keeping(removed: tuple[int, ...]) -> Tensor:
    keep = torch.ones(D, dtype=torch.bool)
    keep[list(removed)] = False
    return keep


def surgeon(quadratic: Quadratic, groups: Tensor | None = None) -> Tensor:
    return obs(quadratic, groups) if quadratic.gradient is None else woodtaylor(quadratic, groups)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_score_is_the_true_constrained_minimum(quadratic: Quadratic, size: int) -> None:
    groups = list(combinations(range(D), size))
    truth = torch.stack([minimum(quadratic, group) for group in groups])
    torch.testing.assert_close(surgeon(quadratic, torch.tensor(groups)), truth)
    if size == 1:
        torch.testing.assert_close(surgeon(quadratic), truth)


def test_woodtaylor_without_a_slope_is_obs(fisher: Fisher) -> None:
    quadratic = Quadratic(WEIGHTS, fisher, torch.zeros(D, dtype=torch.float64))
    torch.testing.assert_close(woodtaylor(quadratic), obs(quadratic))


def test_magnitude_and_obd_by_their_definitions(fisher: Fisher) -> None:
    quadratic, groups = Quadratic(WEIGHTS, fisher), torch.tensor([[0, 3], [6, 1]])
    torch.testing.assert_close(magnitude(Quadratic(WEIGHTS)), WEIGHTS.square())
    torch.testing.assert_close(
        magnitude(Quadratic(WEIGHTS), groups), WEIGHTS.square()[groups].sum(1)
    )
    truth = 0.5 * (fisher @ EYE).diagonal() * WEIGHTS.square()
    torch.testing.assert_close(obd(quadratic), truth)
    torch.testing.assert_close(obd(quadratic, groups), truth[groups].sum(1))


def test_no_groups_have_no_scores(fisher: Fisher) -> None:
    none = torch.zeros(0, 2, dtype=torch.int64)
    for saliency in (magnitude, obd, obs, woodtaylor):
        assert saliency(Quadratic(WEIGHTS, fisher, GRADIENT), none).shape == (0,)


@pytest.mark.parametrize("update", [zero, independent, joint])
def test_removed_weights_become_exactly_zero(quadratic: Quadratic, update) -> None:
    for removed in ((0,), (1, 5), (0, 2, 3, 6), tuple(range(D - 1))):
        delta = update(quadratic, keeping(removed))
        assert delta.dtype == WEIGHTS.dtype
        assert torch.equal(delta[list(removed)], -WEIGHTS[list(removed)])
        assert torch.equal(
            (WEIGHTS + delta)[list(removed)], torch.zeros(len(removed), dtype=torch.float64)
        )


def test_joint_is_the_constrained_minimiser(quadratic: Quadratic) -> None:
    for size in range(D):
        for removed in combinations(range(D), size):
            torch.testing.assert_close(
                joint(quadratic, keeping(removed)), constrained(quadratic, removed)
            )


def test_no_other_step_is_better_than_joint(quadratic: Quadratic) -> None:
    removed = (1, 2, 5)
    best = increase(quadratic, joint(quadratic, keeping(removed)))
    for seed in range(20):
        other = joint(quadratic, keeping(removed)) + 0.1 * normal(D, seed=seed) * keeping(removed)
        assert increase(quadratic, other) > best
    for update in (zero, independent):
        worse = increase(quadratic, update(quadratic, keeping(removed)))
        assert worse >= best - 1e-12 * abs(best)
        if isinstance(quadratic.fisher, LowRank):
            assert worse > 1.01 * best  # these weights do interact


def test_the_joint_step_with_a_gradient_is_stationary_where_weights_are_free(
    fisher: Fisher,
) -> None:
    keep = keeping((0, 4))
    delta = joint(Quadratic(WEIGHTS, fisher, GRADIENT), keep)
    torch.testing.assert_close(
        (GRADIENT + fisher @ delta)[keep],
        torch.zeros(D - 2, dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )


def test_joint_without_removal_is_the_newton_step(fisher: Fisher) -> None:
    keep = torch.ones(D, dtype=torch.bool)
    newton = -torch.linalg.solve(fisher @ EYE, GRADIENT)
    torch.testing.assert_close(joint(Quadratic(WEIGHTS, fisher, GRADIENT), keep), newton)
    torch.testing.assert_close(joint(Quadratic(WEIGHTS, fisher), keep), torch.zeros_like(newton))


def test_independent_is_joint_when_one_weight_is_removed(quadratic: Quadratic) -> None:
    for q in range(D):
        torch.testing.assert_close(
            independent(quadratic, keeping((q,))), joint(quadratic, keeping((q,)))
        )


def test_independent_adds_up_the_single_updates(quadratic: Quadratic) -> None:
    removed = (1, 4, 6)
    keep, free = keeping(removed), joint(quadratic, torch.ones(D, dtype=torch.bool))
    steps = free + sum(joint(quadratic, keeping((q,))) - free for q in removed)
    torch.testing.assert_close(independent(quadratic, keep)[keep], steps[keep])


def test_obs_is_obd_with_a_diagonal_fisher() -> None:
    quadratic = Quadratic(WEIGHTS, Diagonal(ROWS[0].square(), DAMPING))
    torch.testing.assert_close(obs(quadratic), obd(quadratic))
    for removed in ((2,), (0, 1, 4)):
        step = zero(quadratic, keeping(removed))
        torch.testing.assert_close(joint(quadratic, keeping(removed)), step)
        torch.testing.assert_close(independent(quadratic, keeping(removed)), step)


def test_large_damping_leaves_magnitude(fisher: Fisher) -> None:
    quadratic = Quadratic(WEIGHTS, fisher.with_damping(1e6))
    torch.testing.assert_close(obs(quadratic) * 2e-6, magnitude(quadratic), rtol=1e-4, atol=0)
    assert torch.equal(obs(quadratic).argsort(), magnitude(quadratic).argsort())
    keep = keeping((1, 2))
    torch.testing.assert_close(joint(quadratic, keep), zero(quadratic, keep), rtol=0, atol=1e-5)


def test_predicted_increase_is_the_quadratic(quadratic: Quadratic) -> None:
    for seed in range(5):
        delta = normal(D, seed=seed)
        assert quadratic.increase(delta) == pytest.approx(
            float(increase(quadratic, delta)), rel=1e-12
        )
    keep = keeping((3,))
    predicted = quadratic.increase(joint(quadratic, keep)) - float(
        increase(quadratic, constrained(quadratic, ()))
    )
    assert predicted == pytest.approx(float(surgeon(quadratic)[3]), rel=1e-9)


def test_float32_rows_with_little_damping() -> None:
    rows, keep = (normal(4, D) * 10).float(), keeping((0, 3, 5))
    found = Quadratic(WEIGHTS.float(), LowRank(rows, 1e-4))
    exact = Quadratic(WEIGHTS.float().double(), LowRank(rows.double(), 1e-4))
    torch.testing.assert_close(
        joint(found, keep).double(), joint(exact, keep), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(obs(found).double(), obs(exact), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: obs(Quadratic(WEIGHTS)), "obs needs a Fisher"),
        (lambda: obd(Quadratic(WEIGHTS)), "obd needs a Fisher"),
        (lambda: woodtaylor(Quadratic(WEIGHTS)), "woodtaylor needs a Fisher"),
        (lambda: woodtaylor(Quadratic(WEIGHTS, FISHERS[0])), "first_order=True"),
        (
            lambda: independent(Quadratic(WEIGHTS), keeping((0,))),
            "independent update needs a Fisher",
        ),
        (lambda: joint(Quadratic(WEIGHTS), keeping((0,))), "joint update needs a Fisher"),
        (lambda: Quadratic(WEIGHTS).increase(WEIGHTS), "needs a Fisher"),
        (
            lambda: joint(Quadratic(WEIGHTS, FISHERS[0]), ~keeping(())),
            "at least one weight must be kept",
        ),
        (lambda: Quadratic(WEIGHTS[1:], FISHERS[0]), "on 7 weights, the model on 6"),
        (lambda: Quadratic(WEIGHTS / 0), "NaN or infinite"),
    ],
)
def test_bad_input_is_refused(act, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        act()


@pytest.mark.parametrize("saliency", [magnitude, obd, obs, woodtaylor])
@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ([0, 1], r"int64 of shape \(2,\)"),
        ([[0.0, 1.0]], "groups is float64"),
        ([[0, D]], rf"indices from 0 to {D}"),
        ([[-1, 2]], "indices from -1 to 2"),
        (3, r"int64 of shape \(\)"),
        ("all", "groups is a str"),
    ],
)
def test_groups_that_do_not_fit_are_refused(saliency: Any, groups: Any, sentence: str) -> None:
    quadratic = Quadratic(WEIGHTS, FISHERS[0], GRADIENT)
    with pytest.raises(WoodburyError, match=sentence):
        saliency(quadratic, groups)


@pytest.mark.parametrize("saliency", [magnitude, obd, obs, woodtaylor])
def test_groups_may_be_lists_and_none(saliency: Any) -> None:
    quadratic = Quadratic(WEIGHTS, FISHERS[0], GRADIENT)
    expected = saliency(quadratic, torch.tensor([[0, 3], [6, 1]]))
    torch.testing.assert_close(saliency(quadratic, [[0, 3], [6, 1]]), expected)
    assert saliency(quadratic, torch.zeros(0, 2, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("move", [zero, independent, joint, Quadratic.restrict])
@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        (torch.ones(D), "keep is float32"),
        (torch.ones(D - 1, dtype=torch.bool), rf"keep is bool of shape \({D - 1},\)"),
        (torch.zeros(D, dtype=torch.bool), "at least one weight must be kept"),
        (None, "keep is a NoneType"),
        (True, r"keep is bool of shape \(\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(move: Any, keep: Any, sentence: str) -> None:
    quadratic = Quadratic(WEIGHTS, FISHERS[0])
    with pytest.raises(WoodburyError, match=sentence):
        move(quadratic, keep)
    as_list = [True] * (D - 1) + [False]
    move(quadratic, as_list)
