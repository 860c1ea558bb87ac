"""Window: the last m gradients, one row replaced per push, and F⁻¹ of the newest in one read of the rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.checks import check_damping
from woodbury.fisher.lowrank import LowRank
from woodbury.linalg import collectives
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.gram import gram_of
from woodbury.linalg.row_products import FAST, WIDE, chunks, combination, products

TOLERANCE = 3e-5
"""Estimated relative error of F⁻¹g above which products or the combination are taken in float64."""


REBUILT = 256
"""Replacements after which the inverse of the small matrix is computed anew, so that no rounding adds up for a week."""


DRIFTED = 1e-4
"""Residual of a small solve at which it is computed anew at once."""


KEYS = (
    "rows",
    "gram",
    "pushed",
    "latest",
    "slope",
    "skipped",
    "damping",
    "inverse",
    "age",
    "shift",
    "exact_until",
)


class Window:
    """A sliding window of gradients and their Gram matrix; the one mutable object of this folder  (eq. 13).

    capacity: rows m; d: weights. A push reads the rows once, `solve_newest` once more, and the (m, m) work between them
    is O(m²): replacing a row changes the inverse by rank two. The Fisher is scaled by the rows seen, not by the capacity,
    and a gradient that is not finite is not let in but counted in `skipped`. Several rows at once, such as a batch's
    Jacobian, cost a factor of the small matrix, and their products are taken in float64.

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
        self.latest = 1  # how many rows the last push brought
        self.skipped = 0
        self.slope = 0.0  # gᵀF⁻¹g of the last solve: how steeply the loss falls along the step
        self.inverse: Tensor | None = (
            None  # (m, m) of gram + shift·I, once the window is full and solved with
        )
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

    def push(self, gradients: Tensor) -> bool:
        """Let `gradients`, (d,) or (k, d), replace the oldest rows; False if they are not finite and were left out."""
        products = self.measure(gradients)
        if not bool(torch.isfinite(products).all()):
            self.skipped += 1
            return False
        self.admit(gradients, products)
        return True

    def measure(self, gradients: Tensor) -> Tensor:
        """The Gram rows that gradients would have, (d,) -> (seen,), (k, d) -> (k, seen), float64, over all ranks.

        They are finite if and only if the gradients can be let in: if these are, and their squares in the products'
        dtype. Nothing changes yet, so that several windows can agree
        on a step before the first of them takes it.
        """
        if gradients.shape[-1:] != self.rows.shape[1:] or gradients.ndim > 2:
            raise WoodburyError(
                f"Gradients of shape {tuple(gradients.shape)} met a window of {self.rows.shape[1]} weights."
            )
        count = 1 if gradients.ndim == 1 else len(gradients)
        if not 1 <= count <= len(self.rows):
            raise WoodburyError(
                f"{count} rows at once met a window of {len(self.rows)}: it must hold all of them."
            )
        stored, seen = (
            gradients.to(self.rows.device, self.rows.dtype),
            min(self.pushed + count, len(self.rows)),
        )
        places, exact = self._places(self.pushed, count), self.pushed < self.exact_until
        if gradients.ndim == 1:
            new = products(self.rows[:seen], stored, exact)
            new[places] = products(stored[None], stored, exact)
        else:
            new = torch.zeros(count, seen, dtype=torch.float64, device=self.rows.device)
            for part, chunk in chunks(self.rows[:seen], torch.float64) if count < seen else ():
                new += stored[:, part].double() @ chunk.mT
            new[:, places] = gram_of(stored, torch.float64)
        return collectives.all_sum(new, self.group)

    def admit(self, gradients: Tensor, products: Tensor) -> None:
        """Let `gradients`, (d,) or (k, d), with their finite `measure` replace the oldest rows."""
        count = 1 if gradients.ndim == 1 else len(gradients)
        places = self._places(self.pushed, count)
        if count == 1 and self.age >= 0:
            assert self.inverse is not None
            self._replace(self.inverse, self.pushed % len(self.rows), products.view(-1))
        else:
            self.age = -1
        self.rows[places] = gradients
        self.pushed, self.latest = self.pushed + count, count
        if gradients.ndim == 2 and count == len(self.rows):
            self.exact_until = self.pushed
        self.gram[places, : self.seen] = products
        self.gram[: self.seen, places] = products.view(count, -1).mT

    def fisher(self) -> LowRank:
        """The Fisher of the rows seen, over the window's own memory: valid until the next push."""
        if not self.seen:
            raise WoodburyError("The window is empty: push a gradient first.")
        gram, rows = self.gram[: self.seen, : self.seen] / self.seen, self.rows[: self.seen]
        exact = rows.dtype == torch.float64 or self.pushed <= self.exact_until
        return LowRank(rows, self.damping, group=self.group, known_gram=gram, exact_gram=exact)

    def solve_newest(
        self, plus: Tensor | None = None, *, residuals: Tensor | None = None
    ) -> Tensor:
        """F⁻¹ g for the gradient pushed last, (d,): one read of the rows, no division by the damping  (eq. 8).

        plus: (d,), for F⁻¹(g + plus) with F that of the gradients alone; one read more, and this part as in (eq. 6).
        residuals: (k,), where k rows were pushed at once: g is the mean of rowᵢ·residualᵢ, else of the rows  (eq. 40).
        """
        if not self.seen:
            raise WoodburyError("The window is empty: push a gradient first.")
        if residuals is not None and residuals.shape != (self.latest,):
            raise WoodburyError(
                f"{self.latest} rows met residuals of shape {tuple(residuals.shape)}: give one for each."
            )
        c = torch.zeros(self.seen, dtype=torch.float64, device=self.gram.device)
        places = self._places(self.pushed - self.latest, self.latest)
        c[places] = (1.0 if residuals is None else residuals.to(c)) / self.latest
        column = self._solve_small(c)
        spread, error, self.slope = self._estimates(c, column, places)
        coarse = self.latest > 1 or error > TOLERANCE
        if self.rows.dtype != torch.float64 and self._on_any_rank(coarse):
            if (
                self.pushed > self.exact_until
            ):  # the last push was measured in float32, or others before it
                rows = self.rows[: self.seen]
                self.gram[: self.seen, : self.seen] = collectives.all_sum(
                    gram_of(rows, torch.float64), self.group
                )
                self.age = -1
                column = self._solve_small(c)
                spread, _, self.slope = self._estimates(c, column, places)
            self.exact_until = self.pushed + len(self.rows)
        combined = self.seen * column
        if plus is not None:
            plus = plus.to(self.rows.device)
            exact = self.pushed <= self.exact_until
            projected = collectives.all_sum(
                products(self.rows[: self.seen], plus, exact), self.group
            )
            combined = combined - self._solve_small(projected) / self.damping
        step = combination(self.rows[: self.seen], combined, 2.0**-23 * spread > TOLERANCE)
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
            raise WoodburyError(
                f"This is not a window's state: it lacks {', '.join(sorted(missing))}."
            )
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
        self.pushed, self.latest, self.skipped = state["pushed"], state["latest"], state["skipped"]
        self.slope = state["slope"]
        self.age, self.shift, self.exact_until = state["age"], state["shift"], state["exact_until"]
        self.damping = check_damping(state["damping"])

    def _solve_small(self, c: Tensor) -> Tensor:
        """(gram + seen·damping·I)⁻¹ c for c (seen,), float64: by the inverse once the window is full."""
        shift = self.seen * self.damping
        gram = self.gram[: self.seen, : self.seen]
        if self.seen < len(self.rows):  # the shift changes with every push
            return torch.cholesky_solve(c[:, None], damped_cholesky(gram, shift))[:, 0]
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
        self.inverse = torch.cholesky_inverse(damped_cholesky(self.gram, shift))
        self.age, self.shift = 0, shift

    def _replace(self, inverse: Tensor, row: int, products: Tensor) -> None:
        """Row and column `row` of gram give way to `products`: the inverse changes by rank two, O(m²)."""
        gone = inverse[row] / inverse[row, row].sqrt()
        others = products.clone()
        others[row] = 0
        moved = inverse @ others - gone * (gone @ others)
        moved[row] = -1
        fresh = products[row] + self.shift - others @ moved
        if not bool(
            fresh >= 0.5 * self.shift
        ):  # a Schur complement is at least the shift: rounding has won
            self.age = -1
            return
        arrived = moved / fresh.sqrt()
        inverse.addmm_(torch.stack([arrived, -gone], 1), torch.stack([arrived, gone]))
        inverse[row] = arrived * arrived[row]
        inverse[:, row] = inverse[row]
        self.age += 1

    def _estimates(
        self, c: Tensor, column: Tensor, places: slice | Tensor
    ) -> tuple[float, float, float]:
        """By how much the terms of Gᵀ column exceed their sum; F⁻¹g's relative error by a float32 Gram matrix; gᵀF⁻¹g.

        From O(m) numbers for one new row. The first is what the combination's rounding is multiplied by. A product's own error
        grows with the root of a sum's length, and is divided by the share of the newest row that is new to the others.
        """
        lengths, square = self.gram.diagonal()[: self.seen], column.square()
        terms = lengths @ square
        summed = c @ column - self.seen * self.damping * square.sum()  # columnᵀ gram column
        share = (lengths[places] * column[places]).amax().clamp(min=1)
        slope = self.seen * (c[places] @ (self.gram[places, : self.seen] @ column))
        numbers = torch.stack([terms, summed, share, slope]).tolist()
        spread = (
            (numbers[0] / max(numbers[1], 1e-30 * numbers[0])) ** 0.5 if numbers[0] > 0 else 0.0
        )
        d, chunk = max(self.rows.shape[1], 1), FAST if self.rows.dtype == torch.float32 else WIDE
        product = 2.0**-24 * max(1.0, min(d, chunk) / 8 / d**0.5)
        return spread, product * spread * (self.seen * numbers[2]) ** 0.5, numbers[3]

    def _places(self, start: int, count: int) -> slice | Tensor:
        """The rows of the pushes start, start + 1, …, of which there are `count`."""
        first = start % len(self.rows)
        if first + count <= len(self.rows):
            return slice(first, first + count)
        return torch.arange(first, first + count, device=self.rows.device) % len(self.rows)

    def _on_any_rank(self, flag: bool) -> bool:
        """Ranks on different processors may round differently; what they do together they decide together."""
        if self.group is None:
            return flag
        return bool(
            collectives.all_sum(torch.tensor(float(flag), device=self.rows.device), self.group) > 0
        )


def _described(rows: Tensor) -> str:
    return f"{len(rows)} rows of {rows.shape[1]} weights in {str(rows.dtype)[6:]}"
