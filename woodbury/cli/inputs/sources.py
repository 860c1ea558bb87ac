"""MODEL and DATA by name: where a network is from, what data it reads, and how it goes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from woodbury.cli.inputs.data import LabelsFrom, Splits, is_of_arrays, load_data, without_test
from woodbury.cli.inputs.model import load_model, usable
from woodbury.cli.names import TASKS, nearest, parse_columns
from woodbury.cli.options import InputOptions
from woodbury.errors import WoodburyError
from woodbury.integrations.image_models import ImageModel, from_timm, from_torchvision
from woodbury.integrations.transformers import data as tables
from woodbury.integrations.transformers import models
from woodbury.integrations.transformers.samples import labelled_by
from woodbury.model.batches import samples_in


class Source(ABC):
    """Where a network is from."""

    @abstractmethod
    def model(self) -> nn.Module:
        """The network, in eval mode.

        Raises:
            WoodburyError: For whatever is wrong with it.
        """

    @abstractmethod
    def splits(self, labels_from: LabelsFrom | None) -> Splits:
        """The data.

        Args:
            labels_from: What gives inputs without labels some; None refuses such data.

        Raises:
            WoodburyError: For whatever is wrong with it.
        """

    @abstractmethod
    def inputs(self) -> Dataset:
        """Pairs of inputs and anything, of the test split where there is one."""

    @abstractmethod
    def write(self, model: nn.Module, folder: Path) -> None:
        """Write the network in the form in which it came, beside our own files.

        Args:
            model: It, pruned or trained.
            folder: Where.
        """

    @property
    def predicts_next_tokens(self) -> bool:
        """Whether it is a causal language model, whose loss has a perplexity."""
        return False

    @abstractmethod
    def how_to_load(self, out: Path) -> str | None:
        """The line of Python that reads what `write` has written; None where it writes nothing."""


@dataclass(frozen=True)
class FromFunction(Source):
    """A network that a function returns.

    Attributes:
        where: The function.
        data: DATA as the user wrote it.
        options: What both are made with.
    """

    where: str
    data: str
    options: InputOptions

    def model(self) -> nn.Module:
        """What the function returns, with the weights of the checkpoint."""
        return load_model(self.where, self.options.checkpoint)

    def splits(self, labels_from: LabelsFrom | None) -> Splits:
        """What DATA holds."""
        return load_data(
            self.data, seed=self.options.seed, size=self.options.size, labels_from=labels_from
        )

    def inputs(self) -> Dataset:
        """The test split."""
        return _without_labels(self.splits)

    def write(self, model: nn.Module, folder: Path) -> None:
        """Write nothing: our own file has all that the function needs."""

    def how_to_load(self, out: Path) -> None:
        """There is no line."""


@dataclass(frozen=True)
class FromTransformers(Source):
    """A model of transformers, whose data was read already.

    Attributes:
        source: The model and its tokenizer or image processor.
        samples: What the data gives; None where it is of arrays or a function.
        data: DATA as the user wrote it.
        options: What both are made with.
    """

    source: models.Source
    samples: models.SplitSamples | None
    data: str
    options: InputOptions

    @classmethod
    def of(cls, where: str, data: str, options: InputOptions) -> FromTransformers:
        """Find a model and read its data, before any weight.

        Args:
            where: A folder or a name on the hub.
            data: DATA as the user wrote it.
            options: What both are made with.

        Raises:
            WoodburyError: If there is no such model or data, or they do not fit.
        """
        if options.size is not None:
            raise WoodburyError(
                "--size is for folders of images without a processor: leave it out, as the "
                "model's own image processor sets the size."
            )
        columns = parse_columns(options.columns)
        if is_of_arrays(data):
            if options.columns or options.length:
                raise WoodburyError(
                    f"--columns and --length are for tables, and {data} is none: leave them out."
                )
            source = models.Source.find(where, _task(options))
            return cls(source, None, data, options)
        tables.check_place(data)
        source = models.Source.find(where, _task(options))
        samples = source.read(data, columns, length=options.length, seed=options.seed)
        return cls(source, samples, data, options)

    def model(self) -> nn.Module:
        """The model, with the weights of the checkpoint."""
        return usable(self.source.model(), self.options.checkpoint)

    def splits(self, labels_from: LabelsFrom | None) -> Splits:
        """The samples of the table; without a test split a part is held out."""
        if self.samples is None:
            return load_data(self.data, seed=self.options.seed, labels_from=labels_from)
        train, test, notes = self.samples
        without_labels = not train.labelled
        if without_labels and labels_from is None:
            raise WoodburyError(
                f"{self.data} has no column of labels: name it with --columns label=COLUMN, or "
                "prune with --labels sampled, which needs none."
            )
        if without_labels and labels_from is not None:
            train = labelled_by(train, labels_from)
            test = None if test is None else labelled_by(test, labels_from)
        if test is not None:
            return Splits(train, test, notes, without_labels)
        held = without_test(self.data, train, self.options.seed)
        return Splits(held.train, held.test, (*notes, *held.notes), without_labels)

    def inputs(self) -> Dataset:
        """The test split, or the training split."""
        if self.samples is None:
            return _without_labels(self.splits)
        return self.samples.train if self.samples.test is None else self.samples.test

    def write(self, model: nn.Module, folder: Path) -> None:
        """Write what `save_pretrained` does."""
        self.source.save(model, folder)

    @property
    def predicts_next_tokens(self) -> bool:
        """Whether that is the model's task."""
        return self.source.task is TASKS["causal-lm"]

    def how_to_load(self, out: Path) -> str:
        """A call of `from_pretrained`."""
        return f'{self.source.how_to_load}("{out}")'


@dataclass(frozen=True)
class FromImageLibrary(Source):
    """A model of timm or torchvision.

    Attributes:
        found: The model and its transform.
        data: DATA as the user wrote it.
        options: What both are made with.
    """

    found: ImageModel
    data: str
    options: InputOptions

    def model(self) -> nn.Module:
        """The model, which has its weights already."""
        return usable(self.found.model)

    def splits(self, labels_from: LabelsFrom | None) -> Splits:
        """What DATA holds; a folder's images are made as the model knows them."""
        return load_data(
            self.data,
            seed=self.options.seed,
            transform=self.found.transform,
            labels_from=labels_from,
        )

    def inputs(self) -> Dataset:
        """The test split."""
        return _without_labels(self.splits)

    def write(self, model: nn.Module, folder: Path) -> None:
        """Write what the library reads."""
        self.found.save(model, folder)

    def how_to_load(self, out: Path) -> str:
        """What the library reads it by."""
        return self.found.how_to_load(out)


def _of_timm(where: str, data: str, options: InputOptions) -> Source:
    return FromImageLibrary(from_timm(where, options.checkpoint, options.size), data, options)


def _of_torchvision(where: str, data: str, options: InputOptions) -> Source:
    name, _, weights = where.partition(":")
    found = from_torchvision(name, weights, options.checkpoint, options.size)
    return FromImageLibrary(found, data, options)


LIBRARIES: Mapping[str, Callable[[str, str, InputOptions], Source]] = {
    "transformers": FromTransformers.of,
    "timm": _of_timm,
    "torchvision": _of_torchvision,
}
"""What MODEL begins with, before a colon, where it names a model of a library."""


def source_of(model: str, data: str, options: InputOptions) -> Source:
    """Where a network is from.

    Args:
        model: MODEL as the user wrote it.
        data: DATA as the user wrote it.
        options: What both are made with.

    Raises:
        WoodburyError: For a name that there is not, or options that are for another kind of model.
    """
    library, _, name = model.partition(":")
    if library != "transformers":
        idle = {"--task": options.task, "--columns": options.columns, "--length": options.length}
        if given := [option for option, value in idle.items() if value is not None]:
            meant = nearest(library, LIBRARIES) if name else None
            remedy = f"did you mean {meant}:{name}?" if meant else "leave it out."
            raise WoodburyError(f"{given[0]} is for transformers:NAME: {remedy}")
    if library not in LIBRARIES:
        return FromFunction(model, data, options)
    if not name:
        raise WoodburyError(f"{model!r} names no model: write {library}:NAME.")
    return LIBRARIES[library](name, data, options)


def _task(options: InputOptions) -> Any:
    return None if options.task is None else TASKS[options.task]


def _without_labels(splits: Callable[[LabelsFrom | None], Splits]) -> Dataset:
    return splits(lambda inputs: torch.zeros(samples_in(inputs))).test
