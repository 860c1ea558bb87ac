"""Every operation of every operator against the float64 truth: relative error at most 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import dense
from support.cases import CASES, DAMPING, Case, Pair
from support.random import normal
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType
from woodbury.fisher.base import Fisher

TOLERANCE = 1e-9


def close(result: Tensor, truth: Tensor) -> None:
    """Equal to TOLERANCE of the truth's norm, and of the same shape."""
    size = torch.linalg.vector_norm(truth).clamp(min=1e-300)
    error = float(torch.linalg.vector_norm(result - truth) / size)
    assert result.shape == truth.shape
    assert error <= TOLERANCE, f"relative error {error:.1e}"


def close_numbers(result: float, truth: Tensor) -> None:
    close(torch.tensor(result, dtype=torch.float64), truth)


@pytest.fixture(params=CASES, ids=lambda case: case.name, scope="module")
def pair(request: pytest.FixtureRequest) -> Pair:
    case: Case = request.param
    return case.build()


def vector(d: int, *k: int, seed: int = 3) -> Tensor:
    return normal(d, *k, seed=seed)


def mask(d: int) -> Tensor:
    """Some of d weights, the first among them and the last not."""
    keep = vector(d, seed=5) > -0.3
    keep[0], keep[-1] = True, False
    return keep


def groups_of_three(d: int) -> Tensor:
    """Disjoint groups in a random order."""
    return vector(d).argsort()[: d // 3 * 3].view(-1, 3)[:200]


def test_products_and_solves(pair: Pair) -> None:
    fisher, matrix = pair
    for v in (vector(fisher.d), vector(fisher.d, 1), vector(fisher.d, 4)):
        close(fisher @ v, matrix @ v)
        close(fisher.solve(v), torch.linalg.solve(matrix, v))


def test_quadratic_form(pair: Pair) -> None:
    fisher, matrix = pair
    v = vector(fisher.d)
    close_numbers(fisher.quadratic_form(v), v @ matrix @ v)


def test_diagonals_and_determinant(pair: Pair) -> None:
    fisher, matrix = pair
    assert fisher.d == len(matrix)
    close(fisher.diagonal(), matrix.diagonal())
    close(fisher.inverse_diagonal(), torch.linalg.inv(matrix).diagonal())
    close_numbers(fisher.logdet(), torch.linalg.slogdet(matrix).logabsdet)


def test_inverse_blocks(pair: Pair) -> None:
    fisher, matrix = pair
    groups = groups_of_three(fisher.d)
    close(fisher.inverse_blocks(groups), dense.inverse_blocks(matrix, groups))
    assert fisher.inverse_blocks(groups[:0]).shape == (0, 3, 3)


def test_restriction_keeps_every_operation(pair: Pair) -> None:
    fisher, matrix = pair
    fisher.inverse_diagonal()  # what is cached must not leak into the restricted operator
    for keep in (mask(fisher.d), ~mask(fisher.d)):
        smaller, truth = fisher.restrict(keep), matrix[keep][:, keep]
        v = vector(smaller.d, 2)
        close(smaller @ v, truth @ v)
        close(smaller.solve(v), torch.linalg.solve(truth, v))
        close(smaller.diagonal(), truth.diagonal())
        close(smaller.inverse_diagonal(), torch.linalg.inv(truth).diagonal())
        close_numbers(smaller.logdet(), torch.linalg.slogdet(truth).logabsdet)


def test_restriction_twice(pair: Pair) -> None:
    fisher, matrix = pair
    first = mask(fisher.d)
    second = torch.ones(int(first.sum()), dtype=torch.bool)
    second[::3] = False
    if not second.any():
        second[0] = True
    chosen = first.nonzero()[:, 0][second]
    truth = matrix[chosen][:, chosen]
    v = vector(len(truth))
    close(fisher.restrict(first).restrict(second).solve(v), torch.linalg.solve(truth, v))


def test_restriction_to_all_weights_changes_nothing(pair: Pair) -> None:
    fisher, matrix = pair
    whole = fisher.restrict(torch.ones(fisher.d, dtype=torch.bool))
    close(whole.solve(vector(fisher.d)), torch.linalg.solve(matrix, vector(fisher.d)))
    close(whole.inverse_diagonal(), torch.linalg.inv(matrix).diagonal())


def test_compensation_is_the_constrained_optimum(pair: Pair) -> None:
    fisher, matrix = pair
    keep, gradient = mask(fisher.d), vector(fisher.d, seed=8)
    removed = vector(fisher.d).masked_fill(keep, 0)
    truth = dense.compensate(matrix, keep, removed)
    step = fisher.compensate(keep, removed)
    assert float((step - truth).norm()) <= TOLERANCE * float(truth.norm()) + 1e-15
    with_gradient = dense.compensate(matrix, keep, removed, gradient)
    close(fisher.compensate(keep, removed, gradient), with_gradient)


def test_conditional_curvature(pair: Pair) -> None:
    fisher, matrix = pair
    for keep in (mask(fisher.d), ~mask(fisher.d)):
        truth = dense.conditional_curvature(matrix, keep)
        close(fisher.conditional_curvature(keep), truth)
        close(Fisher.conditional_curvature(fisher, keep), truth)  # where no structure helps


def test_other_damping(pair: Pair) -> None:
    fisher, matrix = pair
    stronger = matrix + (0.5 - DAMPING) * torch.eye(len(matrix), dtype=torch.float64)
    v = vector(fisher.d)
    close(fisher.with_damping(0.5).solve(v), torch.linalg.solve(stronger, v))
    close(fisher.with_damping(0.5).inverse_diagonal(), torch.linalg.inv(stronger).diagonal())
    assert (fisher.damping, fisher.with_damping(0.5).damping) == (DAMPING, 0.5)


def test_arguments_and_operator_are_left_alone(pair: Pair) -> None:
    fisher, matrix = pair
    v, keep, groups = vector(fisher.d, 2), mask(fisher.d), groups_of_three(fisher.d)
    before = [v.clone(), keep.clone(), groups.clone()]
    removed = v[:, 0].masked_fill(keep, 0)
    fisher @ v
    fisher.solve(v)
    fisher.inverse_blocks(groups)
    fisher.restrict(keep)
    fisher.conditional_curvature(keep)
    fisher.compensate(keep, removed, v[:, 1])
    fisher.diagonal().zero_()  # a new tensor each time
    for argument, copy in zip((v, keep, groups), before, strict=True):
        assert torch.equal(argument, copy)
    close(fisher.diagonal(), matrix.diagonal())
    close(fisher.solve(v), torch.linalg.solve(matrix, v))


def test_results_have_the_dtype_and_device_of_the_operator(pair: Pair) -> None:
    fisher, _ = pair
    v, keep = vector(fisher.d), mask(fisher.d)
    results = (
        fisher @ v,
        fisher.solve(v),
        fisher.diagonal(),
        fisher.inverse_diagonal(),
        fisher.inverse_blocks(groups_of_three(fisher.d)),
        fisher.conditional_curvature(keep),
        fisher.compensate(keep, v.masked_fill(keep, 0)),
    )
    assert {result.dtype for result in results} == {fisher.dtype} == {torch.float64}
    assert {result.device for result in results} == {fisher.device}


def test_scipy_view(pair: Pair) -> None:
    fisher, matrix = pair
    product = fisher.scipy() @ vector(fisher.d, 2).numpy()
    close(torch.from_numpy(product), matrix @ vector(fisher.d, 2))


@pytest.mark.parametrize(
    ("act", "says", "kind"),
    [
        (lambda f: f.solve(torch.ones(f.d + 1)), "shape", WoodburyError),
        (lambda f: f @ torch.ones(1, f.d, 1), "shape", WoodburyError),
        (lambda f: f.restrict(torch.ones(f.d)), "bool mask", WrongType),
        (
            lambda f: f.restrict(torch.ones(f.d + 1, dtype=torch.bool)),
            "bool mask",
            WoodburyError,
        ),
        (
            lambda f: f.restrict(torch.zeros(f.d, dtype=torch.bool)),
            "at least one weight",
            WoodburyError,
        ),
        (lambda f: f.inverse_blocks(torch.tensor([[f.d]])), "must lie in", WoodburyError),
        (
            lambda f: f.inverse_blocks(torch.tensor([[-1, 0]])),
            r"from -1 to 0: they must lie in \[0",
            WoodburyError,
        ),
        (lambda f: f.inverse_blocks(torch.ones(2, 2)), "int64", WrongType),
        (lambda f: f.with_damping(-1.0), "positive", WoodburyError),
        (lambda f: f.with_damping(float("nan")), "positive", WoodburyError),
        (lambda f: f.with_damping("high"), "damping is 'high'", WrongType),
    ],
)
def test_bad_input_is_named(
    pair: Pair, act: Callable[[Any], Any], says: str, kind: type[WoodburyError]
) -> None:
    with pytest.raises(WoodburyError, match=says) as error:
        act(pair.fisher)
    assert type(error.value) is kind
