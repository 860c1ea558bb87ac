"""What the commands leave: weights, numbers, a page, and their last words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from woodbury.cli.console import print_note, print_plain, print_result
from woodbury.errors import MissingDependency, reason
from woodbury.evaluation.results import Result, summary
from woodbury.io.folders import WRITABLE, first_free, os_errors_explained, output_folder
from woodbury.io.run_folder import REPORT_FILE
from woodbury.io.settings import flattened
from woodbury.io.sparse_files import save_sparse
from woodbury.pruning.schedule import Targets
from woodbury.reporting import plots, tables
from woodbury.reporting.files import versions, write_csv, write_json
from woodbury.reporting.page import Picture, write_page
from woodbury.reporting.per_layer import TensorSummary
from woodbury.reporting.records import (
    MEASURE_LABELS,
    GradualNumbers,
    PruneNumbers,
    labelled,
)
from woodbury.reporting.tables import Grid

WEIGHTS_FILE = "weights.safetensors"


def score_label(measure: str) -> str:
    """The name of a measure for people: `r_squared` is R²."""
    return MEASURE_LABELS.get(measure, measure)


@dataclass(frozen=True)
class PruneReport:
    """What `prune` tells of a pruned network, in files and on the terminal.

    Attributes:
        title: The heading of the page.
        line: The result in one line.
        settings: What was asked for and what was decided.
        recipe: The pruner, by `woodbury.io.settings.described`.
        numbers: What was measured.
        tensors: What is kept of each parameter.
        grids: Tables to show beside.
        plan: What the run was predicted to do and take, as facts; None without a plan.
        asked: What a run that is resumed must be asked for again; None where there is none.
    """

    title: str
    line: str
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    numbers: PruneNumbers | GradualNumbers
    tensors: Sequence[TensorSummary]
    grids: Sequence[Grid] = ()
    plan: Mapping[str, Any] | None = None
    asked: Mapping[str, Any] | None = None

    def write(self, folder: Path, model: nn.Module) -> None:
        """Write weights.safetensors, report.json and report.html.

        Args:
            folder: Where.
            model: The pruned network.
        """
        names = [tensor.name for tensor in self.tensors]
        layers = [{**asdict(tensor), "sparsity": tensor.sparsity} for tensor in self.tensors]
        more = {"layers": layers, "recipe": self.recipe}
        more |= {"plan": self.plan} if self.plan else {}
        with needed(folder):
            save_sparse(folder / WEIGHTS_FILE, model.state_dict(), names)
            write_report(folder, "prune", self.settings, asdict(self.numbers) | more, self.asked)
        with if_there_is_room(folder / "report.html") as page:
            numbers = tables.facts("Numbers", labelled(self.numbers))
            parts = [*_picture(self.tensors), tables.per_tensor(self.tensors), *self.grids, numbers]
            recipe = tables.facts("Recipe", flattened(self.recipe))
            details = [recipe, *folded(self.settings)]
            write_page(page, self.title, self.line, parts, details)

    def show(self, out: Path, remark: str = "") -> None:
        """Print the tables, the result, what to look at, and how to load the weights.

        Args:
            out: The folder as the user wrote it.
            remark: What else to look at.
        """
        for grid in (tables.per_tensor(self.tensors), *self.grids):
            print_result(grid.rich())
        print_result(self.line)
        for tensor in self.tensors:
            if not tensor.kept:
                print_note(
                    f"{tensor.name} lost all its weights: take --max-layer-sparsity 0.99, or leave "
                    "it out with --exclude."
                )
        if remark:
            print_note(remark)
        print_how_to_load(out)


@dataclass(frozen=True)
class ComparisonReport:
    """What `compare` and `demo` tell of several methods, in files and on the terminal.

    Attributes:
        title: The heading of the page.
        lead: The sentence below it.
        settings: What was asked for and what was decided.
        recipes: The name of each method -> its pruner, by `woodbury.io.settings.described`.
        results: What `woodbury.evaluation.comparison.compare` gave.
        dense_score: Of the dense network on the test data.
        measure: What the scores are.
    """

    title: str
    lead: str
    settings: Mapping[str, Any]
    recipes: Mapping[str, Any]
    results: Sequence[Result]
    dense_score: float
    measure: str = "accuracy"

    def write(self, folder: Path) -> None:
        """Write results.csv, results.json, accuracy.png, report.html, and perhaps prediction.png.

        Args:
            folder: Where.
        """
        with needed(folder):
            write_csv(folder / "results.csv", self.results)
            write_json(folder / "results.json", self._record())
        parts: list[Picture | Grid] = [self._scores_table()]
        with if_there_is_room(folder / "accuracy.png") as file:
            scores = self._scores_picture()
            parts.insert(0, scores)
            file.write_bytes(scores.light)
        with if_there_is_room(folder / "prediction.png") as file:
            if predictions := self._predictions_picture():
                parts.append(predictions)
                file.write_bytes(predictions.light)
        details = [
            tables.accuracies_before_update(self.results, measure=score_label(self.measure)),
            tables.losses_and_resources(self.results),
            *folded(self.settings),
        ]
        with if_there_is_room(folder / "report.html") as page:
            write_page(page, self.title, self.lead, parts, details)

    def show(self, out: Path) -> None:
        """Print the table, and where the rest is.

        Args:
            out: The folder as the user wrote it.
        """
        print_result(self._scores_table().rich())
        print_result(tables.resources(self.results).rich())
        print_plain(f"Written: {out}/report.html, accuracy.png, results.csv and results.json.")

    def _record(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "versions": versions(),
            "recipes": self.recipes,
            "measure": self.measure,
            "dense_score": self.dense_score,
            "spread": "population standard deviation",
            "summary": summary(self.results),
            "results": list(self.results),
        }

    def _scores_table(self) -> Grid:
        label = score_label(self.measure)
        return tables.accuracies(self.results, dense=self.dense_score, measure=label)

    def _scores_picture(self) -> Picture:
        label = score_label(self.measure)
        light, dark = (
            plots.accuracies(self.results, dense=self.dense_score, measure=label, dark=dark)
            for dark in (False, True)
        )
        words = f"{label.capitalize()} on the test data; bars are the spread over calibration sets."
        return Picture(light, dark, words)

    def _predictions_picture(self) -> Picture | None:
        """None where no method predicts."""
        light, dark = (plots.predictions(self.results, dark=dark) for dark in (False, True))
        if light is None or dark is None:
            return None
        words = (
            "Predicted and measured increase of the loss on the calibration set; each point is a "
            "method at a sparsity."
        )
        return Picture(light, dark, words)


def default_folder(model: str, what: str) -> Path:
    """The folder of a run where none is asked for.

    Args:
        model: MODEL as the user wrote it.
        what: What is done to it, such as its sparsity.

    Example:
        >>> default_folder("net.py:trained", "0.9").as_posix()
        'runs/trained-0.9'
        >>> default_folder("package.nets:Mine", "2:4").as_posix()
        'runs/Mine-2of4'
    """
    name = model.rpartition(":")[2].rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    words = re.sub(r"[^\w.]+", "-", f"{name} {what.replace(':', 'of')}")
    return Path("runs", words.strip("-."))


def target_in_words(pattern: str | None, sparsity: Targets) -> str:
    """What is pruned to, for the name of a folder.

    Args:
        pattern: The n:m pattern; None without one.
        sparsity: The sparsity, or those of several patterns of names.

    Example:
        >>> target_in_words("2:4", 0.5), target_in_words(None, {"fc*": 0.8, "*": 0.9})
        ('2:4', 'fc-0.8-0.9')
    """
    if pattern:
        return pattern
    if isinstance(sparsity, Mapping):
        parts = [f"{name.strip('*?.')}-{each:g}" for name, each in sparsity.items()]
        return "-".join(part.strip("-") for part in parts)
    return f"{sparsity:g}"


@contextmanager
def folder_for(out: Path | None, default: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a folder to write into and the name that it will take, as `output_folder` does.

    Args:
        out: What the user asks for; None for the first of default, default-2, … that is free.
        default: That name.
    """
    if out is None:
        with first_free(default, output_folder) as both:
            yield both
    else:
        with output_folder(out) as folder:
            yield folder, out


def needed(folder: Path) -> AbstractContextManager[None]:
    """A context for the files that are the result: where they have no room, one sentence says so.

    Args:
        folder: What they are written into, which takes its name or its place later.
    """
    return os_errors_explained(f"The results cannot be written to {folder.parent}", WRITABLE)


@contextmanager
def if_there_is_room(file: Path) -> Iterator[Path]:
    """A context for a file beside the result, which is left out where it has no room.

    Args:
        file: The file.

    Yields:
        The same.
    """
    try:
        yield file
    except OSError as error:
        with suppress(OSError):
            file.unlink()
        print_note(f"{file.name} is left out ({reason(error)}): all else is written.")


def write_report(
    folder: Path,
    command: str,
    settings: Mapping[str, Any],
    numbers: Mapping[str, Any],
    asked: Mapping[str, Any] | None = None,
) -> None:
    """Write report.json: the command, its settings, the versions, and the numbers.

    Args:
        folder: Where.
        command: Which command made it.
        settings: What was asked for and what was decided.
        numbers: The fields of one of `woodbury.reporting.records`, and more.
        asked: What a run that is resumed must be asked for again; None where there is none.
    """
    head = {"command": command, "settings": settings, "versions": versions()}
    head |= {} if asked is None else {"asked": asked}
    write_json(folder / REPORT_FILE, head | dict(numbers), sealed=True)


def print_how_to_load(out: Path) -> None:
    """Print the line of Python that loads the written weights."""
    file = out / WEIGHTS_FILE
    print_plain(f'Load it with  model.load_state_dict(woodbury.load_sparse("{file}"))')


def folded(settings: Mapping[str, Any]) -> list[Grid]:
    """The tables at the end of every page: the settings and the versions."""
    return [tables.facts("Settings", settings), tables.facts("Versions", versions())]


def _picture(tensors: Sequence[TensorSummary]) -> list[Picture]:
    """The picture of what is kept; none where matplotlib is missing."""
    try:
        light, dark = (plots.per_tensor(tensors, dark=dark) for dark in (False, True))
    except MissingDependency:
        return []
    words = "What is kept of each tensor, and its saliencies before the first step."
    return [Picture(light, dark, words)]
