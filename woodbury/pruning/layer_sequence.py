"""LayerSequence: one layer pruned after the other, on the inputs that the pruned ones leave."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.estimation.layer_problems import factored_layers
from woodbury.estimation.layer_turns import LayerEquations, replace_in_turn
from woodbury.io.representation import readable
from woodbury.linalg.ranks import Ranks
from woodbury.linalg.sparse_least_squares import SparseLeastSquares
from woodbury.model.objective import Objective
from woodbury.monitor import report
from woodbury.pruning.pruned import Carried, Pruned, StageResult
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.schedule import Targets
from woodbury.pruning.scopes import global_, layerwise
from woodbury.pruning.selections import by_size
from woodbury.pruning.units import single
from woodbury.pruning.updates import zero

BY_SIZE = Pruner(None, magnitude, zero, selection=by_size(1 / 8))
"""Layers of one size to the same sparsity, small ones to less (docs/log)."""

BY_MAGNITUDE = Pruner(None, magnitude, zero)
"""As many weights of a layer as are among the largest of all layers."""


@dataclass(frozen=True)
class LayerSequence:
    """One layer is pruned after the other, towards its outputs in the dense network  (eq. 93).

    A layer is given the inputs that the layers pruned before it leave, so that it makes up for what
    these lack. As many of its weights are kept as `shares` keeps, and `fit` chooses which. All
    samples go through the network at once, twice. No label is read and no gradient taken.

    Weights of layers other than nn.Linear, nn.Conv2d and the Conv1D of transformers are as `shares`
    leaves them.

    Attributes:
        shares: Says how many weights each tensor keeps; which ones is `fit`'s to choose. Of single
            weights, in a scope that does not divide a tensor.
        fit: Least squares with few non-zeros.
        samples: That are read at most, the first ones of the objective; None for all.
        positions: Of each sample that are compared, at most.

    Raises:
        WoodburyError: If the unit of `shares` is not single weights, its scope divides tensors, or
            a count is below 1.

    Example:
        >>> import torch, woodbury
        >>> model = torch.nn.Linear(4, 8)
        >>> dense = woodbury.Objective.from_model(model, [(torch.randn(20, 4), None)])
        >>> LayerSequence()(dense, 0.5).sparsity
        0.5
    """

    shares: Pruner = field(default_factory=lambda: BY_SIZE)
    fit: SparseLeastSquares = field(default_factory=SparseLeastSquares)
    samples: int | None = None
    positions: int = 64

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        if self.shares.unit is not single:
            raise WoodburyError(
                "LayerSequence chooses single weights: leave the unit of its shares at "
                "units.single, or prune units by a Pruner."
            )
        if self.shares.scope not in (global_, layerwise):
            raise WoodburyError(
                "LayerSequence lets the weights of a whole tensor compete: give its shares "
                "scopes.global_ or scopes.layerwise."
            )
        check_whole_number(self.positions, "positions", "positions of each sample")
        if self.samples is not None:
            check_whole_number(self.samples, "samples", "None for all, else their number")

    @property
    def rules(self) -> Pruner:
        """What says how many weights each tensor keeps."""
        return self.shares

    @checks_types
    def __call__(
        self, objective: Objective, sparsity: Targets, carried: Carried | None = None
    ) -> Pruned:
        """Prune once, layer after layer.

        Args:
            objective: The network and its samples, which must have one shape.
            sparsity: As for `Pruner`.
            carried: What the stage before has left; None for the first.

        Returns:
            The pruned objective; its step has the `distance` of the outputs that is left, where the
            likelihood has directions. The model is untouched.

        Raises:
            WoodburyError: As `shares`; or if the samples cannot be joined, or inputs or outputs of
                a layer are not finite.
        """
        shared = self.shares(objective, sparsity, carried)
        space, ranks = objective.space, Ranks.current()
        weights, keep = shared.weights.clone(), shared.keep.clone()
        names = [name for name, _ in factored_layers(objective)]
        done: list[str] = []

        def solve(name: str, equations: LayerEquations) -> Tensor:
            where, layout = space.slices[name], equations.layout
            k = int(keep[where].sum())
            allowed = layout.by_group(space.keep[where].to(equations.weight.device))
            found = self.fit(equations.moments, equations.cross, equations.weight, k, allowed)
            keep[where] = ranks.broadcast(layout.as_stored(found.keep)).to(keep.device)
            weights[where] = ranks.broadcast(layout.as_stored(found.weights).to(weights.dtype))
            done.append(name)
            report("layers that are pruned", len(done), len(names))
            return weights[where]

        samples = self.samples or 2**62
        outputs = replace_in_turn(objective, names, samples, self.positions, solve)
        kept = space.restrict(keep[space.keep.to(keep.device)])
        result = StageResult(
            sparsity=kept.sparsity,
            predicted=None,
            saliencies=shared.steps[-1].saliencies,
            distance=outputs.distance(objective.likelihood),
        )
        return Pruned(objective.at(weights[keep.to(weights.device)], kept), (result,))
