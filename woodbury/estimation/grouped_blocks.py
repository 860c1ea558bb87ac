"""Blocks of gradient rows as sums: all at once, or in groups of tensors, one pass for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.estimation.rows_over_ranks import blocks
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.blocks_of_rows import summed_blocks
from woodbury.fisher.dense import Dense
from woodbury.fisher.rebuilt import Rebuilt
from woodbury.limits import Limits
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.ranks import Ranks
from woodbury.linalg.symmetric_blocks import block_bytes
from woodbury.memory.budget import sums_bytes
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace

Chunks = Callable[[Objective], Iterable[Tensor]]
"""objective -> its gradient rows, (c, d) at a time."""

ROWS_BESIDE = 4
"""Rows that must have room beside the sums of their blocks."""

MAX_GROUPS = 32
"""Groups of tensors at most; each takes two passes over the data."""


def block_sums(objective: Objective, block: int, damping: float, chunks: Chunks) -> Fisher:
    """The dense diagonal blocks of an objective's gradient rows, within `sums_bytes()`  (eq. 11).

    Where the sums of all blocks have no room, each group of tensors has a Fisher of its own that
    is estimated when it is asked: twice in a pruning step.

    Args:
        objective: The loss, the data and the weights.
        block: Weights per block at most, each block inside one tensor.
        damping: λ > 0, added to the diagonal.
        chunks: What reads the rows of an objective.

    Returns:
        A `Dense` stack, or a `BlockDiagonal` of `Rebuilt` ones.

    Raises:
        WoodburyError: If the memory is short of what `MAX_GROUPS` groups need.
    """
    sizes = objective.space.block_sizes(block)
    ranks = Ranks.current()
    if ranks.size > 1:
        return _over_ranks(objective, sizes, damping, chunks)
    groups = _groups(objective, sizes)
    if len(groups) == 1:
        return summed_blocks(chunks(objective), sizes, damping)
    dtype = wide_dtype(objective.weights.dtype)
    device = objective.weights.device
    return BlockDiagonal(
        tuple(
            Rebuilt(group.build(objective, damping, chunks), group.d, damping, dtype, device)
            for group in groups
        )
    )


def _over_ranks(
    objective: Objective, sizes: tuple[int, ...], damping: float, chunks: Chunks
) -> Fisher:
    """The blocks, each rank with a part of them that must have room there."""
    ranks = Ranks.current()
    dtype = wide_dtype(objective.weights.dtype)
    needed = block_bytes(len(sizes), max(sizes), dtype) // ranks.size
    room = ranks.minimum(sums_bytes(objective.space.d))
    if needed > room:
        raise WoodburyError(
            f"The blocks take {needed / 1e9:.3g} GB on each of {ranks.size} ranks, and "
            f"{room / 1e9:.3g} GB are to have: take more ranks, smaller blocks or more memory."
        )
    return blocks(chunks(objective), sizes, damping, objective.weights, primal=True)


@dataclass(frozen=True)
class _Group:
    """Consecutive blocks of one or more tensors.

    Attributes:
        names: Of the tensors.
        first: Where its weights begin among the kept ones of these tensors.
        sizes: Of its blocks.
    """

    names: tuple[str, ...]
    first: int
    sizes: tuple[int, ...]

    @property
    def d(self) -> int:
        return sum(self.sizes)

    def build(self, objective: Objective, damping: float, chunks: Chunks) -> Callable[[], Dense]:
        """What estimates its blocks, by one pass over the data and within the present limits."""
        limits = Limits.current()

        def build() -> Dense:
            with limits:
                return summed_blocks(self._columns(objective, chunks), self.sizes, damping)

        return build

    def _columns(self, objective: Objective, chunks: Chunks) -> Iterator[Tensor]:
        here = on_tensors(objective, self.names)
        for chunk in chunks(here):
            yield chunk[:, self.first : self.first + self.d]


def on_tensors(objective: Objective, names: tuple[str, ...]) -> Objective:
    """The same loss as a function of some consecutive tensors; the others stay at their weights.

    Args:
        objective: The loss on all tensors of its space.
        names: Of some that follow each other in it.

    Returns:
        The objective on the kept weights of these tensors.
    """
    space = objective.space
    whole = slice(space.slices[names[0]].start, space.slices[names[-1]].stop)
    shapes = {name: space.shapes[name] for name in names}
    if space.kept is None:
        weights = objective.weights[whole]
        part = replace(space, shapes=shapes)
    else:
        first = int(space.kept[: whole.start].sum())
        part = replace(space, shapes=shapes, kept=space.kept[whole])
        weights = objective.weights[first : first + part.d]
    fixed = {name: tensor for name, tensor in objective.parameters.items() if name not in shapes}
    return replace(objective, space=part, weights=weights, fixed={**objective.fixed, **fixed})


def _groups(objective: Objective, sizes: tuple[int, ...]) -> list[_Group]:
    """As few groups as the memory allows, of whole tensors where one has room."""
    space = objective.space
    dtype = wide_dtype(objective.weights.dtype)
    size = max(sizes)
    room = sums_bytes(space.d)
    per_block = _bytes_of_block(size, dtype)
    most = room // per_block
    if len(sizes) > MAX_GROUPS * most:
        raise WoodburyError(_refusal(sum(sizes), size, dtype, room))
    if len(sizes) <= most:
        return [_Group(tuple(space.shapes), 0, sizes)]
    groups: list[_Group] = []
    blocks: list[int] = []
    names: list[str] = []
    for name, of_tensor in _blocks_by_tensor(space, sizes):
        if blocks and len(blocks) + len(of_tensor) > most:
            groups.append(_Group(tuple(names), 0, tuple(blocks)))
            blocks, names = [], []
        if len(of_tensor) <= most:
            blocks += of_tensor
            names.append(name)
            continue
        starts = [0, *accumulate(of_tensor)]
        for begin in range(0, len(of_tensor), most):
            piece = of_tensor[begin : begin + most]
            groups.append(_Group((name,), starts[begin], tuple(piece)))
    if blocks:
        groups.append(_Group(tuple(names), 0, tuple(blocks)))
    return groups


def _blocks_by_tensor(
    space: ParameterSpace, sizes: tuple[int, ...]
) -> Iterator[tuple[str, list[int]]]:
    remaining = iter(sizes)
    for name, where in space.slices.items():
        kept = space.shapes[name].numel() if space.kept is None else int(space.kept[where].sum())
        blocks = []
        while kept:
            blocks.append(next(remaining))
            kept -= blocks[-1]
        if blocks:
            yield name, blocks


def _refusal(d: int, size: int, dtype: torch.dtype, room: int) -> str:
    """The sentence for sums that no number of groups can hold."""

    def needed(size: int) -> float:
        return d / size * _bytes_of_block(size, dtype)

    fitting = size
    while fitting > 1 and needed(fitting) > MAX_GROUPS * room:
        fitting //= 2
    advice = f"take blocks of at most {fitting} weights, or more memory"
    if needed(fitting) > MAX_GROUPS * room:
        advice = "take diagonal_fisher, or more memory"
    return (
        f"Blocks of {size} weights take {needed(size) / 1e9:.3g} GB for {d} weights, "
        f"more than {MAX_GROUPS} times the {room / 1e9:.3g} GB that they may take: {advice}."
    )


def _bytes_of_block(size: int, dtype: torch.dtype) -> int:
    return block_bytes(1, size, dtype) + ROWS_BESIDE * dtype.itemsize * size
