"""Whether a calibration set has what a pruner will take, hours before it does."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import SAMPLES_PER_PASS
from woodbury.estimation.recipes import gauss_newton
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import check_enough_data, samples_in, tensors_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.pruning.pruner import no_gradient_reached


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


def check_reached(objective: Objective, needed: int) -> None:
    """Raise if no sample's loss depends on one of the tensors: nothing is known of its weights.

    A gradient of zeros is none such, as training may change it.

    Args:
        objective: The network on the calibration set.
        needed: Samples that are read at most.

    Raises:
        WoodburyError: For tensors that are unused, or detached.
    """
    names = list(objective.parameters)
    unreached = names
    with eval_mode(objective.model), torch.enable_grad():
        for inputs, target in objective.batches.in_batches(SAMPLES_PER_PASS, needed):
            unreached = [] if target is None else _unreached(objective, unreached, inputs, target)
            if not unreached:
                break
    ranks = Ranks.current()
    missed = ranks.sum(torch.tensor([float(name in unreached) for name in names]))
    by_all = [
        name for name, count in zip(names, missed.tolist(), strict=True) if count == ranks.size
    ]
    if by_all:
        raise no_gradient_reached(by_all)


def _unreached(objective: Objective, names: list[str], inputs: Any, target: Any) -> list[str]:
    """Those of some tensors that the loss of a batch does not depend on."""
    parameters = {name: value.detach() for name, value in objective.parameters.items()}
    tensors = [parameters[name].requires_grad_() for name in names]
    loss = objective.batch_loss(parameters, inputs, target)
    if not loss.requires_grad:
        return names
    slopes = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [name for name, slope in zip(names, slopes, strict=True) if slope is None]
