"""What ranks say to each other: sums, parts, columns for rows, and why one has failed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.processes import on_ranks

from woodbury.errors import RankError, WoodburyError, WrongType
from woodbury.linalg import rank_store
from woodbury.linalg.column_bounds import column_bounds, even_bounds
from woodbury.linalg.ranks import ALONE, Ranks


def speak(rank: int) -> dict[str, Any]:
    """Every way in which ranks speak, in one computation."""
    generator = torch.Generator().manual_seed(rank)
    rows = torch.randn(2 + rank, 7, generator=generator)
    with Ranks.of(None).started("speak", {"count": 3}) as ranks:
        assert Ranks.current() is ranks
        columns = ranks.all_to_all(rows, [0, 3, 7])
        assert ranks.all_to_all(rows[:0], [0, 3, 7]) is None
        found = {
            "rows": rows,
            "columns": columns,
            "sum": ranks.sum(torch.tensor([1.0, rank])),
            "joined": ranks.all_gather_parts(torch.arange(2 + rank), [2, 3]),
            "keep": ranks.all_gather_parts(torch.ones(2 + rank, dtype=torch.bool), [2, 3]),
            "total": ranks.total(rank + 1),
            "least": ranks.minimum(5.0 - rank),
            "first": ranks.broadcast(torch.tensor([rank == 0, True])),
            "objects": ranks.all_gather_objects({"rank": rank}),
            "sent": ranks.traffic.sent,
            "inner": None,
        }
        with Ranks.of(None).started("an inner part") as inner:
            found["inner"] = inner is ranks
        with Ranks.of(ALONE).started("a part of this rank") as alone:
            found["alone"] = (alone.size, Ranks.current().size)
    found["after"] = Ranks.current().size
    return found


def fail(rank: int, way: str) -> str:
    """One rank fails; how long the other waits, and what it hears."""
    rank_store.START_SECONDS = 3.0
    begun = time.monotonic()
    try:
        if way == "never" and rank == 1:
            time.sleep(6)  # alive, and elsewhere
            return "elsewhere"
        # A function has another address in each process, and is the same all the same.
        facts = {"count": 500 - 100 * rank if way == "facts" else 500, "by": [lambda: None]}
        with Ranks.of(dist.group.WORLD).started("prune", facts) as ranks:
            if way == "raises" and rank == 1:
                raise WoodburyError("Batch 3 cannot be read.")
            if way == "first raises" and rank == 0:
                raise WoodburyError("Batch 5 cannot be read.")
            ranks.sum(torch.ones(3))
    except WoodburyError as error:
        kind = type(error).__name__
        return f"{kind}: {error} [{time.monotonic() - begun < 20}]"
    return "nothing"


def everything(rank: int) -> dict[str, Any]:
    """Nothing here leaves a collective that the other rank waits in."""
    return {"spoken": speak(rank), **{way: fail(rank, way) for way in ("facts", "never")}}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), everything)


def test_ranks_speak(both: list[dict[str, Any]]) -> None:
    first, second = (one["spoken"] for one in both)
    rows = torch.cat([first["rows"], second["rows"]])
    assert torch.equal(torch.cat([first["columns"], second["columns"]], 1), rows)
    for one in (first, second):
        assert one["sum"].tolist() == [2.0, 1.0]
        assert one["joined"].tolist() == [0, 1, 0, 1, 2]
        assert one["keep"].dtype == torch.bool and bool(one["keep"].all())
        assert (one["total"], one["least"]) == (3, 4.0)
        assert one["first"].tolist() == [True, True]
        assert one["objects"] == [{"rank": 0}, {"rank": 1}]
        assert one["inner"] and one["alone"] == (1, 1) and one["after"] == 1
        assert one["sent"] > 4 * 2 * 3


@pytest.mark.parametrize(
    ("way", "listener", "heard"),
    [
        ("facts", 0, "The ranks differ in count: 500 on rank 0, 400 on rank 1. [True]"),
        ("facts", 1, "The ranks differ in count: 500 on rank 0, 400 on rank 1. [True]"),
        ("never", 0, "RankError: Rank 1 did not call prune within 3 s of rank 0"),
    ],
)
def test_ranks_that_differ(both: list[dict[str, Any]], way: str, listener: int, heard: str) -> None:
    assert heard in both[listener][way]


@pytest.mark.parametrize(
    ("way", "listener", "heard"),
    [
        ("raises", 0, "RankError: Rank 1 failed in prune: Batch 3 cannot be read. [True]"),
        ("first raises", 1, "RankError: Rank 0 failed in prune: Batch 5 cannot be read. [True]"),
    ],
)
def test_a_failure_failure_is_known(way: str, listener: int, heard: str, tmp_path: Path) -> None:
    assert heard in on_ranks(2, tmp_path, fail, way)[listener]


def test_alone_nothing_is_said() -> None:
    ranks = Ranks.of(None)
    tensor = torch.ones(2)
    assert ranks.is_alone and ranks.sum(tensor) is tensor and ranks.broadcast(tensor) is tensor
    assert ranks.all_gather_parts(tensor, [2]) is tensor
    assert ranks.total(4) == 4 and ranks.minimum(2.0) == 2.0
    ranks.agree("anywhere", {"count": 1})
    with ranks.started("alone") as same:
        assert same is ranks
    with pytest.raises(WrongType, match="group is a str"):
        Ranks.of("gloo")


@pytest.mark.parametrize("count", [0, 1, 7, 16, 37])
@pytest.mark.parametrize("run", [1, 4])
def test_shares_add_up(count: int, run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "size", 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(Ranks, "rank", rank)
        shares.append(Ranks().share(count, run))
        mine = [i for i in range(count) if i // run % 3 == rank]
        assert shares[-1] == len(mine)
    assert sum(shares) == count


def test_no_block_is_cut() -> None:
    for ranks in (1, 2, 3, 4):
        bounds = column_bounds([5, 5, 5, 2, 9], ranks)
        assert len(bounds) == ranks + 1 and bounds == sorted(bounds)
        assert set(bounds) <= {0, 5, 10, 15, 17, 26}
        assert even_bounds(26, ranks)[-1] == bounds[-1] == 26


def test_a_rank_error_is_an_error_of_the_package() -> None:
    assert issubclass(RankError, WoodburyError)
