"""Preconditioner: any Fisher in front of any torch optimizer, taken anew as training goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import Estimate
from woodbury.fisher.base import Fisher
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.parameters import local, unwrapped
from woodbury.model.peeking import Calibration, batches_for_step, preserving_rng
from woodbury.model.space import ParameterSpace

EARLY = (1, 4, 16, 64)
"""Steps after which the Fisher is taken again before the first `every` are over: at first curvature and statistics move fast."""


class Preconditioner:
    """Before every step of `optimizer` the gradient g becomes λF⁻¹g, λ the damping: natural gradients  (eq. 62; Amari 1998).

    A direction of curvature μ is slowed to λ/(λ + μ) of the optimizer's own step and flat ones keep it, so that a higher rate
    may be safe. With `kfac` this is K-FAC (Martens & Grosse 2015) under any optimizer.

    estimate: a recipe, such as kfac(1024, 0.03). calibration: batches, or step -> batches, such as an `Ahead` over the
    training data, which takes no others than those. every: the steps between estimates; a few more come early. space: what is
    preconditioned, by default the matrices and kernels that the optimizer moves; other parameters keep their gradients.
    `Gradual` and `hold_zeros` cut off what would revive a weight, after the step. On several ranks give all the same data.
    Gradients that are not finite are left as they are. Raises WoodburyError for what the optimizer does not move.
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
            raise WoodburyError(
                f"every is {every}: it is the number of steps between estimates, at least 1."
            )
        self.optimizer = unwrapped(optimizer)
        moved = _moved(self.optimizer, model)
        self.space = space or ParameterSpace(
            {name: p.shape for name, p in moved.items() if p.ndim >= 2}
        )
        _check(self.space, moved)
        self._parameters = {name: moved[name] for name in self.space.shapes}
        self._model, self._likelihood = model, likelihood
        self._estimate, self._calibration, self._every = estimate, calibration, every
        self.step = 0
        self.fisher: Fisher | None = None
        self._handle = self.optimizer.register_step_pre_hook(self._before)

    def renew(self) -> None:
        """Take the Fisher anew at the next step: a run that goes on from there is then the run that was not stopped."""
        self.fisher = None

    def remove(self) -> None:
        """Take the hook away: gradients are the optimizer's own again."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps. The Fisher is not saved: call `renew` with every save, and both runs take it there."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the Fisher is taken at the next step."""
        self.step = state["step"]
        self.renew()

    @torch.no_grad()
    def _before(self, optimizer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if any(callable(given) for given in (*arguments, *named.values())):
            raise WoodburyError(
                "A step with a closure makes its gradients too late to be preconditioned: call backward first."
            )
        fisher = self._now()
        self.step += 1
        gradients = {name: parameter.grad for name, parameter in self._parameters.items()}
        seen = {
            name: _dense(name, gradient)
            for name, gradient in gradients.items()
            if gradient is not None
        }
        if not seen or not all(bool(gradient.isfinite().all()) for gradient in seen.values()):
            return
        whole = {
            name: seen.get(name, torch.zeros_like(parameter))
            for name, parameter in self._parameters.items()
        }
        natural = self.space.unflatten(fisher.solve(self.space.flatten(whole)) * fisher.damping)
        for name, gradient in seen.items():
            gradient.copy_(natural[name])

    def _now(self) -> Fisher:
        """The latest Fisher, taken anew if it is due."""
        due = self.step % self._every == 0 or (self.step in EARLY and self.step < self._every)
        if self.fisher is None or due:
            device = next(iter(self._parameters.values())).device.type
            with (
                preserving_rng(self._calibration),
                torch.enable_grad(),
                torch.autocast(device, enabled=False),
            ):
                batches = batches_for_step(self._calibration, self.step)
                self.fisher = self._estimate(
                    Objective.from_model(self._model, batches, self._likelihood, self.space)
                )
            if not self.fisher.damping > 0:
                raise WoodburyError(
                    "A Fisher without a damping of its own, as `pi_corrected` makes it, cannot precondition."
                )
        return self.fisher


def _moved(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """What the optimizer moves of the model, by name. Raises WoodburyError if that is nothing, or not whole."""
    own = {
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }
    moved = {name: parameter for name, parameter in model.named_parameters() if parameter in own}
    if not moved:
        raise WoodburyError(
            "The optimizer moves none of the model's parameters: make it from this model's."
        )
    for name, parameter in moved.items():
        if local(parameter) is not parameter:
            raise WoodburyError(
                f"Parameter {name!r} is a DTensor: a sharded model cannot be preconditioned."
            )
    return moved


def _check(space: ParameterSpace, moved: dict[str, nn.Parameter]) -> None:
    if space.kept is not None:
        raise WoodburyError(
            "The space leaves weights out: give one of whole parameters, and hold_zeros keeps the zeros."
        )
    for name, shape in space.shapes.items():
        if name not in moved or moved[name].shape != shape:
            raise WoodburyError(
                f"The space has {name!r} of shape {tuple(shape)}, and the optimizer moves no such parameter of this model."
            )


def _dense(name: str, gradient: Tensor) -> Tensor:
    if gradient.layout != torch.strided:
        raise WoodburyError(
            f"The gradient of {name!r} is sparse: leave it out by a space of the others."
        )
    return gradient
