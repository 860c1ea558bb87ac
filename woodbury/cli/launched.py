"""A command that torchrun has started in several processes: one of them speaks and writes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from woodbury.cli import console
from woodbury.errors import RankError, WoodburyError
from woodbury.io.fingerprint import facts_of
from woodbury.linalg.ranks import Ranks

SHARED = ("prune", "compare", "train")
"""The commands whose work ranks share."""
GROUP_MINUTES = 60
"""How long a rank may compute before another gives up waiting for its numbers."""

SECONDS_FOR_FIRST = 2.0
"""For rank 0 to say what it has heard: torchrun ends all as soon as one of them has ended."""


@contextmanager
def as_launched(words: Sequence[str]) -> Iterator[None]:
    """A context in which the processes that torchrun has started are the ranks of one command.

    Rank 0 prints and writes; the others say nothing but what they fail by. A process that was
    started alone is left as it is.

    Args:
        words: Of the command line, after `woodbury`.

    Raises:
        WoodburyError: If the command runs in one process only, or the processes do not meet.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    is_launched = size > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    command = next((word for word in words if not word.startswith("-")), "")
    if not is_launched or not command or "--help" in words:
        yield
        return
    # What fails on another rank is said by rank 0, which hears of it.
    console.out.quiet = console.err.quiet = int(os.environ["RANK"]) > 0
    if command not in SHARED:
        raise WoodburyError(
            f"woodbury {command} runs in one process: start it without torchrun. "
            f"{', '.join(SHARED)} share their work."
        )
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(minutes=GROUP_MINUTES)
    )
    begun: Ranks | None = None
    try:
        facts = {"the command": " ".join(words)}
        with Ranks.of(None).started(f"woodbury {command}", facts) as ranks:
            try:
                yield
            except BaseException:
                begun = ranks
                raise
    except RankError:
        if int(os.environ["RANK"]):
            time.sleep(SECONDS_FOR_FIRST)
        raise
    except BaseException:
        # Rank 0 computes and has not heard: torchrun ends it as soon as this process ends.
        if begun is not None and begun.shared is not None and not begun.shared.failure_is_known():
            console.err.quiet = False
        raise
    finally:
        dist.destroy_process_group()


def agree_on(model: nn.Module, samples: int) -> None:
    """Raise on every rank unless all have read the same network and as much data.

    Ranks that differ would send each other tensors of different sizes, which ends a process from
    within gloo and without a sentence.

    Args:
        model: The network as it was read.
        samples: How many training samples there are.

    Raises:
        RankError: Naming what differs, and on which ranks.
    """
    ranks = Ranks.current()
    if ranks.size > 1:
        ranks.agree("reading model and data", facts_of(model, samples))


def launcher() -> list[str]:
    """The words before `woodbury` that start as many processes on a machine; none for one."""
    if Ranks.current().size == 1:
        return []
    return ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], "--no-python"]
