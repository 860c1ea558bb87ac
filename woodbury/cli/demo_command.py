"""`woodbury demo`: seven ways to prune a small network on handwritten digits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter

from woodbury import monitor
from woodbury.cli.console import print_plain, progress_bars
from woodbury.cli.digits import load_digits, train_network
from woodbury.cli.invocation import repeating
from woodbury.cli.options import MOST_USED, Seed, out_option
from woodbury.cli.output import ComparisonReport, folder_for
from woodbury.estimation.recipes import diagonal_fisher, gauss_newton, mfac, woodfisher
from woodbury.evaluation.comparison import choose_damping, compare
from woodbury.evaluation.methods import Method
from woodbury.evaluation.metrics import accuracy, standard_error
from woodbury.io.settings import described
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.saliencies import magnitude, obd, obs
from woodbury.pruning.updates import independent, joint, zero

SPARSITIES = (0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95)
DAMPINGS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
"""The candidates of each method."""
SPARSITIES_TO_CHOOSE_AT = (0.8, 0.9)
COUNT = 500
"""Gradients in a Fisher."""
BLOCK = 100
"""Weights per block of WoodFisher."""
CALIBRATION_SETS = 3

WHAT_NEXT = """
What next?
  {out}/report.html    the same with the picture: open it in a browser
  woodbury prune --help     prune your own network
  woodbury compare --help   compare these methods on it
  docs/math.md              what the joint update solves
"""


def demo(
    *,
    out: Annotated[Path | None, out_option("demo")] = None,
    seed: Annotated[
        Seed,
        Parameter(group=MOST_USED, help="Seeds the splits, the training, the calibration sets."),
    ] = 0,
) -> None:
    """Train a small network, prune it in seven ways at seven sparsities, and compare them.

    Example:  `woodbury demo --out runs/demo`
    """
    with folder_for(out, Path("runs", "demo")) as (folder, out), one_thread():
        digits = load_digits(seed)
        with progress_bars():
            model = train_network(digits, seed).requires_grad_(False)
            space = ParameterSpace.from_model(model, min_ndim=2)

            def dense(calibration_seed: int) -> Objective:
                images, labels = digits.calibration
                generator = torch.Generator().manual_seed(calibration_seed)
                drawn = torch.randperm(len(labels), generator=generator)[:COUNT]
                return Objective.from_model(model, [(images[drawn], labels[drawn])], space=space)

            def score(objective: Objective) -> float:
                return accuracy(objective, [digits.test])

            methods = with_chosen_dampings(seven_methods(), dense(seed), digits.held_out)
            seeds = range(seed, seed + CALIBRATION_SETS)
            results = compare(methods, SPARSITIES, seeds, dense, score)
        dampings = {
            f"damping of {name}": method.dampings[0]
            for name, method in methods.items()
            if method.dampings
        }
        settings = {
            "weights": space.n,
            "gradients": COUNT,
            "weights per block of WoodFisher": BLOCK,
            "calibration seeds": list(seeds),
            "test images": len(digits.test[1]),
            **dampings,
        }
        lead = (
            f"A convolutional network of {space.n:,} weights on scikit-learn's digits, pruned in "
            f"one step without any retraining. Each Fisher is made of {COUNT} training images; its "
            f"damping was chosen on {len(digits.held_out[1])} other training images, never on the "
            "test images."
        )
        dense_score, test_samples = score(dense(seed)), len(digits.test[1])
        report = ComparisonReport(
            title="Seven ways to prune a network",
            lead=lead,
            settings=settings,
            recipes={name: described(method.pruner) for name, method in methods.items()},
            results=results,
            dense_score=dense_score,
            test_samples=test_samples,
            dense_error=standard_error(dense_score, test_samples),
        )
        report.write(folder, repeating())
    report.show(out)
    print_plain(WHAT_NEXT.format(out=out))


def seven_methods() -> Mapping[str, Method]:
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
    methods: Mapping[str, Method], objective: Objective, held_out: Batch
) -> dict[str, Method]:
    """Each method with the damping of least loss on held-out training images.

    Args:
        methods: Name -> method.
        objective: The dense network on a calibration set.
        held_out: Training images outside it.
    """
    chosen = dict(methods)

    def validate(pruned: Objective) -> float:
        return -pruned.loss([held_out])

    for done, (name, method) in enumerate(methods.items(), 1):
        if method.pruner.fisher is not None:
            best = choose_damping(method, DAMPINGS, SPARSITIES_TO_CHOOSE_AT, objective, validate)
            chosen[name] = replace(method, dampings=(best,))
        monitor.report("dampings", done, len(methods))
    return chosen


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for small matrices: as fast, not slowed by others, and the same digits everywhere.

    The number of threads is put back at the end.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
