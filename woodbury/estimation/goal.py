"""Goal: what is known of the network whose outputs are aimed at."""

from __future__ import annotations

from typing import NamedTuple

from woodbury.estimation.layer_equations import LayerGoals
from woodbury.estimation.output_residuals import Residuals


class Goal(NamedTuple):
    """What a refit knows of the dense network on its samples, which is run once for all stages.

    Attributes:
        residuals: With the dense network's outputs.
        layers: The outputs of its layers; None without layer-wise reconstruction.
    """

    residuals: Residuals
    layers: LayerGoals | None
