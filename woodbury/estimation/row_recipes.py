"""Recipes for large networks: curvature of each row of a tensor, one layer's inputs in memory."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.estimation.labels import Labels
from woodbury.estimation.recipes import COUNT
from woodbury.estimation.row_factors import RowFactors, row_factors
from woodbury.estimation.rows_over_ranks import parts
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import NEGLIGIBLE_DAMPING
from woodbury.fisher.kronecker import AllRowsAtOnce, KroneckerRows
from woodbury.io.representation import readable
from woodbury.linalg.conversion import seeded
from woodbury.model.objective import Objective
from woodbury.model.random_numbers import random_kept

SMALLEST_SCALE = 1e-4
"""The least scale of a row as a share of the mean: a row that no loss depends on is not free."""

UNREACHED = NEGLIGIBLE_DAMPING / 10
"""The curvature of a tensor that no gradient reached."""


@dataclass(frozen=True)
class kfac_by_rows:
    """K-FAC with a diagonal output factor: the rows of a tensor do not interact  (eq. 67).

    F = diag(mean squared gradients of the outputs) ⊗ (second moments of the inputs + ridge). Solves
    and inverse elements can be exact at any sparsity, and it holds one matrix of inputs for each
    layer, whatever the number of samples: the structure for networks whose gradient rows have no
    room. Without the output factor it is the layer-wise reconstruction of OBC and SparseGPT
    (Frantar & Alistarh 2022, 2023); with it, the weights of all layers can be compared.
    `row_factors` says what is taken for layers other than nn.Linear and nn.Conv2d.

    Args:
        count: Samples that both factors average.
        ridge: Added to the inputs' second moments, as a share of their mean; relative, because the
            scale of the inputs differs by layer.
        labels: None for random directions of the output, drawn in the same pass, or labels where
            the likelihood has no directions; `sampled` for the true Fisher; `observed` for the
            data's own labels, and inside `gauss_newton`.
        seed: Of the directions or labels.
        max_columns: Inputs that interact at most: wider layers are cut into equal blocks of
            consecutive columns, as the cost grows with this number.
        approximation: How rows are solved all at once; None for exact rows.

    Raises:
        WoodburyError: If the ridge is not positive, or the data gives fewer samples.

    Example:
        >>> import torch, woodbury
        >>> batches = [(torch.randn(8, 3), torch.arange(8) % 2)]
        >>> objective = woodbury.Objective.from_model(
        ...     torch.nn.Linear(3, 2, bias=False), batches
        ... )
        >>> woodbury.estimation.kfac_by_rows(8)(objective).inverse_diagonal().shape
        torch.Size([6])
    """

    count: int = COUNT
    ridge: float = 1e-2
    _: KW_ONLY
    labels: Labels | None = None
    seed: int = 0
    max_columns: int = 6144
    approximation: AllRowsAtOnce | None = None

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole_number(self.max_columns, "max_columns", "the inputs that interact")
        if not 0 < self.ridge < math.inf:
            raise WoodburyError(f"ridge is {self.ridge}: give a positive, finite share.")

    @checks_types
    @random_kept()
    def __call__(self, objective: Objective) -> Fisher:
        """Estimate the Fisher at the objective's weights."""
        space = objective.space
        generator = seeded(self.seed, objective.weights.device)
        found = row_factors(objective, self.count, self.max_columns, self.labels, generator)
        masks: dict[str, Tensor | None] = {}
        sizes: list[int] = []
        for name, where in space.slices.items():
            kept = None if space.kept is None else space.kept[where].to(objective.weights.device)
            if kept is None or kept.any():
                masks[name] = kept
                sizes.append(where.stop - where.start if kept is None else int(kept.sum()))
        names = list(masks)

        def part(index: int) -> KroneckerRows:
            return self._of_tensor(found.pop(names[index]), masks[names[index]])

        return parts(sizes, part, 0.0, objective.weights)

    def _of_tensor(self, factors: RowFactors, kept: Tensor | None) -> KroneckerRows:
        scales, blocks, layout = factors
        diagonal = blocks.diagonal(dim1=1, dim2=2)
        ridge = self.ridge * float(diagonal.sum()) / (layout.groups * layout.columns)
        diagonal.add_(ridge or 1.0)
        mean = float(scales.mean())
        if mean:
            scales = scales.clamp(min=SMALLEST_SCALE * mean)
        else:  # nothing depends on the tensor: its rows count alike, and for next to nothing
            scales = torch.full_like(scales, UNREACHED / float(diagonal.max()))
        return KroneckerRows(
            scales,
            blocks,
            0.0,
            columns=layout.columns,
            keep=None if kept is None else kept.view(layout.shape),
            groups=layout.groups,
            transposed=layout.transposed,
            approximation=self.approximation,
        )
