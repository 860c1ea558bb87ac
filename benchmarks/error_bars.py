"""Laplace's approximation on MNIST: python benchmarks/error_bars.py [--samples 1000] [--tests 2000]
[--rows 2000] [--epochs 50] [--seeds 5]

A network 784-64-10 trained on few digits: the mean log-likelihood and the expected calibration
error (15 bins) of held-out digits, of the plain network, of the same with a temperature, and of
the linearised one, under the prior of the largest evidence and under the one that 200 other
training digits choose, as they do the temperature; beside those of laplace-torch where it is
installed, with Kronecker factors of all layers (its default curvature for all weights) and with all
of the last layer. Nothing is chosen on the digits that are reported on. Seconds are CPU time, of
fit, choice and predictions. Needs ../shared/bench beside the project.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from measured import bench_data, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import woodbury

BINS = 15
STRUCTURES = {"all": "kron", "last_layer": "full"}
"""Of laplace-torch, by the weights that it takes."""

Data = tuple[Tensor, Tensor]


class Rival(NamedTuple):
    """A posterior of another package, inputs -> probabilities, and what it took."""

    name: str
    probabilities: Callable[[Tensor], Tensor]
    seconds: float


def trained(x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def calibration_error(probabilities: Tensor, y: Tensor) -> float:
    """Expected calibration error: |confidence − accuracy|, averaged over bins by their samples."""
    confidence, guess = probabilities.max(1)
    right = (guess == y).double()
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    away = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, confidence.double() - right)
    return float(away.abs().sum() / len(y))


def measures(probabilities: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Log-likelihood, calibration error and accuracy, the last two in percent."""
    log = probabilities.clamp_min(1e-12).log()[torch.arange(len(y)), y]
    accuracy = float((probabilities.argmax(1) == y).double().mean())
    return float(log.mean()), 100 * calibration_error(probabilities, y), 100 * accuracy


def tempered(model: nn.Module, held_out: Data, inputs: Tensor) -> Tensor:
    """Probabilities of the plain network, its outputs divided by what held-out digits choose."""
    x, y = held_out
    logits = model(x)
    scales = [2 ** (step / 8) for step in range(-16, 33)]
    best = min(scales, key=lambda scale: float(cross_entropy(logits / scale, y)))
    return (model(inputs) / best).softmax(1)


def rivals(model: nn.Module, train: Data, held_out: Data, subsets: list[str]) -> Iterator[Rival]:
    """laplace-torch's posteriors, by the same two ways to choose the prior."""
    if importlib.util.find_spec("laplace") is None:
        print("laplace-torch is left out: it is not installed.")
        return
    import laplace  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader, TensorDataset

    def loader(data: Data) -> DataLoader:
        return DataLoader(TensorDataset(*data), batch_size=50)

    for weights in subsets:
        structure = STRUCTURES[weights]
        for method in ("marglik", "gridsearch"):
            start = time.process_time()
            found = laplace.Laplace(
                model, "classification", subset_of_weights=weights, hessian_structure=structure
            )
            found.fit(loader(train))
            found.optimize_prior_precision(
                pred_type="glm", method=method, val_loader=loader(held_out), grid_size=21
            )
            chosen = "evidence" if method == "marglik" else "held-out digits"
            name = f"laplace-torch, {structure} of {weights}, prior by {chosen}"
            yield Rival(name, found, time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--tests", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rivals", nargs="*", default=list(STRUCTURES), choices=STRUCTURES)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    x, y, x_test, y_test = bench_data(args.threads).mnist()
    order = torch.randperm(len(y_test), generator=torch.Generator().manual_seed(0))
    x_test, y_test = x_test[order[: args.tests]].flatten(1), y_test[order[: args.tests]]
    found: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    for seed in range(args.seeds):
        drawn = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        own, other = drawn[: args.samples], drawn[-200:]
        model = trained(x[own].flatten(1), y[own], args.epochs, seed)
        with torch.no_grad():
            found["plain network"].append((*measures(model(x_test).softmax(1), y_test), 0.0))
        held = x[other].flatten(1), y[other]
        start = time.process_time()
        with torch.no_grad():
            cooled = tempered(model, held, x_test)
        result = (*measures(cooled, y_test), time.process_time() - start)
        found["plain network, temperature by held-out digits"].append(result)
        start = time.process_time()
        objective = woodbury.Objective.from_model(model, [(x[own].flatten(1), y[own])])
        recipe = woodbury.gauss_newton(woodbury.mfac(args.rows), args.rows // args.samples)
        by_evidence = woodbury.Laplace(recipe(objective), objective).with_best_prior()
        posteriors = {
            "Laplace, prior by evidence": by_evidence,
            "Laplace, prior by held-out digits": by_evidence.with_prior_chosen_on([held]),
        }
        for name, posterior in posteriors.items():
            parts = [posterior.probabilities(part) for part in x_test.split(100)]
            seconds = time.process_time() - start
            result = (*measures(torch.cat(parts), y_test), seconds)
            found[name].append(result)
            print(seed, name, f"prior {posterior.prior_precision:.3g}", result, flush=True)
        for rival in rivals(model, (x[own].flatten(1), y[own]), held, args.rivals):
            start = time.process_time()
            with torch.no_grad():
                parts = [rival.probabilities(part) for part in x_test.split(50)]
            seconds = rival.seconds + time.process_time() - start
            result = (*measures(torch.cat(parts), y_test), seconds)
            found[rival.name].append(result)
            print(seed, rival.name, result, flush=True)
    table = Table("", "log-likelihood", "calibration error, %", "accuracy, %", "s")
    for name, rows in found.items():
        table.add_row(name, *(spread(list(column)) for column in zip(*rows, strict=True)))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
