"""Pruning in the Trainer of transformers, which is imported when it is needed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from woodbury.integrations.transformers.callback import PruningCallback as PruningCallback


def __getattr__(name: str) -> Any:
    """`PruningCallback`, whose base class is one of transformers, when it is asked for."""
    if name == "PruningCallback":
        from woodbury.integrations.transformers.callback import PruningCallback

        return PruningCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
