"""Models of transformers by name, with their data, in their Trainer, and back in their folders."""

# Importing this package imports neither transformers nor datasets.

from typing import TYPE_CHECKING, Any

from woodbury.integrations.transformers.loaded import Loaded as Loaded
from woodbury.integrations.transformers.loaded import load as load
from woodbury.integrations.transformers.tasks import causal_lm as causal_lm
from woodbury.integrations.transformers.tasks import image_classification as image_classification
from woodbury.integrations.transformers.tasks import masked_lm as masked_lm
from woodbury.integrations.transformers.tasks import text_classification as text_classification
from woodbury.integrations.transformers.tasks import token_classification as token_classification

if TYPE_CHECKING:
    from woodbury.integrations.transformers.callback import PruningCallback as PruningCallback


def __getattr__(name: str) -> Any:
    """`PruningCallback`, whose base class is one of transformers, when it is asked for."""
    if name == "PruningCallback":
        from woodbury.integrations.transformers.callback import PruningCallback

        return PruningCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
