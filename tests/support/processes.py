"""Functions run in several processes of one gloo group."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 60
PRELOADED = ["woodbury", "torch.distributed.fsdp", "torch.distributed.tensor"]
"""Imported once, by the server of the processes, and no more by each of them."""


def on_ranks(
    count: int,
    folder: Path,
    function: Callable[..., Any],
    *arguments: Any,
    killed: tuple[int, ...] = (),
) -> list[Any]:
    """What a function gives on each rank; an exception is given in its place.

    The processes meet by a file, so that no port is taken. They leave the group only when all have
    written what they found: one that leaves while another is still in its last collective closes
    the connections that this one waits for. They look at files for it, and not at a barrier, which
    is of no use after a rank has failed.

    Args:
        count: How many processes.
        folder: An empty one, for the file and the results.
        function: Of a module, called as function(rank, *arguments).
        arguments: Picklable.
        killed: Ranks that end without a result; no other may.

    Returns:
        A result or an exception for each rank; None for one that was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = count, str(folder), function, arguments, killed
    started = mp.start_processes(  # type: ignore[attr-defined]
        _work, given, nprocs=count, join=False, start_method=_start_method()
    )
    assert started is not None  # as it is not joined
    if killed:
        for process in started.processes:
            process.join()  # started.join() would end all of them with the first
    else:
        while not started.join():
            pass
    return [
        torch.load(file, weights_only=False) if file.exists() or rank not in killed else None
        for rank, file in enumerate(folder / f"{rank}.pt" for rank in range(count))
    ]


def _start_method() -> str:
    """Forks of a server that is started here, where the system has it; else new processes."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload(PRELOADED)
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with patch.dict(os.environ, threads):  # NumPy starts its threads when it is imported
        forkserver.ensure_running()
    return "forkserver"


def _work(
    rank: int,
    count: int,
    folder: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    killed: tuple[int, ...],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=SECONDS),
    )
    try:
        found = function(rank, *arguments)
    except Exception as error:
        traceback.print_exc()
        found = error
    place = Path(folder)
    torch.save(found, place / f"{rank}.partial")
    (place / f"{rank}.partial").rename(place / f"{rank}.pt")
    until = time.monotonic() + SECONDS
    expected = [place / f"{each}.pt" for each in range(count) if each not in killed]
    while not all(file.exists() for file in expected):
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    dist.destroy_process_group()
