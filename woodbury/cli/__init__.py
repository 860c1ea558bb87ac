"""The command line: woodbury prune | compare | train | demo."""

from __future__ import annotations

import signal
import sys

import typer

from woodbury.cli import compare, demo, prune, train

app = typer.Typer(
    help="Second-order information about neural networks: prune them by what each weight is worth, or train them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("prune")(prune.prune)
app.command("compare")(compare.compare_)
app.command("train")(train.train)


def main() -> None:
    """The entry point; being terminated, or left by its terminal, cleans up as Ctrl-C does."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    app(prog_name="woodbury")
