"""Diagonal and Dense: curvature that is written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import (
    check_damping,
    check_finite,
    check_groups,
    check_keep,
    check_vector,
)
from woodbury.linalg.cholesky import damped_cholesky


@dataclass(frozen=True, eq=False)
class Dense(Fisher):
    """F = curvature + damping·I, one symmetric matrix or a stack of equally large ones side by side  (eq. 4).

    curvature: (d, d), or (b, s, s) for b blocks of s weights each. valid: (b, s) bool, False where a block is padded
    (with zeros in the curvature); the d weights are the valid ones in order. result: the dtype of what the verbs return,
    None for the curvature's, or float32 for halves, in which they compute.
    """

    curvature: Tensor
    damping: float
    valid: Tensor | None = None
    result: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_damping(self.damping)
        shape = self.curvature.shape
        if len(shape) not in (2, 3) or shape[-1] != shape[-2] or 0 in shape:
            raise WoodburyError(
                f"A dense curvature has shape {tuple(shape)}: give (d, d), or (b, s, s) for b blocks."
            )
        check_finite(self.curvature, "The dense curvature")
        allowed = torch.finfo(self.curvature.dtype).eps ** 0.5
        for some in self._blocks.split(max(1, 4096 // shape[-1])):
            if bool(
                ((some - some.mT).abs_().amax((1, 2)) > allowed * some.abs().amax((1, 2))).any()
            ):
                raise WoodburyError("The dense curvature is not symmetric: give (1/m) Σ g gᵀ.")
        if self.valid is not None and (
            self.valid.dtype != torch.bool or self.valid.shape != self._blocks.shape[:2]
        ):
            raise WoodburyError(
                f"valid has shape {tuple(self.valid.shape)}: give bool of shape {self._blocks.shape[:2]}."
            )

    @property
    def _blocks(self) -> Tensor:
        return self.curvature if self.curvature.ndim == 3 else self.curvature[None]

    @cached_property
    def _places(self) -> Tensor:
        """(d,): where each weight lies among the b·s places, padding included."""
        b, s, _ = self._blocks.shape
        places = torch.arange(b * s, device=self.device)
        return places if self.valid is None else places[self.valid.flatten()]

    @cached_property
    def _factor(self) -> Tensor:
        """(b, s, s) lower triangular: L Lᵀ = F, padding included."""
        return damped_cholesky(self._blocks.double(), self.damping)

    @property
    def _at_once(self) -> int:
        """How many blocks are inverted at a time."""
        return max(1, 4096 // self._blocks.shape[1])

    def _scatter(self, v: Tensor) -> Tensor:
        """(d,) or (d, k) -> (b, s, k), zeros in the padding."""
        b, s, _ = self._blocks.shape
        columns = check_vector(v, self.d).reshape(self.d, -1)
        if self.valid is None:
            return columns.reshape(b, s, -1)
        padded = columns.new_zeros(b * s, columns.shape[1])
        padded[self._places] = columns
        return padded.view(b, s, -1)

    def _gather(self, blocks: Tensor, v: Tensor) -> Tensor:
        columns = blocks.reshape(-1, blocks.shape[-1])
        columns = columns if self.valid is None else columns[self._places]
        return columns.to(self.dtype).reshape(v.shape)

    @property
    def d(self) -> int:
        return len(self._places)

    @property
    def dtype(self) -> torch.dtype:
        return self.result or self._wide

    @property
    def _wide(self) -> torch.dtype:
        """What is computed in: halves cannot hold 1/damping."""
        return torch.promote_types(self.curvature.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.curvature.device

    def __matmul__(self, v: Tensor) -> Tensor:
        columns = self._scatter(v.to(self._wide))
        return self._gather(self._blocks.to(self._wide) @ columns + self.damping * columns, v)

    def solve(self, v: Tensor) -> Tensor:
        return self._gather(torch.cholesky_solve(self._scatter(v.double()), self._factor), v)

    def diagonal(self) -> Tensor:
        diagonal = self._blocks.diagonal(dim1=1, dim2=2).flatten()[self._places]
        return (diagonal.to(self._wide) + self.damping).to(self.dtype)

    def inverse_diagonal(self) -> Tensor:
        return self._inverse_diagonal

    @cached_property
    def _inverse_diagonal(self) -> Tensor:
        diagonals = [inverse.diagonal(dim1=1, dim2=2) for _, inverse in self._inverses()]
        return torch.cat(diagonals).flatten()[self._places].to(self.dtype)

    def _inverses(self, wanted: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
        """The inverse a few blocks at a time (first block, (c, s, s)), those `wanted` or all: whole, it would take as much
        memory as F."""
        at_once = self._at_once
        starts = range(0, len(self._factor), at_once)
        for start in (
            starts if wanted is None else (wanted.unique() // at_once * at_once).unique().tolist()
        ):
            yield start, torch.cholesky_inverse(self._factor[start : start + at_once])

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        s = self._blocks.shape[1]
        places = self._places[check_groups(groups, self.d)]
        block, place = places // s, places % s
        found = torch.zeros(*groups.shape, groups.shape[1], dtype=torch.float64, device=self.device)
        for start, inverse in self._inverses(block):
            here = (block >= start) & (block < start + len(inverse))
            for row in here.any(1).nonzero()[:, 0].split(1 << 16):
                local = (block[row] - start).clamp(0, len(inverse) - 1)
                elements = inverse[
                    local[:, :, None], place[row][:, :, None], place[row][:, None, :]
                ]
                found[row] += elements * (here[row][:, :, None] & here[row][:, None, :])
        return (found * (block[:, :, None] == block[:, None, :])).to(self.dtype)

    def restrict(self, keep: Tensor) -> Dense:
        stays = self._scatter(check_keep(keep, self.d))[..., 0]
        used, stays = stays.any(1).nonzero()[:, 0], stays[stays.any(1)]
        width = int(stays.sum(1).max())
        smaller = self.curvature.new_empty(len(used), width, width)
        valid = stays.new_empty(len(used), width)
        for start in range(0, len(used), self._at_once):
            part = slice(start, start + self._at_once)
            smaller[part], _, valid[part] = _remaining(self._blocks[used[part]], stays[part], width)
        return Dense(smaller, self.damping, None if bool(valid.all()) else valid, self.result)

    def conditional(self, keep: Tensor) -> Tensor:
        found = []
        stays = self._scatter(check_keep(keep, self.d))[..., 0]
        for own, some in zip(
            self._blocks.split(self._at_once), stays.split(self._at_once), strict=True
        ):
            block = own.double()
            smaller, order, valid = _remaining(block, some)
            inverse = torch.cholesky_inverse(damped_cholesky(smaller, self.damping))
            coupled = (
                block.gather(1, order[..., None].expand(-1, -1, block.shape[-1])) * valid[..., None]
            )
            left = (
                block.diagonal(dim1=1, dim2=2)
                + self.damping
                - (coupled * (inverse @ coupled)).sum(1)
            )
            staying = torch.where(
                valid, 1 / inverse.diagonal(dim1=1, dim2=2), left.gather(1, order)
            )
            found.append(left.scatter(1, order, staying))
        return torch.cat(found).flatten()[self._places].to(self.dtype)

    def with_damping(self, damping: float) -> Dense:
        return replace(self, damping=damping)

    def logdet(self) -> float:
        padding = self._blocks.shape[0] * self._blocks.shape[1] - self.d
        log_damping = float(torch.tensor(self.damping, dtype=torch.float64).log())
        return float(2 * self._factor.diagonal(dim1=1, dim2=2).log().sum()) - padding * log_damping

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        # As by_restriction, but a few blocks at a time: all that stays would take as much memory as F, and wait for it.
        b, s, _ = self._blocks.shape
        stays, goes = (
            self._scatter(check_keep(keep, self.d))[..., 0],
            self._scatter(removed.double()),
        )
        slope = torch.zeros_like(goes) if gradient is None else self._scatter(gradient.double())
        step = torch.zeros(b, s, dtype=torch.float64, device=self.device)
        pieces = zip(
            *(whole.split(self._at_once) for whole in (self._blocks, stays, goes, slope, step)),
            strict=True,
        )
        for blocks, some, gone, steep, moved in pieces:
            exact = blocks.double()
            smaller, order, valid = _remaining(exact, some)
            push, factor = (exact @ gone - steep)[..., 0], damped_cholesky(smaller, self.damping)
            found = torch.cholesky_solve((push.gather(1, order) * valid)[..., None], factor)[..., 0]
            moved.scatter_(1, order, found)
        return step.flatten()[self._places][keep].to(self.dtype)


def _remaining(
    blocks: Tensor, stays: Tensor, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What stays of blocks (b, s, s), stays (b, s) bool, moved to the front: (b, w, w) padded with zeros, where each row
    was, (b, w), and which are no padding, (b, w). width: w, None for what the fullest block needs."""
    width = width or int(stays.sum(1).max())
    order = stays.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    valid = stays.gather(1, order)
    each = torch.arange(len(blocks), device=blocks.device)[:, None, None]
    return (
        blocks[each, order[:, :, None], order[:, None, :]]
        * (valid[:, :, None] & valid[:, None, :]),
        order,
        valid,
    )


def _across(vector: Tensor, like: Tensor) -> Tensor:
    return vector if like.ndim == 1 else vector[:, None]
