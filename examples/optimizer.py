"""MFAC as a torch optimizer: train, resume bit for bit, prune, fine-tune with the zeros held.

python examples/optimizer.py
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.optim import MFAC


def spirals(count: int = 600) -> tuple[Tensor, Tensor]:
    """Three arms in the plane, (count, 2), and which of them each point is on, (count,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    radius = torch.rand(count, generator=generator).sqrt()
    angle = 4 * radius + labels * 2.1 + 0.15 * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    """The loss on all points after the steps, each on 64 points of its own."""
    points, labels = spirals()
    for step in steps:
        batch = torch.randint(len(points), (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(points[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(points), labels))


def network() -> nn.Sequential:
    """A perceptron of 1,251 weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)
    )


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD, momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    "MFAC": lambda model: MFAC(
        model.parameters(), lr=0.003, window=128, damping=1e-3, momentum=0.9
    ),
}


def compare() -> None:
    """The loss of three optimizers after 100 and 400 steps."""
    print("loss after        100 steps    400 steps")
    for name, make in OPTIMIZERS.items():
        model = network()
        optimizer = make(model)
        losses = [train(model, optimizer, range(100)), train(model, optimizer, range(100, 400))]
        print(f"{name:<16}" + "".join(f"{loss:>13.4f}" for loss in losses))


def resume(model: nn.Module) -> None:
    """Train `model` for 400 steps, and the second half once more from a checkpoint."""
    optimizer = OPTIMIZERS["MFAC"](model)
    train(model, optimizer, range(200))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    resumed = copy.deepcopy(model)
    resumed.load_state_dict(state["model"])
    other = OPTIMIZERS["MFAC"](resumed)
    other.load_state_dict(state["optimizer"])
    same = train(model, optimizer, range(200, 400)) == train(resumed, other, range(200, 400))
    verdict = "the same, bit for bit" if same else "different"
    print(f"interrupted at step 200 and resumed: {verdict}")


def prune_and_finetune(model: nn.Module) -> None:
    """Prune 60 % of the weights by magnitude, and train the kept ones with `keep`."""
    keep = {}
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            keep[name] = weight.detach().abs() >= weight.detach().abs().quantile(0.6)
            weight.data.mul_(keep[name])
    sparse = MFAC(
        model.named_parameters(), lr=0.001, window=128, damping=1e-3, momentum=0.9, keep=keep
    )
    pruned = train(model, sparse, range(0))
    tuned = train(model, sparse, range(400, 800))
    zeros = sum(int((weight == 0).sum()) for weight in model.parameters())
    print(
        f"60 % of the weights pruned: loss {pruned:.4f}, fine-tuned {tuned:.4f}, {zeros} zeros held"
    )


def main() -> None:
    compare()
    model = network()
    resume(model)
    prune_and_finetune(model)


if __name__ == "__main__":
    main()
