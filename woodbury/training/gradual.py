"""Gradual pruning: a model is pruned step by step while an optimizer trains it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType, check_whole_number, user_code
from woodbury.estimation.engines import one_engine
from woodbury.estimation.over_ranks import OwnPart, over_ranks
from woodbury.io.fingerprint import check_same, digest
from woodbury.io.settings import described, flattened
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import check_holds, limits_within
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.batches import Batch, samples_in
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.parameters import local
from woodbury.model.peeking import Calibration, batches_for_step, preserving_rng
from woodbury.model.prunable import check_prunable
from woodbury.model.sharded import own_shard
from woodbury.model.space import ParameterSpace, Patterns
from woodbury.model.wrappers import bare
from woodbury.pruning.feasibility import check_reachable, current_sparsity
from woodbury.pruning.prediction import IncreaseInterval, check_held_back
from woodbury.pruning.presets import standard
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner, PruningRecipe
from woodbury.pruning.schedule import Targets, check_targets, polynomial, pruning_steps
from woodbury.pruning.step_choice import best_step
from woodbury.pruning.undivided import divided
from woodbury.training.calibration import check_calibration, check_reached, samples_needed
from woodbury.training.masks import Hold

Prune = Callable[[Objective, Targets], Pruned]
"""(objective, sparsity) -> Pruned: a Pruner, another recipe, or a function of your own."""


Schedule = Callable[[Targets, int, Targets], list[Targets]]
"""(sparsity, count, start sparsity) -> the sparsity after each of `count` pruning steps.

The last one is `sparsity`; `geometric` and `polynomial` are such functions.
"""


@dataclass(frozen=True)
class PruningStep:
    """What one pruning step did.

    Attributes:
        step: The optimizer step that it followed, from 1.
        sparsity: Removed ÷ all weights of the chosen parameters, after it.
        predicted: The increase of the mean loss that the quadratic predicted, in the loss's own
            unit; None without a Fisher.
        before: The score right before it; None without a score.
        after: The score right after it; None without a score.
        predicted_interval: The increase of the loss by the step on samples held back; None without
            any.
        predicted_warning: Why the prediction is no forecast; empty where nothing is known against
            it.
    """

    step: int
    sparsity: float
    predicted: float | None
    before: float | None
    after: float | None
    predicted_interval: IncreaseInterval | None = None
    predicted_warning: str = ""


class Gradual:
    """Gradual pruning in a training loop of your own  (eq. 30, 32).

    It counts the optimizer's steps by a hook: make it, then train as before. After each of
    `pruning_steps`:

    1. It estimates the curvature at the weights reached, in eval mode whatever the model's mode.
    2. It prunes among the weights that are left and writes the result into the model.
    3. It holds the removed weights at zero from then on.

    Random numbers that the loop draws are those of a loop without pruning. Ranks take the same
    calibration set, or each its own share.

    Args:
        model: The network, pruned in place.
        optimizer: What trains it; a wrapper of accelerate or Lightning will do.
        batches: The calibration set: re-iterable (inputs, target), or optimizer step -> such
            batches for fresh samples each time.
        sparsity: Removed ÷ all weights at the end, or one for each pattern of names.
        end: The last optimizer step after which to prune, at most.
        start: The first optimizer step after which to prune, from 1.
        every: Optimizer steps between two pruning steps. Give this or `steps`.
        steps: How many pruning steps there are in all. Give this or `every`.
        pruner: What prunes at each step; by default one step of `prune` without a refit, on the
            first 1,000 samples or as many as there are. Pin its engine where two runs must agree
            bit for bit.
        schedule: How the sparsity rises; `polynomial` is cubic, fast first.
        likelihood: The loss.
        include: Shell patterns of the parameter names to prune. None for all matrices and kernels
            but embeddings and the heads of models of transformers; "*" takes these in.
        exclude: Shell patterns of the names to leave out.
        keep_zeros: Whether weights that are zero already are kept at zero; the schedule starts from
            there.
        score: Measured right before and after each pruning step, for `history`; None for none.
        decay_off: Whether weight decay ends with the last pruning step.
        held_back: Re-iterable batches that nothing is trained on, on which the predicted increase
            of each pruning step is checked; None for none.
        memory: What each pruning step may hold, in bytes or as "6GiB"; None for 60 % of what the
            process may still have then.
        group: The torch.distributed process group whose ranks share the pruning steps, as for
            `woodbury.prune`. The training of the ranks is yours: their weights must be the same, as
            under DistributedDataParallel.

    Attributes:
        pruning_steps: The optimizer steps after which it prunes, increasing.
        step: Optimizer steps made so far.
        engine: How gradient rows are taken, of which the first pruning step chooses the fastest;
            None before, or where the pruner names one.
        history: The pruning steps made so far.
        space: The weights that are kept; `space.left_out` names the embeddings and heads that are
            not pruned, `space.undivided` the tensors that an n:m pattern leaves out.

    If the training ends before the last pruning step, a line on stderr says so.

    Raises:
        WoodburyError: Before any work, if the schedule, the sparsity, the data or the optimizer is
            impossible. The loss of the calibration set must be finite, some label count, and there
            must be as many samples as the pruner takes.
        WrongType: If the pruner takes no (objective, sparsity).

    Example:
        >>> model = nn.Linear(8, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batches = [(torch.randn(16, 8), torch.arange(16) % 3)]
        >>> gradual = Gradual(model, optimizer, batches, sparsity=0.5, end=4, steps=2)
        >>> for inputs, target in batches * 5:
        ...     optimizer.zero_grad()
        ...     nn.functional.cross_entropy(model(inputs), target).backward()
        ...     optimizer.step()
        >>> gradual.pruning_steps, int((model.weight == 0).sum())
        ([1, 4], 12)
    """

    @checks_types
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Calibration,
        sparsity: Targets,
        *,
        end: int,
        start: int = 1,
        every: int | None = None,
        steps: int | None = None,
        pruner: Prune | None = None,
        schedule: Schedule = polynomial,
        likelihood: Likelihood = cross_entropy,
        include: Patterns | None = None,
        exclude: Patterns = (),
        keep_zeros: bool = False,
        score: Callable[[Objective], float] | None = None,
        decay_off: bool = False,
        held_back: Iterable[Batch] | None = None,
        memory: int | str | None = None,
        group: object = None,
    ) -> None:
        check_targets(sparsity)
        _check_pruner(pruner)
        self.pruning_steps = pruning_steps(start, end, every=every, steps=steps)
        self.step = 0
        self.history: tuple[PruningStep, ...] = ()
        rules = pruner.rules if isinstance(pruner, PruningRecipe) else Pruner(None)
        self.space = divided(ParameterSpace.for_pruning(model, include, exclude), rules.scope)
        check_prunable(model, self.space.shapes)
        self._model = bare(model)
        self._batches = batches
        self._likelihood = likelihood
        self._score = score
        self._decay_off = decay_off
        self._held_back = held_back
        self._memory = memory
        self._group = group
        check_holds(memory, self.space.n)
        facts = {"sparsity": sparsity, "pruning steps": self.pruning_steps}
        with (
            preserving_rng(batches),
            self._over_ranks(self.pruning_steps[0], "Gradual", facts) as own,
            limits_within(own.memory),
        ):
            objective = self._objective(own)
            objective.probe()
            needed = standard.samples if pruner is None else samples_needed(pruner)
            check_calibration(objective, needed, exactly=pruner is not None)
            if pruner is None or rules.fisher is not None:
                check_reached(objective, needed)
            if held_back is not None:
                check_held_back(objective, held_back)
            self._pruner: Prune = pruner or _default_pruner(objective)
        # The last sparsity must be reachable from today's zeros, which every pruning step removes.
        nonzero = self.space.restrict(objective.weights != 0)
        check_reachable(nonzero, sparsity, rules.scope, rules.cost)
        rules.check(nonzero, sparsity)
        if keep_zeros:
            self.space = nonzero
        start_sparsity = current_sparsity(self.space, sparsity, rules.cost)
        with user_code("The schedule gives no sparsities."):
            self._sparsities = schedule(sparsity, len(self.pruning_steps), start_sparsity)
        _check_sparsities(self._sparsities, self.pruning_steps)
        check_reachable(self.space, self._sparsities[0], rules.scope, rules.cost)
        self._settings = self._facts(sparsity, schedule, keep_zeros)
        self._hold = Hold(optimizer, model, self.space)
        self._handle = self._hold.optimizer.register_step_post_hook(lambda *_: self._count())
        self._engines: list[str] = []
        self._missed = _Missed(self.pruning_steps[-1])
        self._at_end = weakref.finalize(self, self._missed.say)

    @property
    def sparsity(self) -> float:
        """Removed weights that are zero in the model now ÷ all weights of the chosen parameters.

        Those that lie with other ranks, of a sharded model, are taken to be zero.
        """
        parameters = dict(self._model.named_parameters())
        keep = self.space.keep
        zeros = 0
        for name, part in self.space.slices.items():
            removed = ~keep[part].view(self.space.shapes[name])
            own = own_shard(removed, parameters[name]).cpu()
            revived = int((local(parameters[name]).detach().cpu() != 0)[own].sum())
            zeros += int(removed.sum()) - revived
        return zeros / self.space.n

    @property
    def engine(self) -> str | None:
        """The name of the engine that the first pruning step chose."""
        return self._engines[0] if self._engines else None

    def state_dict(self) -> dict[str, Any]:
        """What is needed to resume, beside the states of the model and the optimizer.

        Returns:
            Numbers, strings and tensors: torch.load reads it with weights_only=True.
        """
        return {
            "step": self.step,
            "keep": self.space.keep.cpu(),
            "sparsities": self._sparsities,
            "history": [asdict(done) for done in self.history],
            "settings": dict(self._settings),
            "engine": self.engine,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a saved state.

        Args:
            state: What `state_dict` gave, of a Gradual with the same settings.

        Raises:
            WoodburyError: If it is no such state, or a setting differs; it names the first one, and
                nothing has changed.
        """
        keys = {"step", "keep", "sparsities", "history", "settings"}
        if not isinstance(state, Mapping) or set(state) - {"engine"} != keys:
            raise WoodburyError("This is no state of a Gradual: give what its state_dict() gave.")
        if not isinstance(state["settings"], Mapping):
            raise WrongType("The settings of the saved state are no dict: it is damaged.")
        check_same(state["settings"], self._settings, "The saved state")
        check_whole_number(state["step"], "The saved step", "the steps made so far", least=0)
        if not isinstance(state["keep"], Tensor):
            raise WrongType("The saved state has no masks: keep is no tensor.")
        space = replace(self.space, kept=state["keep"])
        _check_sparsities(state["sparsities"], self.pruning_steps)
        history = tuple(_saved_step(done) for done in _listed(state["history"], "history"))
        engines = [] if state.get("engine") is None else [state["engine"]]
        with one_engine(engines):
            self._hold.tighten(space)
        self.space = space
        self.step = self._missed.step = state["step"]
        self._sparsities = list(state["sparsities"])
        self.history = history
        self._engines = engines

    def remove(self) -> None:
        """Remove the hooks: nothing is counted, pruned or held at zero any more."""
        self._handle.remove()
        self._hold.remove()
        self._at_end()

    def _facts(self, sparsity: Targets, schedule: Schedule, keep_zeros: bool) -> dict[str, Any]:
        """The settings that a resumed run must share, under dotted names."""
        shapes = {name: list(shape) for name, shape in self.space.shapes.items()}
        return flattened(
            {
                "sparsity": sparsity,
                "pruning_steps": self.pruning_steps,
                "schedule": described(schedule),
                "parameters": shapes,
                "pruner": described(self._pruner),
                "keep_zeros": keep_zeros,
                "decay_off": self._decay_off,
            }
        )

    def _over_ranks(
        self, step: int, what: str, facts: Mapping[str, object]
    ) -> AbstractContextManager[OwnPart]:
        """A context in which the ranks do one thing together on the calibration set of a step."""
        batches = batches_for_step(self._batches, step)
        return over_ranks(self._group, what, self._model, batches, self._memory, facts)

    def _objective(self, own: OwnPart) -> Objective:
        return Objective.from_model(self._model, own.batches, self._likelihood, self.space)

    def _count(self) -> None:
        self.step = self._missed.step = self.step + 1
        if self.step in self.pruning_steps:
            index = self.pruning_steps.index(self.step)
            with preserving_rng(self._batches):
                self._prune(self._sparsities[index])

    def _prune(self, sparsity: Targets) -> None:
        facts = {"sparsity": sparsity, "the kept weights": self.space.d}
        with self._over_ranks(self.step, f"the pruning step after step {self.step}", facts) as own:
            self._prune_together(own, sparsity)

    def _prune_together(self, own: OwnPart, sparsity: Targets) -> None:
        objective = self._objective(own)
        before = self._scored(objective)
        advice = "give Gradual a pruner of fewer rows or smaller blocks"
        with limits_within(own.memory), if_memory_runs_out(advice), one_engine(self._engines):
            pruned = self._pruner(objective, sparsity)
        if not isinstance(pruned, Pruned):
            raise WrongType(f"The pruner gave a {type(pruned).__name__}, not a Pruned.")
        after = self._scored(pruned.objective)
        warning = ""
        if self._held_back is not None:
            pruned = pruned.checked_on(objective, self._held_back)
            warning = pruned.predicted_warning
        weights = {"the pruned weights": digest(pruned.weights)}
        Ranks.current().agree("the end of a pruning step", weights)
        pruned.write()
        self.space = pruned.objective.space
        self._hold.tighten(self.space)
        done = PruningStep(
            self.step,
            pruned.sparsity,
            pruned.predicted,
            before,
            after,
            pruned.predicted_interval,
            warning,
        )
        self.history = (*self.history, done)
        if self._decay_off and self.step == self.pruning_steps[-1]:
            for group in self._hold.optimizer.param_groups:
                group["weight_decay"] = 0.0

    def _scored(self, objective: Objective) -> float | None:
        if self._score is None:
            return None
        with user_code("The score cannot be taken."):
            return float(self._score(objective))


@dataclass
class _Missed:
    """Whether the last pruning step was reached, which is said when the training ends.

    Attributes:
        last: The last pruning step.
        step: Steps made so far.
    """

    last: int
    step: int = 0

    def say(self) -> None:
        """Say it if it was not; nothing of a training that never began."""
        if 0 < self.step < self.last:
            sys.stderr.write(
                f"woodbury: the training ended after step {self.step}, before the pruning step "
                f"after step {self.last}, so that the model is less sparse than asked for.\n"
            )


def _listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise WrongType(f"{name} of the saved state is a {type(value).__name__}, not a list.")
    return list(value)


def _saved_step(saved: Any) -> PruningStep:
    try:
        done = PruningStep(**saved)
        if done.predicted_interval is None:
            return done
        return replace(done, predicted_interval=IncreaseInterval(**saved["predicted_interval"]))
    except TypeError as error:
        raise WrongType("The history of the saved state holds no pruning step.") from error


def _check_sparsities(sparsities: Any, steps: Sequence[int]) -> None:
    """Raise unless there is one sparsity for each pruning step."""
    targets = _listed(sparsities, "sparsities")
    if len(targets) != len(steps):
        raise WoodburyError(f"{len(targets)} sparsities met {len(steps)} pruning steps.")
    for target in targets:
        check_targets(target)


def _check_pruner(pruner: Prune | None) -> None:
    if pruner is None:
        return
    try:
        signature(pruner).bind(None, 0.0)
    except (TypeError, ValueError) as error:
        raise WrongType(
            f"The pruner {type(pruner).__name__} takes no (objective, sparsity): "
            "give Pruner(fisher=...), such as Pruner(mfac(500))."
        ) from error


def _default_pruner(objective: Objective) -> Pruner:
    """One step of `prune` at its standard effort, without a refit."""
    samples = _count_samples(objective, standard.samples)
    return best_step(objective, samples, standard.mc_samples, standard.dampings[0]).pruner


def _count_samples(objective: Objective, most: int) -> int:
    """How many samples the calibration set has, counted up to `most`."""
    samples = 0
    for inputs, _ in objective.batches:
        samples += samples_in(inputs)
        if samples >= most:
            break
    return min(Ranks.current().total(samples), most)
