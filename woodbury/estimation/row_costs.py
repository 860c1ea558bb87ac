"""What K-FAC by rows takes: bytes and FLOPs, from the shapes of the tensors alone."""

from __future__ import annotations

from dataclasses import dataclass

from woodbury.estimation.row_factors import (
    LEAST_GRAPH_BYTES,
    MOST_GRAPH_BYTES,
    POSITIONS,
    row_layouts,
)
from woodbury.estimation.row_layers import RowLayout
from woodbury.fisher.kronecker.effective_medium import MOST_ITERATIONS
from woodbury.limits import Limits
from woodbury.memory.budget import row_bytes
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile

BYTES_PER_FLOAT = 4

VECTORS = 9
"""Vectors of all weights at once: the model, its copy, the step, saliencies and their ordering."""

MATRICES = 4
"""Copies of one block of the inputs' second moments: its factor, triangle, inverse, and itself."""

ROW_VECTORS = 8
"""Of the rows of one tensor in conjugate gradients."""

PRODUCTS = 12
"""Steps of conjugate gradients to a residual of a hundredth, measured 7 to 13 (docs/log)."""

BACKWARD_PASSES = 3
"""A forward and a backward pass by the layers' outputs, in forward passes."""


@dataclass(frozen=True)
class RowCost:
    """What one pruning by K-FAC by rows takes.

    Attributes:
        moments: Bytes of the inputs' second moments of all layers, which are held throughout.
        vectors: Bytes of what has an entry for each weight.
        work: Bytes of one layer's work, or of one batch's graph if that is more.
        passes_flops: FLOPs of forward and backward passes over the samples.
        moments_flops: FLOPs of the sums of second moments.
        solves_flops: FLOPs of the solves and inverse elements.

    Example:
        >>> str(RowCost(2**30, 2**30, 2**29, 1e12, 1e11, 2e12))[:48]
        "2.5 GiB (1.0 of inputs' moments, 1.0 of vectors,"
    """

    moments: int
    vectors: int
    work: int
    passes_flops: float
    moments_flops: float
    solves_flops: float

    @property
    def bytes(self) -> int:
        """All that is held at once."""
        return self.moments + self.vectors + self.work

    @property
    def flops(self) -> float:
        """All of them."""
        return self.passes_flops + self.moments_flops + self.solves_flops

    def __str__(self) -> str:
        """In words, with the parts."""
        parts = ((self.moments, "inputs' moments"), (self.vectors, "vectors"), (self.work, "work"))
        named = ", ".join(f"{size / 2**30:.1f} of {what}" for size, what in parts)
        tera, network = self.flops / 1e12, self.passes_flops / 1e12
        return (
            f"{self.bytes / 2**30:.1f} GiB ({named}), {tera:.1f} TFLOP ({network:.1f} in the "
            "network)"
        )


def row_cost(
    objective: Objective, samples: int, steps: int, passes: int = 0, max_columns: int = 6144
) -> RowCost:
    """The cost of pruning by `kfac_by_rows` with `AllRowsAtOnce` and the joint update.

    Args:
        objective: The model and its space; one sample is read.
        samples: Samples that the factors average.
        steps: Inner steps.
        passes: Passes of the layer-by-layer fit that follows; 0 for none.
        max_columns: Of `kfac_by_rows`.

    Returns:
        The cost; the bytes beyond what Python and torch take themselves.

    Example:
        >>> import torch
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), [(torch.randn(20, 3), None)])
        >>> row_cost(dense, 20, steps=4).moments  # of the weight (3, 3), and of the bias (1, 1)
        40
    """
    layouts = list(row_layouts(objective).values())
    forward = ModelProfile.measure(objective).forward_flops
    sizes = [layout.block_size(max_columns) for layout in layouts]
    elements = [layout.elements(max_columns) for layout in layouts]
    temporary = Limits.current().temporary
    graph = max(LEAST_GRAPH_BYTES, min(MOST_GRAPH_BYTES, row_bytes() // 4))
    of_layer = max(
        MATRICES * size**2 + ROW_VECTORS * min(temporary // 4, layout.rows * layout.columns)
        for size, layout in zip(sizes, layouts, strict=True)
    )
    solve = [_product_flops(layout, size) for layout, size in zip(layouts, sizes, strict=True)]
    # An inverse of s rows is 2 s³ FLOPs; the factor of its products is that of both triangles.
    inverses = 2 * sum(count * size for count, size in zip(elements, sizes, strict=True))
    solves = steps * (2 * PRODUCTS * sum(solve) + inverses)
    of_elements = (steps - 1) * (MOST_ITERATIONS * inverses + sum(solve))
    fits = bool(passes) * (2 * PRODUCTS * sum(solve) + inverses)
    return RowCost(
        moments=BYTES_PER_FLOAT * sum(elements),
        vectors=BYTES_PER_FLOAT * VECTORS * objective.space.n,
        work=max(graph, BYTES_PER_FLOAT * of_layer),
        passes_flops=BACKWARD_PASSES * samples * forward + 2 * passes * samples * forward,
        moments_flops=2.0 * (1 + bool(passes)) * samples * POSITIONS * sum(elements),
        solves_flops=float(solves + of_elements + fits),
    )


def _product_flops(layout: RowLayout, size: int) -> int:
    """FLOPs of one product of all rows of a tensor with the inputs' second moments."""
    return 2 * layout.rows * layout.columns * size
