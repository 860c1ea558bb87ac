"""Window: the last m gradients, one row replaced per push."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.operator import check_damping
from woodbury.fisher.streams import times


class Window:
    """A sliding window of gradients and their Gram matrix; the one mutable object of this folder  (eq. 13).

    capacity: rows m; d: weights. A push costs one product with the rows, O(dm). The Fisher is scaled by the rows seen,
    not by the capacity, and a gradient that is not finite is not let in but counted in `skipped`.
    """

    def __init__(
        self,
        capacity: int,
        d: int,
        damping: float = 1e-5,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1 or d < 1:
            raise WoodburyError(
                f"A window of {capacity} gradients of {d} weights holds nothing: both must be at least 1."
            )
        self.damping = check_damping(damping)
        self.rows = torch.zeros(capacity, d, dtype=dtype, device=device)
        self.gram = torch.zeros(capacity, capacity, dtype=torch.float64, device=device)
        self.pushed = 0
        self.skipped = 0

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
        if gradient.shape != self.rows.shape[1:]:
            raise WoodburyError(
                f"A gradient of shape {tuple(gradient.shape)} met a window of {self.rows.shape[1]} weights."
            )
        if not bool(torch.isfinite(gradient.sum())) and not bool(torch.isfinite(gradient).all()):
            self.skipped += 1
            return False
        row = self.pushed % len(self.rows)
        self.rows[row] = gradient
        self.pushed += 1
        new = times(self.rows[: self.seen], self.rows[row].to(torch.promote_types(self.rows.dtype, torch.float32)))
        self.gram[row, : self.seen] = new
        self.gram[: self.seen, row] = new
        return True

    def fisher(self) -> LowRank:
        """The Fisher of the rows seen, over the window's own memory: valid until the next push."""
        if not self.seen:
            raise WoodburyError("The window is empty: push a gradient first.")
        gram = self.gram[: self.seen, : self.seen] / self.seen
        return LowRank(self.rows[: self.seen], self.damping, known_gram=gram, exact_gram=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on bit for bit."""
        return {
            "rows": self.rows.clone(),
            "gram": self.gram.clone(),
            "pushed": self.pushed,
            "skipped": self.skipped,
            "damping": self.damping,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved window of the same shape."""
        missing = {"rows", "gram", "pushed", "skipped", "damping"} - set(state)
        if missing:
            raise WoodburyError(f"This is not a window's state: it lacks {', '.join(sorted(missing))}.")
        if state["rows"].shape != self.rows.shape:
            raise WoodburyError(
                f"The saved window is {tuple(state['rows'].shape)}, this one {tuple(self.rows.shape)}: make them equal."
            )
        self.rows.copy_(state["rows"])
        self.gram.copy_(state["gram"])
        self.pushed, self.skipped = state["pushed"], state["skipped"]
        self.damping = check_damping(state["damping"])
