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


class Windows:
    """One Window for each run of a vector (d,); all of them take a gradient, or none does.

    group: the ranks that share the windows. sharded: whether each rank has its own vector, the shards of the whole one;
    else all have the same vector, and each keeps a slice of every run.
    """

    def __init__(
        self,
        runs: Sequence[slice],
        dampings: Sequence[float],
        *,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        group: Any = None,
        sharded: bool = False,
    ) -> None:
        self.capacity, self.dtype, self.device, self.group, self.sharded = (
            capacity,
            dtype,
            device,
            group,
            sharded,
        )
        self.runs: list[slice] = []
        self.windows: list[Window] = []
        if group is not None:
            count = collectives.all_sum(torch.tensor(float(len(runs)), device=device), group)
            if float(count) != len(runs) * dist.get_world_size(group):
                raise WoodburyError(
                    "The ranks cut their weights into different numbers of windows: partition otherwise."
                )
        self._open(runs, dampings)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and device that a vector should have."""
        return torch.empty(
            0, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device
        )

    def extend(self, runs: Sequence[slice], dampings: Sequence[float]) -> None:
        """Go on with a longer vector: the last window is widened up to its run's new end, further ones are opened."""
        old, last = self.runs, len(self.runs) - 1
        if self.group is not None:
            raise WoodburyError(
                "Ranks share the window: add all parameter groups before the first step."
            )
        if (
            list(runs[:last]) != old[:last]
            or len(runs) <= last
            or runs[last].start != old[last].start
        ):
            raise WoodburyError(
                "The partition cuts the old weights in another way once a group is added: add it earlier."
            )
        self.windows[last].widen(runs[last].stop - old[last].stop)
        self.runs = old[:last]
        self.runs.append(runs[last])
        self._open(runs[last + 1 :], dampings[last + 1 :])

    def measure(self, gradients: Tensor) -> list[Tensor] | None:
        """The Gram rows of gradients, (d,) or (k, d), for `solve`; None if they are not finite. Nothing changes yet."""
        measured = [
            window.measure(gradients[..., self._own(run)])
            for window, run in zip(self.windows, self.runs, strict=True)
        ]
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
        """Take the gradients in; F⁻¹(g + plus), (d,), for g their mean weighted by the residuals: may be in place."""
        step = gradients if gradients.ndim == 1 else gradients.new_empty(gradients.shape[1])
        for window, run, products, damping in zip(
            self.windows, self.runs, measured, dampings, strict=True
        ):
            part = self._own(run)
            window.damping = damping
            window.admit(gradients[..., part], products)
            step[part] = window.solve_newest(
                None if plus is None else plus[part], residuals=residuals
            )
        if self.group is not None and not self.sharded:
            self._gather(step)
        return step

    def state(self) -> dict[str, Any]:
        """Where the windows lie and what each needs to go on."""
        runs = [[run.start, run.stop] for run in self.runs]
        return {"runs": runs, "states": [window.state_dict() for window in self.windows]}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise WoodburyError unless `state` fits: then `load_state` cannot fail half-way."""
        if state["runs"] != [[run.start, run.stop] for run in self.runs]:
            raise WoodburyError(
                "The saved weights were cut into other windows: give the same partition."
            )
        for window, saved in zip(self.windows, state["states"], strict=True):
            window.check_state(saved)

    def load_state(self, state: dict[str, Any]) -> None:
        for window, saved in zip(self.windows, state["states"], strict=True):
            window.load_state_dict(saved)

    def _open(self, runs: Sequence[slice], dampings: Sequence[float]) -> None:
        for run, damping in zip(runs, dampings, strict=True):
            own = self._own(run)
            kind = {"dtype": self.dtype, "device": self.device, "group": self.group}
            self.windows.append(Window(self.capacity, own.stop - own.start, damping, **kind))
            self.runs.append(run)

    def _share(self, run: slice) -> int:
        """How many columns of a run a rank holds at most."""
        return -(-(run.stop - run.start) // dist.get_world_size(self.group))

    def _own(self, run: slice) -> slice:
        """The columns of a run that this rank holds."""
        if self.group is None or self.sharded:
            return run
        share = self._share(run)
        start = min(run.start + share * dist.get_rank(self.group), run.stop)
        return slice(start, min(start + share, run.stop))

    def _gather(self, vector: Tensor) -> None:
        """Fill in what the other ranks hold of a vector (d,) of which each has written its own part of every run."""
        shares = [self._share(run) for run in self.runs]
        places = [
            slice(end - share, end) for share, end in zip(shares, accumulate(shares), strict=True)
        ]
        mine = vector.new_zeros(sum(shares))
        for run, place in zip(self.runs, places, strict=True):
            own = vector[self._own(run)]
            mine[place][: len(own)] = own
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(everyone, mine, group=self.group)
        for run, place in zip(self.runs, places, strict=True):
            vector[run] = torch.cat([theirs[place] for theirs in everyone])[: run.stop - run.start]
