"""The Python blocks of the documents run as tests (Sybil)."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from support.documents import readers_names
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

PYTHON = PythonCodeBlockParser()
NAMES = "](index.md#names)"
"""In a page whose blocks begin with the names of docs/how-to/index.md."""

NEEDS = {
    "numba": ["woodbury/runtime/codegen.py", "woodbury/runtime/kernels.py"],
    "accelerate": [
        "woodbury/integrations/transformers/callback.py",
        "woodbury/integrations/transformers/training_loss.py",
        "docs/how-to/trainers.md",
    ],
    "torch_pruning": ["docs/how-to/smaller-layers.md"],
    "datasets": ["docs/how-to/transformers.md"],
    "lightning": ["woodbury/integrations/lightning.py", "docs/how-to/trainers.md"],
}
"""Package of an extra -> what cannot be imported or run without it."""

collect_ignore = [
    path
    for package, paths in NEEDS.items()
    if importlib.util.find_spec(package) is None
    for path in paths
]


def python_blocks(document: Document) -> Iterable[Region]:
    """The Python blocks, each of which goes on with the names of those before it.

    On a page that links to the names of the how-to pages each block begins with these names and no
    others; an invisible block goes on with the names of the block before it.
    """
    of_their_own = NAMES in document.text
    for region in PYTHON(document):
        if of_their_own and not document.text.startswith("<!--", region.start):
            region.evaluator = _with_readers_names(region.evaluator)
        yield region


def _with_readers_names(evaluate: Any) -> Any:
    def evaluator(example: Example) -> Any:
        example.namespace.clear()
        example.namespace.update(readers_names())
        return evaluate(example)

    return evaluator


def in_a_new_folder(namespace: dict[str, Any]) -> None:
    """Blocks write files: let them lie in a folder that nobody needs."""
    torch.set_num_threads(1)
    _folders.append((Path.cwd(), tempfile.TemporaryDirectory()))
    os.chdir(_folders[-1][1].name)


def back_again(namespace: dict[str, Any]) -> None:
    """Return to the folder from before the document."""
    before, folder = _folders.pop()
    os.chdir(before)
    folder.cleanup()


_folders: list[tuple[Path, tempfile.TemporaryDirectory[str]]] = []

pytest_collect_file = Sybil(
    [python_blocks, SkipParser()],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/*/*.md"],
    setup=in_a_new_folder,
    teardown=back_again,
).pytest()
