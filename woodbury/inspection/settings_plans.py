"""The settings that are tried: for each axis its reference, the others, and how each is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_rows
from woodbury.estimation.labels import sampled
from woodbury.estimation.recipes import mfac
from woodbury.fisher.base import Fisher
from woodbury.fisher.lowrank import LowRank
from woodbury.inspection.choices import mean_rows
from woodbury.inspection.curvatures import Curvatures
from woodbury.linalg.conversion import seeded
from woodbury.model.objective import Objective

SHARES_OF_ROWS = (1 / 8, 1 / 4, 1 / 2)
"""Of the rows, beside all of them."""
FEWEST_ROWS = 4
"""That a Fisher is tried with."""


class Try(NamedTuple):
    """A setting, and how its Fisher is made; one function is one Fisher, and one choice."""

    value: str
    fisher: Callable[[], Fisher]


class Plan(NamedTuple):
    """An axis: its reference and the other settings."""

    name: str
    reference: Try
    others: tuple[Try, ...]

    @property
    def tries(self) -> tuple[Try, ...]:
        """All of them."""
        return self.reference, *self.others


@dataclass(frozen=True, eq=False)
class KnownRows:
    """Rows at the dense weights, and what is made of them.

    Attributes:
        objective: The network.
        damping: Where it is not changed.
        kinds: Name -> the whole matrix of its rows, what prune goes by first.
    """

    objective: Objective
    damping: float
    kinds: Mapping[str, LowRank]

    @property
    def first(self) -> str:
        """What prune goes by."""
        return next(iter(self.kinds))

    @property
    def main(self) -> LowRank:
        """Of it."""
        return self.kinds[self.first]

    @cached_property
    def known(self) -> dict[str, Callable[[], Fisher]]:
        """Name -> the function that gives the matrix of all its rows."""
        return {name: partial(_itself, fisher) for name, fisher in self.kinds.items()}

    @cached_property
    def half(self) -> Callable[[], Fisher]:
        """The function that gives the matrix of the first half of the rows."""
        return partial(self.whole, rows_of(self.main)[: self.main.m // 2])

    def whole(self, rows: Tensor) -> Fisher:
        """The matrix of rows of their own."""
        return LowRank(rows, self.damping)

    def blocks(self, size: int) -> Fisher:
        """All rows, in blocks."""
        recipe = mfac(self.main.m, self.damping, block=size)
        return recipe.of_rows(rows_of(self.main), self.objective.space)

    def leading(self, count: int) -> Callable[[], Fisher]:
        """The function that gives the matrix of the first rows."""
        if count == self.main.m // 2:
            return self.half
        return partial(self.whole, rows_of(self.main)[:count])


def _itself(fisher: Fisher) -> Fisher:
    return fisher


def kinds_known(
    objective: Objective,
    count: int,
    damping: float,
    curvatures: Curvatures | None,
    has_labels: bool,
    seed: int,
) -> dict[str, LowRank]:
    """Name -> the matrix of its rows, the first of them what prune goes by.

    An operator that is known keeps its Gram matrix and its inverse diagonal.
    """
    known: Mapping[str, Fisher] = {} if curvatures is None else curvatures.fishers
    found: dict[str, LowRank] = {}
    for name in ("gauss_newton", "empirical"):
        fisher = known.get(name)
        if isinstance(fisher, LowRank) and isinstance(fisher.rows, Tensor):
            found[name] = fisher if fisher.damping == damping else fisher.with_damping(damping)
    if found:
        return found
    if objective.likelihood.directions is not None:
        found["gauss_newton"] = LowRank(_directed(objective, count, seed), damping)
    if has_labels:
        found["empirical"] = LowRank(gradient_rows(objective, count), damping)
    if not found:
        raise WoodburyError(
            "There are neither labels nor directions of the output: give one of them, as no "
            "gradient rows can be taken without."
        )
    return found


def plans_of(
    rows: KnownRows,
    dampings: Sequence[float],
    blocks: Sequence[int],
    batches: Sequence[int],
    seed: int,
) -> Iterator[Plan]:
    """The axes in the order in which they are tried."""
    main, damping = rows.main, rows.damping
    base = Try(f"{damping:g}", rows.known[rows.first])
    turned = _Turned(main)
    others = (each for each in dampings if each != damping)
    yield Plan("damping", base, tuple(Try(f"{d:g}", partial(turned.at, d)) for d in others))
    yield Plan("rows", base._replace(value=f"{main.m}"), tuple(_fewer(rows)))
    sizes = sorted({size for size in blocks if size < rows.objective.space.d})
    cut = tuple(Try(f"{size}", partial(rows.blocks, size)) for size in sizes)
    yield Plan("block", base._replace(value="whole"), cut)
    yield Plan("kind of rows", base._replace(value=_KINDS[rows.first]), _other_kinds(rows, seed))
    labelled = "empirical" if "empirical" in rows.kinds else rows.first
    yield Plan("samples per row", Try("1", rows.known[labelled]), _means(rows, labelled, batches))
    if rows.first == "gauss_newton":
        anew = Try(f"{seed + 1}", lambda: rows.whole(_directed(rows.objective, main.m, seed + 1)))
        yield Plan("seed", base._replace(value=f"{seed}"), (anew,))
    half = main.m // 2
    if half >= FEWEST_ROWS:
        other = Try("the other half", partial(rows.whole, rows_of(main)[half : 2 * half]))
        yield Plan("samples", Try("one half", rows.half), (other,))


_KINDS = {"gauss_newton": "Gauss–Newton", "empirical": "observed labels"}
"""What rows are of."""


@dataclass(frozen=True, eq=False)
class _Turned:
    """A matrix whose inverse diagonal costs one read of its rows under any damping  (eq. 60)."""

    fisher: LowRank

    @cached_property
    def spectral(self) -> LowRank:
        return self.fisher.spectral()

    def at(self, damping: float) -> Fisher:
        """Under another damping."""
        return self.spectral.with_damping(damping)


def _fewer(rows: KnownRows) -> Iterator[Try]:
    for share in SHARES_OF_ROWS:
        count = round(share * rows.main.m)
        if count >= FEWEST_ROWS:
            yield Try(f"{count}", rows.leading(count))


def _means(rows: KnownRows, name: str, batches: Sequence[int]) -> tuple[Try, ...]:
    """Rows that average several samples."""
    single = rows_of(rows.kinds[name])
    return tuple(
        Try(f"{batch}", lambda batch=batch: rows.whole(mean_rows(single, batch)))
        for batch in sorted(set(batches))
        if len(single) // batch >= FEWEST_ROWS
    )


def _other_kinds(rows: KnownRows, seed: int) -> tuple[Try, ...]:
    """Rows of another kind than the first."""
    objective, count = rows.objective, rows.main.m
    found = [
        Try(_KINDS[name], function) for name, function in rows.known.items() if name != rows.first
    ]
    if objective.likelihood.sample is not None:
        found.append(Try("drawn labels", lambda: rows.whole(_drawn(objective, count, seed))))
    return tuple(found)


def rows_of(fisher: LowRank) -> Tensor:
    """The rows of a matrix that holds them in memory."""
    assert isinstance(fisher.rows, Tensor)
    return fisher.rows


def _directed(objective: Objective, count: int, seed: int) -> Tensor:
    """Gauss–Newton rows, one random direction for each sample."""
    return gradient_rows(gauss_newton_rows(objective, 1, seed), count)


def _drawn(objective: Objective, count: int, seed: int) -> Tensor:
    generator = seeded(seed, objective.weights.device)
    return gradient_rows(objective, count, labels=sampled, generator=generator)
