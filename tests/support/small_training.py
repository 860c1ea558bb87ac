"""A small network, its data and its training loop, for tests of optimizers."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import Tensor, nn


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A perceptron of 43 weights: tensors of 20, 5, 15 and 3."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def data(dtype: torch.dtype = torch.float32, count: int = 200) -> tuple[Tensor, Tensor]:
    """Inputs (count, 8, 4) and labels (count, 8): a batch of eight samples for each step."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 8, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (count, 8), generator=generator)


def backward(model: nn.Module, step: int) -> Tensor:
    """The loss on the batch of one step, with its gradients added to those of the parameters."""
    x, y = data(next(model.parameters()).dtype)
    loss = nn.functional.cross_entropy(model(x[step]), y[step])
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """The usual loop."""
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def vector(model: nn.Module) -> Tensor:
    """All weights as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def gradient(model: nn.Module) -> Tensor:
    """All gradients as one vector."""
    gradients = [parameter.grad for parameter in model.parameters()]
    return torch.cat([each.flatten() for each in gradients if each is not None])


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    """Bit for bit."""
    torch.testing.assert_close(vector(one), vector(other), rtol=0, atol=0)


def through_a_file(state: Any) -> Any:
    """A state after a checkpoint has been written and read with `weights_only`."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def snapshot(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A copy of the state, which the next step leaves alone."""
    return copy.deepcopy(optimizer.state_dict())
