"""What an MFAC holds, in bytes, and the largest window that a budget has room for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from woodbury.errors import WoodburyError
from woodbury.limits import Limits
from woodbury.linalg.precision import wide_dtype
from woodbury.memory.budget import available_bytes, budget_bytes, bytes_in_words, parse_bytes
from woodbury.optim.layout import Layout, ParameterSlice

MOST_BY_DEFAULT = 512
"""Gradients of the largest window that is taken where none is asked for."""

LASTING_SQUARES = 2
"""(m, m) float64 matrices of each window: its Gram matrix and that one's inverse."""

PASSING_SQUARES = 4
"""(m, m) float64 matrices while one inverse is built."""


@dataclass(frozen=True)
class Footprint:
    """The bytes that an MFAC holds on the device of its windows, at most, as a function of m.

    Attributes:
        widths: The columns of each window that this rank holds.
        dtype: Of the rows.
        vectors: Bytes that do not depend on m: gradient, step and momentum.
    """

    widths: tuple[int, ...]
    dtype: torch.dtype
    vectors: int

    def of(self, window: int) -> int:
        """The bytes with windows of m gradients.

        Args:
            window: m.
        """
        d = sum(self.widths)
        rows = window * d * self.dtype.itemsize
        squares = (LASTING_SQUARES * len(self.widths) + PASSING_SQUARES) * 8 * window**2
        chunk = 8 * window * min(max(self.widths), Limits.current().row_columns)
        if self.dtype.itemsize < wide_dtype(self.dtype).itemsize:
            chunk += self.dtype.itemsize * max(self.widths)  # the newest before it is stored
        return rows + squares + chunk + self.vectors

    def largest(self, budget: int, most: int) -> int:
        """The largest window that a budget holds.

        Args:
            budget: Bytes.
            most: The window where the budget sets no limit.

        Returns:
            Gradients, 0 where not even one has room.

        Example:
            >>> footprint = Footprint((1000,), torch.float32, 8000)
            >>> footprint.largest(1_000_000, 512), footprint.largest(8000, 512)
            (65, 0)
        """
        fits, above = 0, most + 1
        while above - fits > 1:
            middle = (fits + above) // 2
            if self.of(middle) <= budget:
                fits = middle
            else:
                above = middle
        return fits


class Budget(NamedTuple):
    """What an MFAC may hold on one device.

    Attributes:
        bytes: How much.
        origin: Where that comes from, in words.
    """

    bytes: int
    origin: str

    @classmethod
    def of(cls, memory: int | float | str | None, device: torch.device) -> Budget:
        """The budget on a device, for this process alone.

        Args:
            memory: As asked for; None for 60 % of what is available, of which each of torchrun's
                processes on this machine takes its share where the device is the CPU.
            device: Where the windows live.
        """
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
        if memory is None:
            share = budget_bytes(None, device) // max(1, ranks)
            return cls(share, "60 % of what is available" + (" by the ranks" if ranks > 1 else ""))
        asked = budget_bytes(memory, device)
        available = available_bytes(device)
        if asked <= available:
            return cls(asked, f"memory={memory!r}")
        return cls(available, f"all that is left on {device}, less than memory={memory!r}")


@dataclass(frozen=True)
class Room:
    """What an MFAC needs, against what it may hold.

    Attributes:
        need: What it holds on the device of its windows.
        in_one_window: The same for one window over all weights; None if that is what it has.
        elsewhere: Momentum on other devices, in bytes.
        memory: As asked for; None for the default.
        device: Of the windows.
    """

    need: Footprint
    in_one_window: Footprint | None
    elsewhere: Mapping[torch.device, int]
    memory: int | str | None
    device: torch.device

    @classmethod
    def of(
        cls,
        layout: Layout,
        spans: Sequence[slice],
        *,
        dtype: torch.dtype,
        device: torch.device,
        process_group: dist.ProcessGroup | None,
        memory: int | str | None,
    ) -> Room:
        """The room of an optimizer on this rank.

        Args:
            layout: Where its weights lie.
            spans: The slices of the vector, one for each window.
            dtype: Of the rows.
            device: Of the windows.
            process_group: The ranks that share the windows; None for one process alone.
            memory: As asked for; None for the default.
        """
        widths = [span.stop - span.start for span in spans]
        ranks = 1 if process_group is None else dist.get_world_size(process_group)
        sharded = layout.is_sharded(process_group)
        if not sharded:
            widths = [-(-width // ranks) for width in widths]
        own = own_bytes(layout.slices, layout.param_groups, wide_dtype(dtype).itemsize)
        vectors = _step_bytes(layout, dtype, max(widths), gathered=ranks > 1 and not sharded)
        vectors += own.pop(device, 0)
        need = Footprint(tuple(widths), dtype, vectors)
        in_one = replace(need, widths=(sum(widths),)) if len(widths) > 1 else None
        return cls(need, in_one, own, memory, device)

    @property
    def d(self) -> int:
        """The columns that this rank holds."""
        return sum(self.need.widths)

    def window(self, asked: int | None) -> int | None:
        """The window: as asked for, if there is room; for None what fits, at most 512 gradients.

        Args:
            asked: The window, or None.

        Returns:
            Gradients; as asked for on the meta device, which has no memory.

        Raises:
            WoodburyError: If there is no room; the sentence says for what there is.
        """
        if self.device.type == "meta":
            return asked
        if not self.d:  # a rank without weights
            return asked or MOST_BY_DEFAULT
        for device, size in self.elsewhere.items():
            if device.type != "meta" and size > (free := available_bytes(device)):
                raise WoodburyError(
                    f"Momentum takes {bytes_in_words(size)} on {device}, where "
                    f"{bytes_in_words(free)} are left: give momentum=0."
                )
        budget = Budget.of(self.memory, self.device)
        if asked is None:
            fits = self.need.largest(budget.bytes, MOST_BY_DEFAULT)
            if fits:
                return fits
        elif self.need.of(asked) <= budget.bytes:
            return asked
        raise WoodburyError(self._refusal(asked or 1, budget))

    def is_there(self, window: int) -> bool:
        """Whether a window has room in what the device has left at this moment.

        Args:
            window: Gradients.
        """
        return self.need.of(window) <= available_bytes(self.device)

    def check_growth(self, window: int, old: Sequence[slice]) -> None:
        """Raise unless open windows can be widened to this layout.

        Args:
            window: Gradients of a window.
            old: The slices of the windows that are open.

        Raises:
            WoodburyError: If there is no room; nothing has changed then.
        """
        last = old[-1].stop - old[-1].start  # it is copied into a wider one
        more = window * self.need.dtype.itemsize * (self.d - old[-1].stop + last)
        has_budget = self.memory is None or self.need.of(window) <= parse_bytes(self.memory)
        if more > available_bytes(self.device) or not has_budget:
            raise WoodburyError(
                f"The windows of {window} gradients have no room for another group, "
                f"{bytes_in_words(more)}: give all groups at the start, or a smaller window."
            )

    def _refusal(self, wanted: int, budget: Budget) -> str:
        gradients = f"{wanted} gradient{'s' if wanted > 1 else ''}"
        return (
            f"A window of {gradients} of {self.d:,} weights takes "
            f"{bytes_in_words(self.need.of(wanted))}, and MFAC may hold "
            f"{bytes_in_words(budget.bytes)} ({budget.origin}): "
            f"give {', or '.join(self._ways(wanted, budget))}."
        )

    def _ways(self, wanted: int, budget: Budget) -> list[str]:
        """What has room: fewer gradients, two bytes for a number, one window; or more memory."""
        fits = self.need.largest(budget.bytes, wanted)
        ways = [f"window={fits}"] if fits else []
        if self.need.dtype.itemsize > torch.bfloat16.itemsize:
            in_halves = replace(self.need, dtype=torch.bfloat16).largest(budget.bytes, wanted)
            if in_halves > fits:
                ways.append(f"window={in_halves} with dtype=torch.bfloat16")
        if self.in_one_window is not None:
            in_one = self.in_one_window.largest(budget.bytes, wanted)
            if in_one > fits:
                ways.append(f"window={in_one} with partition=woodbury.optim.whole")
        needed = bytes_in_words(self.need.of(wanted))
        if self.need.of(wanted) <= available_bytes(self.device):
            ways.append(f"memory={needed!r}")
        return ways or [f"a machine with {needed} to spare"]


def _step_bytes(layout: Layout, dtype: torch.dtype, width: int, gathered: bool) -> int:
    """The vectors of one step on the device of the windows."""
    wide = wide_dtype(dtype).itemsize
    size = wide * (layout.d + width)  # the gradient, which becomes the step, and F⁻¹g of a window
    if gathered:
        size += 2 * wide * layout.d  # the parts of all ranks, and the whole
    if any(group["weight_decay"] and not group["decoupled"] for group in layout.param_groups):
        size += wide * (layout.d + width)
    return size


def own_bytes(
    slices: Sequence[ParameterSlice], param_groups: Sequence[Mapping[str, Any]], wide: int
) -> dict[torch.device, int]:
    """Momentum, and the updates of masked parameters, on the devices of the parameters.

    Args:
        slices: Those of the layout.
        param_groups: torch's.
        wide: Bytes of a number of the step.

    Returns:
        Device -> bytes.
    """
    result: dict[torch.device, int] = {}
    for part in slices:
        moving = part.span.stop - part.span.start
        size = moving * part.local.itemsize if param_groups[part.param_group]["momentum"] else 0
        if part.indices is not None:
            size += 8 * moving + wide * part.local.numel()
        device = part.local.device
        result[device] = result.get(device, 0) + size
    return result
