"""The architecture that the documentation shows is that of the code."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import woodbury

DOCS = Path(__file__).parents[1] / "docs"
NAMESPACES = ("costs", "saliencies", "scopes", "selections", "units", "updates", "presets")


def public_functions() -> Iterator[str]:
    """Names of the functions and recipes at the top level and in the namespaces."""
    packages = [woodbury, *(getattr(woodbury, name) for name in NAMESPACES)]
    for package in packages:
        for name in dir(package):
            if not name.startswith("_") and callable(getattr(package, name)):
                yield name


def test_no_module_has_the_name_of_a_public_function() -> None:
    modules = {info.name.rpartition(".")[2] for info in pkgutil.walk_packages(woodbury.__path__)}
    assert not modules & set(public_functions())


def test_importing_woodbury_imports_nothing_of_weight() -> None:
    program = "import sys, woodbury; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=100).returncode == 0


def test_every_name_of_the_top_level_can_be_imported() -> None:
    assert len(woodbury.__all__) > 40
    for name in woodbury.__all__:
        assert getattr(woodbury, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        woodbury.nonsense  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_picture_is_drawn_from_the_imports() -> None:
    pytest.importorskip("grimp")
    sys.path.insert(0, str(DOCS))
    try:
        picture: ModuleType = importlib.import_module("picture")
    finally:
        sys.path.remove(str(DOCS))
    assert picture.svg() == (DOCS / "_static" / picture.FILE).read_text("utf-8")


def test_every_package_says_what_it_is_in_one_sentence() -> None:
    for info in pkgutil.walk_packages(woodbury.__path__, "woodbury."):
        if info.ispkg:
            text = importlib.import_module(info.name).__doc__ or ""
            assert text.strip().endswith("."), info.name
            assert "\n" not in text.strip(), info.name
