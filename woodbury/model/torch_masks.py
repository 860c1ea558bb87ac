"""Masks of torch.nn.utils.prune become zeros in plain weights."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import prune as torch_pruning

from woodbury.argument_types import checks_types
from woodbury.io.zeros import with_plain_zeros
from woodbury.model.wrappers import checked_model


@checks_types
def apply_masks(model: nn.Module) -> list[str]:
    """Make the masks of torch.nn.utils.prune permanent, in place.

    A masked weight is two tensors, `weight_orig` and `weight_mask`, of which each forward pass
    makes the third. Afterwards `weight` is the parameter, with zeros where the mask was zero. The
    outputs are the same, and an optimizer goes on with the same parameter. `woodbury.prune` with
    `keep_zeros=True` keeps these zeros and counts them.

    Args:
        model: The network, with or without masks.

    Returns:
        The names of the parameters that had a mask, as they are called now.

    Raises:
        WrongType: If the model is no torch.nn.Module.
        WoodburyError: If it was scripted, traced or exported.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> _ = torch_pruning.l1_unstructured(layer, "weight", amount=0.5)
        >>> apply_masks(layer), int((layer.weight == 0).sum()), sorted(layer.state_dict())
        (['weight'], 4, ['bias', 'weight'])
    """
    names = []
    for path, module in checked_model(model).named_modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, torch_pruning.BasePruningMethod):
                tensor = hook._tensor_name
                torch_pruning.remove(module, tensor)
                parameter = module.get_parameter(tensor)
                parameter.data = with_plain_zeros(parameter.data)
                names.append(f"{path}.{tensor}" if path else tensor)
    return names
