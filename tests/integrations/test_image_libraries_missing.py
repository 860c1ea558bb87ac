"""timm and torchvision that are not there, or not for this release of torch: one sentence each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import refused

from woodbury.errors import MissingDependency
from woodbury.integrations.image_models import from_timm, from_torchvision

LIBRARIES: dict[str, Callable[[str], Any]] = {"timm": from_timm, "torchvision": from_torchvision}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_that_is_not_there(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no other test writes there
    monkeypatch.setitem(sys.modules, library, None)  # import raises ModuleNotFoundError
    sentence = f"{library}:NAME needs the package {library}: pip install {library}."
    with pytest.raises(MissingDependency, match=sentence):
        LIBRARIES[library]("resnet18")
    refused(sentence, f"prune {library}:resnet18 images --sparsity 0.5")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_for_another_release_of_torch(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / f"{library}.py").write_text(error)
    monkeypatch.delitem(sys.modules, library, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependency) as raised:
        LIBRARIES[library]("resnet18")
    assert str(raised.value) == (
        f"{library} cannot be imported (RuntimeError: operator torchvision::nms does not exist): "
        f"install the release of torchvision that goes with torch {torch.__version__}."
    )
