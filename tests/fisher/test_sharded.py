"""An operator over three ranks is the operator of one process, also where a rank keeps nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.processes import on_ranks
from torch import Tensor

from woodbury.estimation.rows_over_ranks import blocks, parts, whole_matrix
from woodbury.fisher import Dense, Fisher, LowRank, dense_blocks
from woodbury.fisher.checks import WoodburyError
from woodbury.linalg.ranks import Ranks

M, D, DAMPING = 9, 30, 0.05
SIZES = (6, 6, 6, 4, 4, 4)


def problem() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {"rows": normal(M, D), "v": normal(D), "many": normal(D, 3), "gradient": normal(D)}


def keeps() -> dict[str, Tensor]:
    index = torch.arange(D)
    return {"even": index % 5 != 2, "nothing of the first rank": index >= 12, "few": index == 17}


def groups() -> Tensor:
    """Inside ranks, across two, and across all."""
    return torch.tensor([[0, 1, 2], [9, 10, 11], [3, 15, 29], [28, 29, 27], [19, 20, 8]])


def operations(fisher: Fisher, v: Tensor, many: Tensor) -> dict[str, Tensor]:
    return {
        "product": fisher @ v,
        "products": fisher @ many,
        "solve": fisher.solve(v),
        "solves": fisher.solve(many),
        "form": torch.tensor(fisher.quadratic_form(v), dtype=torch.float64),
        "diagonal": fisher.diagonal(),
        "inverse": fisher.inverse_diagonal(),
        "logdet": torch.tensor(fisher.logdet(), dtype=torch.float64),
        "damped": fisher.with_damping(1.0).solve(v),
    }


def measured(fisher: Fisher) -> dict[str, Tensor]:
    """Everything that a Fisher does."""
    data = problem()
    v, many, gradient = data["v"], data["many"], data["gradient"]
    found = operations(fisher, v, many)
    found["blocks"] = fisher.inverse_blocks(groups())
    for name, keep in keeps().items():
        removed = v.masked_fill(keep, 0)
        found[f"{name}: step"] = fisher.compensate(keep, removed)
        found[f"{name}: step, gradient"] = fisher.compensate(keep, removed, gradient)
        found[f"{name}: curvature"] = fisher.conditional_curvature(keep)
        restricted = operations(fisher.restrict(keep), v[keep], many[keep])
        found |= {f"{name}: {what}": value for what, value in restricted.items()}
    return found


def over_ranks(rank: int) -> dict[str, Any]:
    rows = problem()["rows"]
    # Rank 1 has none of the first chunk, and rank 2 none of the second.
    shares = [[rows[:2], rows[2:4]], [rows[:0], rows[4:7]], [rows[7:], rows[:0]]]
    with Ranks.of(None).started("the operators") as ranks:
        like = rows[:0]
        chunks = shares[ranks.rank]
        whole = whole_matrix(lambda given, _: torch.cat(list(given)), chunks, D, DAMPING, like)
        primal = blocks(chunks, SIZES, DAMPING, like, primal=True)
        dual = blocks(chunks, SIZES, DAMPING, like, primal=False)
        several = parts(SIZES, lambda index: part(rows, index), DAMPING, like)
        found = {
            "whole": measured(whole),
            "whole, spectral": measured(whole.spectral()),  # type: ignore[attr-defined]
            "primal": measured(primal),
            "dual": measured(dual),
            "parts": measured(several),
            "text": repr(whole),
        }
        try:
            whole.restrict(torch.zeros(D, dtype=torch.bool))
        except WoodburyError as error:
            found["refused"] = str(error)
    return found


def part(rows: Tensor, index: int) -> Fisher:
    start = sum(SIZES[:index])
    columns = rows[:, start : start + SIZES[index]]
    return Dense((columns.mT @ columns / M)[None], DAMPING)


@pytest.fixture(scope="module")
def on_three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(3, tmp_path_factory.mktemp("sharded"), over_ranks)


@pytest.mark.parametrize("name", ["whole", "whole, spectral", "primal", "dual", "parts"])
def test_three_ranks_are_one_operator(name: str, on_three: list[dict[str, Any]]) -> None:
    rows = problem()["rows"]
    alone = LowRank(rows, DAMPING) if "whole" in name else dense_blocks(rows, SIZES, DAMPING)
    expected = measured(alone)
    for one in on_three:
        for what, value in expected.items():
            torch.testing.assert_close(
                one[name][what], value, msg=lambda text, what=what: f"{what}: {text}"
            )
            assert torch.equal(one[name][what], on_three[0][name][what]), what


def test_it_is_one_line_and_refuses_as_others_do(on_three: list[dict[str, Any]]) -> None:
    assert on_three[1]["text"] == "Sharded(d=30, damping=0.05)"
    assert "at least one weight must be kept" in on_three[2]["refused"]
