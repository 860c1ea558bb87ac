"""One layer after the other in a single pass: each weight is replaced as the samples come to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.ggn import directions_after
from woodbury.estimation.layer_problems import factored_layers
from woodbury.estimation.row_layers import RowLayout, draw_positions, inputs_at, outputs_at
from woodbury.linalg.conversion import seeded
from woodbury.linalg.precision import at_least_float32
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import samples_in
from woodbury.model.hooks import ForwardHook, forward_hooks, layer_input
from woodbury.model.likelihood import Likelihood
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.spread import runs_of

BITS = 20
"""Binary digits of the equations that ranks use, relative to the mean squares that they multiply.

Sums over other numbers of ranks differ in the last digits of float64. The weights that are kept may
hang on any digit, and must not differ.
"""


class LayerEquations(NamedTuple):
    """The least squares of one layer towards its outputs in the dense network  (eq. 93).

    Attributes:
        moments: S (g, i, i), the means of a aᵀ, a the inputs that the layers before it leave now.
        cross: C (g, r, i), the means of y⁰ aᵀ, y⁰ the dense outputs without the bias.
        weight: (g, r, i), the layer's own.
        layout: How these are stored.
    """

    moments: Tensor
    cross: Tensor
    weight: Tensor
    layout: RowLayout


Solve = Callable[[str, LayerEquations], Tensor]
"""solve(the weight's name, its equations) -> the weight that takes its place, as it is stored."""


class Outputs(NamedTuple):
    """What the network returned for all samples of this rank, before and after.

    Attributes:
        dense: At the objective's weights.
        reached: With every layer replaced.
        target: The labels, or None.
    """

    dense: Any
    reached: Any
    target: Any

    def mean_square(self, likelihood: Likelihood) -> float:
        """The mean squared difference of the outputs' elements."""
        dense, reached = map(likelihood.output_tensor, (self.dense, self.reached))
        return _mean_over_ranks((reached - dense).double().square())

    def distance(self, likelihood: Likelihood, mc_samples: int = 1) -> float | None:
        """Half the mean squared difference along random directions of the output  (eq. 61).

        Args:
            likelihood: Of the objective.
            mc_samples: Random directions of each sample.

        Returns:
            To second order the KL divergence; None where the likelihood has no directions.
        """
        if likelihood.directions is None:
            return None
        dense, reached = map(likelihood.output_tensor, (self.dense, self.reached))
        generator = seeded(0, dense.device)
        directions = directions_after(
            0, len(dense), likelihood, self.dense, self.target, mc_samples, generator
        )
        lacking = (reached - dense).double().reshape(len(dense), -1, 1)
        flat = directions.double().reshape(len(dense), mc_samples, -1)
        return 0.5 * _mean_over_ranks((flat @ lacking).square())


def _mean_over_ranks(values: Tensor) -> float:
    sums = torch.tensor([float(values.sum()), values.numel()], dtype=torch.float64)
    total, count = Ranks.current().sum(sums).tolist()
    return total / count


@torch.no_grad()
def replace_in_turn(
    objective: Objective, names: Collection[str], samples: int, positions: int, solve: Solve
) -> Outputs:
    """Replace one layer's weight after the other, in the order in which the samples come to them.

    All samples go through the network together: once through the dense one, whose outputs are
    kept at some positions, and once more, where each layer is solved just before it is used, by
    what the replaced layers before it have left. A layer that is used twice is solved at its first
    use. No label is read.

    Args:
        objective: The dense network and its samples, which must have one shape.
        names: The weights of the layers, as `factored_layers` names them.
        samples: How many, from the first.
        positions: Of each sample that are compared, at most.
        solve: Called once for each layer that is used; on several ranks by each of them, with the
            same equations.

    Returns:
        The outputs before and after; the model is untouched.

    Raises:
        WoodburyError: If the samples cannot be joined, or inputs or outputs of a layer are not
            finite.
    """
    own = objective.batches.own(samples)
    batches = list(objective.batches.in_batches(max(1, own), samples))
    if len(batches) != 1:
        raise WoodburyError(
            f"One layer after the other takes all samples at once, and they come in {len(batches)} "
            "shapes: pad them to one, or take another recipe."
        )
    inputs, target = batches[0]
    turn = _Turn(objective, samples_in(inputs), positions, solve)
    return Outputs(*turn.run(inputs, frozenset(names)), target)


class _Turn:
    """What waits between the two passes, and the weights of the second."""

    def __init__(self, objective: Objective, samples: int, positions: int, solve: Solve) -> None:
        self.objective = objective
        self.samples = samples
        self.positions = positions
        self.solve = solve
        self.goals: dict[str, Tensor] = {}
        self.parameters = {name: own.clone() for name, own in objective.parameters.items()}

    def run(self, inputs: Any, names: Collection[str]) -> tuple[Any, Any]:
        """Both passes, and what the network returned in each."""
        objective = self.objective
        layers = [pair for pair in factored_layers(objective) if pair[0] in names]
        with eval_mode(objective.model):
            with forward_hooks((module, self._note(name)) for name, module in layers):
                dense = objective.forward(objective.parameters, inputs)
            with ExitStack() as stack:
                for name, module in layers:
                    hook = self._before(name)
                    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
                return dense, objective.forward(self.parameters, inputs)

    def _note(self, name: str) -> ForwardHook:
        def hook(module: Any, positional: Any, keywords: Any, output: Tensor) -> None:
            if name in self.goals:
                return
            given, goals = layer_input(positional, keywords), output.detach()
            bias = getattr(module, "bias", None)
            found = [
                outputs_at(module, goals[run], self._drawn(module, given[run]))
                for run in self._runs(given)
            ]
            goal = torch.cat(found) if len(found) > 1 else found[0]
            self.goals[name] = goal if bias is None else goal - bias

        return hook

    def _before(self, name: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, positional: Any, keywords: Any) -> None:
            goal = self.goals.pop(name, None)
            if goal is None:  # its second use, or one that the dense network has not
                return
            layout = RowLayout.of(module, module.weight)
            given = layer_input(positional, keywords).detach()
            equations = self._equations(name, module, layout, given, goal)
            place = self.parameters[name]
            place.copy_(self.solve(name, equations).view(place.shape))

        return hook

    def _equations(
        self, name: str, module: nn.Module, layout: RowLayout, given: Tensor, goal: Tensor
    ) -> LayerEquations:
        groups, columns = layout.groups, layout.columns
        like = at_least_float32(self.objective.weights[:0])
        moments = like.new_zeros(groups, columns, columns, dtype=torch.float64)
        cross = like.new_zeros(layout.rows, columns, dtype=torch.float64)
        start = 0
        for run in self._runs(given):
            here = torch.zeros_like(moments, dtype=like.dtype)
            there = torch.zeros_like(cross, dtype=like.dtype)
            for chunk in inputs_at(module, given[run], self._drawn(module, given[run])):
                layout.add(here, chunk)
                layout.add_cross(there, chunk, goal[start : start + len(chunk)])
                start += len(chunk)
            moments += here
            cross += there
        ranks = Ranks.current()
        count = max(1, ranks.total(start))
        moments, cross = ranks.sum(moments).div_(count), ranks.sum(cross).div_(count)
        if not bool(torch.isfinite(moments).all() & torch.isfinite(cross).all()):
            raise WoodburyError(
                f"The layer of {name!r} has inputs or outputs that are not finite: "
                "look at the data."
            )
        cross = cross.view(groups, -1, columns)
        if not ranks.is_alone:
            moments, cross = _rounded(moments, cross)
        weight = layout.by_group(self.parameters[name])
        return LayerEquations(moments.to(like.dtype), cross.to(like.dtype), weight, layout)

    def _runs(self, given: Tensor) -> Iterator[slice]:
        """Where the runs of samples lie in a layer's input, if it has as many entries of each."""
        entries, rest = divmod(len(given), self.samples)
        if rest or not entries:
            yield slice(None)
            return
        for run in runs_of(0, self.samples):
            yield slice(entries * run.start, entries * run.stop)

    def _drawn(self, module: nn.Module, given: Tensor) -> Tensor:
        """The same positions in both passes."""
        return draw_positions(module, given, self.positions, torch.Generator().manual_seed(0))


def _rounded(moments: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Moments (g, i, i) and cross products (g, r, i) of `BITS` digits, in powers of two."""
    scale = _power_of_two(moments.diagonal(dim1=1, dim2=2).sqrt())
    outer = scale[:, :, None] * scale[:, None, :]
    by_input = cross / scale[:, None, :]
    of_row = _power_of_two(by_input.abs().amax(2, keepdim=True))
    unit = 2.0**-BITS
    rounded = (by_input / (of_row * unit)).round_().mul_(of_row * unit)
    return (moments / (outer * unit)).round_().mul_(outer * unit), rounded * scale[:, None, :]


def _power_of_two(values: Tensor) -> Tensor:
    """The next smaller powers of two; 1 for 0 and what is not finite."""
    usable = torch.where(values.isfinite() & (values > 0), values, torch.ones_like(values))
    return usable.log2().floor_().exp2_()
