"""The command line inside a test: run it, see what it refuses, read what it wrote."""

from __future__ import annotations

import io
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from woodbury.cli import run
from woodbury.io.sparse_files import load_sparse
from woodbury.reporting.files import read_json


class Killed(BaseException):
    """Stands for a power failure: nothing of ours catches it."""


class Result(NamedTuple):
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Both streams."""
        return self.stdout + self.stderr


def woodbury(*words: str) -> Result:
    """Run a command, as `woodbury("prune net.py:build", "--out out")`, in this process."""
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        exit_code = run(shlex.split(" ".join(words)))
    return Result(exit_code, stdout.getvalue(), stderr.getvalue())


def succeeds(*words: str) -> Result:
    """Run a command that ends well."""
    result = woodbury(*words)
    assert result.exit_code == 0, result.output
    return result


def refused(sentence: str, *words: str, at_once: bool = True) -> None:
    """The command ends with 2 and one sentence, no traceback, no file, at once no other line."""
    before = files()
    result = woodbury(*words)
    lines = result.output.strip().splitlines()
    assert result.exit_code == 2, result.output
    assert len(lines) == 1 or not at_once, result.output
    assert lines[-1].startswith("Error: ") and sentence in lines[-1], result.output
    assert "Traceback" not in result.output
    assert files() == before


def files() -> set[Path]:
    """All that is in the current folder."""
    return {path for path in Path().rglob("*") if "__pycache__" not in path.parts}


def report(folder: str | Path) -> dict[str, Any]:
    """The numbers that a command wrote; their checksum is verified."""
    return read_json(Path(folder) / "report.json")


def weights(folder: str | Path) -> dict[str, Tensor]:
    """The weights that a command wrote."""
    return load_sparse(Path(folder) / "weights.safetensors")


def same_weights(first: str | Path, second: str | Path) -> bool:
    """Whether two commands wrote the same bits."""
    ours, theirs = weights(first), weights(second)
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def rewrite_net(text: str) -> None:
    """Another net.py, read as a process of its own would read it."""
    Path("net.py").write_text(text)
    for name in [name for name in sys.modules if name.startswith("_woodbury_cli_net")]:
        del sys.modules[name]
