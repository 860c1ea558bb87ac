"""The windows of one optimizer, side by side on its vector, over one rank or several."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.window import Window
from woodbury.linalg import collectives
from woodbury.linalg.precision import wide_dtype


class Windows:
    """One `Window` for each span of a vector (d,); all of them admit a gradient, or none does.

    Args:
        spans: The slices of the vector, one for each window.
        dampings: One for each window.
        capacity: Rows m of each window.
        dtype: Of the rows.
        device: Of the rows.
        process_group: The ranks that share the windows; None for one process alone.
        sharded: Whether each rank has a vector of its own, the shards of the whole one. Else all
            have the same vector, and each rank holds some columns of every span.

    Attributes:
        spans: The slices of the vector, one for each window.
        windows: The windows, in the same order.
        sharded: As given.
        capacity: As given.

    Raises:
        WoodburyError: If the ranks have different numbers of windows.
    """

    def __init__(
        self,
        spans: Sequence[slice],
        dampings: Sequence[float],
        *,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        process_group: dist.ProcessGroup | None = None,
        sharded: bool = False,
    ) -> None:
        self.spans: list[slice] = []
        self.windows: list[Window] = []
        self.sharded = sharded
        self.capacity = capacity
        self._dtype = dtype
        self._device = device
        self._process_group = process_group
        self._reserve: Tensor | None = None
        self._check_same_number(len(spans))
        self._open(spans, dampings)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and on the device that gradients should have."""
        return torch.empty(0, dtype=wide_dtype(self._dtype), device=self._device)

    @property
    def slope(self) -> float:
        """gᵀF⁻¹g of the last step, over all windows (eq. 41)."""
        return sum(window.slope for window in self.windows)

    def extend(self, spans: Sequence[slice], dampings: Sequence[float]) -> None:
        """Go on with a longer vector: the last window is widened, further ones are opened.

        Args:
            spans: Those of the longer vector. All but the last of the old ones must be among them,
                and that one must begin where it began.
            dampings: One for each of them.

        Raises:
            WoodburyError: If the spans are others, or if ranks share the windows.
        """
        if self._process_group is not None:
            raise WoodburyError(
                "Ranks share the window: add all parameter groups before the first step."
            )
        old = self.spans
        last = len(old) - 1
        goes_on = len(spans) > last and spans[last].start == old[last].start
        if not goes_on or list(spans[:last]) != old[:last]:
            raise WoodburyError(
                "The partition cuts the old weights in another way once a group is added: "
                "add it earlier."
            )
        self.windows[last].widen(spans[last].stop - old[last].stop)
        self.spans = [*old[:last], spans[last]]
        self._open(spans[last + 1 :], dampings[last + 1 :])

    def measure(self, gradients: Tensor, step: int) -> list[Tensor] | None:
        """The Gram rows that gradients would have in each window, which do not change yet.

        Args:
            gradients: (d,) or (k, d).
            step: Which step they are of, on all ranks.

        Returns:
            One tensor for each window, for `solve`; None if a gradient is not finite.

        Raises:
            WoodburyError: If a rank is at another step.
        """
        measured = [
            window.measure(gradients[..., self._columns(span)], step)
            for window, span in zip(self.windows, self.spans, strict=True)
        ]
        # One question to the device for all windows: a sum is finite only if all its terms are.
        finite = torch.isfinite(torch.stack([products.sum() for products in measured])).all()
        return measured if bool(finite) else None

    def solve(
        self,
        gradients: Tensor,
        measured: list[Tensor],
        dampings: Sequence[float],
        plus: Tensor | None,
        residuals: Tensor | None,
    ) -> Tensor:
        """Let the windows admit gradients, and give the step F⁻¹(g + plus)  (eq. 8, 40).

        Args:
            gradients: (d,), the gradient g, or (k, d), rows; overwritten if it is one vector.
            measured: What `measure` gave for them.
            dampings: One for each window.
            plus: (d,), which F does not see; None for nothing.
            residuals: (k,), by which the rows are weighted: g is the mean of rowᵢ·residualᵢ.

        Returns:
            (d,), the same on all ranks unless their vectors are shards.
        """
        self._release_reserve(1 if gradients.ndim == 1 else len(gradients))
        step = gradients if gradients.ndim == 1 else gradients.new_empty(gradients.shape[1])
        for window, span, products, damping in zip(
            self.windows, self.spans, measured, dampings, strict=True
        ):
            columns = self._columns(span)
            window.damping = damping
            window.admit(gradients[..., columns], products)
            plus_here = None if plus is None else plus[columns]
            step[columns] = window.solve_newest(plus_here, residuals=residuals)
        if self._process_group is not None and not self.sharded:
            self._all_gather(step)
        return step

    def on_all_ranks(self, flag: bool) -> bool:
        """Whether a flag is set on every rank: each may see another part of the weights.

        Args:
            flag: This rank's.
        """
        if self._process_group is None:
            return flag
        unset = torch.tensor(float(not flag), device=self._device)
        return float(collectives.all_sum(unset, self._process_group)) == 0

    def state(self) -> dict[str, Any]:
        """Where the windows lie, and what each needs to go on bit for bit."""
        spans = [[span.start, span.stop] for span in self.spans]
        return {"spans": spans, "states": [window.state_dict() for window in self.windows]}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise unless a saved state fits: then `load_state` cannot fail half-way.

        Args:
            state: What `state` gave.

        Raises:
            WoodburyError: If the partition, a shape or a dtype is another.
        """
        if state["spans"] != [[span.start, span.stop] for span in self.spans]:
            raise WoodburyError(
                "The saved weights were cut into other windows: give the same partition."
            )
        states = state.get("states")
        if not isinstance(states, (list, tuple)) or len(states) != len(self.windows):
            raise WoodburyError("The saved state lacks the state of a window: it is damaged.")
        for window, saved in zip(self.windows, states, strict=True):
            window.check_state(saved)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a saved state that `check_state` accepts.

        Args:
            state: What `state` gave.
        """
        self._reserve = None
        for window, saved in zip(self.windows, state["states"], strict=True):
            window.load_state_dict(saved)

    def _check_same_number(self, count: int) -> None:
        """Raise unless all ranks have as many windows: sums pair them in order."""
        group = self._process_group
        if group is None:
            return
        total = collectives.all_sum(torch.tensor(float(count), device=self._device), group)
        if float(total) != count * dist.get_world_size(group):
            raise WoodburyError(
                "The ranks cut their weights into different numbers of windows: "
                "give another partition."
            )

    def _open(self, spans: Sequence[slice], dampings: Sequence[float]) -> None:
        for span, damping in zip(spans, dampings, strict=True):
            columns = self._columns(span)
            window = Window(
                self.capacity,
                columns.stop - columns.start,
                damping,
                dtype=self._dtype,
                device=self._device,
                group=self._process_group,
            )
            if self._device.type == "cpu":
                _take(window.rows)
                _take(window.gram)
            self.windows.append(window)
            self.spans.append(span)
        # A window that is full has the inverse of its Gram matrix too: that room is taken now.
        if all(window.num_rows < self.capacity for window in self.windows):
            self._reserve = None
            size = len(self.windows) * self.capacity**2
            self._reserve = torch.zeros(size, dtype=torch.float64, device=self._device)
            _take(self._reserve)

    def _release_reserve(self, count: int) -> None:
        """Give the room of the inverses free as they are made: when the windows are full."""
        if self.windows and self.windows[0].pushed + count >= self.capacity:
            self._reserve = None

    def _columns_per_rank(self, span: slice) -> int:
        """How many columns of a span a rank holds at most."""
        return -(-(span.stop - span.start) // dist.get_world_size(self._process_group))

    def _columns(self, span: slice) -> slice:
        """The columns of a span that this rank holds, as a slice of the vector."""
        if self._process_group is None or self.sharded:
            return span
        width = self._columns_per_rank(span)
        start = min(span.start + width * dist.get_rank(self._process_group), span.stop)
        return slice(start, min(start + width, span.stop))

    def _all_gather(self, vector: Tensor) -> None:
        """Fill in what the other ranks hold of a vector (d,).

        Each rank has written its own columns of every span. One message for all spans: in it each
        span takes the same place on every rank, padded with zeros where a rank holds fewer columns.
        """
        widths = [self._columns_per_rank(span) for span in self.spans]
        places = [
            slice(end - width, end) for width, end in zip(widths, accumulate(widths), strict=True)
        ]
        message = vector.new_zeros(sum(widths))
        for span, place in zip(self.spans, places, strict=True):
            columns = vector[self._columns(span)]
            message[place][: len(columns)] = columns
        messages = [
            torch.empty_like(message) for _ in range(dist.get_world_size(self._process_group))
        ]
        dist.all_gather(messages, message, group=self._process_group)
        for span, place in zip(self.spans, places, strict=True):
            padded = torch.cat([each[place] for each in messages])
            vector[span] = padded[: span.stop - span.start]


def smallest(window: int | None, device: torch.device, process_group: dist.ProcessGroup) -> int:
    """The smallest of the windows that the ranks have room for.

    Args:
        window: What this rank has room for.
        device: Where the ranks can exchange a number.
        process_group: The ranks.
    """
    least = torch.tensor(window, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN, group=process_group)
    return int(least)


def _take(zeros: Tensor) -> None:
    """Have the system give the memory now: zeros that were only asked for have none yet."""
    zeros.zero_()
