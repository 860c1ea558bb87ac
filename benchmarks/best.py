"""The best one-shot accuracy: python benchmarks/best.py [mlpnet|resnet20|resnet20-all ...] [--rows
NAME ...] [--seeds 5]

No label's gradient is followed here: the networks move by curvature alone, by `refit` towards the
dense outputs. `single`: one set of 1,000 training images for everything; `fresh`: other images at
every stage. One-stage rows choose their damping per cell on 2,000 held-out training images; staged
rows have one damping, chosen on those images with another seed. Every row is a path: one run gives
all sparsities; `tuned`: each stage chooses its damping on those images; `mirrored`: every image
comes with its mirror image; `one quadratic`: inner stages on the dense network's. ResNet-20 is
judged with and without BatchNorm recalibrated on the calibration images. Finished cells are in
FILE.json (default: runs/best.json) and are not run again. Needs ../shared/bench.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cells import Rows, drive
from one_shot import TASKS
from ways import GRID, SAMPLES, AsItComes, Distilled, OneQuadratic, OneStage, Setting, Staged

from woodbury.estimation.recipes import gauss_newton, mfac, woodfisher
from woodbury.model.space import ParameterSpace
from woodbury.pruning.presets import standard
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit.layer_goal import Reconstruction
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.saliencies import magnitude, obs
from woodbury.pruning.selections.local_search import iterative_hard_thresholding, swaps
from woodbury.pruning.updates import independent, joint, zero


def rows(setting: Setting) -> Mapping[str, Any]:
    """The table: rivals written as recipes on our axes first."""
    labels = mfac(SAMPLES, GRID[0], block=setting.block)
    exact = gauss_newton(
        mfac(setting.rank * SAMPLES, setting.damping, block=setting.block), setting.rank
    )
    leading = gauss_newton(
        mfac(setting.refitted * SAMPLES, setting.damping, block=setting.block), setting.refitted
    )
    fresh = gauss_newton(mfac(setting.fresh, setting.damping, block=setting.block), 1)
    newest = gauss_newton(mfac(2000, setting.damping, block=setting.block), 1)
    mirrored = Staged(
        Pruner(newest, obs, joint), refit=setting.among_mirrored, ratio=setting.finer, mirrored=True
    )
    return {
        "woodbury.prune as it comes": AsItComes(standard),
        "woodbury.prune, stages from the start": AsItComes(replace(standard, in_turn=None)),
        "woodbury.prune without room for rows": AsItComes(standard, rows=1),
        "magnitude": OneStage(Pruner(None, magnitude, zero)),
        "WoodFisher, papers' update, 1 stage": OneStage(
            Pruner(woodfisher(SAMPLES, setting.block or 2000), obs, independent)
        ),
        "M-FAC, papers' update, 1 stage": OneStage(Pruner(mfac(SAMPLES), obs, independent)),
        "magnitude + joint, 1 stage": OneStage(Pruner(labels, magnitude, joint)),
        "thresholded, joint, 1 stage": OneStage(
            Pruner(labels, magnitude, joint, selection=iterative_hard_thresholding(20))
        ),
        "Gauss–Newton, joint, 1 stage": OneStage(Pruner(exact, obs, joint)),
        "Gauss–Newton, joint, 1 stage, then a refit, layers": OneStage(
            Pruner(exact, obs, joint), refit=setting.layered
        ),
        "Gauss–Newton, swaps, joint, 1 stage": OneStage(
            Pruner(exact, obs, joint, selection=swaps(10))
        ),
        "Gauss–Newton, joint, one quadratic": OneQuadratic(Pruner(exact, obs, joint)),
        "labels, papers' update, stages, single": Staged(Pruner(labels, obs, independent)),
        "labels, papers' update, stages, tuned": Staged(
            Pruner(labels, obs, independent), dampings=GRID
        ),
        "magnitude + joint, stages, tuned": Staged(Pruner(labels, magnitude, joint), dampings=GRID),
        # No larger damping was ever chosen, and each costs twenty exchanges a stage.
        "thresholded, joint, stages, tuned": Staged(
            Pruner(labels, magnitude, joint, selection=iterative_hard_thresholding(20)),
            dampings=GRID[:3],
        ),
        "labels, joint, stages, single": Staged(Pruner(labels, obs, joint)),
        "Gauss–Newton, joint, stages, single": Staged(Pruner(exact, obs, joint)),
        "Gauss–Newton, joint, stages, fresh": Staged(Pruner(fresh, obs, joint), setting.fresh),
        "magnitude, refit, stages, single": Staged(
            Pruner(None, magnitude, zero), refit=setting.refit, ratio=setting.finer
        ),
        "magnitude, Adam to the dense outputs, stages, single": Staged(
            Pruner(None, magnitude, zero), refit=setting.rival, ratio=setting.finer
        ),
        "Gauss–Newton, joint, refit, stages, single": Staged(
            Pruner(leading, obs, joint), refit=setting.refit, ratio=setting.finer
        ),
        "Gauss–Newton, joint, refit, layers, stages, single": Staged(
            Pruner(leading, obs, joint), refit=setting.layered, ratio=setting.finer
        ),
        "Gauss–Newton, joint, refit, stages, fresh": Staged(
            Pruner(newest, obs, joint),
            setting.fresh,
            setting.among_many,
            window=setting.window,
        ),
        **(
            {"Gauss–Newton, joint, refit, stages, mirrored": mirrored}
            if setting.among_mirrored
            else {}
        ),
    }


def settings(name: str, bench: Any) -> Setting:
    """A table's settings, chosen on held-out training images (docs/results)."""
    task = TASKS["mlpnet" if name == "mlpnet" else "resnet20"](bench)
    if name == "mlpnet":
        refit = Refit(mc_samples=10, damping=3e-4, iterations=100)
        return Setting(
            task,
            block=None,
            damping=3e-4,
            fresh=6000,
            refitted=1,
            window=3,
            finer=0.9,
            refit=refit,
            layered=replace(refit, reconstruction=Reconstruction()),
            among_many=refit,
            rival=Distilled(),
        )
    if name == "resnet20-all":
        space = ParameterSpace.from_model(
            task.model, include=("*conv*.weight", "*downsample.0.weight", "fc.weight")
        )
        title = "ResNet-20 on CIFAR-10 (JPEG), all convolutions and the classifier"
        task = replace(task, space=space, title=title)
    return Setting(
        replace(task, sparsities={f"{s:g}": s for s in (0.5, 0.6, 0.7, 0.8, 0.9)}),
        block=500,
        ratio=0.78,
        finer=0.78,
        refit=Refit(damping=1e-4, mc_samples=4),
        layered=Refit(damping=1e-4, mc_samples=2, reconstruction=Reconstruction()),
        among_many=Refit(damping=1e-4, mc_samples=1),
        among_mirrored=Refit(damping=1e-4, mc_samples=2),
        rival=Distilled(epochs=12, lrs=(3e-4, 1e-3, 3e-3)),
    )


def main() -> None:
    def table(name: str) -> Callable[[Any], Rows]:
        return lambda bench: (settings(name, bench), rows(settings(name, bench)))

    drive(
        str(__doc__),
        {name: table(name) for name in ("mlpnet", "resnet20", "resnet20-all")},
        5,
        "runs/best.json",
    )


if __name__ == "__main__":
    main()
