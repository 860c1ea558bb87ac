"""Threads that share independent pieces of work, each of which computes alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 8
"""Threads that share one piece of work."""


def threads_on(device: torch.device) -> int:
    """Threads that may share work on a device: torch's own number on a CPU, else one.

    Args:
        device: Where the work is done.

    Returns:
        At least 1.

    Example:
        >>> threads_on(torch.device("cpu")) == torch.get_num_threads()
        True
    """
    return torch.get_num_threads() if device.type == "cpu" else 1


def share(work: Callable[[Item], object], items: Iterable[Item], threads: int) -> None:
    """Do work for all items, each in the thread that is free first.

    In these threads torch has no threads of its own: many small products and factors take half of
    the time that they take where each is divided among threads.

    Args:
        work: item -> anything; it writes what it computes. In another order than the items'.
        items: Pieces of work that do not depend on each other.
        threads: How many share them, at most `MAX_THREADS`; with one it is done here.

    Example:
        >>> done = torch.zeros(3)
        >>> def square(index: int) -> None:
        ...     done[index] = index**2
        >>> share(square, range(3), threads=2)
        >>> done
        tensor([0., 1., 4.])
    """
    items = list(items)
    threads = min(threads, MAX_THREADS, len(items))
    if threads <= 1:
        for item in items:
            work(item)
        return
    waiting = iter(items)
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def until_none_waits() -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            for item in waiting:  # one iterator for all threads
                work(item)

    pool = _pool(threads, os.getpid())
    started = [pool.submit(copy_context().run, until_none_waits) for _ in range(threads)]
    for future in started:
        future.result()


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """Begin work beside what the calling thread goes on with, one piece after the other.

    Torch has one thread there, so that it does not compete with those of the calling one.

    Args:
        work: () -> anything.

    Returns:
        Its result, to be waited for.

    Example:
        >>> in_background(lambda: 2 + 3).result()
        5
    """
    return _pool(1, os.getpid()).submit(copy_context().run, work)


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Idle threads, kept, as new ones cost a tenth of a product.

    Keyed by the process, as a fork inherits the pool but not its threads.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=f"woodbury-{process}")
    all_started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)  # of this thread
        torch.get_num_threads()  # else its first product would ask for the number of others
        all_started.wait()

    before = torch.get_num_threads()
    for _ in range(threads):
        pool.submit(start)
    all_started.wait()
    torch.set_num_threads(before)  # of the calling one, and of threads that start later
    return pool
