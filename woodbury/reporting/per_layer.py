"""Layer-wise sparsity: the weights, FLOPs and saliencies of each parameter tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from woodbury.model.flop_count import Flops
from woodbury.model.space import ParameterSpace
from woodbury.pruning.pruned import Quantiles


@dataclass(frozen=True)
class TensorSummary:
    """One parameter tensor before and after pruning.

    Attributes:
        name: Its name in the model.
        weights: How many weights it has.
        kept: How many of them are kept.
        flops: FLOPs per sample of all weights  (eq. 50), None where they were not counted.
        flops_left: FLOPs per sample of the kept weights, None where they were not counted.
        saliencies: Of its units before the first step, None where the selection asked for none.
    """

    name: str
    weights: int
    kept: int
    flops: float | None = None
    flops_left: float | None = None
    saliencies: Quantiles | None = None

    @property
    def sparsity(self) -> float:
        """Removed ÷ all weights of the tensor."""
        return 1 - self.kept / self.weights


def summarize_tensors(
    space: ParameterSpace,
    flops: Flops | None = None,
    saliencies: Mapping[str, Quantiles] | None = None,
) -> list[TensorSummary]:
    """Summarize each tensor of a pruned space.

    Args:
        space: The space of a pruned objective.
        flops: What each weight costs, from `woodbury.model.flop_count.flops`; None to leave it out.
        saliencies: Tensor name -> saliencies, as in `Pruned.steps[0].saliencies`; None for none.

    Returns:
        One summary for each tensor, in the order of the space.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> space = ParameterSpace.from_model(nn.Linear(3, 1))
        >>> (tensor, bias) = summarize_tensors(space.restrict(torch.tensor([1, 0, 0, 1]) > 0))
        >>> tensor.name, tensor.weights, tensor.kept
        ('weight', 3, 1)
    """
    saliencies = saliencies or {}
    summaries = []
    for name, span in space.slices.items():
        weights = span.stop - span.start
        kept = int(space.keep[span].sum())
        per_weight = None if flops is None else flops.per_weight[name]
        summaries.append(
            TensorSummary(
                name=name,
                weights=weights,
                kept=kept,
                flops=None if per_weight is None else per_weight * weights,
                flops_left=None if per_weight is None else per_weight * kept,
                saliencies=saliencies.get(name),
            )
        )
    return summaries


def total(tensors: Sequence[TensorSummary]) -> TensorSummary:
    """All tensors as one, under the name "all".

    Args:
        tensors: At least one.

    Returns:
        The sums; FLOPs are None unless all tensors have them, and there are no saliencies.
    """
    counted = all(tensor.flops is not None for tensor in tensors)
    return TensorSummary(
        name="all",
        weights=sum(tensor.weights for tensor in tensors),
        kept=sum(tensor.kept for tensor in tensors),
        flops=sum(tensor.flops or 0 for tensor in tensors) if counted else None,
        flops_left=sum(tensor.flops_left or 0 for tensor in tensors) if counted else None,
    )
