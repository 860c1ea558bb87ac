"""woodbury demo: seven ways to prune a small network on handwritten digits, in less than a minute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from woodbury.cli.common import free, one_sentence, progress_bars, say
from woodbury.cli.compare import show_comparison, write_comparison
from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import diagonal_fisher, gauss_newton, mfac, woodfisher
from woodbury.evaluation.comparison import Method, choose_damping, compare
from woodbury.evaluation.metrics import accuracy
from woodbury.io.folders import output_folder
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.monitor import report
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit.least_squares import Refit
from woodbury.pruning.saliencies import magnitude, obd, obs
from woodbury.pruning.updates import independent, joint, zero
from woodbury.reporting import plots

SPARSITIES = (0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95)
DAMPINGS, CHOOSING = (
    (1e-7, 1e-6, 1e-5, 1e-4, 1e-3),
    (0.8, 0.9),
)  # the candidates, and the sparsities they are tried at
COUNT, BLOCK, EPOCHS, NOISE, SAMPLES = 500, 100, 20, 0.3, 3


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits, 8 × 8. The network is trained on `calibration` and `held_out` and never sees `test`."""

    calibration: Batch
    held_out: Batch
    test: Batch


@one_sentence
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder to write: new or empty.  [default: woodbury-demo, or -2, -3, …]",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", help="Seeds the splits, the training and the calibration samples."
        ),
    ] = 0,
) -> None:
    """Train a small network, prune it in seven ways at seven sparsities, and show the difference.

    Example:  woodbury demo --out runs/demo
    """
    plots.require_matplotlib()
    out = out or free(Path("woodbury-demo"))
    with output_folder(out) as folder, one_thread():
        digits = load_digits(seed)
        with progress_bars():
            model = train(digits, seed).requires_grad_(False)
            space = ParameterSpace.from_model(model, min_ndim=2)

            def calibrated(sample: int) -> Objective:
                images, labels = digits.calibration
                drawn = torch.randperm(
                    len(labels), generator=torch.Generator().manual_seed(sample)
                )[:COUNT]
                return Objective.from_model(model, [(images[drawn], labels[drawn])], space=space)

            chosen = with_chosen_dampings(methods(), calibrated(seed), digits.held_out)
            seeds = range(seed, seed + SAMPLES)
            results = compare(
                chosen,
                SPARSITIES,
                seeds,
                calibrated,
                lambda o: accuracy(o, [digits.test]),
            )
        dense = accuracy(calibrated(seed), [digits.test])
        dampings = {name: method.dampings[0] for name, method in chosen.items() if method.dampings}
        settings = {
            "weights": space.n,
            "gradients": COUNT,
            "weights per block of WoodFisher": BLOCK,
            "calibration seeds": list(seeds),
            "test images": len(digits.test[1]),
        }
        settings |= {f"damping of {name}": damping for name, damping in dampings.items()}
        lead = (
            f"A convolutional network of {space.n:,} weights on scikit-learn's digits, pruned in one step without any "
            f"retraining. Each Fisher is made of {COUNT} training images; its damping was chosen on "
            f"{len(digits.held_out[1])} other training images, never on the test images."
        )
        write_comparison(folder, "Seven ways to prune a network", lead, results, dense, settings)
    show_comparison(out, results, dense)
    say(NEXT.format(out=out), plain=True)


NEXT = """
What next?
  {out}/report.html    the same with the picture: open it in a browser
  woodbury prune --help     prune your own network
  woodbury compare --help   compare these methods on it
  docs/math.md              what the joint update solves
"""


def methods() -> Mapping[str, Method]:
    """Seven ways to prune, from no curvature to the exact constrained optimum and beyond."""
    exact = Pruner(gauss_newton(mfac(2 * COUNT), 2), obs, joint)
    return {
        "magnitude": Method(Pruner(None, magnitude, zero)),
        "diagonal Fisher": Method(Pruner(diagonal_fisher(COUNT), obd, zero)),
        "WoodFisher": Method(Pruner(woodfisher(COUNT, BLOCK), obs, independent)),
        "M-FAC": Method(Pruner(mfac(COUNT), obs, independent)),
        "M-FAC, joint": Method(Pruner(mfac(COUNT), obs, joint)),
        "Gauss–Newton": Method(exact),
        "… and a refit": Method(exact, refit=Refit()),
    }


def with_chosen_dampings(
    table: Mapping[str, Method],
    objective: Objective,
    held_out: Batch,
) -> dict[str, Method]:
    """Each method with the damping that loses least on held-out training images."""
    chosen = dict(table)
    for done, (name, method) in enumerate(table.items(), 1):
        if method.pruner.fisher is not None:
            best = choose_damping(
                method, DAMPINGS, CHOOSING, objective, lambda o: -o.loss([held_out])
            )
            chosen[name] = replace(method, dampings=(best,))
        report("dampings", done, len(table))
    return chosen


def load_digits(seed: int) -> Digits:
    """1,797 images: a quarter to test on; of the rest a quarter is kept from calibration, to choose dampings on."""
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise WoodburyError("The demo needs scikit-learn: pip install 'woodbury[demo]'.") from error
    images, labels = load(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    rest, test = train_test_split(
        range(len(y)), test_size=0.25, random_state=seed % 2**32, stratify=labels
    )
    held = round(0.25 * len(rest))
    return Digits(
        (x[rest[held:]], y[rest[held:]]), (x[rest[:held]], y[rest[:held]]), (x[test], y[test])
    )


def network() -> nn.Module:
    """Two convolutions and two linear layers, 21,612 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 16, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


def train(digits: Digits, seed: int) -> nn.Module:
    """The network after 20 epochs of AdamW with one cycle of the learning rate, the same for the same seed.

    Noise on the images keeps the loss from vanishing; with it the gradients, of which the Fisher is made, would vanish too.
    """
    x, y = (torch.cat(parts) for parts in zip(digits.calibration, digits.held_out, strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    steps = EPOCHS * -(-len(y) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(1, EPOCHS + 1):
        for batch in torch.randperm(len(y), generator=generator).split(64):
            optimizer.zero_grad()
            noisy = x[batch] + NOISE * torch.randn(x[batch].shape, generator=generator)
            nn.functional.cross_entropy(model(noisy), y[batch]).backward()
            optimizer.step()
            schedule.step()
        report("training", epoch, EPOCHS)
    return model.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for matrices this small: as fast as two, not slowed by a busy machine, and the same digits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
