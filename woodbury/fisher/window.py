"""Window: the last m gradients, one row replaced per push, and F⁻¹ of the newest in one read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType, check_whole_number
from woodbury.fisher.checks import as_tensor, check_damping, check_vector
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.scaled_rows import KnownGram
from woodbury.fisher.window_estimates import (
    FLOAT32_ROUNDOFF,
    Estimates,
    estimated,
    product_error,
)
from woodbury.fisher.window_state import INVERSE_KEYS, STATE_KEYS, check_window_state
from woodbury.linalg import collectives
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.column_chunks import column_chunks
from woodbury.linalg.gram import gram_of
from woodbury.linalg.row_products import combination, products
from woodbury.linalg.sliding_inverse import SlidingInverse
from woodbury.memory.budget import available_bytes, bytes_in_words
from woodbury.memory.exhausted import if_memory_runs_out

MAX_ERROR = 3e-5
"""Estimated relative error of F⁻¹g above which products or the combination are taken in float64."""


ROW_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""In which rows can be remembered."""


class Window:
    """A sliding window of gradients and their Gram matrix  (eq. 13), as in dynamic M-FAC.

    The one mutable object of this folder. A push reads the rows once, `solve_newest` once more,
    and the (m, m) work between them is O(m²): replacing a row changes the inverse by rank two.
    The Fisher is scaled by the rows pushed so far, not by the capacity. A gradient that is not
    finite is left out and counted in `skipped`. Several rows at once, such as the Jacobian of a
    batch, cost a factor of the small matrix, and their products are taken in float64.

    Args:
        capacity: m, rows that are remembered.
        d: Weights; with a group those of this rank, where 0 is allowed.
        damping: λ > 0, absolute; the attribute may be changed between solves.
        dtype: Of the rows, float32, float64 or a half.
        device: Where rows and Gram matrix live.
        group: The ranks over which the columns are spread. A push sums m numbers over them.
            Nothing else is exchanged but one number per step and, should float32 not do, the Gram
            matrix once.

    Attributes:
        rows: (m, d), the gradients, in a ring.
        gram: (m, m) float64, G Gᵀ over all ranks, unscaled.
        damping: λ.
        pushed: Rows pushed so far.
        last_push_size: Rows of the last push.
        skipped: Pushes that were left out as they were not finite.
        slope: gᵀF⁻¹g of the last solve  (eq. 41).
        inverse: Of gram + m·λ·I, kept once the window is full and was solved with.
        float64_until_push: The push up to which products are taken in float64.

    Raises:
        WoodburyError: If capacity or d is below 1, or the damping is not positive.

    Example:
        >>> import torch
        >>> import woodbury
        >>> window = woodbury.fisher.Window(capacity=2, d=3, damping=1.0)
        >>> window.push(torch.tensor([1.0, 1.0, 0.0]))
        True
        >>> window.solve_newest()
        tensor([0.3333, 0.3333, 0.0000])
        >>> window.fisher().m
        1
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
        collectives.check_group(group)
        check_whole_number(capacity, "capacity", "the number of gradients to remember")
        if group is None or d != 0:  # a rank may hold no weight
            check_whole_number(d, "d", "the number of weights")
        if not isinstance(dtype, torch.dtype) or dtype not in ROW_DTYPES:
            raise WrongType(f"dtype is {dtype!r}: rows are float32, float64, float16 or bfloat16.")
        self.damping = check_damping(damping)
        with if_memory_runs_out("give the window fewer gradients"):
            _check_room(capacity, d, dtype, device)
            self.rows = torch.zeros(capacity, d, dtype=dtype, device=device)
        self.gram = torch.zeros(capacity, capacity, dtype=torch.float64, device=device)
        self.group = group
        self.pushed = 0
        self.last_push_size = 1
        self.skipped = 0
        self.slope = 0.0
        self.inverse = SlidingInverse()
        self.float64_until_push = 0

    @property
    def num_rows(self) -> int:
        """How many rows hold a gradient."""
        return min(self.pushed, len(self.rows))

    @property
    def newest_index(self) -> int:
        """The index of the row that was pushed last."""
        return (self.pushed - 1) % len(self.rows)

    def push(self, gradients: Tensor) -> bool:
        """Replace the oldest rows by gradients.

        Args:
            gradients: (d,) or (k, d).

        Returns:
            False if they are not finite and were left out.

        Raises:
            WoodburyError: If the shape does not fit, or k exceeds the capacity.
        """
        measured = self.measure(gradients)
        if not bool(torch.isfinite(measured).all()):
            self.skipped += 1
            return False
        self.admit(as_tensor(gradients, "The gradient"), measured)
        return True

    def measure(self, gradients: Tensor, step: int = 0) -> Tensor:
        """The Gram rows that gradients would have, over all ranks; nothing changes yet.

        So several windows can agree on a step before the first of them takes it.

        Args:
            gradients: (d,) or (k, d).
            step: Which step they are of, on all ranks.

        Returns:
            (num_rows,) or (k, num_rows) float64, num_rows as after the push. They are finite if
            and only if the gradients, and their squares in the products' dtype, are.

        Raises:
            WoodburyError: If the shape does not fit, k exceeds the capacity, or a rank is at
                another step.
        """
        gradients, count = self._checked(gradients)
        stored = gradients.to(self.rows.device, self.rows.dtype)
        num_rows = min(self.pushed + count, len(self.rows))
        places = self._places(self.pushed, count)
        if gradients.ndim == 1:
            exact = self.pushed < self.float64_until_push
            measured = products(self.rows[:num_rows], stored, exact)
            measured[places] = products(stored[None], stored, exact)
        else:
            measured = torch.zeros(count, num_rows, dtype=torch.float64, device=self.rows.device)
            if count < num_rows:  # else they replace all rows, and meet only themselves
                for part, chunk in column_chunks(self.rows[:num_rows], torch.float64):
                    measured += stored[:, part].double() @ chunk.mT
            measured[:, places] = gram_of(stored, torch.float64)
        return collectives.all_sum_in_step(measured, step, self.group)

    def _checked(self, gradients: Tensor) -> tuple[Tensor, int]:
        """Gradients as a tensor, and how many they are, or an error unless they fit."""
        gradients = as_tensor(gradients, "The gradient")
        if gradients.is_complex():
            raise WrongType("The gradient is complex: give real numbers.")
        if gradients.ndim not in (1, 2) or gradients.shape[-1] != self.rows.shape[1]:
            raise WoodburyError(
                f"A window of {self.rows.shape[1]} weights got gradients of shape "
                f"{tuple(gradients.shape)}: give (d,) or (k, d)."
            )
        count = 1 if gradients.ndim == 1 else len(gradients)
        if not 1 <= count <= len(self.rows):
            raise WoodburyError(
                f"A push of {count} rows does not fit a window of {len(self.rows)}: "
                f"give 1 to {len(self.rows)} rows at once."
            )
        return gradients, count

    def admit(self, gradients: Tensor, measured: Tensor) -> None:
        """Replace the oldest rows by gradients that were measured and found finite.

        Args:
            gradients: (d,) or (k, d).
            measured: What `measure` returned for them.
        """
        count = 1 if gradients.ndim == 1 else len(gradients)
        places = self._places(self.pushed, count)
        if count == 1:
            self.inverse.replace(self.pushed % len(self.rows), measured.view(-1))
        else:
            self.inverse.invalidate()
        self.rows[places] = gradients.to(self.rows.device, self.rows.dtype)
        self.pushed += count
        self.last_push_size = count
        if gradients.ndim == 2 and count == len(self.rows):
            self.float64_until_push = self.pushed  # the whole Gram matrix is float64's
        self.gram[places, : self.num_rows] = measured
        self.gram[: self.num_rows, places] = measured.view(count, -1).mT

    def fisher(self) -> LowRank:
        """The Fisher of the rows pushed so far, over the window's own memory.

        Returns:
            An operator that is valid until the next push.

        Raises:
            WoodburyError: If nothing was pushed yet.
        """
        self._check_not_empty()
        n = self.num_rows
        rows = self.rows[:n]
        exact = rows.dtype == torch.float64 or self.pushed <= self.float64_until_push
        known = KnownGram(self.gram[:n, :n] / n, exact)
        return LowRank.from_gram(rows, self.damping, known, group=self.group)

    def _check_not_empty(self) -> None:
        if not self.num_rows:
            raise WoodburyError("The window is empty: push a gradient first.")

    def solve_newest(
        self, plus: Tensor | None = None, *, residuals: Tensor | None = None
    ) -> Tensor:
        """F⁻¹g for the gradient pushed last, without a division by the damping  (eq. 8).

        One read of the rows. Where the estimated error is too large, the Gram matrix is computed
        again in float64, and so are the products of the next m pushes.

        Args:
            plus: (d,), for F⁻¹(g + plus) with F that of the gradients alone. One read more, and
                this part is solved as in (eq. 6).
            residuals: (k,), where k rows were pushed at once: g is the mean of rowᵢ·residualᵢ
                (eq. 40); None for the mean of the rows.

        Returns:
            (d,), float64 for float64 rows, else float32.

        Raises:
            WoodburyError: If nothing was pushed yet, or the residuals do not fit.
        """
        self._check_not_empty()
        size = self.last_push_size
        if residuals is not None:
            residuals = as_tensor(residuals, "residuals")
            if residuals.shape != (size,) or residuals.is_complex():
                raise WoodburyError(
                    f"A push of {size} rows got residuals of shape {tuple(residuals.shape)}: "
                    "give one real number for each."
                )
        n = self.num_rows
        places = self._places(self.pushed - size, size)
        c = torch.zeros(n, dtype=torch.float64, device=self.gram.device)  # g = Gᵀc
        c[places] = (1.0 if residuals is None else residuals.to(c)) / size
        column = self._solve_small(c)
        estimates = self._estimates(c, column, places)
        coarse = size > 1 or estimates.gram_error > MAX_ERROR
        if self.rows.dtype != torch.float64 and self._on_any_rank(coarse):
            if self.pushed > self.float64_until_push:  # some product was taken in float32
                self._recompute_gram()
                column = self._solve_small(c)
                estimates = self._estimates(c, column, places)
            self.float64_until_push = self.pushed + len(self.rows)
        self.slope = estimates.slope
        coefficients = n * column
        if plus is not None:
            plus = check_vector(plus, self.rows.shape[1], columns=False).to(self.rows.device)
            coefficients = coefficients - self._projected(plus) / self.damping
        exact = 2 * FLOAT32_ROUNDOFF * estimates.cancellation > MAX_ERROR
        step = combination(self.rows[:n], coefficients, exact)
        return step if plus is None else step.add_(plus, alpha=1 / self.damping)

    def _recompute_gram(self) -> None:
        """Take all products again, in float64."""
        n = self.num_rows
        gram = gram_of(self.rows[:n], torch.float64)
        self.gram[:n, :n] = collectives.all_sum(gram, self.group)
        self.inverse.invalidate()

    def _projected(self, v: Tensor) -> Tensor:
        """(gram + m·λ·I)⁻¹ G v, the small part of F⁻¹v in (eq. 6)."""
        exact = self.pushed <= self.float64_until_push
        projected = products(self.rows[: self.num_rows], v, exact)
        return self._solve_small(collectives.all_sum(projected, self.group))

    def widen(self, columns: int) -> None:
        """Add weights at the end, for which the gradients seen so far are 0.

        Args:
            columns: How many.

        Raises:
            WoodburyError: If it is no whole number of at least 0, or they have no room.
        """
        check_whole_number(columns, "columns", "the number of weights to add", least=0)
        capacity, d = self.rows.shape
        with if_memory_runs_out("give the window fewer weights"):
            _check_room(capacity, d + columns, self.rows.dtype, self.rows.device)
            self.rows = torch.cat([self.rows, self.rows.new_zeros(capacity, columns)], 1)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on bit for bit.

        Returns:
            A plain dict; as in torch, the tensors are not copies.
        """
        state = {key: getattr(self, key) for key in STATE_KEYS}
        inverse = (self.inverse.matrix, self.inverse.shift, self.inverse.updates)
        return state | dict(zip(INVERSE_KEYS, inverse, strict=True))

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise unless a state fits this window.

        Args:
            state: What `state_dict` returned.

        Raises:
            WoodburyError: If a key is missing, or the rows differ in shape or dtype.
        """
        check_window_state(state, self.rows)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved window, from whatever device.

        Args:
            state: What `state_dict` of a window of this shape and dtype returned.

        Raises:
            WoodburyError: If it does not fit; nothing has changed then.
        """
        self.check_state(state)
        for key in STATE_KEYS:
            if key not in ("rows", "gram"):
                setattr(self, key, state[key])
        self.rows.copy_(state["rows"])
        self.gram.copy_(state["gram"])
        matrix, self.inverse.shift, self.inverse.updates = (state[key] for key in INVERSE_KEYS)
        self.inverse.matrix = None if matrix is None else matrix.to(self.gram.device, copy=True)

    def _solve_small(self, c: Tensor) -> Tensor:
        """(gram + m·λ·I)⁻¹ c for c (num_rows,) float64: by the inverse once the window is full."""
        n = self.num_rows
        shift = n * self.damping
        gram = self.gram[:n, :n]
        if n < len(self.rows):  # m·λ changes with every push: an inverse would not last
            return torch.cholesky_solve(c[:, None], damped_cholesky(gram, shift))[:, 0]
        return self.inverse.solve(gram, shift, c)

    def _estimates(self, c: Tensor, column: Tensor, places: slice | Tensor) -> Estimates:
        """Errors and slope of the solution of `_solve_small(c)`."""
        n = self.num_rows
        gram, shift = self.gram[:n, :n], n * self.damping
        return estimated(gram, shift, c, column, places, product_error(self.rows))

    def _places(self, start: int, count: int) -> slice | Tensor:
        """The rows of the pushes start, start + 1, …, `count` of them."""
        first = start % len(self.rows)
        if first + count <= len(self.rows):
            return slice(first, first + count)
        return torch.arange(first, first + count, device=self.rows.device) % len(self.rows)

    def _on_any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank.

        Ranks on different processors may round differently: what they do together they decide
        together.
        """
        if self.group is None:
            return flag
        flags = torch.tensor(float(flag), device=self.rows.device)
        return bool(collectives.all_sum(flags, self.group) > 0)


def _check_room(capacity: int, d: int, dtype: torch.dtype, device: torch.device | str) -> None:
    """Raise unless a window has room: zeros that were only asked for have no memory yet."""
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise WrongType(f"device is {device!r}: give a torch.device, or its name.") from error
    if where.type == "meta":
        return
    need = capacity * (d * dtype.itemsize + capacity * torch.float64.itemsize)
    if need > available_bytes(where):
        raise WoodburyError(
            f"A window of {capacity} gradients of {d} weights takes {bytes_in_words(need)}, which "
            "have no room: give fewer gradients."
        )
