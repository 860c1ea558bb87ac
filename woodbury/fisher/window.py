"""Window: the last m gradients, one row replaced per push, and F⁻¹ of the newest in one read of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from woodbury import comm
from woodbury.errors import WoodburyError
from woodbury.fisher.lowrank import LowRank, gram_of
from woodbury.fisher.operator import check_damping
from woodbury.fisher.small import cholesky
from woodbury.fisher.streams import combine, full_precision, times

TOLERANCE = 3e-5
"""Estimated relative error of F⁻¹g above which products or the combination are taken in float64."""
REBUILT = 256
"""Replacements after which the inverse of the small matrix is computed anew, so that no rounding adds up for a week."""
DRIFTED = 1e-4
"""Residual of a small solve at which it is computed anew at once."""
FAST = 1 << 14
"""Columns of a float32 product before its sum goes on in float64: at the memory's speed, yet far more exact than one sum."""
WIDE, FEW = 1 << 16, 4
"""Columns and rows that are converted at once, to float64 (to float32, four times the rows): what a cache holds."""
KEYS = ("rows", "gram", "pushed", "skipped", "damping", "inverse", "age", "shift", "exact_until")


class Window:
    """A sliding window of gradients and their Gram matrix; the one mutable object of this folder  (eq. 13).

    capacity: rows m; d: weights. A push reads the rows once, `solve_newest` once more, and the (m, m) work between them
    is O(m²): replacing a row changes the inverse by rank two. The Fisher is scaled by the rows seen, not by the capacity,
    and a gradient that is not finite is not let in but counted in `skipped`.

    group: the ranks over which the columns are spread, each holding its own d (0 is allowed there); a push sums m numbers
    over them, and nothing else is exchanged but one number per step and, should float32 not do, the Gram matrix once.
    """

    def __init__(
        self,
        capacity: int,
        d: int,
        damping: float = 1e-5,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        group: Any = None,
    ) -> None:
        if capacity < 1 or d < (1 if group is None else 0):
            raise WoodburyError(
                f"A window of {capacity} gradients of {d} weights holds nothing: both must be at least 1."
            )
        self.damping = check_damping(damping)
        self.rows = torch.zeros(capacity, d, dtype=dtype, device=device)
        self.gram = torch.zeros(capacity, capacity, dtype=torch.float64, device=device)
        self.group = group
        self.pushed = 0
        self.skipped = 0
        self.inverse: Tensor | None = None  # (m, m) of gram + shift·I, once the window is full and solved with
        self.age = -1  # replacements since the inverse was built; -1: it is not that of the rows before the last push
        self.shift = 0.0
        self.exact_until = 0  # the push up to which products are taken in float64

    @property
    def seen(self) -> int:
        """How many rows hold a gradient."""
        return min(self.pushed, len(self.rows))

    @property
    def newest(self) -> int:
        """The index of the row that was pushed last."""
        return (self.pushed - 1) % len(self.rows)

    def push(self, gradient: Tensor) -> bool:
        """Let `gradient` (d,) replace the oldest row; False if it is not finite and was left out."""
        products = self.measure(gradient)
        if not bool(torch.isfinite(products).all()):
            self.skipped += 1
            return False
        self.admit(gradient, products)
        return True

    def measure(self, gradient: Tensor) -> Tensor:
        """The Gram row that `gradient` (d,) would have, float64, over all ranks; finite if and only if it can be let in.

        Nothing changes yet, so that several windows can agree on a step before the first of them takes it.
        """
        if gradient.shape != self.rows.shape[1:]:
            raise WoodburyError(
                f"A gradient of shape {tuple(gradient.shape)} met a window of {self.rows.shape[1]} weights."
            )
        row, seen = self.pushed % len(self.rows), min(self.pushed + 1, len(self.rows))
        stored = gradient.to(self.rows.device, self.rows.dtype)
        new = products(self.rows[:seen], stored, self.pushed < self.exact_until)
        new[row : row + 1] = products(stored[None], stored, self.pushed < self.exact_until)
        return comm.total(new, self.group)

    def admit(self, gradient: Tensor, products: Tensor) -> None:
        """Let `gradient` (d,) with its finite `measure` replace the oldest row."""
        row = self.pushed % len(self.rows)
        if self.age >= 0:
            assert self.inverse is not None
            self._replace(self.inverse, row, products)
        self.rows[row] = gradient
        self.pushed += 1
        self.gram[row, : self.seen] = products
        self.gram[: self.seen, row] = products

    def fisher(self) -> LowRank:
        """The Fisher of the rows seen, over the window's own memory: valid until the next push."""
        if not self.seen:
            raise WoodburyError("The window is empty: push a gradient first.")
        gram = self.gram[: self.seen, : self.seen] / self.seen
        return LowRank(self.rows[: self.seen], self.damping, group=self.group, known_gram=gram, exact_gram=True)

    def solve_newest(self, plus: Tensor | None = None) -> Tensor:
        """F⁻¹ g for the gradient pushed last, (d,): one read of the rows, no division by the damping  (eq. 8).

        plus: (d,), for F⁻¹(g + plus) with F that of the gradients alone; one read more, and this part as in (eq. 6).
        """
        if not self.seen:
            raise WoodburyError("The window is empty: push a gradient first.")
        unit = torch.zeros(self.seen, dtype=torch.float64, device=self.gram.device)
        unit[self.newest] = 1
        column = self._solve_small(unit)
        spread, error = self._errors(column)
        if self.rows.dtype != torch.float64 and self._on_any_rank(error > TOLERANCE):
            if self.pushed > self.exact_until:  # the last push was measured in float32, and others before it
                rows = self.rows[: self.seen]
                self.gram[: self.seen, : self.seen] = comm.total(gram_of(rows, torch.float64), self.group)
                self.age = -1
                column = self._solve_small(unit)
                spread, _ = self._errors(column)
            self.exact_until = self.pushed + len(self.rows)
        c = self.seen * column
        if plus is not None:
            plus = plus.to(self.rows.device)
            exact = self.pushed <= self.exact_until
            projected = comm.total(products(self.rows[: self.seen], plus, exact), self.group)
            c = c - self._solve_small(projected) / self.damping
        step = combination(self.rows[: self.seen], c, 2.0**-23 * spread > TOLERANCE)
        return step if plus is None else step.add_(plus, alpha=1 / self.damping)

    def widen(self, columns: int) -> None:
        """Add `columns` weights at the end, of which the gradients seen so far know nothing: they get zeros."""
        self.rows = torch.cat([self.rows, self.rows.new_zeros(len(self.rows), columns)], 1)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on bit for bit; as in torch, the tensors are not copies."""
        return {key: getattr(self, key) for key in KEYS}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise WoodburyError unless `state` is that of a window of this shape and dtype."""
        missing = set(KEYS) - set(state)
        if missing:
            raise WoodburyError(f"This is not a window's state: it lacks {', '.join(sorted(missing))}.")
        saved = state["rows"]
        if saved.shape != self.rows.shape or saved.dtype != self.rows.dtype:
            raise WoodburyError(
                f"The saved window is {_described(saved)}, this one {_described(self.rows)}: make them equal."
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved window of the same shape and dtype, from whatever device."""
        self.check_state(state)
        self.rows.copy_(state["rows"])
        self.gram.copy_(state["gram"])
        saved = state["inverse"]
        self.inverse = None if saved is None else saved.to(self.gram.device, copy=True)
        self.pushed, self.skipped = state["pushed"], state["skipped"]
        self.age, self.shift, self.exact_until = state["age"], state["shift"], state["exact_until"]
        self.damping = check_damping(state["damping"])

    def _solve_small(self, c: Tensor) -> Tensor:
        """(gram + seen·damping·I)⁻¹ c for c (seen,), float64: by the inverse once the window is full."""
        shift = self.seen * self.damping
        gram = self.gram[: self.seen, : self.seen]
        if self.seen < len(self.rows):  # the shift changes with every push
            return torch.cholesky_solve(c[:, None], cholesky(gram, shift))[:, 0]
        if not 0 <= self.age <= REBUILT or self.shift != shift:
            self._build(shift)
        assert self.inverse is not None
        solved = self.inverse @ c
        left = c - gram @ solved - shift * solved
        if self.age and not bool(left.norm() <= DRIFTED * c.norm()):
            self._build(shift)
            return self._solve_small(c)
        return solved + self.inverse @ left  # one step of refinement: as exact as a factor

    def _build(self, shift: float) -> None:
        self.inverse = torch.cholesky_inverse(cholesky(self.gram, shift))
        self.age, self.shift = 0, shift

    def _replace(self, inverse: Tensor, row: int, products: Tensor) -> None:
        """Row and column `row` of gram give way to `products`: the inverse changes by rank two, O(m²)."""
        gone = inverse[row] / inverse[row, row].sqrt()
        others = products.clone()
        others[row] = 0
        moved = inverse @ others - gone * (gone @ others)
        moved[row] = -1
        fresh = products[row] + self.shift - others @ moved
        if not bool(fresh >= 0.5 * self.shift):  # a Schur complement is at least the shift: rounding has won
            self.age = -1
            return
        arrived = moved / fresh.sqrt()
        inverse.addmm_(torch.stack([arrived, -gone], 1), torch.stack([arrived, gone]))
        inverse[row] = arrived * arrived[row]
        inverse[:, row] = inverse[row]
        self.age += 1

    def _errors(self, column: Tensor) -> tuple[float, float]:
        """By how much the terms of Gᵀ column exceed their sum, and F⁻¹g's relative error by a float32 Gram matrix.

        An estimate from O(m) numbers. The first is what the combination's rounding is multiplied by. A product's own error
        grows with the root of a sum's length, and is divided by the share of the newest row that is new to the others.
        """
        lengths, square = self.gram.diagonal()[: self.seen], column.square()
        terms = lengths @ square
        summed = column[self.newest] - self.seen * self.damping * square.sum()  # columnᵀ gram column
        share = (lengths[self.newest] * column[self.newest]).clamp(min=1)
        numbers = torch.stack([terms, summed, share]).tolist()
        spread = (numbers[0] / max(numbers[1], 1e-30 * numbers[0])) ** 0.5 if numbers[0] > 0 else 0.0
        d, chunk = max(self.rows.shape[1], 1), FAST if self.rows.dtype == torch.float32 else WIDE
        product = 2.0**-24 * max(1.0, min(d, chunk) / 8 / d**0.5)
        return spread, product * spread * (self.seen * numbers[2]) ** 0.5

    def _on_any_rank(self, flag: bool) -> bool:
        """Ranks on different processors may round differently; what they do together they decide together."""
        if self.group is None:
            return flag
        return bool(comm.total(torch.tensor(float(flag), device=self.rows.device), self.group) > 0)


def products(rows: Tensor, v: Tensor, exact: bool) -> Tensor:
    """G v in float64, (m, d) and (d,) -> (m,): by float32 products of chunks that are summed in float64, or exactly."""
    if rows.dtype == torch.float64:
        return times(rows, v.double())
    new = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    v = v.to(torch.float64 if exact else torch.float32)
    with full_precision(rows.device):
        if rows.dtype != v.dtype:
            for some, part, piece in _converted(rows, v.dtype):
                new[some] += piece @ v[part]
            return new
        step = FAST if rows.device.type == "cpu" else 16 * FAST
        for start in range(0, rows.shape[1], step):
            new += rows[:, start : start + step] @ v[start : start + step]
    return new


def combination(rows: Tensor, c: Tensor, exact: bool) -> Tensor:
    """Gᵀ c, (m, d) and (m,) float64 -> (d,): float64 for such rows, else float32, rounded once if `exact`."""
    c = c.to(torch.float64 if exact or rows.dtype == torch.float64 else torch.float32)
    if rows.dtype == c.dtype:
        return combine(rows, c)
    combined = torch.zeros(rows.shape[1], dtype=c.dtype, device=rows.device)
    with full_precision(rows.device):
        for some, part, piece in _converted(rows, c.dtype):
            combined[part].addmv_(piece.mT, c[some])
    return combined.to(torch.promote_types(rows.dtype, torch.float32))


def _converted(rows: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, slice, Tensor]]:
    """The rows in another dtype by pieces, each valid until the next."""
    few = FEW * (1 if dtype == torch.float64 else 4) * (1 if rows.device.type == "cpu" else 32)
    buffer = torch.empty(few * min(WIDE, rows.shape[1]), dtype=dtype, device=rows.device)
    for start in range(0, rows.shape[1], WIDE):
        part = slice(start, min(start + WIDE, rows.shape[1]))
        for row in range(0, len(rows), few):
            piece = rows[row : row + few, part]
            yield slice(row, row + few), part, buffer[: piece.numel()].view(piece.shape).copy_(piece)


def _described(rows: Tensor) -> str:
    return f"{len(rows)} rows of {rows.shape[1]} weights in {str(rows.dtype)[6:]}"
