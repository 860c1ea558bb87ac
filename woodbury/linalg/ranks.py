"""Ranks: the processes that share one computation, and their collectives."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate, count, pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions

from woodbury.errors import RankError, WrongType, reason
from woodbury.linalg.rank_store import RankStore, in_words

T = TypeVar("T")

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""In the text of an object without one of its own."""

ELEMENTS_AT_ONCE = 1 << 20
"""Of each rank, that are gathered at once."""

MOST_WAITING = timedelta(days=30)
"""For ranks whose work takes differently long."""


@dataclass
class Traffic:
    """What a rank has sent.

    Attributes:
        sent: Bytes that went to other ranks, as an algorithm sends them that takes each number to
            every rank once.
        collectives: How often ranks spoke.
    """

    sent: int = 0
    collectives: int = 0


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that share one computation; without a group this process is alone.

    It is a context: code inside `with ranks.started(...)` finds it by `Ranks.current()`. A rank
    that fails there says so, and the others raise a `RankError` with its reason in place of
    waiting for it.

    Attributes:
        group: The torch.distributed process group; None for one process alone.
        shared: The store for when they begin and why they fail; None before a computation.
        traffic: What this rank has sent.

    Example:
        >>> ranks = Ranks.current()
        >>> ranks.rank, ranks.size, ranks.total(3)
        (0, 1, 3)
    """

    group: dist.ProcessGroup | None = None
    shared: RankStore | None = None
    traffic: Traffic = field(default_factory=Traffic)

    @staticmethod
    def current() -> Ranks:
        """The ranks that share what runs here; this process alone outside of any."""
        return _current.get()

    @staticmethod
    def of(group: object) -> Ranks:
        """The ranks of a process group.

        Args:
            group: It, or a device mesh of one dimension. None for the ranks of the computation that
                this is a part of; outside of any for torch's default group where there is one, else
                for this process alone. `ALONE` for this process alone in any case.

        Raises:
            WrongType: If it is no process group.
        """
        if group is ALONE:
            return Ranks()
        if group is None and _current.get() is not _OUTSIDE:
            return _current.get()
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        group = _group_of_mesh(group)
        check_group(group)
        return Ranks(group)  # type: ignore[arg-type]

    @staticmethod
    @contextmanager
    def apart() -> Iterator[None]:
        """A context in which this process is alone, such as for what it measures of itself."""
        token = _current.set(Ranks())
        try:
            yield
        finally:
            _current.reset(token)

    @property
    def is_alone(self) -> bool:
        """Whether there is no group."""
        return self.group is None

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @contextmanager
    def started(self, what: str, facts: Mapping[str, object] | None = None) -> Iterator[Ranks]:
        """Begin a computation on all ranks, and be what `current` gives inside the block.

        Args:
            what: The function that begins, for the sentences.
            facts: What must be the same on all ranks.

        Raises:
            RankError: If a rank does not come within 30 s, has other facts, or fails later.
        """
        if self.group is None or _current.get().group is self.group:  # a part of what has begun
            token = _current.set(self if self.group is None else _current.get())
            try:
                yield _current.get()
            finally:
                _current.reset(token)
            return
        shared = RankStore.of_next(self.group)
        begun = Ranks(self.group, shared)
        token = _current.set(begun)
        try:
            shared.wait_for_start(what)
            with shared.reporting_failure(what):
                begun.agree(what, facts or {})
                yield begun
        finally:
            _current.reset(token)

    def agree(self, stage: str, facts: Mapping[str, object]) -> None:
        """Raise on every rank unless all are at one stage with the same facts.

        Args:
            stage: Where in the computation this is.
            facts: What must be the same, by names that a user understands.

        Raises:
            RankError: Naming what differs and on which ranks.
        """
        if self.size == 1:
            return
        # Functions are shown with their address, which differs between processes.
        shown = {name: ADDRESS.sub("", str(value)) for name, value in facts.items()}
        mine = {"stage": stage, **shown}
        digest = hashlib.sha256(json.dumps(mine).encode()).digest()
        marks = self.all_gather(torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        if all(torch.equal(mark, marks[0]) for mark in marks):
            return
        theirs = self.all_gather_objects(mine)
        for name in mine:
            values = [other.get(name) for other in theirs]
            if len(set(values)) > 1:
                raise RankError(f"The ranks differ in {name}: {_by_value(values)}.")
        raise RankError(f"The ranks differ at {stage!r}: run the same program on all of them.")

    def share(self, count: int, run: int) -> int:
        """How many of the first `count` things are this rank's, if they are dealt out in runs."""
        whole, rest = divmod(count, run * self.size)
        return whole * run + min(max(rest - self.rank * run, 0), run)

    def total(self, count: int) -> int:
        """The sum of a count over all ranks."""
        if self.size == 1:
            return count
        return int(self.sum(torch.tensor([count], dtype=torch.int64))[0])

    def minimum(self, value: float) -> float:
        """The smallest value of all ranks."""
        if self.size == 1:
            return value
        return float(torch.stack(self.all_gather(torch.tensor([value], dtype=torch.float64))).min())

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each.

        Args:
            tensor: Of the same shape and dtype on every rank; it is not changed.

        Returns:
            A new tensor; alone `tensor` itself.
        """
        if self.size == 1:
            return tensor
        summed = self._on_wire(tensor).clone(memory_format=torch.contiguous_format)
        self._finish(dist.all_reduce(summed, group=self.group, async_op=True))
        self._count(2 * summed.nbytes * (self.size - 1) // self.size)
        return summed.to(tensor.device)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which have one shape."""
        if self.size == 1:
            return [tensor]
        mine = self._on_wire(tensor).contiguous()
        sent = mine.reshape(-1).view(torch.uint8)  # halves and bools have no wire format
        all_of_them = [torch.empty_like(sent) for _ in range(self.size)]
        self._finish(dist.all_gather(all_of_them, sent, group=self.group, async_op=True))
        self._count(sent.nbytes * (self.size - 1))
        return [each.view(mine.dtype).view(mine.shape).to(tensor.device) for each in all_of_them]

    def all_gather_parts(self, part: Tensor, sizes: Sequence[int]) -> Tensor:
        """The parts of all ranks in one tensor, the same bits on each.

        Args:
            part: (sizes[rank], …).
            sizes: The length of each rank's part.

        Returns:
            (sum(sizes), …).
        """
        if self.size == 1:
            return part
        whole = part.new_empty(sum(sizes), *part.shape[1:])
        starts = list(accumulate(sizes, initial=0))
        at_once = max(1, ELEMENTS_AT_ONCE // max(part[:1].numel(), 1))
        # In pieces: those of all ranks, padded to one length, would be a second copy of the whole.
        for first in range(0, max(sizes), at_once):
            piece = part[first : first + at_once]
            padded = part.new_zeros(min(at_once, max(sizes) - first), *part.shape[1:])
            padded[: len(piece)] = piece
            for theirs, start, size in zip(self.all_gather(padded), starts, sizes, strict=False):
                here = theirs[: max(size - first, 0)]
                whole[start + first : start + first + len(here)] = here
        return whole

    def all_gather_objects(self, mine: Any) -> list[Any]:
        """What every rank has, of anything that can be pickled."""
        if self.size == 1:
            return [mine]
        text = torch.frombuffer(bytearray(pickle.dumps(mine)), dtype=torch.uint8)
        sizes = [int(size) for size in self.all_gather(torch.tensor([len(text)]))]
        parts = self.all_gather_parts(text, sizes).split(sizes)
        return [pickle.loads(part.numpy().tobytes()) for part in parts]

    def broadcast_object(self, mine: T) -> T:
        """What rank 0 has, on every rank: anything that can be pickled."""
        if self.size == 1:
            return mine
        text = torch.frombuffer(bytearray(pickle.dumps(mine)), dtype=torch.uint8)
        size = int(self.broadcast(torch.tensor([len(text)]))[0])
        whole = text if self.rank == 0 else text.new_empty(size)
        return pickle.loads(self.broadcast(whole).numpy().tobytes())

    def numbers(self) -> Iterator[int]:
        """From 0, each on one rank only: the next for whichever asks, for work that is handed out.

        Example:
            >>> numbers = Ranks().numbers()
            >>> next(numbers), next(numbers)
            (0, 1)
        """
        if self.shared is None:
            yield from count()
            return
        store, name = self.shared.store, f"{self.shared.name}/handed out"
        which = store.add(f"{name} on {self.rank}", 1)  # each rank counts what was handed out
        while True:
            yield store.add(f"{name}/{which}", 1) - 1

    def wait_for_all(self) -> None:
        """Wait until all ranks are here, beyond the group's time-out too; failures are heard of."""
        if self.size == 1 or self.group is None:
            return
        options = AllgatherOptions()
        options.timeout = MOST_WAITING
        mine = self._on_wire(torch.zeros(1))
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        self._finish(self.group.allgather([all_of_them], [mine], options))

    def all_to_all(self, chunk: Tensor, bounds: Sequence[int]) -> Tensor | None:
        """Rows for their columns: what all ranks have of this rank's columns.

        Args:
            chunk: (c, d), rows of this rank; c may be 0, and differ between ranks.
            bounds: (size + 1), where the columns of each rank begin; the last is d.

        Returns:
            (Σ c, own columns), the rows in the order of the ranks; None when no rank has any.
        """
        counts = [int(count) for count in self.all_gather(torch.tensor([len(chunk)]))]
        if not any(counts):
            return None
        widths = [stop - start for start, stop in pairwise(bounds)]
        if len(chunk) == 1:  # as it lies; a copy would be another vector of all weights
            flat = chunk.reshape(-1)
        else:
            flat = torch.cat([part.reshape(-1) for part in chunk.split(widths, dim=1)])
        outgoing = self._on_wire(flat).view(torch.uint8)  # halves have no wire format
        own, element = widths[self.rank], chunk.element_size()
        incoming = outgoing.new_empty(sum(counts) * own * element)
        work = dist.all_to_all_single(
            incoming,
            outgoing,
            [count * own * element for count in counts],
            [len(chunk) * width * element for width in widths],
            group=self.group,
            async_op=True,
        )
        self._finish(work)
        self._count(len(chunk) * (bounds[-1] - own) * element)
        return incoming.view(chunk.dtype).view(sum(counts), own).to(chunk.device)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The tensor of rank 0, on every rank."""
        if self.size == 1:
            return tensor
        as_bytes = tensor.dtype == torch.bool
        sent = self._on_wire(tensor.to(torch.uint8) if as_bytes else tensor).contiguous().clone()
        root = dist.get_global_rank(self.group, 0) if self.group is not None else 0
        self._finish(dist.broadcast(sent, root, group=self.group, async_op=True))
        self._count(sent.nbytes if self.rank == 0 else 0)
        return sent.to(tensor.device, tensor.dtype)

    def _count(self, sent: int) -> None:
        self.traffic.sent += sent
        self.traffic.collectives += 1

    def _on_wire(self, tensor: Tensor) -> Tensor:
        """The tensor where the group's backend takes it."""
        if tensor.device.type == "cpu" and "nccl" in dist.get_backend(self.group):
            return tensor.cuda()
        return tensor

    def _finish(self, work: dist.Work | None) -> None:
        """Wait for a collective, and look meanwhile whether another rank has failed."""
        assert work is not None  # async_op=True
        assert self.shared is not None  # there is more than one rank
        self.shared.wait_until(work.is_completed)
        try:
            work.wait()
        except RuntimeError as error:
            # A connection that was closed by a rank that failed: its own reason comes first.
            self.shared.raise_failure_of_another(patience=1.0)
            raise RankError(
                f"A rank of {self.size} has ended, so that rank {self.rank} cannot go on: look at "
                f"the output of the others. ({reason(error)})"
            ) from error


class _Alone:
    """What `group=ALONE` is."""

    def __repr__(self) -> str:
        return "woodbury.ALONE"


ALONE = _Alone()
"""In place of a process group: this process alone, also where torch has a default group."""

_OUTSIDE = Ranks()
"""Where no computation has begun."""

_current: ContextVar[Ranks] = ContextVar("ranks", default=_OUTSIDE)


def _group_of_mesh(group: Any) -> Any:
    """The process group of a device mesh; anything else as it is."""
    mesh_type = getattr(dist, "DeviceMesh", None)  # of no torch without distributed
    if mesh_type is None or not isinstance(group, mesh_type):
        return group
    if group.ndim != 1:
        raise WrongType(
            f"group is a device mesh of {group.ndim} dimensions: give one of them, such as "
            "mesh['data']."
        )
    return group.get_group()


def check_group(group: object) -> None:
    """Raise unless something is a process group, or None.

    Args:
        group: What was given as one.

    Raises:
        WrongType: If it is something else.
    """
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise WrongType(f"group is a {type(group).__name__}: give a process group, or None.")


def _by_value(values: Sequence[str | None]) -> str:
    """Which ranks have which value: '500 on rank 0, 400 on ranks 1, 2'."""
    ranks: dict[str | None, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(
        f"{'none' if value is None else value} on {in_words(having).lower()}"
        for value, having in ranks.items()
    )
