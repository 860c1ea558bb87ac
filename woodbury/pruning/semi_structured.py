"""n:m patterns: a scope, a sparsity and a selection that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from woodbury.errors import WoodburyError
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.scopes import consecutive
from woodbury.pruning.selections.subset_search import exhaustive


def n_of_m(
    n: int, m: int, pruner: Pruner | None = None, *, dim: int | Mapping[str, int] = 1
) -> tuple[float, Pruner]:
    """The sparsity 1 − n/m, and the pruner in a scope in which n of every m weights along `dim` stay.

    `sparsity, pruner = n_of_m(2, 4)` and then `prune(model, batches, sparsity, pruner=pruner)`. With a Fisher each run
    loses its exactly best subset (`exhaustive`), without one the smallest scores. dim: as for `runs`.
    """
    if not 0 < n < m:
        raise WoodburyError(
            f"The pattern is {n}:{m}: n weights stay of every m, so give 0 < n < m, such as 2:4."
        )
    pruner = pruner or Pruner()
    selection = exhaustive if pruner.fisher else pruner.selection
    return 1 - n / m, replace(pruner, scope=consecutive(m, dim), selection=selection)
