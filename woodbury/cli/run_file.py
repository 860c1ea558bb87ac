"""run.toml: the options of a command in a file, so that `--config` repeats it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from cyclopts import App, Argument, ArgumentCollection, Token
from cyclopts.config import Dict

from woodbury.cli.console import print_plain
from woodbury.cli.inputs.model import no_file
from woodbury.cli.invocation import OPTION, repeating
from woodbury.cli.names import hint
from woodbury.errors import WoodburyError, reason
from woodbury.reporting.files import versions

if sys.version_info >= (3, 11) or TYPE_CHECKING:
    import tomllib
else:
    import tomli as tomllib

RUN_FILE = "run.toml"


def fill_from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the arguments that are not on the command line the values of the file of `--config`.

    Args:
        app: The application.
        commands: The command.
        arguments: What was parsed so far.

    Raises:
        WoodburyError: If the file cannot be read, has no table of the command, or has a key that
            is no option of it.
    """
    given = [each for each in arguments if OPTION in each.names and each.tokens]
    if not given:
        return
    path = Path(given[0].tokens[0].value)
    (command,) = commands
    values = _table(path, command)
    places = {_key(each): each for each in arguments if each.names and each is not given[0]}
    for key, value in values.items():
        argument = places.get(key.replace("_", "-"))
        if argument is None:
            raise WoodburyError(f"{path} has a key {key!r}: {hint(key, places)}")
        _, takes_several = argument.token_count()
        if isinstance(value, Mapping) or (isinstance(value, list) and not takes_several):
            raise WoodburyError(f"{key} in {path} is {value!r}: give one value.")
    for key, argument in places.items():
        if argument.index is None or key not in values:
            continue
        value = str(values.pop(key))
        if not argument.tokens:  # MODEL or DATA
            argument.append(Token(value=value, source=str(path)))
    Dict({command: values}, source=str(path))(app, commands, arguments)
    for key, argument in places.items():
        argument.tokens[:] = [
            token.evolve(keyword=f"{key} in {path}") if token.source == str(path) else token
            for token in argument.tokens
        ]  # errors name them so


def _key(argument: Argument) -> str:
    """The key of an argument in a file: `mc-samples` for --mc-samples, `model` for MODEL."""
    return argument.name.removeprefix("--").lower()


def _table(path: Path, command: str) -> dict[str, Any]:
    if not path.expanduser().is_file():
        raise no_file(str(path), f"check {OPTION}.")
    try:
        with path.expanduser().open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise WoodburyError(
            f"{OPTION} {path} cannot be read ({reason(error)}): check it."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WoodburyError(f"{path} is no TOML ({reason(error)}): repair that line.") from error
    table = content.get(command)
    if not isinstance(table, dict):
        has = ", ".join(f"[{name}]" for name in content) or "nothing"
        raise WoodburyError(f"{path} has {has}: woodbury {command} reads its table [{command}].")
    return dict(table)


def print_how_to_repeat(out: Path) -> None:
    """Print the command line that does the same again.

    Args:
        out: The folder with run.toml, as the user wrote it.
    """
    print_plain(f"Repeat it with  {repeating(out / RUN_FILE).text}")


def write_run_file(folder: Path, command: str, options: Mapping[str, Any]) -> None:
    """Write run.toml, by which `woodbury COMMAND --config run.toml` does the same again.

    Args:
        folder: Where.
        command: The command.
        options: Its arguments by their keys; those left at their defaults may be left out.
    """
    made_with = ", ".join(f"{what} {version}" for what, version in versions().items())
    head = (
        f"# `woodbury {command} --config {RUN_FILE}` does the same again.\n"
        f"# Paths count from the folder where it is typed.\n# {made_with}\n\n"
    )
    content = tomli_w.dumps({command: dict(options)})
    (folder / RUN_FILE).write_text(head + content, "utf-8")
