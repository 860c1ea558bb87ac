"""Whether a model and its data fit each other, seen before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.cli.inputs.splits import Batches
from woodbury.errors import WoodburyError, user_code
from woodbury.model.batches import Batch, tensors_in
from woodbury.model.calling import call_model
from woodbury.model.likelihood import IGNORED, Likelihood, cross_entropy
from woodbury.model.modes import eval_mode
from woodbury.model.pretrained import scores_of


def probe(
    model: nn.Module, batches: Iterable[Batch], likelihood: Likelihood, labels: Tensor | None = None
) -> None:
    """See whether a model takes the first batch, and its outputs fit the labels.

    Args:
        model: The network; it is left as it was.
        batches: The data. All labels of a list are looked at, of `Batches` those of the first.
        likelihood: The loss.
        labels: All labels of the data where they are known.

    Raises:
        WoodburyError: If anything does not fit.
    """
    inputs, target = next(iter(batches))
    output = predict(model, inputs, likelihood)
    if type(likelihood.loss) is not type(cross_entropy.loss):
        likelihood.loss(output, target)  # says itself what does not fit
        return
    _check_classes(output, target)
    seen = [target] if isinstance(batches, Batches) else [label for _, label in batches]
    _check_range(seen if labels is None else [*seen, labels], output.shape[1])


@torch.no_grad()
def predict(model: nn.Module, inputs: Any, likelihood: Likelihood) -> Tensor:
    """The scores of a model for a batch of inputs, in eval mode.

    Args:
        model: The model.
        inputs: Of a batch.
        likelihood: Which reads them from the output.

    Raises:
        WoodburyError: If the model refuses the batch, or gives no tensor.
    """
    shape = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(inputs))
    with (
        eval_mode(model),
        user_code(f"The model refuses a batch of shape {shape}: does DATA fit it?"),
    ):
        output = call_model(model, inputs)
    scores = likelihood.output_of(output) if scores_of(output) is not None else output
    if not isinstance(scores, Tensor):
        raise WoodburyError(f"The model gives a {type(output).__name__}: it must give one tensor.")
    return scores


def _check_classes(output: Tensor, target: Any) -> None:
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        kind = str(target.dtype)[6:] if isinstance(target, Tensor) else type(target).__name__
        raise WoodburyError(
            f"The labels are {kind}: cross_entropy needs integer classes; or take --loss "
            "squared_error or binary."
        )
    if output.ndim < 2 or target.shape != output.shape[:1] + output.shape[2:]:
        raise WoodburyError(
            f"The model's outputs have shape {tuple(output.shape)} and the labels "
            f"{tuple(target.shape)}: give (b, classes) and (b,)."
        )


def _check_range(targets: Sequence[Tensor], classes: int) -> None:
    observed = [target[target != IGNORED] for target in targets]
    observed = [labels for labels in observed if len(labels)]
    if not observed:
        raise WoodburyError(
            f"Every label is {IGNORED}, which means no observation: give some classes."
        )
    low = min(int(labels.min()) for labels in observed)
    high = max(int(labels.max()) for labels in observed)
    if low < 0 or high >= classes:
        raise WoodburyError(
            f"The labels run from {low} to {high} but the model knows {classes} classes, numbered "
            "from 0."
        )
