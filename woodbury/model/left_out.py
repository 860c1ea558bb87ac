"""What pruning leaves out unless it is named: embeddings, and the heads of transformers' models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from woodbury.model.layers import memory_of
from woodbury.model.pretrained import head_parameters, pretrained_models

EMBEDDING = "embedding"
HEAD = "head"

HOW_TO_TAKE_IN = 'include="*" takes them in'


def embeddings_and_heads(model: nn.Module) -> dict[str, str]:
    """The matrices that are no layer between a network's input and its scores.

    1. An embedding: a row of it is looked up, so that what the calibration set never mentions
       seems free to remove. Layers that share its memory are left out with it, and so are
       positions and class tokens, (1, T, C).
    2. The head of a model of transformers: as in SparseGPT (Frantar and Alistarh 2023), Wanda and
       the Optimal BERT Surgeon (Kurtic et al. 2022), which prune the layers of the transformer
       alone.

    Args:
        model: The model, without wrappers.

    Returns:
        The name of each such parameter of two or more dimensions -> `EMBEDDING` or `HEAD`.

    Example:
        >>> embeddings_and_heads(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)))
        {'0.weight': 'embedding'}
    """
    kinds: dict[tuple[Any, ...], str] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or _is_added(module, parameter):
                kinds[memory_of(parameter)] = EMBEDDING
    for pretrained in pretrained_models(model):
        for parameter in head_parameters(pretrained):
            kinds.setdefault(memory_of(parameter), HEAD)
    return {
        name: kinds[memory_of(parameter)]
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and memory_of(parameter) in kinds
    }


def left_out_in_words(left_out: Mapping[str, str]) -> str:
    """What was left out, for people.

    Args:
        left_out: The name of each tensor -> `EMBEDDING` or `HEAD`.

    Returns:
        One phrase; empty for nothing.

    Example:
        >>> left_out_in_words({"wte.weight": "embedding", "wpe.weight": "embedding"})
        'embeddings (wte.weight and 1 more)'
    """
    parts = []
    for kind in (EMBEDDING, HEAD):
        names = [name for name, given in left_out.items() if given == kind]
        if names:
            word = kind if len(names) == 1 else f"{kind}s" if kind == EMBEDDING else kind
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(f"{word} ({names[0]}{more})")
    return ", ".join(parts)


def _is_added(module: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter is a position or a class token: it is added to each sample's tokens."""
    is_of_torch = type(module).__module__.partition(".")[0] == "torch"
    return not is_of_torch and parameter.ndim == 3 and len(parameter) == 1
