"""Least squares of one layer after the other: what its outputs lack, by its present inputs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.row_layers import (
    RowLayout,
    draw_positions,
    has_factors,
    inputs_at,
    outputs_at,
)
from woodbury.limits import Limits
from woodbury.linalg.precision import at_least_float32
from woodbury.linalg.ranks import Ranks
from woodbury.model.hooks import ForwardHook, forward_hooks, layer_input
from woodbury.model.layers import parameter_owners
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.spread import drawn_at_once

POSITIONS = 64
"""Positions per sample that are compared, at most."""


@dataclass
class LayerProblem:
    """The normal equations of one layer, for all of its rows  (eq. 64).

    Attributes:
        inputs: (g·b, s, s), Σ a aᵀ with a the inputs in the network that is fitted.
        lacking: (o, i), Σ (y⁰ − y) aᵀ with y its outputs and y⁰ those of the goal.
        layout: How the weight is a matrix of rows.
        positions: How many were summed.
    """

    inputs: Tensor
    lacking: Tensor
    layout: RowLayout
    positions: int = 0


def layers_in_order(objective: Objective) -> list[str]:
    """The weights of the space whose layers have factors, as the model calls them.

    Args:
        objective: The network and its samples, of which one is read.

    Returns:
        Parameter names; those of embeddings, and of layers that are not called, are left out.
    """
    called: dict[str, None] = {}

    def hook_of(name: str) -> ForwardHook:
        return lambda module, positional, keywords, output: called.setdefault(name)

    with Ranks.apart():  # any sample will do
        first = list(objective.batches.in_batches(1, 1))
    for inputs, _ in first:
        hooks = [(module, hook_of(name)) for name, module in factored_layers(objective)]
        with torch.no_grad(), eval_mode(objective.model), forward_hooks(hooks):
            objective.forward(objective.parameters, inputs)
    return list(called)


@torch.no_grad()
def layer_problems(
    objective: Objective, goal: Objective, names: Collection[str], samples: int, max_columns: int
) -> dict[str, LayerProblem]:
    """The normal equations of some layers between two networks of one architecture  (eq. 64).

    Args:
        objective: The network that is fitted, at its weights, and the data.
        goal: The network whose outputs are the goal.
        names: The weights of the layers.
        samples: How many, from the first.
        max_columns: Columns that interact at most.

    Returns:
        Weight -> its equations.

    Raises:
        WoodburyError: If inputs or outputs of a layer are not finite; its weight is named.
    """
    pass_ = _Comparison(objective, goal, names, max_columns)
    at_once = drawn_at_once(Limits.current().layer_samples // 4)
    for inputs, _ in objective.batches.in_batches(at_once, samples):
        pass_.add(inputs)
    pass_.sum_over_ranks()
    for name, problem in pass_.problems.items():
        if not bool(torch.isfinite(problem.inputs).all() & torch.isfinite(problem.lacking).all()):
            raise WoodburyError(
                f"The layer of {name!r} has inputs or outputs that are not finite: "
                "look at the data."
            )
    return pass_.problems


class _Comparison:
    """The sums over the batches, and the outputs of the goal that wait for the other network."""

    def __init__(
        self, objective: Objective, goal: Objective, names: Collection[str], max_columns: int
    ) -> None:
        self.objective = objective
        self.goal = goal
        self.names = names
        self.problems: dict[str, LayerProblem] = {}
        self.max_columns = max_columns
        self.batches = 0

    def add(self, inputs: Any) -> None:
        """Add one batch."""
        waiting: dict[str, list[Tensor]] = {}
        self.batches += 1

        def record(name: str) -> ForwardHook:
            def hook(module: Any, positional: Any, keywords: Any, output: Tensor) -> None:
                earlier = waiting.setdefault(name, [])
                drawn = self._drawn(module, layer_input(positional, keywords), len(earlier))
                earlier.append(outputs_at(module, output.detach(), drawn))

            return hook

        uses: dict[str, int] = {}

        def compare(name: str) -> ForwardHook:
            def hook(module: Any, positional: Any, keywords: Any, output: Tensor) -> None:
                given = layer_input(positional, keywords).detach()
                use = uses.get(name, 0)
                uses[name] = use + 1
                if use >= len(waiting.get(name, ())):
                    return  # the other network does not use it so
                drawn = self._drawn(module, given, use)
                lacking = waiting[name][use] - outputs_at(module, output.detach(), drawn)
                self._add(name, module, given, drawn, lacking)

            return hook

        for network, hook_of in ((self.goal, record), (self.objective, compare)):
            layers = [pair for pair in factored_layers(network) if pair[0] in self.names]
            hooks = [(module, hook_of(name)) for name, module in layers]
            with eval_mode(network.model), forward_hooks(hooks):
                network.forward(network.parameters, inputs)

    def _drawn(self, module: nn.Module, given: Tensor, use: int) -> Tensor:
        """The same positions in both networks, others in other batches and uses."""
        ranks = Ranks.current()
        batch = (self.batches - 1) * ranks.size + ranks.rank + 1
        generator = torch.Generator().manual_seed(1000 * batch + use)
        return draw_positions(module, given, POSITIONS, generator)

    def sum_over_ranks(self) -> None:
        """Make the sums those of all ranks."""
        ranks = Ranks.current()
        if ranks.size == 1:
            return
        for problem in (self.problems[name] for name in sorted(self.problems)):
            problem.inputs = ranks.sum(problem.inputs)
            problem.lacking = ranks.sum(problem.lacking)
            problem.positions = ranks.total(problem.positions)

    def _add(self, name: str, module: Any, given: Tensor, drawn: Tensor, lacking: Tensor) -> None:
        if name not in self.problems:
            layout = RowLayout.of(module, module.weight)
            like = at_least_float32(self.objective.weights[:0])
            inputs = layout.empty(self.max_columns, like)
            self.problems[name] = LayerProblem(
                inputs, like.new_zeros(layout.rows, layout.columns), layout
            )
        problem = self.problems[name]
        start = 0
        for chunk in inputs_at(module, given, drawn):
            goals = lacking[start : start + len(chunk)]
            problem.layout.add(problem.inputs, chunk)
            problem.layout.add_cross(problem.lacking, chunk, goals)
            start += len(chunk)
        problem.positions += start


def factored_layers(objective: Objective) -> list[tuple[str, nn.Module]]:
    """The layers of the space that multiply their input by their weight, with its name."""
    return [
        (owner.names["weight"], owner.module)
        for owner in parameter_owners(objective.model, objective.space.shapes)
        if "weight" in owner.names
        and has_factors(owner.module)
        and not isinstance(owner.module, nn.Embedding)
    ]
