"""Tables and the page of what a pruned network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from woodbury.reporting.grid import MISSING, Grid, Mark, percent
from woodbury.reporting.page import Code, Figure, Page, Section, section
from woodbury.reporting.pages import folded
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
            f"({percent(self.share_of_weights, 1)}); {percent(self.share_of_flops, 1)} of the "
            "FLOPs are left, which a kernel gains from only where it skips zeros."
        )

    @property
    def share_of_weights(self) -> float:
        """Of the weights, those that are not zero."""
        return self.weights / max(1, self.weights_before)

    @property
    def share_of_flops(self) -> float:
        """Of the FLOPs, those of weights that are not zero."""
        return self.flops / max(1.0, self.flops_before)


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


def batch_table(ways: Sequence[Speed], size: int) -> Grid:
    """Ways × milliseconds, with bars, for one size of batch.

    Args:
        ways: The dense model in eager mode first.
        size: Samples of the batch.
    """
    dense = ways[0].seconds
    longest = max((way.seconds for way in ways if way.seconds is not None), default=0.0)
    rows = []
    marks: list[Mark | None] = []
    best = set()
    for row, way in enumerate(ways):
        if way.seconds is None or not dense or not longest:
            rows.append((way.way, MISSING, MISSING))
            marks.append(None)
            continue
        milliseconds, ratio = f"{1000 * way.seconds:.2f}", f"{dense / way.seconds:.2f} ×"
        rows.append((way.way, milliseconds, ratio))
        marks.append(Mark(0.0, way.seconds / longest, f"{way.way}: {milliseconds} ms, {ratio}"))
        if way.seconds == min(each.seconds for each in ways if each.seconds is not None):
            best |= {(row, column) for column in range(3)}
    notes = [f"{way.way}: {way.note}" for way in ways if way.note]
    return Grid(
        f"Batch of {size}",
        ("way", "milliseconds", "speed-up"),
        tuple(rows),
        best=frozenset(best),
        note=" ".join(["The median of runs in turns; shorter is faster.", *notes]),
        marks={1: marks},
    )


def fastest(ways: Sequence[Speed], size: int) -> Figure | None:
    """The fastest way at one size of batch; None where nothing was timed.

    Args:
        ways: The dense model in eager mode first.
        size: Samples of the batch.
    """
    dense = ways[0].seconds
    timed = [(way.seconds, way.way) for way in ways if way.seconds is not None]
    if dense is None or not timed:
        return None
    seconds, way = min(timed)
    return Figure(f"{dense / seconds:.2f} ×", f"torch's speed at batch {size}", way)


def speed_page(
    timed: Mapping[int, Sequence[Speed]],
    layers: Sequence[Sequence[LayerChoice]],
    left: Left,
    settings: Mapping[str, Any],
    codes: Sequence[Code],
) -> Page:
    """The page of `woodbury speed`.

    Args:
        timed: Samples of a batch -> its ways.
        layers: For each of them how the layers are computed.
        left: What is left of the network.
        settings: What was asked for.
        codes: What repeats the run.
    """
    figures = [fastest(ways, size) for size, ways in timed.items()]
    figures += [
        Figure(percent(left.share_of_weights, 1), "weights left", f"of {left.weights_before:,}"),
        Figure(percent(left.share_of_flops, 1), "FLOPs left", "no saving by themselves"),
    ]
    sections = [section(batch_table(ways, size)) for size, ways in timed.items()]
    sections.append(Section("Use it again", tuple(codes)))
    details = [layers_table(each, size) for each, size in zip(layers, timed, strict=True)]
    shown = [figure for figure in figures if figure is not None]
    threads = f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"
    lead = f"{settings['model']}, timed on this CPU by {threads}. {left}"
    details += folded(settings)
    return Page("Speed of a pruned network", lead, shown, sections, details)


def layers_table(layers: Sequence[LayerChoice], size: int) -> Grid:
    """Layers × what each takes.

    Args:
        layers: How they are computed.
        size: Samples of the batch.
    """
    rows = []
    keys = []
    for layer in layers:
        known = [choice for choice in layer.choices if choice.tiling]
        total = 1
        for length in layer.shape:
            total *= length
        zeros = percent(share := 1 - layer.nonzeros / max(1, total), 1)
        if known:
            best = known[-1]
            times = [f"{1000 * best.dense_seconds:.3f}", f"{1000 * best.sparse_seconds:.3f}"]
            rows.append((layer.name, zeros, *times, "sparse"))
            seconds = (best.dense_seconds, best.sparse_seconds)
            keys.append((layer.name, share, *seconds, "sparse"))
        else:
            rows.append((layer.name, zeros, MISSING, MISSING, f"dense: {layer.reason}"))
            keys.append((layer.name, share, None, None, "dense"))
    header = ("layer", "zeros", "ms dense", "ms sparse", "runs")
    return Grid(f"Layers at batch {size}", header, tuple(rows), keys=tuple(keys))
