"""Rivals of 2024 to 2026 from their published ideas, each as objective, sparsity -> objective.

Layer after layer (ALPS), a weighted sum of reconstruction and Fisher (MOONSHOT), Adam towards the
outputs of all blocks (Free Lunch, STARFISH), and variances matched by scales (ASR).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from ways import AsItComes, way

from woodbury.estimation.gradients import gradient_chunks
from woodbury.estimation.layer_problems import layer_problems
from woodbury.estimation.row_layers import draw_positions, inputs_at, outputs_at
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.dense import Dense
from woodbury.linalg.masked_solves import masked_conjugate_gradients
from woodbury.model.hooks import forward_hooks
from woodbury.model.layers import known_layers
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.presets import standard
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude, obs
from woodbury.pruning.scopes import global_, layerwise
from woodbury.pruning.staged import run_stages
from woodbury.pruning.updates import joint, zero

POSITIONS = 64
"""Of each image, that a layer's equations are summed over at most."""

BY_MAGNITUDE = Pruner(None, magnitude, zero)


@dataclass(frozen=True)
class Removal:
    """The smallest weights are removed, and nothing else moves."""

    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        return BY_MAGNITUDE(objective, sparsity).objective


@dataclass(frozen=True)
class Ours:
    """`woodbury.prune` as it comes."""

    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        return AsItComes(standard).reached(objective, sparsity).objective


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
            moments: S (i, i), of the inputs.
            goal: (o, i), of the outputs to be reached with the inputs.
            weight: (o, i), from which it starts, and near which the ridge holds it.
            k: Weights kept.
        """
        scale = moments.diagonal().clamp_min(1e-12 * moments.diagonal().max()).rsqrt()
        curvature = scale[:, None] * moments * scale
        curvature.diagonal().add_(self.ridge)
        start = weight / scale
        linear = goal * scale + self.ridge * start
        keep = self._support(curvature, linear, start, k)
        solution = masked_conjugate_gradients(
            curvature[None],
            keep.to(curvature.dtype)[None],
            linear[None],
            lambda v: v / curvature.diagonal(),
            1e-6,
            200,
        )
        return solution.x[0] * scale

    def _support(self, curvature: Tensor, linear: Tensor, start: Tensor, k: int) -> Tensor:
        values, vectors = torch.linalg.eigh(curvature)
        rho, dual = 0.1, torch.zeros_like(start)
        sparse = torch.where(largest(start, k), start, 0)
        keep = sparse != 0
        for step in range(self.steps):
            wanted = linear + rho * sparse - dual
            dense = ((wanted @ vectors) / (values + rho)) @ vectors.T
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
    network.

    Attributes:
        solver: Of one layer.
        even: Whether all layers reach the same sparsity; else that of the global magnitude mask.
        ratio: What a stage keeps at least; 0 for one stage.
    """

    solver: Admm
    even: bool
    ratio: float = 0.0

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
            self._stage(objective, model, counts)
        weights = space.flatten(dict(model.named_parameters()))
        return objective.at(weights[weights != 0], space.restrict(weights != 0))

    def _stage(self, dense: Objective, model: nn.Module, counts: Mapping[str, int]) -> None:
        given = torch.cat([inputs for inputs, _ in dense.batches])
        own, goal = (stem(net, given) for net in (model, dense.model))
        pairs = zip(blocks_of(model), blocks_of(dense.model), strict=True)
        for (prefix, block), (_, dense_block) in pairs:
            with eval_mode(block), eval_mode(dense_block):
                goals = outputs_of(dense_block, goal)
                for name, layer in block.named_children():
                    full = f"{prefix}.{name}.weight"
                    if full in counts:
                        problem = equations(block, name, own, goals[name])
                        weight = layer.weight.flatten(1).double()
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
    """The means of a aᵀ (i, i) and of y⁰ aᵀ (o, i), float64, at some positions of each image."""
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
class WeightedSum:
    """Rows of reconstruction and Fisher in one operator, one block for each output  (eq. 94).

    Each layer's second moments of inputs are brought to the mean of its Fisher's diagonal, so that
    layers compare as the Fisher says.

    Attributes:
        share: a, of the reconstruction.
        damping: λ, as a share of the mean diagonal of the whole.
    """

    share: float
    damping: float

    def __call__(self, objective: Objective) -> Fisher:
        shapes = objective.space.shapes
        space = ParameterSpace(shapes, channels=objective.space.channels)
        full = objective.at(objective.space.expand(objective.weights), space)
        sums = {
            name: torch.zeros(shape[0], shape[1:].numel(), shape[1:].numel())
            for name, shape in shapes.items()
        }
        count = 0
        for chunk in gradient_chunks(full, sum(len(target) for _, target in full.batches)):
            parts = chunk.split([shape.numel() for shape in shapes.values()], dim=1)
            for (name, total), part in zip(sums.items(), parts, strict=True):
                rows = part.view(len(part), *total.shape[:2]).transpose(0, 1)
                total.baddbmm_(rows.mT, rows)
            count += len(chunk)
        problems = layer_problems(full, full, list(shapes), count, 6144)
        diagonals = []
        for name, total in sums.items():
            total.div_(count).mul_(1 - self.share)
            size = float(total.diagonal(dim1=1, dim2=2).mean()) / (1 - self.share)
            moments = problems[name].inputs[0]
            total.add_(moments, alpha=self.share * size / float(moments.diagonal().mean()))
            diagonals.append(total.diagonal(dim1=1, dim2=2).flatten())
        damping = self.damping * float(torch.cat(diagonals).mean())
        fisher = BlockDiagonal(tuple(Dense(total, damping) for total in sums.values()))
        kept = objective.space.kept
        return fisher if kept is None else fisher.restrict(kept)


@dataclass(frozen=True)
class Moonshot:
    """Choice by OBS and the exact update on the weighted sum, with the gradient or without it.

    Attributes:
        curvature: The weighted sum.
        first_order: Whether the gradient of the loss is followed.
        ratio: What a stage keeps at least; 0 for one stage.
    """

    curvature: WeightedSum
    first_order: bool = True
    ratio: float = 0.0

    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        path = way([0.5, sparsity], self.ratio) if self.ratio else [sparsity]
        pruner = Pruner(self.curvature, obs, joint, first_order=self.first_order)
        return run_stages(pruner, objective, path).objective


@dataclass(frozen=True)
class AdamToBlocks:
    """Adam on the weights that magnitude keeps, towards the dense outputs of all blocks.

    The loss is the sum over blocks of the squared distance as a share of the squared dense output.
    The rate falls to zero linearly.

    Attributes:
        lr: The first rate.
        epochs: Over the images.
        batch: Images of a step.
    """

    lr: float
    epochs: int = 20
    batch: int = 50

    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        pruned = BY_MAGNITUDE(objective, sparsity).objective
        images = torch.cat([inputs for inputs, _ in objective.batches])
        weights = pruned.weights.clone().requires_grad_()
        steps = self.epochs * -(-len(images) // self.batch)
        optimizer = torch.optim.Adam([weights], self.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        generator = torch.Generator().manual_seed(0)
        with eval_mode(objective.model):
            with torch.no_grad():
                parts = [outputs_of_blocks(objective, objective.weights, x) for x in images.split(250)]
            told = [torch.cat(outputs) for outputs in zip(*parts, strict=True)]
            sizes = [output.square().mean() for output in told]
            for _ in range(self.epochs):
                for part in torch.randperm(len(images), generator=generator).split(self.batch):
                    said = outputs_of_blocks(pruned, weights, images[part])
                    loss = torch.stack(
                        [
                            nn.functional.mse_loss(own, goal[part]) / size
                            for own, goal, size in zip(said, told, sizes, strict=True)
                        ]
                    ).sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        return pruned.at(weights.detach())


def outputs_of_blocks(objective: Objective, weights: Tensor, images: Tensor) -> list[Tensor]:
    """The outputs of the nine blocks."""
    found: list[Tensor] = []

    def hook(module: Any, positional: Any, keywords: Any, output: Tensor) -> None:
        found.append(output)

    with forward_hooks((block, hook) for _, block in blocks_of(objective.model)):
        objective.forward(objective.space.unflatten(weights), images)
    return found


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


GRIDS: dict[str, list[Any]] = {
    "magnitude": [Removal()],
    "variances matched (ASR)": [MatchedVariances()],
    "layer after layer (ALPS)": [
        LayerAfterLayer(Admm(ridge), even, ratio)
        for ridge, even, ratio in product((1e-3, 1e-2), (True, False), (0.0, 0.78))
    ],
    "weighted sum (MOONSHOT)": [
        Moonshot(WeightedSum(share, damping), first_order)
        for share, damping, first_order in product((0.5, 0.9), (1e-3, 1e-2, 1e-1), (True, False))
    ],
    "Adam to all blocks (Free Lunch)": [AdamToBlocks(lr) for lr in (3e-4, 1e-3, 3e-3)],
    "woodbury.prune as it comes": [Ours()],
}
