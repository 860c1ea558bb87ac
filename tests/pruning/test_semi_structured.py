"""n:m patterns: how many of each run are kept in every kind of layer, and in torch's own layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

import woodbury
from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.scopes import consecutive
from woodbury.pruning.undivided import divided
from woodbury.pruning.updates import zero

BY_MAGNITUDE = woodbury.Pruner(None, magnitude, zero)


def transposed_linear() -> nn.Module:
    layer = pytest.importorskip("transformers").pytorch_utils.Conv1D(6, 8)
    return nn.Sequential(layer, nn.Linear(6, 3)).requires_grad_(True)


def images() -> Tensor:
    return torch.randn(24, 8, 4, 4)


Built = tuple[Callable[[], nn.Module], Callable[[], Tensor], str, Callable[[Tensor], Tensor]]

LAYERS: dict[str, Built] = {
    "Linear": (lambda: nn.Linear(8, 3), lambda: torch.randn(24, 8), "weight", lambda w: w),
    "Conv2d": (
        lambda: nn.Sequential(nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 3)),
        images,
        "0.weight",
        lambda w: w.permute(0, 2, 3, 1).flatten(1),
    ),
    "Conv2d, 2 groups": (
        lambda: nn.Sequential(nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 3)),
        images,
        "0.weight",
        lambda w: w.permute(0, 2, 3, 1).flatten(1),
    ),
    "Conv1d": (
        lambda: nn.Sequential(nn.Conv1d(8, 4, 3), nn.Flatten(), nn.Linear(8, 3)),
        lambda: torch.randn(24, 8, 4),
        "0.weight",
        lambda w: w.permute(0, 2, 1).flatten(1),
    ),
    "Conv1D of transformers": (
        transposed_linear,
        lambda: torch.randn(24, 8),
        "0.weight",
        lambda w: w.T,
    ),
}
"""Layer -> how to build it, its inputs, its weight, and that as (outputs, inputs in runs)."""


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2)])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_run_along_the_inputs_keeps_n(kind: str, n: int, m: int) -> None:
    build, inputs, name, matrix_of = LAYERS[kind]
    torch.manual_seed(0)
    model = build()
    batches = [(inputs(), torch.arange(24) % 3)]
    dense = {key: weight.clone() for key, weight in model.state_dict().items()}
    sparsity, pruner = woodbury.n_of_m(n, m, woodbury.Pruner(woodbury.mfac(24, damping=1e-2)))
    pruned = woodbury.prune(model, batches, sparsity, pruner=pruner, include=name)
    weight = model.get_parameter(name).detach()
    assert (matrix_of(weight).reshape(-1, m).count_nonzero(1) == n).all()
    assert pruned.sparsity == sparsity == 1 - n / m
    kept = weight != 0
    assert not torch.equal(weight[kept], dense[name][kept])  # the exact update has moved them
    state = model.state_dict()
    assert set(state) == set(dense)  # a plain dense checkpoint
    assert all(torch.equal(state[key], dense[key]) for key in dense if key != name)


@pytest.mark.parametrize(
    ("build", "inputs", "matrix_of"),
    [
        (lambda: nn.Linear(64, 32), (8, 64), lambda w: w),
        (lambda: nn.Conv2d(64, 32, 3), (8, 64, 3, 3), lambda w: w.permute(0, 2, 3, 1).flatten(1)),
    ],
    ids=["Linear", "Conv2d"],
)
def test_it_packs_without_loss_in_the_layout_of_to_sparse_semi_structured(
    build: Callable[[], Any], inputs: tuple[int, ...], matrix_of: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    layer = build()
    model = nn.Sequential(layer, nn.Flatten())
    sparsity, pruner = woodbury.n_of_m(2, 4, woodbury.Pruner(woodbury.mfac(8)))
    batches = [(torch.randn(inputs), torch.arange(8) % 32)]
    woodbury.prune(model, batches, sparsity, pruner=pruner)
    dense = matrix_of(layer.weight.detach()).half().contiguous()
    packed, places = sparse_semi_structured_from_dense_cutlass(dense)
    assert packed.shape == (dense.shape[0], dense.shape[1] // 2)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed, places), dense)
    # Runs along the kernel's positions, as the weight lies in memory, are other ones.
    if layer.weight.ndim == 4:
        as_stored = layer.weight.detach().half().flatten(1).contiguous()
        packed, places = sparse_semi_structured_from_dense_cutlass(as_stored)
        assert not torch.equal(sparse_semi_structured_to_dense_cutlass(packed, places), as_stored)


def first_layer_of_three_inputs() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(16, 3)
    )


def test_layers_whose_inputs_m_does_not_divide_are_left_out_and_named() -> None:
    model = first_layer_of_three_inputs()
    first = model[0].weight.detach().clone()
    batches = [(torch.randn(12, 3, 4, 4), torch.arange(12) % 3)]
    sparsity, pruner = woodbury.n_of_m(2, 4, BY_MAGNITUDE)
    pruned = woodbury.prune(model, batches, sparsity, pruner=pruner)
    assert torch.equal(model[0].weight, first)
    assert pruned.sparsity == 0.5
    assert "Groups of 4 do not divide the 3 weights" in str(pruned.settings["undivided"])
    assert "'0.weight'" in str(pruned.settings["undivided"])
    assert list(pruned.objective.space.shapes) == ["2.weight", "4.weight"]
    assert (model[4].weight.view(-1, 4).count_nonzero(1) == 2).all()


def test_a_gradual_run_leaves_them_out_too() -> None:
    model = first_layer_of_three_inputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(12, 3, 4, 4), torch.arange(12) % 3)]
    sparsity, pruner = woodbury.n_of_m(2, 4, BY_MAGNITUDE)
    gradual = woodbury.Gradual(
        model, optimizer, batches, sparsity, end=2, steps=1, start=2, pruner=pruner
    )
    assert list(gradual.space.undivided) == ["0.weight"]
    for inputs, target in batches * 3:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    assert (model[4].weight.view(-1, 4).count_nonzero(1) == 2).all()
    assert model[0].weight.count_nonzero() == model[0].weight.numel()


def test_where_nothing_is_left_the_first_layer_is_named() -> None:
    space = ParameterSpace.from_model(nn.Linear(6, 2), min_ndim=2)
    with pytest.raises(WoodburyError, match=r"divide the 6 weights.*nothing else is left to prune"):
        divided(space, consecutive(4))
    embedding = ParameterSpace.from_model(nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 2)))
    weights = {name: shape for name, shape in embedding.shapes.items() if len(shape) > 1}
    matrices = ParameterSpace(weights, channels=embedding.channels)
    assert "belongs to Embedding" in divided(matrices, consecutive(4)).undivided["0.weight"]
    assert divided(matrices, consecutive(4, {"0.*": 1})) is matrices
    with pytest.raises(WoodburyError, match="no dimension 5"):
        divided(matrices, consecutive(4, 5))
