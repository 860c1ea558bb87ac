"""Selection = unit × scope × budget: what competes with what, and which of it falls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.space import ParameterSpace

Scope = Callable[[ParameterSpace], Tensor]
"""space -> labels (n,) int64 from 0: weights of the same label compete, and each label has its own budget."""

Cost = Callable[[ParameterSpace], Tensor]
"""space -> what each of the n weights costs, (n,) positive: a budget is a share of the sum."""


def everything(space: ParameterSpace) -> Tensor:
    """All weights compete: one global threshold."""
    return torch.zeros(space.n, dtype=torch.int64)


def layers(space: ParameterSpace) -> Tensor:
    """Each tensor on its own: the same sparsity everywhere."""
    return space.labels()


def runs(size: int, dim: int | Mapping[str, int] = 1) -> Scope:
    """Each run of `size` weights along a dimension competes within itself: the scope of n:m sparsity.

    dim: by default 1, the inputs of a matrix or a kernel, which is run by run at each position; or one for each of several
    patterns of names, such as {"*.c_fc.weight": 0} where a layer holds its matrix transposed, 1 for the others. Raises
    WoodburyError where the runs do not fit.
    """

    def scope(space: ParameterSpace) -> Tensor:
        parts, count = [], 0
        for name, shape in space.shapes.items():
            along = dim if isinstance(dim, int) else next((at for p, at in dim.items() if fnmatchcase(name, p)), 1)
            if not -len(shape) <= along < len(shape):
                raise WoodburyError(f"{name!r} has shape {tuple(shape)} and no dimension {along} for runs: exclude it.")
            if size < 1 or shape[along] % size:
                raise WoodburyError(
                    f"Runs of {size} do not divide the {shape[along]} weights along dimension {along} of {name!r}, "
                    f"which has shape {tuple(shape)}: exclude it."
                )
            shorter = [*shape]
            shorter[along] //= size
            labels = torch.arange(shape.numel() // size).view(shorter).repeat_interleave(size, along)
            parts.append(labels.flatten() + count)
            count += shape.numel() // size
        return torch.cat(parts)

    return scope


def weights(space: ParameterSpace) -> Tensor:
    """Every weight costs 1: sparsity counts weights."""
    return torch.ones(space.n, dtype=torch.float64)


def raised(cost: Cost, power: float) -> Cost:
    """The cost of each weight to a power: `per=raised(flops(model, inputs), 0.3)` divides saliencies by FLOPs^0.3."""
    return lambda space: cost(space).double() ** power


def select(scores: Tensor, costs: Tensor, labels: Tensor, budgets: Tensor) -> Tensor:
    """The units to remove, (g,) bool: per label the lowest scores whose costs add up to at most its budget  (eq. 18).

    scores, costs, labels: (g,), labels from 0; budgets: one per label. Equal scores fall in the order of their index, so
    that unit costs meet a whole budget exactly. Raises WoodburyError on scores that are not finite or costs that are not
    positive.
    """
    if not bool(torch.isfinite(scores).all()):
        worst = int((~torch.isfinite(scores)).nonzero()[0])
        raise WoodburyError(f"The saliency of unit {worst} is not finite: raise the damping or look at that weight.")
    if not bool((costs > 0).all()):
        raise WoodburyError("A cost is zero, negative or NaN: every unit must cost something.")
    order = scores.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # by label, then by score
    spent = torch.cat([costs.new_zeros(1, dtype=torch.float64), costs[order].double().cumsum(0)])
    members = torch.bincount(labels, minlength=len(budgets))
    label = labels[order]
    before = spent[members.cumsum(0) - members][label]
    affordable = spent[1:] - before <= budgets[label] * (1 + 1e-12) + 1e-15 * spent[-1]
    return torch.zeros(len(scores), dtype=torch.bool, device=scores.device).index_fill_(0, order[affordable], True)
