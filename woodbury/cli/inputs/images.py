"""A folder of class folders of images, as a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from woodbury.errors import MissingDependency, WoodburyError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TEST_NAMES = ("test", "val", "valid", "validation")


class LabelledFile(NamedTuple):
    """An image and the number of its class."""

    path: Path
    label: int


class Form(NamedTuple):
    """What all images of a data set have in common.

    Attributes:
        size: (width, height).
        mode: Pillow's name: L for one channel, RGB for three.
    """

    size: tuple[int, int]
    mode: str

    def __call__(self, image: Any) -> Tensor:
        """An image as (channels, height, width) float in [0, 1]."""
        image = image.convert(self.mode)
        if image.size != self.size:
            image = image.resize(self.size)
        pixels = np.array(image, dtype=np.float32) / 255
        channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()
        return torch.from_numpy(channels_first)


Transform = Callable[[Any], Tensor]
"""From an image of Pillow to what a model takes."""


@dataclass(frozen=True)
class Images(Dataset):
    """Pairs of an image and the number of its class.

    Attributes:
        files: The images; each is read when it is asked for.
        transform: What makes an input of each.
    """

    files: Sequence[LabelledFile]
    transform: Transform

    @classmethod
    def splits(
        cls, folder: Path, size: int | None, transform: Transform | None = None
    ) -> list[Dataset]:
        """One split of a folder, or two of its train/ and test/.

        Args:
            folder: It holds a folder for each class; they are numbered in the order of their names.
            size: Width and height that all are resized to, None for their own.
            transform: What makes an input of each; None for (channels, height, width) floats in
                [0, 1], all of one size.

        Raises:
            WoodburyError: If there are no images, or they differ in size and `size` is None.
            MissingDependency: Without Pillow.
        """
        _pillow()
        train = folder / "train" if (folder / "train").is_dir() else folder
        folders = [train]
        if train != folder:
            tests = [folder / name for name in TEST_NAMES if (folder / name).is_dir()]
            folders += tests[:1]
        classes = sorted(_class_names(train))
        files = [_labelled_files(each, classes) for each in folders]
        if transform is None:
            transform = _common_form([file.path for split in files for file in split], size)
        return [cls(split, transform) for split in files]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.files)

    @property
    def labels(self) -> Tensor:
        """The class of each image, (n,) int64."""
        return torch.tensor([file.label for file in self.files])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image and the number of its class.

        Raises:
            WoodburyError: If the file cannot be read.
        """
        path, label = self.files[index]
        with _opened(path) as image, _reading_explained(path):
            image.verify()  # decoding alone skips the checksums of a PNG
        with _opened(path) as image, _reading_explained(path):  # opening has read the header alone
            return self.transform(image), label


def _class_names(folder: Path) -> set[str]:
    return {
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    }


def _labelled_files(folder: Path, classes: Sequence[str]) -> list[LabelledFile]:
    if unknown := sorted(_class_names(folder) - set(classes)):
        raise WoodburyError(
            f"{folder} has a class {unknown[0]!r} that the training images lack: rename or remove "
            "it."
        )
    files = []
    for label, name in enumerate(classes):
        paths = [
            path
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES and not path.is_dir()
        ]
        for path in paths:
            if not path.is_file():  # a pipe would be waited for
                raise WoodburyError(f"{path} is no file: repair or remove it.")
        if not paths and folder.name not in TEST_NAMES:
            raise WoodburyError(
                f"{folder / name} holds no image: it should hold those of class {name!r}."
            )
        files += [LabelledFile(path, label) for path in paths]
    if not files:
        raise WoodburyError(
            f"{folder} holds no class folders of images: expected {folder}/CLASS/IMAGE.png."
        )
    return files


def _common_form(paths: Sequence[Path], size: int | None) -> Form:
    """The form that all images can be given, at least one."""
    sizes: dict[tuple[int, int], Path] = {}  # each with the first image that has it
    modes = set()
    for path in paths:
        with _opened(path) as image:  # reads the header alone
            if image.mode[0] in "IF":  # which Pillow would clip at 255
                raise WoodburyError(
                    f"{path} has more than 8 bits to a channel ({image.mode}): save it with 8."
                )
            modes.add(image.mode)
            sizes.setdefault(image.size, path)
        if size is None and len(sizes) > 1:
            first, second = (f"{one} is {w} × {h}" for (w, h), one in sizes.items())
            raise WoodburyError(f"The images differ in size ({first}, {second}): give --size.")
    mode = "L" if modes <= {"1", "L"} else "RGB"
    return Form((size, size) if size else next(iter(sizes)), mode)


def _opened(path: Path) -> Any:
    with _reading_explained(path):
        return _pillow().open(path)


@contextmanager
def _reading_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a broken file shows itself as one of a dozen types
        raise WoodburyError(
            f"{path} is no image that Pillow can read ({error}): repair or remove it."
        ) from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency(
            "A folder of images needs Pillow: pip install 'woodbury[images]'."
        ) from error
    return Image
