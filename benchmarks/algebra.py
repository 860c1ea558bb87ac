"""The algebra against the papers' recursions and against the machine: python benchmarks/algebra.py [--quick]

LowRank (set-up, inverse diagonal, one product) against M-FAC's sequential recursion over the rows; WoodFisher blocks
against one rank-one update of all blocks per gradient; `solve` against two reads of the rows at the copy rate. Both
rivals are the papers' algorithms in plain torch, as fast as their order of computation lets them be.
"""

from __future__ import annotations

import argparse
import math

import torch
from limits import copy_rate, matmul_rate, seconds
from rich.console import Console
from rich.table import Table
from torch import Tensor

from woodbury.fisher.blocks import dense_blocks
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


def low_rank_table(console: Console, counts: list[int]) -> None:
    table = Table("m", "rival s", "ours s", "times faster", "share of the matmul rate", "difference", title="LowRank")
    rate = matmul_rate()
    for m in counts:
        generator = torch.Generator().manual_seed(m)
        rows, v = torch.randn(m, DIMENSION, generator=generator), torch.randn(DIMENSION, generator=generator)
        fast, slow = seconds(lambda: ours(rows, DAMPING, v)), seconds(lambda: recursion(rows, DAMPING, v), 1)
        (d1, p1), (d2, p2) = ours(rows, DAMPING, v), recursion(rows, DAMPING, v)
        apart = max(float((d1 - d2).norm() / d2.norm()), float((p1 - p2).norm() / p2.norm()))
        share = 2 * m**2 * DIMENSION / fast / rate  # multiplications and additions of both triangles, all that is needed
        table.add_row(str(m), f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.1f}", f"{share:.0%}", f"{apart:.0e}")
        del rows
    console.print(f"float32 matrix product: {rate / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads, d = {DIMENSION:,}")
    console.print(table)


def solve_table(console: Console, counts: list[int]) -> None:
    table = Table("m", "copy GB/s", "solve s", "two reads s", "ratio", "range form s", "one read s", title="solve")
    for m in counts:
        rows, v = torch.randn(m, DIMENSION), torch.randn(DIMENSION)
        fisher, c = LowRank(rows, DAMPING), torch.randn(m)
        fisher.solve(v)
        rate, solve, in_range = copy_rate(rows), seconds(lambda: fisher.solve(v), 7), seconds(lambda: fisher.solve_range(c), 7)
        read = rows.numel() * rows.element_size() / rate
        cells = (f"{rate / 1e9:.1f}", f"{solve:.4f}", f"{2 * read:.4f}", f"{solve / (2 * read):.2f}")
        table.add_row(str(m), *cells, f"{in_range:.4f}", f"{read:.4f}")
        del rows, fisher
    console.print(table)


def block_table(console: Console, sizes: list[int], m: int, sample: int) -> None:
    """The rival's cost per gradient is the same for each, so it is timed on `sample` of the m gradients and scaled."""
    title = f"WoodFisher blocks, m = {m} (rival: {sample} gradients timed, scaled to {m})"
    table = Table("s", "rival s", "ours s", "times faster", "difference", title=title)
    for s in sizes:
        b = DIMENSION // s
        rows = torch.randn(m, b * s, generator=torch.Generator().manual_seed(s))
        fast = seconds(lambda: dense_blocks(rows, (s,) * b, DAMPING).inverse_diagonal(), 1)
        inverse = (torch.eye(s) / DAMPING).repeat(b, 1, 1)
        slow = seconds(lambda: rank_one_blocks(rows[:sample], s, DAMPING, inverse), 1) * m / sample
        del inverse
        few = torch.randn(m, 2 * s)
        inverse = (torch.eye(s) / DAMPING).repeat(2, 1, 1)
        rank_one_blocks(few, s, DAMPING, inverse)
        found, truth = dense_blocks(few, (s, s), DAMPING).inverse_diagonal(), inverse.diagonal(dim1=1, dim2=2).flatten()
        apart = float((found - truth).norm() / found.norm())
        table.add_row(str(s), f"{slow:.1f}", f"{fast:.2f}", f"{slow / fast:.1f}", f"{apart:.0e}")
        del rows, inverse
    console.print(table)


def accuracy_table(console: Console) -> None:
    """float32 against the float64 truth for v = Gᵀc, over the damping."""
    title = "Relative error in float32, v = Gᵀc, m = 512, d = 20,000, rows sharing a direction"
    table = Table("damping / λmax", "subtractive", "range form", title=title)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 20_000, generator=generator) + 0.1 * torch.randn(512, 20_000, generator=generator)
    gram, c = rows.double() @ rows.double().mT / 512, torch.randn(512, generator=generator)
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    for exponent in (-1, -3, -5, -7):
        damping = largest * 10.0**exponent
        truth = rows.double().mT @ torch.linalg.solve(gram + damping * torch.eye(512, dtype=torch.float64), c.double())
        fisher = LowRank(rows, damping)
        errors = (fisher.solve((rows.double().mT @ c.double()).float()), fisher.solve_range(c))
        table.add_row(f"1e{exponent}", *(f"{float((e.double() - truth).norm() / truth.norm()):.0e}" for e in errors))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller counts and blocks: half a minute")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    counts, sizes = ([64, 256], [50]) if arguments.quick else ([256, 1024], [50, 500, 2048])
    console = Console(width=120)
    low_rank_table(console, counts)
    solve_table(console, counts)
    block_table(console, sizes, m=1000, sample=math.ceil(1000 / 20))
    accuracy_table(console)


if __name__ == "__main__":
    main()
