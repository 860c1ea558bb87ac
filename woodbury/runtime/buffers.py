"""Room for the outputs of layers, used again once nobody has it.

The system gives large tensors fresh pages each time, and clearing them takes longer than a sparse
product does.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

LEAST = 2**15
"""Floats of the smallest tensors that are kept: allocators keep smaller ones themselves."""
MOST = 2**26
"""Floats that a thread keeps in all, 256 MB, of the sizes that were asked for last."""
ALIGNMENT = 16
"""Floats of a cache line."""


def empty(*shape: int) -> Tensor:
    """A float32 tensor of any content, in room that a tensor that is gone may have had.

    Args:
        *shape: Its sizes.

    Returns:
        The tensor. Its room is nobody else's as long as it, or any view of it, is there.

    Example:
        >>> here = empty(2, 2**15).data_ptr()
        >>> here == empty(2, 2**15).data_ptr()  # the first tensor is gone
        True
    """
    floats = math.prod(shape)
    if not LEAST <= floats <= MOST or not _COUNTS_REFERENCES:
        return torch.empty(shape)
    return torch.from_numpy(_room.of(floats)).view(shape)  # it holds the array as long as it lives


def _references(arrays: list[np.ndarray], index: int) -> int:
    return sys.getrefcount(arrays[index])


_COUNTS_REFERENCES = getattr(sys, "_is_gil_enabled", lambda: True)()
_FREE = _references([np.empty(0)], 0)
"""References to an array that only a list holds."""


class _Room(threading.local):
    """Arrays that a thread has made: floats -> those of this size, the last used size last."""

    def __init__(self) -> None:
        self.arrays: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        self.floats = 0

    def of(self, floats: int) -> np.ndarray:
        """An array that no tensor holds."""
        arrays = self.arrays.setdefault(floats, [])
        self.arrays.move_to_end(floats)
        for index in range(len(arrays)):
            if _references(arrays, index) == _FREE:
                return arrays[index]
        while self.floats + floats > MOST and len(self.arrays) > 1:
            size, gone = self.arrays.popitem(last=False)
            self.floats -= size * len(gone)
        array = _aligned(floats)
        if self.floats + floats <= MOST:
            arrays.append(array)
            self.floats += floats
        return array


def _aligned(floats: int) -> np.ndarray:
    """An array that begins with a cache line."""
    whole = np.empty(floats + ALIGNMENT, np.float32)
    begin = -(whole.ctypes.data // 4) % ALIGNMENT
    return whole[begin : begin + floats]


_room = _Room()
