"""Kronecker and its restrictions, against torch.kron written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.limits import Limited
from support.random import normal
from torch import Tensor
from torch.testing import assert_close

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.kronecker.elements import upper_bound
from woodbury.fisher.kronecker.operator import Kronecker, pi_corrected
from woodbury.fisher.kronecker.restricted import Restricted
from woodbury.fisher.kronecker.submatrix import Submatrix

OUT, IN = 6, 9


def _factor(n: int, seed: int, decay: float = 1.0) -> Tensor:
    """An n × n factor with the eigenvalues 1, 2^−decay, 3^−decay, …"""
    vectors = torch.linalg.qr(normal(n, n, seed=seed))[0]
    factor = vectors * torch.arange(1, n + 1, dtype=torch.float64) ** -decay @ vectors.T
    return (factor + factor.T) / 2


def _truth(left: Tensor, right: Tensor, damping: float) -> Tensor:
    return torch.kron(left, right) + damping * torch.eye(
        len(left) * len(right), dtype=torch.float64
    )


def _pair(damping: float = 1e-3) -> tuple[Kronecker, Tensor]:
    left, right = _factor(OUT, 0), _factor(IN, 1)
    return Kronecker(left, right, damping), _truth(left, right, damping)


def _vector(*shape: int) -> Tensor:
    return normal(*shape, seed=2)


def _keep(d: int, sparsity: float) -> Tensor:
    keep = torch.rand(d, generator=torch.Generator().manual_seed(3)) >= sparsity
    keep[0], keep[1] = True, False
    return keep


def _close(result: Tensor, truth: Tensor) -> None:
    assert result.shape == truth.shape
    assert_close(
        (result - truth).norm() / truth.norm(),
        torch.zeros((), dtype=truth.dtype),
        rtol=0,
        atol=1e-9,
    )


def _groups(d: int) -> list[Tensor]:
    """In rows, across rows, in columns, mixed, of one weight, none."""
    every = torch.arange(d)
    scattered = torch.randperm(d, generator=torch.Generator().manual_seed(4))
    lines = [every[: d // IN * IN].view(-1, IN), every[: d // IN * IN].view(-1, IN).T.contiguous()]
    return [
        *lines,
        every[: d // 4 * 4].view(-1, 4),
        scattered[: d // 5 * 5].view(-1, 5),
        every[:, None],
        lines[0][:0],
    ]


def _check_every_operation(fisher: Fisher, matrix: Tensor) -> None:
    d, inverse = len(matrix), torch.linalg.inv(matrix)
    assert fisher.d == d
    for v in (_vector(d), _vector(d, 1), _vector(d, 3)):
        _close(fisher @ v, matrix @ v)
        _close(fisher.solve(v), torch.linalg.solve(matrix, v))
    _close(fisher.diagonal(), matrix.diagonal())
    _close(fisher.inverse_diagonal(), inverse.diagonal())
    _close(
        torch.tensor(fisher.logdet(), dtype=torch.float64), torch.linalg.slogdet(matrix).logabsdet
    )
    for groups in _groups(d):
        blocks = inverse[groups[:, :, None], groups[:, None, :]]
        assert_close(
            fisher.inverse_blocks(groups), blocks, rtol=1e-9, atol=1e-9 * float(inverse.abs().max())
        )


@pytest.mark.parametrize("damping", [1.0, 1e-3, 1e-6])
def test_every_operation(damping: float) -> None:
    fisher, matrix = _pair(damping)
    _check_every_operation(fisher, matrix)
    assert fisher.damping == damping


def test_chunks_do_not_change_the_inverse_blocks(limited: Limited) -> None:
    fisher, matrix = _pair()
    keep = _keep(fisher.d, 0.3)
    limited(temporary=60)
    _check_every_operation(fisher, matrix)
    _check_every_operation(fisher.restrict(keep), matrix[keep][:, keep])


def test_the_order_is_that_of_row_major_weights() -> None:
    fisher, _ = _pair(1e-3)
    weight = _vector(OUT, IN)
    product = fisher.left @ weight @ fisher.right + 1e-3 * weight
    _close(fisher @ weight.flatten(), product.flatten())
    swapped = Kronecker(fisher.right, fisher.left, 1e-3)
    with pytest.raises(AssertionError):
        _close(swapped @ weight.flatten(), product.flatten())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("damping", [1e-1, 1e-4])
def test_every_operation_of_a_restriction(sparsity: float, damping: float) -> None:
    fisher, matrix = _pair(damping)
    keep = _keep(fisher.d, sparsity)
    _check_every_operation(fisher.restrict(keep), matrix[keep][:, keep])


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_conjugate_gradients_solve_as_the_dense_factor(sparsity: float, limited: Limited) -> None:
    fisher, matrix = _pair(1e-3)
    keep = _keep(fisher.d, sparsity)
    limited(direct_size=0.5)
    v = _vector(int(keep.sum()), 4)
    v[:, 1] = 0  # a column that has arrived before the first step
    _close(fisher.restrict(keep).solve(v), torch.linalg.solve(matrix[keep][:, keep], v))
    _close(fisher.restrict(keep).solve(v[:, 0]), torch.linalg.solve(matrix[keep][:, keep], v[:, 0]))


def test_conjugate_gradients_end_at_the_residual_that_is_allowed(limited: Limited) -> None:
    fisher, matrix = _pair(1e-3)
    keep = _keep(fisher.d, 0.5)
    limited(direct_size=0.5)
    v = _vector(int(keep.sum()))
    part = matrix[keep][:, keep]
    residuals = []
    for allowed in (1e-1, 1e-4):
        limited(cg_residual=allowed)
        residuals.append(float((part @ fisher.restrict(keep).solve(v) - v).norm() / v.norm()))
    assert 1e-4 < residuals[0] <= 1e-1 and residuals[1] <= 1e-4


def test_conjugate_gradients_that_do_not_converge_say_so(limited: Limited) -> None:
    fisher, _ = _pair(1e-6)
    limited(direct_size=0.5)
    limited(cg_steps=2)
    with pytest.raises(WoodburyError, match="raise the damping"):
        fisher.restrict(_keep(fisher.d, 0.5)).solve(_vector(int(_keep(fisher.d, 0.5).sum())))


def test_restricting_composes_and_returns_the_operator_itself_if_all_are_kept() -> None:
    fisher, matrix = _pair()
    keep = _keep(fisher.d, 0.2)
    again = _keep(int(keep.sum()), 0.4)
    twice = fisher.restrict(keep).restrict(again)
    chosen = keep.nonzero()[:, 0][again]
    _check_every_operation(twice, matrix[chosen][:, chosen])
    assert fisher.restrict(torch.ones(fisher.d, dtype=torch.bool)) is fisher
    whole = Restricted(
        Submatrix(fisher.basis, fisher.damping, torch.ones(fisher.d, dtype=torch.bool)),
        fisher.dtype,
    )
    _check_every_operation(whole, matrix)


def test_a_part_too_large_for_its_dense_factor_says_so_and_still_solves(
    limited: Limited,
) -> None:
    fisher, matrix = _pair(1e-2)
    keep = _keep(fisher.d, 0.5)
    limited(dense_factor=3)
    limited(direct_size=3)
    part = fisher.restrict(keep)
    with pytest.raises(WoodburyError, match="upper_bound"):
        part.inverse_diagonal()
    v = _vector(part.d)
    _close(part.solve(v), torch.linalg.solve(matrix[keep][:, keep], v))


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_bounds_hold_and_need_no_dense_factor(sparsity: float, limited: Limited) -> None:
    plain, matrix = _pair(1e-3)
    keep = _keep(plain.d, sparsity)
    limited(dense_factor=3)
    limited(direct_size=3)
    part = (
        replace(plain, elements=upper_bound)
        .restrict(_keep(plain.d, 0.05) | keep)
        .with_damping(1e-3)
    )
    part = part.restrict(keep[part.keep])  # type: ignore[attr-defined]
    kept = matrix[keep][:, keep]
    exact, result = torch.linalg.inv(kept).diagonal(), part.inverse_diagonal()
    assert bool((result >= exact - 1e-9).all()) and bool((result > 1.01 * exact).any())
    assert bool((exact >= 1 / kept.diagonal() - 1e-9).all())  # the other side of (eq. 34)
    groups = torch.randperm(part.d, generator=torch.Generator().manual_seed(4))[
        : part.d // 4 * 4
    ].view(-1, 4)
    over = (
        part.inverse_blocks(groups) - torch.linalg.inv(kept)[groups[:, :, None], groups[:, None, :]]
    )
    assert float(torch.linalg.eigvalsh(over).min()) > -1e-9
    assert_close(part.inverse_blocks(groups).diagonal(dim1=1, dim2=2), result[groups])
    _close(part.solve(_vector(part.d)), torch.linalg.solve(kept, _vector(part.d)))


@pytest.mark.parametrize("sparsity", [0.0, 0.4])
def test_compensation_is_the_constrained_optimum(sparsity: float) -> None:
    whole, matrix = _pair()
    fisher: Fisher = whole
    if sparsity:
        first = _keep(whole.d, sparsity)
        fisher, matrix = whole.restrict(first), matrix[first][:, first]
    keep, gradient = _keep(fisher.d, 0.3), _vector(fisher.d)
    removed = _vector(fisher.d).flip(0) * ~keep
    kept = matrix[keep][:, keep]
    force = matrix[keep][:, ~keep] @ removed[~keep]
    _close(fisher.compensate(keep, removed), torch.linalg.solve(kept, force))
    _close(
        fisher.compensate(keep, removed, gradient), torch.linalg.solve(kept, force - gradient[keep])
    )


def test_another_damping_shares_the_eigenvectors() -> None:
    fisher, matrix = _pair(1e-3)
    other = fisher.with_damping(0.5)
    assert other.basis is fisher.basis
    keep = _keep(fisher.d, 0.5)
    stronger = matrix + (0.5 - 1e-3) * torch.eye(fisher.d, dtype=torch.float64)
    _check_every_operation(other, stronger)
    part = fisher.restrict(keep)
    assert isinstance(part, Restricted)
    part.logdet()  # what is cached belongs to the old damping
    _check_every_operation(part.with_damping(0.5), stronger[keep][:, keep])
    assert part.with_damping(0.5).damping == 0.5


def test_damping_zero_of_definite_factors() -> None:
    left, right = _factor(3, 6), _factor(4, 7)
    _check_every_operation(Kronecker(left, right, 0.0), torch.kron(left, right))
    singular = left - torch.linalg.eigvalsh(left)[0] * torch.eye(3, dtype=torch.float64)
    with pytest.raises(WoodburyError, match="singular"):
        Kronecker(singular, right, 0.0)
    with pytest.raises(WoodburyError, match="singular"):
        Kronecker(singular, right, 0.1).with_damping(0.0)


def test_pi_correction_is_the_papers() -> None:
    left, right, damping = 4 * _factor(OUT, 0), _factor(IN, 1), 0.09
    pi = ((right.trace() / IN) / (left.trace() / OUT)).sqrt()
    eyes = torch.eye(OUT, dtype=torch.float64), torch.eye(IN, dtype=torch.float64)
    truth = torch.kron(left + 0.3 / pi * eyes[0], right + 0.3 * pi * eyes[1])
    result = pi_corrected(left, right, damping)
    _check_every_operation(result, truth)
    # What it is for: the two cross terms have equal traces, and the constant one is λ itself.
    cross = 0.3 / pi * torch.kron(eyes[0], right), 0.3 * pi * torch.kron(left, eyes[1])
    assert_close(cross[0].trace(), cross[1].trace())
    _close(
        truth - torch.kron(left, right) - cross[0] - cross[1],
        damping * torch.eye(OUT * IN, dtype=torch.float64),
    )
    keep = _keep(OUT * IN, 0.5)
    _check_every_operation(result.restrict(keep), truth[keep][:, keep])
    stronger = truth + 0.5 * torch.eye(OUT * IN, dtype=torch.float64)
    _check_every_operation(result.with_damping(0.5), stronger)


def test_pi_correction_of_a_layer_that_saw_nothing() -> None:
    zero = torch.zeros(2, 2, dtype=torch.float64)
    _check_every_operation(pi_corrected(zero, zero, 0.25), 0.25 * torch.eye(4, dtype=torch.float64))


def test_single_precision_in_and_out_double_inside() -> None:
    left, right = _factor(OUT, 0).float(), _factor(IN, 1).float()
    fisher, matrix = Kronecker(left, right, 1e-6), _truth(left.double(), right.double(), 1e-6)
    keep = _keep(fisher.d, 0.5)
    for one, truth in ((fisher, matrix), (fisher.restrict(keep), matrix[keep][:, keep])):
        result = one.solve(_vector(one.d).float())
        assert result.dtype == torch.float32 == one.dtype
        exact = torch.linalg.solve(truth, _vector(one.d).float().double())
        assert_close(
            (result.double() - exact).norm() / exact.norm(),
            torch.zeros(()).double(),
            rtol=0,
            atol=1e-6,
        )


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (torch.ones(2, 3), "'left' has shape"),
        (torch.ones(2), "'left' has shape"),
        (torch.ones(0, 0), "'left' has shape"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "'left' is not symmetric"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "'left' is not finite"),
        (torch.ones(2, 2, dtype=torch.int64), "'left' has dtype"),
    ],
)
def test_bad_factors_are_named(left: Tensor, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        Kronecker(left, torch.eye(2), 0.1)
    with pytest.raises(WoodburyError, match=says.replace("left", "right")):
        Kronecker(torch.eye(2), left, 0.1)


def test_an_indefinite_factor_is_named() -> None:
    with pytest.raises(WoodburyError, match="'right' has the eigenvalue -1"):
        Kronecker(torch.eye(2), torch.diag(torch.tensor([1.0, -1.0])), 0.1).logdet()


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_bad_damping_is_named(damping: float) -> None:
    with pytest.raises(WoodburyError, match="damping is"):
        Kronecker(torch.eye(2), torch.eye(2), damping)
    with pytest.raises(WoodburyError, match="damping is"):
        pi_corrected(torch.eye(2), torch.eye(2), damping)
