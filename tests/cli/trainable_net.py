"""A user's file: networks and data for `train` and for `prune --epochs`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def fresh() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 3)
    )


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return fresh()


def other() -> nn.Module:
    return build(1)


def frozen() -> nn.Module:
    return build().requires_grad_(False)


def line() -> nn.Module:
    return nn.Linear(16, 1)


def data() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    inputs = torch.randn(300, 16, generator=generator) + 2 * torch.eye(3, 16)[labels]
    return inputs[:240], labels[:240], inputs[240:], labels[240:]


def numbers() -> tuple[Tensor, Tensor]:
    x = data()[0]
    return x, x[:, :1] - x[:, 1:2]
