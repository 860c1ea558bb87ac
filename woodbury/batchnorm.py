"""BatchNorm's running statistics, estimated anew: an explicit step, never hidden in another."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from woodbury.errors import WoodburyError
from woodbury.objective import Batch, checked


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Set every BatchNorm's running mean and variance to the plain average over `batches`; says how many there were.

    All other modules stay in eval mode. On error the statistics are put back. Raises WoodburyError without a batch.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return 0
    before = [(norm.momentum, {k: v.clone() for k, v in norm.state_dict().items()}) for norm in norms]
    modes = [(module, module.training) for module in model.modules()]
    seen, finished = 0, False
    model.eval()
    try:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average, in which every batch counts alike
        for inputs, _ in checked(batches):
            model(**inputs) if isinstance(inputs, dict) else model(
                *(inputs if isinstance(inputs, (tuple, list)) else [inputs])
            )
            seen += 1
        if not seen:
            raise WoodburyError("No batch was given: BatchNorm's statistics need at least one.")
        finished = True
    finally:
        for norm, (momentum, state) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not finished:
                norm.load_state_dict(state)
        for module, training in modes:
            module.training = training
    return len(norms)
