"""Results of a comparison and of a pruning, for the tests of what is reported."""

from __future__ import annotations

import torch
from torch import nn

from woodbury.evaluation.results import Result
from woodbury.model.flop_count import Flops
from woodbury.pruning.api import prune
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.reporting.per_layer import TensorSummary, summarize_tensors
from woodbury.reporting.records import Baseline, DampingTrial, PruneNumbers, StageNumbers

TABLE = {"magnitude": (0.95, 0.5), "M-FAC <joint>": (0.97, 0.9), "[red]WoodFisher[/]": (0.97, 0.8)}
"""Method -> accuracy at 50 and at 97.5 % sparsity."""


def results(seeds: int = 2) -> list[Result]:
    """What `compare` could have given, with accuracies that grow by 0.01 from seed to seed."""
    return [
        Result(
            method=method,
            sparsity=sparsity,
            reached=sparsity,
            seed=seed,
            accuracy=accuracy + 0.01 * seed,
            loss_before=0.1,
            loss_after=0.3,
            predicted=None,
            measured=0.2,
            seconds=1.5,
            memory=100.0,
            damping=None,
            settings={},
        )
        for seed in range(seeds)
        for method, accuracies in TABLE.items()
        for sparsity, accuracy in zip((0.5, 0.975), accuracies, strict=True)
    ]


def dense_net() -> nn.Module:
    """Two linear layers of 200 and 100 weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))


def pruned_net(pruner: Pruner) -> Pruned:
    """The network at half of its weights."""
    model = dense_net()
    return prune(model, [(torch.randn(30, 10), torch.randint(5, (30,)))], 0.5, pruner=pruner)


def tensors_of(pruned: Pruned, flops: Flops | None = None) -> list[TensorSummary]:
    """The summaries of a pruned network."""
    return summarize_tensors(pruned.objective.space, flops, pruned.steps[0].saliencies)


def prune_numbers() -> PruneNumbers:
    """What `woodbury prune` could have measured, in two stages."""
    return PruneNumbers(
        measure="accuracy",
        sparsity=0.9,
        test_samples=450,
        score_before=0.97,
        standard_error_before=0.008,
        score_after=0.95,
        standard_error_after=0.01,
        loss_before=0.1,
        loss_after=0.3,
        predicted_increase=0.15,
        measured_increase=0.2,
        damping=1e-3,
        seconds=12.3,
        peak_megabytes=1323.95,
        peak_device_megabytes=None,
        baseline=Baseline(score=0.5, standard_error=0.024, loss=2.0, seconds=0.1),
        stages=(
            StageNumbers(0.7, 0.12, 0.01, 0.02, 1e-3),
            StageNumbers(0.9, 0.3, 0.15, 0.2, 1e-3),
        ),
        dampings_tried=(DampingTrial(1e-4, 0.5), DampingTrial(1e-3, 0.4)),
    )
