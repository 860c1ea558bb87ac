"""Pictures: PNGs in a light and a dark version, by matplotlib, which is optional."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from woodbury.errors import WoodburyError
from woodbury.evaluation.comparison import Result, Summary, summary
from woodbury.reporting.per_layer import TensorSummary
from woodbury.reporting.tables import percent

# Okabe and Ito's colours, told apart by every kind of colour vision; the last stands out on light and on dark ground
COLOURS = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")


MARKERS = "osD^vPX*"


class NoMatplotlib(WoodburyError):
    """matplotlib is missing."""


def require_matplotlib() -> None:
    """Raises NoMatplotlib where it is missing: call it before the work that ends in a picture."""
    try:
        import matplotlib as matplotlib
    except ImportError as error:
        raise NoMatplotlib("The picture needs matplotlib: pip install 'woodbury[demo]'.") from error


def accuracies(
    results: Sequence[Result],
    *,
    dense: float | None = None,
    measure: str = "accuracy",
    dark: bool = False,
) -> bytes:
    """Accuracy over sparsity with the spread as bars, the kept fraction on a logarithmic axis, as a PNG.

    Raises WoodburyError where matplotlib is missing.
    """
    sheet = _Sheet.of(dark)
    (axes,) = sheet.axes
    ends, cells = [], summary(results)
    for name, colour, marker in _styles(cells):
        line = sorted(
            (cell for cell in cells if cell.method == name), key=lambda cell: cell.sparsity
        )
        x, y = [kept_axis(cell.sparsity) for cell in line], [100 * cell.accuracy for cell in line]
        spread = [100 * cell.spread for cell in line]
        axes.errorbar(
            x, y, spread, color=colour, marker=marker, ms=5, lw=1.8, capsize=2.5, elinewidth=1
        )
        ends.append((y[-1], name, colour))
    if dense is not None:
        axes.axhline(100 * dense, color=sheet.ink, lw=0.8, ls=(0, (4, 4)), zorder=0)
        ends.append((100 * dense, f"dense {100 * dense:.1f}", sheet.ink))
    axes.margins(x=0.03)
    _label_ends(axes, ends)
    ticks = sorted({cell.sparsity for cell in cells})
    axes.set_xticks(
        [kept_axis(sparsity) for sparsity in ticks], [percent(sparsity) for sparsity in ticks]
    )
    axes.set_title(f"{measure.capitalize()} in %", loc="left", color=sheet.ink, fontsize=11)
    axes.set_xlabel("sparsity (logarithmic in the weights that stay)", color=sheet.ink)
    axes.grid(axis="y", color=sheet.faint, lw=0.8)
    return sheet.png()


def predictions(results: Sequence[Result], *, dark: bool = False) -> bytes | None:
    """The measured increase of the loss over the predicted one, both logarithmic, as a PNG; None if none is above 0.

    Points on the dashed line were foretold. Raises WoodburyError where matplotlib is missing.
    """
    sheet = _Sheet.of(dark)
    (axes,) = sheet.axes
    cells = [cell for cell in summary(results) if (cell.predicted or 0) > 0 and cell.measured > 0]
    if not cells:
        return None
    for name, colour, marker in _styles(summary(results)):
        own = [cell for cell in cells if cell.method == name]
        axes.plot(
            [c.predicted for c in own],
            [c.measured for c in own],
            marker,
            color=colour,
            ms=6,
            label=name if own else None,
        )
    values = [value for cell in cells for value in (cell.predicted or 0, cell.measured)]
    axes.plot(
        [min(values), max(values)],
        [min(values), max(values)],
        color=sheet.ink,
        lw=0.8,
        ls=(0, (4, 4)),
        zorder=0,
    )
    axes.set(xscale="log", yscale="log")
    axes.set_title("Measured increase of the loss", loc="left", color=sheet.ink, fontsize=11)
    axes.set_xlabel("predicted increase (dashed: as predicted)", color=sheet.ink)
    axes.grid(color=sheet.faint, lw=0.8)
    axes.legend(frameon=False, labelcolor="linecolor", fontsize=9.5)
    return sheet.png()


def layers(rows: Sequence[TensorSummary], *, dark: bool = False) -> bytes:
    """What stays of each tensor, and where its saliencies lay (10 to 90 %, a dot at the median), as a PNG.

    Raises WoodburyError where matplotlib is missing.
    """
    scored = any(row.saliencies and row.saliencies[-1] > 0 for row in rows)
    sheet = _Sheet.of(dark, panels=1 + scored, height=1.2 + 0.24 * len(rows))
    names, places = [row.name for row in rows], range(len(rows))
    kept = sheet.axes[0]
    kept.barh(places, [100 * row.kept / row.weights for row in rows], color=COLOURS[2], height=0.7)
    kept.set(xlim=(0, 100))
    kept.set_yticks(places, names, fontsize=8)
    kept.set_title("Weights that stay in %", loc="left", color=sheet.ink, fontsize=11)
    if scored:
        score = sheet.axes[1]
        shown = _positive([row.saliencies for row in rows])
        score.hlines(
            [at for at, _ in shown],
            [s[0] for _, s in shown],
            [s[-1] for _, s in shown],
            color=COLOURS[4],
            lw=2,
        )
        score.plot(
            [s[len(s) // 2] for _, s in shown], [at for at, _ in shown], "o", color=COLOURS[4], ms=4
        )
        score.set(xscale="log", ylim=kept.get_ylim())
        score.set_yticks(places, [])
        score.set_title("Saliency, 10 to 90 %", loc="left", color=sheet.ink, fontsize=11)
        score.invert_yaxis()
    kept.invert_yaxis()
    for axes in sheet.axes:
        axes.grid(axis="x", color=sheet.faint, lw=0.8)
    return sheet.png()


def _positive(saliencies: Sequence[Sequence[float]]) -> list[tuple[int, list[float]]]:
    """(row, quantiles) of those that are not all zero, for a logarithmic axis: zeros a tenth of the least that is none."""
    least = min(value for row in saliencies for value in row if value > 0) / 10
    return [
        (at, [max(value, least) for value in row])
        for at, row in enumerate(saliencies)
        if row and row[-1] > 0
    ]


@dataclass(frozen=True)
class _Sheet:
    """A figure with one or more panels in the colours of its ground."""

    figure: Any
    axes: tuple[Any, ...]
    ink: str
    faint: str

    @classmethod
    def of(cls, dark: bool, *, panels: int = 1, height: float = 4.6) -> _Sheet:
        require_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        ink, faint, ground = (
            ("#e8e8e8", "#3a3d42", "#16181c") if dark else ("#222222", "#e3e3e3", "#ffffff")
        )
        figure = Figure(figsize=(7.4, height), dpi=180, facecolor=ground, layout="constrained")
        FigureCanvasAgg(figure)
        axes = tuple(
            figure.add_subplot(1, panels, 1 + index, facecolor=ground) for index in range(panels)
        )
        for one in axes:
            one.tick_params(colors=ink, length=0, which="both")
            one.set_axisbelow(True)
            for side in one.spines.values():
                side.set_visible(False)
        return cls(figure, axes, ink, faint)

    def png(self) -> bytes:
        png = io.BytesIO()
        self.figure.savefig(png, format="png", facecolor=self.figure.get_facecolor())
        return png.getvalue()


def _styles(cells: Sequence[Summary]) -> list[tuple[str, str, str]]:
    """Each method with its colour and its marker, the same in every picture."""
    names = dict.fromkeys(cell.method for cell in cells)
    return [
        (name, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
    ]


def kept_axis(sparsity: float) -> float:
    """Where a sparsity stands on the picture: −log₁₀ of the kept fraction, which opens up the crowd near 1."""
    return -math.log10(1 - sparsity)


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names of the lines at their right ends, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    heights = spread_out([y for y, _, _ in ends], 0.062 * (high - low))
    for height, (_, name, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            name,
            (1, height),
            (3, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9.5,
            fontweight="bold",
            annotation_clip=False,
        )


def spread_out(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved as little as need be for neighbours to be `gap` apart: each crowd is centred on its mean."""
    order = sorted(range(len(values)), key=values.__getitem__)
    crowds: list[list[int]] = []

    def start(crowd: list[int]) -> float:
        return sum(values[i] for i in crowd) / len(crowd) - gap * (len(crowd) - 1) / 2

    for index in order:
        crowds.append([index])
        while len(crowds) > 1 and start(crowds[-2]) + gap * len(crowds[-2]) > start(crowds[-1]):
            crowds[-2:] = [crowds[-2] + crowds[-1]]
    places = {
        index: start(crowd) + gap * rank for crowd in crowds for rank, index in enumerate(crowd)
    }
    return [places[index] for index in range(len(values))]
