"""Effort: how much time `prune` may take, and three presets of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.fisher.checks import check_damping


@dataclass(frozen=True)
class InTurn:
    """How far one layer is pruned after the other, before stages of all layers follow.

    The stages begin at `until`, or where twice as many weights are left as are to be kept,
    whichever is the sparser.

    Attributes:
        until: Sparsity in (0, 1]; 1 for no stages.
        keep_per_stage: The least fraction of the weights that a stage after it keeps, in [0, 1).

    Raises:
        WoodburyError: If a field is out of its range; the sentence names it.

    Example:
        >>> InTurn().until
        0.8
    """

    as_argument: ClassVar[str] = "an InTurn such as woodbury.presets.InTurn(0.8)"

    until: float = 0.8
    keep_per_stage: float = 0.84

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.until <= 1:
            raise WoodburyError(f"until is {self.until}: it is a sparsity and must lie in (0, 1].")
        _check_share(self.keep_per_stage, "keep_per_stage")


@dataclass(frozen=True)
class Effort:
    """How much time one call of `prune` may take.

    The presets are `quick`, `standard` and `thorough`; `replace(standard, samples=500)` changes one
    field of a preset.

    Attributes:
        samples: Samples of the calibration set that are used at most, at least 1.
        mc_samples: GGN samples per input, at least 1, that the weights to remove are chosen by. In
            later stages those of the refits before serve where refits are by rows. `prune` takes
            one where the refits are solved by conjugate gradients, as those correct what a second
            one would.
        keep_per_stage: The least fraction of the weights that a stage keeps, in [0, 1); every
            stage has fresh gradients. 0 prunes in one stage.
        dampings: Candidates for the damping, at least one, all positive.
        held_back: The fraction of the samples, in [0, 1), on which each stage chooses among
            `dampings`; 0 takes the first of them.
        refits: Gauss–Newton steps of the refit that follows each stage; 0 for no refit.
        in_turn: How far one layer is pruned after the other at first, by a `ShareSearch` without
            gradients or refit, where every tensor is that of an nn.Linear or nn.Conv2d and all
            samples have room at once; None for stages from the start, as elsewhere. All other
            fields but `samples` and `held_back` are about stages.

    Raises:
        WoodburyError: If a field is out of its range; the sentence names it.
        WrongType: If a count is no whole number.

    Example:
        >>> from dataclasses import replace
        >>> replace(standard, samples=500).keep_per_stage
        0.66
    """

    as_argument: ClassVar[str] = "an Effort such as woodbury.presets.quick"

    samples: int
    mc_samples: int
    keep_per_stage: float
    dampings: tuple[float, ...] = (3e-4,)
    held_back: float = 0.0
    refits: int = 1
    in_turn: InTurn | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole_number(self.samples, "samples", "the number of calibration samples")
        check_whole_number(self.mc_samples, "mc_samples", "the number of GGN samples per input")
        if self.refits != 0:
            check_whole_number(
                self.refits, "refits", "0 for no refit, else its number of steps", most=1000
            )
        _check_share(self.keep_per_stage, "keep_per_stage")
        _check_share(self.held_back, "held_back")
        if not self.dampings:
            raise WoodburyError("dampings is empty: give at least one damping.")
        for damping in self.dampings:
            check_damping(damping)


def _check_share(share: float, name: str) -> None:
    if not 0 <= share < 1:
        raise WoodburyError(f"{name} is {share}: it is a fraction and must lie in [0, 1).")


quick = Effort(1000, 1, 0.0, in_turn=InTurn(1.0))
"""One layer after the other, or one stage: seconds on a small network."""


standard = Effort(1000, 1, 0.66, in_turn=InTurn())
"""One layer after the other up to 80 %, then stages that keep at least 84 % of the weights each.

Stages from the start that keep at least 66 % each where the layers cannot be pruned in turn.
"""


thorough = Effort(4000, 2, 0.85, (1e-5, 1e-4, 1e-3, 1e-2), 0.2, 2)
"""More samples, stages that keep at least 85 % each, a refit of two steps after each.

Each stage chooses its damping on a fifth of the samples.
"""
