"""load(): a model of transformers and its data by their names, ready for `woodbury.prune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from woodbury.argument_types import checks_types
from woodbury.errors import check_whole_number
from woodbury.integrations.transformers import data as tables
from woodbury.integrations.transformers.models import Source
from woodbury.integrations.transformers.samples import labelled_by
from woodbury.integrations.transformers.tasks import Task
from woodbury.model.batches import Batch
from woodbury.model.calling import call_model
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.training.drawing import HELD_OUT_FRACTION, draw, hold_out


@dataclass(frozen=True)
class Loaded:
    """A model and its data.

    Attributes:
        model: The model, float32 and in eval mode.
        batches: The calibration set, pairs (inputs, target): inputs as keyword arguments.
        test: All samples of the test split, likewise, or what was held out in its place.
        likelihood: The loss of the task.
        labelled: Whether the labels are the data's own, and not what the model says.
        source: Where the model is from, with its tokenizer or image processor.
        notes: What was decided for the user.
    """

    model: Any
    batches: Sequence[Batch]
    test: DataLoader
    likelihood: Likelihood
    labelled: bool
    source: Source
    notes: tuple[str, ...] = ()

    def save(self, folder: str | Path) -> None:
        """Write the model as it is now, with its tokenizer or image processor.

        Args:
            folder: Where; `from_pretrained` reads it, and so does `load`.
        """
        self.source.save(self.model, folder)


@checks_types
def load(
    where: str,
    data: str,
    task: Task | None = None,
    *,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    samples: int = 1000,
    length: int | None = None,
    seed: int = 0,
) -> Loaded:
    """Load a model of transformers and its data.

    Args:
        where: A folder that `save_pretrained` wrote, or a name on the hub.
        data: A csv, tsv, json, jsonl, txt or parquet file; a folder of such files, of class folders
            of images, or one that `save_to_disk` wrote; or a name on the hub.
        task: Such as `text_classification`; None for what the model was made for.
        columns: "text", "tokens" or "image", and "label" -> the name of that column, or of two for
            pairs of texts. Those with usual names are found.
        samples: Samples of the calibration set at most, drawn from the training split.
        length: Tokens of a sample at most. A longer text is cut there; that of a language model is
            cut into pieces. None for as many as the model takes, 512 at most.
        seed: Of what is drawn and held out.

    Returns:
        The model, its batches and its likelihood.

    Raises:
        MissingDependency: If transformers or datasets is not installed.
        WoodburyError: If the model, the data or the task is not there, or they do not fit each
            other; before any weight is read.

    Example:
        >>> loaded = load("./my-bert", "reviews.csv")  # doctest: +SKIP
        >>> woodbury.prune(loaded.model, loaded.batches, 0.8)  # doctest: +SKIP
        >>> loaded.save("small")  # doctest: +SKIP
    """
    check_whole_number(samples, "samples", "the samples of the calibration set")
    if length is not None:
        check_whole_number(length, "length", "the tokens of a sample", least=2)
    tables.check_place(data)
    source = Source.find(where, task)
    asked = {
        role: (name,) if isinstance(name, str) else tuple(name)
        for role, name in (columns or {}).items()
    }
    train, test, notes = source.read(data, asked, length=length, seed=seed)
    model = source.model()
    if not train.labelled:
        train, test = (
            None if part is None else labelled_by(part, lambda inputs: labels_of(model, inputs))
            for part in (train, test)
        )
        assert train is not None
    rest, held_out = train, test
    if test is None:
        rest, held_out = hold_out(train, HELD_OUT_FRACTION, seed)
    assert held_out is not None
    return Loaded(
        model=model,
        batches=list(DataLoader(draw(rest, samples, seed), batch_size=train.at_once)),
        test=DataLoader(held_out, batch_size=train.at_once),
        likelihood=cross_entropy,
        labelled=train.labelled,
        source=source,
        notes=notes,
    )


@torch.no_grad()
def labels_of(model: Any, inputs: Any) -> Tensor:
    """What a model says: the class of the highest score.

    Args:
        model: The model, in eval mode.
        inputs: A batch's inputs.

    Returns:
        A class for each sample, or for each of its tokens.
    """
    return cross_entropy.output_of(call_model(model, inputs)).argmax(1)
