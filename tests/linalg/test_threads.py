"""Work that threads share: done once each, under the caller's settings, its errors raised."""

from __future__ import annotations

import threading

import pytest
import torch

from woodbury.limits import Limits
from woodbury.linalg.threads import share


@pytest.mark.parametrize("threads", [1, 2, 3, 100])
def test_each_item_is_done_once(threads: int) -> None:
    done: list[int] = []
    share(done.append, range(50), threads)
    assert sorted(done) == list(range(50))


def test_nothing_to_do_is_no_error() -> None:
    share(lambda _: pytest.fail("called"), [], 2)


def test_the_settings_of_the_caller_hold_in_all_threads() -> None:
    seen: list[tuple[bool, int | None, int]] = []
    together = threading.Barrier(2, timeout=10)

    def look(_: int) -> None:
        together.wait()  # so that neither of two threads takes both
        seen.append(
            (
                torch.is_grad_enabled(),
                Limits.current().memory,
                threading.current_thread().ident or 0,
            )
        )

    with torch.no_grad(), Limits(memory=77):
        share(look, range(2), 2)
    assert [each[:2] for each in seen] == [(False, 77)] * 2
    assert len({each[2] for each in seen}) == 2


@pytest.mark.parametrize("threads", [2, 5])
def test_torch_has_one_thread_there_and_as_many_as_before_here(threads: int) -> None:
    before = torch.get_num_threads()
    inside: list[int] = []
    try:
        torch.set_num_threads(threads)
        share(lambda _: inside.append(torch.get_num_threads()), range(4), threads)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert inside == [1] * 4


def test_inference_tensors_can_be_written_to() -> None:
    with torch.inference_mode():
        result = torch.zeros(4)

        def write(index: int) -> None:
            result[index] = index

        share(write, range(4), 2)
        assert result.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_is_raised_and_ends_the_rest(threads: int) -> None:
    done: list[int] = []

    def fail(index: int) -> None:
        if index == 3:
            raise ZeroDivisionError
        done.append(index)

    with pytest.raises(ZeroDivisionError):
        share(fail, range(1000), threads)
    if threads == 1:
        assert done == [0, 1, 2]
