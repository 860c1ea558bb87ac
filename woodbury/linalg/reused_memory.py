"""ReusedMemory: large tensors one after the other in the same memory."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor


class ReusedMemory:
    """Memory for tensors on the CPU that come and go, as gradient rows do.

    The system gives a new tensor of a hundred megabytes its pages one by one, as they are first
    written, and that takes longer than to copy the tensor. Here a tensor takes the memory of an
    earlier one, as soon as no tensor and no view uses that any more.

    Example:
        >>> memory = ReusedMemory()
        >>> first = memory.empty(4, torch.float32)
        >>> place = first.data_ptr()
        >>> memory.empty(4, torch.float32).data_ptr() == place
        False
        >>> view = first[1:]
        >>> del first
        >>> memory.empty(4, torch.float32).data_ptr() == place
        False
        >>> del view
        >>> memory.empty(4, torch.float32).data_ptr() == place
        True
    """

    def __init__(self) -> None:
        self._unused: dict[int, list[np.ndarray]] = {}

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        """A tensor whose elements are anything.

        Args:
            count: Its elements.
            dtype: Theirs.

        Returns:
            (count,), on the CPU.
        """
        size = count * dtype.itemsize
        unused = self._unused.setdefault(size, [])
        # NumPy's own large arrays ask for huge pages, which the system may have to make first.
        memory = unused.pop() if unused else torch.empty(size, dtype=torch.uint8).numpy()
        lent = memory[:]  # lives as long as a tensor of this memory
        weakref.finalize(lent, unused.append, memory).atexit = False
        return torch.from_numpy(lent).view(dtype)
