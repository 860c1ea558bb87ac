"""A small network, and the equation of a decay, for least squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad

X = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]
DECAY: dict[str, Callable[..., Tensor]] = {
    "decay": lambda u, t: grad(u)(t)[0] + u(t),
    "start": lambda u, t: u(t) - 1,
}
TIMES = {"decay": X, "start": X[:1]}


def net(seed: int = 0, inputs: int = 1, outputs: int = 1) -> nn.Sequential:
    """A perceptron of one hidden layer, float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fitted(u: Any, x: Tensor, y: Tensor) -> Tensor:
    return u(x) - y
