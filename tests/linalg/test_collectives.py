"""LowRank with its columns spread over two processes is the operator of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.processes import on_ranks
from torch import Tensor

from woodbury.fisher.lowrank import LowRank
from woodbury.linalg import collectives

M, D, DAMPING = 7, 30, 0.05
SPLIT = (D // 3, D - D // 3)


def problem() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "rows": normal(M, D),
        "weights": normal(M).abs() + 0.1,
        "v": normal(D),
        "many": normal(D, 3),
        "c": normal(M),
    }


def even_keep() -> Tensor:
    """Both ranks keep most of their columns."""
    return torch.arange(D) % 5 != 2


def uneven_keep() -> Tensor:
    """The first rank keeps one of its ten columns, the second nearly all of its twenty."""
    keep = torch.arange(D) % 7 != 3
    keep[1 : SPLIT[0]] = False
    keep[0] = True
    return keep


def operations(fisher: LowRank, v: Tensor, many: Tensor, c: Tensor) -> dict[str, Tensor]:
    """Everything that a rank holds of its own columns, and what all ranks share."""
    return {
        "product": fisher @ v,
        "products": fisher @ many,
        "solve": fisher.solve(v),
        "solves": fisher.solve(many),
        "range": fisher.solve_range(c),
        "diagonal": fisher.diagonal(),
        "inverse": fisher.inverse_diagonal(),
        "blocks": fisher.inverse_blocks(torch.arange(fisher.d)[:, None]).flatten(),
        "stronger": fisher.with_damping(1.0).solve(v),
    }


def measure(part: slice, keep: Tensor, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    data = problem()
    fisher = LowRank(data["rows"][:, part], DAMPING, data["weights"], group)
    v, many, local_keep = data["v"][part], data["many"][part], keep[part]
    result = operations(fisher, v, many, data["c"])
    smaller = fisher.restrict(local_keep)
    restricted = operations(smaller, v[local_keep], many[local_keep], data["c"])
    result |= {f"restricted {name}": value for name, value in restricted.items()}
    result["compensate"] = fisher.compensate(local_keep, v.masked_fill(local_keep, 0))
    result["compensate, gradient"] = fisher.compensate(
        local_keep, v.masked_fill(local_keep, 0), many[:, 0]
    )
    shared = {"logdet": fisher.logdet(), "restricted logdet": smaller.logdet()}
    return result | {
        name: torch.tensor([value], dtype=torch.float64) for name, value in shared.items()
    }


MASKS = {"even": even_keep, "uneven": uneven_keep}


def work(rank: int, mask: str) -> dict[str, Tensor]:
    part = slice(0, SPLIT[0]) if rank == 0 else slice(SPLIT[0], D)
    one = torch.tensor([float(rank + 1)])
    total = collectives.all_sum(one, dist.group.WORLD)
    return {"total": total, "one": one, **measure(part, MASKS[mask](), dist.group.WORLD)}


@pytest.mark.parametrize("mask", MASKS)
def test_two_processes_are_one_operator(mask: str, tmp_path: Path) -> None:
    ranks = on_ranks(2, tmp_path, work, mask)
    for rank, result in enumerate(ranks):
        assert (result.pop("total").item(), result.pop("one").item()) == (3.0, rank + 1.0)
    for name, value in measure(slice(0, D), MASKS[mask](), None).items():
        parts = [result[name] for result in ranks]
        for part in parts if "logdet" in name else [torch.cat(parts)]:
            torch.testing.assert_close(part, value, msg=lambda text, name=name: f"{name}: {text}")


def test_one_process_sums_to_itself() -> None:
    alone = torch.ones(2)
    assert collectives.all_sum(alone) is alone
