"""Whether a calibration set has what a pruner will take, hours before it does."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import gauss_newton
from woodbury.model.batches import check_enough_data, samples_in, tensors_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective


def samples_needed(recipe: Any) -> int:
    """How many samples a pruner reads, as far as its settings say.

    Args:
        recipe: A Pruner, another recipe, or a function.

    Returns:
        The largest count of rows or samples in it, in samples; 1 where it says nothing.

    Example:
        >>> import woodbury
        >>> samples_needed(woodbury.Pruner(woodbury.mfac(500, batch=2)))
        1000
    """
    if not is_dataclass(recipe) or isinstance(recipe, type):
        return 1
    if isinstance(recipe, gauss_newton):  # its rows are several to a sample
        return math.ceil(samples_needed(recipe.recipe) / recipe.mc_samples)
    count = getattr(recipe, "count", None)
    own = count * getattr(recipe, "batch", 1) if isinstance(count, int) else 1
    return max([own, *(samples_needed(getattr(recipe, field.name)) for field in fields(recipe))])


@torch.no_grad()
def check_calibration(objective: Objective, needed: int, *, exactly: bool) -> None:
    """Raise unless the calibration set has samples of finite loss, and labels that count.

    Args:
        objective: The network on it.
        needed: Samples that are read at most.
        exactly: Whether fewer are an error.

    Raises:
        WoodburyError: For an empty set, too few samples, labels none of which counts, or a loss
            that is not finite.
    """
    samples = 0
    needed = objective.batches.own(needed)
    counted = False
    ignored = objective.likelihood.ignored
    with eval_mode(objective.model):
        for inputs, target in objective.batches:
            samples += samples_in(inputs)
            labels = tensors_in(target)
            counted = counted or ignored is None or not labels
            counted = counted or any(bool((label != ignored).any()) for label in labels)
            if target is not None and samples_in(inputs):
                loss = float(objective.batch_loss(objective.parameters, inputs, target))
                if not math.isfinite(loss):
                    raise WoodburyError(
                        f"The loss of calibration samples up to {samples} is {loss}: "
                        "look at their inputs and labels."
                    )
            if samples >= needed:
                break
    check_enough_data(samples, needed if exactly else min(needed, 1))
    if not counted:
        raise WoodburyError(
            f"All labels of the {samples} calibration samples are {ignored}, which counts for "
            "nothing: give labels."
        )
