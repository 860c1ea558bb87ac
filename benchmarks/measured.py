"""What the benchmarks share: the data beside the project, finished cells in a file, a mean with its
spread."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch

from woodbury.reporting.files import write_json

BENCH = Path(__file__).resolve().parents[2] / "shared" / "bench"


def bench_data(threads: int) -> Any:
    """The module that loads networks and data, with so many threads to work with; ends the program
    where it is not there."""
    if not BENCH.is_dir():
        print("Skipped: the papers' checkpoints and data are not in ../shared/bench.")
        raise SystemExit(0)
    torch.set_num_threads(threads)
    sys.path.insert(0, str(BENCH))
    return importlib.import_module("bench_data")


def finished(path: Path) -> dict[str, Any]:
    """The cells that are in the file."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def keep(cells: Mapping[str, Any], path: Path) -> None:
    """Write the cells; a run that is stopped meanwhile leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write_json(partial, cells)
    partial.replace(path)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± population standard deviation, with so many digits after the point."""
    return f"{fmean(values):.{digits}f} ± {pstdev(values):.{digits}f}" if values else ""
