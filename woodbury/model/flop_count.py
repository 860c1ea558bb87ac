"""FLOPs per parameter, counted in one hooked forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, user_code
from woodbury.model.batches import samples_in
from woodbury.model.calling import call_model
from woodbury.model.hooks import ModuleCall, record_calls
from woodbury.model.layers import parameter_owners
from woodbury.model.modes import eval_mode
from woodbury.model.random_numbers import random_kept
from woodbury.model.space import ParameterSpace
from woodbury.model.wrappers import bare


@dataclass(frozen=True)
class Flops:
    """FLOPs per sample that each weight of a parameter takes part in  (eq. 50).

    It is a cost for pruning: a `Pruner` calls it with its space.

    Attributes:
        per_weight: Parameter name -> FLOPs of one of its weights, per sample.

    Example:
        >>> space = ParameterSpace.from_model(nn.Linear(2, 1))
        >>> Flops({"weight": 2.0, "bias": 1.0})(space)
        tensor([2., 2., 1.], dtype=torch.float64)
    """

    per_weight: Mapping[str, float]

    def __call__(self, space: ParameterSpace) -> Tensor:
        """The FLOPs of each weight of a space.

        Args:
            space: A space of the model that the FLOPs were counted on.

        Returns:
            (n,) float64, kept and removed weights alike.

        Raises:
            WoodburyError: If the FLOPs of a parameter of the space are not known.
        """
        missing = [name for name in space.shapes if name not in self.per_weight]
        if missing:
            raise WoodburyError(
                f"The FLOPs of {missing[0]!r} are not known: "
                "count them on the model that is pruned."
            )
        each = torch.tensor([self.per_weight[name] for name in space.shapes], dtype=torch.float64)
        return each[space.tensor_index()]


@torch.no_grad()
@random_kept()
@checks_types
def flops(model: nn.Module, inputs: Any) -> Flops:
    """Count the FLOPs of every parameter, by one forward pass.

    A weight costs 2 FLOPs (a product and a sum) at each position where it is used  (eq. 50): at
    each output pixel of a convolution, input pixel of a transposed one, token of a linear layer.
    For other modules, and for parameters that an outer module uses by itself (attention's
    projections), the positions are the elements ÷ channels of the output. Embeddings cost
    nothing.

    Args:
        model: The model, which is left as it was.
        inputs: A batch's inputs.

    Returns:
        FLOPs per sample.

    Raises:
        WoodburyError: If the model refuses the inputs, or has lazy layers.

    Example:
        >>> flops(nn.Linear(3, 2), torch.zeros(8, 5, 3)).per_weight  # 5 positions
        {'weight': 10.0, 'bias': 10.0}
    """
    ParameterSpace.from_model(model)  # what is no model, or has no shapes yet, is named
    model = bare(model)
    refusal = "The model refuses the inputs that its FLOPs are counted on."
    with user_code(refusal), eval_mode(model):
        _, calls = record_calls(model, lambda: call_model(model, inputs))
    return flops_of_calls(model, calls, samples_in(inputs))


def flops_of_calls(
    model: nn.Module, calls: Mapping[nn.Module, Sequence[ModuleCall]], samples: int
) -> Flops:
    """The FLOPs of every parameter, by what a forward pass showed.

    Args:
        model: The model.
        calls: The uses of its modules in that pass, from `record_calls`.
        samples: Samples in the batch.

    Returns:
        FLOPs per sample  (eq. 50).
    """
    names = [name for name, _ in model.named_parameters()]
    modules = dict(model.named_modules())
    result = dict.fromkeys(names, 0.0)
    for owner in parameter_owners(model, names):
        # A module that was not called itself had its parameters used by some module around it.
        user = owner.path
        while user and modules[user] not in calls:
            user = user.rpartition(".")[0]
        uses = calls.get(modules[user], [])
        for attribute, name in owner.names.items():
            parameter = getattr(owner.module, attribute)
            positions = sum(_positions(modules[user], parameter, use) for use in uses)
            result[name] += 2 * positions / samples  # tied parameters add up over their users
    return Flops(result)


def _positions(module: nn.Module, parameter: Tensor, use: ModuleCall) -> float:
    """How many times one use of the module takes each weight of the parameter."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return 0.0
    shape = use.input_shape if isinstance(module, _ConvTransposeNd) else use.output_shape
    is_kernel = isinstance(module, (_ConvNd, _BatchNorm, nn.GroupNorm)) or parameter.ndim > 2
    channels = 1 if is_kernel and len(shape) > 2 else -1
    return shape.numel() / shape[channels] if shape.numel() else 0.0
