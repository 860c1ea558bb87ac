"""What happens when the memory runs out all the same: one sentence, not an allocator's error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from woodbury.errors import WoodburyError, is_out_of_memory
from woodbury.memory.budget import bytes_in_words


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
        if isinstance(error, WoodburyError) or not is_out_of_memory(error):
            raise
        asked = re.search(r"allocate (\d+) bytes", str(error))
        size = f" where {bytes_in_words(int(asked[1]))} more were needed" if asked else ""
        raise WoodburyError(f"The memory ran out{size}: {advice}.") from error
