"""Stages: one pruning after the other, on fresh gradients or on one quadratic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, user_code
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.monitor import whole
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner, PruningRecipe, check_recipe
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.schedule import Targets
from woodbury.pruning.updates import joint


@checks_types
def stages(
    recipe: PruningRecipe,
    objective: Objective,
    sparsities: Sequence[Targets],
    fresh: Callable[[int], Iterable[Batch]] | None = None,
) -> Iterator[Pruned]:
    """Prune to one sparsity after the other, with fresh gradients at the weights reached each time.

    Args:
        recipe: A Pruner, a DampingSearch or a WithRefit.
        objective: The dense network; the model is untouched.
        sparsities: Of the original space after each stage, rising; such as `geometric(0.9, 5)`.
        fresh: Stage 0, 1, … -> the calibration set of that stage; None takes the objective's own
            batches in every stage.

    Returns:
        What each stage reached, as it is reached. The steps of the stages before come first.

    Raises:
        WoodburyError: At once if there is no sparsity, or the last one is impossible.

    Example:
        >>> import torch
        >>> import woodbury
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = woodbury.Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> pruner = woodbury.Pruner(woodbury.mfac(20, damping=1e-2))
        >>> [pruned.sparsity for pruned in stages(pruner, dense, [0.25, 0.5])]
        [0.25, 0.5]
    """
    check_recipe(recipe)
    _check_not_empty(sparsities)
    recipe.rules.check(objective.space, sparsities[-1])
    return _stages(recipe, objective, sparsities, fresh)


def _stages(
    recipe: PruningRecipe,
    objective: Objective,
    sparsities: Sequence[Targets],
    fresh: Callable[[int], Iterable[Batch]] | None,
) -> Iterator[Pruned]:
    reached = Pruned(objective, ())
    for stage, sparsity in enumerate(sparsities):
        here = reached.objective
        if fresh is not None:
            with user_code(f"The fresh batches of stage {stage} cannot be made."):
                here = replace(here, batches=fresh(stage))
        carried = reached.carried if fresh is None else None
        pruned = recipe(here, sparsity) if carried is None else recipe(here, sparsity, carried)
        reached = _appended(reached, pruned)
        yield reached


@checks_types
def run_stages(
    recipe: PruningRecipe,
    objective: Objective,
    sparsities: Sequence[Targets],
    after: Callable[[Pruned], object] | None = None,
    expected: float | None = None,
) -> Pruned:
    """The last of the `stages`, on the objective's own batches; their progress is reported.

    Args:
        recipe: A Pruner, a DampingSearch or a WithRefit.
        objective: The dense network; the model is untouched.
        sparsities: Of the original space after each stage, rising.
        after: Called with what each stage has reached, such as to measure its loss.
        expected: Seconds that all stages are predicted to take, for the time left; None without a
            prediction.

    Returns:
        What the last stage reached, with the steps of all.

    Raises:
        WoodburyError: As `stages`.

    Example:
        >>> import torch
        >>> import woodbury
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = woodbury.Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> pruner = woodbury.Pruner(woodbury.mfac(20, damping=1e-2))
        >>> len(run_stages(pruner, dense, [0.25, 0.5]).steps)
        2
    """
    reached = Pruned(objective, ())
    with whole("stage", "stages", len(sparsities), expected) as progress:
        for pruned in stages(recipe, objective, sparsities):
            reached = pruned
            if after is not None:
                with user_code("The function `after` fails."):
                    after(reached)
            progress.advance()
    return replace(reached, carried=None)


@checks_types
def inner_stages(
    pruner: Pruner, quadratic: Quadratic, objective: Objective, sparsities: Sequence[Targets]
) -> Iterator[Pruned]:
    """Prune to one sparsity after the other on one quadratic, without fresh gradients  (eq. 28).

    Each stage scores the weights that are left from the optimum over them, so that one path gives
    all sparsities. The predicted increases of the stages add up exactly.

    Args:
        pruner: With the joint update; its Fisher is not asked again.
        quadratic: What `pruner.quadratic(objective)` gave, with any damping.
        objective: The dense network; the model is untouched.
        sparsities: Of the original space after each stage, rising.

    Returns:
        What each stage reached, as it is reached. The steps of the stages before come first.

    Raises:
        WoodburyError: At once if the update is not `joint`, there is no sparsity, or the last one
            is impossible.

    Example:
        >>> import torch
        >>> import woodbury
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = woodbury.Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> pruner = woodbury.Pruner(woodbury.mfac(20, damping=1e-2))
        >>> path = inner_stages(pruner, pruner.quadratic(dense), dense, [0.25, 0.5])
        >>> [pruned.sparsity for pruned in path]
        [0.25, 0.5]
    """
    _check_not_empty(sparsities)
    if pruner.update is not joint:
        raise WoodburyError(
            "inner_stages() goes on from the optimum of one quadratic: "
            "use update=joint, or stages() for other updates."
        )
    pruner.check(objective.space, sparsities[-1])
    return _inner_stages(pruner, quadratic, objective, sparsities)


def _inner_stages(
    pruner: Pruner, quadratic: Quadratic, objective: Objective, sparsities: Sequence[Targets]
) -> Iterator[Pruned]:
    reached = Pruned(objective, ())
    space = objective.space  # the space of `quadratic`, one stage behind
    for sparsity in sparsities:
        here = reached.objective
        if reached.steps:
            kept = here.space.keep[space.keep].to(here.weights.device)
            quadratic = quadratic.at_optimum(kept, here.weights)
        space = here.space
        reached = _appended(reached, pruner.on_quadratic(quadratic, here, sparsity))
        yield reached


def _appended(reached: Pruned, stage: Pruned) -> Pruned:
    """What a stage reached, with the steps before it."""
    return replace(stage, steps=reached.steps + stage.steps)


def _check_not_empty(sparsities: Sequence[Targets]) -> None:
    if not len(sparsities):
        raise WoodburyError("There is no sparsity to prune to: give at least one.")
