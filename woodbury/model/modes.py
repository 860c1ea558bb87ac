"""Eval mode as a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A context in which a model is in eval mode; each module's own mode is restored after it.

    BatchNorm normalises by its running statistics, and nothing is dropped out, also in a module
    whose own `train` would have it otherwise: only the flag of each module is set, as a `train` of
    the user's may do more, such as merging weights, that no flag takes back. Two fast paths of
    eval mode are off: cuDNN's where a module is recurrent, as its recurrences have no backward pass
    there, and that of nn.TransformerEncoder, which speaks in nested tensors under a padding mask.

    Args:
        model: The model.

    Example:
        >>> model = nn.Dropout()
        >>> with eval_mode(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    is_recurrent = any(isinstance(module, nn.RNNBase) for module, _ in modes)
    cudnn = torch.backends.cudnn.enabled
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.cudnn.enabled = cudnn and not is_recurrent
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        torch.backends.cudnn.enabled = cudnn
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        for module, training in modes:
            module.training = training
