"""What the plots share: a figure in light or dark colours, styles of the methods, labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from woodbury.errors import MissingDependency

COLOURS = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
"""Okabe and Ito's colours: distinct in every kind of colour vision, on light and dark ground."""
MARKERS = "osD^vPX*"
DASHES = (0, (4, 4))
"""The line style of references: 4 points drawn, 4 left out."""
LABEL_HEIGHT = 0.062
"""The least distance of two labels, as a fraction of the axis."""


def require_matplotlib() -> None:
    """Check that matplotlib is installed: call it before the work that ends in a picture.

    Raises:
        MissingDependency: If it is not.
    """
    try:
        import matplotlib as matplotlib
    except ImportError as error:
        raise MissingDependency(
            "The picture needs matplotlib: pip install 'woodbury[demo]'."
        ) from error


class Palette(NamedTuple):
    """The colours of a sheet."""

    ink: str
    faint: str
    ground: str


LIGHT = Palette(ink="#222222", faint="#e3e3e3", ground="#ffffff")
DARK = Palette(ink="#e8e8e8", faint="#3a3d42", ground="#16181c")


@dataclass(frozen=True)
class Sheet:
    """A matplotlib figure with one or more panels side by side.

    Attributes:
        figure: The `matplotlib.figure.Figure`.
        axes: Its panels.
        palette: Its colours.
    """

    figure: Any
    axes: tuple[Any, ...]
    palette: Palette

    @classmethod
    def of(cls, dark: bool, *, panels: int = 1, height: float = 4.6) -> Sheet:
        """An empty sheet, without any global state of matplotlib.

        Args:
            dark: For a dark page.
            panels: How many.
            height: In inches; the width is 7.4.

        Raises:
            MissingDependency: If matplotlib is not installed.
        """
        require_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        palette = DARK if dark else LIGHT
        figure = Figure(
            figsize=(7.4, height), dpi=180, facecolor=palette.ground, layout="constrained"
        )
        FigureCanvasAgg(figure)
        axes = tuple(
            figure.add_subplot(1, panels, 1 + index, facecolor=palette.ground)
            for index in range(panels)
        )
        for panel in axes:
            panel.tick_params(colors=palette.ink, length=0, which="both")
            panel.set_axisbelow(True)
            for side in panel.spines.values():
                side.set_visible(False)
        return cls(figure, axes, palette)

    def label(self, panel: Any, title: str, x: str = "") -> None:
        """Set the title of a panel, and what its x-axis shows."""
        panel.set_title(title, loc="left", color=self.palette.ink, fontsize=11)
        if x:
            panel.set_xlabel(x, color=self.palette.ink)

    def png(self) -> bytes:
        """The sheet as a PNG."""
        png = io.BytesIO()
        self.figure.savefig(png, format="png", facecolor=self.figure.get_facecolor())
        return png.getvalue()


class Style(NamedTuple):
    """A method's colour and marker, the same in every plot."""

    method: str
    colour: str
    marker: str


def styles(methods: Sequence[str]) -> list[Style]:
    """A style for each method, in the order of first appearance.

    Args:
        methods: Names, which may be repeated.
    """
    return [
        Style(name, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        for index, name in enumerate(dict.fromkeys(methods))
    ]


class Label(NamedTuple):
    """A word at the right end of a line."""

    height: float
    text: str
    colour: str


def label_ends(panel: Any, labels: Sequence[Label]) -> None:
    """Write the names of lines at their right ends, moved apart where they would touch.

    Args:
        panel: The matplotlib axes, with their final limits.
        labels: The names, at the last values of their lines.
    """
    low, high = panel.get_ylim()
    heights = spread_out([label.height for label in labels], LABEL_HEIGHT * (high - low))
    for height, label in zip(heights, labels, strict=True):
        panel.annotate(
            label.text,
            (1, height),
            (3, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=label.colour,
            fontsize=9.5,
            fontweight="bold",
            annotation_clip=False,
        )


def spread_out(values: Sequence[float], gap: float) -> list[float]:
    """Move values apart as little as needed for neighbours to be `gap` apart.

    Values that would touch form a crowd, which is centred on its mean.

    Args:
        values: In any order.
        gap: The least distance of two neighbours.

    Returns:
        The places, in the order of the values.

    Example:
        >>> spread_out([10.0, 10.0, 50.0], gap=4.0)
        [8.0, 12.0, 50.0]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    crowds: list[list[int]] = []

    def start(crowd: list[int]) -> float:
        mean = sum(values[index] for index in crowd) / len(crowd)
        return mean - gap * (len(crowd) - 1) / 2

    for index in order:
        crowds.append([index])
        # A crowd that has grown may now touch the one below it.
        while len(crowds) > 1 and start(crowds[-2]) + gap * len(crowds[-2]) > start(crowds[-1]):
            crowds[-2:] = [crowds[-2] + crowds[-1]]
    places = {
        index: start(crowd) + gap * position
        for crowd in crowds
        for position, index in enumerate(crowd)
    }
    return [places[index] for index in range(len(values))]
