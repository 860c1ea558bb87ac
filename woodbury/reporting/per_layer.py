"""What fell where: each tensor's weights, FLOPs and saliencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from woodbury.model.flop_count import Flops
from woodbury.model.space import ParameterSpace


@dataclass(frozen=True)
class TensorSummary:
    """One tensor before and after. FLOPs per sample, None where they were not counted; those left are of the kept weights.

    saliencies: the `QUANTILES` of its units' saliencies in the first step; empty where there were none.
    """

    name: str
    weights: int
    kept: int
    flops: float | None = None
    flops_left: float | None = None
    saliencies: tuple[float, ...] = ()

    @property
    def sparsity(self) -> float:
        """Removed ÷ all weights."""
        return 1 - self.kept / self.weights


def summarize_tensors(
    space: ParameterSpace,
    flops: Flops | None = None,
    saliencies: Mapping[str, tuple[float, ...]] | None = None,
) -> list[TensorSummary]:
    """The tensors of a space and what is left of them; flops: of the model  (eq. 50); saliencies: of a pruning's first step."""
    layers = []
    for name, part in space.slices.items():
        kept, each = int(space.keep[part].sum()), None if flops is None else flops.per_weight[name]
        count = part.stop - part.start
        counted = (None, None) if each is None else (each * count, each * kept)
        layers.append(
            TensorSummary(name, count, kept, *counted, saliencies=(saliencies or {}).get(name, ()))
        )
    return layers


def total(layers: Sequence[TensorSummary]) -> TensorSummary:
    """All tensors as one: sums, no saliencies."""
    known = all(layer.flops is not None for layer in layers)
    return TensorSummary(
        name="all",
        weights=sum(layer.weights for layer in layers),
        kept=sum(layer.kept for layer in layers),
        flops=sum(layer.flops or 0 for layer in layers) if known else None,
        flops_left=sum(layer.flops_left or 0 for layer in layers) if known else None,
    )
