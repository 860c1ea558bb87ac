"""The code blocks of the documents, and the names that those of the how-to pages begin with."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to" / "index.md"


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    code: str


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a Markdown file, in their order."""
    fence = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [Block(*found) for found in fence.findall(path.read_text("utf-8"))]


def python_block(path: Path, holding: str) -> str:
    """The only Python block of the document that holds the words."""
    (code,) = [
        block.code for block in blocks(path) if block.language == "python" and holding in block.code
    ]
    return code


def readers_names() -> dict[str, Any]:
    """What the blocks of the how-to pages begin with, by the code that the pages show."""
    names: dict[str, Any] = {}
    exec(_preamble(), names)
    return names


@functools.cache
def _preamble() -> CodeType:
    return compile(python_block(HOW_TO, "loss_of"), str(HOW_TO), "exec")
