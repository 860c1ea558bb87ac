"""A table as text, for the terminal and for the page, and the numbers in it as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

MISSING = "–"
"""The cell of a number that there is none of."""
UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))
MINUS = "−"
"""As wide as a plus."""
LEAST_NAME = 20
"""Characters of a name that a terminal shows at least."""
LAYER_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A part of a name that is a number, between dots."""
MOST_DECIMALS = 6
"""Decimals of a column at most."""
SMALL = 1e-4
"""A column whose largest number is smaller is written with exponents."""


@dataclass(frozen=True)
class Mark:
    """A drawing in a cell of the page: a bar, or a range with a dot, as shares of the cell's width.

    Attributes:
        start: Where it begins, from 0 to 1.
        end: Where it ends.
        words: What it shows.
        dot: Where its dot is; None for a bar.
    """

    start: float
    end: float
    words: str
    dot: float | None = None


@dataclass(frozen=True)
class Name:
    """A name in a terminal, without its middle where the column is too narrow for it.

    Attributes:
        text: The name.
        ending: How all names of the column end, which is left out first: it tells none of them
            from the others.
    """

    text: str
    ending: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The name as wide as there is room."""
        width = options.max_width
        text = self.text if len(self.text) <= width else self.text.removesuffix(self.ending)
        yield Text(without_middle(text, width), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """How wide it is, and how wide it must be at least."""
        width = len(self.text)
        return Measurement(min(width, LEAST_NAME), width).with_maximum(options.max_width)


def without_middle(name: str, width: int) -> str:
    """A name that is as long as there is room.

    Args:
        name: Of a parameter. Its ends and the numbers of its layers say most.
        width: Characters at most.

    Returns:
        The name, or its ends and the numbers between them, with "…" for what is left out.

    Example:
        >>> without_middle("encoder.layer.11.output.dense.weight", 24)
        'encode…11…t.dense.weight'
    """
    if len(name) <= width:
        return name
    middle = "…"
    for _ in range(2):  # with the numbers the ends are shorter, and may hide another number
        room = max(0, width - len(middle))
        before, after = room // 3, room - room // 3
        hidden = [
            each[0]
            for each in LAYER_NUMBER.finditer(name)
            if each.end() > before and each.start() < len(name) - after
        ]
        middle = f"…{'.'.join(hidden)}…" if hidden else "…"
    room = width - len(middle)
    if room < 2 * len(middle):
        middle, room = "…", max(0, width - 1)
    before, after = room // 3, room - room // 3
    return f"{name[:before].rstrip('.')}{middle}{name[len(name) - after :].lstrip('.')}"


def common_ending(names: Sequence[str]) -> str:
    """The last part of all names, from a dot on; empty where they differ in it.

    Example:
        >>> common_ending(["query.weight", "key.weight"]), common_ending(["a.weight", "a.bias"])
        ('.weight', '')
    """
    endings = {"".join(name.rpartition(".")[1:]) for name in names}
    (ending, *others) = endings or {""}
    return ending if ending.startswith(".") and not others and len(names) > 1 else ""


@dataclass(frozen=True)
class Grid:
    """A table as text. `rich` prints it; `woodbury.reporting.page` puts it on a page.

    Attributes:
        title: What it shows.
        header: The names of the columns.
        cells: The rows, each as long as the header; the first cell says what the row is.
        best: The (row, column) of the cells to print bold, from 0.
        note: A remark below it, may be empty.
        tight: Less space between the columns in a terminal, so that seven sparsities with their
            spreads fit into 80 characters.
        keys: What the rows of the page are sorted by, one for each cell; empty for a table whose
            order does not change.
        has_sum: Whether the last row is the sum of the others, and last in any order.
        has_names: Whether the first cells are names, of which a narrow terminal leaves out the
            middle.
        marks: Column -> the drawings in its cells on the page, one for each row.

    Example:
        >>> grid = Grid("Accuracy in %", ("method", "90 %"), (("joint", "97.1"),))
        >>> [column.header for column in grid.rich().columns]
        ['method', '90 %']
    """

    title: str
    header: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    note: str = ""
    tight: bool = False
    keys: tuple[tuple[float | str | None, ...], ...] = ()
    has_sum: bool = False
    has_names: bool = False
    marks: Mapping[int, Sequence[Mark | None]] = field(default_factory=dict)

    def rich(self) -> Table:
        """The table for the terminal; text that looks like markup stays text."""
        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            caption=self.note or None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 0) if self.tight else (0, 1),
        )
        for column, name in enumerate(self.header):
            table.add_column(name, justify="right" if column else "left", overflow="fold")
        named = self.cells[:-1] if self.has_sum else self.cells
        ending = common_ending([cells[0] for cells in named]) if self.has_names else ""
        for row, cells in enumerate(self.cells):
            shown: list[RenderableType] = [
                self._marked(row, column, cell) for column, cell in enumerate(cells)
            ]
            if self.has_names:
                shown[0] = Name(cells[0], ending)
            table.add_row(*shown)
        return table

    def _marked(self, row: int, column: int, cell: str) -> str:
        text = escape(cell).replace(" ± ", "±")
        return f"[bold]{text}[/]" if (row, column) in self.best else text


def percent(fraction: float, digits: int | None = None) -> str:
    """A fraction in percent.

    Args:
        fraction: Such as 0.975.
        digits: Decimals; None for as many as it needs, at most six.

    Example:
        >>> percent(0.975), percent(0.5, 2)
        ('97.5 %', '50.00 %')
    """
    if digits is None:
        return f"{round(100 * fraction, 6):g} %"
    return f"{100 * fraction:.{digits}f} %"


def percent_with_error(fraction: float, error: float | None, digits: int = 1) -> str:
    """A fraction in percent with its standard error.

    Args:
        fraction: Such as 0.975.
        error: Its standard error; None for none.
        digits: Decimals of both.

    Example:
        >>> percent_with_error(0.975, 0.0074), percent_with_error(0.975, None)
        ('97.5 ± 0.7 %', '97.5 %')
    """
    spread = "" if error is None else f" ± {100 * error:.{digits}f}"
    return f"{100 * fraction:.{digits}f}{spread} %"


def aligned(
    values: Sequence[float | None], digits: int = 3, beside: Sequence[float | None] = ()
) -> list[str]:
    """Numbers of one column with the same decimals, so that they can be compared at a glance.

    Args:
        values: The column; None for a number that there is none of.
        digits: Of the largest number that are shown at least, and two of the smallest.
        beside: A column that is compared with it: both have exponents where all numbers are below
            0.01 and decimals would not show the smallest.

    Returns:
        Their texts, with six decimals at most, or with exponents where all are small.

    Example:
        >>> aligned([0.0123, -1.5, None]), aligned([1e-9, 2e-5])
        (['0.012', '−1.500', '–'], ['1.00e-09', '2.00e-05'])
        >>> aligned([2e-4], beside=[1e-7]), aligned([1e-7], beside=[2e-4])
        (['2.00e-04'], ['1.00e-07'])
        >>> aligned([136.2, 96.6, 4e-9])  # what six decimals do not show asks for none
        ['136', '97', '0']
    """
    both = [abs(value) for value in (*values, *beside) if value and math.isfinite(value)]
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes:
        return [MISSING if value is None else f"{value:g}" for value in values]
    decimals = digits - 1 - math.floor(math.log10(max(sizes)))
    shown = [size for size in sizes if size >= 10.0 ** (1 - MOST_DECIMALS)] or sizes
    needed = max(decimals, 1 - math.floor(math.log10(min(shown))), 0)
    is_lost = bool(beside) and min(both) < 10.0 ** (1 - MOST_DECIMALS) and max(both) < 0.01
    has_decimals = max(sizes) >= SMALL and not is_lost
    form = f".{min(needed, MOST_DECIMALS)}f" if has_decimals else f".{digits - 1}e"
    return [MISSING if value is None else with_minus(f"{value:{form}}") for value in values]


def each_rounded(values: Sequence[float | None], digits: int = 3) -> list[str]:
    """Numbers of one column that differ by orders of magnitude, each with its own decimals.

    Args:
        values: The column; None for a number that there is none of.
        digits: Of each number that are shown, and all before the point.

    Returns:
        Their texts, with six decimals at most, or with exponents where all are small.

    Example:
        >>> each_rounded([0.00023241, -0.51457, 12.56379, 1730.7, None])
        ['0.000232', '−0.515', '12.6', '1731', '–']
        >>> each_rounded([1e-9, 0.0])
        ['1.00e-09', '0']
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if sizes and max(sizes) < SMALL:
        return [_with_exponent(value, digits) for value in values]
    return [MISSING if value is None else _rounded(value, digits) for value in values]


def _with_exponent(value: float | None, digits: int) -> str:
    if not value:
        return MISSING if value is None else "0"
    return with_minus(f"{value:.{digits - 1}e}")


def _rounded(value: float, digits: int) -> str:
    if not value or not math.isfinite(value):
        return with_minus(f"{value:g}")
    decimals = digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    text = f"{value:.{min(max(decimals, 0), MOST_DECIMALS)}f}"
    return with_minus(text) if float(text) else "0"


def with_minus(text: str) -> str:
    """The text of a number with a minus as wide as a plus, if it begins with one.

    Example:
        >>> with_minus("-0.5"), with_minus("1e-05")
        ('−0.5', '1e-05')
    """
    return MINUS + text[1:] if text.startswith("-") else text


def with_unit(number: float) -> str:
    """A large number in three digits.

    Example:
        >>> with_unit(1_234_567), with_unit(900)
        ('1.23 M', '900')
    """
    for unit, size in UNITS:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(0.004), duration(12.34), duration(754)
        ('4.0 ms', '12 s', '12 min 34 s')
    """
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 90:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def megabytes(count: float) -> str:
    """Megabytes of 2²⁰ bytes for people.

    Example:
        >>> megabytes(1323.95), megabytes(20480)
        ('1,324 MiB', '20.0 GiB')
    """
    return f"{count / 1024:.1f} GiB" if count >= 10 * 1024 else f"{count:,.0f} MiB"
