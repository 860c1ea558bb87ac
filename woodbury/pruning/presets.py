"""Effort: how much time to give, and the best known settings for it."""

from __future__ import annotations

from dataclasses import dataclass

from woodbury.errors import WoodburyError


@dataclass(frozen=True)
class Effort:
    """How much to spend on one pruning.

    samples: to estimate the curvature from, at most; mc_samples: rows to a sample, one where refits are by iterations; keep_per_stage: the
    fraction of the weights that a stage keeps at least, each with fresh gradients; held_back: the share of the samples on
    which every stage chooses among `dampings`, 0 for the first of them; refits: steps towards the dense network's outputs
    after each stage.
    """

    samples: int
    mc_samples: int
    keep_per_stage: float
    dampings: tuple[float, ...] = (3e-4,)
    held_back: float = 0.0
    refits: int = 1

    def __post_init__(self) -> None:
        shares = 0 <= self.keep_per_stage < 1 and 0 <= self.held_back < 1
        if (
            min(self.samples, self.mc_samples) < 1
            or self.refits < 0
            or not self.dampings
            or not shares
        ):
            raise WoodburyError(f"This effort cannot be: {self}.")


quick = Effort(500, 1, 0.0)
"""One stage: seconds on a small net."""


standard = Effort(1000, 2, 0.7)
"""Stages that keep 70 % each."""


thorough = Effort(4000, 2, 0.85, (1e-5, 1e-4, 1e-3, 1e-2), 0.2, 2)
"""More samples, stages that keep 85 % each, two refits after each, and a damping chosen at each on samples held back."""
