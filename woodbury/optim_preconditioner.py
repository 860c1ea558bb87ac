"""Preconditioner: any Fisher in front of any torch optimizer, taken anew as training goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from woodbury.calibration import Calibration, at_step
from woodbury.errors import WoodburyError
from woodbury.fisher.estimate import Estimate
from woodbury.fisher.operator import Fisher
from woodbury.objective import Likelihood, Objective, cross_entropy
from woodbury.optim_layout import local
from woodbury.pruning.masks import unwrapped
from woodbury.space import ParameterSpace


class Preconditioner:
    """Before every step of `optimizer` the gradient g becomes λF⁻¹g, λ the damping: natural gradients  (eq. 62; Amari 1998).

    A direction of curvature μ is slowed to λ/(λ + μ) of the optimizer's own step, flat ones keep it: the rate that was safe
    before stays so, and a higher one may be. With `kfac` this is K-FAC (Martens & Grosse 2015) under any optimizer.

    estimate: a recipe, such as kfac(1024, 0.03). calibration: batches, or step -> batches, such as an `Ahead` over the
    training data, which takes no others than those. every: the steps between estimates. space: what is preconditioned, by
    default all matrices and kernels; other parameters keep their gradients. It works with `Gradual` and `hold_zeros`, a
    GradScaler and clipping, which come before. On several ranks give all the same calibration data.
    Gradients that are not finite are left as they are. Raises WoodburyError for an optimizer of another model.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        estimate: Estimate,
        calibration: Calibration,
        *,
        every: int = 200,
        space: ParameterSpace | None = None,
        likelihood: Likelihood = cross_entropy,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise WoodburyError(f"every is {every}: it is the number of steps between estimates, at least 1.")
        self.optimizer, self.space = unwrapped(optimizer), space or ParameterSpace.of(model)
        self._model, self._likelihood = model, likelihood
        self._estimate, self._calibration, self._every = estimate, calibration, every
        self._parameters = _parameters(model, self.space, self.optimizer)
        self.step = 0
        self.fisher: Fisher | None = None
        self._handle = self.optimizer.register_step_pre_hook(self._before)

    def remove(self) -> None:
        """Take the hook away: gradients are the optimizer's own again."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps: a run that goes on after a multiple of `every` is the run that was not stopped."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the Fisher is taken at the next step."""
        self.step, self.fisher = state["step"], None

    @torch.no_grad()
    def _before(self, optimizer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if any(callable(given) for given in (*arguments, *named.values())):
            raise WoodburyError(
                "A step with a closure makes its gradients too late to be preconditioned: call backward first."
            )
        if self.fisher is None or self.step % self._every == 0:
            self.fisher = self._taken()
        self.step += 1
        gradients = {name: parameter.grad for name, parameter in self._parameters.items()}
        seen = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        if not seen or not all(bool(gradient.isfinite().all()) for gradient in seen.values()):
            return
        whole = {name: seen.get(name, torch.zeros_like(self._parameters[name])) for name in self._parameters}
        natural = self.space.unflatten(self.fisher.solve(self.space.flatten(whole)) * self.fisher.damping)
        for name, gradient in seen.items():
            gradient.copy_(natural[name])

    def _taken(self) -> Fisher:
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
        ):  # a shuffling loader draws from the loop's generator
            batches = at_step(self._calibration, self.step)
            return self._estimate(Objective.of(self._model, batches, self._likelihood, self.space))


def _parameters(model: nn.Module, space: ParameterSpace, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Those of the space, by name. Raises WoodburyError unless the optimizer moves some of them, each of them whole."""
    named = dict(model.named_parameters())
    missing = [name for name in space.shapes if name not in named]
    if missing:
        raise WoodburyError(f"The space has {missing[0]!r}, which the model lacks: is it of another network?")
    chosen = {name: named[name] for name in space.shapes}
    moved = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if not moved & set(chosen.values()):
        raise WoodburyError("The optimizer moves none of the space's parameters: make it from this model's.")
    for name, parameter in chosen.items():
        if local(parameter) is not parameter:
            raise WoodburyError(
                f"Parameter {name!r} is a DTensor: precondition before the model is sharded, or not at all."
            )
    return chosen
