"""Samples of a model of transformers: tokens that are padded to one length, and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from woodbury.integrations.transformers.data import Table
from woodbury.integrations.transformers.library import explained
from woodbury.model.likelihood import IGNORED

MAX_PICTURES = 64
MAX_SAMPLES, MAX_TOKENS, MAX_SCORES = 250, 2**14, 2**26
"""What goes through a model at once: the scores of as many take 256 MiB."""

Label = int | Sequence[int]


@dataclass(frozen=True)
class Tokens(Dataset):
    """Pairs of inputs and a label, of equal shapes: shorter samples are padded at their ends.

    Attributes:
        inputs: Of each sample, argument of the model -> its numbers for each token.
        labels: Of each sample a class, or one for each token with −100 where it counts for nothing.
        length: What all are padded to.
        padding: Argument of the model -> what stands at the places that are padded; 0 by default.
        scores: Numbers that the model returns for a sample.
        labelled: Whether the labels are the data's own. Else those that are not −100 say nothing.
    """

    inputs: Sequence[Mapping[str, Sequence[int]]]
    labels: Sequence[Label]
    length: int
    padding: Mapping[str, int]
    scores: int
    labelled: bool = True

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """The inputs of a sample, (length,) each, and its label, () or (length,)."""
        inputs = {
            name: self._padded(values, self.padding.get(name, 0))
            for name, values in self.inputs[index].items()
        }
        label = self.labels[index]
        if isinstance(label, int):
            return inputs, torch.tensor(label)
        return inputs, self._padded(label, IGNORED)

    def _padded(self, values: Sequence[int], fill: int) -> Tensor:
        row = torch.full((self.length,), fill, dtype=torch.int64)
        row[: len(values)] = torch.as_tensor(values, dtype=torch.int64)
        return row

    @property
    def at_once(self) -> int:
        """Samples that go through the model at once where nothing else is asked for."""
        fit = min(MAX_TOKENS // self.length, MAX_SCORES // self.scores, MAX_SAMPLES)
        return max(1, fit)


@dataclass(frozen=True)
class Pictures(Dataset):
    """Pairs of the pixels of an image, as its processor makes them, and the number of its class.

    Attributes:
        table: The rows; an image is read when it is asked for.
        column: Of the images.
        processor: Of the images.
        mode: Pillow's name of the channels that the model takes.
        labels: The number of each one's class.
        labelled: Whether the labels are the data's own.
    """

    table: Table
    column: str
    processor: Any
    mode: str
    labels: Sequence[int]
    labelled: bool = True

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """The pixels of an image, (channels, height, width), and its class."""
        refusal = f"Image {index} of {self.table.where} cannot be read ({{reason}}): look at it."
        with explained(refusal):
            image = self.table.rows[index][self.column].convert(self.mode)
            pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels}, torch.tensor(self.labels[index])

    @property
    def at_once(self) -> int:
        """Images that go through the model at once where nothing else is asked for."""
        return MAX_PICTURES


Samples = Tokens | Pictures


def labelled_by(samples: Samples, labels_from: Callable[[Any], Tensor]) -> Samples:
    """Samples with other labels where theirs are not −100.

    Args:
        samples: The samples.
        labels_from: Inputs of a batch -> a label for each sample, or for each of its tokens.

    Returns:
        The same inputs with those labels.
    """
    labels: list[Label] = []
    for inputs, target in DataLoader(samples, batch_size=samples.at_once):
        found = torch.where(target == IGNORED, target, labels_from(inputs))
        labels += found.tolist()
    if isinstance(samples, Tokens):
        sizes = (len(each["input_ids"]) for each in samples.inputs)
        cut = [
            label if isinstance(label, int) else label[:size]
            for label, size in zip(labels, sizes, strict=True)
        ]
        return replace(samples, labels=cut)
    return replace(samples, labels=labels)
