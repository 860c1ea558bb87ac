"""The command as a process: the entry point, signals, progress on a terminal."""

from __future__ import annotations

import importlib
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from woodbury import monitor
from woodbury.cli import console, main

NET = Path(__file__).with_name("net.py")
ROOT = str(Path(importlib.import_module("woodbury").__file__ or "").parents[1])
ENVIRONMENT = {"PYTHONPATH": ROOT, "PATH": "/usr/bin:/bin"}

HALF_MADE = """
import time

class File:
    def __init__(self):
        print("here", flush=True)
        time.sleep(60)
        self.closed = False

    def __del__(self):
        self.closed  # as a ZipFile whose making a signal ends

def net():
    File()
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_process_cleans_up(here: Path, sent: signal.Signals) -> None:
    if signal.getsignal(sent) is signal.SIG_IGN:
        pytest.skip("these tests themselves run under nohup")
    Path("slow.py").write_text(HALF_MADE)
    words = ["prune", "slow.py:net", "net.py:both", "--sparsity", "0.5", "--out", "out"]
    command = [sys.executable, "-m", "woodbury.cli", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=ENVIRONMENT) as process:
        assert process.stdout and process.stdout.readline() == b"here\n"
        assert any(".partial" in entry.name for entry in here.iterdir())
        process.send_signal(sent)
        assert process.wait(20) == 128 + sent
        assert process.stderr and process.stderr.read() == b""
    assert not any(".partial" in entry.name for entry in here.iterdir())
    assert not Path("out").exists()


def test_main_is_the_entry_point(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    all_three = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {sent: signal.getsignal(sent) for sent in all_three}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(sys, "argv", ["woodbury", "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "nohup asked for it"
    for sent, handler in before.items():
        signal.signal(sent, handler)
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("Usage: woodbury")


def test_ctrl_c_leaves_no_progress_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(console, "err", terminal)
    with pytest.raises(KeyboardInterrupt), console.progress_bars():
        for what in ("gradients", "dampings"):
            for done in (1, 2, 1):  # the same work again
                monitor.report(what, done, 10)
        raise KeyboardInterrupt
    written = screen.getvalue()
    assert "gradients" in written and "dampings" in written
    last_text = max(written.rindex("gradients"), written.rindex("dampings"))
    assert written[last_text:].count("\x1b[2K") >= 2  # both lines are erased after that


def test_progress_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bars():
        monitor.report("gradients", 1, 10)
    assert capsys.readouterr() == ("", "")


def test_bars_name_the_part_and_the_time_left_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, width=80))
    with console.progress_bars(), monitor.whole("stage", "stages", 7) as stages:
        monitor.report("gradients", 1, 10)
        stages.advance()
        monitor.report("gradients", 1, 10)
        monitor.report("refit", 1, 10)
    written = screen.getvalue()
    assert "stage 1 of 7" in written and "stage 2 of 7" in written and "0:00 left" in written
    last = written[written.rindex("stage 2 of 7") :]
    assert "refit" in last and "gradients" not in last, "what is over is not shown"


def test_a_pipe_gets_ever_fewer_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("woodbury.cli.console.time.monotonic", lambda: now[0])
    with console.progress_bars(), monitor.whole("stage", "stages", 60) as stages:
        for _ in range(60):
            now[0] += 1
            stages.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "stage 3 of 60, 0:58 left"
    assert [line.split()[1] for line in lines] == ["3", "5", "9", "17", "33"]
