"""Every operator through every verb against the dense float64 truth: relative error at most 1e-9."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.cases import CASES, DAMPING, Case
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher

TOLERANCE = 1e-9


def close(found: Tensor, truth: Tensor) -> None:
    error = float(
        torch.linalg.vector_norm(found - truth) / torch.linalg.vector_norm(truth).clamp(min=1e-300)
    )
    assert found.shape == truth.shape
    assert error <= TOLERANCE, f"relative error {error:.1e}"


@pytest.fixture(params=CASES, ids=lambda case: case.name, scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[Fisher, Tensor]:
    case: Case = request.param
    return case.build()


def vector(d: int, *k: int, seed: int = 3) -> Tensor:
    return torch.randn(d, *k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(d: int) -> Tensor:
    keep = vector(d, seed=5) > -0.3
    keep[0], keep[-1] = True, False
    return keep


def test_products_and_solves(pair: tuple[Fisher, Tensor]) -> None:
    fisher, matrix = pair
    for v in (vector(fisher.d), vector(fisher.d, 1), vector(fisher.d, 4)):
        close(fisher @ v, matrix @ v)
        close(fisher.solve(v), torch.linalg.solve(matrix, v))


def test_diagonals_and_determinant(pair: tuple[Fisher, Tensor]) -> None:
    fisher, matrix = pair
    assert fisher.d == len(matrix)
    close(fisher.diagonal(), matrix.diagonal())
    close(fisher.inverse_diagonal(), torch.linalg.inv(matrix).diagonal())
    close(
        torch.tensor(fisher.logdet(), dtype=torch.float64), torch.linalg.slogdet(matrix).logabsdet
    )


def test_inverse_blocks(pair: tuple[Fisher, Tensor]) -> None:
    fisher, matrix = pair
    order = vector(fisher.d).argsort()
    groups = order[: fisher.d // 3 * 3].view(-1, 3)[:200]
    close(fisher.inverse_blocks(groups), dense.inverse_blocks(matrix, groups))
    assert fisher.inverse_blocks(groups[:0]).shape == (0, 3, 3)


def test_restriction_keeps_every_verb(pair: tuple[Fisher, Tensor]) -> None:
    fisher, matrix = pair
    fisher.inverse_diagonal()  # what is cached must not leak into the restricted operator
    for keep in (mask(fisher.d), ~mask(fisher.d)):
        smaller, truth = fisher.restrict(keep), matrix[keep][:, keep]
        v = vector(smaller.d, 2)
        close(smaller @ v, truth @ v)
        close(smaller.solve(v), torch.linalg.solve(truth, v))
        close(smaller.diagonal(), truth.diagonal())
        close(smaller.inverse_diagonal(), torch.linalg.inv(truth).diagonal())
        close(
            torch.tensor(smaller.logdet(), dtype=torch.float64),
            torch.linalg.slogdet(truth).logabsdet,
        )


def test_restriction_twice(pair: tuple[Fisher, Tensor]) -> None:
    fisher, matrix = pair
    first = mask(fisher.d)
    second = torch.ones(int(first.sum()), dtype=torch.bool)
    second[::3] = False
    if not second.any():
        second[0] = True
    chosen = first.nonzero()[:, 0][second]
    truth = matrix[chosen][:, chosen]
    close(
        fisher.restrict(first).restrict(second).solve(vector(len(truth))),
        torch.linalg.solve(truth, vector(len(truth))),
    )


def test_compensation_is_the_constrained_optimum(pair: tuple[Fisher, Tensor]) -> None:
    fisher, matrix = pair
    keep, gradient = mask(fisher.d), vector(fisher.d, seed=8)
    removed = vector(fisher.d).masked_fill(keep, 0)
    truth = dense.compensate(matrix, keep, removed)
    found = fisher.compensate(keep, removed)
    assert float((found - truth).norm()) <= TOLERANCE * float(truth.norm()) + 1e-15
    close(
        fisher.compensate(keep, removed, gradient),
        dense.compensate(matrix, keep, removed, gradient),
    )


def test_conditional_curvature(pair: tuple[Fisher, Tensor]) -> None:
    fisher, matrix = pair
    for keep in (mask(fisher.d), ~mask(fisher.d)):
        close(fisher.conditional(keep), dense.conditional(matrix, keep))


def test_other_damping(pair: tuple[Fisher, Tensor]) -> None:
    fisher, matrix = pair
    stronger = matrix + (0.5 - DAMPING) * torch.eye(len(matrix), dtype=torch.float64)
    close(
        fisher.with_damping(0.5).solve(vector(fisher.d)),
        torch.linalg.solve(stronger, vector(fisher.d)),
    )
    close(fisher.with_damping(0.5).inverse_diagonal(), torch.linalg.inv(stronger).diagonal())
    assert fisher.with_damping(0.5).damping == 0.5


def test_scipy_view(pair: tuple[Fisher, Tensor]) -> None:
    fisher, matrix = pair
    found = fisher.scipy() @ vector(fisher.d, 2).numpy()
    close(torch.from_numpy(found), matrix @ vector(fisher.d, 2))


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda f: f.solve(torch.ones(f.d + 1)), "shape"),
        (lambda f: f @ torch.ones(1, f.d, 1), "shape"),
        (lambda f: f.restrict(torch.ones(f.d)), "bool mask"),
        (lambda f: f.restrict(torch.zeros(f.d, dtype=torch.bool)), "at least one weight"),
        (lambda f: f.inverse_blocks(torch.tensor([[f.d]])), "must lie in"),
        (lambda f: f.inverse_blocks(torch.ones(2, 2)), "int64"),
        (lambda f: f.with_damping(-1.0), "positive"),
        (lambda f: f.with_damping(float("nan")), "positive"),
    ],
)
def test_bad_input_is_named(pair: tuple[Fisher, Tensor], act, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        act(pair[0])
