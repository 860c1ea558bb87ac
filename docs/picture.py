"""The picture of the packages in architecture.md, drawn from the imports: python docs/picture.py

It replaces the Mermaid block of docs/architecture.md. Arrows go from a package to those it imports;
an arrow that a longer path implies is left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import grimp

PAGE = Path(__file__).parent / "architecture.md"
BLOCK = re.compile(r"```mermaid\n.*?```", re.DOTALL)


def packages() -> dict[str, set[str]]:
    """Each package or module at the root of woodbury, and those that its modules import."""
    graph = grimp.build_graph("woodbury")
    imports: dict[str, set[str]] = {}
    for module in graph.modules - {"woodbury"}:
        package = module.split(".")[1]
        imported = graph.find_modules_directly_imported_by(module)
        others = {name.split(".")[1] for name in imported if "." in name}
        imports.setdefault(package, set()).update(others - {package})
    return imports


def reduced(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that a longer path implies."""

    def reached(package: str) -> set[str]:
        direct = imports[package]
        return direct.union(*(reached(other) for other in direct))

    return {
        package: direct - set().union(*(reached(other) for other in direct))
        for package, direct in imports.items()
    }


def mermaid() -> str:
    """The picture as a Mermaid block."""
    arrows = reduced(packages())
    pairs = [(package, other) for package in sorted(arrows) for other in sorted(arrows[package])]
    lines = [f"    {package} --> {other}" for package, other in pairs]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(mermaid(), PAGE.read_text("utf-8")), "utf-8")
