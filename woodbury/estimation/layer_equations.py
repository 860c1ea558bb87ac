"""Normal equations of every layer: least squares between the layers' outputs in two networks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.limits import Limits
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import samples_in
from woodbury.model.hooks import ForwardHook, forward_hooks, layer_input
from woodbury.model.layers import MatrixLayer, by_position, known_layers, patches
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.spread import drawn_at_once
from woodbury.monitor import report

POSITIONS = 16
"""Positions per sample, at most: a thousand samples of so many determine a few hundred inputs."""


MANY_POSITIONS = 2**20
"""More positions than a layer draws for the samples of one run, so that runs have other seeds."""


class RowEquations(NamedTuple):
    """The normal equations of some kept weights of one row of a layer's weight  (eq. 64).

    Attributes:
        moments: S_KK (k, k), the second moments of their inputs.
        cross_moments: c_K (k,), of their inputs with what the row's output lacks.
    """

    moments: Tensor
    cross_moments: Tensor


@dataclass
class LayerFit:
    """The normal equations of one layer, summed over samples and positions  (eq. 64).

    Attributes:
        inputs: (i, i) float64, Σ a aᵀ with a the inputs in the network that is fitted.
        cross_moment: (i, o) float64, Σ a (y⁰ − y)ᵀ with y its outputs and y⁰ those of the goal.
        positions: How many were summed.
    """

    inputs: Tensor
    cross_moment: Tensor
    positions: int = 0

    @property
    def size(self) -> float:
        """The mean square of an input."""
        return float(self.inputs.diagonal().mean()) / self.positions

    def of(self, output: int, kept: Tensor) -> RowEquations:
        """The equations of one output.

        Args:
            output: Its index, which is that of a row of the weight.
            kept: (k,) int64, the inputs whose weights are kept.

        Returns:
            Means over the positions.
        """
        moments = self.inputs[kept][:, kept] / self.positions
        return RowEquations(moments, self.cross_moment[kept, output] / self.positions)

    @classmethod
    def empty_for(cls, layer: MatrixLayer) -> LayerFit:
        """The equations before the first position."""
        outputs = layer.weight.shape[0]
        inputs = layer.weight[0].numel()
        zeros = partial(torch.zeros, dtype=torch.float64, device=layer.weight.device)
        return cls(zeros(inputs, inputs), zeros(inputs, outputs))

    def add(self, layer: MatrixLayer, given: Tensor, output: Tensor, goal: GoalOutput) -> None:
        """Add one use of the layer.

        Args:
            layer: The layer.
            given: Its input.
            output: Its output.
            goal: The goal's output at the same use.
        """
        drawn = goal.drawn.to(output.device)
        lacking = goal.values - by_position(layer, output)[:, drawn]
        start = 0
        for chunk in patches(layer, given, drawn):  # (c, T, i)
            flat = chunk.flatten(0, 1)
            wanted = lacking[start : start + len(chunk)].flatten(0, 1).to(flat.dtype)
            self.inputs += flat.T @ flat
            self.cross_moment += flat.T @ wanted
            self.positions += len(flat)
            start += len(chunk)

    def over_ranks(self) -> LayerFit:
        """The equations summed over all ranks."""
        ranks = Ranks.current()
        if ranks.size == 1:
            return self
        sums = ranks.sum(self.inputs), ranks.sum(self.cross_moment)
        return LayerFit(*sums, ranks.total(self.positions))


class GoalOutput(NamedTuple):
    """The output of one use of a layer in the goal's network, at some positions.

    Attributes:
        shape: Of the whole output.
        drawn: The indices of the positions.
        values: (b, T, o) at these.
    """

    shape: torch.Size
    drawn: Tensor
    values: Tensor


class LayerFits(NamedTuple):
    """What one pass through the network that is fitted has shown.

    Attributes:
        equations: Parameter name -> the equations of its layer.
        outputs: Of the network, (b, …) for each batch.
    """

    equations: dict[str, LayerFit]
    outputs: list[Tensor]


@dataclass(frozen=True, eq=False)
class LayerGoals:
    """What every layer of the goal's network gives, for one batch of samples after the other.

    It holds `POSITIONS` positions of each sample, so that the goal's network is run once for all
    stages.

    Attributes:
        batches: For each batch parameter name -> the outputs of its layer's uses.
        samples: How many samples they are of.
    """

    batches: list[dict[str, list[GoalOutput]]]
    samples: int

    @classmethod
    @torch.no_grad()
    def of(cls, goal: Objective, samples: int) -> LayerGoals:
        """Run the goal's network.

        Args:
            goal: The network, and the data.
            samples: How many, from the first.
        """
        batches = []
        positions: dict[str, int] = defaultdict(int)
        at_once = drawn_at_once(Limits.current().layer_samples)
        ranks = Ranks.current()
        for inputs, _ in goal.batches.in_batches(at_once, samples):
            if not ranks.is_alone:  # so that the positions depend on the samples alone
                run = len(batches) * ranks.size + ranks.rank
                positions = defaultdict(lambda first=run * MANY_POSITIONS: first)
            outputs: dict[str, list[GoalOutput]] = {}

            def record(
                name: str,
                layer: MatrixLayer,
                given: Tensor,
                output: Tensor,
                outputs: dict[str, list[GoalOutput]] = outputs,
                positions: dict[str, int] = positions,
            ) -> None:
                by_place = by_position(layer, output)
                drawn = _drawn(by_place.shape[1], positions[name]).to(output.device)
                # A copy, as an in-place activation may follow.
                values = by_place[:, drawn].clone()
                outputs.setdefault(name, []).append(GoalOutput(output.shape, drawn, values))
                positions[name] += len(values) * len(drawn)

            _run_noting(goal, inputs, record)
            batches.append(outputs)
        return cls(batches, samples)

    @torch.no_grad()
    def fits(self, objective: Objective) -> LayerFits:
        """The normal equations of every layer towards this goal  (eq. 64).

        No label is read. Layers other than nn.Linear and ungrouped nn.Conv2d are left out, as are
        those that the two networks use differently.

        Args:
            objective: The network that is fitted, at its weights, and the data.

        Returns:
            The equations, for the weights in the space, and the outputs of the network.

        Raises:
            WoodburyError: If inputs or outputs of a layer are not finite; its weight is named.
        """
        fits: dict[str, LayerFit] = {}
        outputs = []
        mismatched: set[str] = set()
        done = 0
        size = drawn_at_once(Limits.current().layer_samples)
        batches = objective.batches.in_batches(size, self.samples)
        for (inputs, _), goal in zip(batches, self.batches, strict=True):
            output, differing = _accumulate(fits, objective, goal, inputs)
            outputs.append(objective.likelihood.output_tensor(output))
            mismatched |= differing
            done += samples_in(inputs)
            report("samples through the layers", done, objective.batches.own(self.samples))
        fits = {name: fit.over_ranks() for name, fit in fits.items() if name not in mismatched}
        for name, fit in fits.items():
            if not bool(
                torch.isfinite(fit.inputs).all() and torch.isfinite(fit.cross_moment).all()
            ):
                raise WoodburyError(
                    f"The layer of {name!r} has inputs or outputs that are not finite: "
                    "look at the data."
                )
        return LayerFits(fits, outputs)


def _drawn(count: int, seed: int) -> Tensor:
    """The indices of `POSITIONS` of so many positions, others for other samples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:POSITIONS]


def layer_fits(objective: Objective, goal: Objective, samples: int) -> dict[str, LayerFit]:
    """The normal equations of every layer between two networks of one architecture  (eq. 64).

    Args:
        objective: The network that is fitted, at its weights, and the data.
        goal: The network whose outputs are the goal.
        samples: How many, from the first.

    Returns:
        Parameter name -> the equations of its layer.

    Raises:
        WoodburyError: As `LayerGoals.fits`.
    """
    goals = LayerGoals.of(replace(goal, batches=objective.batches), samples)
    return goals.fits(objective).equations


Note = Callable[[str, MatrixLayer, Tensor, Tensor], None]
"""note(the weight's name, layer, input, output): called at every use of a layer."""


def _accumulate(
    fits: dict[str, LayerFit],
    objective: Objective,
    goal: dict[str, list[GoalOutput]],
    inputs: Any,
) -> tuple[Any, set[str]]:
    """Add one batch: the output, and the weights whose layers the two networks use differently."""
    waiting = {name: iter(outputs) for name, outputs in goal.items()}
    mismatched: set[str] = set()

    def fit(name: str, layer: MatrixLayer, given: Tensor, output: Tensor) -> None:
        told = next(waiting[name], None) if name in waiting else None
        if told is not None and told.shape == output.shape:
            local = fits.setdefault(name, LayerFit.empty_for(layer))
            local.add(layer, given, output, told)
        else:
            mismatched.add(name)

    return _run_noting(objective, inputs, fit), mismatched


def _run_noting(objective: Objective, inputs: Any, note: Note) -> Any:
    """The output of one forward pass that notes each use of a layer with a weight in the space."""

    def hook_of(name: str) -> ForwardHook:
        def hook(
            layer: MatrixLayer,
            positional: tuple[Any, ...],
            keywords: dict[str, Any],
            output: Tensor,
        ) -> None:
            given = layer_input(positional, keywords)
            if given.ndim >= 2 and (isinstance(layer, nn.Linear) or given.ndim == 4):
                note(name, layer, given.detach(), output.detach())

        return hook

    layers = known_layers(objective.model, objective.space.shapes)
    with (
        forward_hooks((layer, hook_of(name)) for name, layer in layers),
        eval_mode(objective.model),
    ):
        return objective.forward(objective.parameters, inputs)
