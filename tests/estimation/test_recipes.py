"""The recipes against the dense truth of the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import dense
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.engines import looped
from woodbury.estimation.gradients import gradient_rows
from woodbury.estimation.labels import sampled
from woodbury.estimation.recipes import Estimate, diagonal_fisher, kfac, mfac, woodfisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.dense import Dense
from woodbury.fisher.diagonal import Diagonal
from woodbury.fisher.kronecker.elements import upper_bound
from woodbury.fisher.kronecker.operator import Kronecker, pi_corrected
from woodbury.fisher.kronecker.restricted import Restricted
from woodbury.fisher.lowrank import LowRank
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.monitor import progress

DAMPING, COUNT = 0.02, 9


def objective_of(likelihood: Likelihood = cross_entropy) -> Objective:
    """Tensors of 20, 5, 15 and 3 weights: blocks of 8 must end with each of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Objective.from_model(
        model,
        [(normal(12, 4), torch.arange(12) % 3), (normal(6, 4), torch.arange(6) % 3)],
        likelihood,
    )


def halved() -> Objective:
    """Some weights removed: 13, 3, 10 and 2 are left."""
    objective = objective_of()
    keep = torch.arange(objective.space.d) % 3 != 2
    return objective.at(objective.weights[keep], objective.space.restrict(keep))


def matrix(objective: Objective, estimate: Estimate) -> Tensor:
    fisher = estimate(objective)
    assert fisher.d == objective.space.d
    return fisher @ torch.eye(fisher.d, dtype=torch.float64)


OBJECTIVES = {"whole": objective_of, "restricted": halved}
SIZES = {"whole": (8, 8, 4, 5, 8, 7, 3), "restricted": (8, 6, 3, 8, 2, 2)}


@pytest.fixture(params=OBJECTIVES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("batch", [1, 2])
def test_recipes_are_the_dense_fisher_and_its_parts(name: str, batch: int) -> None:
    objective = OBJECTIVES[name]()
    truth = dense.low_rank(gradient_rows(objective, COUNT, batch=batch), DAMPING)
    sizes = objective.space.block_sizes(8)
    assert sizes == SIZES[name]
    for estimate, expected in (
        (mfac(COUNT, DAMPING, batch=batch), truth),
        (diagonal_fisher(COUNT, DAMPING, batch=batch), truth.diagonal().diag()),
        (woodfisher(COUNT, 8, DAMPING, batch=batch), dense.blocks_only(truth, sizes)),
        (mfac(COUNT, DAMPING, block=8, batch=batch), dense.blocks_only(truth, sizes)),
        (
            woodfisher(COUNT, 2000, DAMPING, batch=batch),
            dense.blocks_only(truth, objective.space.block_sizes()),
        ),
        (
            woodfisher(COUNT, 4, DAMPING, batch=batch),
            dense.blocks_only(truth, objective.space.block_sizes(4)),
        ),  # streamed
        (woodfisher(COUNT, 1, DAMPING, batch=batch), truth.diagonal().diag()),
    ):
        torch.testing.assert_close(matrix(objective, estimate), expected)


def test_dense_blocks_never_hold_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("all rows were asked for")

    for holder in ("gradient_rows", "stored_rows"):
        monkeypatch.setattr(f"woodbury.estimation.recipes.{holder}", refuse)
    woodfisher(COUNT, 20, DAMPING)(objective_of())
    with pytest.raises(AssertionError, match="all rows"):
        mfac(COUNT, DAMPING)(objective_of())


def test_structures() -> None:
    objective = objective_of()
    assert isinstance(mfac(3)(objective), LowRank)
    assert isinstance(diagonal_fisher(3)(objective), Diagonal)
    assert isinstance(woodfisher(3)(objective), Dense)  # short tensors: one batch of small matrices
    assert isinstance(kfac(3)(objective), BlockDiagonal)
    assert [
        estimate(objective).damping
        for estimate in (mfac(3), diagonal_fisher(3), woodfisher(3), kfac(3))
    ] == [1e-5] * 4


def test_long_blocks_of_few_rows_are_low_rank() -> None:
    model = nn.Linear(150, 2).double()
    objective = Objective.from_model(model, [(normal(3, 150), torch.tensor([0, 1, 1]))])
    fisher = woodfisher(3, 150, DAMPING)(objective)
    assert isinstance(fisher, BlockDiagonal)
    truth = dense.blocks_only(dense.low_rank(gradient_rows(objective, 3), DAMPING), (150, 150, 2))
    torch.testing.assert_close(fisher @ torch.eye(302, dtype=torch.float64), truth)


def test_kfac_of_one_sample_with_its_own_label_is_the_fisher_of_each_tensor() -> None:
    """A single sample's gradient of a matrix is δ aᵀ: the product of the two factors is exact."""
    objective = objective_of()
    one = Objective.from_model(
        objective.model,
        [(normal(1, 4), torch.tensor([1]))],
        space=ParameterSpace.from_model(objective.model, "*.weight"),
    )
    fisher = kfac(1, DAMPING, labels=lambda objective, inputs, target, generator: target)(one)
    truth = dense.blocks_only(dense.low_rank(gradient_rows(one, 1), DAMPING), (20, 15))
    torch.testing.assert_close(fisher @ torch.eye(35, dtype=torch.float64), truth)
    keep = torch.arange(35) % 4 != 1
    restricted = kfac(1, DAMPING, labels=lambda objective, inputs, target, generator: target)(
        one.at(one.weights[keep], one.space.restrict(keep))
    )
    assert restricted.d == int(keep.sum())


def test_kfac_with_bounds_once_weights_are_gone() -> None:
    found = kfac(COUNT, DAMPING, elements=upper_bound)(halved())
    exact = kfac(COUNT, DAMPING)(halved())
    assert isinstance(found, BlockDiagonal)
    parts = [part for part in found.parts if isinstance(part, Restricted)]
    assert len(parts) == 4
    wholes = [part.submatrix.basis.diagonal(part.submatrix.inverse_spectrum) for part in parts]
    kept = [whole[part.keep] for whole, part in zip(wholes, parts, strict=True)]
    whole = torch.cat(kept).to(found.dtype)
    torch.testing.assert_close(found.inverse_diagonal(), whole)
    assert not torch.allclose(whole, exact.inverse_diagonal())


RECIPES: dict[str, Any] = {
    "diagonal": diagonal_fisher,
    "woodfisher": woodfisher,
    "mfac": mfac,
    "kfac": kfac,
}


@pytest.mark.parametrize("name", RECIPES)
def test_sampled_labels_are_fixed_by_the_seed(name: str) -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed + 17)  # the global generator must not matter
        return matrix(objective_of(), RECIPES[name](COUNT, labels=sampled, seed=seed))

    torch.testing.assert_close(drawn(1), drawn(1))
    assert not torch.allclose(drawn(1), drawn(2))


def test_sampled_labels_are_those_of_the_generator() -> None:
    objective = objective_of()
    own = gradient_rows(
        objective, COUNT, labels=sampled, generator=torch.Generator().manual_seed(5), engine=looped
    )
    torch.testing.assert_close(
        matrix(objective, mfac(COUNT, DAMPING, labels=sampled, seed=5)),
        dense.low_rank(own, DAMPING),
    )


def refuses(output: Tensor, target: Tensor) -> Tensor:
    raise AssertionError("work was done before the input was checked")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"damping": 0.0}, "damping is 0"),
        ({"damping": -1.0}, "damping is -1"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"damping": float("inf")}, "damping is inf"),
        ({"count": 0}, "at least 1"),
        ({"count": -3}, "at least 1"),
    ],
)
def test_bad_numbers_are_named_before_any_work(name: str, options: dict, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        RECIPES[name](**{"count": COUNT, **options})(
            objective_of(Likelihood(refuses, cross_entropy.sample))
        )


@pytest.mark.parametrize("damping", [0.0, -1.0])
@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_damping_is_named_when_it_is_given(name: str, damping: float) -> None:
    with pytest.raises(WoodburyError, match="damping is"):
        RECIPES[name](damping=damping)


@pytest.mark.parametrize("name", ["diagonal", "woodfisher", "mfac"])
def test_a_bad_batch_is_named_before_any_work(name: str) -> None:
    with pytest.raises(WoodburyError, match="at least 1"):
        RECIPES[name](COUNT, batch=0)(objective_of(Likelihood(refuses)))


@pytest.mark.parametrize("block", [0, -5])
def test_a_bad_block_is_named_before_any_work(block: int) -> None:
    with pytest.raises(WoodburyError, match="at least 1"):
        woodfisher(COUNT, block)(objective_of(Likelihood(refuses)))


@pytest.mark.parametrize("name", RECIPES)
def test_too_little_data_says_how_much_there_was(name: str) -> None:
    with pytest.raises(WoodburyError, match="18 of the 19"):
        RECIPES[name](19)(objective_of())


@pytest.mark.parametrize("name", RECIPES)
def test_progress_ends_at_the_count(name: str) -> None:
    seen: list[tuple[str, int, int]] = []
    with progress(lambda *what: seen.append(what)):
        RECIPES[name](COUNT)(objective_of())
    assert seen[-1][1:] == (COUNT, COUNT)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_pi_correction_is_passed_on() -> None:
    parts = kfac(COUNT, DAMPING, damped=pi_corrected)(objective_of())
    plain = kfac(COUNT, DAMPING)(objective_of())
    assert isinstance(parts, BlockDiagonal)
    assert all(isinstance(part, Kronecker) for part in parts.parts)
    eye = torch.eye(43, dtype=torch.float64)
    assert not torch.allclose(parts @ eye, plain @ eye)
