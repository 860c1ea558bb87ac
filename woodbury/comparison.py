"""Methods × sparsities × seeds on one network: what each pruning predicted, what it did, and what it cost."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, TypeVar

import torch

from woodbury.errors import WoodburyError
from woodbury.fisher.operator import Fisher
from woodbury.gradients import Progress
from woodbury.objective import Batch, Objective, checked, evaluating
from woodbury.pruning.pruner import Pruned, Pruner, in_rounds
from woodbury.pruning.schedule import rounds as geometric

T = TypeVar("T")
Recipe = Callable[[Objective], Fisher]
Score = Callable[[Objective], float]
"""A number that should be large: the accuracy on some data, for instance."""


@dataclass(frozen=True)
class Method:
    """A pruner and how to run it.

    rounds: how often the gradients are computed anew. dampings: candidates, of which each cell takes the one that scores
    best on held-out data; none: the Fisher's own. settings: plain facts to write beside the numbers.
    """

    pruner: Pruner
    rounds: int = 1
    dampings: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One cell: a method at a sparsity, with the calibration sample of a seed.

    `sparsity` was asked for and `reached` was got. Losses, and so the predicted and the measured increase, are those of
    the calibration sample. seconds: the Fisher and one pruning, without evaluation and the choice among dampings.
    memory: the process's peak meanwhile, in MB.
    """

    method: str
    sparsity: float
    reached: float
    seed: int
    accuracy: float
    loss_before: float
    loss_after: float
    predicted: float | None
    measured: float
    seconds: float
    memory: float
    damping: float | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """One cell over its seeds: means; `spread` is the population standard deviation of the accuracy."""

    method: str
    sparsity: float
    seeds: int
    accuracy: float
    spread: float
    predicted: float | None
    measured: float
    seconds: float
    memory: float


def compare(
    methods: Mapping[str, Method],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    make_objective: Callable[[int], Objective],
    evaluate: Score,
    *,
    validate: Score | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Prune to every sparsity by every method, each time from the dense model, with the calibration sample of each seed.

    make_objective: seed -> the dense objective on that seed's sample. evaluate: the accuracy on test data; validate: the
    score on held-out *training* data that chooses among a method's dampings. A method of one round computes its Fisher
    once for all sparsities; its seconds count in every row. Raises WoodburyError when there is nothing to compare, or
    when dampings are to be chosen without `validate`.
    """
    if not (methods and sparsities and seeds):
        raise WoodburyError("There is nothing to compare: give at least one method, one sparsity and one seed.")
    undecided = [name for name, method in methods.items() if len(method.dampings) > 1 and validate is None]
    if undecided:
        raise WoodburyError(
            f"{undecided[0]!r} has several dampings: give `validate`, a score on held-out training data."
        )
    results: list[Result] = []
    for seed in seeds:
        objective = make_objective(seed)
        before = objective.loss()
        for name, method in methods.items():
            recipe, paid = _paid_once(method, objective)
            for sparsity in sparsities:
                run = _chosen(
                    replace(method, pruner=replace(method.pruner, fisher=recipe)), objective, sparsity, validate
                )
                after = run.pruned.objective.loss()
                cell = Result(
                    method=name,
                    sparsity=sparsity,
                    reached=run.pruned.sparsity,
                    seed=seed,
                    accuracy=evaluate(run.pruned.objective),
                    loss_before=before,
                    loss_after=after,
                    predicted=run.pruned.predicted,
                    measured=after - before,
                    seconds=paid.seconds + run.cost.seconds,
                    memory=max(paid.memory, run.cost.memory),
                    damping=run.damping,
                    settings={"rounds": method.rounds, **method.settings},
                )
                results.append(cell)
                if progress:
                    progress("pruning", len(results), len(methods) * len(sparsities) * len(seeds))
    return results


def summary(results: Iterable[Result]) -> list[Summary]:
    """Means over the seeds of each (method, sparsity), in the order of first appearance; memory is the largest."""
    cells: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        cells.setdefault((result.method, result.sparsity), []).append(result)
    return [_summarised(name, sparsity, cell) for (name, sparsity), cell in cells.items()]


def accuracy(objective: Objective, batches: Iterable[Batch]) -> float:
    """The fraction of targets (b, …) that the output (b, C, …) of the objective's weights gives the highest score."""
    right, targets = 0, 0
    with torch.no_grad(), evaluating(objective.model):
        for inputs, target in checked(batches):
            right += int((objective.forward(objective.parameters, inputs).argmax(1) == target).sum())
            targets += target.numel()
    if not targets:
        raise WoodburyError("There is no data to measure the accuracy on: give at least one batch.")
    return right / targets


def write_csv(path: str | os.PathLike, results: Sequence[Result]) -> None:
    """One line per result; the settings as columns of their own."""
    extra = list(dict.fromkeys(key for result in results for key in result.settings))
    columns = [column.name for column in fields(Result) if column.name != "settings"] + extra
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for result in results:
            row = asdict(result)
            writer.writerow({column: {**row, **row["settings"]}.get(column) for column in columns})


def write_json(path: str | os.PathLike, facts: Mapping[str, Any]) -> None:
    """Any facts (dataclasses, mappings, sequences, numbers) as strict JSON: what is not finite becomes null."""
    Path(path).write_text(json.dumps(_plain(facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    try:
        own = version("woodbury")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "woodbury": own,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and the process's peak memory in MB."""

    seconds: float
    memory: float


def measured(call: Callable[[], T]) -> tuple[T, Cost]:
    """What `call` gives, and what it cost. Where the system cannot reset a peak it is that since the process's start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    value = call()
    return value, Cost(time.perf_counter() - start, _peak_memory())


@dataclass(frozen=True)
class _Run:
    pruned: Pruned
    damping: float | None
    cost: Cost


def _paid_once(method: Method, objective: Objective) -> tuple[Recipe | None, Cost]:
    """The method's recipe, with its Fisher already computed if one round is all, and what that cost."""
    recipe = method.pruner.fisher
    if recipe is None or method.rounds > 1:
        return recipe, Cost(0.0, 0.0)
    fisher, cost = measured(lambda: recipe(objective))
    return lambda _: fisher, cost


def _chosen(method: Method, objective: Objective, sparsity: float, validate: Score | None) -> _Run:
    """The run at the damping that scores best on held-out data; of equals the first."""
    runs = [_run(method, objective, sparsity, damping) for damping in method.dampings or (None,)]
    return max(runs, key=lambda run: validate(run.pruned.objective)) if validate and len(runs) > 1 else runs[0]


def _run(method: Method, objective: Objective, sparsity: float, damping: float | None) -> _Run:
    recipe, used = method.pruner.fisher, []

    def damped(here: Objective) -> Fisher:
        fisher = recipe(here)
        used.append(fisher if damping is None else fisher.with_damping(damping))
        return used[-1]

    pruner = method.pruner if recipe is None else replace(method.pruner, fisher=damped)
    steps = geometric(sparsity, method.rounds)
    pruned, cost = measured(lambda: in_rounds(pruner, objective, steps))
    return _Run(pruned, used[-1].damping if used else None, cost)


def _summarised(name: str, sparsity: float, cell: Sequence[Result]) -> Summary:
    accuracies = [result.accuracy for result in cell]
    predicted = [result.predicted for result in cell if result.predicted is not None]
    return Summary(
        method=name,
        sparsity=sparsity,
        seeds=len(cell),
        accuracy=fmean(accuracies),
        spread=pstdev(accuracies),
        predicted=fmean(predicted) if predicted else None,
        measured=fmean(result.measured for result in cell),
        seconds=fmean(result.seconds for result in cell),
        memory=max(result.memory for result in cell),
    )


def _peak_memory() -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    with suppress(ImportError):
        import resource  # not there on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return math.nan


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str, type(None))) else str(value)
