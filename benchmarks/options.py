"""What each option of pruning is worth: python benchmarks/options.py [resnet20|half-trained ...]
[--rows NAME ...] [--seeds 3]

ResNet-20 on CIFAR-10 (JPEG), 18 block convolutions, blocks of 128 and the joint update: global or
per-layer thresholds, 1, 4 and 16 recomputations, observed or drawn labels or none, 1,000 images or
50 or 10. `half-trained`: the papers' checkpoint, which has not converged on these images, with and
without the first-order term. Dampings are chosen on held-out training images, per cell, but for the
recomputations; so is the share of the gradient that is followed. Needs ../shared/bench.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from cells import Rows, drive
from measured import BENCH
from one_shot import TASKS
from ways import OneStage, Setting

from woodbury.estimation.labels import sampled
from woodbury.estimation.recipes import gauss_newton, woodfisher
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude, obs, woodtaylor
from woodbury.pruning.schedule import geometric
from woodbury.pruning.scopes import layerwise
from woodbury.pruning.staged import run_stages
from woodbury.pruning.updates import joint, zero

COUNT, BLOCK = 1000, 128
LITTLE = (0.1, 0.03, 0.01, 0.0)
"""The shares of the gradient that are tried: on this network more than a tenth ruins it."""


@dataclass(frozen=True)
class Rounds:
    """`count` recomputations from the dense net to the last sparsity, at one damping."""

    pruner: Pruner
    count: int

    def __call__(
        self, setting: Setting, objective: Objective, judge: list[Batch], seed: int
    ) -> Iterator[tuple[float, Pruned]]:
        sparsity = list(setting.task.sparsities.values())[-1]
        yield sparsity, run_stages(self.pruner, objective, geometric(sparsity, self.count))


def resnet20(bench: Any) -> Rows:
    task = replace(TASKS["resnet20"](bench), sparsities={"0.7": 0.7, "0.8": 0.8})
    base, few = (
        Pruner(woodfisher(COUNT, BLOCK), obs, joint),
        Pruner(woodfisher(500, BLOCK, 1e-3), obs, joint),
    )
    table = {
        "magnitude": OneStage(Pruner(None, magnitude, zero)),
        "magnitude, per layer": OneStage(Pruner(None, magnitude, zero, scope=layerwise)),
        "observed labels": OneStage(base),
        "observed labels, per layer": OneStage(replace(base, scope=layerwise)),
        "drawn labels": OneStage(replace(base, fisher=woodfisher(COUNT, BLOCK, labels=sampled))),
        "no labels (Gauss–Newton)": OneStage(
            replace(base, fisher=gauss_newton(woodfisher(2 * COUNT, BLOCK), 2))
        ),
        "50 images": OneStage(replace(base, fisher=woodfisher(50, BLOCK))),
        "50 images, no labels": OneStage(
            replace(base, fisher=gauss_newton(woodfisher(8 * 50, BLOCK), 8))
        ),
        "10 images, no labels": OneStage(
            replace(base, fisher=gauss_newton(woodfisher(8 * 10, BLOCK), 8))
        ),
        **{f"{count} round(s) of 500 gradients, 1e-3": Rounds(few, count) for count in (1, 4, 16)},
    }
    return Setting(task, BLOCK), table


def half_trained(bench: Any) -> Rows:
    task = TASKS["resnet20"](bench)
    task.model.load_state_dict(
        torch.load(BENCH / "resnet20-cifar10-original.pt", weights_only=True)
    )
    title = "ResNet-20, not converged on these images (78.31 %), 18 block convolutions"
    task = replace(task, sparsities={"0.3": 0.3, "0.5": 0.5}, title=title)
    labels, exact = woodfisher(COUNT, BLOCK), gauss_newton(woodfisher(2 * COUNT, BLOCK), 2)
    table = {
        "magnitude": OneStage(Pruner(None, magnitude, zero)),
        "WoodFisher": OneStage(Pruner(labels, obs, joint)),
        "WoodTaylor": OneStage(Pruner(labels, woodtaylor, joint, first_order=True), LITTLE),
        "Gauss–Newton": OneStage(Pruner(exact, obs, joint)),
        "Gauss–Newton, first order": OneStage(
            Pruner(exact, woodtaylor, joint, first_order=True), LITTLE
        ),
    }
    return Setting(task, BLOCK), table


if __name__ == "__main__":
    drive(
        str(__doc__), {"resnet20": resnet20, "half-trained": half_trained}, 3, "runs/options.json"
    )
