"""Rivals of 2024 to 2026 from their published ideas, each as objective, sparsity -> objective.

Here those that see the whole network: a weighted sum of reconstruction and Fisher (MOONSHOT), and
Adam towards the outputs of all blocks (Free Lunch, STARFISH). GRIDS has all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rival_layers import (
    BY_MAGNITUDE,
    Admm,
    LayerAfterLayer,
    MatchedVariances,
    blocks_of,
)
from rival_sums import fisher_blocks, scale_to
from torch import Tensor, nn
from ways import way

from woodbury.estimation.layer_problems import layer_problems
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.dense import Dense
from woodbury.model.hooks import forward_hooks
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.autoconfig import choose
from woodbury.pruning.presets import standard
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import obs
from woodbury.pruning.scopes import global_, layerwise
from woodbury.pruning.staged import run_stages
from woodbury.pruning.updates import joint


@dataclass(frozen=True)
class Removal:
    """The smallest weights are removed, and nothing else moves."""

    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        return BY_MAGNITUDE(objective, sparsity).objective


@dataclass(frozen=True)
class Ours:
    """`woodbury.prune` as it comes."""

    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        choice = choose(objective, sparsity, standard)
        return run_stages(choice.recipe, choice.objective, choice.sparsities).objective


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
        sums = fisher_blocks(full)
        count = sum(len(target) for _, target in full.batches)
        problems = layer_problems(full, full, list(shapes), count, 6144)
        diagonals = []
        for name, total in sums.items():
            moments = problems[name].inputs[0]
            of_outputs = self.share * scale_to(total, moments)
            total.mul_(1 - self.share).add_(moments, alpha=of_outputs)
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
        even: Whether all layers reach the same sparsity.
    """

    curvature: WeightedSum
    first_order: bool = True
    ratio: float = 0.0
    even: bool = False

    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        path = way([0.5, sparsity], self.ratio) if self.ratio else [sparsity]
        scope = layerwise if self.even else global_
        pruner = Pruner(self.curvature, obs, joint, scope=scope, first_order=self.first_order)
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
                parts = [
                    outputs_of_blocks(objective, objective.weights, part)
                    for part in images.split(250)
                ]
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


GRIDS: dict[str, Sequence[Any]] = {
    "magnitude": [Removal()],
    "variances matched (ASR)": [MatchedVariances()],
    "layer after layer (ALPS)": [LayerAfterLayer(Admm(), even) for even in (True, False)],
    "weighted sum (MOONSHOT)": [
        *(LayerAfterLayer(Admm(), even=True, share=share) for share in (0.9, 0.7, 0.5)),
        *(
            Moonshot(WeightedSum(share, damping), first_order=False)
            for share, damping in ((0.9, 1e-2), (0.5, 1e-2), (0.9, 1e-1))
        ),
        Moonshot(WeightedSum(0.9, 1e-1), first_order=False, even=True),
        *(Moonshot(WeightedSum(0.9, damping)) for damping in (1e-2, 1e-1)),
    ],
    "Adam to all blocks (Free Lunch)": [AdamToBlocks(lr) for lr in (1e-3, 3e-3)],
    "woodbury.prune as it comes": [Ours()],
}
