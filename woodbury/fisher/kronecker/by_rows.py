"""KroneckerRows: diag(scales) ⊗ inputs, a small matrix for each row of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher, compensate_by_restriction
from woodbury.fisher.checks import (
    check_damping,
    check_finite,
    check_groups,
    check_keep,
    check_vector,
)
from woodbury.limits import Limits
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.precision import wide_dtype


class RowChunk(NamedTuple):
    """Some of the rows, with the places that a batch of small matrices is made of.

    Attributes:
        rows: (c,) int64, which rows.
        places: (c, k) int64, the places in each row; beyond the row's own count they mean nothing.
        valid: (c, k) bool, False where a place means nothing.
    """

    rows: Tensor
    places: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class KroneckerRows(Fisher):
    """F_KK of F = diag(scales) ⊗ inputs + damping·I, K the kept weights of an (o, i) tensor.

    K-FAC with a diagonal output factor: the rows of the tensor do not interact, so that each has a
    small matrix of its own, scaled from one that all share. Solves and inverse elements are exact
    at any sparsity, at O(n³) for the n kept or removed weights of a row, whichever are fewer
    (removed ones where the damping is 0). Nothing of size i² is stored per row.

    The inputs may be cut into blocks of consecutive columns, which then do not interact either:
    with b blocks the cost falls by b².

    Args:
        scales: (o,), positive: how much the loss depends on each output.
        inputs: (i, i), or (b, s, s) for blocks of s columns of which the last is padded at its end:
            symmetric, positive semidefinite; what damps it is added before.
        damping: λ, added to the diagonal of F. 0 where `inputs` is positive definite already.
        columns: i; by default all columns of `inputs`.
        keep: (o, i) bool, True = kept; None for all.

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

    def __post_init__(self) -> None:
        if self.damping != 0:
            check_damping(self.damping)
        if self.inputs.ndim not in (2, 3) or self.inputs.shape[-1] != self.inputs.shape[-2]:
            raise WoodburyError(
                f"inputs has shape {tuple(self.inputs.shape)}: give a square matrix (i, i), or "
                "blocks (b, s, s)."
            )
        places = self.blocks.shape[0] * self.size
        if not places - self.size < self.width <= places:
            raise WoodburyError(
                f"{len(self.blocks)} blocks of {self.size} columns met {self.width} columns: only "
                "the last block may be padded."
            )
        if self.keep is not None and self.keep.shape != (len(self.scales), self.width):
            raise WoodburyError(
                f"keep has shape {tuple(self.keep.shape)}: give a bool mask of shape "
                f"({len(self.scales)}, {self.width})."
            )
        check_finite(self.inputs, "The inputs' second moments")
        if not bool(((self.scales > 0) & torch.isfinite(self.scales)).all()):
            raise WoodburyError("A scale is zero, negative or not finite: give positive ones.")

    @property
    def blocks(self) -> Tensor:
        """(b, s, s): the blocks of columns."""
        return self.inputs if self.inputs.ndim == 3 else self.inputs[None]

    @property
    def size(self) -> int:
        """s, columns of a block, padding included."""
        return self.inputs.shape[-1]

    @property
    def width(self) -> int:
        """i, columns of the tensor."""
        return len(self.blocks) * self.size if self.columns is None else self.columns

    @cached_property
    def kept(self) -> Tensor:
        """(o·b, s) bool: the kept places of every row in every block; padding is not kept."""
        shape = len(self.scales), len(self.blocks) * self.size
        kept = torch.zeros(shape, dtype=torch.bool, device=self.device)
        kept[:, : self.width] = True if self.keep is None else self.keep
        return kept.view(-1, self.size)

    @cached_property
    def d(self) -> int:
        """The number of kept weights."""
        return int(self.kept.sum())

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
        return self.scales.to(self.dtype).repeat_interleave(len(self.blocks))

    @cached_property
    def inverse_inputs(self) -> Tensor:
        """(b, s, s): the inverses of the blocks, which all rows share where the damping is 0."""
        return torch.cholesky_inverse(_cholesky(self._padded_blocks))

    @property
    def _padded_blocks(self) -> Tensor:
        """The blocks with ones on the diagonal of the padding."""
        blocks = self.blocks.to(self.dtype).clone()
        padding = len(self.blocks) * self.size - self.width
        if padding:
            last = blocks[-1]
            last[-padding:] = 0
            last[:, -padding:] = 0
            last.diagonal()[-padding:] = 1
        return blocks

    def __matmul__(self, v: Tensor) -> Tensor:
        """F_KK v: O(d s) per column."""
        columns = self._scattered(v)
        by_row = columns.view(len(self.scales), len(self.blocks), self.size, -1)
        product = torch.einsum("bst,obtk->obsk", self.blocks.to(self.dtype), by_row)
        scaled = product.reshape(columns.shape) * self.row_scales[:, None, None]
        return self._gathered(scaled + self.damping * columns, v)

    def solve(self, v: Tensor) -> Tensor:
        """F_KK⁻¹ v, row by row, exactly."""
        columns = self._scattered(v) / self.row_scales[:, None, None]
        result = torch.zeros_like(columns)
        for chunk in self._chunks(self._direct):
            factor = self._factor(chunk)
            local = _taken(columns, chunk)
            _put(result, chunk, torch.cholesky_solve(local, factor))
        for chunk in self._chunks(~self._direct, removed=True):
            # F_KK⁻¹v = (Hv)_K − H_KR (H_RR)⁻¹ (Hv)_R with H the inverse of all columns  (eq. 26).
            inverse = self.inverse_inputs[self._block_of(chunk)]
            free = inverse @ columns[chunk.rows]
            if chunk.places.shape[1]:
                forces = torch.cholesky_solve(
                    _taken_local(free, chunk), _cholesky(_submatrices(inverse, chunk))
                )
                free = free - _columns_of(inverse, chunk) @ forces
            result[chunk.rows] = free
        return self._gathered(result * self.kept[..., None], v)

    def diagonal(self) -> Tensor:
        """The diagonal of F_KK."""
        diagonal = self.blocks.to(self.dtype).diagonal(dim1=1, dim2=2)
        diagonal = diagonal.repeat(len(self.scales), 1)
        return (diagonal * self.row_scales[:, None] + self.damping)[self.kept]

    def inverse_diagonal(self) -> Tensor:
        """The diagonal of F_KK⁻¹, row by row, exactly."""
        result = self.row_scales.new_zeros(self.kept.shape)
        for chunk in self._chunks(self._direct):
            inverse = torch.cholesky_inverse(self._factor(chunk))
            _put(result, chunk, inverse.diagonal(dim1=1, dim2=2))
        for chunk in self._chunks(~self._direct, removed=True):
            inverse = self.inverse_inputs[self._block_of(chunk)]
            diagonal = inverse.diagonal(dim1=1, dim2=2).clone()
            if chunk.places.shape[1]:
                half = self._removed_half(inverse, chunk)
                diagonal -= half.square().sum(1)
            result[chunk.rows] = diagonal
        return (result / self.row_scales[:, None])[self.kept]

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F_KK⁻¹]_QQ for each row Q of `groups` (g, s); different rows do not interact."""
        groups = check_groups(groups, self.d).to(self.device)
        index = self.kept.flatten().nonzero()[:, 0][groups]
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
        check_keep(keep, self.d)
        kept = self.kept.clone()
        kept[self.kept] = keep.to(self.device)
        return self._shared(keep=kept.view(len(self.scales), -1)[:, : self.width])

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
        """A copy that shares the inverse of the inputs, where it is known."""
        copy = replace(self, **changes)  # type: ignore[arg-type]
        if "inverse_inputs" in vars(self):
            vars(copy)["inverse_inputs"] = self.inverse_inputs
        return copy

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
            yield _row_chunk(order[start:end], chosen[order[start:end]], numbers[end - 1])
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
        return chunk.rows % len(self.blocks)

    def _factor(self, chunk: RowChunk) -> Tensor:
        """Lower Cholesky factors (c, k, k) of F_KK ÷ scale; the identity where not valid."""
        block = self._block_of(chunk)[:, None, None]
        matrices = self.blocks[block, chunk.places[:, :, None], chunk.places[:, None, :]]
        matrices = matrices.to(self.dtype)
        matrices = matrices * (chunk.valid[:, :, None] & chunk.valid[:, None, :])
        shift = (self.damping / self.row_scales[chunk.rows])[:, None].expand(chunk.valid.shape)
        matrices.diagonal(dim1=1, dim2=2).add_(torch.where(chunk.valid, shift, 1.0))
        return _cholesky(matrices)

    def _removed_half(self, inverse: Tensor, chunk: RowChunk) -> Tensor:
        """L⁻¹ H_R· with L Lᵀ = H_RR: (c, r, s), whose column sums of squares H_KK loses."""
        factor = _cholesky(_submatrices(inverse, chunk))
        rows = _columns_of(inverse, chunk).mT
        return torch.linalg.solve_triangular(factor, rows, upper=False)

    def _scattered(self, v: Tensor) -> Tensor:
        """(d,) or (d, k) -> (o·b, s, k), zeros where nothing is kept."""
        columns = check_vector(v, self.d).to(self.dtype).reshape(self.d, -1)
        scattered = columns.new_zeros(*self.kept.shape, columns.shape[1])
        scattered[self.kept] = columns
        return scattered

    def _gathered(self, columns: Tensor, v: Tensor) -> Tensor:
        return columns[self.kept].reshape(v.shape)


def _row_chunk(rows: Tensor, chosen: Tensor, count: int) -> RowChunk:
    """The chosen places (c, s) bool of some rows, `count` at most in each."""
    places = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    valid = torch.arange(count, device=rows.device) < chosen.sum(1)[:, None]
    return RowChunk(rows, places, valid)


def _submatrices(matrices: Tensor, chunk: RowChunk) -> Tensor:
    """(c, s, s) -> (c, k, k) on the chunk's places; the identity where not valid."""
    at = torch.arange(len(chunk.rows), device=matrices.device)[:, None, None]
    result = matrices[at, chunk.places[:, :, None], chunk.places[:, None, :]]
    result = result * (chunk.valid[:, :, None] & chunk.valid[:, None, :])
    result.diagonal(dim1=1, dim2=2).add_((~chunk.valid).to(result.dtype))
    return result


def _columns_of(matrices: Tensor, chunk: RowChunk) -> Tensor:
    """(c, s, s) -> (c, s, k): the columns at the chunk's places, zeros where not valid."""
    places = chunk.places[:, None, :].expand(-1, matrices.shape[1], -1)
    return matrices.gather(2, places) * chunk.valid[:, None, :]


def _taken(values: Tensor, chunk: RowChunk) -> Tensor:
    """(o·b, s, k') -> (c, k, k') at the chunk's places, zeros where not valid."""
    return _taken_local(values[chunk.rows], chunk)


def _taken_local(values: Tensor, chunk: RowChunk) -> Tensor:
    places = chunk.places[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, places) * chunk.valid[..., None]


def _put(result: Tensor, chunk: RowChunk, values: Tensor) -> None:
    """Write values (c, k, …) at the chunk's places of result (o·b, s, …)."""
    rows = chunk.rows[:, None].expand(chunk.places.shape)[chunk.valid]
    result[rows, chunk.places[chunk.valid]] = values[chunk.valid]


def _cholesky(matrices: Tensor) -> Tensor:
    """Factors in the matrices' own dtype; those that rounding has made indefinite in float64."""
    factors, failed = torch.linalg.cholesky_ex(matrices)
    broken = failed > 0
    if bool(broken.any()):
        floor = _smallest_pivot(matrices[broken])
        factors[broken] = damped_cholesky(matrices[broken], floor).to(factors.dtype)
    return factors


def _smallest_pivot(matrices: Tensor) -> float:
    """What is added to the diagonal where a matrix is singular to rounding."""
    largest = float(matrices.diagonal(dim1=-2, dim2=-1).max())
    return torch.finfo(matrices.dtype).eps * matrices.shape[-1] * largest
