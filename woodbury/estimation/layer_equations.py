"""Normal equations of every layer: least squares between the layers' outputs in two networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.limits import Limits
from woodbury.model.batches import samples_in
from woodbury.model.hooks import ForwardHook, forward_hooks, layer_input
from woodbury.model.layers import MatrixLayer, by_position, known_layers, patches
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.monitor import report

POSITIONS = 64
"""Positions per sample, at most: a thousand samples of so many determine a few hundred inputs."""


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

    def add(self, layer: MatrixLayer, given: Tensor, lacking: Tensor) -> None:
        """Add one use of the layer.

        Args:
            layer: The layer.
            given: Its input.
            lacking: The goal's output minus its own, of the output's shape.
        """
        lacking = by_position(layer, lacking)  # (b, T, o)
        drawn = self._drawn(lacking.shape[1]).to(lacking.device)
        lacking = lacking[:, drawn]
        start = 0
        for chunk in patches(layer, given, drawn):  # (c, T, i)
            flat = chunk.flatten(0, 1)
            goal = lacking[start : start + len(chunk)].flatten(0, 1).to(flat.dtype)
            self.inputs += flat.T @ flat
            self.cross_moment += flat.T @ goal
            self.positions += len(flat)
            start += len(chunk)

    def _drawn(self, count: int) -> Tensor:
        """The indices of `POSITIONS` of so many positions, others for other samples."""
        generator = torch.Generator().manual_seed(self.positions)
        return torch.randperm(count, generator=generator)[:POSITIONS]


@torch.no_grad()
def layer_fits(objective: Objective, goal: Objective, samples: int) -> dict[str, LayerFit]:
    """The normal equations of every layer between two networks of one architecture  (eq. 64).

    No label is read. Layers other than nn.Linear and ungrouped nn.Conv2d are left out, as are
    those that the two networks use differently.

    Args:
        objective: The network that is fitted, at its weights, and the data.
        goal: The network whose outputs are the goal.
        samples: How many, from the first.

    Returns:
        Parameter name -> the equations of its layer, for the weights in the space.

    Raises:
        WoodburyError: If inputs or outputs of a layer are not finite; its weight is named.
    """
    fits: dict[str, LayerFit] = {}
    mismatched: set[str] = set()
    done = 0
    for inputs, _ in objective.batches.in_batches(Limits.current().layer_samples, samples):
        mismatched |= _accumulate(fits, objective, goal, inputs)
        done += samples_in(inputs)
        report("samples through the layers", done, samples)
    fits = {name: fit for name, fit in fits.items() if name not in mismatched}
    for name, fit in fits.items():
        if not bool(torch.isfinite(fit.inputs).all() and torch.isfinite(fit.cross_moment).all()):
            raise WoodburyError(
                f"The layer of {name!r} has inputs or outputs that are not finite: "
                "look at the data."
            )
    return fits


Note = Callable[[str, MatrixLayer, Tensor, Tensor], None]
"""note(the weight's name, layer, input, output): called at every use of a layer."""


def _accumulate(
    fits: dict[str, LayerFit], objective: Objective, goal: Objective, inputs: Any
) -> set[str]:
    """Add one batch; the names of the weights whose layers the two networks use differently."""
    goal_outputs: dict[str, list[Tensor]] = {}
    mismatched: set[str] = set()

    def record_goal(name: str, layer: MatrixLayer, given: Tensor, output: Tensor) -> None:
        # A copy, as an in-place activation may follow.
        goal_outputs.setdefault(name, []).append(output.clone())

    def fit(name: str, layer: MatrixLayer, given: Tensor, output: Tensor) -> None:
        waiting = goal_outputs.get(name)
        if waiting and waiting[0].shape == output.shape:
            local = fits.setdefault(name, LayerFit.empty_for(layer))
            local.add(layer, given, waiting.pop(0) - output)
        else:
            mismatched.add(name)

    _run_noting(goal, inputs, record_goal)
    _run_noting(objective, inputs, fit)
    return mismatched


def _run_noting(objective: Objective, inputs: Any, note: Note) -> None:
    """One forward pass that notes every use of a known layer whose weight is in the space."""

    def hook_of(name: str) -> ForwardHook:
        def hook(
            layer: MatrixLayer,
            positional: tuple[Any, ...],
            keywords: dict[str, Any],
            output: Tensor,
        ) -> None:
            given = layer_input(positional, keywords)
            if given.ndim >= 2 and (isinstance(layer, nn.Linear) or given.ndim == 4):
                note(name, layer, given, output)

        return hook

    layers = known_layers(objective.model, objective.space.shapes)
    with (
        forward_hooks((layer, hook_of(name)) for name, layer in layers),
        eval_mode(objective.model),
    ):
        objective.forward(objective.parameters, inputs)
