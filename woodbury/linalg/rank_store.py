"""What ranks write outside of any collective: that they have begun, and why they fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_process_group_store

from woodbury.errors import RankError, reason

START_SECONDS = 30.0
"""How long the ranks wait for each other where a computation begins."""

BUSY_CHECKS = 200
"""How often a collective is asked whether it is done before this process sleeps in between."""

SLEEP_SECONDS = 0.0005
"""Between two such questions afterwards."""

LINGER_SECONDS = 3.0
"""How long a rank that fails waits at most for the others to hear of it."""

LOOK_SECONDS = 0.25
"""How often a rank that waits looks for a failure of another."""


@dataclass(frozen=True)
class RankStore:
    """The group's key-value store, for the ranks of one computation.

    Attributes:
        store: That of torch.distributed, by which the group was made.
        rank: This one's number.
        size: How many there are.
        name: Of the computation.
    """

    store: Any
    rank: int
    size: int
    name: str

    @classmethod
    def of_next(cls, group: dist.ProcessGroup) -> RankStore:
        """Of the next computation of a group: each rank counts those that it has begun."""
        store = _get_process_group_store(group)
        rank = dist.get_rank(group)
        name = f"woodbury/{store.add(f'woodbury/begun/{rank}', 1)}"
        return cls(store, rank, dist.get_world_size(group), name)

    def wait_until(self, done: Callable[[], bool], deadline: float | None = None) -> bool:
        """Whether something came to be before the deadline; failures of other ranks are raised."""
        for _ in range(BUSY_CHECKS):
            if done():
                return True
        looked = time.monotonic()
        while not done():
            time.sleep(SLEEP_SECONDS)
            now = time.monotonic()
            if deadline is not None and now > deadline:
                return done()
            if now - looked > LOOK_SECONDS:
                self.raise_failure_of_another()
                looked = now
        return True

    def wait_for_start(self, what: str) -> None:
        """Raise unless all ranks begin within `START_SECONDS`; the missing ones are named."""
        store = self.store
        keys = [f"{self.name}/came/{rank}" for rank in range(self.size)]
        store.set(keys[self.rank], what)
        deadline = time.monotonic() + START_SECONDS
        if self.wait_until(lambda: store.check(keys), deadline):
            return
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        raise RankError(
            f"{in_words(missing)} did not call {what} within {START_SECONDS:.0f} s of rank "
            f"{self.rank}: call it on all ranks, or give group=woodbury.ALONE on one."
        )

    @contextmanager
    def reporting_failure(self, what: str) -> Iterator[None]:
        """A context whose failure the other ranks hear of."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, RankError):
                said = str(error) or type(error).__name__
                self.store.set(f"{self.name}/failed", json.dumps([self.rank, what, said]))
                self.store.set(f"{self.name}/heard/{self.rank}", "")
                self._linger()
            raise

    def _linger(self) -> None:
        """Stay until others have heard of a failure: the store may end with this process."""
        until = time.monotonic() + LINGER_SECONDS
        while time.monotonic() < until and not self.failure_is_known():
            time.sleep(SLEEP_SECONDS)

    def failure_is_known(self) -> bool:
        """Whether all other ranks know that one has failed."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        try:
            known = [f"{self.name}/heard/{rank}" for rank in others]
            return self.store.check(known)
        except RuntimeError:  # the store has ended
            return True

    def raise_failure_of_another(self, patience: float = 0.0) -> None:
        """Raise if another rank has failed.

        Args:
            patience: Seconds to wait for its reason.

        Raises:
            RankError: With its number and its reason.
        """
        key = f"{self.name}/failed"
        until = time.monotonic() + patience
        try:
            while not self.store.check([key]):
                if time.monotonic() >= until:
                    return
                time.sleep(0.05)
            rank, what, said = json.loads(self.store.get(key))
            self.store.set(f"{self.name}/heard/{self.rank}", "")
        except RuntimeError as error:  # the rank that keeps the store has ended
            raise RankError(f"Rank 0 has ended. ({reason(error)})") from error
        if rank != self.rank:
            raise RankError(f"Rank {rank} failed in {what}: {said}")


def in_words(ranks: Sequence[int]) -> str:
    """'Rank 1', or 'Ranks 1, 2'."""
    words = ", ".join(map(str, ranks))
    return f"Rank {words}" if len(ranks) == 1 else f"Ranks {words}"
