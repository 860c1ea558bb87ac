"""What every command shares: its options, its two consoles, its progress bars, and how it ends."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from woodbury import monitor
from woodbury.errors import WoodburyError
from woodbury.io.run_folder import RunFolder, run_folder

out, err = Console(), Console(stderr=True)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION that returns the module."
    ),
]
DATA = (
    "FILE.py:FUNCTION that returns (x, y), (x, y, x_test, y_test) or one or two torch Datasets; "
    "a .npz with x and y [x_test, y_test]; or a folder of class folders of images, [train/ and test/ above them]. "
    "Bytes and images come as numbers from 0 to 1: any other normalisation is the model's, or the function's."
)
Labelled = Annotated[str, typer.Argument(metavar="DATA", help=DATA)]
Data = Annotated[
    str, typer.Argument(metavar="DATA", help=f"{DATA} No y, or None for it: see --labels.")
]


@dataclass(frozen=True)
class Options:
    """The options of `prune` and `compare`; a line here is an option of both and a line in their reports."""

    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights to load into the model: .pt, or .safetensors, dense or sparse.",
        ),
    ] = None
    loss: Annotated[
        str,
        typer.Option(metavar="NAME", help="cross_entropy (classes) or squared_error (regression)."),
    ] = "cross_entropy"
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Gradients in the Fisher.  [default: 1000, or all that the data gives]",
        ),
    ] = None
    batch: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples that one gradient averages.")
    ] = 1
    labels: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="observed: the data's; sampled: drawn from the network, for data without any too; own: kfac's are sampled, "
            "all others' observed.",
        ),
    ] = "own"
    damping: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS",
            help="A number; several with commas between, of which the best on held-out training data is taken; "
            "or auto: 1e-6 to 1.",
        ),
    ] = "auto"
    block: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Weights per block.  [default: woodfisher 2000, mfac one for all]",
        ),
    ] = None
    stages: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Steps on the way, each with fresh gradients.  [default: 1; prune by gauss-newton without --epochs as many as "
            "keep 70 % each]",
        ),
    ] = None
    refit: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Steps back towards the dense network's outputs after every round; with --epochs, towards those before each "
            "pruning step.  [default: 0; prune by gauss-newton 1 without --epochs and --first-order, where it has room]",
        ),
    ] = None
    scope: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="global: all weights compete; layers: the same sparsity everywhere.",
        ),
    ] = "global"
    unit: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What falls together: single weights; block:4, block:4x1 (4 outputs × 1 input); channels or rows (all that "
            "leads to one output); columns.",
        ),
    ] = "single"
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="N:M",
            help="N weights stay of every M along the inputs, such as 2:4; settles the sparsity.",
        ),
    ] = None
    selection: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="once: by the saliencies as they are; stepwise:16: in 16 inner steps on one Fisher; swaps:20 or "
            "thresholded:20: at most 20 exchanges from there that lower the predicted loss.",
        ),
    ] = "once"
    flops: Annotated[
        bool,
        typer.Option("--flops", help="The sparsity is a share of the FLOPs, not of the weights."),
    ] = False
    flops_power: Annotated[
        float | None,
        typer.Option(
            metavar="POWER",
            help="Divide saliencies by FLOPs^POWER, so that costly weights go sooner.  [default: 1 with --flops, else 0]",
        ),
    ] = None
    ceiling: Annotated[
        float,
        typer.Option(
            metavar="FRACTION",
            help="The share of a tensor that may go at most, against dead layers.",
        ),
    ] = 1.0
    first_order: Annotated[
        bool,
        typer.Option(
            "--first-order",
            help="Heed the gradient too (WoodTaylor): for nets not converged; see docs/math.md, 17.",
        ),
    ] = False
    recalibrate: Annotated[
        bool,
        typer.Option("--recalibrate", help="Estimate BatchNorm's statistics anew after pruning."),
    ] = False
    keep_zeros: Annotated[
        bool,
        typer.Option(
            "--keep-zeros", help="Weights that are zero already stay zero, and count as removed."
        ),
    ] = False
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Parameter names to prune, a shell pattern; repeatable."
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Parameter names to leave alone; repeatable."),
    ] = None
    size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Resize images to SIZE × SIZE.")
    ] = None
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seeds the calibration sample and the splits.")
    ] = 0

    def planned(self) -> dict[str, Any]:
        """Those that a method is planned with."""
        return {name: getattr(self, name) for name in PLANNED} | {
            "stages": self.stages or 1,
            "refit": self.refit or 0,
        }


PLANNED = (
    *("scope", "first_order", "damping", "unit", "pattern", "selection", "flops", "flops_power"),
    "ceiling",
)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the fields of its dataclass parameters as options of its own, so that they are declared once."""
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {
        p.name: p.annotation for p in parameters if is_dataclass(p.annotation)
    }
    kind = inspect.Parameter.KEYWORD_ONLY
    shown = [
        parameter.replace(kind=kind) for parameter in parameters if parameter.name not in groups
    ]
    for group in groups.values():
        hints = get_type_hints(group, include_extras=True)
        shown += [
            inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name])
            for f in fields(group)
        ]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        chosen = {
            name: group(**{f.name: given.pop(f.name) for f in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **chosen)

    wrapper.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return wrapper


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose user errors are one red sentence and exit code 2, and Ctrl-C one line and 130: no traceback."""

    @functools.wraps(command)
    def wrapper(*args: Any, **given: Any) -> None:
        try:
            command(*args, **given)
        except WoodburyError as error:
            err.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as interrupt:
            said = str(interrupt) or "Interrupted: nothing was written."
            err.print(escape(said), style="yellow", soft_wrap=True, highlight=False)
            raise typer.Exit(130) from None

    return wrapper


def say(what: RenderableType, *, plain: bool = False) -> None:
    """A result, on stdout; plain: without colours and line breaks, to be copied."""
    out.print(what, soft_wrap=plain or isinstance(what, str), highlight=not plain, markup=not plain)


def note(text: str) -> None:
    """A remark on what was decided for the user, on stderr."""
    err.print(f"[dim]{escape(text)}[/]", soft_wrap=True, highlight=False)


@contextmanager
def progress_bars() -> Iterator[None]:
    """One bar on stderr for each kind of work that reports its progress; removed at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        with monitor.progress(progress):
            yield


def resumable(out: Path, resume: bool) -> AbstractContextManager[RunFolder]:
    """The folder of a run that `--resume` goes on with; Ctrl-C says by which command."""
    words = sys.argv[1:]
    command = shlex.join(["woodbury", *words, *([] if "--resume" in words else ["--resume"])])
    return run_folder(
        out,
        resume=resume,
        how_to_resume="--resume",
        on_interrupt=f"Interrupted. To go on:  {command}",
    )


def free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, … that is not taken."""
    number = 2
    free = path
    while free.exists():
        free, number = path.with_name(f"{path.name}-{number}"), number + 1
    return free
