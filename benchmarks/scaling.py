"""Pruning a model of 7 billion weights on many ranks, on paper: python benchmarks/scaling.py
[--check FILE]

What each rank of 80 GB holds, sends and computes in one step, for a Llama-like network of 32 blocks
of width 4,096 (6.5 billion weights in matrices, in half precision), 512 sequences of 2,048 tokens.
The rates are those of MACHINE, of a data sheet and not measured, as the project has no such
machine. The laws are those of the code: FILE, the output of benchmarks/ranks.py, checks the bytes
and the memory of 1, 2 and 4 ranks against them; what the last line holds beyond the law is taken
for all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from limits import table
from rich.console import Console

FLOAT = 4
WHOLE_VECTORS = 4
"""Of all weights, while rows are taken: the model's, those of the objective, a gradient by tensor
and in one piece (tests/pruning/test_step_over_ranks.py counts three beside the model)."""
WITHOUT_ROWS = 2
"""Of a method that takes no gradient rows."""
OWN_VECTORS = 8
"""Float32 vectors of a rank's own weights, while it steps: the nine of tests/pruning but one."""
MASKS = 2
"""Bytes for each weight, while the kept ones are gathered."""
SPARSITY = 0.5
MOST_RANKS = 10_000
RANKS = (8, 64, 256)


@dataclass(frozen=True)
class Machine:
    """Rates of one rank.

    Attributes:
        memory: Bytes.
        beside: Of them for torch and the activations of one sequence, 34 bytes for each of its
            numbers in the residual streams.
        half: FLOP/s of products in half precision that a training step reaches.
        single: FLOP/s of float32 products.
        network: Bytes/s that a rank sends to ranks of other machines.
    """

    memory: float = 80e9
    beside: float = 10e9
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
        element: Bytes of a weight.
    """

    width: int = 4096
    inner: int = 11_008
    blocks: int = 32
    tokens: int = 2048
    element: int = 2

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
    """What one rank takes: bytes, seconds."""

    method: str
    divided: float
    whole: float
    sent: float
    backward: float
    exchange: float
    algebra: float

    @property
    def held(self) -> float:
        """Bytes."""
        return self.divided + self.whole

    def at_peak(self, d: int, element: int, ranks: int) -> Cost:
        """The same at the end of the step, if more is held there than while rows are taken."""
        reached = (1 - SPARSITY) * element
        end = self._replace(
            divided=self.divided + OWN_VECTORS * FLOAT * d / ranks,
            whole=(WITHOUT_ROWS * element + reached + MASKS) * d,
        )
        return end if end.held > self.held else self


def costs(net: Network, ranks: int, samples: int, machine: Machine) -> Iterator[Cost]:
    """The methods on so many ranks."""
    d = net.d
    backward = 6 * d * net.tokens * samples / ranks / machine.half
    elsewhere = (ranks - 1) / ranks
    vectors = net.element * d
    gathered = sent_at_the_end(d, net.element, SPARSITY) * elsewhere
    rows = samples * vectors / ranks * elsewhere  # a rank's own rows, for their columns
    for method, held, algebra in (
        ("M-FAC, 512 rows in bfloat16", samples * d * 2 / ranks, 2 * samples**2 * d),
        ("WoodFisher, blocks of 128", 64 * d * FLOAT / ranks, (samples * 128 + 128**2) * d),
    ):
        sent = rows + gathered
        seconds = algebra / ranks / machine.single
        whole = WHOLE_VECTORS * vectors
        cost = Cost(method, held, whole, sent, backward, sent / machine.network, seconds)
        yield cost.at_peak(d, net.element, ranks)
    factors = FLOAT * net.squares
    positions = 64 * samples / ranks
    algebra = 2 * positions * net.squares + 10 * 2 * net.squares_by_rows / ranks
    sent = 2 * factors * elsewhere + gathered
    cost = Cost(
        "K-FAC by rows",
        factors / ranks,
        WITHOUT_ROWS * vectors + factors,
        sent,
        backward,
        sent / machine.network,
        algebra / machine.single,
    )
    yield cost.at_peak(d, net.element, ranks)


def fewest_ranks(net: Network, method: int, samples: int, machine: Machine) -> str:
    """How many ranks have room for a network, by one of the methods."""
    for ranks in range(1, MOST_RANKS):
        held = list(costs(net, ranks, samples, machine))[method].held
        if held <= machine.memory - machine.beside:
            return f"{ranks:,}"
    return "none"


def sent_at_the_end(d: int, element: int, sparsity: float) -> float:
    """Bytes of a mask and of the kept weights."""
    return d * (1 + element * (1 - sparsity))


def show(net: Network, samples: int, machine: Machine) -> None:
    """The table."""
    rows = []
    room = machine.memory - machine.beside
    for ranks in RANKS:
        for cost in costs(net, ranks, samples, machine):
            stages = {
                "backward passes": cost.backward,
                "network": cost.exchange,
                "algebra": cost.algebra,
            }
            bottleneck = "memory" if cost.held > room else max(stages, key=stages.__getitem__)
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
    """How many weights fit, and how many ranks NET takes."""
    rows = []
    room = machine.memory - machine.beside
    for ranks in RANKS:
        for method, cost in enumerate(costs(net, ranks, samples, machine)):
            rows.append(
                [
                    str(ranks),
                    cost.method,
                    f"{cost.held / net.d:,.1f}",
                    f"{net.d * room / cost.held / 1e9:,.2f}",
                    fewest_ranks(net, method, samples, machine),
                ]
            )
    columns = "ranks", "method", "bytes a weight", "most weights, billions", "ranks it takes"
    Console(width=140).print(table("What fits into a rank", columns, rows))


def check(file: Path, samples: int) -> None:
    """Measured memory and bytes of several ranks beside the law."""
    measured = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
    d = measured[0]["weights"]
    sparsity = 1 - measured[0]["kept"] / d

    def counted(ranks: int) -> float:
        """Rows and vectors; the model was there before."""
        return (samples / ranks + WHOLE_VECTORS - 1) * d * FLOAT

    def held(found: dict[str, float]) -> float:
        return found["peak_bytes"] - found["before_bytes"]

    rest = held(measured[-1]) - counted(measured[-1]["ranks"])
    rows = []
    for found in measured:
        ranks = found["ranks"]
        elsewhere = (ranks - 1) / ranks
        sent = samples * d * FLOAT / ranks + sent_at_the_end(d, FLOAT, sparsity)
        rows.append(
            [
                str(ranks),
                f"{held(found) / 1e6:,.0f}",
                f"{(counted(ranks) + rest) / 1e6:,.0f}" if ranks > 1 else "–",
                f"{found['sent_bytes'] / 1e6:,.0f}",
                f"{sent * elsewhere / 1e6:,.0f}",
            ]
        )
    columns = "ranks", "held, MB", "by the law", "sent, MB", "by the law"
    title = f"{d:,} weights, {samples} rows, {rest / 1e6:.0f} MB are not counted"
    Console().print(table(title, columns, rows))


def main() -> None:
    """Print the table, or the check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=Path, help="the output of benchmarks/ranks.py")
    parser.add_argument("--samples", type=int, default=512, help="rows; those of FILE")
    parser.add_argument("--element", type=int, default=2, help="bytes of a weight: 2, 4")
    asked = parser.parse_args()
    if asked.check is not None:
        check(asked.check, asked.samples)
        return
    net = Network(element=asked.element)
    show(net, asked.samples, Machine())
    show_most(net, asked.samples, Machine())


if __name__ == "__main__":
    main()
