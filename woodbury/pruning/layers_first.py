"""LayersFirst: one layer pruned after the other at first, then stages of all layers together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from woodbury.argument_types import check_fields, checks_types
from woodbury.io.representation import readable
from woodbury.model.objective import Objective
from woodbury.pruning.feasibility import kept_count
from woodbury.pruning.pruned import Carried, Pruned
from woodbury.pruning.pruner import Pruner, PruningRecipe
from woodbury.pruning.schedule import Targets

KEPT_TIMES = 2
"""Layers are pruned in turn until this many times the weights that are to be kept are left."""


@dataclass(frozen=True)
class LayersFirst:
    """A stage that leaves many weights prunes one layer after the other, later ones all at once.

    While few weights are gone, least squares of single layers are as good as stages of all of them,
    in a tenth of the time; beyond, the layers must make up for each other (docs/log).

    Attributes:
        first: For stages that leave at least `least_kept` weights, such as a ShareSearch.
        then: For the later ones, such as a Pruner with a refit.
        least_kept: That `first` leaves.

    Example:
        >>> import torch, woodbury
        >>> from woodbury.pruning import LayerSequence, run_stages
        >>> model = torch.nn.Linear(4, 8, bias=False)
        >>> batches = [(torch.randn(20, 4), torch.arange(20) % 8)]
        >>> dense = woodbury.Objective.from_model(model, batches)
        >>> recipe = LayersFirst(LayerSequence(), woodbury.Pruner(woodbury.mfac(20)), 16)
        >>> [step.damping for step in run_stages(recipe, dense, [0.5, 0.75]).steps]
        [None, 1e-05]
    """

    first: PruningRecipe
    then: PruningRecipe
    least_kept: int

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def rules(self) -> Pruner:
        """The Pruner of the later stages, whose unit, scope, cost and limits hold."""
        return self.then.rules

    @checks_types
    def __call__(
        self, objective: Objective, sparsity: Targets, carried: Carried | None = None
    ) -> Pruned:
        """Prune once.

        Args:
            objective: The network at the weights reached so far, and its samples.
            sparsity: Removed ÷ all weights of the original space, after this step.
            carried: What the stage before has left; None for the first.

        Returns:
            The pruned objective; the model is untouched.

        Raises:
            WoodburyError: As the recipe that is used.
        """
        is_first = kept_count(objective.space, sparsity) >= self.least_kept
        recipe = self.first if is_first else self.then
        return recipe(objective, sparsity, carried)


def in_turn_to(sparsity: Targets, until: float) -> Targets:
    """The sparsity down to which layers are pruned in turn, on the way to another.

    Args:
        sparsity: That is asked for, or one for each pattern.
        until: Where stages may begin.

    Returns:
        `sparsity` where it is at most `until`; else `until`, or where `KEPT_TIMES` as many weights
        are left as at `sparsity` if that is sparser.

    Example:
        >>> in_turn_to(0.7, until=0.8), in_turn_to(0.85, until=0.8)
        (0.7, 0.8)
        >>> round(in_turn_to(0.95, until=0.8), 6)
        0.9
    """
    if isinstance(sparsity, Mapping):
        return {pattern: _in_turn_to(each, until) for pattern, each in sparsity.items()}
    return _in_turn_to(sparsity, until)


def _in_turn_to(sparsity: float, until: float) -> float:
    return min(sparsity, max(until, 1 - KEPT_TIMES * (1 - sparsity)))
