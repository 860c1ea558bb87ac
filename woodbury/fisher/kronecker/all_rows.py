"""AllRowsAtOnce: solves and inverse elements of `KroneckerRows` for all rows of a block at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.fisher.kronecker.effective_medium import EffectiveMedium
from woodbury.limits import Limits
from woodbury.linalg.cholesky import definite_inverse
from woodbury.linalg.masked_solves import masked_conjugate_gradients


@dataclass(frozen=True)
class AllRowsAtOnce:
    """Approximate solves and inverse elements of `KroneckerRows`, at 2 d s FLOPs a product.

    1. Solves: masked conjugate gradients, preconditioned by an `EffectiveMedium`. They tend to the
       exact ones as the tolerance tends to 0.
    2. Inverse elements: those of the medium, corrected to first order in each row's own mask
       (eq. 70). Exact while nothing is removed.

    Attributes:
        tolerance: Relative residual at which conjugate gradients end, over 0.
        max_steps: Products at most; what is reached then is taken.
        exact_columns: Columns that interact up to which rows are treated exactly, which is cheaper.

    Raises:
        WoodburyError: If the tolerance is not positive.
        WrongType: If a count is no whole number.

    Example:
        >>> AllRowsAtOnce(tolerance=1e-3).max_steps
        50
    """

    tolerance: float = 1e-2
    max_steps: int = 50
    exact_columns: int = 64

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.tolerance < 1:
            raise WoodburyError(
                f"tolerance is {self.tolerance}: it is relative and must lie in (0, 1)."
            )
        check_whole_number(self.max_steps, "max_steps", "conjugate gradients at most")
        check_whole_number(self.exact_columns, "exact_columns", "columns that interact")

    def solve_(self, matrices: Tensor, keep: Tensor, rhs: Tensor) -> None:
        """Overwrite right-hand sides r by A_KK⁻¹ r, K the kept places of each row.

        Args:
            matrices: A (b, s, s), positive definite, one for all rows of a block.
            keep: (b, o, s) bool.
            rhs: r (b, o, s), zeros where nothing is kept; overwritten.
        """
        for block, matrix in enumerate(matrices.split(1)):
            inverse = definite_inverse(matrix)
            for rows in _row_slices(rhs):
                rhs[block, rows] = masked_conjugate_gradients(
                    matrix,
                    keep[block, rows][None].to(rhs.dtype),
                    rhs[block, rows][None],
                    lambda v, inverse=inverse: v @ inverse,
                    self.tolerance,
                    self.max_steps,
                ).x

    def inverse_diagonals(self, matrices: Tensor, keep: Tensor, upper: Tensor) -> Tensor:
        """diag(A_KK⁻¹) of every row, by the effective medium.

        Args:
            matrices: A (b, s, s), positive definite, one for all rows of a block.
            keep: (b, o, s) bool.
            upper: (b, s), the diagonals of A⁻¹.

        Returns:
            (b, o, s).
        """
        result = torch.empty(keep.shape, dtype=matrices.dtype, device=matrices.device)
        for block, matrix in enumerate(matrices.split(1)):
            medium = EffectiveMedium.of(matrix, keep[block][None], upper[block][None])
            for rows in _row_slices(keep):
                result[block, rows] = medium.inverse_diagonals(keep[block, rows][None])[0]
        return result


def _row_slices(rows: Tensor) -> Iterator[slice]:
    """The rows (b, o, s) of a block, in parts whose temporaries fit in `Limits.temporary`."""
    _, count, size = rows.shape
    at_once = max(1, Limits.current().temporary // (4 * size))
    for start in range(0, count, at_once):
        yield slice(start, start + at_once)
