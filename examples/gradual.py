"""Gradual pruning in a training loop of one's own, with three lines added.

pip install -e '.[demo]'
python examples/gradual.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import woodbury

BATCH = 64
DENSE = 600
"""Steps of training before the pruning."""
PRUNED = 1200
"""Steps of training with it."""


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """8 × 8 images: (1347, 64), (1347,) to train on and (450, 64), (450,) to test."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32) / 16
    y = torch.tensor(labels)
    train, test = train_test_split(range(len(y)), test_size=0.25, random_state=0, stratify=labels)
    return x[train], y[train], x[test], y[test]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """In per cent."""
    model.eval()
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())


def train_and_prune(pruner: woodbury.Pruner) -> nn.Module:
    """Train a small network, and prune 95 % of its weights on the way."""
    x, y, x_test, y_test = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

    # The three lines: when to prune, in steps of the optimizer; a learning rate that restarts after
    # every pruning step; and scheduler.step() below.
    until = DENSE + PRUNED * 2 // 3
    gradual = woodbury.Gradual(
        model, optimizer, [(x, y)], 0.95, start=DENSE, end=until, steps=10, pruner=pruner
    )
    scheduler = LambdaLR(
        optimizer, woodbury.training.cosine_restarts(gradual.pruning_steps, DENSE + PRUNED)
    )

    for step in range(1, DENSE + PRUNED + 1):
        model.train()
        batch = torch.randint(len(y), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        scheduler.step()
        if step in gradual.pruning_steps:
            reached = accuracy(model, x_test, y_test)
            print(f"  step {step:4d}: {gradual.sparsity:.1%} pruned, test accuracy {reached:.1f} %")
    reached = accuracy(model, x_test, y_test)
    print(f"  at the end: {gradual.sparsity:.1%} pruned, test accuracy {reached:.1f} %")
    return model


def main() -> None:
    print("M-FAC, joint update")
    train_and_prune(woodbury.Pruner(woodbury.mfac(1000, 1e-4)))
    print("magnitude")
    train_and_prune(woodbury.Pruner(None, woodbury.saliencies.magnitude, woodbury.updates.zero))


if __name__ == "__main__":
    main()
