"""What is known of the models of transformers, without importing transformers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError

MODELS = "transformers.modeling_utils"
"""The module of their base class: it is imported where there is such a model."""

OUTPUTS = "transformers.utils.generic"
"""The module of the base class of what they return."""


def is_pretrained(module: Any) -> bool:
    """Whether a module is a model of transformers.

    Args:
        module: Any object.

    Returns:
        True for a `PreTrainedModel`.

    Example:
        >>> is_pretrained(nn.Linear(2, 2))
        False
    """
    library = sys.modules.get(MODELS)
    return library is not None and isinstance(module, library.PreTrainedModel)


def pretrained_models(model: nn.Module) -> Iterator[Any]:
    """The models of transformers in a model, but for those inside another one.

    Args:
        model: The model, which may be one itself.

    Returns:
        Each of them.
    """
    if is_pretrained(model):
        yield model
        return
    for child in model.children():
        yield from pretrained_models(child)


def head_parameters(model: Any) -> list[nn.Parameter]:
    """The parameters of a model's output layers.

    They are those outside the base model, such as a classifier, and those of the layer that scores
    tokens.

    Args:
        model: A `PreTrainedModel`.

    Returns:
        The parameters; none for a model that ends with its hidden states.
    """
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    head = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    scores = model.get_output_embeddings()
    return head if scores is None else [*head, *scores.parameters()]


def scores_of(output: Any) -> Tensor | None:
    """The scores in what a model of transformers returns.

    Args:
        output: What any model returned.

    Returns:
        `output.logits` with the classes along dimension 1, (b, C) or (b, C, T); None for an output
        of another kind, or without logits.

    Example:
        >>> scores_of({"logits": 3}) is None
        True
    """
    library = sys.modules.get(OUTPUTS)
    if library is None or not isinstance(output, library.ModelOutput):
        return None
    logits = output.get("logits")
    if not isinstance(logits, Tensor):
        return None
    return logits.mT if logits.ndim == 3 else logits  # the classes of tokens are the last dimension


def may_be_unshifted(inputs: Any, target: Any, ignored: int) -> bool:
    """Whether labels of tokens are those tokens themselves, and not the ones that follow.

    Args:
        inputs: Of a batch.
        target: Its labels.
        ignored: The label that means no observation.

    Returns:
        True where that holds for each label.

    Example:
        >>> tokens = torch.tensor([[3, 4, 5]])
        >>> may_be_unshifted({"input_ids": tokens}, tokens, -100)
        True
        >>> may_be_unshifted({"input_ids": tokens}, torch.tensor([[4, 5, -100]]), -100)
        False
    """
    tokens = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    if not (isinstance(tokens, Tensor) and isinstance(target, Tensor)):
        return False
    observed = target != ignored
    if tokens.shape != target.shape or not bool(observed.any()):
        return False
    following = tokens.roll(-1, -1)
    return torch.equal(tokens[observed], target[observed]) and not torch.equal(
        following[observed], target[observed]
    )


def check_shifted(output: Any) -> None:
    """Raise for a causal model, whose labels are those of the token that follows.

    Args:
        output: What the model returned for inputs whose labels `may_be_unshifted`.

    Raises:
        WoodburyError: If the output is of a causal model, which transformers names so.
    """
    if scores_of(output) is not None and "CausalLM" in type(output).__name__:
        raise WoodburyError(
            "The labels of a causal model are its input tokens, and each token is to predict the "
            "next: give labels[:, 1:] and a last column of -100."
        )
