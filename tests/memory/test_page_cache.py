"""Writes past the page cache leave the same bytes as any others."""

from __future__ import annotations

import errno
import os
from io import FileIO
from pathlib import Path

import pytest
import torch
from support.random import normal

from woodbury.memory import page_cache
from woodbury.memory.page_cache import BLOCK, aligned, write_at

FOLDERS = ["here", "/dev/shm"]


def opened(folder: str, tmp_path: Path) -> FileIO:
    if folder == "here":
        return FileIO(tmp_path / "file", "w+")
    if not os.path.isdir(folder):
        pytest.skip(f"there is no {folder}")
    name = f"{folder}/woodbury-{os.getpid()}"
    file = FileIO(name, "w+")
    os.unlink(name)
    return file


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("count", [BLOCK // 4, 3 * BLOCK // 4, 5])
@pytest.mark.parametrize("position", [0, 2 * BLOCK, 12])
def test_what_is_written_is_read(folder: str, count: int, position: int, tmp_path: Path) -> None:
    values = aligned(count, torch.float32).copy_(normal(count))
    with opened(folder, tmp_path) as file:
        write_at(file, position, values)
        write_at(file, position + 4 * count, torch.ones(1, dtype=torch.uint8))
        file.seek(position)
        assert file.read() == values.numpy().tobytes() + b"\1"


class Refusing(FileIO):
    """A file system that takes the flag, and refuses the writes after some."""

    past, left, refused = False, 0, 0

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        if self.past and not self.left:
            self.refused += 1
            raise OSError(errno.EINVAL, "no")
        self.left -= self.past
        return super().write(data[: BLOCK if self.past else len(data)])


@pytest.mark.parametrize("left", [0, 1])
def test_a_refusal_is_written_through_the_cache(
    left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_past(file: Refusing, past: bool) -> bool:
        file.past = past
        return past

    monkeypatch.setattr(page_cache, "_set_past_cache", set_past)
    values = aligned(BLOCK, torch.float32).copy_(normal(BLOCK))
    with Refusing(tmp_path / "file", "w+") as file:
        file.left = left
        write_at(file, 0, values)
        assert file.refused == 1 and not file.past
        file.seek(0)
        assert file.read() == values.numpy().tobytes()


def test_a_full_disk_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(FileIO):
        def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
            raise OSError(errno.ENOSPC, "No space left on device")

    with Full(tmp_path / "file", "w+") as file, pytest.raises(OSError, match="No space left"):
        write_at(file, 0, aligned(BLOCK, torch.float32).zero_())
