"""`{namespace} woodbury.units`: every public name of a namespace, by autodoc.

With the option `from` only the names that are defined in one of the packages named there.
"""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import woodbury

EQUATION = re.compile(r"\b(?P<words>eqs?\. (?P<number>\d+))\b")
"""How docstrings cite an equation of the page on the mathematics."""


def public_names(namespace: ModuleType) -> Iterator[tuple[str, Any]]:
    """Names that a user may call: no modules, nothing private, nothing of other libraries."""
    for name in sorted(dir(namespace), key=str.lower):
        value = getattr(namespace, name)
        ours = getattr(value, "__module__", type(value).__module__) or ""
        if name.startswith("_") or inspect.ismodule(value) or not ours.startswith("woodbury"):
            continue
        defined_here = ours == namespace.__name__ or hasattr(namespace, "__path__")
        if defined_here and not is_alias_of_a_type(value):
            yield name, value


def is_alias_of_a_type(value: Any) -> bool:
    """Whether the value is neither class, function nor object of ours."""
    return not (
        inspect.isclass(value)
        or inspect.isfunction(value)
        or type(value).__module__.startswith("woodbury")
    )


def home(value: Any) -> str:
    """The package in which a value is defined, such as "pruning"."""
    module = getattr(value, "__module__", None) or type(value).__module__
    return module.split(".")[1]


def kind(value: Any) -> str:
    """The directive of autodoc for the value."""
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, Exception) else "autoclass"
    return "autofunction" if inspect.isfunction(value) else "autodata"


class Namespace(SphinxDirective):
    """All public names of a module, in the order of the alphabet, each described at one place."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {
        "from": directives.unchanged,
        "without": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """The nodes of one autodoc directive for each name."""
        path = self.arguments[0]
        namespace = pydoc.locate(path)
        only = self.options.get("from", "").split()
        without = self.options.get("without", "").split()
        lines: list[str] = []
        elsewhere: list[str] = []
        for name, value in public_names(namespace):
            if (only and home(value) not in only) or home(value) in without:
                continue
            if namespace is not woodbury and getattr(woodbury, name, None) is value:
                elsewhere += [f":py:obj:`woodbury.{name}`"]
                continue
            lines += [f".. {kind(value)}:: {path}.{name}"]
            if inspect.isclass(value):
                lines += ["   :members:"]
            lines += [""]
        if elsewhere:
            lines = ["Also here: " + ", ".join(elsewhere) + ".", "", *lines]
        return self.parse_text_to_nodes("\n".join(lines))


def plain_text_as_rest(*arguments: Any) -> None:
    """Turn "eq. 9" in a docstring into a link, and keep |w| and (*shape,) as text."""
    lines: list[str] = arguments[-1]
    for index, line in enumerate(lines):
        if line.lstrip().startswith(">>>"):
            continue
        line = EQUATION.sub(r":ref:`\g<words> <eq-\g<number>>`", line)
        lines[index] = re.sub(r"(?<![\\`])\||\*(?=shape)", r"\\\g<0>", line)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx."""
    app.add_directive("namespace", Namespace)
    app.connect("autodoc-process-docstring", plain_text_as_rest, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
