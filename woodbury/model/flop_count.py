"""FLOPs of each weight, by one forward pass that is looked at through hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from woodbury.errors import WoodburyError
from woodbury.model.batches import samples_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace

Shapes = tuple[torch.Size, torch.Size]
"""What a module was given and what it gave: the shapes of the first tensors."""


@dataclass(frozen=True)
class Flops:
    """FLOPs per sample that each weight of a parameter takes part in, by the parameter's name.

    A cost for pruning too: calling it with a space gives the FLOPs of each of the n weights, (n,).
    """

    per_weight: Mapping[str, float]

    def __call__(self, space: ParameterSpace) -> Tensor:
        missing = [name for name in space.shapes if name not in self.per_weight]
        if missing:
            raise WoodburyError(
                f"The FLOPs of {missing[0]!r} are not known: count them on the model that is pruned."
            )
        each = torch.tensor([self.per_weight[name] for name in space.shapes], dtype=torch.float64)
        return each[space.tensor_index()]


@torch.no_grad()
def flops(model: nn.Module, inputs: Any) -> Flops:
    """The FLOPs of every parameter of `model`, by one forward pass of a batch's inputs; the model is left as it was.

    A weight costs 2 FLOPs (a product and a sum) at each position where it is used  (eq. 50): at each output pixel of a
    convolution, input pixel of a transposed one, token of a linear layer. For other modules, and for parameters that an
    outer module uses by itself (attention's projections), the positions are the elements ÷ channels of what it gives.
    Embeddings cost nothing. Raises WoodburyError where the model refuses the inputs.
    """
    objective, calls = Objective.from_model(model, []), dict[nn.Module, list[Shapes]]()

    def note(module: nn.Module, given: Any, keywords: Any, output: Any) -> None:
        calls.setdefault(module, []).append((_first_shape((given, keywords)), _first_shape(output)))

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        with eval_mode(model):
            objective.forward({}, inputs)
    except Exception as error:  # whatever the user's network raises
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else 'no reason'}"
        raise WoodburyError(
            f"The model refuses the inputs that its FLOPs are counted on. ({why})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return Flops(_per_weight(model, calls, samples_in(inputs)))


def _per_weight(
    model: nn.Module, calls: Mapping[nn.Module, list[Shapes]], samples: int
) -> dict[str, float]:
    found = {name: 0.0 for name, _ in model.named_parameters()}
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    for path, owner in modules.items():
        user = path
        while (
            user and modules[user] not in calls
        ):  # it was not called itself: some module around it used its parameters
            user = user.rpartition(".")[0]
        for parameter in owner.parameters(
            recurse=False
        ):  # tied parameters add up over those who use them
            shapes = calls.get(modules[user], [])
            found[name_of[parameter]] += (
                2 * sum(_positions(modules[user], parameter, *s) for s in shapes) / samples
            )
    return found


def _positions(module: nn.Module, parameter: Tensor, given: torch.Size, gave: torch.Size) -> float:
    """How many times a batch uses each weight of the parameter."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return 0.0
    shape = given if isinstance(module, _ConvTransposeNd) else gave
    kernel = isinstance(module, (_ConvNd, _BatchNorm, nn.GroupNorm)) or parameter.ndim > 2
    channels = 1 if kernel and len(shape) > 2 else -1
    return shape.numel() / shape[channels] if shape.numel() else 0.0


def _first_shape(tree: Any) -> torch.Size:
    return next((leaf.shape for leaf in _tensors(tree)), torch.Size())


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in a module's inputs or outputs, in order; of unknown containers none."""
    leaves = tree_leaves(dict(tree) if isinstance(tree, Mapping) else tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
