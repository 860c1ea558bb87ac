"""KroneckerRows without damping: the fewer of kept and removed weights are factored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import dense
from support.limits import Limited
from support.random import normal
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType
from woodbury.fisher.kronecker import AllRowsAtOnce, KroneckerRows


def close(result: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(result, truth, rtol=1e-9, atol=1e-11)


def pair(blocks: int = 1) -> tuple[KroneckerRows, Tensor]:
    """Five rows of 12 columns, positive definite without damping, and the matrix in full."""
    size = 12 // blocks
    rows = normal(blocks, 20, size, seed=1)
    inputs = rows.mT @ rows / 20 + 0.05 * torch.eye(size, dtype=torch.float64)
    scales = normal(5, seed=2).square() + 0.1
    return KroneckerRows(scales, inputs, 0.0), torch.kron(
        torch.diag(scales), torch.block_diag(*inputs)
    )


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.6, 0.95])
def test_every_operation_at_any_sparsity(share: float, blocks: int, limited: Limited) -> None:
    limited(temporary=300)  # two rows at a time
    fisher, matrix = pair(blocks)
    fisher.inverse_inputs  # noqa: B018 - shared by the restrictions
    keep = normal(60, seed=3).argsort().argsort() < round(share * 60)
    part, truth = fisher.restrict(keep), matrix[keep][:, keep]
    v, inverse = normal(part.d, 2, seed=4), torch.linalg.inv(truth)
    close(part @ v, truth @ v)
    close(part.solve(v), inverse @ v)
    close(part.diagonal(), truth.diagonal())
    close(part.inverse_diagonal(), inverse.diagonal())
    groups = torch.arange(part.d // 3 * 3).view(-1, 3)
    close(part.inverse_blocks(groups), dense.inverse_blocks(truth, groups))
    assert part.logdet() == pytest.approx(float(torch.linalg.slogdet(truth).logabsdet))
    removed = normal(60, seed=5).masked_fill(keep, 0)
    close(fisher.compensate(keep, removed), dense.compensate(matrix, keep, removed))


def test_a_row_without_weights_does_no_harm() -> None:
    fisher, matrix = pair()
    keep = torch.ones(60, dtype=torch.bool)
    keep[12:24] = False
    v = normal(48, seed=6)
    close(fisher.restrict(keep).solve(v), torch.linalg.solve(matrix[keep][:, keep], v))


def test_float32_is_close_to_the_truth() -> None:
    fisher, matrix = pair()
    half = KroneckerRows(fisher.scales.float(), fisher.inputs.float(), 0.0)
    v = normal(60, seed=7)
    truth = torch.linalg.solve(matrix, v)
    assert half.solve(v.float()).dtype == torch.float32
    torch.testing.assert_close(half.solve(v.float()).double(), truth, rtol=1e-4, atol=1e-5)


def all_at_once(rows: int, size: int, tolerance: float = 1e-10) -> tuple[KroneckerRows, Tensor]:
    """Many correlated columns, and the matrix of one row."""
    factor = normal(3 * size, size, seed=1) @ (
        torch.eye(size, dtype=torch.float64) + 0.5 * normal(size, size, seed=2) / size**0.5
    )
    inputs = factor.mT @ factor / len(factor) + 0.02 * torch.eye(size, dtype=torch.float64)
    scales = normal(rows, seed=3).square() + 0.1
    approximation = AllRowsAtOnce(tolerance, max_steps=200, exact_columns=1)
    return KroneckerRows(scales, inputs, 0.0, approximation=approximation), inputs


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_all_rows_at_once_solve_as_each_alone(share: float, limited: Limited) -> None:
    limited(temporary=4 * 20 * 7)  # seven rows at a time
    fisher, _ = all_at_once(30, 20)
    keep = normal(600, seed=4).argsort().argsort() < round(share * 600)
    part, alone = fisher.restrict(keep), replace(fisher, approximation=None).restrict(keep)
    v = normal(part.d, 2, seed=5)
    torch.testing.assert_close(part.solve(v), alone.solve(v), rtol=1e-6, atol=1e-8)


def test_few_steps_leave_a_residual_below_the_tolerance() -> None:
    fisher, _ = all_at_once(30, 20, tolerance=0.05)
    part = fisher.restrict(normal(600, seed=4) > 0)
    v = normal(part.d, seed=5)
    residual = (part @ part.solve(v) - v).norm() / v.norm()
    assert 1e-6 < float(residual) < 0.2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_inverse_elements_of_random_masks_are_close(share: float) -> None:
    fisher, _ = all_at_once(200, 24)
    keep = torch.rand(4800, generator=torch.Generator().manual_seed(6)) < share
    part, alone = fisher.restrict(keep), replace(fisher, approximation=None).restrict(keep)
    found, truth = part.inverse_diagonal(), alone.inverse_diagonal()
    least, most = 1 / part.diagonal(), fisher.inverse_diagonal()[keep]
    assert bool((found >= 0.999 * least).all() and (found <= 1.001 * most).all())
    error = (found / truth).log()
    by_bounds = min((bound / truth).log().square().mean().sqrt() for bound in (least, most))
    assert abs(float(error.mean())) < 0.03
    assert float(error.square().mean().sqrt()) < 0.35 * float(by_bounds)


def test_inverse_elements_are_exact_without_correlation_and_while_nothing_is_removed() -> None:
    fisher, inputs = all_at_once(50, 20)
    close(fisher.inverse_diagonal(), replace(fisher, approximation=None).inverse_diagonal())
    diagonal = replace(fisher, inputs=torch.diag(inputs.diagonal()))
    part = diagonal.restrict(normal(1000, seed=7) > 0.5)
    torch.testing.assert_close(part.inverse_diagonal(), 1 / part.diagonal(), rtol=1e-6, atol=0)


def test_one_removed_weight_among_many_rows_is_nearly_exact() -> None:
    fisher, _ = all_at_once(2000, 8)
    keep = torch.ones(16000, dtype=torch.bool)
    keep[8 * 1234 + 3] = False
    part, alone = fisher.restrict(keep), replace(fisher, approximation=None).restrict(keep)
    found, truth = part.inverse_diagonal(), alone.inverse_diagonal()
    torch.testing.assert_close(found, truth, rtol=5e-3, atol=0)
    changed = (truth / fisher.inverse_diagonal()[keep]).log().abs().max()
    assert float(changed) > 0.02  # what was to be seen


def test_settings_of_all_rows_at_once_are_checked() -> None:
    with pytest.raises(WoodburyError, match="tolerance is 2"):
        AllRowsAtOnce(2)
    with pytest.raises(WrongType, match="max_steps"):
        AllRowsAtOnce(max_steps=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scales", "inputs", "columns", "sentence"),
    [
        (torch.ones(2), torch.ones(2, 3), None, "square matrix"),
        (torch.tensor([1.0, 0.0]), torch.eye(3), None, "zero, negative"),
        (torch.ones(2), torch.eye(3), 4, "only the last block"),
        (torch.ones(2), torch.full((3, 3), torch.nan), None, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(
    scales: Tensor, inputs: Tensor, columns: int | None, sentence: str
) -> None:
    with pytest.raises(WoodburyError, match=sentence):
        KroneckerRows(scales, inputs, 0.0, columns)


def test_groups_that_do_not_divide_the_rows_are_refused() -> None:
    with pytest.raises(WoodburyError, match="the groups must divide both"):
        KroneckerRows(torch.ones(3), torch.eye(2).expand(2, 2, 2), 0.0, groups=2)
