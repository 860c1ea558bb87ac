"""Results as files: CSV, strict JSON, and the versions they were made with."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from woodbury.errors import WoodburyError, reason
from woodbury.evaluation.results import Result
from woodbury.io.fingerprint import digest
from woodbury.pruning.prediction import IncreaseInterval

INTERVAL = "predicted_interval"
"""The field of a result that is several numbers."""


def write_csv(path: str | os.PathLike, results: Sequence[Result]) -> None:
    """Write one line for each result.

    Args:
        path: The file.
        results: What `compare` gave. The columns are the fields of `Result`, then its settings,
            each as a column of its own; so is each number of an interval.
    """
    setting_names = list(dict.fromkeys(name for result in results for name in result.settings))
    columns: list[str] = []
    for field in fields(Result):
        if field.name == INTERVAL:
            columns += [f"{INTERVAL}_{part.name}" for part in fields(IncreaseInterval)]
        elif field.name != "settings":
            columns.append(field.name)
    columns += setting_names
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for result in results:
            row = asdict(result)
            row |= row.pop("settings")
            interval = row.pop(INTERVAL) or {}
            row |= {f"{INTERVAL}_{part}": value for part, value in interval.items()}
            writer.writerow({column: row.get(column) for column in columns})


SEAL = "checksum"
"""The key of the checksum of all other facts in a file."""


def write_json(path: str | os.PathLike, facts: Mapping[str, Any], *, sealed: bool = False) -> None:
    """Write facts as strict JSON.

    Args:
        path: The file.
        sealed: Whether a checksum is added, for `read_json` to verify.
        facts: Mappings, sequences, dataclasses, numbers and texts, in any nesting. Numbers that are
            not finite become null; whatever else becomes its text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(f"{folder}/report.json", {"loss": math.nan, "levels": (0.5, 0.9)})
        ...     json.loads(Path(folder, "report.json").read_text())
        {'loss': None, 'levels': [0.5, 0.9]}
    """
    plain = _plain(facts)
    if sealed:
        plain[SEAL] = digest(plain)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    Path(path).write_text(text + "\n", "utf-8")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read sealed facts.

    Args:
        path: A file that `write_json` wrote with a checksum.

    Returns:
        The facts, without the checksum.

    Raises:
        WoodburyError: If it cannot be read, or the checksum does not match.
    """
    try:
        facts = json.loads(Path(path).read_text("utf-8"))
        if facts.pop(SEAL) == digest(facts):
            return facts
        why = "its checksum does not match"
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        why = reason(error)
    raise WoodburyError(f"{path} is damaged or no report ({why}): copy or make it again.")


def in_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as `read_json` gives them back.

    Example:
        >>> in_json({"levels": (0.5, math.inf)})
        {'levels': [0.5, None]}
    """
    return _plain(facts)


def versions() -> dict[str, str]:
    """The versions and the machine that numbers are made with.

    Returns:
        woodbury, torch, python, the system and how many threads torch uses.
    """
    installed = [distribution.version for distribution in distributions(name="woodbury")]
    return {
        "woodbury": installed[0] if installed else "a checkout, not installed",
        "torch": str(torch.__version__),  # it comes as a type of its own
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


def _plain(value: Any) -> Any:
    """The value in the types that JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str, type(None))) else str(value)
