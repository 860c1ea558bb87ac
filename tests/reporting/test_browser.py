"""The page in a browser: what a click, a pointer, a phone and a dark room make of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.results import prune_numbers, pruned_net, results, tensors_of

from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero
from woodbury.reporting import cost_tables, plots, tables
from woodbury.reporting.page import Code, Page, section
from woodbury.reporting.pages import prune_page

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install 'woodbury[browser]'"
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="needs Chromium, such as Debian's chromium"),
]

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, once for all tests."""
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with every section."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    tensors = tensors_of(pruned_net(Pruner(None, magnitude, zero)))
    settings = {"method": "mfac", "parameters": ["a.very.long.name.weight"] * 9}
    codes = [Code("Load its weights:", "import woodbury\nmodel = built()")]
    title, recipe = "net.py:build at 90 %", {"fisher": {"count": 100}}
    numbers = prune_numbers()
    page = prune_page(title, "lead", numbers, tensors, settings, recipe, None, codes)
    page.write(file)
    return file


@pytest.fixture
def opened(browser: Any, run_page: Path) -> Iterator[Any]:
    """Open the page of a run, or another, in a window of a size; errors in it fail the test."""
    contexts = []
    errors: list[str] = []

    def open_page(size: dict[str, int], scheme: str = "light", file: Path = run_page) -> Any:
        context = browser.new_context(
            viewport=size, color_scheme=scheme, permissions=["clipboard-read", "clipboard-write"]
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: errors.append(request.url))
        page.goto(file.as_uri())
        errors.remove(file.as_uri())  # the page itself is asked for, and nothing else
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


def first_cells(page: Any) -> list[str]:
    """The names in the table of the layers, in their order."""
    return page.locator("table.sorted tbody th").all_inner_texts()


def test_a_click_sorts_the_layers_and_their_sum_stays_last(opened: Any) -> None:
    page = opened(DESKTOP)
    assert first_cells(page) == ["0.weight", "2.weight"]
    kept = page.get_by_role("button", name="kept", exact=True)
    kept.click()
    rising = [int(text) for text in page.locator("tbody [data-label=kept]").all_inner_texts()]
    assert rising == sorted(rising)
    assert page.locator("th[aria-sort=ascending]").inner_text() == "kept"
    kept.click()
    falling = [int(text) for text in page.locator("tbody [data-label=kept]").all_inner_texts()]
    assert falling == rising[::-1] != rising
    page.get_by_role("button", name="parameter").click()
    assert first_cells(page) == ["0.weight", "2.weight"]
    assert page.locator("table.sorted tr").last.locator("th").inner_text() == "all"


def test_a_point_that_is_pointed_at_says_its_values(opened: Any) -> None:
    page = opened(DESKTOP)
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator("svg.chart .series").last.locator(".hit").last.hover()
    assert tip.inner_text() == "measured at 90.0 %: 0.2"
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= DESKTOP["width"]
    page.locator(".mark .hit").first.hover()
    assert "weights removed" in tip.inner_text()
    page.locator("h1").hover()
    assert tip.is_hidden()


def test_a_click_unfolds_what_is_folded_and_the_marker_is_beside_it(opened: Any) -> None:
    page = opened(DESKTOP)
    recipe = page.locator("details", has_text="Recipe")
    assert recipe.locator("table").is_hidden()
    summary, heading = recipe.locator("summary").bounding_box(), recipe.locator("h2").bounding_box()
    assert heading["x"] - summary["x"] < 24 and heading["height"] >= summary["height"] - 2
    recipe.locator("h2").click()
    assert recipe.locator("table").is_visible()


def test_code_is_copied_by_a_click(opened: Any) -> None:
    page = opened(DESKTOP)
    page.get_by_role("button", name="Copy").click()
    assert page.get_by_role("button", name="Copied").is_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "import woodbury\nmodel = built()"


def test_on_a_phone_nothing_is_cut_off_or_scrolled_sideways(opened: Any) -> None:
    page = opened(PHONE)
    assert nothing_is_cut_off(page)
    assert page.locator(".legend").first.is_visible() and page.locator(".label").first.is_hidden()
    sizes = page.locator("svg.chart text:not(.minor)").evaluate_all(
        "(all) => all.map((each) => parseFloat(getComputedStyle(each).fontSize))"
    )
    assert min(sizes) >= 12
    label = page.locator("tbody [data-label=kept]").first
    assert label.evaluate("(cell) => getComputedStyle(cell, '::before').content") == '"kept"'
    page.get_by_role("button", name="kept", exact=True).click()
    assert page.locator("th[aria-sort=ascending]").is_visible()


def nothing_is_cut_off(page: Any) -> bool:
    """Whether neither the page nor a table in it, unfolded or not, is wider than its place."""
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    hidden = "(all) => all.filter((each) => each.scrollWidth > each.clientWidth + 1).length"
    fits = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return fits and page.locator(".table, td").evaluate_all(hidden) == 0


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_a_comparison_is_as_wide_as_the_window(
    size: dict[str, int], opened: Any, tmp_path: Path
) -> None:
    many = [
        replace(result, sparsity=sparsity, predicted=1e-5, method=f"{result.method}/independent")
        for result in results()
        for sparsity in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
    ]
    sections = [section(plots.accuracies(many)), section(tables.accuracies(many))]
    losses = cost_tables.losses_and_resources(many)
    Page("Compared", "lead", sections=sections, folded=[losses]).write(tmp_path / "r.html")
    assert nothing_is_cut_off(opened(size, "light", tmp_path / "r.html"))


def test_the_colours_follow_the_reader(opened: Any) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page = opened(DESKTOP, scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(21, 23, 26)"]


def test_two_comparisons_can_be_laid_side_by_side(opened: Any, tmp_path: Path) -> None:
    places = []
    for number, part in enumerate((results(), results(seeds=1)[:4])):
        file = tmp_path / f"{number}.html"
        parts = [section(plots.accuracies(part)), section(tables.accuracies(part))]
        Page("Compared", "lead", sections=parts).write(file)
        page = opened(DESKTOP, "light", file)
        lines = page.locator("svg.chart line.grid").evaluate_all(
            "(all) => all.map((each) => JSON.stringify(each.getBoundingClientRect()))"
        )
        texts = page.locator("svg.chart .tick").all_inner_texts()
        places.append((lines, texts))
    assert places[0] == places[1] and len(places[0][0]) == 6
