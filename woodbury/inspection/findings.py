"""What is inspected, and all that is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError, WrongType, check_whole_number
from woodbury.fisher.checks import check_damping
from woodbury.inspection.choices import check_sparsities
from woodbury.inspection.curvatures import COUNT
from woodbury.inspection.direction import LossAlong
from woodbury.inspection.forecast_calibration import SPARSITIES
from woodbury.inspection.forecast_report import ForecastCalibration
from woodbury.inspection.hessian_comparison import HessianComparison
from woodbury.inspection.sensitivity_report import Sensitivity
from woodbury.pruning.presets import standard

DAMPING = standard.dampings[0]
"""That of `prune` by default."""


@dataclass(frozen=True)
class Settings:
    """What is inspected.

    Attributes:
        sparsity: Removed ÷ all weights, of the step and of the settings that are tried.
        count: Samples that each curvature is estimated from, at most.
        damping: Added to the diagonal.
        sparsities: Where the forecast is tried.
        seed: Of all that is drawn.

    Raises:
        WoodburyError: If a field is out of its range.
    """

    sparsity: float = 0.5
    count: int = COUNT
    damping: float = DAMPING
    sparsities: tuple[float, ...] = SPARSITIES
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.sparsity, bool) or not isinstance(self.sparsity, (int, float)):
            raise WrongType(
                f"sparsity is a {type(self.sparsity).__name__}: give a number in (0, 1)."
            )
        if not 0 < self.sparsity < 1:
            raise WoodburyError(
                f"sparsity is {self.sparsity}: give the share of weights to remove, in (0, 1)."
            )
        check_whole_number(self.count, "count", "the number of samples", least=8)
        check_damping(self.damping)
        check_sparsities(self.sparsities)


@dataclass(frozen=True)
class Inspection:
    """What is known of a network's curvature.

    Attributes:
        weights: That are inspected.
        count: Samples that each curvature was estimated from.
        samples_held_back: That the loss was measured on.
        along: The loss along the step of magnitude pruning, and along that of the joint update.
        hessian: The estimates beside the exact Hessian; None where there is none.
        sensitivity: What changes with the settings.
        forecast: Forecasts beside measured losses.
        left_out: What could not be computed -> why.
    """

    weights: int
    count: int
    samples_held_back: int
    along: tuple[LossAlong, ...] = ()
    hessian: HessianComparison | None = None
    sensitivity: Sensitivity | None = None
    forecast: ForecastCalibration | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdicts(self) -> dict[str, str]:
        """Question -> its answer in words."""
        found = {}
        for step in self.along:
            found[f"along {step.direction}"] = step.verdict
        if self.hessian is not None:
            found["Hessian"] = self.hessian.verdict
        if self.sensitivity is not None:
            found |= self.sensitivity.verdicts
        if self.forecast is not None:
            found["forecast"] = self.forecast.verdict
            if self.forecast.verdict_on_magnitude:
                found["magnitude"] = self.forecast.verdict_on_magnitude
        return found

    @property
    def verdict(self) -> str:
        """All answers, one in each line."""
        return "\n".join(self.verdicts.values())

    def __repr__(self) -> str:
        """One line."""
        return f"Inspection(weights={self.weights}, count={self.count})"

    @property
    def is_complete(self) -> bool:
        """Whether all questions were asked."""
        return self.sensitivity is not None and self.forecast is not None
