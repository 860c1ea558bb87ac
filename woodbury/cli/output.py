"""What the commands leave: weights, numbers, a page, and their last words."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from woodbury.cli.console import print_note, print_plain, print_result
from woodbury.cli.inputs.model import NAMED_LIBRARIES
from woodbury.cli.invocation import command_line, loading, repeating
from woodbury.cli.run_file import RUN_FILE
from woodbury.errors import reason
from woodbury.evaluation.results import Result, summary
from woodbury.io.folders import WRITABLE, first_free, os_errors_explained, output_folder
from woodbury.io.run_folder import REPORT_FILE
from woodbury.io.sparse_files import save_sparse
from woodbury.linalg.ranks import Ranks
from woodbury.pruning.schedule import Targets
from woodbury.reporting import cost_tables, plots, tables
from woodbury.reporting.charts import Chart
from woodbury.reporting.files import versions, write_csv, write_json
from woodbury.reporting.grid import Grid
from woodbury.reporting.page import Code, Page, Section, section, svg_file
from woodbury.reporting.pages import folded, prune_page
from woodbury.reporting.per_layer import TensorSummary
from woodbury.reporting.records import GradualNumbers, PruneNumbers, score_label
from woodbury.reporting.run_tables import draw_note, pruning_steps, results

WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class PruneReport:
    """What `prune` tells of a pruned network, in files and on the terminal.

    Attributes:
        title: The heading of the page.
        line: The result in one line.
        lead: What was pruned by what.
        settings: What was asked for and what was decided.
        recipe: The pruner, by `woodbury.io.settings.described`.
        numbers: What was measured.
        tensors: What is kept of each parameter.
        plan: What the run was predicted to do and take, as facts; None without a plan.
        asked: What a run that is resumed must be asked for again; None where there is none.
    """

    title: str
    line: str
    lead: str
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    numbers: PruneNumbers | GradualNumbers
    tensors: Sequence[TensorSummary]
    plan: Mapping[str, Any] | None = None
    asked: Mapping[str, Any] | None = None

    def write(
        self, folder: Path, model: nn.Module, out: Path, how_to_load: str | None = None
    ) -> None:
        """Write weights.safetensors, report.json and report.html.

        Args:
            folder: Where.
            model: The pruned network.
            out: The folder as the user wrote it.
            how_to_load: The line of Python that does it; None for ours.
        """
        names = [tensor.name for tensor in self.tensors]
        layers = [{**asdict(tensor), "sparsity": tensor.sparsity} for tensor in self.tensors]
        more = {"layers": layers, "recipe": self.recipe}
        more |= {"plan": self.plan} if self.plan else {}
        with needed(folder):
            save_sparse(folder / WEIGHTS_FILE, model.state_dict(), names)
            write_report(folder, "prune", self.settings, asdict(self.numbers) | more, self.asked)
        with if_there_is_room(folder / "report.html") as page:
            self._page(out, how_to_load).write(page)

    def _page(self, out: Path, how_to_load: str | None) -> Page:
        return prune_page(
            self.title,
            self.lead,
            self.numbers,
            self.tensors,
            self.settings,
            self.recipe,
            self.plan,
            [*used_again(str(self.settings["model"]), out, how_to_load), _measuring(out)],
        )

    def show(self, out: Path, remark: str = "", how_to_load: str | None = None) -> None:
        """Print the tables, the result, what to look at, and how to load the weights.

        Args:
            out: The folder as the user wrote it.
            remark: What else to look at.
            how_to_load: The line of Python that does it; None for ours.
        """
        grids = [tables.per_tensor(self.tensors)]
        if isinstance(self.numbers, GradualNumbers):
            grids.append(pruning_steps(self.numbers))
        grids.append(results(self.numbers, str(self.settings["method"])))
        for grid in grids:
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
        print_how_to_load(out, how_to_load)


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
        test_samples: Of the test data.
        dense_error: The standard error of the dense score, from the draw of the test data; None for
            a score that is no share of them.
        measure: What the scores are.
    """

    title: str
    lead: str
    settings: Mapping[str, Any]
    recipes: Mapping[str, Any]
    results: Sequence[Result]
    dense_score: float
    test_samples: int
    dense_error: float | None
    measure: str = "accuracy"

    def write(self, folder: Path, again: Code) -> None:
        """Write results.csv, results.json, accuracy.svg, report.html, and perhaps prediction.svg.

        Args:
            folder: Where.
            again: What repeats the run.
        """
        with needed(folder):
            write_csv(folder / "results.csv", self.results)
            write_json(folder / "results.json", self._record())
        label = score_label(self.measure)
        scores = plots.accuracies(self.results, dense=self.dense_score, measure=label)
        predictions = plots.predictions(self.results)
        with if_there_is_room(folder / "accuracy.svg") as file:
            file.write_text(svg_file(scores), "utf-8")
        if predictions:
            with if_there_is_room(folder / "prediction.svg") as file:
                file.write_text(svg_file(predictions), "utf-8")
        with if_there_is_room(folder / "report.html") as page:
            self._page(scores, predictions, again).write(page)

    def _page(self, scores: Chart, predictions: Chart | None, again: Code) -> Page:
        sections = [Section(scores.title, (scores, self._scores_table()))]
        if perplexities := tables.perplexities(self.results):
            sections.append(section(perplexities))
        if predictions:
            sections.append(section(predictions))
        sections.append(Section("Use it again", (again,)))
        details = [
            tables.accuracies_before_update(self.results, measure=score_label(self.measure)),
            cost_tables.losses_and_resources(self.results),
            *folded(self.settings),
        ]
        return Page(self.title, self.lead, sections=sections, folded=details)

    def show(self, out: Path) -> None:
        """Print the table, and where the rest is.

        Args:
            out: The folder as the user wrote it.
        """
        print_result(self._scores_table().rich())
        if perplexities := tables.perplexities(self.results):
            print_result(perplexities.rich())
        print_result(cost_tables.resources(self.results).rich())
        print_plain(f"Written: {out}/report.html, accuracy.svg, results.csv and results.json.")

    def _record(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "versions": versions(),
            "recipes": self.recipes,
            "measure": self.measure,
            "command_line": command_line(),
            "dense_score": self.dense_score,
            "dense_standard_error": self.dense_error,
            "test_samples": self.test_samples,
            "spread": "population standard deviation",
            "summary": summary(self.results),
            "results": list(self.results),
        }

    def _scores_table(self) -> Grid:
        label = score_label(self.measure)
        error = draw_note(self.test_samples, self.dense_error)
        return tables.accuracies(self.results, dense=self.dense_score, measure=label, error=error)


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
        >>> default_folder("torchvision:resnet18:IMAGENET1K_V1", "0.9").as_posix()
        'runs/resnet18-0.9'
    """
    library, _, named = model.partition(":")
    is_named = library in NAMED_LIBRARIES
    name = named.partition(":")[0] if is_named else model.rpartition(":")[2]
    name = name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
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
    if Ranks.current().rank:  # rank 0 writes; what the others make is thrown away
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder), out or default
    elif out is None:
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
    head = {"command": command, "command_line": command_line()}
    head |= {"settings": settings, "versions": versions()}
    head |= {} if asked is None else {"asked": asked}
    write_json(folder / REPORT_FILE, head | dict(numbers), sealed=True)


def print_how_to_load(out: Path, line: str | None = None) -> None:
    """Print the line of Python that loads the written weights.

    Args:
        out: The folder as the user wrote it.
        line: That of the library that the network is from; None for ours.
    """
    file = out / WEIGHTS_FILE
    ours = f'model.load_state_dict(woodbury.load_sparse("{file}"))'
    print_plain(f"Load it with  {line or ours}")


def used_again(model: str, out: Path, how_to_load: str | None = None) -> list[Code]:
    """What repeats the run and loads its weights, for the page.

    Args:
        model: MODEL as the user wrote it.
        out: The folder as the user wrote it.
        how_to_load: The line of Python that loads it; None for ours.
    """
    return [repeating(out / RUN_FILE), loading(model, out / WEIGHTS_FILE, how_to_load)]


def _measuring(out: Path) -> Code:
    """What measures the time that a pruned network takes."""
    return Code("Measure its speed on this CPU:", shlex.join(["woodbury", "speed", str(out)]))
