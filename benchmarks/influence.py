"""Influence on MNIST: python benchmarks/influence.py [--samples 5000] [--tests 500] [--halves 50]
[--epochs 50] [--networks 10] [--trained-on halves] [--shares 1 .1] [--seed 0] [--wrong 0.1]
[--wrong-seeds 7 8 9] [--parts mislabelled datamodelling]

1. The linear datamodelling score: each network of `--halves` is trained on a random half of the
   samples with a seed of its own. For each test sample the sums of scores over the halves are
   ranked against the measured losses (Spearman), and the mean over test samples is reported, for
   one network's scores and for the average of `--networks`. These have other seeds, and are
   trained on all samples or on other, complementary halves. The damping is each of `--shares` times
   that of cross-validation on the network's training samples.
2. Mislabelled samples: a share of labels is replaced by another class, and a network is trained on
   them. Areas under the ROC curve: of its self-influence, its loss, the mean of its loss over all
   epochs so far, and the loss under those of `--networks` that were trained without the sample.

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
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from woodbury import Influence, complementary_halves, influence, unseen_losses


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


def outputs(stacked: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """Of networks whose weights are stacked, each on inputs of its own."""
    for layer in (0, 2, 4):
        weight, bias = stacked[f"{layer}.weight"], stacked[f"{layer}.bias"]
        hidden = torch.baddbmm(bias[:, None], hidden, weight.mT)
        hidden = hidden.relu() if layer < 4 else hidden
    return hidden


def trained(
    x: Tensor,
    y: Tensor,
    places: Sequence[Tensor],
    epochs: int,
    seeds: Sequence[int],
    watch: Callable[[dict[str, Tensor]], None] | None = None,
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
        watch: Called after each epoch with the stacked weights.
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
            optimizer.zero_grad()
            loss = cross_entropy(outputs(stacked, x[batch]).flatten(0, 1), y[batch].flatten())
            (loss * len(models)).backward()  # the sum of each network's mean
            optimizer.step()
        if watch is not None:
            watch(stacked)
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


def datamodelling(x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], args: argparse.Namespace):
    """The score of each network, and of the average of all so far; a line for each, as they come:
    a run that is ended early has said what it reached."""
    held, measured = retrained(x, y, test, args)
    seed = 1000 + 100 * args.seed
    places = [torch.arange(len(y))] * args.networks
    if args.trained_on == "halves":
        places = complementary_halves(len(y), args.networks, seed)
    start = time.process_time()
    models = trained(x, y, places, args.epochs, range(seed, seed + args.networks))
    print(f"{args.networks} networks trained in {time.process_time() - start:.0f} s")
    kinds: dict[str, Callable[[Influence], Tensor]] = {
        "scores": lambda found: found.scores,
        "leave one out": lambda found: found.leave_one_out,
    }
    columns = [f"{name}, {of}" for name in kinds for of in ("this one", "average")]
    print(f"| networks | share | {' | '.join(columns)} | damping | s |")
    print("|---" * (len(columns) + 4) + "|", flush=True)

    def lds(scores: Tensor, own: Tensor) -> float:
        predicted = scores.cpu().double() @ held[:, own].mT
        return float(spearman(predicted, -measured.mT.double()).mean())

    several: defaultdict[float, list[Influence]] = defaultdict(list)
    alone: defaultdict[tuple[str, float], list[float]] = defaultdict(list)
    for number, (model, own) in enumerate(zip(models, places, strict=True), 1):
        data = [(x[own], y[own])]
        start = time.process_time()
        one = influence(model, data, [test])
        seconds = time.process_time() - start
        for share in args.shares:
            found = one
            if share != 1:
                found = influence(model, data, [test], damping=share * one.damping)
            several[share].append(found)
            cells = [f"{number}", f"{share:g}"]
            for name, read in kinds.items():
                alone[name, share].append(lds(read(found), own))
                cells.append(f"{alone[name, share][-1]:.3f}")
                known = torch.cat(places[:number]).unique()
                if len(known) < len(y):  # of one half
                    cells.append("–")
                    continue
                mean = Influence.averaged(several[share], places[:number])
                cells.append(f"{lds(read(mean), known):.3f}")
            print(f"| {' | '.join(cells)} | {found.damping:.1e} | {seconds:.0f} |", flush=True)
    for (name, share), values in alone.items():
        print(f"{name}, share {share:g}, one network: {spread(values, 3)} (n = {len(values)})")


def mislabelled(x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], args: argparse.Namespace):
    """A line for each set of wrong labels and each number of epochs, then means and spreads."""
    names = ("self-influence", "loss", "mean loss over epochs", "loss unseen")
    print(f"| seed | epochs | {' | '.join(names)} | s, self-influence | s, loss unseen |")
    print("|---" * (len(names) + 4) + "|", flush=True)
    areas: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for seed in args.wrong_seeds:
        generator = torch.Generator().manual_seed(seed)
        wrong = torch.rand(len(y), generator=generator) < args.wrong
        shift = torch.randint(1, 10, (len(y),), generator=generator)
        labels = torch.where(wrong, (y + shift) % 10, y)
        for epochs in (max(1, args.epochs // 10), args.epochs):
            measures, seconds = suspicions(x, labels, test, epochs, args.networks, seed)
            for name, measure in zip(names, measures, strict=True):
                areas[name, epochs].append(area_under_roc(measure, wrong))
            cells = [f"{areas[name, epochs][-1]:.4f}" for name in names]
            took = " | ".join(f"{each:.0f}" for each in seconds)
            print(f"| {seed} | {epochs} | {' | '.join(cells)} | {took} |", flush=True)
    for (name, epochs), values in areas.items():
        print(f"{epochs} epochs, {name}: {spread(values, 4)} (n = {len(values)})")


def suspicions(
    x: Tensor, labels: Tensor, test: tuple[Tensor, Tensor], epochs: int, networks: int, seed: int
) -> tuple[list[Tensor], list[float]]:
    """What may tell of wrong labels, and the seconds of self-influence and of the half networks,
    their training with them."""
    history: list[Tensor] = []

    @torch.no_grad()
    def watch(stacked: dict[str, Tensor]) -> None:
        history.append(cross_entropy(outputs(stacked, x[None])[0], labels, reduction="none"))

    (model,) = trained(x, labels, [torch.arange(len(labels))], epochs, [seed], watch)
    start = time.process_time()
    found = influence(model, [(x, labels)], [(test[0][:10], test[1][:10])])
    middle = time.process_time()
    halves = complementary_halves(len(labels), networks, seed)
    models = trained(x, labels, halves, epochs, range(1000 + seed, 1000 + seed + networks))
    unseen = unseen_losses(models, halves, [(x, labels)])
    end = time.process_time()
    measures = [found.self_influence, history[-1], torch.stack(history).mean(0), unseen]
    return measures, [middle - start, end - middle]


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
    parser.add_argument("--trained-on", choices=("halves", "all"), default="halves")
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wrong", type=float, default=0.1)
    parser.add_argument("--wrong-seeds", nargs="+", type=int, default=[7, 8, 9])
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
