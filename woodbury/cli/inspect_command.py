"""`woodbury inspect`: how good the curvature of a network is, and when to trust it."""

# ruff: noqa: B008 (the options are frozen, so that one default serves all calls)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from woodbury.cli.console import (
    memory_for,
    notes_after_checks,
    print_note,
    print_place,
    print_plain,
    progress_bars,
)
from woodbury.cli.invocation import command_line, repeating
from woodbury.cli.names import LabelsName, parse_sparsities
from woodbury.cli.option_values import as_asked, settings_of
from woodbury.cli.options import (
    CURVATURE,
    MOST_USED,
    ConfigFile,
    Count,
    CurvatureOptions,
    Data,
    InputOptions,
    MemoryOptions,
    Model,
    ParameterOptions,
    PruningOptions,
    out_option,
)
from woodbury.cli.output import default_folder, folder_for, if_there_is_room, needed, write_report
from woodbury.cli.problem import Problem, load_problem
from woodbury.cli.run_file import RUN_FILE, print_how_to_repeat, write_run_file
from woodbury.errors import WoodburyError
from woodbury.inspection.curvatures import COUNT
from woodbury.inspection.findings import DAMPING, Inspection, Settings
from woodbury.inspection.forecast_calibration import SPARSITIES
from woodbury.inspection.questions import Prepared, answers, prepared
from woodbury.io.run_folder import REPORT_FILE
from woodbury.reporting.inspection_charts import in_words
from woodbury.reporting.inspection_page import inspection_facts, inspection_page
from woodbury.reporting.page import Code


@Parameter(name="*", group=MOST_USED)
@dataclass(frozen=True)
class InspectionOptions:
    """What `inspect` looks at.

    Attributes:
        sparsity: Removed ÷ all weights in (0, 1), of the step that is looked along and of the
            settings that are tried.
        sparsities: Where the forecast is tried, with commas between.  [default:
            0.1,0.3,0.5,0.7,0.8,0.9]
        count: Samples that each curvature is estimated from.  [default: 400, or all that the data
            and the memory give]
        damping: Added to the diagonal.
        labels: For data without labels: drawn from the network (sampled).
    """

    sparsity: float = 0.5
    sparsities: Annotated[str | None, Parameter(group=CURVATURE)] = None
    count: Annotated[Count | None, Parameter(group=CURVATURE)] = None
    damping: Annotated[float, Parameter(group=CURVATURE)] = DAMPING
    labels: LabelsName = "own"

    def settings(self, seed: int) -> Settings:
        """What is inspected.

        Args:
            seed: Of all that is drawn.

        Raises:
            WoodburyError: If an option is out of its range.
        """
        sparsities = SPARSITIES if self.sparsities is None else parse_sparsities(self.sparsities)
        count = COUNT if self.count is None else self.count
        return Settings(self.sparsity, count, self.damping, tuple(sparsities), seed)


def inspect(
    model: Model,
    data: Data,
    /,
    *,
    asked: InspectionOptions = InspectionOptions(),
    parameters: ParameterOptions = ParameterOptions(),
    inputs: InputOptions = InputOptions(),
    resources: MemoryOptions = MemoryOptions(),
    out: Annotated[Path | None, out_option("MODEL-inspected")] = None,
    config: ConfigFile = None,
) -> None:
    """Ask how good the curvature of a network is, and when to trust what it predicts.

    Example:  `woodbury inspect net.py:trained data.npz --out inspected`
    """
    settings = asked.settings(inputs.seed)
    options = PruningOptions(
        parameters=parameters,
        inputs=inputs,
        curvature=CurvatureOptions(count=asked.count, labels=asked.labels),
        resources=resources,
    )
    in_folder = folder_for(out, default_folder(model, "inspected"))
    with memory_for(resources.memory), in_folder as (folder, place):
        with progress_bars():
            with notes_after_checks():
                problem = load_problem(model, data, options, choosing=True, usual=COUNT)
                network = _prepared(problem, settings)
                if out is None:
                    print_place(place)
            found, interrupted = _answered(network, settings)
        facts = {"model": model, "data": data, **settings_of(asked, parameters, inputs)}
        facts |= problem.decided() | {"count": network.count}
        with needed(folder):
            write_report(folder, "inspect", facts, inspection_facts(found))
            arguments = as_asked(asked, parameters, inputs, resources)
            write_run_file(folder, "inspect", {"model": model, "data": data, **arguments})
        with if_there_is_room(folder / "report.html") as page:
            codes = [repeating(place / RUN_FILE), Code("As it was typed:", command_line())]
            title = f"The curvature of {Path(model).name}"
            lead = _lead(found, data, interrupted)
            inspection_page(title, lead, found, facts, codes).write(page)
    for question, answer in found.verdicts.items():
        print_plain(f"{question}: {answer}")
    for name, why in found.left_out.items():
        print_note(f"Left out: {in_words(name)}. {why}")
    print_plain(f"Written: {place / 'report.html'} and {REPORT_FILE}.")
    if interrupted:
        raise KeyboardInterrupt(f"Interrupted: what was found until then is in {place}.")
    print_how_to_repeat(place)


def _answered(network: Prepared, settings: Settings) -> tuple[Inspection, bool]:
    """What was found, and whether Ctrl-C came before the last answer."""
    known: list[Inspection] = []
    try:
        known.extend(answers(network, settings))
    except KeyboardInterrupt:
        if not known:  # there is nothing to keep
            raise
        return known[-1], True
    return known[-1], False


def _prepared(problem: Problem, settings: Settings) -> Prepared:
    """The network on its calibration set, and what is held back of the training data."""
    assert problem.held_out is not None
    network = prepared(problem.dense(), settings, problem.held_out)
    if settings.sparsity <= network.objective.space.sparsity:
        raise WoodburyError(
            f"--sparsity is {settings.sparsity:g}, and with --keep-zeros "
            f"{network.objective.space.sparsity:.3g} of the weights are removed already: give more."
        )
    if network.count < min(settings.count, problem.count):
        print_note(f"{network.count} samples are taken: the memory holds no more rows.")
    return network


def _lead(found: Inspection, data: str, interrupted: bool) -> str:
    text = (
        f"{found.weights:,} weights, estimates from {found.count} samples of {data}, losses on "
        f"{found.samples_held_back} others that are held back."
    )
    return f"{text} It was interrupted: not all questions are answered." if interrupted else text
