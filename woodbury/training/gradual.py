"""Gradual: pruning in steps while a model trains, in the user's own loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.io.fingerprint import check_same
from woodbury.io.settings import described, flattened
from woodbury.model.batches import samples_in
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.peeking import Calibration, batches_for_step, preserving_rng
from woodbury.model.space import ParameterSpace, Patterns
from woodbury.pruning.autoconfig import best_step
from woodbury.pruning.budget import check_reachable, current_sparsity
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.presets import standard
from woodbury.pruning.pruner import Pruned, Pruner
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import Targets, check_targets, polynomial, pruning_steps
from woodbury.training.masks import Hold

Prune = Callable[[Objective, Targets], Pruned]
"""A Pruner, or a function like one: (objective, sparsity) -> Pruned."""


Schedule = Callable[[Targets, int, Targets], list[Targets]]
"""(sparsity, count, start sparsity) -> the sparsity after each of `count` steps, the last one `sparsity`."""


USUAL_COUNT = 1000


@dataclass(frozen=True)
class PruningStep:
    """One pruning step: the optimizer step it followed, what it reached and predicted, the score right before and after."""

    step: int
    sparsity: float
    predicted: float | None
    before: float | None
    after: float | None


class Gradual:
    """Prunes `model` to `sparsity` in steps while `optimizer` trains it, and holds what it removed at zero  (eq. 30, 32).

    Counts the optimizer's steps by a hook: make it, then train as ever. After each of `moments` it takes new gradients at
    the weights reached (in eval mode, whatever mode the model is in), prunes on by `pruner` among the weights that are left,
    and writes the result. Random numbers drawn by the loop stay those of a loop without pruning.

    batches: calibration data, or step -> such data. start, end, every or steps: when to prune, in optimizer steps. schedule:
    how the sparsity rises. pruner: by default one step of `prune` without a refit, on the first 1,000 samples or as many as
    there are; pin its engine for runs that agree bit for bit. keep_zeros: weights that are zero already stay zero, and the
    schedule starts from there. score: measured right before and after each step, for `history`. decay_off: no weight decay
    after the last step. On several ranks give all the same calibration data.
    Raises WoodburyError, before any work, for what cannot be done.
    """

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
        include: Patterns = "*",
        exclude: Patterns = (),
        keep_zeros: bool = False,
        score: Callable[[Objective], float] | None = None,
        decay_off: bool = False,
    ) -> None:
        check_targets(sparsity)
        _check_pruner(pruner)
        self.pruning_steps = pruning_steps(start, end, every=every, steps=steps)
        self.step = 0
        self.history: tuple[PruningStep, ...] = ()
        self._model, self._batches, self._likelihood, self._score = (
            model,
            batches,
            likelihood,
            score,
        )
        self._decay_off = decay_off
        self.space = ParameterSpace.from_model(model, include, exclude, min_ndim=2)
        with preserving_rng(batches):
            objective = self._objective(self.pruning_steps[0])
            objective.probe()
            self._pruner: Prune = (
                pruner
                or best_step(
                    objective, _samples(objective), standard.mc_samples, standard.dampings[0]
                )[0]
            )
        rules = pruner if isinstance(pruner, Pruner | DampingSearch | WithRefit) else Pruner(None)
        nonzero = self.space.restrict(objective.weights != 0)
        check_reachable(nonzero, sparsity, rules.scope, rules.cost)
        self.space = nonzero if keep_zeros else self.space
        self._sparsities = schedule(
            sparsity, len(self.pruning_steps), current_sparsity(self.space, sparsity, rules.cost)
        )
        check_reachable(self.space, self._sparsities[0], rules.scope, rules.cost)
        self._settings = flattened(
            {
                "sparsity": sparsity,
                "pruning_steps": self.pruning_steps,
                "schedule": described(schedule),
                "parameters": {name: list(shape) for name, shape in self.space.shapes.items()},
                "pruner": described(self._pruner),
                "keep_zeros": keep_zeros,
                "decay_off": decay_off,
            }
        )
        self._hold = Hold(optimizer, model, self.space)
        self._handle = self._hold.optimizer.register_step_post_hook(lambda *_: self._count())

    @property
    def sparsity(self) -> float:
        """Removed ÷ all weights of the chosen parameters, now."""
        return self.space.sparsity

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on beside the states of model and optimizer; readable weights_only."""
        history = [asdict(done) for done in self.history]
        where = {
            "step": self.step,
            "keep": self.space.keep.cpu(),
            "sparsities": self._sparsities,
            "history": history,
        }
        return {**where, "settings": dict(self._settings)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. Raises WoodburyError, and changes nothing, where the settings differ: it says which."""
        if set(state) != {"step", "keep", "sparsities", "history", "settings"}:
            raise WoodburyError("This is no state of a Gradual: give what its state_dict() gave.")
        check_same(state["settings"], self._settings, "The saved state")
        space = ParameterSpace(self.space.shapes, state["keep"])
        self._hold.tighten(space)
        self.space, self.step, self._sparsities = space, state["step"], list(state["sparsities"])
        self.history = tuple(PruningStep(**done) for done in state["history"])

    def remove(self) -> None:
        """Take the hooks away: nothing is counted, pruned or held any more. The zeros stay until something moves them."""
        self._handle.remove()
        self._hold.remove()

    def _objective(self, step: int) -> Objective:
        return Objective.from_model(
            self._model, batches_for_step(self._batches, step), self._likelihood, self.space
        )

    def _count(self) -> None:
        self.step += 1
        if self.step in self.pruning_steps:
            with preserving_rng(self._batches):
                self._prune(self._sparsities[self.pruning_steps.index(self.step)])

    def _prune(self, sparsity: Targets) -> None:
        objective = self._objective(self.step)
        before = self._score(objective) if self._score else None
        pruned = self._pruner(objective, sparsity)
        after = self._score(pruned.objective) if self._score else None
        pruned.write()
        self.space = pruned.objective.space
        self._hold.tighten(self.space)
        done = PruningStep(self.step, pruned.sparsity, pruned.predicted, before, after)
        self.history = (*self.history, done)
        if self._decay_off and self.step == self.pruning_steps[-1]:
            for group in self._hold.optimizer.param_groups:
                group["weight_decay"] = 0.0


def _check_pruner(pruner: Prune | None) -> None:
    try:
        if pruner is not None:
            signature(pruner).bind(None, 0.0)
    except TypeError as error:
        raise WoodburyError(
            f"The pruner {type(pruner).__name__} takes no (objective, sparsity): give Pruner(fisher=...), such as "
            "Pruner(mfac(500))."
        ) from error


def _samples(objective: Objective) -> int:
    samples = 0
    for inputs, _ in objective.batches:
        samples += samples_in(inputs)
        if samples >= USUAL_COUNT:
            return USUAL_COUNT
    return samples
