"""Along a step: the measured loss against the local quadratic model of each curvature."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import mean_gradient
from woodbury.estimation.hessian_products import hessian_products
from woodbury.fisher.base import Fisher
from woodbury.inspection.agreement import in_digits, last_within_factor
from woodbury.inspection.curvatures import WORDS, Curvatures, without_damping
from woodbury.linalg.conversion import as_tensor
from woodbury.model.batches import Batch, Samples, samples_in
from woodbury.model.objective import Objective
from woodbury.monitor import report

FRACTIONS = tuple(eighths / 8 for eighths in range(11))
"""Of the step at which the loss is measured: from none to a quarter more than all of it."""


@dataclass(frozen=True)
class LossAlong:
    """The loss along a step δ, and what quadratic models say of it  (eq. 78).

    Attributes:
        direction: What the step is.
        samples: That the loss is measured on.
        dense: The loss at no step.
        fractions: t, of the step.
        measured: L(w + tδ) − L(w) at each.
        slope: gᵀδ, g the gradient of the loss on these samples.
        hessian: δᵀHδ, H the exact Hessian of the same loss; None where there is none.
        curvatures: Name -> δᵀCδ of each estimate, without damping.
        scales: Name -> the factor that brings the estimate nearest to the Hessian over all
            directions; empty where it is not known.
    """

    direction: str
    samples: int
    dense: float
    fractions: tuple[float, ...]
    measured: tuple[float, ...]
    slope: float
    hessian: float | None
    curvatures: Mapping[str, float]
    scales: Mapping[str, float] = field(default_factory=dict)

    def predicted(self, name: str, *, scaled: bool = False) -> tuple[float, ...]:
        """½ t² δᵀCδ at each fraction: what pruning goes by, which takes the slope as 0.

        Args:
            name: Of the curvature.
            scaled: Whether it is multiplied by its scale.

        Raises:
            WoodburyError: If there is no such curvature, or no scale.
        """
        known = self.scales if scaled else self.curvatures
        if name not in known or name not in self.curvatures:
            what = "scale" if scaled else "curvature"
            raise WoodburyError(f"There is no {what} {name!r}: take one of {', '.join(known)}.")
        factor = self.scales[name] if scaled else 1.0
        return tuple(0.5 * t**2 * factor * self.curvatures[name] for t in self.fractions)

    @property
    def taylor(self) -> tuple[float, ...] | None:
        """T gᵀδ + ½ t² δᵀHδ at each fraction, exact to second order; None without a Hessian."""
        if self.hessian is None:
            return None
        return tuple(t * self.slope + 0.5 * t**2 * self.hessian for t in self.fractions)

    @property
    def quadratic_up_to(self) -> float | None:
        """The fraction up to which the exact second order is within a factor of two of the loss.

        None where it is not at the first fraction, or there is no Hessian.
        """
        taylor = self.taylor
        if taylor is None:
            return None
        return last_within_factor(self.fractions, taylor, self.measured, self.dense)

    @property
    def ratios(self) -> dict[str, float]:
        """Name -> δᵀCδ ÷ δᵀHδ; empty where the Hessian is unknown or not positive along δ."""
        if self.hessian is None or self.hessian <= 0:
            return {}
        return {name: value / self.hessian for name, value in self.curvatures.items()}

    @property
    def verdict(self) -> str:
        """What it says, in one or two sentences."""
        rise = self._at_full_step()
        moves = "rises" if rise >= 0 else "falls"
        by = in_digits(abs(rise), ".3g")
        end = f"Along {self.direction} the loss {moves} by {by} at the full step"
        if self.hessian is None:
            said = ", ".join(
                f"{WORDS.get(name, name)} says {in_digits(0.5 * value, '.3g')}"
                for name, value in self.curvatures.items()
            )
            return f"{end}; {said}."
        up_to = self.quadratic_up_to
        reach = (
            "the exact second order is no guide at any length"
            if not up_to
            else f"the exact second order is within a factor of two up to {up_to:g} of the step"
        )
        if not self.ratios:
            return f"{end}; {reach}. The Hessian is not positive along it, and every estimate is."
        ratios = self.ratios
        best = min(ratios, key=lambda name: _distance(ratios[name]))
        worst = max(ratios, key=lambda name: _distance(ratios[name]))
        texts = {name: in_digits(ratio, "#.2g").rstrip(".") for name, ratio in ratios.items()}
        nearest = f"{WORDS.get(best, best)} has {texts[best]} times the Hessian's curvature"
        farthest = f", {WORDS.get(worst, worst)} {texts[worst]}" if worst != best else ""
        return f"{end}; {reach}. Along it {nearest}{farthest}."

    def _at_full_step(self) -> float:
        nearest = min(range(len(self.fractions)), key=lambda i: abs(self.fractions[i] - 1))
        return self.measured[nearest]


@checks_types
def loss_along(
    objective: Objective,
    held_back: Iterable[Batch],
    step: Tensor,
    curvatures: Curvatures,
    *,
    direction: str = "the step",
    fractions: Sequence[float] = FRACTIONS,
    scales: Mapping[str, float] | None = None,
    hessian: bool = True,
) -> LossAlong:
    """Measure the loss along a step, and compare it with the quadratic model of each curvature.

    Equation 78, as in figure 2 of Singh & Alistarh (2020).

    Args:
        objective: The network at the weights w where the step begins.
        held_back: Samples that the curvatures were not estimated from.
        step: δ (d,), such as what pruning does.
        curvatures: What `estimate_curvatures` gave.
        direction: What the step is, for the sentence.
        fractions: t, rising, from 0.
        scales: Name -> the factor between an estimate and the Hessian, as `compare_with_hessian`
            gives them; None for none.
        hessian: Whether the exact curvature along the step is computed too.

    Returns:
        The numbers and a verdict.

    Raises:
        WoodburyError: If the step does not fit, there are no samples, or the model cannot be
            differentiated twice and `hessian` is True.

    Example:
        >>> import torch
        >>> batches = [(torch.randn(16, 4), torch.arange(16) % 3)]
        >>> objective = Objective.from_model(torch.nn.Linear(4, 3), batches)
        >>> from woodbury.inspection import estimate_curvatures
        >>> curvatures = estimate_curvatures(objective, 16)
        >>> along = loss_along(objective, batches, -objective.weights, curvatures)
        >>> len(along.measured), along.measured[0]
        (11, 0.0)
    """
    (along,) = losses_along(
        objective,
        held_back,
        {direction: step},
        curvatures,
        fractions=fractions,
        scales=scales,
        hessian=hessian,
    )
    return along


def losses_along(
    objective: Objective,
    held_back: Iterable[Batch],
    steps: Mapping[str, Tensor],
    curvatures: Curvatures,
    *,
    fractions: Sequence[float] = FRACTIONS,
    scales: Mapping[str, float] | None = None,
    hessian: bool = True,
) -> tuple[LossAlong, ...]:
    """`loss_along` for several steps, whose slopes and Hessian are of one pass over the samples.

    Args:
        objective: As for `loss_along`.
        held_back: As for `loss_along`.
        steps: Direction -> δ (d,).
        curvatures: As for `loss_along`.
        fractions: As for `loss_along`.
        scales: As for `loss_along`.
        hessian: As for `loss_along`.

    Returns:
        What the loss does along each step.

    Raises:
        WoodburyError: As `loss_along`.
    """
    columns = torch.stack([_checked(step, objective) for step in steps.values()], 1)
    places = tuple(float(t) for t in fractions)
    if not places or not all(math.isfinite(t) for t in places):
        raise WoodburyError(f"fractions is {places}: give at least one finite number.")
    there = replace(objective, batches=Samples.of(held_back))
    samples = sum(samples_in(inputs) for inputs, _ in there.batches)
    if not samples:
        raise WoodburyError("No sample is held back: the loss along a step needs some.")
    dense = there.loss()
    measured: list[list[float]] = []
    for step in columns.mT:
        measured.append([])
        for t in places:
            loss = there.at(objective.weights + t * step).loss() if t else dense
            measured[-1].append(loss - dense if math.isfinite(loss) else math.inf)
            done = sum(map(len, measured))
            report("losses along a step", done, len(steps) * len(places))
    products = hessian_products(there, columns, samples) if hessian else None
    slope = mean_gradient(there)
    known = {name: by for name, by in (scales or {}).items() if name in curvatures.fishers}
    return tuple(
        LossAlong(
            direction=direction,
            samples=samples,
            dense=dense,
            fractions=places,
            measured=tuple(measured[i]),
            slope=_dot(columns[:, i], slope),
            hessian=None if products is None else _dot(columns[:, i], products[:, i]),
            curvatures=_forms(curvatures, columns[:, i]),
            scales=known,
        )
        for i, direction in enumerate(steps)
    )


def _checked(step: Tensor, objective: Objective) -> Tensor:
    """A step that fits, in the dtype of the weights."""
    step = as_tensor(step, "The step")
    objective.space.check_vector(step)
    if not bool(torch.isfinite(step).all()):
        raise WoodburyError("The step is not finite: give the difference of two sound networks.")
    return step.to(objective.weights)


def _forms(curvatures: Curvatures, step: Tensor) -> dict[str, float]:
    """δᵀCδ of each estimate, without damping."""
    return {name: _form(fisher, step) for name, fisher in curvatures.fishers.items()}


def _form(fisher: Fisher, step: Tensor) -> float:
    bare = without_damping(fisher)
    return bare.quadratic_form(step.to(bare.dtype))


def _dot(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double())


def _distance(ratio: float) -> float:
    """How far a ratio is from 1, as a factor."""
    return abs(math.log(ratio)) if ratio > 0 else math.inf
