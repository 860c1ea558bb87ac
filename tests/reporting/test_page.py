"""The page needs nothing beside it, escapes all text, and has a dark version."""

from __future__ import annotations

import html.parser
from pathlib import Path
from typing import Any

from support.results import results

from woodbury.reporting import tables
from woodbury.reporting.page import Picture, render_page, write_page


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced and collects what is linked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    picture = Picture(b"light", b"dark", 'a "picture"')
    settings = tables.facts("Settings", {"damping": 1e-3, "seeds": [0, 1], "name": "<b>"})
    parts = [picture, tables.accuracies(results())]
    write_page(tmp_path / "r.html", "Title & <more>", "lead", parts, [settings])
    text = (tmp_path / "r.html").read_text("utf-8")
    page = Page(text)
    assert not page.open
    assert page.links == ["data:image/png;base64,ZGFyaw==", "data:image/png;base64,bGlnaHQ="]
    assert "Title &amp; &lt;more&gt;" in text and "&lt;b&gt;" in text and "<b>" not in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert 'alt="a &#34;picture&#34;"' in text


def test_tables_show_titles_notes_and_the_best_and_fold_at_the_end() -> None:
    accuracies = tables.accuracies(results())
    settings = tables.facts("Settings", {"damping": 1e-3})
    text = render_page("Title", "lead", [accuracies], [settings])
    assert "M-FAC &lt;joint&gt;" in text and "<joint>" not in text
    assert f"<h2>{accuracies.title}</h2>" in text
    assert f"<p class=note>{accuracies.note}</p>" in text
    assert text.count("<td class=best>") == len(accuracies.best)
    assert "<td>95.5 ± 0.5</td><td>50.5 ± 0.5</td>" in text
    folded = "<details><summary><h2>Settings</h2></summary><div class=wide><table class=facts>"
    assert folded in text and text.index("at each sparsity") < text.index(folded)
    assert Page(text).tags.count("tr") == 1 + len(accuracies.cells) + 1 + len(settings.cells)


def test_a_page_without_parts_is_a_page() -> None:
    assert not Page(render_page("Title", "lead", [])).open
