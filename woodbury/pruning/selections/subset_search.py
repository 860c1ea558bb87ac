"""Exhaustive: where few units compete, as in n:m runs, the best subset of each by trying all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.limits import Limits
from woodbury.pruning.budget import Budget
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency, joint_cost


def exhaustive(quadratic: Quadratic, contest: Budget, saliency: Saliency) -> Tensor:
    """Per label the subset of single weights whose joint removal costs least, all other weights free to move  (eq. 53).

    A `Selection` for scopes such as `runs(4)`, whose labels have few members. The costs are the quadratic's own, from the
    block of F⁻¹ on each run, with the gradient if there is one; `saliency` is not asked. Exact where the runs do not
    interact. Raises WoodburyError without a Fisher, for units of several weights or unequal costs, and for runs too long to try.
    """
    fisher = quadratic.curvature("The exhaustive selection")
    stiffness, distance = fisher.diagonal().double(), quadratic.from_minimum
    keep = torch.ones(contest.d, dtype=torch.bool)
    for runs, count in _runs(contest):
        subsets = torch.tensor(list(combinations(range(runs.shape[1]), count)))
        for some in runs.to(distance.device).split(
            max(1, Limits.current().temporary // (len(subsets) * count**2 + runs.shape[1] ** 2))
        ):
            inverse = fisher.inverse_blocks(some)
            costs = joint_cost(
                distance[some][:, subsets],
                inverse[:, subsets[:, :, None], subsets[:, None, :]],
                stiffness[some][:, subsets],
            )
            best = subsets.to(some.device)[costs.argmin(1)]
            keep[some.gather(1, best).flatten().cpu()] = False
    return keep


def _runs(contest: Budget) -> Iterator[tuple[Tensor, int]]:
    """The weights of every label that loses some, (r, l) for the r labels of l members, and how many each loses."""
    price = torch.ones_like(contest.budgets).index_copy_(0, contest.labels, contest.costs)
    if contest.groups is not None or bool((contest.costs != price[contest.labels]).any()):
        raise WoodburyError(
            "The exhaustive selection takes single weights, of equal cost within a run: take once or stepwise for others."
        )
    if contest.ceilings is not None:
        raise WoodburyError("The exhaustive selection heeds no ceiling: leave it out.")
    lengths = torch.bincount(contest.labels, minlength=len(contest.budgets))
    losses = (contest.budgets / price + 1e-9).floor().long()
    order, ends = contest.labels.argsort(stable=True), lengths.cumsum(0)
    for length, loss in torch.stack([lengths, losses], 1)[losses > 0].unique(dim=0).tolist():
        if math.comb(length, loss) > Limits.current().subsets:
            raise WoodburyError(
                f"{loss} of {length} weights can fall in {math.comb(length, loss):,} ways, more than {Limits.current().subsets:,}: give a scope of "
                "short runs such as runs(4), or take once or stepwise."
            )
        mine = (lengths == length) & (losses == loss)
        yield order[(ends - lengths)[mine][:, None] + torch.arange(length)], loss
