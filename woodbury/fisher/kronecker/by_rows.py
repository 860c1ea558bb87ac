"""KroneckerRows: diag(scales) ⊗ inputs, a small matrix for each row of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.fisher.base import Fisher, compensate_by_restriction
from woodbury.fisher.checks import (
    as_tensor,
    check_damping_or_zero,
    check_finite,
    check_groups,
    check_held,
    check_keep,
    check_mask,
    check_vector,
)
from woodbury.fisher.kronecker.all_rows import AllRowsAtOnce
from woodbury.fisher.kronecker.row_chunks import (
    RowChunk,
    chosen_places,
    columns_of,
    put,
    submatrices,
    taken,
    taken_local,
)
from woodbury.limits import Limits
from woodbury.linalg.cholesky import definite_cholesky, definite_inverse
from woodbury.linalg.precision import wide_dtype


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerRows(Fisher):
    """F_KK of F = diag(scales) ⊗ inputs + damping·I, K the kept weights of an (o, i) tensor.

    K-FAC with a diagonal output factor: the rows of the tensor do not interact, so that each has a
    small matrix of its own, scaled from one that all share. Solves and inverse elements are exact
    at any sparsity, at O(n³) for the n kept or removed weights of a row, whichever are fewer
    (removed ones where the damping is 0). Nothing of size i² is stored per row.

    The inputs may be cut into blocks of consecutive columns, which then do not interact either:
    with b blocks the cost falls by b². The rows may be in groups, each with inputs of its own, as
    in a grouped convolution.

    Args:
        scales: (o,), positive: how much the loss depends on each output.
        inputs: (i, i), or (b, s, s) for blocks of s columns of which the last is padded at its end,
            or (g·b, s, s) for g groups, one after the other: symmetric, positive semidefinite; what
            damps it is added before.
        damping: λ, added to the diagonal of F. 0 where `inputs` is positive definite already.
        columns: i; by default all columns of a group's `inputs`.
        keep: (o, i) bool, True = kept; None for all.
        groups: g, which divides o.
        transposed: Whether weights, masks and results are in the order of an (i, o) tensor.
        approximation: How solves and `inverse_diagonal` of large tensors are approximated where
            the damping is 0; None for exact ones.

    Raises:
        WoodburyError: For shapes that do not fit, scales that are not positive, or entries that are
            not finite.

    Example:
        >>> import torch
        >>> fisher = KroneckerRows(torch.tensor([1.0, 2.0]), 3 * torch.eye(2), damping=0.0)
        >>> fisher.solve(torch.ones(4))
        tensor([0.3333, 0.3333, 0.1667, 0.1667])
    """

    scales: Tensor
    inputs: Tensor
    damping: float
    columns: int | None = None
    keep: Tensor | None = field(default=None, repr=False)
    groups: int = 1
    transposed: bool = False
    approximation: AllRowsAtOnce | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "damping", check_damping_or_zero(self.damping))
        object.__setattr__(self, "inputs", as_tensor(self.inputs, "The inputs' second moments"))
        object.__setattr__(self, "scales", as_tensor(self.scales, "The vector of scales"))
        check_fields(self)
        check_whole_number(self.groups, "groups", "the number of groups of rows")
        if self.columns is not None:
            check_whole_number(self.columns, "columns", "the number of columns")
        if self.scales.ndim != 1 or not len(self.scales) or self.scales.is_complex():
            raise WoodburyError(
                f"scales has shape {tuple(self.scales.shape)}: give a positive number for each row."
            )
        if (
            self.inputs.ndim not in (2, 3)
            or not self.inputs.numel()
            or self.inputs.shape[-1] != self.inputs.shape[-2]
        ):
            raise WoodburyError(
                f"inputs has shape {tuple(self.inputs.shape)}: give a square matrix (i, i), or "
                "blocks (b, s, s)."
            )
        if len(self.scales) % self.groups or len(self.blocks) % self.groups:
            raise WoodburyError(
                f"{self.groups} groups met {len(self.scales)} rows and {len(self.blocks)} blocks "
                "of columns: the groups must divide both."
            )
        places = self.blocks_of_row * self.size
        if not places - self.size < self.width <= places:
            raise WoodburyError(
                f"{self.blocks_of_row} blocks of {self.size} columns met {self.width} columns: "
                "only the last block may be padded."
            )
        shape = len(self.scales), self.width
        if self.transposed:
            shape = self.width, len(self.scales)
        if self.keep is not None:
            object.__setattr__(self, "keep", check_mask(self.keep, shape))
        check_finite(self.inputs, "The inputs' second moments")
        if not bool(((self.scales > 0) & torch.isfinite(self.scales)).all()):
            raise WoodburyError("A scale is zero, negative or not finite: give positive ones.")

    @property
    def blocks(self) -> Tensor:
        """(g·b, s, s): the blocks of columns of every group."""
        return self.inputs if self.inputs.ndim == 3 else self.inputs[None]

    @property
    def blocks_of_row(self) -> int:
        """b, the blocks that the columns of a row are cut into."""
        return len(self.blocks) // self.groups

    @property
    def size(self) -> int:
        """s, columns of a block, padding included."""
        return self.inputs.shape[-1]

    @property
    def width(self) -> int:
        """i, columns of a row."""
        return self.blocks_of_row * self.size if self.columns is None else self.columns

    @cached_property
    def kept(self) -> Tensor:
        """(o·b, s) bool: the kept places of every row in every block; padding is not kept."""
        shape = len(self.scales), self.blocks_of_row * self.size
        kept = torch.zeros(shape, dtype=torch.bool, device=self.device)
        if self.keep is None:
            kept[:, : self.width] = True
        else:
            kept[:, : self.width] = self.keep.T if self.transposed else self.keep
        return kept.view(-1, self.size)

    @cached_property
    def d(self) -> int:
        """The number of kept weights."""
        return len(self.scales) * self.width if self.keep is None else int(self.keep.sum())

    @property
    def dtype(self) -> torch.dtype:
        """That of the inputs, float32 at least."""
        return wide_dtype(self.inputs.dtype)

    @property
    def device(self) -> torch.device:
        """That of the inputs."""
        return self.inputs.device

    @cached_property
    def row_scales(self) -> Tensor:
        """(o·b,): the scale of every row in every block."""
        return self.scales.to(self.dtype).repeat_interleave(self.blocks_of_row)

    @cached_property
    def inverse_inputs(self) -> Tensor:
        """(g·b, s, s): the inverses of the blocks, which all rows share where the damping is 0."""
        return definite_inverse(self._padded_blocks)

    @cached_property
    def inverse_inputs_diagonal(self) -> Tensor:
        """(g·b, s): the diagonals of `inverse_inputs`, which outlive these where i is large."""
        at_once = max(1, Limits.current().temporary // (4 * self.size**2))
        some = self._padded_blocks.split(at_once)
        return torch.cat([definite_inverse(blocks).diagonal(dim1=1, dim2=2) for blocks in some])

    @property
    def _padded_blocks(self) -> Tensor:
        """The blocks with ones on the diagonal of the padding."""
        blocks = self.blocks.to(self.dtype)
        padding = self.blocks_of_row * self.size - self.width
        if padding:
            blocks = blocks.clone()
            last = blocks[self.blocks_of_row - 1 :: self.blocks_of_row]
            last[:, -padding:] = 0
            last[:, :, -padding:] = 0
            last.diagonal(dim1=1, dim2=2)[:, -padding:] = 1
        return blocks

    @property
    def _approximates(self) -> bool:
        """Whether all rows are treated at once."""
        return (
            self.approximation is not None
            and self.damping == 0
            and self.size > self.approximation.exact_columns
        )

    def __matmul__(self, v: Tensor) -> Tensor:
        """F_KK v: O(d s) per column."""
        v = check_vector(v, self.d)
        columns = self._scattered(v)
        result = torch.empty_like(columns)
        for column in range(columns.shape[2]):
            product = self._by_block(columns[..., column]) @ self.blocks.to(self.dtype)
            scaled = self._by_row(product) * self.row_scales[:, None]
            result[..., column] = scaled.add_(columns[..., column], alpha=self.damping)
        return self._gathered(result, v)

    def solve(self, v: Tensor) -> Tensor:
        """F_KK⁻¹ v, row by row; exact without an approximation."""
        v = check_vector(v, self.d)
        columns = self._scattered(v) / self.row_scales[:, None, None]
        if self._approximates and not self._keeps_all:
            return self._gathered(self._solved_at_once(columns), v)
        result = torch.zeros_like(columns)
        for chunk in self._chunks(self._direct):
            factor = self._factor(chunk)
            local = taken(columns, chunk)
            put(result, chunk, torch.cholesky_solve(local, factor))
        for chunk in self._chunks(~self._direct, removed=True):
            # F_KK⁻¹v = (Hv)_K − H_KR (H_RR)⁻¹ (Hv)_R with H the inverse of all columns  (eq. 26).
            inverse = self.inverse_inputs[self._block_of(chunk)]
            free = inverse @ columns[chunk.rows]
            if chunk.places.shape[1]:
                forces = torch.cholesky_solve(
                    taken_local(free, chunk),
                    definite_cholesky(submatrices(inverse, chunk)),
                )
                free = free - columns_of(inverse, chunk) @ forces
            result[chunk.rows] = free
        return self._gathered(result * self.kept[..., None], v)

    def diagonal(self) -> Tensor:
        """The diagonal of F_KK."""
        diagonal = self._for_each_row(self.blocks.to(self.dtype).diagonal(dim1=1, dim2=2))
        return self._selected(diagonal * self.row_scales[:, None] + self.damping)

    def inverse_diagonal(self) -> Tensor:
        """The diagonal of F_KK⁻¹, row by row; exact without an approximation."""
        if self.damping == 0 and self._keeps_all:
            diagonal = self._for_each_row(self.inverse_inputs_diagonal)
            return self._selected(diagonal / self.row_scales[:, None])
        if self._approximates:
            return self._selected(self._diagonal_at_once() / self.row_scales[:, None])
        result = self.row_scales.new_zeros(self.kept.shape)
        for chunk in self._chunks(self._direct):
            inverse = torch.cholesky_inverse(self._factor(chunk))
            put(result, chunk, inverse.diagonal(dim1=1, dim2=2))
        for chunk in self._chunks(~self._direct, removed=True):
            inverse = self.inverse_inputs[self._block_of(chunk)]
            diagonal = inverse.diagonal(dim1=1, dim2=2).clone()
            if chunk.places.shape[1]:
                half = self._removed_half(inverse, chunk)
                diagonal -= half.square().sum(1)
            result[chunk.rows] = diagonal
        return self._selected(result / self.row_scales[:, None])

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F_KK⁻¹]_QQ for each row Q of `groups` (g, s); different rows do not interact."""
        groups = check_groups(groups, self.d).to(self.device)
        numbers = torch.arange(self.kept.numel(), device=self.device).view(self.kept.shape)
        index = self._selected(numbers)[groups]
        row, place = index // self.size, index % self.size
        result = self.row_scales.new_zeros(*groups.shape, groups.shape[1])
        for chunk, inverse in self._inverses():
            position = torch.full((len(self.kept),), -1, device=self.device)
            position[chunk.rows] = torch.arange(len(chunk.rows), device=self.device)
            touched = (position[row] >= 0).any(1).nonzero()[:, 0]
            at, where = position[row[touched]], place[touched]
            elements = inverse[at[:, :, None], where[:, :, None], where[:, None, :]]
            together = (at[:, :, None] == at[:, None, :]) & (at >= 0)[:, :, None]
            result[touched] += elements * together
        return result

    def restrict(self, keep: Tensor) -> KroneckerRows:
        """The same for fewer weights: keep (d,) bool."""
        keep = check_keep(keep, self.d).to(self.device)
        shape = len(self.scales), self.width
        if self.transposed:
            shape = shape[::-1]
        if self.keep is None:
            return self._shared(keep=keep.view(shape))
        kept = self.keep.clone()
        kept[self.keep] = keep
        return self._shared(keep=kept)

    def with_damping(self, damping: float) -> KroneckerRows:
        """The same with another λ."""
        return self._shared(damping=damping)

    def logdet(self) -> float:
        """The logarithm of the determinant of F_KK."""
        total = float((self.kept.sum(1) * self.row_scales.log()).sum())
        for chunk in self._chunks(torch.ones_like(self._direct)):
            diagonal = self._factor(chunk).diagonal(dim1=1, dim2=2)
            total += 2 * float(diagonal.double().log().sum())
        return total

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """The OBS update of the kept weights: one product and one restricted solve  (eq. 9, 12)."""
        return compensate_by_restriction(self, keep, removed, gradient)

    def _shared(self, **changes: object) -> KroneckerRows:
        """A copy that shares what is known of the inverse of the inputs."""
        copy = replace(self, **changes)  # type: ignore[arg-type]
        for name in ("inverse_inputs", "inverse_inputs_diagonal"):
            if name in vars(self):
                vars(copy)[name] = vars(self)[name]
        return copy

    def _solved_at_once(self, columns: Tensor) -> Tensor:
        """A_KK⁻¹ of columns (o·b, s, k), all rows of a block at once."""
        assert self.approximation is not None
        result = torch.zeros_like(columns)
        keep = self._by_block(self.kept)
        for column in range(columns.shape[2]):
            rhs = self._by_block(columns[..., column])
            self.approximation.solve_(self._padded_blocks, keep, rhs)
            result[..., column] = self._by_row(rhs)
        return result

    def _diagonal_at_once(self) -> Tensor:
        """diag(A_KK⁻¹) of every row, (o·b, s)."""
        assert self.approximation is not None
        keep = self._by_block(self.kept)
        upper = self.inverse_inputs_diagonal
        return self._by_row(self.approximation.inverse_diagonals(self._padded_blocks, keep, upper))

    def _by_block(self, rows: Tensor) -> Tensor:
        """(o·b, s) -> (g·b, o/g, s): the rows of each block of columns."""
        shape = self.groups, -1, self.blocks_of_row, self.size
        return rows.view(shape).transpose(1, 2).reshape(len(self.blocks), -1, self.size)

    def _by_row(self, blocks: Tensor) -> Tensor:
        """(g·b, o/g, s) -> (o·b, s), what `_by_block` undoes."""
        shape = self.groups, self.blocks_of_row, -1, self.size
        return blocks.view(shape).transpose(1, 2).reshape(-1, self.size)

    def _for_each_row(self, values: Tensor) -> Tensor:
        """(g·b, s), what the rows of a block share -> (o·b, s)."""
        rows = len(self.scales) // self.groups
        return self._by_row(values[:, None].expand(-1, rows, -1))

    @property
    def _keeps_all(self) -> bool:
        """Whether every weight is kept."""
        return self.d == len(self.scales) * self.width

    @cached_property
    def _direct(self) -> Tensor:
        """(o·b,) bool: rows whose kept weights are factored, and not the removed ones."""
        counts = self.kept.sum(1)
        if self.damping:
            return torch.ones_like(counts, dtype=torch.bool)  # no inverse is shared
        return counts <= self.size - counts

    def _chunks(self, rows: Tensor, removed: bool = False) -> Iterator[RowChunk]:
        """The given rows (o·b,) bool, like counts together, within `Limits.temporary`."""
        chosen = ~self.kept if removed else self.kept
        counts = chosen.sum(1)
        order = rows.nonzero()[:, 0]
        order = order[counts[order].argsort()]
        numbers = counts[order].tolist()
        # A chunk of removed places holds the inverse of all columns for each of its rows.
        least = self.size if removed else 1
        start = 0
        while start < len(order):
            end = start + 1
            while (
                end < len(order)
                and (end + 1 - start) * max(least, numbers[end]) ** 2 <= Limits.current().temporary
            ):
                end += 1
            yield chosen_places(order[start:end], chosen[order[start:end]], numbers[end - 1])
            start = end

    def _inverses(self) -> Iterator[tuple[RowChunk, Tensor]]:
        """F_KK⁻¹ of every row with its places, (c, s, s), zeros where nothing is kept."""
        for chunk in self._chunks(torch.ones_like(self._direct)):
            local = torch.cholesky_inverse(self._factor(chunk))
            local = local / self.row_scales[chunk.rows][:, None, None]
            local = local * (chunk.valid[:, :, None] & chunk.valid[:, None, :])
            full = local.new_zeros(len(chunk.rows), self.size, self.size)
            at = torch.arange(len(chunk.rows), device=self.device)[:, None, None]
            both = at, chunk.places[:, :, None], chunk.places[:, None, :]
            full.index_put_(both, local, accumulate=True)
            yield chunk, full

    def _block_of(self, chunk: RowChunk) -> Tensor:
        """(c,) int64: the block of inputs of each row."""
        group = chunk.rows // self.blocks_of_row // (len(self.scales) // self.groups)
        return group * self.blocks_of_row + chunk.rows % self.blocks_of_row

    def _factor(self, chunk: RowChunk) -> Tensor:
        """Lower Cholesky factors (c, k, k) of F_KK ÷ scale; the identity where not valid."""
        block = self._block_of(chunk)[:, None, None]
        matrices = self.blocks[block, chunk.places[:, :, None], chunk.places[:, None, :]]
        matrices = matrices.to(self.dtype)
        matrices = matrices * (chunk.valid[:, :, None] & chunk.valid[:, None, :])
        shift = (self.damping / self.row_scales[chunk.rows])[:, None].expand(chunk.valid.shape)
        matrices.diagonal(dim1=1, dim2=2).add_(torch.where(chunk.valid, shift, 1.0))
        return definite_cholesky(matrices)

    def _removed_half(self, inverse: Tensor, chunk: RowChunk) -> Tensor:
        """L⁻¹ H_R· with L Lᵀ = H_RR: (c, r, s), whose column sums of squares H_KK loses."""
        factor = definite_cholesky(submatrices(inverse, chunk))
        rows = columns_of(inverse, chunk).mT
        return torch.linalg.solve_triangular(factor, rows, upper=False)

    def _scattered(self, v: Tensor) -> Tensor:
        """(d,) or (d, k) -> (o·b, s, k), zeros where nothing is kept."""
        columns = v.to(self.dtype).reshape(self.d, -1)
        k = columns.shape[1]
        places = self.blocks_of_row * self.size
        result = columns.new_zeros(len(self.scales), places, k)
        rows = result[:, : self.width]
        stored = rows.transpose(0, 1) if self.transposed else rows
        if self.keep is None:
            stored[:] = columns.view(stored.shape)
        else:
            stored[self.keep] = columns
        return result.view(-1, self.size, k)

    def _selected(self, values: Tensor) -> Tensor:
        """(o·b, s, …) -> (d, …), the kept entries in the order of the weights."""
        rows = values.reshape(len(self.scales), -1, *values.shape[2:])[:, : self.width]
        stored = rows.transpose(0, 1) if self.transposed else rows
        return stored.flatten(0, 1) if self.keep is None else stored[self.keep]

    def _gathered(self, columns: Tensor, v: Tensor) -> Tensor:
        return check_held(self._selected(columns).reshape(v.shape), "The product")
