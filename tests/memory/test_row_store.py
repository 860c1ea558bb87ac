"""Rows in memory or on a disk: the same numbers, and nothing left behind, however it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.limits import Limited
from support.random import normal
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.linalg.paged_rows import PagedRows, restricted, taken
from woodbury.linalg.row_products import column_chunks
from woodbury.memory import row_store, stored_rows
from woodbury.memory.row_file import RowFile

M, D = 9, 43


def on_disk(rows: Tensor, folder: Path, dtype: torch.dtype | None = None) -> RowFile:
    shape = (rows.shape[0], rows.shape[1])
    stored = stored_rows(rows.split(4), shape, dtype or rows.dtype, memory=1, scratch=folder)
    assert isinstance(stored, RowFile)
    return stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_come_back_as_they_went(dtype: torch.dtype, tmp_path: Path, limited: Limited) -> None:
    limited(page=M * 8 * dtype.itemsize, row_columns=4)
    rows = normal(M, D)
    stored, rounded = on_disk(rows, tmp_path, dtype), rows.to(dtype)
    assert stored.width == 8
    pages = [(page.columns, page.values.clone()) for page in stored.pages()]
    assert torch.equal(torch.cat([values for _, values in pages], 1), rounded)
    assert [columns.start for columns, _ in pages] == list(range(0, D, 8))
    torch.testing.assert_close(
        stored.squares.double(), rounded.double().square().sum(0), rtol=1e-6, atol=0
    )
    columns = torch.tensor([42, 0, 7, 8, 0])
    assert torch.equal(stored.take(columns), rounded[:, columns])


def test_an_index_on_an_index_reads_the_pages_it_needs(tmp_path: Path, limited: Limited) -> None:
    limited(page=M * 8 * 4, row_columns=4)
    rows = normal(M, D).float()
    keep = torch.arange(D) % 3 > 0
    keep[:16] = False  # two pages, which nobody reads
    stored = on_disk(rows, tmp_path)
    assert [page.columns.start for page in stored.pages(keep)] == [16, 24, 32, 40]
    again = torch.arange(int(keep.sum())) % 2 == 0
    index = restricted(restricted(stored, keep), again)
    assert index.base is stored
    chunks = [chunk.clone() for _, chunk in column_chunks(index, torch.float32)]
    assert torch.equal(torch.cat(chunks, 1), rows[:, keep][:, again])
    assert torch.equal(taken(index, torch.tensor([3, 1])), rows[:, keep][:, again][:, [3, 1]])


def test_memory_is_taken_while_it_has_room(tmp_path: Path) -> None:
    rows = normal(M, D)
    fitting = stored_rows(rows.split(4), (M, D), rows.dtype, memory=2 * 8 * M * D, scratch=tmp_path)
    assert isinstance(fitting, Tensor)
    assert torch.equal(fitting, rows)
    less = stored_rows(rows.split(4), (M, D), rows.dtype, memory=2 * 8 * M * D - 2)
    assert isinstance(less, PagedRows)


def test_the_file_has_no_name_and_is_closed_with_the_rows(tmp_path: Path) -> None:
    stored = on_disk(normal(M, D), tmp_path)
    file = stored.file
    assert not list(tmp_path.iterdir())
    iterator = stored.pages()
    next(iterator)
    del iterator, stored  # in the middle of a read
    assert file.closed


def _never() -> Iterator[Tensor]:
    raise AssertionError("a row was computed before its room was checked")
    yield


class _FillsUp:
    """A file on a disk that takes so many bytes."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.closed = False

    def fileno(self) -> int:
        raise OSError(errno.EINVAL, "no room can be kept")

    def seek(self, position: int) -> None: ...

    def write(self, data: memoryview) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_takes_no_file_is_named_before_any_gradient(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(row_store.tempfile, "TemporaryFile", refuse)
    with pytest.raises(WoodburyError, match=r"cannot take them.*scratch=") as error:
        stored_rows(_never(), (M, D), torch.float32, memory=1, scratch=tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(WoodburyError, match="none' does not exist: make it"):
        stored_rows(_never(), (M, D), torch.float32, memory=1, scratch=tmp_path / "none")


def test_a_full_disk_is_found_before_any_gradient(tmp_path: Path) -> None:
    with pytest.raises(WoodburyError, match=r"need 4e.* GB .* are left"):
        stored_rows(_never(), (10**6, 10**12), torch.float32, memory=1, scratch=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_half_way_says_how_far_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _FillsUp(5 * D * 4)
    monkeypatch.setattr(row_store, "_open", lambda folder, size: file)
    with pytest.raises(WoodburyError, match=rf"took 4 of {M} gradient rows: .*No space left"):
        on_disk(normal(M, D).float(), tmp_path)
    assert file.closed


def test_a_limit_on_the_size_of_files_is_a_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not there on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(WoodburyError, match=r"need 4e-05 GB .* cannot take them"):
            stored_rows(_never(), (100, 100), torch.float32, memory=1, scratch=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, WoodburyError])
def test_whatever_ends_the_gradients_closes_the_file(
    stop: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _FillsUp(10**6)
    monkeypatch.setattr(row_store, "_open", lambda folder, size: file)

    def chunks() -> Iterator[Tensor]:
        yield torch.ones(4, D)
        raise stop

    with pytest.raises(stop):
        stored_rows(chunks(), (M, D), torch.float32, memory=1, scratch=tmp_path)
    assert file.closed


def test_a_file_that_was_cut_is_a_sentence(tmp_path: Path) -> None:
    stored = on_disk(normal(M, D), tmp_path)
    stored.file.truncate(100)
    with pytest.raises(WoodburyError, match=r"cannot be read back.*shorter than what was written"):
        list(stored.pages())


def test_no_flipped_bit_of_the_rows_passes(tmp_path: Path, limited: Limited) -> None:
    limited(page=M * 8 * 4, row_columns=4)
    stored = on_disk(normal(M, D).float(), tmp_path)
    stored.file.seek(M * 8 * 4 + 3)  # in the second page
    byte = stored.file.read(1)
    stored.file.seek(-1, os.SEEK_CUR)
    stored.file.write(bytes([byte[0] ^ 1]))
    assert stored.take(torch.tensor([0])).shape == (M, 1), "the first page is whole"
    with pytest.raises(WoodburyError, match=r"cannot be read back.*other bytes than what was"):
        list(stored.pages())
