"""What the same weights take in one form and another, plain and compressed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from woodbury.io.sparse_files import packed

LEVEL = 1
"""Of zlib: higher ones save a few per cent of weights, and take several times as long."""
CHUNK = 2**22
"""Bytes that are compressed at once."""


@dataclass(frozen=True)
class FileSize:
    """The bytes of weights in one form.

    Attributes:
        form: What they are written as.
        plain: Bytes.
        compressed: Bytes after zlib, as in a zip or over the network.

    Example:
        >>> size = FileSize.of("zeros", [bytes(1000)])
        >>> size.plain, size.compressed < 50
        (1000, True)
    """

    form: str
    plain: int
    compressed: int

    @classmethod
    def of(cls, form: str, content: Iterable[bytes | memoryview]) -> FileSize:
        """The size of what lies in several pieces, one after the other."""
        compressor = zlib.compressobj(LEVEL)
        plain = compressed = 0
        for piece in content:
            plain += len(piece)
            compressed += len(compressor.compress(piece))
        return cls(form, plain, compressed + len(compressor.flush()))

    @classmethod
    def of_file(cls, form: str, path: Path) -> FileSize:
        """The size of a file."""
        with path.open("rb") as file:
            return cls.of(form, iter(lambda: file.read(CHUNK), b""))


def dense_and_sparse_size(state_dict: Mapping[str, Tensor]) -> tuple[FileSize, FileSize]:
    """The sizes of weights as they are, and as `save_sparse` stores them.

    Args:
        state_dict: Name -> tensor. Tied tensors count once.

    Returns:
        Both, each without the header of a file.
    """
    dense, sparse = packed(state_dict, names=()).tensors, packed(state_dict).tensors
    return (
        FileSize.of("dense tensors", _pieces(dense.values())),
        FileSize.of("sparse tensors", _pieces(sparse.values())),
    )


def _pieces(tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    """The bytes of contiguous tensors, some at a time."""
    for tensor in tensors:
        for part in tensor.view(-1).view(torch.uint8).split(CHUNK):
            yield part.numpy().data
