"""What happens when the memory runs out all the same: one sentence, not an allocator's error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from woodbury.errors import WoodburyError
from woodbury.memory.budget import bytes_in_words

ALLOCATOR_WORDS = ("allocate memory", "out of memory", "not enough memory", "bad_alloc")
"""What the messages of torch's allocators have in common."""


@contextmanager
def if_memory_runs_out(advice: str) -> Iterator[None]:
    """A context in which the errors of all allocators become one sentence.

    Args:
        advice: What to do, such as "give a smaller window".

    Raises:
        WoodburyError: In place of MemoryError and of torch's errors for memory, CUDA's too.

    Example:
        >>> with if_memory_runs_out("give fewer samples"):
        ...     raise MemoryError
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: The memory ran out: give fewer samples.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, WoodburyError) or not _is_of_an_allocator(error):
            raise
        asked = re.search(r"allocate (\d+) bytes", str(error))
        size = f" where {bytes_in_words(int(asked[1]))} more were needed" if asked else ""
        raise WoodburyError(f"The memory ran out{size}: {advice}.") from error


def _is_of_an_allocator(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ALLOCATOR_WORDS)
