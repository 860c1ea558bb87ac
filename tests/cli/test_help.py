"""The help of every command, word for word: an option cannot vanish or change unnoticed.

After a change that is meant, `python tests/cli/test_help.py` writes the snapshots again.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console
from support.cli import woodbury

from woodbury.cli import console, names
from woodbury.cli.named_methods import METHODS
from woodbury.cli.names import ENGINES, LABELS, LOSSES, SCOPES, UPDATES
from woodbury.cli.optimizers import OPTIMIZERS, FineTunerName, OptimizerName

SNAPSHOTS = Path(__file__).with_name("snapshots")
COMMANDS = ("", "prune", "compare", "inspect", "speed", "export", "train", "demo")


def help_of(command: str, width: int = 100) -> str:
    """The help at a terminal's width, as lines without spaces at their ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "out", Console(width=width))
        result = woodbury(command, "--help")
    assert result.exit_code == 0 and not result.stderr
    return "\n".join(line.rstrip() for line in result.stdout.splitlines()) + "\n"


def snapshot(command: str) -> Path:
    return SNAPSHOTS / f"{command or 'woodbury'}.txt"


@pytest.mark.skipif(version("cyclopts") < "5", reason="cyclopts 4 prints the same help otherwise")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_is_the_one_that_was_read(command: str) -> None:
    assert help_of(command) == snapshot(command).read_text("utf-8")


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_the_help_of_each_command_has_an_example(command: str) -> None:
    assert f"Example:  woodbury {command}" in help_of(command)


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_the_usage_names_every_argument(command: str) -> None:
    usage, arguments = help_of(command).partition("\n")[0], help_of(command)
    named = [name for name in ("MODEL", "DATA", "WHERE") if f"  {name}  " in arguments]
    assert usage.startswith(f"Usage: woodbury {command}") and "ARGS" not in usage
    assert all(name in usage for name in named)


@pytest.mark.parametrize("command", ["prune", "compare"])
def test_the_help_names_every_method(command: str) -> None:
    assert ", ".join(METHODS) in help_of(command, width=1000)


@pytest.mark.parametrize(
    ("table", "literal"),
    [
        (ENGINES, names.EngineName),
        (LABELS, names.LabelsName),
        (LOSSES, names.LossName),
        (METHODS, names.MethodName),
        (SCOPES, names.ScopeName),
        (UPDATES, names.UpdateName),
        (OPTIMIZERS, OptimizerName),
    ],
)
def test_every_name_of_the_help_has_its_object(table: dict, literal: object) -> None:
    assert tuple(table) == get_args(literal)


def test_the_fine_tuners_are_optimizers() -> None:
    assert set(get_args(FineTunerName)) < set(OPTIMIZERS)


if __name__ == "__main__":
    for each in COMMANDS:
        snapshot(each).write_text(help_of(each), "utf-8")
