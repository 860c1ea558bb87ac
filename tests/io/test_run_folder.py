"""The folder of a run: a state is there whole, results take its place, bad folders are refused."""

from __future__ import annotations

import io
import os
import random
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from woodbury.errors import WoodburyError
from woodbury.io.fingerprint import digest
from woodbury.io.run_folder import (
    PARTIAL_RESULTS,
    PARTIAL_STATE,
    STATE_FILE,
    is_finished,
    run_folder,
)


def state(step: int) -> dict[str, Any]:
    return {"settings": {"lr": 0.1}, "step": step, "weights": torch.arange(3)}


def stopped(path: Path, step: int = 1) -> None:
    with run_folder(path) as folder:
        folder.save(state(step))


def test_a_run_begins_without_a_state_and_goes_on_with_the_last(tmp_path: Path) -> None:
    with run_folder(tmp_path / "a" / "run", resume=True) as folder:
        assert folder.saved is None
        folder.save(state(1))
        folder.save(state(2))
    assert [entry.name for entry in folder.path.iterdir()] == [STATE_FILE]
    with run_folder(tmp_path / "a" / "run", resume=True) as folder:
        assert folder.saved is not None and folder.saved["step"] == 2
        assert torch.equal(folder.saved["weights"], torch.arange(3))


def test_results_take_the_place_of_the_state(tmp_path: Path) -> None:
    with run_folder(tmp_path / "run") as folder:
        folder.save(state(1))
        with folder.finishing() as results:
            (results / "report.json").write_text("{}")
    assert [entry.name for entry in folder.path.iterdir()] == ["report.json"]


def test_results_that_fail_leave_the_state(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), run_folder(tmp_path / "run") as folder:
        folder.save(state(1))
        with folder.finishing() as results:
            (results / "report.json").write_text("{}")
            raise RuntimeError
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == [STATE_FILE]


def test_the_remains_of_a_killed_run_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / PARTIAL_STATE).touch()
    (tmp_path / PARTIAL_RESULTS).mkdir()
    (tmp_path / PARTIAL_RESULTS / "half").touch()
    with run_folder(tmp_path) as folder:
        folder.save(state(1))
        with folder.finishing() as results:
            assert not list(results.iterdir())
            (results / "report.json").touch()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_folder_in_which_nothing_was_saved_is_removed(
    end: type[BaseException], tmp_path: Path
) -> None:
    with pytest.raises(end), run_folder(tmp_path / "a" / "run", on_interrupt="go on"):
        raise end
    assert not list(tmp_path.iterdir())


def test_ctrl_c_says_how_to_go_on_once_a_state_was_saved(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt, match="type this"),
        run_folder(tmp_path / "run", on_interrupt="type this") as folder,
    ):
        folder.save(state(1))
        raise KeyboardInterrupt


def refused(sentence: str, path: Path, **options: Any) -> None:
    with pytest.raises(WoodburyError, match=sentence), run_folder(path, **options):
        raise AssertionError("work began")


def test_bad_folders_are_refused_before_any_work(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    refused("holds an unfinished run: go on with resume=True, or choose", tmp_path / "run")
    refused("go on with --resume", tmp_path / "run", how_to_resume="--resume")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.json").touch()
    refused("is not empty", tmp_path / "full")
    refused("is finished: there is nothing to resume", tmp_path / "full", resume=True)
    refused("is a file: choose another name", tmp_path / "full" / "report.json")
    refused("cannot be written", tmp_path / "full" / "report.json" / "below")
    for content in (b"half", None):
        if content is None:
            torch.save({"weights": torch.ones(2)}, tmp_path / "run" / STATE_FILE)
        else:
            (tmp_path / "run" / STATE_FILE).write_bytes(content)
        refused("unfinished.pt is damaged or no state of a run", tmp_path / "run", resume=True)


def test_no_flipped_bit_of_a_state_passes(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    file = tmp_path / "run" / STATE_FILE
    whole = file.read_bytes()
    draw = random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        try:
            with run_folder(tmp_path / "run", resume=True) as folder:
                assert folder.saved is not None
                assert digest(folder.saved) == digest(state(1)), "a bit that means nothing"
        except WoodburyError as error:
            assert "is damaged or no state of a run" in str(error)


def test_one_process_at_a_time_has_a_folder(tmp_path: Path) -> None:
    with run_folder(tmp_path / "run") as folder:
        folder.save(state(1))
        refused(f"Process {os.getpid()} is writing to", tmp_path / "run", resume=True)
    with run_folder(tmp_path / "run", resume=True) as folder:
        assert folder.saved is not None
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_run_that_was_killed_at_its_end_is_finished_and_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert not is_finished(tmp_path / "run") and not is_finished(tmp_path / "nowhere")
    (tmp_path / "run" / "report.json").touch()
    (tmp_path / ".run.lock").write_text("1")
    assert is_finished(tmp_path / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    (tmp_path / "run" / STATE_FILE).touch()
    assert not is_finished(tmp_path / "run")


OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
"""The audit events before which a run is killed."""


def finish_and_be_killed(path: Path, operation: int) -> int:
    """End a run in a child that is killed before one of its file operations; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = operation

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in OPERATIONS and str(path) in str(arguments[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    with run_folder(path, resume=True) as folder, folder.finishing() as results:
        (results / "report.json").write_text("{}")
        (results / "weights").write_text("1")
        sys.addaudithook(count)
    os._exit(0)


def test_a_run_that_is_killed_before_any_of_its_last_operations_is_finished_whole(
    tmp_path: Path,
) -> None:
    kills = 0
    while True:
        path = tmp_path / str(kills) / "run"
        stopped(path)
        if finish_and_be_killed(path, kills) == 0:
            break
        kills += 1
        if not is_finished(path):
            with run_folder(path, resume=True) as folder, folder.finishing() as results:
                (results / "report.json").write_text("{}")
                (results / "weights").write_text("1")
        assert sorted(entry.name for entry in path.iterdir()) == ["report.json", "weights"]
        assert [entry.name for entry in path.parent.iterdir()] == ["run"]
    assert kills > 5


def test_a_full_disk_leaves_the_last_state_and_nothing_else(tmp_path: Path) -> None:
    with run_folder(tmp_path / "run") as folder:
        folder.save(state(1))
        bound = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, bound[1]))
        try:
            with pytest.raises(WoodburyError, match=r"cannot be written: choose a place with room"):
                folder.save(state(2) | {"more": torch.zeros(10_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, bound)
    assert [entry.name for entry in folder.path.iterdir()] == [STATE_FILE]


def test_a_state_that_cannot_be_written_leaves_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError("disk full")

    with run_folder(tmp_path / "run") as folder:
        folder.save(state(1))
        with monkeypatch.context() as patch, pytest.raises(WoodburyError, match="disk full"):
            patch.setattr(os, "fsync", fail)
            folder.save(state(2))
    with run_folder(tmp_path / "run", resume=True) as folder:
        assert folder.saved is not None and folder.saved["step"] == 1


class Interrupted(io.BytesIO):
    """A file in whose write a signal comes."""

    def write(self, data: Any) -> int:
        raise KeyboardInterrupt


def test_a_signal_in_a_write_leaves_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Any] = []
    save = torch.save

    def noted(content: Any, place: Any) -> None:
        places.append(place)
        save(content, place)

    with run_folder(tmp_path / "run") as folder:
        folder.save(state(1))
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(torch, "save", noted)
            patched.setattr(Path, "open", lambda *_: Interrupted())
            folder.save(state(2))
    # torch's writer ends the process if the file is closed before it has ended.
    assert len(places) == 1 and not isinstance(places[0], Interrupted)
    with run_folder(tmp_path / "run", resume=True) as folder:
        assert folder.saved is not None and folder.saved["step"] == 1
