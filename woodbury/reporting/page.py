"""One HTML page of figures, tables and charts that needs nothing beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from woodbury.reporting.charts import Chart
from woodbury.reporting.grid import Grid

PHONE_CHARACTERS = 52
"""Characters of a table that is as wide as a phone."""
COLUMN_GAP = 2
"""Between two of its columns."""
PROSE_CHARACTERS = 30
"""A column with a longer cell holds sentences."""


@dataclass(frozen=True)
class Figure:
    """A number that comes first.

    Attributes:
        value: With its unit.
        name: What it is.
        remark: What to compare it with; may be empty.
    """

    value: str
    name: str
    remark: str = ""


@dataclass(frozen=True)
class Code:
    """Something to copy.

    Attributes:
        words: What it does.
        text: The lines.
    """

    words: str
    text: str


@dataclass(frozen=True)
class Section:
    """Tables, charts and code under one heading.

    Attributes:
        title: The heading.
        parts: From top to bottom.
    """

    title: str
    parts: tuple[Grid | Chart | Code, ...]


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        title: Its heading.
        lead: One sentence below it.
        figures: The numbers that come first.
        sections: What follows. All text in them is escaped.
        folded: Tables at the end, opened by a click on their title.

    Example:
        >>> grid = Grid("Numbers", ("setting", "value"), (("loss", "< 1"),))
        >>> page = Page("Report", "One table.", sections=[Section("Numbers", (grid,))])
        >>> "&lt; 1" in page.html()
        True
    """

    title: str
    lead: str
    figures: Sequence[Figure] = ()
    sections: Sequence[Section] = ()
    folded: Sequence[Grid] = ()

    def html(self) -> str:
        """The text of an HTML page that needs no other file."""
        return _templates().get_template("page.html.j2").render(page=self)

    def write(self, path: str | os.PathLike) -> None:
        """Write the page.

        Args:
            path: The file.
        """
        Path(path).write_text(self.html(), encoding="utf-8")


def section(part: Grid | Chart) -> Section:
    """A table or a chart under its own title.

    Args:
        part: The table or chart.
    """
    return Section(part.title, (part,))


def svg_file(chart: Chart) -> str:
    """A chart as an SVG file, in light or dark as the reader has it.

    Args:
        chart: The chart.

    Returns:
        The text of the file.
    """
    return _templates().get_template("file.svg.j2").render(chart=chart)


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("woodbury.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    kinds = {"chart": Chart, "code": Code, "grid": Grid}
    for name, kind in kinds.items():
        environment.tests[name] = lambda part, kind=kind: isinstance(part, kind)
    environment.tests["narrow"] = _is_narrow
    environment.tests["prose"] = _is_prose
    environment.filters["share"] = _share
    environment.filters["breakable"] = _breakable
    environment.filters["cell_length"] = _cell_length
    environment.filters["in_words"] = _in_words
    environment.filters["longest"] = _longest
    environment.filters["with_code"] = _with_code
    return environment


def _is_narrow(grid: Grid) -> bool:
    """Whether a table fits a phone as it is: then its rows are not taken apart there."""
    if grid.marks:
        return False
    texts = [
        [*name.split(), *(row[column] for row in grid.cells)]
        for column, name in enumerate(grid.header)
    ]
    widths = [max(map(len, column)) for column in texts]
    return sum(widths) + COLUMN_GAP * (len(widths) - 1) <= PHONE_CHARACTERS


def _is_prose(grid: Grid, column: int) -> bool:
    """Whether a column holds sentences, which begin at the left."""
    longest = max((len(row[column]) for row in grid.cells), default=0)
    return column > 0 and len(grid.header) > 2 and longest > PROSE_CHARACTERS


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after a dot, a slash or an underscore."""
    return Markup(re.sub(r"([./_])(?=\w)", r"\1<wbr>", str(escape(name))))


def _cell_length(grid: Grid) -> int:
    """Characters of the longest cell that stands beside others on a phone."""
    columns = [
        column
        for column in range(1, len(grid.header))
        if column not in grid.marks and not _is_prose(grid, column)
    ]
    return _longest(row[column] for row in grid.cells for column in columns)


def _with_code(text: str) -> Markup:
    """A text in which what stands between backticks is code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else part
        for number, part in enumerate(parts)
    )


def _in_words(text: str) -> Markup:
    """Lines of code whose words are broken only where one is wider than the page."""
    return Markup("\n").join(
        Markup(" ").join(Markup("<span>{}</span>").format(word) for word in line.split(" "))
        for line in text.split("\n")
    )


def _longest(texts: Iterable[str]) -> int:
    """Characters of the longest text; 0 for none."""
    return max(map(len, texts), default=0)


def _share(fraction: float) -> str:
    """A fraction of a length, as CSS and SVG write it.

    Example:
        >>> _share(1 / 3), _share(0.5)
        ('33.33%', '50%')
    """
    return f"{100 * fraction:.2f}".rstrip("0").rstrip(".") + "%"
