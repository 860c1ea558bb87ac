"""Output folders and files: whole or not at all, and refused before any work."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from woodbury.errors import WoodburyError
from woodbury.io.folders import first_free, output_folder, write_atomically
from woodbury.io.locks import InUse


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    goal = tmp_path / "a" / "b"
    with output_folder(goal) as folder:
        (folder / "report.json").write_text("{}")
        assert not goal.exists() and folder.parent == goal.parent
    assert [entry.name for entry in goal.iterdir()] == ["report.json"]
    assert [entry.name for entry in goal.parent.iterdir()] == ["b"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out") as folder:
        (folder / "x").touch()
    assert (tmp_path / "out" / "x").exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_or_not_at_all_and_new_parents_are_removed_too(
    end: type[BaseException], tmp_path: Path
) -> None:
    with pytest.raises(end), output_folder(tmp_path / "a" / "b") as folder:
        (folder / "half").touch()
        raise end
    assert not list(tmp_path.iterdir())


def test_bad_folders_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    cases = {
        tmp_path / "full": "is not empty: choose a new one",
        tmp_path / "full" / "precious": "is a file: choose another name",
        tmp_path / "full" / "precious" / "below": "cannot be written",
    }
    for path, sentence in cases.items():
        with pytest.raises(WoodburyError, match=sentence), output_folder(path):
            raise AssertionError("work began")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WoodburyError, match="name a new folder inside it"), output_folder("."):
        raise AssertionError("work began")

    def refuse(**_: object) -> str:
        raise PermissionError("no")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with (
        pytest.raises(WoodburyError, match=r"cannot be written \(no\): choose a place"),
        output_folder(tmp_path / "new"),
    ):
        raise AssertionError("work began")
    assert (tmp_path / "full" / "precious").exists()


def test_a_place_that_is_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    goal = tmp_path / "out"
    with (
        pytest.raises(WoodburyError, match=r"cannot be finished .*: let nothing else write there"),
        output_folder(goal),
    ):
        goal.mkdir()
        (goal / "theirs").touch()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"] and (goal / "theirs").exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError("disk full")])
def test_a_file_is_replaced_whole_or_not_at_all(end: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_text("first")

    def succeed(partial: Path) -> None:
        partial.write_text("second")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise end

    with pytest.raises((KeyboardInterrupt, WoodburyError)):
        write_atomically(path, fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["numbers"]
    assert path.read_text() == "first"
    write_atomically(path, succeed)
    assert [entry.name for entry in tmp_path.iterdir()] == ["numbers"]
    assert path.read_text() == "second"


def test_no_two_processes_write_to_one_folder(tmp_path: Path) -> None:
    goal = tmp_path / "out"
    with output_folder(goal) as folder:
        (folder / "x").touch()
        sentence = f"Process {os.getpid()} is writing to the output folder .*: wait until"
        with pytest.raises(InUse, match=sentence), output_folder(goal):
            raise AssertionError("work began")
        with first_free(goal, output_folder) as (second, name):
            (second / "y").touch()
    assert name == tmp_path / "out-2"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "out-2"]
    with first_free(goal, output_folder) as (_, name):
        pass
    assert name == tmp_path / "out-3"


def test_the_next_run_removes_what_killed_ones_left(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (".out.abcdefgh.partial", ".out.b.abcdefgh.partial"):
        (tmp_path / name).mkdir()
    for name in (".out.lock", f".w.{ended.pid}.partial", f".w.{os.getpid()}.partial"):
        (tmp_path / name).touch()
    with output_folder(tmp_path / "out"):
        pass
    write_atomically(tmp_path / "w", lambda partial: partial.touch() or None)
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == [".out.b.abcdefgh.partial", "out", "w"], "that of another folder stays"


@pytest.mark.parametrize("path", ["loop", "x" * 300, "nul\0", "~nobody-of-that-name/out"])
def test_what_is_no_path_is_one_sentence(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(WoodburyError, match="output folder"), output_folder(path):
        raise AssertionError("work began")
    assert [entry.name for entry in tmp_path.iterdir()] == ["loop"]


def test_a_link_is_followed_and_what_is_no_plain_file_is_left_alone(tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    write_atomically(link, lambda partial: partial.write_text("new"))
    assert link.is_symlink() and target.read_text() == "new"
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path, words in ((pipe, "no plain file"), (tmp_path, "no plain file"), (loop, "a link")):
        with pytest.raises(WoodburyError, match=words):  # a device too: it would be replaced
            write_atomically(path, lambda partial: partial.write_text("new"))
    assert pipe.is_fifo() and loop.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link", "loop", "pipe"]
