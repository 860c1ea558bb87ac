"""What steps of least squares have reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Step(NamedTuple):
    """What one step has reached.

    Attributes:
        loss: ½|r|² at the weights reached.
        damping: λ of the step.
        decreased: Whether a step was taken; False where none decreases the loss.
    """

    loss: float
    damping: float
    decreased: bool


@dataclass(frozen=True)
class LeastSquaresResult:
    """What `least_squares` has reached.

    Attributes:
        loss: Half the weighted mean square of the residuals, at the end.
        losses: The loss before the first step and after each.
        seconds: Of the wall clock.
        reason: Why it ended, in words.
    """

    loss: float
    losses: tuple[float, ...]
    seconds: float
    reason: str

    @property
    def steps(self) -> int:
        """Steps that were taken."""
        return len(self.losses) - 1

    def __repr__(self) -> str:
        """One line."""
        reached = f"loss {self.loss:.3g} after {self.steps} steps in {self.seconds:.1f} s"
        return f"{reached}: {self.reason}"
