"""Preconditioner: any Fisher in front of any torch optimizer, for natural gradients."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType, check_whole_number, user_code
from woodbury.estimation.over_ranks import OwnPart, over_ranks
from woodbury.estimation.recipes import Estimate
from woodbury.fisher.base import Fisher
from woodbury.io.fingerprint import digest
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import limits_within
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.parameters import is_dtensor, optimized_parameters, unwrapped
from woodbury.model.peeking import Calibration, batches_for_step, preserving_rng
from woodbury.model.space import ParameterSpace, Patterns
from woodbury.optim.factor_bytes import check_room

EARLY_ESTIMATE_STEPS = (1, 4, 16, 64)
"""Steps with an estimate of their own before the first `every` are over: at first curvature and
activation statistics change fast."""


class Preconditioner:
    """Replaces the gradient g by damping·F⁻¹g before every step of an optimizer (eq. 62).

    This is the natural gradient (Amari 1998) in the units of the gradient. A direction of curvature
    μ is slowed to damping/(damping + μ) of the optimizer's own step, and flat ones keep it, so that
    a higher learning rate may be stable. With `kfac` it is K-FAC (Martens & Grosse 2015) under any
    optimizer.

    F is estimated at the first step, at steps 1, 4, 16 and 64, and from then on every `every`
    steps, in eval mode. Gradients that are not finite are left as they are. `Gradual` and
    `hold_zeros` hold pruned weights at zero all the same, as they act after the step.

    Args:
        optimizer: The optimizer, bare or wrapped by accelerate or Lightning. Its `step` must not be
            called with a closure.
        model: The model that it trains.
        estimate: The recipe of F, such as `kfac(1024, damping=0.03)`.
        calibration: The samples that F is estimated on: batches, or step -> batches. With a
            `PeekingLoader` over the training data they are those that are trained on next.
        every: Steps between two estimates, which cost a pass over the calibration samples each.
        space: The parameters whose gradients are preconditioned; all others keep theirs. By default
            the matrices and kernels that the optimizer moves.
        exclude: Shell patterns of names to leave out of that default.
        likelihood: Says what the loss is, and its curvature; by default that of classifiers.
        memory: What the Fisher and a step may hold, in bytes or as "6GiB"; None for 60 % of what is
            available where the model is.
        group: The torch.distributed process group whose ranks share the estimates and hold a part
            of F each, as for `woodbury.prune`. Their gradients must be the same at each step, as
            under DistributedDataParallel, and all make the same steps.

    Attributes:
        optimizer: The torch optimizer, unwrapped.
        space: As given, or the default.
        step: How many steps have been made.
        fisher: The current estimate; None before the first.

    Raises:
        WrongType: If `every` is no whole number, or there is no torch optimizer.
        WoodburyError: If `every` is below 1, or the space has weights that the optimizer does not
            move, or only some weights of a tensor, or the model is sharded, or the memory does not
            hold K-FAC's factors or the rows of M-FAC.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import woodbury
        >>> generator = torch.manual_seed(0)
        >>> model = nn.Linear(4, 3)
        >>> batches = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(4)]
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> preconditioner = woodbury.Preconditioner(
        ...     optimizer, model, woodbury.kfac(32, damping=0.1), calibration=batches
        ... )
        >>> for inputs, target in batches:
        ...     optimizer.zero_grad()
        ...     nn.functional.cross_entropy(model(inputs), target).backward()
        ...     optimizer.step()
        >>> preconditioner.step, preconditioner.fisher.d  # the weights, without the biases
        (4, 12)
    """

    @checks_types
    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        estimate: Estimate,
        calibration: Calibration,
        *,
        every: int = 200,
        space: ParameterSpace | None = None,
        exclude: Patterns = (),
        likelihood: Likelihood = cross_entropy,
        memory: int | str | None = None,
        group: object = None,
    ) -> None:
        check_whole_number(every, "every", "the number of steps between estimates")
        self.optimizer = unwrapped(optimizer)
        moved = optimized_parameters(self.optimizer, model, trainable=True)
        _check_not_sharded(moved)
        if space is not None and exclude:
            raise WoodburyError("space says what is preconditioned: leave exclude out.")
        self.space = space or ParameterSpace.from_model(model, list(moved), exclude, min_ndim=2)
        _check_space(self.space, moved)
        self._parameters = {name: moved[name] for name in self.space.shapes}
        check_room(estimate, self.space, memory, self._device)
        self._memory = memory
        self._group = group
        self._model = model
        self._likelihood = likelihood
        self._estimate = estimate
        self._calibration = calibration
        self._every = every
        self.step = 0
        self.fisher: Fisher | None = None
        self._handle = self.optimizer.register_step_pre_hook(self._precondition)

    @property
    def _device(self) -> torch.device:
        return next(iter(self._parameters.values())).device

    def renew(self) -> None:
        """Estimate F at the next step, whether it is due there or not.

        Call it with every save: the estimate is not saved, and the run that goes on and the run
        that was never stopped then both make one there, and agree.
        """
        self.fisher = None

    def remove(self) -> None:
        """Remove the hook: the optimizer gets its gradients as they are."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps; not the estimate, for which see `renew`."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; F is estimated at the next step.

        Args:
            state: What `state_dict` gave.
        """
        if not isinstance(state, Mapping) or "step" not in state:
            raise WoodburyError(
                "This is no state of a Preconditioner: give what state_dict() gave."
            )
        check_whole_number(state["step"], "The saved step", "the steps made so far", least=0)
        self.step = state["step"]
        self.renew()

    @torch.no_grad()
    def _precondition(
        self, optimizer: Any, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        """The hook before every step: change the gradients in place."""
        if any(callable(given) for given in (*arguments, *named.values())):
            raise WoodburyError(
                "A step with a closure makes its gradients too late to be preconditioned: "
                "call backward first."
            )
        fisher = self._current_fisher()
        self.step += 1
        gradients = {
            name: _checked_gradient(name, parameter.grad)
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        finite = all(bool(gradient.isfinite().all()) for gradient in gradients.values())
        if not gradients or not finite:
            return
        # A parameter without a gradient takes part as zeros; its own stays None.
        filled = {
            name: gradients[name] if name in gradients else torch.zeros_like(parameter)
            for name, parameter in self._parameters.items()
        }
        natural = fisher.solve(self.space.flatten(filled)) * fisher.damping
        for name, values in self.space.unflatten(natural).items():
            if name in gradients:
                gradients[name].copy_(values)

    def _over_ranks(self) -> AbstractContextManager[OwnPart]:
        """A context in which the ranks estimate together; their gradients must be the same."""
        batches = batches_for_step(self._calibration, self.step)
        facts: dict[str, str] = {}
        if Ranks.of(self._group).size > 1:
            gradients = {name: parameter.grad for name, parameter in self._parameters.items()}
            facts = {
                f"the gradient of {name}": "none" if gradient is None else digest(gradient)
                for name, gradient in gradients.items()
            }
        what = f"the estimate at step {self.step}"
        return over_ranks(self._group, what, self._model, batches, self._memory, facts)

    def _current_fisher(self) -> Fisher:
        """The latest estimate, or a new one if it is due."""
        early = self.step in EARLY_ESTIMATE_STEPS and self.step < self._every
        if self.fisher is not None and self.step % self._every and not early:
            return self.fisher
        self.fisher = None  # two would take twice the memory
        with (
            preserving_rng(self._calibration),
            self._over_ranks() as own,
            limits_within(own.memory),
            if_memory_runs_out("give the Preconditioner a recipe of fewer rows or blocks"),
            torch.enable_grad(),
            torch.autocast(self._device.type, enabled=False),
        ):
            objective = Objective.from_model(self._model, own.batches, self._likelihood, self.space)
            with user_code("The estimate fails on this model and data."):
                fisher = self._estimate(objective)
            if not isinstance(fisher, Fisher):
                raise WrongType(f"The estimate gave a {type(fisher).__name__}, not a Fisher.")
        self.fisher = fisher
        if not fisher.damping > 0:
            raise WoodburyError(
                "A Fisher without a damping of its own, as `pi_corrected` makes it, "
                "cannot precondition: use one with damping·I."
            )
        return fisher


def _check_not_sharded(parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if is_dtensor(parameter):
            raise WoodburyError(
                f"Parameter {name!r} is a DTensor: a sharded model cannot be preconditioned."
            )


def _check_space(space: ParameterSpace, moved: dict[str, nn.Parameter]) -> None:
    if space.kept is not None:
        raise WoodburyError(
            "The space leaves weights out: give one of whole parameters; "
            "hold_zeros holds the zeros all the same."
        )
    for name, shape in space.shapes.items():
        if name not in moved or moved[name].shape != shape:
            raise WoodburyError(
                f"The space has {name!r} of shape {tuple(shape)}, "
                "and the optimizer moves no such parameter of this model."
            )


def _checked_gradient(name: str, gradient: Tensor) -> Tensor:
    if gradient.layout != torch.strided:
        raise WoodburyError(
            f"The gradient of {name!r} is sparse: leave it out with exclude={name!r}."
        )
    return gradient
