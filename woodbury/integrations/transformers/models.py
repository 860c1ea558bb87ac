"""A model of transformers by its name or folder, with its tokenizer or image processor."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from woodbury.errors import WoodburyError
from woodbury.integrations.naming import nearest
from woodbury.integrations.transformers import data as tables
from woodbury.integrations.transformers.classes import order_of_classes
from woodbury.integrations.transformers.encoding import Reader
from woodbury.integrations.transformers.library import (
    class_of,
    explained,
    is_local,
    neighbours,
    quiet,
    transformers,
)
from woodbury.integrations.transformers.samples import Samples
from woodbury.integrations.transformers.tasks import TASKS, Task

CONFIG = "config.json"


class SplitSamples(NamedTuple):
    """What a table gives.

    Attributes:
        train: The training split.
        test: The test split, where there is one.
        notes: What was decided for the user.
    """

    train: Samples
    test: Samples | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where a model of transformers is, and what goes with it; its weights are not read yet.

    Attributes:
        where: A folder that `save_pretrained` wrote, or a name on the hub.
        task: What the model does.
        config: Its configuration.
        processor: Its tokenizer or image processor.
    """

    where: str
    task: Task
    config: Any
    processor: Any

    @classmethod
    def find(cls, where: str, task: Task | None) -> Source:
        """Find a model, and see that it does the task.

        Args:
            where: A folder that `save_pretrained` wrote, or a name on the hub.
            task: What it is to do; None for what it was made for.

        Returns:
            The source.

        Raises:
            MissingDependency: If transformers is not installed.
            WoodburyError: If there is no such model, it is of another task, or has no processor.
        """
        library = transformers()
        _check_place(where)
        remedy = "look at its config.json." if is_local(where) else _local_hint(where)
        with explained(f"{where} has no configuration of transformers ({{reason}}): {remedy}"):
            config = library.AutoConfig.from_pretrained(where)
        chosen = _made_for(where, config) if task is None else task
        _check_task(where, config, chosen)
        class_of(_classes(chosen, config)[0])  # before any data is read
        remedy = f"save it there with {chosen.processor_name}.save_pretrained."
        lacks = f"{where} has no {chosen.processor_name}"
        with explained(f"{lacks} ({{reason}}): {remedy}"):
            processor = class_of(chosen.processor_class).from_pretrained(where)
        if chosen.reads_text and len(processor) <= len(processor.all_special_tokens):
            raise WoodburyError(f"{lacks}, or one without words: {remedy}")
        return cls(where, chosen, config, processor)

    def model(self) -> Any:
        """The model, float32 and in eval mode.

        Raises:
            WoodburyError: If the weights cannot be read, or lack some.
        """
        auto = class_of(self.task.model_class)
        with explained(
            f"The weights of {self.where} cannot be read ({{reason}}): save them again."
        ):
            model, found = auto.from_pretrained(
                self.where, dtype=torch.float32, output_loading_info=True
            )
        if missing := sorted(found["missing_keys"]):
            raise WoodburyError(
                f"{self.where} lacks {missing[0]!r}, which {self.task.name} needs: fine-tune the "
                "model for it first."
            )
        if self.task.needs_padding_token and model.config.pad_token_id is None:
            model.config.pad_token_id = self.task.padding_token(self.processor)
        return model.eval()

    def save(self, model: Any, folder: str | Path) -> None:
        """Write a model as `save_pretrained` does, with its tokenizer or image processor.

        Args:
            model: The model, pruned or not.
            folder: Where.
        """
        with quiet():
            model.save_pretrained(folder)
            self.processor.save_pretrained(folder)

    def read(
        self, data: str, asked: tables.Asked, *, length: int | None = None, seed: int = 0
    ) -> SplitSamples:
        """The samples of a table, seen to fit the model.

        Args:
            data: A file, a folder, or a name on the hub.
            asked: The columns that the user named.
            length: Tokens of a sample at most.
            seed: Of what is drawn.

        Returns:
            A training split, and a test split where the data has one with labels.

        Raises:
            WoodburyError: If there is no such data, or it does not fit.
        """
        found = tables.read(data, documents=self.task.documents)
        task_class = class_of(_classes(self.task, self.config)[0])
        arguments = frozenset(inspect.signature(task_class.forward).parameters)
        reader = Reader(self.config, self.processor, arguments, length, seed)
        columns = self.task.columns(found.train, asked)
        with quiet():
            train = self.task.samples(found.train, columns, reader)
            test = None
            if found.test is not None:
                own = self.task.columns(found.test, asked)
                test = self.task.samples(found.test, own, reader)
        if test is not None and train.labelled and not test.labelled:
            test = None
        note = None
        if columns.label is not None:
            note = order_of_classes(found.train, columns.label, self.config.label2id)
        return SplitSamples(train, test, () if note is None else (note,))

    @property
    def how_to_load(self) -> str:
        """The call of Python that reads such a folder."""
        return f"transformers.{self.task.model_class}.from_pretrained"


def _check_place(where: str) -> None:
    """Raise for a path that is no folder of a model."""
    if not is_local(where):
        return
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise WoodburyError(f"There is no folder {where}: {_local_hint(where)}")
    if not (folder / CONFIG).is_file():
        raise WoodburyError(f"{where} has no {CONFIG}: give a folder that save_pretrained wrote.")


def _local_hint(where: str) -> str:
    """Which of the folders beside was meant."""
    folders = [name for name in neighbours(where) if Path(name).expanduser().is_dir()]
    return nearest(where, folders) if folders else "give a folder that save_pretrained wrote."


def _classes(task: Task, config: Any) -> tuple[str, ...]:
    """The names of the classes that do a task for a kind of model."""
    from transformers.models.auto import modeling_auto

    names = vars(modeling_auto)[task.mapping].get(config.model_type, ())
    return (names,) if isinstance(names, str) else tuple(names)


def _tasks_of(config: Any) -> list[Task]:
    """The tasks that the saved model was made for."""
    made = set(config.architectures or ())
    return [task for task in TASKS if made & set(_classes(task, config))]


def _made_for(where: str, config: Any) -> Task:
    found = _tasks_of(config)
    if len(found) != 1:
        made = ", ".join(config.architectures or ["model without a head"])
        raise WoodburyError(
            f"{where} holds a {made}, which does not tell the task: give {_listed(TASKS)}."
        )
    return found[0]


def _check_task(where: str, config: Any, task: Task) -> None:
    """Raise unless the saved model does the task."""
    possible = [each for each in TASKS if _classes(each, config)]
    if task not in possible:
        raise WoodburyError(
            f"{where} is a {config.model_type} model, which does no {task.name}: "
            f"give {_listed(possible) or 'another model'}."
        )
    found = _tasks_of(config)
    if found and task not in found:
        made = config.architectures[0]
        raise WoodburyError(
            f"{where} holds a {made}, which was not trained for {task.name}: give {_listed(found)}."
        )
    if kind := task.other_kind(config):
        raise WoodburyError(
            f"{where} is a model of {kind}, and {task.name} is for one class of several: give "
            "FILE.py:FUNCTION in its place."
        )


def _listed(tasks: Iterable[Task]) -> str:
    return " or ".join(f"the task {task.name}" for task in tasks)
