"""Tables of what a pruned network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from woodbury.reporting.tables import MISSING, Grid, percent
from woodbury.runtime.api import LayerChoice
from woodbury.runtime.speeds import Speed


@dataclass(frozen=True)
class Left:
    """What pruning has left of a network.

    Attributes:
        weights: That are not zero.
        weights_before: All.
        flops: Of those weights, per sample.
        flops_before: Of all.
    """

    weights: int
    weights_before: int
    flops: float
    flops_before: float

    def __str__(self) -> str:
        """One sentence."""
        return (
            f"{self.weights:,} of {self.weights_before:,} weights are not zero "
            f"({percent(self.weights / max(1, self.weights_before))}), and "
            f"{percent(self.flops / max(1.0, self.flops_before))} of the FLOPs are left."
        )


def speeds_table(timed: Mapping[int, Sequence[Speed]], left: Left) -> Grid:
    """Ways × batches: milliseconds, and how many times as fast as the first way.

    Args:
        timed: Samples of a batch -> its ways; the same ways for each.
        left: What is left of the network.
    """
    ways = [speed.way for speed in next(iter(timed.values()))]
    header = ["way"]
    cells: list[list[str]] = [[way] for way in ways]
    notes = [str(left)]
    for size, each in timed.items():
        header += [f"ms, batch {size}", "ratio"]
        dense = each[0].seconds
        for row, speed in zip(cells, each, strict=True):
            if speed.seconds is None or dense is None:
                row += [MISSING, MISSING]
                notes.append(f"{speed.way}: {speed.note}")
            else:
                row += [f"{1000 * speed.seconds:.2f}", f"{dense / speed.seconds:.2f}"]
    return Grid(
        "Time of a batch, median of runs in turns",
        tuple(header),
        tuple(map(tuple, cells)),
        note=" ".join(dict.fromkeys(notes)),
    )


def layers_table(layers: Sequence[LayerChoice], size: int) -> Grid:
    """Layers × what each takes.

    Args:
        layers: How they are computed.
        size: Samples of the batch.
    """
    rows = []
    for layer in layers:
        known = [choice for choice in layer.choices if choice.tiling]
        total = 1
        for length in layer.shape:
            total *= length
        zeros = percent(1 - layer.nonzeros / max(1, total))
        if known:
            best = known[-1]
            times = [f"{1000 * best.dense_seconds:.3f}", f"{1000 * best.sparse_seconds:.3f}"]
            rows.append((layer.name, zeros, *times, "sparse"))
        else:
            rows.append((layer.name, zeros, MISSING, MISSING, f"dense: {layer.reason}"))
    header = ("layer", "zeros", "ms dense", "ms sparse", "runs")
    return Grid(f"Layers at batch {size}", header, tuple(rows))
