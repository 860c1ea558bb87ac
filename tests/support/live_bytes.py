"""The bytes of all tensors that are alive at once, counted at each operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside its `with`, the storages that operations make, and the most bytes of them at once.

    What an operation needs for itself is not seen, nor what was there before.
    """

    def __init__(self, at_least: int = 1) -> None:
        super().__init__()
        self.at_least = at_least
        self.peak = 0
        self.most = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what is alive after it."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                storage = leaf.untyped_storage()
                if storage.nbytes() >= self.at_least:
                    reference = StorageWeakRef(storage)
                    self._live[reference.cdata] = reference, storage.nbytes()
        self._live = {k: v for k, v in self._live.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        self.most = max(self.most, len(self._live))
        return result
