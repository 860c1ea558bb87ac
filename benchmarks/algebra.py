"""The algebra against the papers' recursions and against the machine: python benchmarks/algebra.py
[--quick]

LowRank (set-up, inverse diagonal, one product) against M-FAC's sequential recursion over the rows;
WoodFisher blocks against one rank-one update of all blocks per gradient; `solve` against two reads
of the rows at the copy rate. Both rivals are the papers' algorithms in plain torch, as fast as
their order of computation lets them be.
"""

from __future__ import annotations

import argparse

import torch
from limits import matmul_rate, seconds, table
from rich.console import Console
from rich.table import Table
from torch import Tensor

from woodbury.fisher.blocks_of_rows import dense_blocks
from woodbury.fisher.lowrank import LowRank

DIMENSION = 272_474  # ResNet-20
DAMPING = 1e-3


def recursion(rows: Tensor, damping: float, v: Tensor) -> tuple[Tensor, Tensor]:
    """M-FAC's static algorithm: vᵢ = F⁻¹ᵢ₋₁ gᵢ row by row, then diag(F⁻¹) and F⁻¹v from the vᵢ."""
    m = len(rows)
    partial, scale = torch.empty_like(rows), torch.empty(m)
    for i, row in enumerate(rows):
        partial[i] = row / damping
        if i:
            partial[i] -= (partial[:i] @ row / scale[:i]) @ partial[:i]
        scale[i] = m + row @ partial[i]
    diagonal = torch.full_like(v, 1 / damping)
    for i in range(m):  # row by row, as a squared copy of all would double the memory
        diagonal -= partial[i].square() / scale[i]
    return diagonal, v / damping - (partial @ v / scale) @ partial


def ours(rows: Tensor, damping: float, v: Tensor) -> tuple[Tensor, Tensor]:
    fisher = LowRank(rows, damping)
    return fisher.inverse_diagonal(), fisher.solve(v)


def rank_one_blocks(rows: Tensor, size: int, damping: float, inverse: Tensor) -> None:
    """WoodFisher's algorithm: every block's inverse, updated once per gradient."""
    m, b = len(rows), len(inverse)
    for row in rows:
        parts = row.view(b, size, 1)
        moved = inverse @ parts
        denominator = m + (parts * moved).sum(1, keepdim=True)
        inverse.baddbmm_(moved / denominator, moved.mT, alpha=-1)


def low_rank_row(m: int, rate: float) -> list[str]:
    generator = torch.Generator().manual_seed(m)
    rows, v = (
        torch.randn(m, DIMENSION, generator=generator),
        torch.randn(DIMENSION, generator=generator),
    )
    fast, slow = (
        seconds(lambda: ours(rows, DAMPING, v)),
        seconds(lambda: recursion(rows, DAMPING, v), 1),
    )
    pairs = zip(ours(rows, DAMPING, v), recursion(rows, DAMPING, v), strict=True)
    apart = max(float((found - other).norm() / other.norm()) for found, other in pairs)
    share = (
        2 * m**2 * DIMENSION / fast / rate
    )  # half a Gram matrix and half a triangular product: all that is needed
    return [
        str(m),
        f"{slow:.2f}",
        f"{fast:.2f}",
        f"{slow / fast:.1f}",
        f"{share:.0%}",
        f"{apart:.0e}",
    ]


def solve_row(m: int) -> list[str]:
    """Medians of copies, sums, solves and range forms that take turns, as the memory's rate changes
    with the neighbours' use of it. A copy reads and writes; two sums read twice."""
    rows, v, c = torch.randn(m, DIMENSION), torch.randn(DIMENSION), torch.randn(m)
    fisher, target = LowRank(rows, DAMPING), torch.empty_like(rows)
    fisher.solve(v)  # the set-up
    calls = (
        lambda: target.copy_(rows),
        lambda: (rows.sum(), rows.sum()),
        lambda: fisher.solve(v),
        lambda: fisher.solve_range(c),
    )
    turns = [[seconds(call, 1) for call in calls] for _ in range(15)]
    copy, sums, solve, in_range = (sorted(column)[7] for column in zip(*turns, strict=True))
    rate = (
        2 * rows.numel() * rows.element_size() / copy / 1e9
    )  # a copy reads once and writes once: it takes two reads
    cells = [f"{rate:.1f}", f"{solve:.4f}", f"{copy:.4f}", f"{solve / copy:.2f}"]
    cells += [f"{sums:.4f}", f"{solve / sums:.2f}"]
    return [str(m), *cells, f"{in_range:.4f}", f"{copy / 2:.4f}", f"{2 * in_range / copy:.2f}"]


def block_row(s: int, m: int, sample: int) -> list[str]:
    """The rival's cost is the same for each gradient, so it is timed on `sample` of the m and
    scaled."""
    b = DIMENSION // s
    rows = torch.randn(m, b * s, generator=torch.Generator().manual_seed(s))
    fast = seconds(lambda: dense_blocks(rows, (s,) * b, DAMPING).inverse_diagonal(), 2)
    inverse = (torch.eye(s) / DAMPING).repeat(b, 1, 1)
    slow = seconds(lambda: rank_one_blocks(rows[:sample], s, DAMPING, inverse), 1) * m / sample
    few, inverse = rows[:, : 2 * s], (torch.eye(s) / DAMPING).repeat(2, 1, 1)
    rank_one_blocks(few, s, DAMPING, inverse)
    found, truth = (
        dense_blocks(few, (s, s), DAMPING).inverse_diagonal(),
        inverse.diagonal(dim1=1, dim2=2).flatten(),
    )
    apart = float((found - truth).norm() / found.norm())
    return [str(s), f"{slow:.1f}", f"{fast:.2f}", f"{slow / fast:.1f}", f"{apart:.0e}"]


def accuracy_table() -> Table:
    """float32 against the float64 truth for v = Gᵀc, over the damping."""
    title = "Relative error in float32, v = Gᵀc, m = 512, d = 20,000, rows sharing a direction"
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 20_000, generator=generator) + 0.1 * torch.randn(
        512, 20_000, generator=generator
    )
    gram, c = rows.double() @ rows.double().mT / 512, torch.randn(512, generator=generator)
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    cells = []
    for exponent in (-1, -3, -5, -7):
        damping = largest * 10.0**exponent
        truth = rows.double().mT @ torch.linalg.solve(
            gram + damping * torch.eye(512, dtype=torch.float64), c.double()
        )
        fisher = LowRank(rows, damping)
        errors = (fisher.solve((rows.double().mT @ c.double()).float()), fisher.solve_range(c))
        cells.append(
            [
                f"1e{exponent}",
                *(f"{float((e.double() - truth).norm() / truth.norm()):.0e}" for e in errors),
            ]
        )
    return table(title, ("damping / λmax", "subtractive", "range form"), cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller counts and blocks: half a minute"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    counts, sizes = ([64, 256], [50]) if arguments.quick else ([256, 1024], [50, 500, 2048])
    console = Console(width=120)
    rate, sample = matmul_rate(), 50
    console.print(
        f"float32 product: {rate / 1e9:.0f} GFLOP/s, {arguments.threads} threads, d = {DIMENSION:,}"
    )
    columns = (
        "m",
        "rival s",
        "ours s",
        "times faster",
        "share of the product's rate",
        "difference",
    )
    console.print(
        table(
            "LowRank: set-up, inverse diagonal, one product",
            columns,
            [low_rank_row(m, rate) for m in counts],
        )
    )
    columns = (
        "m",
        "copy GB/s",
        "solve s",
        "copy s",
        "ratio",
        "two sums s",
        "ratio",
        "range form s",
        "half copy s",
        "ratio",
    )
    console.print(
        table("solve, against reads at the copy rate", columns, [solve_row(m) for m in counts])
    )
    title = f"WoodFisher blocks, m = 1000 (rival: {sample} gradients timed, scaled to 1000)"
    columns = ("s", "rival s", "ours s", "times faster", "difference")
    console.print(table(title, columns, [block_row(s, 1000, sample) for s in sizes]))
    console.print(accuracy_table())


if __name__ == "__main__":
    main()
