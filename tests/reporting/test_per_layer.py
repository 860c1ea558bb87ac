"""Layer-wise sparsity: weights, FLOPs and saliencies of each tensor, and their sum."""

from __future__ import annotations

from dataclasses import asdict, astuple

import torch
from support.results import dense_net, pruned_net, tensors_of

from woodbury.estimation.recipes import mfac
from woodbury.model.flop_count import flops
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.pruned import Quantiles
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import magnitude, obs
from woodbury.pruning.scopes import layerwise
from woodbury.pruning.units import output_channels
from woodbury.pruning.updates import zero
from woodbury.reporting.per_layer import TensorSummary, total


def test_weights_are_counted_in_each_tensor_and_in_all() -> None:
    tensors = tensors_of(pruned_net(Pruner(None, magnitude, zero, scope=layerwise)))
    assert [
        (row.name, row.weights, row.kept, row.sparsity) for row in [*tensors, total(tensors)]
    ] == [
        ("0.weight", 200, 100, 0.5),
        ("2.weight", 100, 50, 0.5),
        ("all", 300, 150, 0.5),
    ]
    assert all(tensor.flops is None for tensor in [*tensors, total(tensors)])


def test_flops_and_saliencies_are_those_of_each_tensor() -> None:
    pruned = pruned_net(Pruner(mfac(30, 1e-2)))
    tensors = tensors_of(pruned, flops(pruned.objective.model, torch.zeros(4, 3, 10)))
    assert [(row.flops, row.flops_left) for row in tensors] == [
        (6.0 * row.weights, 6.0 * row.kept) for row in tensors
    ]
    whole = total(tensors)
    assert (whole.flops, whole.flops_left) == (1800.0, 900.0)
    dense = dense_net()
    objective = Objective.from_model(
        dense, pruned.objective.batches, space=ParameterSpace.from_model(dense, min_ndim=2)
    )
    scores = obs(Quadratic(objective.weights, mfac(30, 1e-2)(objective))).double()
    levels = torch.tensor((0.1, 0.5, 0.9)).double()
    for row, part in zip(tensors, objective.space.slices.values(), strict=True):
        assert row.saliencies is not None
        reported = torch.tensor(astuple(row.saliencies)).double()
        truth = torch.quantile(scores[part], levels, interpolation="nearest")
        torch.testing.assert_close(reported, truth, rtol=0.05, atol=0)


def test_saliencies_of_channels_are_by_tensor() -> None:
    tensors = tensors_of(pruned_net(Pruner(None, magnitude, zero, unit=output_channels)))
    for tensor in tensors:
        assert tensor.saliencies is not None
        assert tensor.saliencies.q10 <= tensor.saliencies.median <= tensor.saliencies.q90


def test_quantiles_have_names_in_json() -> None:
    row = asdict(TensorSummary("w", 2, 1, saliencies=Quantiles(0.1, 0.2, 0.3)))
    assert row["saliencies"] == {"q10": 0.1, "median": 0.2, "q90": 0.3}
