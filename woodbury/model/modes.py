"""Objective = model + likelihood + batches + space: the only thing that holds a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode (BatchNorm by its running statistics, no dropout), each module's mode restored after.

    Without cuDNN where a module is recurrent, as cuDNN's recurrences have no backward pass in eval mode.
    """
    modes, fused = (
        [(module, module.training) for module in model.modules()],
        torch.backends.cudnn.enabled,
    )
    torch.backends.cudnn.enabled = fused and not any(
        isinstance(module, nn.RNNBase) for module, _ in modes
    )
    model.eval()
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = fused
        for module, training in modes:
            module.training = training
