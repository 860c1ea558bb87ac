"""A folder of class folders of images, as a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from woodbury.errors import WoodburyError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Images(Dataset):
    """Pairs (c, h, w) float in [0, 1] and class number; read when asked for.

    files: each with its class. size: (width, height). mode: Pillow's name, L for one channel or RGB for three.
    """

    files: Sequence[tuple[Path, int]]
    size: tuple[int, int]
    mode: str

    @classmethod
    def splits(cls, folder: Path, size: int | None) -> list[Dataset]:
        """One split of the folder, or two of its train/ and test/; classes are numbered in the order of their names.

        Raises WoodburyError without Pillow, without images, or for images of different sizes and no `size`.
        """
        _pillow()
        train = folder / "train" if (folder / "train").is_dir() else folder
        tests = (
            [folder / name for name in TEST_NAMES if (folder / name).is_dir()]
            if train != folder
            else []
        )
        names = sorted(
            entry.name
            for entry in train.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        found = [_files(part, names) for part in (train, *tests[:1])]
        side, mode = _form([path for files in found for path, _ in files], size)
        return [cls(files, side, mode) for files in found]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labels(self) -> Tensor:
        """The class of each, (n,) int64."""
        return torch.tensor([label for _, label in self.files])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with _opened(path) as image:
            with _readable(path):  # opening has read the header alone
                image = image.convert(self.mode)
            pixels = (
                np.array(
                    image if image.size == self.size else image.resize(self.size), dtype=np.float32
                )
                / 255
            )
        return torch.from_numpy(
            pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()
        ), label


def _files(folder: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    there = {
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if unknown := sorted(there - set(names)):
        raise WoodburyError(
            f"{folder} has a class {unknown[0]!r} that the training images lack: rename or remove it."
        )
    found = []
    for label, name in enumerate(names):
        paths = [
            path for path in sorted((folder / name).rglob("*")) if path.suffix.lower() in SUFFIXES
        ]
        if not paths and folder.name not in TEST_NAMES:
            raise WoodburyError(
                f"{folder / name} holds no image: it should hold those of class {name!r}."
            )
        found += [(path, label) for path in paths]
    if not found:
        raise WoodburyError(
            f"{folder} holds no class folders of images: expected {folder}/CLASS/IMAGE.png."
        )
    return found


def _form(paths: Sequence[Path], size: int | None) -> tuple[tuple[int, int], str]:
    """The (width, height) and the mode that all images can be given."""
    first, modes = None, set()
    for path in paths:
        with _opened(path) as image:  # reads the header alone
            if image.mode[0] in "IF":  # which Pillow would clip at 255
                raise WoodburyError(
                    f"{path} has more than 8 bits to a channel ({image.mode}): save it with 8."
                )
            modes.add(image.mode)
            first = first or (path, image.size)
            if size is None and image.size != first[1]:
                sizes = f"{first[0]} is {first[1][0]} × {first[1][1]} and {path} {image.size[0]} × {image.size[1]}"
                raise WoodburyError(f"The images differ in size ({sizes}): give --size.")
    assert first  # _files raises where there is no image
    return (size, size) if size else first[1], "L" if modes <= {"1", "L"} else "RGB"


def _opened(path: Path) -> Any:
    with _readable(path):
        return _pillow().open(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError) as error:  # a broken PNG is a SyntaxError to Pillow
        raise WoodburyError(
            f"{path} is no image that Pillow can read ({error}): repair or remove it."
        ) from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise WoodburyError(
            "A folder of images needs Pillow: pip install 'woodbury[images]'."
        ) from error
    return Image
