"""How many bytes of large tensors are alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """The peak of the bytes in storages of at least `least` bytes that operations returned."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.peak = 0
        self._tensors: dict[int, int] = {}  # storage -> tensors on it
        self._bytes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() >= self.least:
                self._enter(leaf)
        return result

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        self._bytes[key] = storage.nbytes()
        self._tensors[key] = self._tensors.get(key, 0) + 1
        self.peak = max(self.peak, sum(self._bytes.values()))
        weakref.finalize(tensor, self._leave, key)

    def _leave(self, key: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            del self._tensors[key], self._bytes[key]
