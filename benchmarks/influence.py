"""Influence on MNIST: python benchmarks/influence.py [--samples 5000] [--tests 500] [--halves 50]
[--epochs 50] [--networks 10] [--wrong 0.1]

1. The linear datamodelling score: each network of `--halves` is trained on a random half of the
   samples with a seed of its own. For each test sample the sums of scores over the halves are
   ranked against the measured losses (Spearman), and the mean over test samples is reported, for
   one network's scores and for the average of `--networks`.
2. Mislabelled samples: a share of labels is replaced by another class, a network is trained on
   them, and self-influence tells them apart (area under the ROC curve, beside the loss alone).

The network is 784-128-64-10, by SGD of learning rate .01, momentum .9, batches of 64. No number is
chosen on the test samples: the damping comes from cross-validation on the training samples. Needs
../shared/bench beside the project.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from measured import bench_data
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from woodbury import Influence, influence


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


def trained(x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Sequential:
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=generator).split(64):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


@torch.no_grad()
def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y, reduction="none")


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation along the last dimension."""
    a, b = (each.argsort(-1).argsort(-1).double() for each in (a, b))
    a, b = (each - each.mean(-1, keepdim=True) for each in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def area_under_roc(scores: Tensor, positive: Tensor) -> float:
    ranks = scores.argsort().argsort().double() + 1
    count, rest = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))


def retrained(x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], args: argparse.Namespace):
    """Which samples each half holds (halves, n), and the test losses (halves, t)."""
    held = torch.zeros(args.halves, len(y), dtype=torch.float64)
    found = []
    for half in range(args.halves):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(half))
        chosen = order[: len(y) // 2]
        held[half, chosen] = 1
        found.append(losses(trained(x[chosen], y[chosen], args.epochs, half), *test))
    return held, torch.stack(found)


def datamodelling(x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], args: argparse.Namespace):
    table = Table("scores", "networks", "LDS", "damping", "s", title="Linear datamodelling score")
    start = time.perf_counter()
    held, measured = retrained(x, y, test, args)
    print(f"{args.halves} halves trained in {time.perf_counter() - start:.0f} s", flush=True)
    several: list[Influence] = []
    seconds = 0.0
    for seed in range(1000, 1000 + args.networks):
        model = trained(x, y, args.epochs, seed)
        start = time.perf_counter()
        several.append(influence(model, [(x, y)], [test]))
        seconds += time.perf_counter() - start
    kinds: dict[str, Callable[[Influence], Tensor]] = {
        "scores": lambda found: found.scores,
        "leave_one_out": lambda found: found.leave_one_out,
    }
    for name, read in kinds.items():
        for networks in sorted({1, args.networks}):
            mean = Influence.averaged(several[:networks])
            lds = spearman(read(mean).cpu() @ held.mT, -measured.mT.double()).mean()
            took = seconds * networks / args.networks
            table.add_row(
                name, str(networks), f"{float(lds):.3f}", f"{mean.damping:.1e}", f"{took:.0f}"
            )
    Console(width=100).print(table)


def mislabelled(x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], args: argparse.Namespace):
    generator = torch.Generator().manual_seed(7)
    wrong = torch.rand(len(y), generator=generator) < args.wrong
    shift = torch.randint(1, 10, (len(y),), generator=generator)
    labels = torch.where(wrong, (y + shift) % 10, y)
    table = Table("network", "self-influence", "loss alone", title="Mislabelled samples: AUC")
    for epochs in (max(1, args.epochs // 10), args.epochs):
        model = trained(x, labels, epochs, 0)
        found = influence(model, [(x, labels)], [(test[0][:10], test[1][:10])])
        own = area_under_roc(found.self_influence, wrong)
        alone = area_under_roc(losses(model, x, labels), wrong)
        table.add_row(f"{epochs} epochs", f"{own:.4f}", f"{alone:.4f}")
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("--halves", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--wrong", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    x, y, x_test, y_test = bench_data(args.threads).mnist()
    generator = torch.Generator().manual_seed(0)
    train = torch.randperm(len(y), generator=generator)[: args.samples]
    tests = torch.randperm(len(y_test), generator=generator)[: args.tests]
    test = x_test[tests].flatten(1), y_test[tests]
    mislabelled(x[train].flatten(1), y[train], test, args)
    datamodelling(x[train].flatten(1), y[train], test, args)


if __name__ == "__main__":
    main()
