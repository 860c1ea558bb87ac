"""Influence on MNIST: python benchmarks/influence.py [--samples 5000] [--tests 500] [--halves 50]
[--epochs 50] [--networks 10] [--wrong 0.1] [--parts mislabelled datamodelling]

1. The linear datamodelling score: each network of `--halves` is trained on a random half of the
   samples with a seed of its own. For each test sample the sums of scores over the halves are
   ranked against the measured losses (Spearman), and the mean over test samples is reported, for
   one network's scores and for the average of `--networks`. The damping is `--share` times that
   of cross-validation on the training samples.
2. Mislabelled samples: a share of labels is replaced by another class, a network is trained on
   them, and self-influence tells them apart (area under the ROC curve, beside the loss alone).

The network is 784-128-64-10, by SGD of learning rate .01, momentum .9, batches of 64. No number is
chosen on the test samples: the damping comes from cross-validation on the training samples. Needs
../shared/bench beside the project.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measured import bench_data, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from woodbury import Influence, influence


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


def trained(
    x: Tensor, y: Tensor, places: Sequence[Tensor], epochs: int, seeds: Sequence[int]
) -> list[nn.Sequential]:
    """Networks that are trained side by side, each on as many samples of its own.

    Their weights are stacked, so that a layer of all networks is one batched product. Each takes
    the very steps that it would take alone.

    Args:
        x: Inputs of all samples.
        y: Labels of all samples.
        places: Of the samples of each network; of the same length each.
        epochs: Passes over these samples.
        seeds: Of the weights and of the order of the samples, one for each network.
    """
    models = [network(seed) for seed in seeds]
    states = [model.state_dict() for model in models]
    stacked = {
        name: torch.stack([state[name] for state in states]).requires_grad_() for name in states[0]
    }
    optimizer = torch.optim.SGD(stacked.values(), lr=0.01, momentum=0.9, fused=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    own = torch.stack(list(places))
    for _ in range(epochs):
        orders = torch.stack([torch.randperm(own.shape[1], generator=each) for each in generators])
        for batch in own.gather(1, orders).split(64, dim=1):
            hidden = x[batch]
            for layer in (0, 2, 4):
                weight, bias = stacked[f"{layer}.weight"], stacked[f"{layer}.bias"]
                hidden = torch.baddbmm(bias[:, None], hidden, weight.mT)
                hidden = hidden.relu() if layer < 4 else hidden
            optimizer.zero_grad()
            loss = cross_entropy(hidden.flatten(0, 1), y[batch].flatten())
            (loss * len(models)).backward()  # the sum of each network's mean
            optimizer.step()
    for place, model in enumerate(models):
        model.load_state_dict({name: each[place].detach() for name, each in stacked.items()})
    return models


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
    """Which samples each half holds (halves, n), and the test losses (halves, t).

    They are kept in a file of `--runs`, as nothing but the sizes decides them.
    """
    sizes = f"{len(y)}_{len(test[1])}_{args.halves}_{args.epochs}"
    file = args.runs / f"influence_{sizes}.pt"
    if file.exists():
        return torch.load(file)
    start = time.process_time()
    held = torch.zeros(args.halves, len(y), dtype=torch.float64)
    places = []
    for half in range(args.halves):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(half))
        places.append(order[: len(y) // 2])
        held[half, places[-1]] = 1
    models = trained(x, y, places, args.epochs, range(args.halves))
    measured = torch.stack([losses(model, *test) for model in models])
    print(f"{args.halves} halves trained in {time.process_time() - start:.0f} s", flush=True)
    args.runs.mkdir(parents=True, exist_ok=True)
    torch.save((held, measured), file)
    return held, measured


def averaged(several: list[Tensor]) -> dict[str, Tensor]:
    """The mean of the networks' scores, and of these with the length 1 for each test sample: else
    the networks that have a large loss there count most."""
    units = [scores / scores.norm(dim=1, keepdim=True).clamp_min(1e-30) for scores in several]
    return {"mean": torch.stack(several).mean(0), "mean of lengths 1": torch.stack(units).mean(0)}


def datamodelling(x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], args: argparse.Namespace):
    """The score of each network, and of the average of all so far; a line for each, as they come:
    a run that is ended early has said what it reached."""
    held, measured = retrained(x, y, test, args)
    kinds: dict[str, Callable[[Influence], Tensor]] = {
        "scores": lambda found: found.scores,
        "leave one out": lambda found: found.leave_one_out,
    }
    columns = [
        f"{name}, {of}" for name in kinds for of in ("this one", *averaged([torch.ones(1, 1)]))
    ]
    print(f"| networks | {' | '.join(columns)} | damping | s |")
    print("|---" * (len(columns) + 3) + "|", flush=True)

    def lds(scores: Tensor) -> float:
        return float(spearman(scores.cpu().double() @ held.mT, -measured.mT.double()).mean())

    found: defaultdict[str, list[Tensor]] = defaultdict(list)
    alone: defaultdict[str, list[float]] = defaultdict(list)
    everything = [torch.arange(len(y))] * args.networks
    models = trained(x, y, everything, args.epochs, range(1000, 1000 + args.networks))
    for number, model in enumerate(models, 1):
        start = time.process_time()
        one = influence(model, [(x, y)], [test])
        if args.share != 1:
            one = influence(model, [(x, y)], [test], damping=args.share * one.damping)
        seconds = time.process_time() - start
        cells = []
        for name, read in kinds.items():
            found[name].append(read(one).float())
            alone[name].append(lds(found[name][-1]))
            means = averaged(found[name]).values()
            cells += [f"{each:.3f}" for each in (alone[name][-1], *map(lds, means))]
        print(f"| {number} | {' | '.join(cells)} | {one.damping:.1e} | {seconds:.0f} |", flush=True)
    for name, values in alone.items():
        print(f"{name}, one network: {spread(values, 3)} (n = {len(values)})")


def mislabelled(x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], args: argparse.Namespace):
    generator = torch.Generator().manual_seed(7)
    wrong = torch.rand(len(y), generator=generator) < args.wrong
    shift = torch.randint(1, 10, (len(y),), generator=generator)
    labels = torch.where(wrong, (y + shift) % 10, y)
    table = Table("network", "self-influence", "loss alone", "s", title="Mislabelled samples: AUC")
    for epochs in (max(1, args.epochs // 10), args.epochs):
        (model,) = trained(x, labels, [torch.arange(len(y))], epochs, [0])
        start = time.process_time()
        found = influence(model, [(x, labels)], [(test[0][:10], test[1][:10])])
        took = f"{time.process_time() - start:.0f}"
        own = area_under_roc(found.self_influence, wrong)
        alone = area_under_roc(losses(model, x, labels), wrong)
        table.add_row(f"{epochs} epochs", f"{own:.4f}", f"{alone:.4f}", took)
    Console(width=100).print(table)


PARTS = {"mislabelled": mislabelled, "datamodelling": datamodelling}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("--halves", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--wrong", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    x, y, x_test, y_test = bench_data(args.threads).mnist()
    generator = torch.Generator().manual_seed(0)
    train = torch.randperm(len(y), generator=generator)[: args.samples]
    tests = torch.randperm(len(y_test), generator=generator)[: args.tests]
    test = x_test[tests].flatten(1), y_test[tests]
    for part in args.parts:
        PARTS[part](x[train].flatten(1), y[train], test, args)


if __name__ == "__main__":
    main()
