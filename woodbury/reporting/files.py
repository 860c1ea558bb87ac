"""Results as files: CSV, strict JSON, and what they were made with."""

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

from woodbury.evaluation.comparison import Result


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
    Path(path).write_text(
        json.dumps(_plain(facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    own = next(
        (found.version for found in distributions(name="woodbury")), "a checkout, not installed"
    )
    return {
        "woodbury": own,
        "torch": str(torch.__version__),  # it comes as a type of its own
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


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
