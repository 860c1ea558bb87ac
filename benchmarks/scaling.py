"""Pruning a model of 7 billion weights on many ranks, on paper: python benchmarks/scaling.py
[--check FILE]

What each rank of 80 GB holds, sends and computes in one step, for a Llama-like network of 32 blocks
of width 4,096 (6.5 billion weights in matrices), 512 sequences of 2,048 tokens. The rates are those
of MACHINE, of a data sheet and not measured, as the project has no such machine. The laws are those
of the code: FILE, the output of benchmarks/ranks.py, checks the bytes and the memory of 1, 2 and 4
ranks against them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

from limits import table
from rich.console import Console

FLOAT = 4
WHOLE_VECTORS = 9
"""Float32 vectors of all weights at the peak of an M-FAC step (tests/pruning)."""
GATHERED = 3
"""Vectors of all weights that a step gathers; 2.8 were counted, with masks of a byte each."""
RANKS = (8, 64, 256)


@dataclass(frozen=True)
class Machine:
    """Rates of one rank.

    Attributes:
        memory: Bytes.
        half: FLOP/s of products in half precision that a training step reaches.
        single: FLOP/s of float32 products.
        network: Bytes/s that a rank sends to ranks of other machines.
    """

    memory: float = 80e9
    half: float = 400e12
    single: float = 45e12
    network: float = 40e9


@dataclass(frozen=True)
class Network:
    """A transformer.

    Attributes:
        width: Of the residual stream.
        inner: Of the perceptrons.
        blocks: How many.
        tokens: Of a sequence.
    """

    width: int = 4096
    inner: int = 11_008
    blocks: int = 32
    tokens: int = 2048

    @property
    def d(self) -> int:
        """Weights in matrices."""
        return self.blocks * (4 * self.width**2 + 3 * self.width * self.inner)

    @property
    def squares(self) -> int:
        """Σ i² over the matrices, i their inputs."""
        return self.blocks * (6 * self.width**2 + self.inner**2)

    @property
    def squares_by_rows(self) -> int:
        """Σ o·i² over the matrices, o their outputs."""
        attention = 4 * self.width * self.width**2
        perceptron = 2 * self.inner * self.width**2 + self.width * self.inner**2
        return self.blocks * (attention + perceptron)


class Cost(NamedTuple):
    """What one rank takes."""

    method: str
    divided: float
    whole: float
    sent: float
    backward: float
    exchange: float
    algebra: float


def costs(net: Network, ranks: int, samples: int, machine: Machine) -> Iterator[Cost]:
    """The methods on so many ranks."""
    d = net.d
    backward = 6 * d * net.tokens * samples / ranks / machine.half
    elsewhere = (ranks - 1) / ranks
    vectors = WHOLE_VECTORS * FLOAT * d
    gathered = GATHERED * FLOAT * d * elsewhere
    rows = samples * d * FLOAT / ranks * elsewhere  # a rank's own rows, for their columns
    for method, held, algebra in (
        ("M-FAC, 512 rows in bfloat16", samples * d * 2 / ranks, 2 * samples**2 * d),
        ("WoodFisher, blocks of 128", 64 * d * FLOAT / ranks, (samples * 128 + 128**2) * d),
    ):
        sent = rows + gathered
        seconds = algebra / ranks / machine.single
        yield Cost(method, held, vectors, sent, backward, sent / machine.network, seconds)
    factors = FLOAT * net.squares
    positions = 64 * samples / ranks
    algebra = 2 * positions * net.squares + 10 * 2 * net.squares_by_rows / ranks
    sent = 2 * factors * elsewhere + gathered
    yield Cost(
        "K-FAC by rows",
        factors / ranks,
        vectors + factors,
        sent,
        backward,
        sent / machine.network,
        algebra / machine.single,
    )


def show(net: Network, samples: int, machine: Machine) -> None:
    """The table."""
    rows = []
    for ranks in RANKS:
        for cost in costs(net, ranks, samples, machine):
            held = cost.divided + cost.whole
            stages = {
                "backward passes": cost.backward,
                "network": cost.exchange,
                "algebra": cost.algebra,
            }
            bottleneck = "memory" if held > machine.memory else max(stages, key=stages.__getitem__)
            rows.append(
                [
                    str(ranks),
                    cost.method,
                    f"{cost.divided / 1e9:,.1f}",
                    f"{cost.whole / 1e9:,.0f}",
                    f"{cost.sent / 1e9:,.0f}",
                    f"{cost.backward:,.0f}",
                    f"{cost.exchange:,.0f}",
                    f"{cost.algebra:,.1f}",
                    bottleneck,
                ]
            )
    columns = (
        "ranks",
        "method",
        "divided, GB",
        "whole, GB",
        "sent, GB",
        "backward, s",
        "network, s",
        "algebra, s",
        "bottleneck",
    )
    title = f"{net.d / 1e9:.2f} billion weights, {samples} sequences of {net.tokens} tokens"
    Console(width=140).print(table(title, columns, rows))


def show_most(net: Network, samples: int, machine: Machine) -> None:
    """How many weights fit, and how many ranks NET takes if its vectors were divided too."""
    rows = []
    for ranks in RANKS:
        for cost in costs(net, ranks, samples, machine):
            held = cost.divided + cost.whole
            all_divided = cost.divided * ranks + cost.whole
            rows.append(
                [
                    str(ranks),
                    cost.method,
                    f"{held / net.d:,.0f}",
                    f"{net.d * machine.memory / held / 1e9:,.2f}",
                    f"{ceil(all_divided / machine.memory):,}",
                ]
            )
    columns = "ranks", "method", "bytes a weight", "most weights, billions", "ranks, all divided"
    Console(width=140).print(table("What fits into a rank", columns, rows))


def check(file: Path, samples: int) -> None:
    """Measured memory and bytes of 1, 2, 4 ranks beside the law."""
    measured = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
    d = measured[0]["weights"]
    alone = measured[0]
    rest = alone["peak_bytes"] - alone["before_bytes"] - samples * d * FLOAT
    rows = []
    for found in measured:
        ranks = found["ranks"]
        elsewhere = (ranks - 1) / ranks
        sent = (samples * d * FLOAT / ranks + GATHERED * FLOAT * d) * elsewhere
        held = samples * d * FLOAT / ranks + rest
        rows.append(
            [
                str(ranks),
                f"{(found['peak_bytes'] - found['before_bytes']) / 1e6:,.0f}",
                f"{held / 1e6:,.0f}",
                f"{found['sent_bytes'] / 1e6:,.0f}",
                f"{sent / 1e6:,.0f}",
            ]
        )
    columns = "ranks", "held, MB", "by the law", "sent, MB", "by the law"
    Console().print(table(f"{d:,} weights, {samples} rows", columns, rows))


def main() -> None:
    """Print the table, or the check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=Path, help="the output of benchmarks/ranks.py")
    parser.add_argument("--samples", type=int, default=512, help="rows; those of FILE")
    asked = parser.parse_args()
    if asked.check is not None:
        check(asked.check, asked.samples)
        return
    show(Network(), asked.samples, Machine())
    show_most(Network(), asked.samples, Machine())


if __name__ == "__main__":
    main()
