"""The random numbers that the user's code draws: kept, seeded, and saved."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch


def random_state() -> dict[str, Any]:
    """The state of all generators that training code draws from, without those of accelerators.

    Returns:
        Numbers and tensors: torch.load reads it with weights_only=True.
    """
    # The user's code draws from NumPy's one global generator, if from any of NumPy's.
    name, keys, *rest = numpy.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [name, list(map(int, keys)), *rest],
        "torch": torch.get_rng_state(),
        "accelerator": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on drawing where `random_state` was taken.

    Args:
        state: What it gave.
    """
    version, numbers, spare = state["python"]
    random.setstate((version, tuple(numbers), spare))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys, *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["accelerator"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["accelerator"])


@contextmanager
def random_kept() -> Iterator[None]:
    """A context after which torch, NumPy and Python draw what they would have drawn without it.

    A loader that shuffles draws from them, and so may a dataset or a model.

    Example:
        >>> random.seed(0)
        >>> with random_kept():
        ...     first = random.random()
        >>> random.random() == first
        True
    """
    python, torchs = random.getstate(), torch.get_rng_state()
    numpys = numpy.random.get_state(legacy=True)  # noqa: NPY002
    # Not asked whether there is one: that would make a context on it, which takes memory.
    accelerators = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numpys)  # noqa: NPY002
        torch.set_rng_state(torchs)
        if accelerators:
            torch.cuda.set_rng_state_all(accelerators)


@contextmanager
def seeded_everywhere(seed: int) -> Iterator[None]:
    """A context with seeded generators, after which all of them go on as before.

    Args:
        seed: Of torch, NumPy and Python, so that augmentation and masking repeat themselves.

    Example:
        >>> with seeded_everywhere(0):
        ...     first = random.random()
        >>> with seeded_everywhere(0):
        ...     random.random() == first
        True
    """
    before = random_state()
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before)
