"""woodbury prunes, trains and explains neural networks with second-order information.

Its names are in `__init__.pyi`. Each is imported where it is first used, so that importing woodbury
takes no time of its own.
"""

from woodbury import starting as starting  # isort: skip  (first: the rest takes a second)

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _places() -> dict[str, tuple[str, str]]:
    """Name -> the module that it comes from, and its name there, as the stub imports it."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in imports
        for alias in node.names
    }


_PLACES = _places()
__all__ = sorted(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a name, or a package of woodbury, where it is first used."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = _PLACES.get(name, (__name__, name))
    if module == __name__:
        try:
            return importlib.import_module(f"{__name__}.{original}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{original}":
                raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(module)
    if not hasattr(home, original):  # a module that nothing has imported yet
        importlib.import_module(f"{module}.{original}")
    value = globals()[name] = getattr(home, original)
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
