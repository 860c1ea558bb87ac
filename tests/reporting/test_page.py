"""The page needs nothing beside it, escapes all text, and has every fact that it is given."""

from __future__ import annotations

import html.parser
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from support.results import prune_numbers, results

from woodbury.reporting import plots, tables
from woodbury.reporting.grid import Grid, Mark
from woodbury.reporting.page import Code, Figure, Page, Section, section, svg_file

WITHOUT_AN_END = ("meta", "img", "source", "rect", "circle", "line", "path", "use", "wbr")


class Parsed(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects what is linked, the tags and the texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in WITHOUT_AN_END:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in WITHOUT_AN_END:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() else []


def a_page() -> Page:
    """A page with every kind of part."""
    mark, dotted = Mark(0.0, 1 / 3, 'a "bar"'), Mark(0.1, 0.5, "a range", dot=0.25)
    layers = Grid(
        "Layers",
        ("layer", "share"),
        (("<first>", "33 %"), ("second", "–"), ("all", "20 %")),
        keys=(("<first>", 1 / 3), ("second", None), ("all", 0.2)),
        has_sum=True,
        marks={1: [mark, None, dotted]},
    )
    return Page(
        "Title & <more>",
        "lead",
        figures=[Figure("95 ± 1 %", "accuracy", "dense 97 %")],
        sections=[
            section(plots.accuracies(results(), dense=0.98)),
            section(tables.accuracies(results())),
            section(layers),
            Section("Use it again", (Code("Repeat:", "woodbury prune '<b>'"),)),
        ],
        folded=[tables.facts("Settings", {"damping": 1e-3, "seeds": [0, 1], "name": "<b>"})],
    )


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    a_page().write(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text("utf-8")
    page = Parsed(text)
    assert not page.open
    assert all(link.startswith("#m") for link in page.links)
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_all_text_is_escaped() -> None:
    text = a_page().html()
    assert "Title &amp; &lt;more&gt;" in text and "<more>" not in text
    assert "M-FAC &lt;joint&gt;" in text and "<joint>" not in text
    assert "<span>prune</span> <span>&#39;&lt;b&gt;&#39;</span>" in text and "<b>" not in text
    assert "<title>a &#34;bar&#34;</title>" in text and "<first>" not in text


def test_tables_show_titles_notes_and_the_best_and_fold_at_the_end() -> None:
    text = a_page().html()
    page = Parsed(text)
    accuracies = tables.accuracies(results())
    assert accuracies.note in page.texts and accuracies.title in page.texts
    assert text.count('class="best"') == len(accuracies.best)
    assert all(cell in page.texts for row in accuracies.cells for cell in row)
    assert text.index("at each sparsity") < text.index("<details><summary><h2>Settings</h2>")


def test_rows_have_keys_and_their_sum_is_apart() -> None:
    text = a_page().html()
    assert 'data-key="0.3333333333333333"' in text and 'data-label="share"' in text
    assert 'data-key=""' in text  # of a number that there is none of
    head, foot = text.split("<tfoot>")
    assert ">all</th>" in foot and ">all</th>" not in head


def test_marks_are_as_long_as_their_shares() -> None:
    text = a_page().html()
    assert '<rect class="fill" x="0%" width="33.33%"' in text
    assert 'x1="10%" x2="50%"' in text and 'cx="25%"' in text


def test_what_is_between_backticks_is_code() -> None:
    grid = Grid("t", ("a", "b"), (("1", "2"),), note="call `speed` <now>")
    text = Page("t", "l", sections=[section(grid)]).html()
    assert "call <code>speed</code> &lt;now&gt;" in text


def test_long_names_may_be_broken_where_their_parts_end() -> None:
    grid = Grid("t", ("a", "b"), (("layer1.0/w_q <&>", "1.5"),))
    text = Page("t", "l", sections=[section(grid)]).html()
    assert "layer1.<wbr>0/<wbr>w_<wbr>q &lt;&amp;&gt;</th>" in text and ">1.5</td>" in text


def test_a_narrow_table_is_not_taken_apart() -> None:
    narrow = Grid("t", ("stage", "a", "b"), (("1", "2", "3"),))
    wide = Grid("t", ("stage", *"abcdefg"), (("1", *["0.123456"] * 7),))
    html = Page("t", "l", sections=[section(narrow), section(wide)]).html()
    assert 'class="narrow"' in html and 'class="stack"' in html


def test_a_chart_says_its_values_and_is_drawn_in_shares() -> None:
    text = a_page().html()
    assert "<title>magnitude at 97.5 %: 50.5 ± 0.5 %</title>" in text
    assert '<use href="#m0" x="100%" y="49.5%"/>' in text


def test_a_chart_alone_is_a_well_formed_file() -> None:
    for chart in (plots.accuracies(results()), plots.stages(prune_numbers().stages)):
        root = ElementTree.fromstring(svg_file(chart))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        titles = [node.text for node in root.iter("{http://www.w3.org/2000/svg}title")]
        points = [point for line in chart.lines for point in line.points]
        assert titles == [chart.title, *(point.words for point in points)]


def test_a_page_without_parts_is_a_page() -> None:
    assert not Parsed(Page("Title", "lead").html()).open
