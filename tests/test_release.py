"""The archives of a release, built, and the wheel installed in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.documents import ROOT, python_block

pytestmark = pytest.mark.slow

SHIPPED = ("__init__.pyi", "py.typed", "reporting/templates/page.html.j2", "cli/__main__.py")
"""Files of the package that are easily forgotten."""

INSTALLED = """
import pathlib, sys, woodbury
assert pathlib.Path(woodbury.__file__).is_relative_to(sys.prefix), woodbury.__file__
assert "torch" not in sys.modules
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command printed; the test fails with it if the command does."""
    words = [str(word) for word in command]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
    assert not ended.returncode, f"{words}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source archive, and the wheel that is built from it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "source": source}


def test_the_wheel_holds_the_package_and_nothing_else(archives: dict[str, Path]) -> None:
    names = zipfile.ZipFile(archives["wheel"]).namelist()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "woodbury").rglob("*.py")}
    assert modules <= set(names)
    assert {f"woodbury/{name}" for name in SHIPPED} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"woodbury"}


def test_the_source_archive_holds_what_the_wheel_is_built_from(archives: dict[str, Path]) -> None:
    with tarfile.open(archives["source"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"woodbury/{name}" for name in SHIPPED} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_what_is_installed_runs_the_readme(archives: dict[str, Path], tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    binaries = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    python, pinned = binaries / "python", ("-c", ROOT / "constraints.txt")
    install = (python, "-m", "pip", "install", "-q", "--no-compile")  # compiling takes a third
    run(*install, *pinned, f"{archives['wheel']}[demo]", cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    run(python, "-c", INSTALLED, cwd=tmp_path)
    run(python, "-c", python_block(ROOT / "README.md", "load_digits"), cwd=tmp_path)
    assert (tmp_path / "digits.safetensors").stat().st_size < 20_000
    assert "prune" in run(binaries / "woodbury", "--help", cwd=tmp_path)
