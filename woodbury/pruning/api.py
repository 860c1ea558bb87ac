"""prune(): the one call from a model and its data to a pruned model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from torch import nn

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.estimation.over_ranks import over_ranks
from woodbury.io.fingerprint import digest
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import check_holds, limits_within
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.memory.row_store import scratch_in
from woodbury.model.batches import Batch
from woodbury.model.left_out import HOW_TO_TAKE_IN, left_out_in_words
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.random_numbers import random_kept
from woodbury.model.space import ParameterSpace, Patterns
from woodbury.monitor import announce
from woodbury.pruning.feasibility import current_sparsity
from woodbury.pruning.held_back import set_aside
from woodbury.pruning.planning import Planned, planned, pruning_objective
from woodbury.pruning.prediction import check_held_back
from woodbury.pruning.presets import Effort, standard
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import PruningRecipe, check_recipe
from woodbury.pruning.schedule import Targets, check_targets, geometric
from woodbury.pruning.scopes import global_
from woodbury.pruning.staged import run_stages
from woodbury.pruning.undivided import undivided_in_words

IF_MEMORY_RUNS_OUT = (
    "give prune a smaller memory, or effort=woodbury.presets.quick; a pruner of your own fewer "
    "rows or smaller blocks"
)


@checks_types
@random_kept()
def prune(
    model: nn.Module,
    batches: Iterable[Batch],
    sparsity: Targets,
    *,
    effort: Effort = standard,
    pruner: PruningRecipe | None = None,
    stages: int = 1,
    likelihood: Likelihood = cross_entropy,
    include: Patterns | None = None,
    exclude: Patterns = (),
    keep_zeros: bool = False,
    memory: int | str | None = None,
    scratch: str | Path | None = None,
    held_back: Iterable[Batch] | float | None = None,
    group: object = None,
) -> Pruned:
    """Prune the weight matrices and kernels of a model, in place.

    Args:
        model: The trained network; only its weights change, removed ones to exact zeros.
        batches: The calibration set: re-iterable (inputs, target). A target may be None.
        sparsity: Removed ÷ all weights in [0, 1), or one for each pattern of parameter names, of
            which the first match counts: {"conv1*": 0.0, "*": 0.9}.
        effort: How much time to take: `presets.quick`, `standard` or `thorough`. The best known
            settings for it are chosen, and `Pruned.settings` reports them.
        pruner: A recipe of your own in place of `effort`, such as Pruner(mfac(500)).
        stages: Prunings of `pruner`, each with fresh gradients; an effort has its own.
        likelihood: The loss: `cross_entropy`, `squared_error` or a Likelihood of your own.
        include: Shell patterns of the parameter names to prune. None for all matrices and kernels
            but embeddings, what is tied to them, and the heads of models of transformers; "*"
            takes these in. `Pruned.settings` and the plan say what was left out.
        exclude: Shell patterns of the names to leave out. Frozen parameters are pruned too,
            unless they are left out.
        keep_zeros: Whether weights that are zero already are kept at zero and count as removed.
        memory: What the run may hold, in bytes or as "6GiB"; None for 60 % of what the process may
            still have. `woodbury.plan` says what an effort will take. Where the memory runs out all
            the same, the error is a sentence.
        scratch: A folder for gradient rows of a `pruner` that have no room in memory; nothing is
            left in it. None for the system's temporary one.
        held_back: What the predicted increase of the loss is checked on: a fraction of the
            calibration set, or re-iterable batches of other training data. None takes up to 256
            samples after those that an effort uses, where there are some, and nothing with a
            `pruner`.
        group: The torch.distributed process group whose ranks share the work: each reads a part
            of the samples and holds a part of the rows, and all end with the same weights. None
            for the default group where torch.distributed is initialised, else for this process
            alone, as `woodbury.ALONE` is in any case. `memory` is that of each rank.

    Returns:
        The pruned objective; `.sparsity`, `.keep`, `.predicted`, `.predicted_interval`,
            `.settings` and `.plan` describe it.

    Raises:
        WrongType: If the model is no torch.nn.Module, or the pruner no recipe.
        WoodburyError: If the data does not fit the model, or the sparsity cannot be reached;
            always before the model is touched.
        RankError: If another rank fails, has other settings or another model, or does not come.

    Example:
        >>> import torch, woodbury
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
        ... )
        >>> batches = [(torch.randn(64, 8), torch.arange(64) % 2)]
        >>> woodbury.prune(model, batches, sparsity=0.75).sparsity
        0.75
        >>> int((model[0].weight == 0).sum() + (model[2].weight == 0).sum())
        120
    """
    if pruner is not None:
        check_recipe(pruner)
    if pruner is None and stages != 1:
        raise WoodburyError(
            f"stages is {stages} and an effort chooses its own stages: "
            "leave stages out, or give a pruner of your own."
        )
    check_targets(sparsity)
    facts = {
        "sparsity": sparsity,
        "effort": effort,
        "pruner": pruner,
        "stages": stages,
        "include": include,
        "exclude": exclude,
        "keep_zeros": keep_zeros,
    }
    with (
        over_ranks(group, "prune", model, batches, memory, facts) as own,
        limits_within(own.memory),
        scratch_in(scratch),
        if_memory_runs_out(IF_MEMORY_RUNS_OUT),
    ):
        scope = global_ if pruner is None else pruner.rules.scope
        objective = pruning_objective(
            model, own.batches, likelihood, include, exclude, keep_zeros, scope
        )
        samples = effort.samples if pruner is None else None
        objective, aside = set_aside(objective, held_back, samples)
        if pruner is None:
            pruned = run_planned(planned(objective, sparsity, effort, own.memory), held_back=aside)
        else:
            if aside is not None:
                check_held_back(objective, aside)
            check_holds(own.memory, objective.space.n)
            start: Targets = 0.0
            if stages > 1:  # weights that are zero already count as removed
                start = current_sparsity(objective.space, sparsity, pruner.rules.cost)
            pruned = run_stages(pruner, objective, geometric(sparsity, stages, start))
            pruned = replace(pruned, settings=left_out_setting(objective.space))
            if words := undivided_in_words(objective.space):
                announce(words)
                pruned = replace(pruned, settings={**pruned.settings, "undivided": words})
            if aside is not None:
                pruned = pruned.checked_on(objective, aside)
        reached = pruned.objective
        same = {"weights": reached.weights, "keep": reached.space.keep}
        Ranks.current().agree("the end of prune", {"the pruned weights": digest(same)})
    pruned.write()
    return pruned


def left_out_setting(space: ParameterSpace) -> dict[str, str]:
    """What a space leaves out by itself, as an entry of `Pruned.settings`.

    Args:
        space: By `ParameterSpace.for_pruning`.

    Returns:
        {"left out": a phrase}; empty for nothing.
    """
    if not space.left_out:
        return {}
    return {"left out": f"{left_out_in_words(space.left_out)}; {HOW_TO_TAKE_IN}"}


def run_planned(
    chosen: Planned,
    after: Callable[[Pruned], object] | None = None,
    held_back: Iterable[Batch] | None = None,
) -> Pruned:
    """Say what was planned, do it, and check the predicted increase of the loss.

    Args:
        chosen: What `woodbury.pruning.planning.planned` gave.
        after: Called with what each stage has reached.
        held_back: What the prediction is checked on; None for samples beyond those that are used.

    Returns:
        The pruned objective, with its settings and its plan; the model is untouched.

    Raises:
        WoodburyError: As `run_stages`.
    """
    choice, plan = chosen
    if held_back is None and choice.beyond:
        held_back = choice.objective.batches.read(choice.beyond)
    if held_back is not None:
        check_held_back(choice.objective, held_back)
    announce(plan.in_one_line())
    pruned = run_stages(choice.recipe, choice.objective, choice.sparsities, after, plan.seconds)
    settings = {**choice.settings, **left_out_setting(choice.objective.space)}
    pruned = replace(pruned, settings=settings, plan=plan)
    return pruned if held_back is None else pruned.checked_on(choice.objective, held_back)
