"""What each layer's outputs say of its weights, by hooks: least squares between two networks, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.limits import Limits
from woodbury.model.batches import regrouped, samples_in
from woodbury.model.layers import MatrixLayer, is_known, patches, positions
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.monitor import report

POSITIONS = 64
"""Of each sample, at most: a thousand samples of so many say enough of a layer's few hundred inputs."""


@dataclass
class LayerFit:
    """The normal equations of one layer, over all samples and the positions that were drawn in each  (eq. 64).

    inputs: (i, i) float64, the sum of a aᵀ, a the inputs in the network that moves; missed: (i, o) float64, the sum of
    a (y⁰ − y)ᵀ, what its outputs lack to the goal's; positions: how many were summed.
    """

    inputs: Tensor
    missed: Tensor
    positions: int = 0

    @property
    def size(self) -> float:
        """The mean square of an input."""
        return float(self.inputs.diagonal().mean()) / self.positions

    def of(self, output: int, kept: Tensor) -> tuple[Tensor, Tensor]:
        """S_KK (k, k) and c_K (k,): the moments of the inputs `kept` (k,), by index, and what one output lacked along them."""
        return self.inputs[kept][:, kept] / self.positions, self.missed[
            kept, output
        ] / self.positions

    @classmethod
    def none(cls, layer: MatrixLayer) -> LayerFit:
        """Before the first position."""
        outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
        zeros = partial(torch.zeros, dtype=torch.float64, device=layer.weight.device)
        return cls(zeros(inputs, inputs), zeros(inputs, outputs))

    def add(self, layer: MatrixLayer, given: Tensor, lacking: Tensor) -> None:
        """One use of the layer: its input, and what its output lacks."""
        lacking = positions(layer, lacking)
        drawn = self._drawn(lacking.shape[1]).to(lacking.device)
        lacking, start = lacking[:, drawn], 0
        for part in patches(layer, given, drawn):
            flat = part.flatten(0, 1)
            told = lacking[start : start + len(part)].flatten(0, 1).to(flat.dtype)
            self.inputs += flat.T @ flat
            self.missed += flat.T @ told
            start, self.positions = start + len(part), self.positions + len(flat)

    def _drawn(self, count: int) -> Tensor:
        """POSITIONS of so many, others for other samples."""
        generator = torch.Generator().manual_seed(self.positions)
        return torch.randperm(count, generator=generator)[:POSITIONS]


@torch.no_grad()
def layer_fits(objective: Objective, goal: Objective, samples: int) -> dict[str, LayerFit]:
    """Parameter name -> its layer's normal equations, on the first so many of the objective's samples  (eq. 64).

    Both are networks of one architecture, at their own weights; no label is read. For the weights in the space of each
    nn.Linear and ungrouped nn.Conv2d; those of other layers, and of layers that the two use differently, are left out.
    Raises WoodburyError, naming the weight, where inputs or outputs are not finite.
    """
    fits: dict[str, LayerFit] = {}
    apart, done = set(), 0
    for inputs, _ in regrouped(objective.batches, Limits.current().layer_samples, samples):
        apart |= _add(fits, objective, goal, inputs)
        done += samples_in(inputs)
        report("samples through the layers", done, samples)
    fits = {name: fit for name, fit in fits.items() if name not in apart}
    for name, fit in fits.items():
        if not bool(torch.isfinite(fit.inputs).all() and torch.isfinite(fit.missed).all()):
            raise WoodburyError(
                f"The layer of {name!r} has inputs or outputs that are not finite: look at the data."
            )
    return fits


def _add(
    fits: dict[str, LayerFit], objective: Objective, goal: Objective, inputs: object
) -> set[str]:
    """One batch into the sums; the names of those that the two use differently."""
    told: dict[str, list[Tensor]] = {}
    apart: set[str] = set()

    def tell(name: str, layer: MatrixLayer, given: Tensor, output: Tensor) -> None:
        told.setdefault(name, []).append(output.clone())  # an in-place activation may follow

    def fit(name: str, layer: MatrixLayer, given: Tensor, output: Tensor) -> None:
        if told.get(name) and told[name][0].shape == output.shape:
            fits.setdefault(name, LayerFit.none(layer)).add(
                layer, given, told[name].pop(0) - output
            )
        else:
            apart.add(name)

    _watched(goal, inputs, tell)
    _watched(objective, inputs, fit)
    return apart


def _watched(
    objective: Objective, inputs: object, note: Callable[[str, MatrixLayer, Tensor, Tensor], None]
) -> None:
    """One forward pass that tells of every use of a known layer; the hooks are gone afterwards, whatever happens."""

    def hook(name: str) -> Callable[..., None]:
        def heard(layer: MatrixLayer, positional: tuple, keywords: dict, output: Tensor) -> None:
            given = positional[0] if positional else keywords["input"]
            if given.ndim >= 2 and (isinstance(layer, nn.Linear) or given.ndim == 4):
                note(name, layer, given, output)

        return heard

    with ExitStack() as hooks, eval_mode(objective.model):
        for name, layer in _layers(objective):
            hooks.callback(layer.register_forward_hook(hook(name), with_kwargs=True).remove)
        objective.forward(objective.parameters, inputs)


def _layers(objective: Objective) -> list[tuple[str, MatrixLayer]]:
    """The known layers that multiply by a weight of the space, each with that weight's name."""
    names = {
        id(weight): name
        for name, weight in objective.model.named_parameters()
        if name in objective.space.shapes
    }
    known = [module for module in objective.model.modules() if is_known(module)]
    return [(names[id(layer.weight)], layer) for layer in known if id(layer.weight) in names]
