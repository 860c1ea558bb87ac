"""ShareSearch: how many weights each layer keeps, chosen by short trials."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.estimation.layer_problems import factored_layers
from woodbury.estimation.layer_turns import Outputs
from woodbury.estimation.turn_costs import MOST_COLUMNS, turn_cost
from woodbury.io.representation import readable
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import row_bytes
from woodbury.model.batches import Batch, same_structure, samples_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.pruning.held_back import split_samples
from woodbury.pruning.layer_sequence import BY_MAGNITUDE, BY_SIZE, LayerSequence
from woodbury.pruning.pruned import Carried, Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.schedule import Targets

DIRECTIONS = 8
"""Random directions of each output that a trial is judged along."""

CLEARLY = 0.75
"""A later candidate must leave at most this share of the distance: trials differ by their samples.
"""


@dataclass(frozen=True)
class ShareSearch:
    """A `LayerSequence` whose shares are those that a short trial is best with.

    No share of the layers is the best for every network: nearly the same for all on ResNet-20,
    those of the largest weights on a perceptron (docs/log). Each candidate prunes once, on half of
    a few samples and without ADMM. The first one is taken, unless another leaves the outputs of the
    other half clearly nearer to the dense network's. No label is read.

    Attributes:
        sequence: What prunes; its own shares are not read.
        candidates: Shares to try, at least one.
        samples: Of a trial, both halves together.
        positions: Of each sample of a trial.

    Raises:
        WoodburyError: If there is no candidate, or a count is too small.

    Example:
        >>> import torch, woodbury
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
        >>> batches = [(torch.randn(60, 4), None)]
        >>> dense = woodbury.Objective.from_model(model, batches, space=space)
        >>> ShareSearch()(dense, 0.5).sparsity
        0.5
    """

    sequence: LayerSequence = field(default_factory=LayerSequence)
    candidates: tuple[Pruner, ...] = (BY_SIZE, BY_MAGNITUDE)
    samples: int = 256
    positions: int = 16

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.candidates:
            raise WoodburyError("candidates is empty: give at least one Pruner.")
        for candidate in self.candidates:
            replace(self.sequence, shares=candidate)  # which refuses what it does not take
        check_whole_number(self.samples, "samples", "samples of a trial", least=2)
        check_whole_number(self.positions, "positions", "positions of each sample")

    @property
    def rules(self) -> Pruner:
        """The first candidate, whose unit, scope, cost and limits hold."""
        return self.candidates[0]

    @checks_types
    def __call__(
        self, objective: Objective, sparsity: Targets, carried: Carried | None = None
    ) -> Pruned:
        """Choose the shares, and prune once by them.

        Args:
            objective: The network and its samples, which must have one shape.
            sparsity: As for `Pruner`.
            carried: What the stage before has left; None for the first.

        Returns:
            As `LayerSequence`.

        Raises:
            WoodburyError: As `LayerSequence`.
        """
        shares = self.chosen(objective, sparsity)
        return replace(self.sequence, shares=shares)(objective, sparsity, carried)

    @checks_types
    def chosen(self, objective: Objective, sparsity: Targets) -> Pruner:
        """The first candidate, or one that leaves the outputs clearly nearer to the dense ones.

        Args:
            objective: The dense network and its samples.
            sparsity: As for `Pruner`.

        Returns:
            One of the candidates.
        """
        if len(self.candidates) == 1:
            return self.candidates[0]
        parts = split_samples(objective, 0.5, self.samples)
        used = replace(objective, batches=objective.batches.read(parts.calibration))
        judge = parts.held_back or parts.calibration
        trial = replace(
            self.sequence, fit=replace(self.sequence.fit, steps=0), positions=self.positions
        )
        distances = [
            _distance(objective, replace(trial, shares=shares)(used, sparsity).objective, judge)
            for shares in self.candidates
        ]
        best = distances.index(min(distances))
        return self.candidates[best if distances[best] < CLEARLY * distances[0] else 0]


@Ranks.apart()
def goes_in_turn(objective: Objective, samples: int, most: int) -> bool:
    """Whether a network can be pruned one layer after the other, in the memory that there is.

    Args:
        objective: The network on its calibration set.
        samples: How many there are.
        most: Weights at most.

    Returns:
        True where every tensor is the weight of a layer with inputs of its own, all samples have
        one shape and room, and no matrix is too large to decompose.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 4, bias=False)
        >>> goes_in_turn(Objective.from_model(model, [(torch.randn(20, 3), None)]), 20, 10**6)
        True
    """
    layers = {name for name, _ in factored_layers(objective)}
    if objective.space.d > most or layers != set(objective.space.shapes):
        return False
    first = next(iter(objective.batches), None)
    if first is None or not all(same_structure(first, batch) for batch in objective.batches):
        return False
    cost = turn_cost(objective, samples, ShareSearch().sequence.positions)
    return cost.columns <= MOST_COLUMNS and cost.bytes <= 2 * row_bytes()


@torch.no_grad()
def _distance(dense: Objective, pruned: Objective, judge: list[Batch]) -> float:
    """How far the outputs are apart on some samples, each as many to one batch as lie there."""
    total, count = 0.0, 0
    with eval_mode(dense.model):
        for inputs, target in judge:
            goal, reached = (one.forward(one.parameters, inputs) for one in (dense, pruned))
            outputs = Outputs(goal, reached, target)
            distance = outputs.distance(dense.likelihood, DIRECTIONS)
            if distance is None:
                distance = outputs.mean_square(dense.likelihood)
            total += distance * samples_in(inputs)
            count += samples_in(inputs)
    return total / max(1, count)
