"""Along which dimensions of its tensors a layer has its outputs and its inputs."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from woodbury.model.layers import parameter_owners

TRANSPOSED_LINEAR = ("transformers.pytorch_utils", "Conv1D")
"""A Linear whose weight is stored (inputs, outputs); transformers is not imported for it."""


@dataclass(frozen=True)
class Channels:
    """Which dimensions of a tensor are a layer's outputs and inputs.

    Attributes:
        outputs: The dimension of the outputs.
        inputs: That of the inputs.
        groups: Equal groups of consecutive channels: the outputs of each read the inputs of the
            same group alone. The dimension that has not all channels has those of one group: the
            inputs of a convolution, the outputs of a transposed one.
        of: Whose channels they are, or why there are none, for sentences.
        known: False for a tensor of a module that is not known here, which may use it in any way.

    Example:
        >>> channels_of(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2)), ["0.weight"])
        {'0.weight': Channels(outputs=1, inputs=0, groups=2, of='ConvTranspose2d', known=True)}
    """

    outputs: int = 0
    inputs: int = 1
    groups: int = 1
    of: str = "layer"
    known: bool = True

    @property
    def is_matrix(self) -> bool:
        """Whether all outputs of the layer are products with all of its inputs."""
        return self.of in ("Linear", "Conv2d", "layer") and self.groups == 1

    @property
    def is_lookup(self) -> bool:
        """Whether the inputs are codes, each of which picks a row: nothing is multiplied."""
        return self.of in ("Embedding", "EmbeddingBag")


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is a Linear whose weight is stored (inputs, outputs)."""
    return (type(module).__module__, type(module).__name__) == TRANSPOSED_LINEAR


def channels_of(model: nn.Module, names: Container[str]) -> dict[str, Channels]:
    """The channels of some parameters.

    Args:
        model: The model.
        names: The parameters' names.

    Returns:
        Name -> its channels. A tensor that two modules share and read along different dimensions
        is not known.
    """
    result: dict[str, Channels] = {}
    for owner in parameter_owners(model, names):
        for attribute, name in owner.names.items():
            found = _of_parameter(owner.module, getattr(owner.module, attribute))
            before = result.setdefault(name, found)
            if (before.outputs, before.groups) != (found.outputs, found.groups):
                both = f"{before.of} and {found.of}, which share it"
                result[name] = Channels(of=both, known=False)
    return result


def _of_parameter(module: nn.Module, parameter: Tensor) -> Channels:
    kind = type(module).__name__
    if parameter.ndim < 2:
        return Channels(of=kind)
    if isinstance(module, _ConvTransposeNd):
        return Channels(1, 0, module.groups, of=kind)
    if isinstance(module, _ConvNd):
        return Channels(groups=module.groups, of=kind)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or is_transposed_linear(module):
        return Channels(1, 0, of=kind)
    is_matrix = parameter.ndim == 2
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
        return Channels(of=kind, known=is_matrix)  # biases along a sequence are no matrices
    return Channels(of=kind, known=isinstance(module, (nn.Linear, nn.Bilinear)))
