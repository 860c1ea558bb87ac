"""Rivals that work on one layer after the other, from their published ideas.

Least squares of each layer with its support chosen by ADMM (ALPS), and variances matched by scales
(ASR).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rival_sums import fisher_blocks, weighted
from torch import Tensor, nn
from ways import way

from woodbury.estimation.row_layers import draw_positions, inputs_at, outputs_at
from woodbury.linalg.masked_solves import masked_conjugate_gradients
from woodbury.model.hooks import forward_hooks
from woodbury.model.layers import known_layers
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.scopes import global_, layerwise
from woodbury.pruning.updates import zero

POSITIONS = 64
"""Of each image, that a layer's equations are summed over at most."""

BY_MAGNITUDE = Pruner(None, magnitude, zero)


@dataclass(frozen=True)
class Admm:
    """Least squares of one layer with at most k weights  (eq. 93).

    Inputs are scaled to one second moment each. ρ grows from 0.1: the more, the more of the kept
    weights have changed; no change ends it. Conjugate gradients then solve on the weights kept.

    Attributes:
        ridge: λ, added to the scaled second moments, whose diagonal is 1.
        steps: Of ADMM at most.
    """

    ridge: float = 1e-2
    steps: int = 300

    def __call__(self, moments: Tensor, goal: Tensor, weight: Tensor, k: int) -> Tensor:
        """The weight.

        Args:
            moments: S (i, i), of the inputs; (o, i, i) where each output has a matrix of its own.
            goal: (o, i), of the outputs to be reached with the inputs.
            weight: (o, i), from which it starts, and near which the ridge holds it.
            k: Weights kept.
        """
        matrices = moments.view(-1, *moments.shape[-2:])
        diagonal = matrices.diagonal(dim1=1, dim2=2)
        scale = diagonal.clamp_min(1e-12 * float(diagonal.max())).rsqrt()[:, None]
        curvature = scale.mT * matrices * scale
        curvature.diagonal(dim1=1, dim2=2).add_(self.ridge)
        rows = len(matrices), -1, weight.shape[1]  # of each matrix: all outputs, or one
        start = weight.to(matrices).view(rows) / scale
        linear = goal.to(matrices).view(rows) * scale + self.ridge * start
        keep = self._support(curvature, linear, start, k)
        solution = masked_conjugate_gradients(
            curvature,
            keep.to(curvature.dtype),
            linear,
            lambda v: v / curvature.diagonal(dim1=1, dim2=2)[:, None],
            1e-6,
            200,
        )
        return (solution.x * scale).view(weight.shape)

    def _support(self, curvature: Tensor, linear: Tensor, start: Tensor, k: int) -> Tensor:
        values, vectors = torch.linalg.eigh(curvature)
        rho, dual = 0.1, torch.zeros_like(start)
        sparse = torch.where(largest(start, k), start, 0)
        keep = sparse != 0
        for step in range(self.steps):
            wanted = linear + rho * sparse - dual
            dense = ((wanted @ vectors) / (values[:, None] + rho)) @ vectors.mT
            free = dense + dual / rho
            kept = largest(free, k)
            sparse = torch.where(kept, free, 0)
            dual += rho * (dense - sparse)
            if step % 3 == 2:
                changed = int((kept != keep).sum()) / 2
                if not changed and step > 30:
                    break
                rho *= 1.3 if changed > 0.1 * k else 1.2 if changed > 0.005 * k else 1.1
                keep = kept
        return kept


def largest(values: Tensor, k: int) -> Tensor:
    """Bool, True for the k of the largest magnitude."""
    flat = torch.zeros(values.numel(), dtype=torch.bool)
    flat[values.abs().flatten().topk(k).indices] = True
    return flat.view(values.shape)


@dataclass(frozen=True)
class LayerAfterLayer:
    """ADMM for the support of each layer, in the order of the network  (ALPS, eq. 93).

    A layer reads what the layers pruned before it leave, and aims at its outputs in the dense
    network; with a share below 1 it minimises the increase of the loss by the Fisher's blocks of
    its outputs too (MOONSHOT, eq. 94).

    Attributes:
        solver: Of one layer.
        even: Whether all layers reach the same sparsity; else that of the global magnitude mask.
        ratio: What a stage keeps at least; 0 for one stage.
        share: a, of the outputs.
    """

    solver: Admm
    even: bool
    ratio: float = 0.0
    share: float = 1.0

    @torch.no_grad()
    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        path = way([0.5, sparsity], self.ratio) if self.ratio else [sparsity]
        model, space = copy.deepcopy(objective.model), objective.space
        for goal in path:
            scope = layerwise if self.even else global_
            kept = replace(BY_MAGNITUDE, scope=scope)(objective, goal).keep.split(
                [shape.numel() for shape in space.shapes.values()]
            )
            counts = {name: int(own.sum()) for name, own in zip(space.shapes, kept, strict=True)}
            fisher = fisher_blocks(objective) if self.share < 1 else {}
            self._stage(objective, model, counts, fisher)
        weights = space.flatten(dict(model.named_parameters()))
        return objective.at(weights[weights != 0], space.restrict(weights != 0))

    def _stage(
        self,
        dense: Objective,
        model: nn.Module,
        counts: Mapping[str, int],
        fisher: Mapping[str, Tensor],
    ) -> None:
        given = torch.cat([inputs for inputs, _ in dense.batches])
        own, goal = (stem(net, given) for net in (model, dense.model))
        pairs = zip(blocks_of(model), blocks_of(dense.model), strict=True)
        for (prefix, block), (_, dense_block) in pairs:
            with eval_mode(block), eval_mode(dense_block):
                goals = outputs_of(dense_block, goal)
                for name, reached in goals.items():
                    layer: Any = block.get_submodule(name)
                    full = f"{prefix}.{name}.weight"
                    if full in counts:
                        problem = equations(block, name, own, reached)
                        weight = layer.weight.flatten(1).double()
                        if full in fisher:
                            problem = weighted(*problem, fisher[full], weight, self.share)
                        found = self.solver(*problem, weight, counts[full])
                        layer.weight.copy_(found.view(layer.weight.shape))
                own, goal = block(own), dense_block(goal)


def stem(model: Any, images: Tensor) -> Tensor:
    """What the blocks of ResNet-20 are given."""
    with eval_mode(model):
        return model.bn1(model.conv1(images)).relu()


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The nine blocks of ResNet-20, and their names."""
    return [
        (f"layer{index}.{name}", block)
        for index in (1, 2, 3)
        for name, block in model.get_submodule(f"layer{index}").named_children()
    ]


def outputs_of(block: nn.Module, given: Tensor) -> dict[str, Tensor]:
    """The outputs of its convolutions."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: Any, positional: Any, keywords: Any, output: Tensor) -> None:
            found[name] = output

        return hook

    layers = [(m, note(name)) for name, m in block.named_children() if isinstance(m, nn.Conv2d)]
    with forward_hooks(layers):
        block(given)
    return found


def equations(block: nn.Module, name: str, given: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """The means of a aᵀ (i, i) and y⁰ aᵀ (o, i), float64, at some positions of each image."""
    layer: Any = block.get_submodule(name)
    sums: list[Tensor] = []

    def hook(module: Any, positional: Any, keywords: Any, output: Tensor) -> None:
        (inputs,) = positional
        drawn = draw_positions(layer, inputs, POSITIONS, torch.Generator().manual_seed(0))
        wanted = outputs_at(layer, goal, drawn)
        start, moments, cross = 0, torch.zeros(()), torch.zeros(())
        for chunk in inputs_at(layer, inputs, drawn):
            moments = moments + chunk.T @ chunk
            cross = cross + wanted[start : start + len(chunk)].T @ chunk
            start += len(chunk)
        sums.extend((moments.double() / start, cross.double() / start))

    with forward_hooks([(layer, hook)]):
        block(given)
    return sums[0], sums[1]


@dataclass(frozen=True)
class MatchedVariances:
    """Each output channel of a pruned layer has the mean and variance of the dense one's  (eq. 95).

    The scale goes into the weight and the shift into the running mean of the BatchNorm after it, in
    the order of the layers, all images at once.
    """

    @torch.no_grad()
    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        pruned = BY_MAGNITUDE(objective, sparsity).objective
        images = torch.cat([inputs for inputs, _ in objective.batches])
        model = copy.deepcopy(objective.model)
        replace(pruned, model=model).write()
        goals: dict[str, tuple[Tensor, Tensor]] = {}

        def note(name: str) -> Any:
            def hook(layer: Any, positional: Any, keywords: Any, output: Tensor) -> None:
                goals[name] = moments_of(output)

            return hook

        def match(name: str) -> Any:
            norm: Any = model.get_submodule(name.replace("conv", "bn").removesuffix(".weight"))

            def hook(layer: Any, positional: Any, keywords: Any, output: Tensor) -> Tensor:
                (mean, variance), (goal, wanted) = moments_of(output), goals[name]
                scale = torch.where(variance > 0, (wanted / variance).sqrt(), 1)
                layer.weight.mul_(scale[:, None, None, None])
                norm.running_mean.sub_(goal - scale * mean)
                return output * scale[:, None, None]

            return hook

        for network, hook_of in ((objective.model, note), (model, match)):
            hooks = [(layer, hook_of(name)) for name, layer in layers_of(network, objective)]
            with eval_mode(network), forward_hooks(hooks):
                network(images)
        weights = pruned.space.flatten(dict(model.named_parameters()))
        return replace(pruned, model=model, weights=weights)


def layers_of(model: nn.Module, objective: Objective) -> Iterator[tuple[str, nn.Module]]:
    yield from known_layers(model, objective.space.shapes)


def moments_of(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of (b, o, h, w)."""
    variance, mean = torch.var_mean(output, (0, 2, 3), correction=0)
    return mean, variance
