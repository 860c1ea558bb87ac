"""One HTML page of tables and pictures that needs nothing beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from woodbury.reporting.tables import Grid

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Picture:
    """A PNG for the page, in a light and a dark version; the reader's settings choose.

    Attributes:
        light: The bytes of the PNG on a light ground.
        dark: The same on a dark ground.
        words: What the picture shows, for its caption and for those who cannot see it.
    """

    light: bytes
    dark: bytes
    words: str


def write_page(
    path: str | os.PathLike,
    title: str,
    lead: str,
    parts: Sequence[Grid | Picture],
    folded: Sequence[Grid] = (),
) -> None:
    """Write `render_page`'s page to a file."""
    Path(path).write_text(render_page(title, lead, parts, folded), encoding="utf-8")


def render_page(
    title: str, lead: str, parts: Sequence[Grid | Picture], folded: Sequence[Grid] = ()
) -> str:
    """The text of an HTML page that needs no other file.

    Args:
        title: Its heading.
        lead: One sentence below it.
        parts: Tables and pictures, from top to bottom. All text in them is escaped.
        folded: Tables at the end, opened by a click on their title.

    Example:
        >>> grid = Grid("Numbers", ("setting", "value"), (("loss", "< 1"),))
        >>> "<td>&lt; 1</td>" in render_page("Report", "One table.", [grid])
        True
    """
    return _template().render(title=title, lead=lead, parts=parts, folded=folded)


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.tests["picture"] = lambda part: isinstance(part, Picture)
    environment.filters["data_uri"] = _data_uri
    return environment.from_string(
        files("woodbury.reporting").joinpath(TEMPLATE).read_text("utf-8")
    )


def _data_uri(png: bytes) -> str:
    """The bytes of a PNG as an address that holds them."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
