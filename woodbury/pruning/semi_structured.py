"""n:m sparsity: a scope, a sparsity and a selection that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.scopes import consecutive
from woodbury.pruning.selections.subset_search import exhaustive


class SemiStructured(NamedTuple):
    """What `n_of_m` gives.

    Attributes:
        sparsity: 1 − n/m.
        pruner: Prunes to it with exactly n kept weights in every m.
    """

    sparsity: float
    pruner: Pruner


@checks_types
def n_of_m(
    n: int, m: int, pruner: Pruner | None = None, *, dim: int | Mapping[str, int] | None = None
) -> SemiStructured:
    """The sparsity and the pruner of an n:m pattern, such as 2:4  (eq. 53).

    With a Fisher each group of m loses the subset of least joint cost (`selections.exhaustive`),
    without one its smallest scores.

    Args:
        n: Weights kept in each group.
        m: Weights in a group, neighbours along `dim`.
        pruner: What else to use; None takes `Pruner()`.
        dim: As in `scopes.consecutive`: None is the inputs of each layer, and for a kernel the
            input channels at each of its positions, as the sparse tensor cores of GPUs need it.

    Returns:
        The sparsity 1 − n/m, and the pruner in a scope where n of every m weights are kept. The
        sparsity is that of the layers whose inputs m divides; `woodbury.prune` leaves the others
        out, and names them in `Pruned.settings`.

    Raises:
        WoodburyError: If not 0 < n < m.

    Example:
        >>> import torch, woodbury
        >>> model = torch.nn.Linear(8, 2, bias=False)
        >>> sparsity, pruner = woodbury.n_of_m(2, 4, woodbury.Pruner(woodbury.mfac(6)))
        >>> batches = [(torch.randn(6, 8), torch.arange(6) % 2)]
        >>> pruned = woodbury.prune(model, batches, sparsity, pruner=pruner)
        >>> pruned.keep.view(-1, 4).sum(1)
        tensor([2, 2, 2, 2])
    """
    if not 0 < n < m:
        raise WoodburyError(
            f"The pattern is {n}:{m}: n weights are kept of every m, so give 0 < n < m, such as "
            "2:4."
        )
    pruner = pruner or Pruner()
    selection = exhaustive if pruner.fisher else pruner.selection
    in_groups = replace(pruner, scope=consecutive(m, dim), selection=selection)
    return SemiStructured(1 - n / m, in_groups)
