"""The documents keep their word: what code computes, links, names, numbers, commands."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import dense
from support.documents import ROOT, blocks, python_block, readers_names

import woodbury
from woodbury import cli

DOCS = ROOT / "docs"
README = ROOT / "README.md"
CHANGELOG = ROOT / "CHANGELOG.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
OPERATORS = DOCS / "how-to" / "operators.md"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path.parent.name not in ("log", "results")]
OURS = [README, CHANGELOG, CONTRIBUTING, *PAGES]
OF_SHORT_PARAGRAPHS = [path for path in OURS if path.name not in ("math.md", "cli.md")]

LANGUAGES = {"python", "console", "text", "markdown", "bash", "toml"}
DIRECTIVES = {"{toctree}", "{include}", "{eval-rst}"}
MAX_WORDS = 90
MAX_COLUMNS = 100
README_LINES = README_COLUMNS = 120


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("path", OURS, ids=_short)


def names_after(code: str) -> dict[str, Any]:
    """The names after the block, which began with those of a reader."""
    names = readers_names()
    torch.manual_seed(0)
    exec(code, names)
    return names


def prose(path: Path) -> str:
    """The document without its code and comments."""
    text = re.sub(r"<!--.*?-->", "", path.read_text("utf-8"), flags=re.DOTALL)
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def paragraphs(path: Path) -> list[str]:
    """What stands between blank lines and is neither table nor title."""
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:-|\d+\.) )", prose(path))
    return [part for part in parts if not part.lstrip().startswith(("|", "#"))]


def test_the_hand_written_woodbury_is_ours() -> None:
    by_hand = names_after(python_block(OPERATORS, "cholesky_solve"))
    ours = names_after(python_block(OPERATORS, "LowRank(rows"))
    torch.testing.assert_close(by_hand["solution"], ours["solution"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_hand["diagonal"], ours["diagonal"], rtol=1e-4, atol=1e-4)
    keep = ours["keep"]
    kept = dense.low_rank(ours["rows"], ours["damping"])[keep][:, keep]
    truth = torch.linalg.solve(kept, ours["v"][keep].double())
    torch.testing.assert_close(ours["restricted"].double(), truth, rtol=1e-4, atol=1e-4)


@each_document
def test_a_block_says_its_language(path: Path) -> None:
    assert {block.language for block in blocks(path)} <= LANGUAGES | DIRECTIVES


@pytest.mark.parametrize("path", OF_SHORT_PARAGRAPHS, ids=_short)
def test_paragraphs_are_short(path: Path) -> None:
    long = [part for part in paragraphs(path) if len(part.split()) > MAX_WORDS]
    assert not long


@each_document
def test_lines_are_wrapped(path: Path) -> None:
    lines = prose(path).splitlines()
    most = README_COLUMNS if path == README else MAX_COLUMNS
    wide = [line for line in lines if len(line) > most and not line.startswith(("|", "$"))]
    assert not [line for line in wide if "](" not in line]


def test_the_readme_fits_a_screen_or_two() -> None:
    lines = README.read_text("utf-8").splitlines()
    assert len(lines) < README_LINES
    assert max(map(len, lines)) <= README_COLUMNS


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(path: Path) -> set[str]:
    """Of a Markdown file's titles, as GitHub makes them, and of its targets, such as (eq-9)=."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", prose(path), re.MULTILINE))


def names_in(path: Path) -> Iterator[str]:
    """Dotted names of woodbury in backticks; in the changelog those of the last column."""
    text = prose(path)
    if path == CHANGELOG:
        rows = [line for line in text.splitlines() if line.startswith("|")]
        text = "\n".join(row.rstrip("| ").rsplit("|", 1)[-1] for row in rows)
    for words in re.findall(r"`([^`]+)`", text):
        yield from re.findall(r"\bwoodbury(?:\.[A-Za-z_]\w*)+", words)


def resolves(name: str) -> bool:
    """Whether the dotted name is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            fields = getattr(found, "__dataclass_fields__", {})
            if not hasattr(found, part) and part not in fields:
                return False
            found = getattr(found, part, None)
        return True
    return False


@each_document
def test_names_exist(path: Path) -> None:
    assert not sorted({name for name in names_in(path) if not resolves(name)})


def known_numbers() -> str:
    """The pages of results, in one text."""
    return "\n".join(path.read_text("utf-8") for path in sorted((DOCS / "results").glob("*.md")))


@each_document
def test_measured_numbers_are_those_of_the_results(path: Path) -> None:
    measured = set(re.findall(r"\d[\d.e-]* ± \d[\d.e-]*", prose(path)))
    known = known_numbers()
    assert not sorted(number for number in measured if number not in known)


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    known = known_numbers()
    rows = [line for line in prose(README).splitlines() if re.match(r"\| .*\d", line)]
    numbers = {n for row in rows for n in re.findall(r"\d[\d,]*\.\d+|\d,\d{3}", row)}
    rounded = {"4.6", "4.5", "1.5"}  # GB of megabytes there
    assert len(numbers) > 20
    assert not sorted(number for number in numbers - rounded if number not in known)


def test_the_pictures_are_drawn_from_the_results() -> None:
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    assert spec and spec.loader
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    for name, draw in figures.PICTURES.items():
        assert draw() == (DOCS / "_static" / name).read_text("utf-8"), name


def options_of(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> set[str]:
    """The options that the help of a command names."""
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run([command, "--help"]) == 0
    return set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))


def commands() -> list[str]:
    """The README's lines that call woodbury."""
    lines = [line for block in blocks(README) for line in block.code.splitlines()]
    return [line for line in lines if line.startswith("woodbury ")]


@pytest.mark.parametrize("line", commands())
def test_the_options_of_a_command_exist(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, command, *words = shlex.split(line, comments=True)
    named = {word for word in words if word.startswith("--")}
    assert named <= options_of(command, monkeypatch, capsys)


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f"\nversion: {woodbury.__version__}\n" in citation
    assert f'\nversion = "{woodbury.__version__}"\n' in project
