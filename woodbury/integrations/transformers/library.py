"""transformers and datasets: imported when they are needed, and quiet."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from woodbury.errors import MissingDependency, WoodburyError, reason

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""What a name on the hub looks like: `name` or `owner/name`."""


def transformers() -> Any:
    """The package transformers.

    Raises:
        MissingDependency: If it is not installed.
    """
    try:
        import transformers as library
    except ImportError as error:
        raise MissingDependency(
            "Models by name need transformers: pip install 'woodbury[models]'."
        ) from error
    return library


def class_of(name: str) -> Any:
    """A class of transformers, whose module is imported now.

    Args:
        name: Such as "BertForSequenceClassification".

    Raises:
        MissingDependency: If something that it needs cannot be imported.
    """
    try:
        return getattr(transformers(), name)
    except WoodburyError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise MissingDependency(
            f"transformers cannot import {name} ({reason(cause)}): install releases of its "
            "packages that go with your torch."
        ) from error


def datasets() -> Any:
    """The package datasets.

    Raises:
        MissingDependency: If it is not installed.
    """
    try:
        import datasets as library
    except ImportError as error:
        raise MissingDependency(
            "Data of a model of transformers needs datasets: pip install 'woodbury[models]'."
        ) from error
    return library


@contextmanager
def quiet() -> Iterator[None]:
    """A context in which both libraries, and their hub, say nothing and show no bars."""
    models, tables = transformers(), datasets()
    hub = logging.getLogger("huggingface_hub")
    bars = models.utils.logging.is_progress_bar_enabled()
    table_bars = tables.utils.logging.is_progress_bar_enabled()
    levels = (
        models.utils.logging.get_verbosity(),
        tables.utils.logging.get_verbosity(),
        hub.level,
    )
    models.utils.logging.disable_progress_bar()
    tables.utils.logging.disable_progress_bar()
    models.utils.logging.set_verbosity(logging.CRITICAL)
    tables.utils.logging.set_verbosity(logging.CRITICAL)
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        models.utils.logging.set_verbosity(levels[0])
        tables.utils.logging.set_verbosity(levels[1])
        hub.setLevel(levels[2])
        if bars:
            models.utils.logging.enable_progress_bar()
        if table_bars:
            tables.utils.logging.enable_progress_bar()


@contextmanager
def explained(sentence: str) -> Iterator[None]:
    """A quiet context in which whatever a library raises becomes one sentence.

    Args:
        sentence: What was wrong and what to do about it, with `{reason}` where the reason goes.

    Raises:
        WoodburyError: In place of any error that is not one already.
    """
    try:
        with quiet():
            yield
    except WoodburyError:
        raise
    except Exception as error:
        raise WoodburyError(sentence.replace("{reason}", _first_words(error))) from error


def _first_words(error: Exception) -> str:
    """Why something failed; datasets says it in the cause, or in the second line."""
    kind = type(error).__name__
    if kind == "DatasetGenerationCastError":
        return "its files have not the same columns"
    if kind == "DatasetGenerationError" and error.__cause__ is not None:
        return reason(error.__cause__)
    return reason(error)


def is_local(where: str) -> bool:
    """Whether a name can only be a path: it or its folder is there, or it is no name of the hub.

    Args:
        where: What was written.
    """
    path = Path(where).expanduser()
    in_folder = len(path.parts) > 1 and path.parent.is_dir()
    return path.exists() or in_folder or not HUB_NAME.fullmatch(where)


def neighbours(where: str) -> list[str]:
    """The paths beside one that is not there."""
    path = Path(where).expanduser()
    try:
        names = sorted(each.name for each in path.parent.iterdir() if each.name[0] != ".")
    except OSError:
        return []
    lead = where[: len(where) - len(path.name)] if where.endswith(path.name) else ""
    return [lead + name for name in names]
