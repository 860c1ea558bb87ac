"""LayerByLayer: each layer's own least squares to the dense outputs, in the order of the layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.estimation.layer_problems import LayerProblem, layer_problems, layers_in_order
from woodbury.estimation.over_ranks import fitted_over_ranks
from woodbury.fisher.kronecker import AllRowsAtOnce, KroneckerRows
from woodbury.linalg.ranks import Ranks
from woodbury.model.objective import Objective
from woodbury.model.random_numbers import random_kept
from woodbury.monitor import report
from woodbury.pruning.pruned import Carried, Pruned
from woodbury.pruning.pruner import Pruner, PruningRecipe
from woodbury.pruning.schedule import Targets


@dataclass(frozen=True)
class LayerByLayer:
    """Output reconstruction of one layer after the other, on the weights that it keeps  (eq. 64).

    Each layer is fitted to the outputs that it has in the dense network, by the inputs that it has
    in the pruned one, after the layers before it have been fitted: what these lack it makes up for,
    as in OBC and SparseGPT (Frantar & Alistarh 2022, 2023). One layer's equations are in memory at
    a time. No label is read.

    Attributes:
        samples: Samples that are read at most, the first ones of the objective; None for all.
        passes: Passes over the samples, at most; None for one for each layer. With fewer, layers
            that follow each other are fitted at once, each by inputs from before.
        ridge: Added to the second moments of a layer's inputs, as a share of their mean.
        max_columns: Inputs that interact at most.
        approximation: How the rows of large layers are solved all at once; None for exact rows.

    Raises:
        WoodburyError: If the ridge is not positive, or a count below 1.

    Example:
        >>> import torch, woodbury
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> batches = [(torch.randn(20, 4), None)]
        >>> dense = woodbury.Objective.from_model(model, batches)
        >>> pruned = woodbury.Pruner(woodbury.gauss_newton(woodbury.mfac(20)))(dense, 0.5)
        >>> LayerByLayer()(pruned.objective, dense).space.d  # of 67
        33
    """

    samples: int | None = None
    passes: int | None = None
    ridge: float = 1e-2
    max_columns: int = 6144
    approximation: AllRowsAtOnce | None = field(default_factory=AllRowsAtOnce)

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.ridge < math.inf:
            raise WoodburyError(f"ridge is {self.ridge}: give a positive, finite share.")
        check_whole_number(self.max_columns, "max_columns", "the inputs that interact")
        for name, count in (("samples", self.samples), ("passes", self.passes)):
            if count is not None:
                check_whole_number(count, name, "None for all, else their number")

    @checks_types
    @random_kept()
    def __call__(self, objective: Objective, dense: Objective, group: object = None) -> Objective:
        """Fit every layer in its order.

        Args:
            objective: The pruned network; its batches are read.
            dense: The network whose layers' outputs are the goal; its batches are not read.
            group: The torch.distributed process group whose ranks share the work, as for
                `woodbury.prune`.

        Returns:
            The objective at the weights reached, in the same space; no model is touched.

        Raises:
            WoodburyError: If inputs or outputs of a layer are not finite.
        """
        with fitted_over_ranks(group, "a refit of layers", objective) as own:
            return replace(self._fitted(own, dense), batches=objective.batches)

    def _fitted(self, objective: Objective, dense: Objective) -> Objective:
        names = layers_in_order(objective)
        passes = min(len(names), self.passes or len(names))
        bounds = [round(index * len(names) / max(1, passes)) for index in range(passes + 1)]
        samples = self.samples or 2**62
        for done, (start, end) in enumerate(pairwise(bounds)):
            problems = layer_problems(objective, dense, names[start:end], samples, self.max_columns)
            ranks = Ranks.current()
            steps = torch.zeros_like(objective.weights)
            for index, (name, problem) in enumerate(sorted(problems.items())):
                if index % ranks.size == ranks.rank:  # each layer is solved by one rank
                    self._move(steps, objective, name, problem)
            objective = objective.at(objective.weights + ranks.sum(steps))
            report("layers that are fitted", done + 1, passes)
        return objective

    def in_words(self) -> str:
        """The refit for a report."""
        if self.passes is None:
            return "one layer after the other"
        return f"one layer after the other, in {self.passes} passes"

    def _move(self, steps: Tensor, objective: Objective, name: str, problem: LayerProblem) -> None:
        """Write one layer's least-squares step (d,), in place."""
        space, layout = objective.space, problem.layout
        where = space.slices[name]
        keep = space.keep[where].to(steps.device)
        if not bool(keep.any()) or not problem.positions:
            return
        start = where.start if space.kept is None else int(space.keep[: where.start].sum())
        inputs = problem.inputs.div_(problem.positions)
        diagonal = inputs.diagonal(dim1=1, dim2=2)
        mean = float(diagonal.sum()) / (layout.groups * layout.columns)
        diagonal.add_(self.ridge * mean or 1.0)
        rows = KroneckerRows(
            inputs.new_ones(layout.rows),
            inputs,
            0.0,
            columns=layout.columns,
            keep=keep.view(layout.shape),
            groups=layout.groups,
            transposed=layout.transposed,
            approximation=self.approximation,
        )
        lacking = problem.lacking.div_(problem.positions)
        stored = lacking.T if layout.transposed else lacking
        step = rows.solve(stored[keep.view(layout.shape)])
        steps[start : start + rows.d] = step.to(steps.dtype)


@dataclass(frozen=True)
class WithLayers:
    """A pruning recipe, and after each of its steps a `LayerByLayer` to the dense network.

    Attributes:
        recipe: A Pruner, or another recipe.
        dense: The network before any pruning, at its own weights; its model must not change.
        refit: How the layers are fitted.
    """

    recipe: PruningRecipe
    dense: Objective
    refit: LayerByLayer

    @property
    def rules(self) -> Pruner:
        """The Pruner inside, whose unit, scope, cost and limits hold."""
        return self.recipe.rules

    @checks_types
    @random_kept()
    def __call__(
        self, objective: Objective, sparsity: Targets, carried: Carried | None = None
    ) -> Pruned:
        """Prune once and fit the layers; the model is untouched."""
        pruned = self.recipe(objective, sparsity, carried)
        return replace(pruned, objective=self.refit(pruned.objective, self.dense))
