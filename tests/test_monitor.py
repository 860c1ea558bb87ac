"""Progress: who is told of long work, and the line that a terminal shows."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from woodbury import monitor
from woodbury.monitor import TerminalLine, outermost, progress, report, whole


class Terminal(io.StringIO):
    """A stderr that passes for a terminal, or does not."""

    def __init__(self, is_terminal: bool = True) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


class Clock:
    """Time that moves on when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    result = Clock()
    monkeypatch.setattr("woodbury.monitor.time.monotonic", result)
    return result


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    result = Terminal()
    # Not sys.stderr itself, which pytest sets again after the fixtures.
    monkeypatch.setattr("woodbury.monitor.sys", SimpleNamespace(stderr=result))
    return result


def test_the_line_appears_after_two_seconds_with_the_time_left(
    clock: Clock, terminal: Terminal
) -> None:
    line = TerminalLine()
    line("gradients", 10, 1000)
    clock.now += 1.9
    line("gradients", 100, 1000)
    assert terminal.getvalue() == ""
    clock.now += 0.1
    line("gradients", 110, 1000)  # 100 in 2 seconds: 890 in 17.8
    assert terminal.getvalue() == "\r\x1b[Kgradients: 110 of 1000, 0:18 left"


def test_minutes_are_shown_as_such(clock: Clock, terminal: Terminal) -> None:
    line = TerminalLine()
    line("gradients", 0, 1000)
    clock.now += 10
    line("gradients", 100, 1000)
    assert terminal.getvalue().endswith(", 1:30 left")


def test_the_line_is_cleared_at_the_end(clock: Clock, terminal: Terminal) -> None:
    line = TerminalLine()
    for done in (1, 2, 3):
        line("gradients", done, 3)
        clock.now += 5
    assert terminal.getvalue().endswith(" left\r\x1b[K")
    line("gradients", 3, 3)
    assert terminal.getvalue().count("\r\x1b[K") == 2, "nothing is left to clear"


def test_short_work_shows_nothing(clock: Clock, terminal: Terminal) -> None:
    line = TerminalLine()
    for done in range(1, 11):
        line("gradients", done, 10)
        clock.now += 0.1
    assert terminal.getvalue() == ""


def test_the_line_is_not_written_more_often_than_it_can_be_read(
    clock: Clock, terminal: Terminal
) -> None:
    line = TerminalLine()
    line("gradients", 0, 100)
    clock.now += 3
    for done in range(1, 6):  # within 0.2 seconds but for the last
        line("gradients", done, 100)
        clock.now += 0.06
    assert terminal.getvalue().count("gradients") == 2


def test_nothing_is_written_where_stderr_is_no_terminal(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Terminal(is_terminal=False)
    monkeypatch.setattr("woodbury.monitor.sys", SimpleNamespace(stderr=file))
    line = TerminalLine()
    line("gradients", 1, 10)
    clock.now += 10
    line("gradients", 2, 10)
    line("gradients", 10, 10)
    assert file.getvalue() == ""


def test_work_that_begins_again_after_an_error_is_timed_from_there(
    clock: Clock, terminal: Terminal
) -> None:
    line = TerminalLine()
    line("gradients", 5, 10)
    clock.now += 100  # it failed
    line("gradients", 1, 10)
    assert terminal.getvalue() == ""


def test_reports_go_to_the_line_unless_a_callback_is_given(
    clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_terminal_line", TerminalLine())

    def work() -> None:
        report("work", 1, 3)
        clock.now += 5
        report("work", 2, 3)

    seen: list[tuple[str, int, int]] = []
    with progress(lambda *step: seen.append(step)):
        work()
        with progress(None):  # silence, and then the outer callback again
            work()
        report("work", 3, 3)
    assert seen == [("work", 1, 3), ("work", 2, 3), ("work", 3, 3)]
    assert terminal.getvalue() == ""
    work()
    assert terminal.getvalue() == "\r\x1b[Kwork: 2 of 3, 0:05 left"


def test_the_time_left_is_that_of_all_parts(clock: Clock) -> None:
    with progress(None), whole("stage", "stages", 5) as stages:
        assert str(stages) == "stage 1 of 5"
        clock.now += 4
        report("gradients", 0, 100)
        clock.now += 2
        report("gradients", 25, 100)  # this stage takes 6 + 6 seconds at least, and 4 follow it
        assert str(stages) == "stage 1 of 5, at least 0:54 left"
        clock.now += 14
        stages.advance()  # 20 seconds
        assert str(stages) == "stage 2 of 5, 1:20 left"
        clock.now += 5
        report("gradients", 25, 100)
        assert str(stages) == "stage 2 of 5, 1:15 left"
        clock.now += 35  # twice as long as the first
        assert str(stages) == "stage 2 of 5, at least 1:00 left"
        report("gradients", 50, 100)  # 25 of them in 35 seconds: 50 more take 70
        assert str(stages) == "stage 2 of 5, at least 2:10 left"
        stages.advance()
        assert str(stages) == "stage 3 of 5, 1:30 left"
        for _ in range(3):
            clock.now += 30
            stages.advance()
        assert str(stages.time_left()) == "0:00 left"


def test_what_was_predicted_counts_until_the_first_part_is_done(clock: Clock) -> None:
    with progress(None), whole("stage", "stages", 2, expected=30.0) as stages:
        assert str(stages) == "stage 1 of 2, 0:30 left"
        clock.now += 10
        report("gradients", 1, 100)
        assert str(stages) == "stage 1 of 2, 0:20 left"
        clock.now += 30  # longer than predicted
        report("gradients", 51, 100)
        assert str(stages) == "stage 1 of 2, at least 1:39 left"
        stages.advance()
        assert str(stages) == "stage 2 of 2, 0:40 left"


def test_the_line_tells_of_the_whole_and_of_the_work_inside_it(
    clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_terminal_line", TerminalLine())
    with whole("stage", "stages", 3) as stages:
        report("gradients", 1, 4)
        clock.now += 10
        report("gradients", 2, 4)
        report("gradients", 4, 4)
        stages.advance()
        clock.now += 1
        report("refit", 1, 9)
        with whole("damping", "dampings", 2) as inner:
            clock.now += 1
            inner.advance()
        written = terminal.getvalue().split("\r\x1b[K")[1:]
    assert written == [
        "stage 1 of 3, at least 1:20 left: gradients 2 of 4",
        "stage 2 of 3, 0:19 left: refit 1 of 9",
        "stage 2 of 3, 0:18 left: dampings 1 of 2",
    ]
    assert terminal.getvalue().endswith("\r\x1b[K") and outermost() is None


def test_a_whole_that_fails_is_over(clock: Clock, terminal: Terminal) -> None:
    with pytest.raises(ZeroDivisionError), whole("stage", "stages", 3):
        raise ZeroDivisionError
    assert outermost() is None
