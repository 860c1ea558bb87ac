"""`compact`: a copy of a network whose layers are smaller, seen to compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, user_code
from woodbury.integrations.compaction.choosing import (
    Removal,
    chosen_removal,
    inputs_of_readers,
)
from woodbury.integrations.compaction.coupling import channel_groups, copy_to_change
from woodbury.integrations.compaction.removal import with_removed
from woodbury.model.batches import tensors_in
from woodbury.model.calling import call_model
from woodbury.model.flop_count import flops
from woodbury.model.modes import eval_mode
from woodbury.model.random_numbers import random_kept
from woodbury.model.torch_masks import apply_masks
from woodbury.monitor import announce

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""How much outputs may differ, relative to the largest one; 1e-5 for other types."""


@dataclass(frozen=True)
class Compacted:
    """A smaller network, and what is known of it.

    Attributes:
        model: The network.
        shapes: Name -> shape of each parameter that is smaller, before and now.
        kept: First layer of each group of channels -> why all of them were kept.
        parameters: How many weights all parameters have, before and now.
        flops: Of the forward pass of a sample, before and now, counted on the example.
        difference: Of the outputs, relative to the largest one.
    """

    model: nn.Module
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    kept: Mapping[str, str]
    parameters: tuple[int, int]
    flops: tuple[float, float]
    difference: float

    def __str__(self) -> str:
        """One line."""
        if not self.shapes:
            return "No channel can be removed: every one is made and read by some weight."
        weights = " -> ".join(f"{count:,}" for count in self.parameters)
        operations = " -> ".join(f"{count / 1e6:,.3g}" for count in self.flops)
        return f"{len(self.shapes)} tensors are smaller: {weights} weights, {operations} MFLOPs."


@checks_types
def compact(model: nn.Module, example: Any) -> nn.Module:
    """A copy of a pruned network whose layers are smaller where whole channels are zero.

    A channel is removed from all layers that have it at once: from those that compute it, from the
    norms and depthwise convolutions on its way, and from those that read it. Torch-Pruning's graph
    says which layers these are. It is removed only if no weight computes it or none reads it; what
    it then gives, such as the shift of its BatchNorm, goes into the biases of its readers. Where
    these pad with zeros, one constant channel is kept and does for all. The copy is made of plain
    layers of torch.

    Args:
        model: The network, such as one pruned by `units.output_channels` or `coupled_channels`. It
            is left as it is.
        example: Inputs of a batch: a tensor, a tuple of positional, or a mapping of keyword
            arguments. Two samples or more.

    Returns:
        The copy, in the modes of the model. In eval mode its outputs are those of the model, to
        1e-5 of the largest one: that is seen on the example and on noise. In training mode a
        BatchNorm has other statistics, as it has fewer channels.

    Raises:
        MissingDependency: If Torch-Pruning is not installed.
        WrongType: If the model is no torch.nn.Module.
        WoodburyError: If the model has no values or no layer, cannot be copied, refuses the
            example, gives other outputs each time or none that are finite, or cannot be followed.

    Example:
        >>> import pytest; _ = pytest.importorskip("torch_pruning")
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[:5].zero_()
        >>> x = torch.randn(16, 4)
        >>> smaller = compact(model, x)
        >>> smaller[0], torch.allclose(smaller(x), model(x), atol=1e-5)
        (Linear(in_features=4, out_features=3, bias=True), True)

    Source:
        Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, for the graph.
    """
    made = compacted(model, example)
    announce(str(made))
    return made.model


@random_kept()
def compacted(model: nn.Module, example: Any) -> Compacted:
    """The same as `compact`, with what is known of the smaller network.

    Args:
        model: As for `compact`.
        example: As for `compact`.

    Returns:
        The copy, its sizes, and which channels were kept for which reason.

    Raises:
        WoodburyError: As `compact`.
    """
    network = copy_to_change(model)
    apply_masks(network)
    before = {name: tuple(each.shape) for name, each in network.named_parameters()}
    modes = [module.training for module in network.modules()]
    with eval_mode(network):
        search = _Search(network, example)
        smaller = search.run()
        operations = (_forward_flops(network, example), _forward_flops(smaller, example))
    for module, training in zip(smaller.modules(), modes, strict=True):
        module.training = training
    shapes = {
        name: (before[name], tuple(parameter.shape))
        for name, parameter in smaller.named_parameters()
        if name in before and before[name] != parameter.shape
    }
    counts = (_parameters(network), _parameters(smaller))
    return Compacted(smaller, shapes, search.kept, counts, operations, search.difference)


class _Search:
    """Rounds of removals: what is removed in one may leave nothing that reads another channel."""

    def __init__(self, network: nn.Module, example: Any) -> None:
        self.network = network
        self.example = example
        with user_code("The model refuses the example."):
            self.batches, self.truth = [example], [_outputs(network, example)]
        self._add_noise()
        self.kept: dict[str, str] = {}
        self.difference = self._error(network)
        self.tolerance = max(
            (TOLERANCE.get(each.dtype, 1e-5) for each in self.truth[0]), default=1e-5
        )
        self._check_outputs()

    def run(self) -> nn.Module:
        """The network without all channels that can be removed."""
        smaller = self.network
        while removals := self._removals(smaller):
            without = self._without(smaller, removals)
            if self._error(without) > self.tolerance:
                removals = [each for each in removals if self._changes_nothing(smaller, each)]
                without = self._without(smaller, removals)
            self.difference = self._error(without)
            if self.difference > self.tolerance:
                raise WoodburyError(
                    f"Without their constant channels the layers give outputs that differ by "
                    f"{self.difference:.1e} of the largest, which is more than "
                    f"{self.tolerance:g}: the model was left as it is."
                )
            smaller = without
        return smaller

    def _removals(self, network: nn.Module) -> list[Removal]:
        groups = channel_groups(network, self.example)
        self.kept.update({each.name: each.why_kept for each in groups if each.why_kept})
        inputs = inputs_of_readers(network, groups, self.batches)
        able = [each for each in groups if each.name not in self.kept]
        removals = [chosen_removal(network, each, inputs) for each in able]
        return [each for each in removals if each is not None]

    def _without(self, network: nn.Module, removals: list[Removal]) -> nn.Module:
        return with_removed(network, removals) if removals else network

    def _changes_nothing(self, network: nn.Module, removal: Removal) -> bool:
        """Whether a removal alone leaves the outputs; else its group is kept from now on."""
        if self._error(with_removed(network, [removal])) <= self.tolerance:
            return True
        self.kept[removal.group.name] = "without them the model's own code gives other outputs."
        return False

    def _error(self, network: nn.Module) -> float:
        """How much outputs differ from the truth, relative to the largest; infinite if none."""
        worst = 0.0
        for batch, truth in zip(self.batches, self.truth, strict=True):
            try:
                found = _outputs(network, batch)
            except Exception:  # whatever the model's own code raises where sizes do not fit
                return float("inf")
            if [each.shape for each in found] != [each.shape for each in truth]:
                return float("inf")
            for ours, theirs in zip(found, truth, strict=True):
                worst = max(worst, _relative(ours, theirs))
        return worst

    def _add_noise(self) -> None:
        """Compare on noise too, where the model gives something for it."""
        noise = _noise_like(self.example)
        try:
            outputs = _outputs(self.network, noise)
        except Exception:  # an input that may only have some values
            return
        if all(each.isfinite().all() for each in outputs):
            self.batches.append(noise)
            self.truth.append(outputs)

    def _check_outputs(self) -> None:
        if not any(each.numel() for each in self.truth[0]):
            raise WoodburyError("The model returns no tensor with elements: give another example.")
        if not all(each.isfinite().all() for each in self.truth[0]):
            raise WoodburyError(
                "The model's outputs on the example are not finite: nothing can be compared with "
                "them."
            )
        if self.difference > self.tolerance:
            raise WoodburyError(
                "The model gives other outputs each time, also in eval mode: nothing can be "
                "compared with them."
            )


@torch.no_grad()
def _outputs(network: nn.Module, batch: Any) -> list[Tensor]:
    torch.default_generator.manual_seed(0)
    return [each.clone() for each in tensors_in(call_model(network, batch))]


def _noise_like(example: Any) -> Any:
    """Inputs of the same shapes and sizes, with other values where these are real numbers."""

    def noise(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.numel() < 2:
            return leaf
        return torch.randn_like(leaf) * leaf.std().clamp(min=0.1) + leaf.mean()

    return tree_map(noise, dict(example) if isinstance(example, Mapping) else example)


def _forward_flops(network: nn.Module, example: Any) -> float:
    """FLOPs of a forward pass of a sample, by the weights of all parameters."""
    per_weight = flops(network, example).per_weight
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return sum(per_weight[name] * size for name, size in sizes.items())


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _relative(ours: Tensor, theirs: Tensor) -> float:
    if not theirs.numel():
        return 0.0
    ours, theirs = ours.double(), theirs.double()
    largest = theirs.abs().max().clamp(min=1e-30)
    difference = float((ours - theirs).abs().max() / largest)
    return difference if difference == difference else float("inf")
