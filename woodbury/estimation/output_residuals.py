"""What the outputs of two networks differ by, as a function of the weights of one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from woodbury.errors import WoodburyError
from woodbury.estimation.ggn import draw_directions, repeat_per_direction
from woodbury.estimation.gradients import Engine, gradient_rows, mean_gradient
from woodbury.limits import Limits
from woodbury.linalg.precision import at_least_float32
from woodbury.model.batches import Batch, regrouped
from woodbury.model.likelihood import Likelihood
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective

Part = tuple[Any, Tensor, Tensor]
"""Inputs of b samples, their directions (b, mc_samples, …), and what the goal's outputs have along them, (b, mc_samples)."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """r(w) (m,): what outputs at weights w differ by from a goal's, along `mc_samples` directions to a sample  (eq. 61).

    Half their mean square is the distance that the Fisher measures. Their Jacobian J at the objective's weights comes as
    rows, or as products without a row in memory  (eq. 63). What is held are the inputs, and mc_samples numbers to each output.
    """

    objective: Objective
    parts: list[Part]
    at_once: int

    @classmethod
    def between(
        cls,
        objective: Objective,
        goal: Objective,
        mc_samples: int,
        seed: int,
        samples: int | None = None,
    ) -> Residuals:
        """On the objective's samples, the first so many or all, read once; the directions are drawn at the goal's outputs.

        Raises WoodburyError when there are no samples, or the likelihood has no directions.
        """
        goal = replace(goal, batches=list(regrouped(objective.batches, 64, samples)))
        if not goal.batches:
            raise WoodburyError("No batch was given: outputs are compared on at least one sample.")
        into, within, out = activation_sizes(goal)
        at_once = max(
            1, min(1024, Limits.current().activations // max(1, into, within, mc_samples * out))
        )
        of_all = draw_directions(goal, mc_samples, seed, at_once)
        return cls(
            objective,
            [(x, along, _along(goal, goal.weights, x, along)) for x, along in of_all],
            at_once,
        )

    @property
    def m(self) -> int:
        """The number of residuals, mc_samples × samples."""
        return sum(told.numel() for *_, told in self.parts)

    def at(self, weights: Tensor) -> Tensor:
        """r(w): (d,) -> (m,), those of a sample one after the other."""
        found = [
            _along(self.objective, weights, inputs, directions) - told
            for inputs, directions, told in self.parts
        ]
        return torch.cat([part.flatten() for part in found])

    def jacobian(self, engine: Engine | None = None) -> Tensor:
        """J: (m, d)."""
        batches = [repeat_per_direction(inputs, directions) for inputs, directions, _ in self.parts]
        return gradient_rows(self._in(batches), self.m, engine=engine)

    def gradient(self, r: Tensor) -> Tensor:
        """Jᵀr/m, by one backward pass: (m,) -> (d,)."""
        return self._pulled(r.split([told.numel() for *_, told in self.parts]))

    def curved(self, v: Tensor) -> Tensor:
        """JᵀJ v/m, by a forward and a backward pass: (d,) -> (d,). Raises WoodburyError if the model has no forward mode."""
        return self._pulled(
            self._pushed(inputs, directions, v) for inputs, directions, _ in self.parts
        )

    def diagonal(self, probes: int, seed: int = 0) -> Tensor:
        """An estimate of the diagonal of JᵀJ/m, without bias, by a backward pass for each probe: (d,)  (eq. 66)."""
        generator, found = (
            torch.Generator().manual_seed(seed),
            torch.zeros_like(at_least_float32(self.objective.weights)),
        )
        for _ in range(probes):
            signs = torch.randint(2, (self.m,), generator=generator).mul(2).sub(1).to(found)
            found += self.gradient(signs).square()
        return found * self.m / probes

    def _in(self, batches: list[Batch]) -> Objective:
        return replace(
            self.objective,
            batches=batches,
            likelihood=Likelihood(self.objective.likelihood.directional),
        )

    @torch.no_grad()
    def _pushed(self, inputs: Any, directions: Tensor, v: Tensor) -> Tensor:
        """J v of one part: (d,) -> (b, mc_samples)."""
        objective = self.objective
        here, v = objective.weights, v.to(objective.weights.dtype)
        try:
            with eval_mode(objective.model), _forward_mode():
                return jvp(lambda w: _inner(objective, w, inputs, directions), (here,), (v,))[1]
        except RuntimeError as error:
            if "memory" in str(error):  # the CPU's allocator has no type of its own
                raise
            why = str(error).strip().splitlines()[0]
            raise WoodburyError(
                f"This model cannot be differentiated forward, which a refit by iterations needs: leave them out. ({why})"
            ) from error

    def _pulled(self, coefficients: Iterable[Tensor]) -> Tensor:
        """Jᵀu/m for the u (b·mc_samples) of each part: the directions of a sample are summed, and one backward pass will do."""
        batches = [
            (
                inputs,
                torch.einsum(
                    "br,br...->b...", u.view(told.shape).to(told.dtype), directions.to(told.dtype)
                ),
            )
            for u, (inputs, directions, told) in zip(coefficients, self.parts, strict=True)
        ]
        return mean_gradient(self._in(batches), at_once=self.at_once) / self.parts[0][2].shape[1]


@torch.no_grad()
def activation_sizes(objective: Objective) -> tuple[int, int, int]:
    """How many a first sample brings into the network, a token counted for a thousand, the most that leave one of its modules,
    and how many come out of it."""
    inputs, _ = next(regrouped(objective.batches, 1, 1))
    left: list[int] = []

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
        left.append(_count(output))

    with ExitStack() as hooks, eval_mode(objective.model):
        for module in objective.model.modules():
            hooks.callback(module.register_forward_hook(leave).remove)
        outputs = objective.likelihood.read(objective.forward(objective.parameters, inputs))
    return _count(inputs, 1000), max(left, default=0), outputs.numel()


def _count(tree: Any, a_token: int = 1) -> int:
    """The numbers in all tensors of a tree."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return sum(leaf.numel() * (1 if leaf.is_floating_point() else a_token) for leaf in tensors)


@contextmanager
def _forward_mode() -> Iterator[None]:
    """Without the fused attentions, which have none; and torch's own import of it, on first use, warns of itself."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".torch.jit.script", category=DeprecationWarning
            )
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@torch.no_grad()
def _along(objective: Objective, weights: Tensor, inputs: Any, directions: Tensor) -> Tensor:
    with eval_mode(objective.model):
        return _inner(objective, weights, inputs, directions)


def _inner(objective: Objective, weights: Tensor, inputs: Any, directions: Tensor) -> Tensor:
    """sᵀf of every sample and direction: (b, mc_samples)."""
    output = objective.likelihood.output_tensor(
        objective.forward(objective.space.unflatten(weights), inputs)
    )
    samples, mc_samples = directions.shape[:2]
    flat = directions.to(output.dtype).reshape(samples, mc_samples, -1)
    return torch.bmm(flat, output.reshape(samples, -1, 1))[..., 0]
