"""The curvatures that are inspected, estimated from the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.estimation.labels import observed, sampled
from woodbury.estimation.recipes import DAMPING, Estimate, gauss_newton, kfac, mfac
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.checks import NEGLIGIBLE_DAMPING, check_damping
from woodbury.fisher.diagonal import Diagonal
from woodbury.fisher.kronecker import Kronecker
from woodbury.model.objective import Objective

COUNT = 400
"""Samples, and rows, by default: WoodFisher's own for its figures."""

WORDS = {
    "gauss_newton": "Gauss–Newton",
    "empirical": "empirical Fisher",
    "kfac": "K-FAC",
    "kfac_swapped": "K-FAC, swapped",
    "diagonal": "diagonal",
}
"""What the curvatures are called in a sentence."""


@dataclass(frozen=True)
class Curvatures:
    """Estimates of the curvature at one point, by their names.

    Attributes:
        fishers: Name -> operator on the d weights.
        left_out: Name -> why there is none, in a sentence.
        count: Samples that each is estimated from.
    """

    fishers: Mapping[str, Fisher]
    left_out: Mapping[str, str] = field(default_factory=dict)
    count: int = 0

    def __repr__(self) -> str:
        """One line."""
        return f"Curvatures({', '.join(self.fishers)}; count={self.count})"


@checks_types
def estimate_curvatures(
    objective: Objective,
    count: int = COUNT,
    damping: float = DAMPING,
    *,
    has_labels: bool = True,
    seed: int = 0,
) -> Curvatures:
    """Gauss–Newton rows, the empirical Fisher, K-FAC and a diagonal of the same samples.

    Args:
        objective: The network on its calibration set.
        count: Samples; the matrices by rows have one row for each.
        damping: Added to the diagonal of each.
        has_labels: Whether the labels are those of the data, and not drawn from the model.
        seed: Of the random directions, and of K-FAC's labels.

    Returns:
        `gauss_newton`, `empirical`, `kfac`, `diagonal` (of the empirical Fisher; of Gauss–Newton
        without labels), as far as the model, the loss and the data have them.

    Raises:
        WoodburyError: If not one of them can be estimated.

    Example:
        >>> import torch
        >>> batches = [(torch.randn(8, 3), torch.arange(8) % 2)]
        >>> objective = Objective.from_model(torch.nn.Linear(3, 2), batches)
        >>> list(estimate_curvatures(objective, 8).fishers)
        ['gauss_newton', 'empirical', 'kfac', 'diagonal']
    """
    check_whole_number(count, "count", "the number of samples")
    check_damping(damping)
    rows = mfac(count, damping)
    recipes: dict[str, Estimate] = {"gauss_newton": gauss_newton(rows, 1, seed=seed)}
    left_out: dict[str, str] = {}
    if has_labels:
        recipes["empirical"] = rows
    else:
        left_out["empirical"] = "The data has no labels."
    labels = observed if objective.likelihood.sample is None else sampled
    recipes["kfac"] = kfac(count, damping, labels=labels, seed=seed, skip_unknown=True)
    fishers: dict[str, Fisher] = {}
    for name, recipe in recipes.items():
        found = _estimated(recipe, objective)
        if isinstance(found, Fisher):
            fishers[name] = found
        else:
            left_out[name] = found
    by_rows = fishers.get("empirical") or fishers.get("gauss_newton")
    if by_rows is None:
        raise WoodburyError(left_out["empirical" if has_labels else "gauss_newton"])
    fishers["diagonal"] = Diagonal(without_damping(by_rows).diagonal(), damping)
    return Curvatures(fishers, left_out, count)


def _estimated(recipe: Estimate, objective: Objective) -> Fisher | str:
    """The Fisher, or why there is none."""
    try:
        return recipe(objective)
    except WoodburyError as error:
        return str(error)


def without_damping(fisher: Fisher) -> Fisher:
    """The curvature alone: its damping is negligible.

    Args:
        fisher: Any operator.
    """
    return fisher.with_damping(NEGLIGIBLE_DAMPING)


def products_of(fisher: Fisher) -> Callable[[Tensor], Tensor]:
    """V -> F v without the damping.

    Args:
        fisher: Any operator.
    """
    bare = without_damping(fisher)
    return lambda v: bare @ v.to(bare.dtype)


def in_the_wrong_order(fisher: Fisher) -> Fisher | None:
    """K-FAC with the two factors of each tensor swapped, a mistake that no shape reveals  (eq. 22).

    The weights of a tensor (o, i) are row-major, so that the factor of the outputs comes first;
    with column-major weights it is the second.

    Args:
        fisher: What `kfac` gave.

    Returns:
        Right ⊗ left in place of left ⊗ right on the same weights; None where some weights are
        removed already, or nothing is a Kronecker product.
    """
    if not isinstance(fisher, BlockDiagonal):
        return None
    if sum(part.d for part in fisher.parts if isinstance(part, Kronecker)) == 0:
        return None
    return replace(fisher, parts=tuple(map(_swapped, fisher.parts)))


def _swapped(part: Fisher) -> Fisher:
    if not isinstance(part, Kronecker):
        return part
    return Kronecker(part.right, part.left, part.damping, part.elements)
