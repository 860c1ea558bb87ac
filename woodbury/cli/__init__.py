"""The command line: woodbury prune | compare | inspect | speed | export | train | demo."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Sequence

from cyclopts import App, Group, Parameter

from woodbury.cli import console
from woodbury.cli.compare_command import compare
from woodbury.cli.demo_command import demo
from woodbury.cli.export_command import export
from woodbury.cli.inspect_command import inspect
from woodbury.cli.invocation import invoked
from woodbury.cli.launched import as_launched
from woodbury.cli.prune_command import prune
from woodbury.cli.run_file import fill_from_file
from woodbury.cli.speed_command import speed
from woodbury.cli.train_command import train
from woodbury.reporting.files import versions


def version() -> str:
    """What --version says."""
    made_of = versions()
    return f"woodbury {made_of['woodbury']} (torch {made_of['torch']}, Python {made_of['python']})"


app = App(
    name="woodbury",
    help="Prune and train neural networks with second-order information.",
    help_format="markdown",
    help_flags=["--help"],
    version=version,
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
    group_parameters=Group("Options", sort_key=0),
    suppress_keyboard_interrupt=False,
    config=[fill_from_file],
)
for command in (demo, prune, compare, inspect, train):
    app.command(command)
# Where DATA may be left out, the library would call it ARGS.
app.command(speed, usage="Usage: woodbury speed [OPTIONS] WHERE [DATA]")
app.command(export, usage="Usage: woodbury export --to CHOICE [OPTIONS] WHERE [DATA]")


def main() -> None:
    """The entry point; being terminated, or left by its terminal, cleans up as Ctrl-C does."""
    signals: list[int] = []

    def note(received: int) -> None:
        signals.append(received)  # half-done imports may swallow what is raised, or wrap it
        sys.unraisablehook = lambda _: None  # half-made objects may fail as they are freed

    def interrupt(received: int, _: object) -> None:
        note(received)
        raise KeyboardInterrupt

    def end(received: int, _: object) -> None:
        note(received)
        sys.exit(128 + received)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a job in the background ignores it
        signal.signal(signal.SIGINT, interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without our letters shows others
            stream.reconfigure(errors="replace")
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, end)
    try:
        code = run(sys.argv[1:], signals)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # of the user's code, or of a library in it
        code = console.explain(error)
    sys.exit(code)


def run(words: Sequence[str], signals: Sequence[int] = ()) -> int:
    """Run a command.

    Args:
        words: The words of the command line after `woodbury`.
        signals: The signals to end that have come so far.

    Returns:
        The exit code: 0, 2 for an error of the user, 1 for one of ours, 130 for Ctrl-C, and 128
        more than the number of any other signal.
    """

    def command() -> None:
        app(
            list(words),
            console=console.out,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )

    def shared() -> None:
        with as_launched(words):
            command()

    with invoked(words):
        return console.report_errors(shared, signals)
