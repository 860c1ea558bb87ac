"""KroneckerRows without damping: the fewer of kept and removed weights are factored."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.limits import Limited
from support.random import normal
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.kronecker.by_rows import KroneckerRows


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
