"""Recipes for large networks: curvature of each row of a tensor, one layer's inputs in memory."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, check_whole_number
from woodbury.estimation.gradients import Labels, sampled
from woodbury.estimation.kfac_factors import factors
from woodbury.estimation.recipes import COUNT
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.kronecker.by_rows import KroneckerRows
from woodbury.io.representation import readable
from woodbury.linalg.precision import wide_dtype
from woodbury.model.objective import Objective

SMALLEST_SCALE = 1e-4
"""The least scale of a row as a share of the mean: a row that no loss depends on is not free."""


@dataclass(frozen=True)
class kfac_by_rows:
    """K-FAC with a diagonal output factor: the rows of a tensor do not interact  (eq. 67).

    F = diag(mean squared gradients of the outputs) ⊗ (second moments of the inputs + ridge). Solves
    and inverse elements of it are exact at any sparsity, and it holds one matrix of inputs for each
    layer, whatever the number of samples: the structure for networks whose gradient rows have no
    room. Without the output factor it is the layer-wise reconstruction of OBC and SparseGPT
    (Frantar & Alistarh 2022, 2023); with it, the weights of all layers can be compared.

    Args:
        count: Samples that both factors average.
        ridge: Added to the inputs' second moments, as a share of their mean; relative, because the
            scale of the inputs differs by layer.
        labels: `sampled` for the true Fisher; `observed` inside `gauss_newton`, which draws
            directions of the output in place of labels.
        seed: Of the sampled labels.
        max_columns: Inputs that interact at most: wider layers are cut into equal blocks of
            consecutive columns, as the cost grows with the square of this number.

    Raises:
        WoodburyError: If the ridge is not positive, the data gives fewer samples, or a tensor of
            the space is not in a Linear or an ungrouped Conv2d.

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
    labels: Labels = sampled
    seed: int = 0
    max_columns: int = 1024

    __repr__ = readable

    def __post_init__(self) -> None:
        check_whole_number(self.max_columns, "max_columns", "the inputs that interact")
        if not 0 < self.ridge < math.inf:
            raise WoodburyError(f"ridge is {self.ridge}: give a positive, finite share.")

    def __call__(self, objective: Objective) -> BlockDiagonal:
        """Estimate the Fisher at the objective's weights."""
        space = objective.space
        generator = torch.Generator(objective.weights.device).manual_seed(self.seed)
        pairs = factors(objective, self.count, labels=self.labels, generator=generator)
        parts = []
        for name, where in space.slices.items():
            kept = space.keep[where].to(objective.weights.device)
            if kept.any():
                left, right = pairs.pop(name)
                parts.append(self._of_tensor(left, right, kept.view(len(left), -1)))
        return BlockDiagonal(tuple(parts))

    def _of_tensor(self, left: Tensor, right: Tensor, kept: Tensor) -> KroneckerRows:
        scales = left.diagonal().to(wide_dtype(left.dtype))
        # Where nothing depends on a tensor all its rows count alike, and for next to nothing.
        mean = float(scales.mean()) or torch.finfo(torch.float32).tiny ** 0.5
        scales = scales.clamp(min=SMALLEST_SCALE * mean)
        blocks = _in_blocks(right, self.max_columns)
        ridge = self.ridge * float(right.diagonal().mean())
        blocks.diagonal(dim1=1, dim2=2).add_(ridge or 1.0)
        return KroneckerRows(scales, blocks, 0.0, len(right), kept)


def _in_blocks(matrix: Tensor, most: int) -> Tensor:
    """The diagonal blocks (b, s, s) of as few equal blocks of `most` columns as there can be."""
    columns = len(matrix)
    count = math.ceil(columns / most)
    size = math.ceil(columns / count)
    blocks = matrix.new_zeros(count, size, size, dtype=wide_dtype(matrix.dtype))
    for block, start in zip(blocks, range(0, columns, size), strict=True):
        part = slice(start, min(start + size, columns))
        width = part.stop - part.start
        block[:width, :width] = matrix[part, part]
    return blocks
