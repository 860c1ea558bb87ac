"""Results for the eye: tables for the terminal and for one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from woodbury.evaluation.comparison import Result, Summary, summary
from woodbury.pruning.pruner import QUANTILES
from woodbury.reporting.per_layer import TensorSummary, total


@dataclass(frozen=True)
class Grid:
    """A table as text: `cells` in rows, the first column says what the row is; `best` are (row, column) to print bold.

    tight: less space between the columns of a terminal, so that seven sparsities with their spreads fit into 80.
    """

    title: str
    header: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    note: str = ""
    tight: bool = False

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.padding = (0, 0) if self.tight else (0, 1)
        for index, name in enumerate(self.header):
            table.add_column(name, justify="right" if index else "left", overflow="fold")
        for i, row in enumerate(self.cells):
            cells = (escape(cell).replace(" ± ", "±") for cell in row)
            table.add_row(
                *(
                    f"[bold]{cell}[/]" if (i, j) in self.best else cell
                    for j, cell in enumerate(cells)
                )
            )
        table.caption, table.caption_justify = self.note or None, "left"
        return table

    def html(self, *, folded: bool = False) -> str:
        """For the page; folded: opened by a click on the title."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        rows = [
            "".join(
                f"<td{' class=best' if (i, j) in self.best else ''}>{html.escape(cell)}</td>"
                for j, cell in enumerate(row)
            )
            for i, row in enumerate(self.cells)
        ]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        note = f"<p class=note>{html.escape(self.note)}</p>" if self.note else ""
        kind = " class=facts" if len(self.header) == 2 else ""
        table = f"<div class=wide><table{kind}><tr>{head}</tr>{body}</table></div>{note}"
        title = f"<h2>{html.escape(self.title)}</h2>"
        return f"<details><summary>{title}</summary>{table}</details>" if folded else title + table


def accuracies(
    results: Sequence[Result],
    *,
    dense: float | None = None,
    measure: str = "accuracy",
    digits: int = 1,
) -> Grid:
    """Methods × sparsities: mean ± spread over the seeds, the best mean of each sparsity bold."""
    cells = {(cell.method, cell.sparsity): cell for cell in summary(results)}
    methods = list(dict.fromkeys(cell.method for cell in cells.values()))
    sparsities = list(dict.fromkeys(cell.sparsity for cell in cells.values()))
    best = {
        (methods.index(name), 1 + j)
        for j, sparsity in enumerate(sparsities)
        for name in methods
        if cells[name, sparsity].accuracy
        == max(cells[other, sparsity].accuracy for other in methods)
    }
    seeds = max(cell.seeds for cell in cells.values())
    spread = (
        f"Mean ± population standard deviation over {seeds} calibration samples; the best is bold."
    )
    whole = f" (dense {100 * dense:.{digits}f})" if dense is not None else ""
    return Grid(
        title=f"{measure.capitalize()} in % at each sparsity{whole}",
        header=("method", *(percent(sparsity) for sparsity in sparsities)),
        cells=tuple(
            (name, *(_mean_and_spread(cells[name, at], digits) for at in sparsities))
            for name in methods
        ),
        best=frozenset(best),
        note=spread if seeds > 1 else "",
        tight=True,
    )


def removed(results: Sequence[Result], *, measure: str = "accuracy") -> Grid:
    """Methods × sparsities: the mean accuracy right after the removal, before the update."""
    cells = {(cell.method, cell.sparsity): cell.accuracy_removed for cell in summary(results)}
    methods, sparsities = (list(dict.fromkeys(key)) for key in zip(*cells, strict=True))
    return Grid(
        title=f"{measure.capitalize()} in % after the removal, before the update",
        header=("method", *map(percent, sparsities)),
        cells=tuple(
            (name, *(_percentage(cells[name, at]) for at in sparsities)) for name in methods
        ),
        note="The removed weights are zero, all others as in the dense network.",
    )


def costs(results: Sequence[Result]) -> Grid:
    """What each cell predicted, measured and cost, averaged over the seeds."""
    rows, above = [], ""
    for cell in summary(results):
        dampings = [
            r.damping for r in results if (r.method, r.sparsity) == (cell.method, cell.sparsity)
        ]
        row = (
            cell.method if cell.method != above else "",
            percent(cell.sparsity),
            ", ".join(
                dict.fromkeys("–" if damping is None else f"{damping:g}" for damping in dampings)
            ),
            "–" if cell.predicted is None else f"{cell.predicted:.3g}",
            f"{cell.measured:.3g}",
            "–" if cell.removed is None else f"{cell.removed:.3g}",
            f"{cell.seconds:.2f}",
            f"{cell.memory:.0f}",
        )
        rows.append(row)
        above = cell.method
    return Grid(
        title="Loss on the calibration sample, and cost",
        header=(
            "method",
            "sparsity",
            "damping",
            "predicted increase",
            "measured",
            "before the update",
            "seconds",
            "peak MB",
        ),
        cells=tuple(rows),
        note="The quadratic predicts the increase of the loss; magnitude predicts none. Before the update the same weights "
        "are zero and the others where they were. Seconds include the Fisher.",
    )


def layers(rows: Sequence[TensorSummary]) -> Grid:
    """What fell where: weights, FLOPs and saliencies of each tensor, and of all where they add up."""
    counted, scored = (
        all(row.flops is not None for row in rows),
        any(row.saliencies for row in rows),
    )
    header = ["parameter", "weights", "kept", "sparsity"]
    header += ["FLOPs", "FLOPs left"] * counted + ["median saliency"] * scored
    cells = []
    for row in [*rows, total(rows)]:
        cell = [row.name, f"{row.weights:,}", f"{row.kept:,}", percent(row.sparsity, 2)]
        cell += [_short(row.flops or 0), _short(row.flops_left or 0)] * counted
        cells.append(
            (
                *cell,
                *[f"{row.saliencies[len(QUANTILES) // 2]:.1e}" if row.saliencies else ""] * scored,
            )
        )
    return Grid("What stays", tuple(header), tuple(cells))


def facts(title: str, values: Mapping[str, Any]) -> Grid:
    """Settings or versions, one per line."""
    return Grid(
        title,
        ("setting", "value"),
        tuple((str(key), _text(value)) for key, value in values.items()),
    )


def percent(fraction: float, digits: int | None = None) -> str:
    """0.975 as “97.5 %”; with as many decimals as it needs, or `digits`."""
    return (
        f"{100 * fraction:.{digits}f} %"
        if digits is not None
        else f"{round(100 * fraction, 6):g} %"
    )


def embedded(light: bytes, dark: bytes, words: str) -> str:
    """A PNG inside the page, in the version for the reader's ground; `words` say what is on it."""
    day, night = (base64.b64encode(png).decode() for png in (light, dark))
    source = f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{night}">'
    image = f'<img src="data:image/png;base64,{day}" alt="{html.escape(words)}">'
    return f"<figure><picture>{source}{image}</picture><figcaption>{html.escape(words)}</figcaption></figure>"


def write_page(path: str | os.PathLike, title: str, lead: str, parts: Sequence[str]) -> None:
    """One HTML file that needs nothing beside it; `parts` come from `Grid.html` and `embedded`."""
    title, lead = html.escape(title), html.escape(lead)
    page = PAGE.format(title=title, lead=lead, style=STYLE, parts="\n".join(parts))
    Path(path).write_text(page, encoding="utf-8")


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class=lead>{lead}</p>
{parts}
</body>
</html>
"""


STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #666; --line: #e3e3e3; --ground: #fff; --best: #00633f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #a0a4aa; --line: #33363b; --ground: #16181c; --best: #5fd3a6; } }
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--ground);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.05rem; margin: 2.5rem 0 .5rem; }
.lead { color: var(--soft); margin: 0 0 1.5rem; max-width: 42rem; }
.note, figcaption { color: var(--soft); font-size: .85rem; margin: .4rem 0 0; }
figure { margin: 1.5rem 0; } img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
.facts td, .facts th { text-align: left; }
summary { cursor: pointer; } summary h2 { display: inline-block; margin: 1.2rem 0 .5rem; }
.best { color: var(--best); font-weight: 700; }
"""


def _mean_and_spread(cell: Summary, digits: int) -> str:
    spread = f" ± {100 * cell.spread:.{digits}f}" if cell.seeds > 1 else ""
    return f"{100 * cell.accuracy:.{digits}f}{spread}"


def _percentage(score: float | None) -> str:
    return "–" if score is None else f"{100 * score:.1f}"


def _short(number: float) -> str:
    """1,234,567 as “1.23 M”."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
