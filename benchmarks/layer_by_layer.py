"""The rivals of language models: SparseGPT, its exact form and Wanda, which prune layer after layer
to one sparsity, with the inputs that the layers pruned before leave."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.kronecker.by_rows import KroneckerRows
from woodbury.model.hooks import forward_hooks, layer_input
from woodbury.model.layers import known_layers
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import obd, obs
from woodbury.pruning.scopes import layerwise
from woodbury.pruning.selections.greedy_selection import iterative_greedy
from woodbury.pruning.updates import joint, zero

DAMPING, COLUMNS = 0.01, 128
"""SparseGPT's own: of the mean square of an input, and the columns that share a threshold."""


class _Enough(Exception):
    """The layer has its input: the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class layer_inputs:
    """The second moments of the inputs of one linear layer, the same for each of its outputs.

    Its quadratic is the squared error of the layer's output (OBC, SparseGPT): K-FAC by rows without
    an output factor, from forward passes alone.
    """

    damping: float = DAMPING

    @torch.no_grad()
    def __call__(self, objective: Objective) -> BlockDiagonal:
        ((name, layer),) = known_layers(objective.model, objective.space.shapes)
        total, positions = torch.zeros(()), 0

        def note(layer: Any, positional: Any, keywords: Any, output: Any) -> None:
            nonlocal total, positions
            given = layer_input(positional, keywords).flatten(0, -2)
            total, positions = total + (given.T @ given).double(), positions + len(given)
            raise _Enough

        with forward_hooks([(layer, note)]):
            for inputs, _ in objective.batches:
                with suppress(_Enough):
                    functional_call(objective.model, objective.parameters, (inputs,))
        moments = total / positions
        moments.diagonal().add_(self.damping * moments.diagonal().mean())
        shape = objective.space.shapes[name]
        moments = moments.to(objective.weights.dtype)
        return BlockDiagonal((KroneckerRows(torch.ones(shape[0]), moments, 0.0),))


def per_output(space: ParameterSpace) -> Tensor:
    """A scope: the weights of one row of a matrix compete."""
    (shape,) = space.shapes.values()
    return torch.arange(shape[0]).repeat_interleave(shape[1])


@dataclass(frozen=True)
class LayerAfterLayer:
    """A recipe for one matrix, on each in turn; all reach the same sparsity."""

    pruner: Any

    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        pruned = copy.deepcopy(objective)
        for name in objective.space.shapes:
            space = ParameterSpace.from_model(pruned.model, include=name)
            own = Objective.from_model(pruned.model, pruned.batches, pruned.likelihood, space)
            self.pruner(own, sparsity).write()
        return Objective.from_model(
            pruned.model, pruned.batches, pruned.likelihood, objective.space
        )


def sparsegpt(objective: Objective, sparsity: float) -> Objective:
    """One matrix by Algorithm 1 of Frantar & Alistarh (ICML 2023), in float64.

    Its columns are visited once, from the first to the last. The weights to remove are chosen for
    COLUMNS of them at a time, when all before are done; each removal is made up for by the columns
    to come.
    """
    fisher = layer_inputs()(objective)
    (part,) = fisher.parts
    assert isinstance(part, KroneckerRows)
    (shape,) = objective.space.shapes.values()
    weight = objective.weights.view(shape).double().clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(part.inputs.double()))
    upper = torch.linalg.cholesky(inverse, upper=True)
    removed = 0
    for start in range(0, shape[1], COLUMNS):
        end = min(start + COLUMNS, shape[1])
        own, local = weight[:, start:end], upper[start:end, start:end]  # a view: written in place
        count = round(sparsity * shape[0] * end) - removed
        removed += count
        scores = (own / local.diagonal()).square().flatten()
        remove = torch.zeros(own.numel(), dtype=torch.bool)
        remove[scores.topk(count, largest=False).indices] = True
        remove = remove.view(own.shape)
        errors = torch.zeros_like(own)
        for column in range(end - start):
            gone = torch.where(remove[:, column], own[:, column], 0)
            errors[:, column] = gone / local[column, column]
            own[:, column:] -= errors[:, column, None] * local[column, column:]
        own[remove] = 0
        weight[:, end:] -= errors @ upper[start:end, end:]
    return objective.at(weight.flatten().to(objective.weights.dtype))


SPARSEGPT = LayerAfterLayer(sparsegpt)
WANDA = LayerAfterLayer(Pruner(layer_inputs(), obd, zero, scope=per_output))
EXACT = LayerAfterLayer(
    Pruner(layer_inputs(), obs, joint, scope=layerwise, selection=iterative_greedy(4))
)
"""Stronger than SparseGPT: four inner steps over all columns, then the exact joint update."""
