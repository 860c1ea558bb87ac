"""What the outputs of two networks differ by, as a function of the weights of one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from woodbury.errors import WoodburyError
from woodbury.gauss_newton import drawn, repeated
from woodbury.gradients import Engine, Progress, mean_gradient, regrouped, rows
from woodbury.objective import Batch, Likelihood, Objective, evaluating

AT_ONCE = 1 << 20
"""Input numbers that go through the network at once, a token counted for a thousand: of small samples many, of images few."""

Part = tuple[Any, Tensor, Tensor]
"""Inputs of b samples, their directions (b, rank, …), and what the goal's outputs have along them, (b, rank)."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """r(w) (m,): what outputs at weights w differ by from a goal's, along `rank` directions to a sample  (eq. 61).

    Half their mean square is the distance that the Fisher measures. Their Jacobian J at the objective's weights comes as
    rows, or as products without a row in memory  (eq. 63).
    """

    objective: Objective
    parts: list[Part]

    @classmethod
    def between(
        cls, objective: Objective, goal: Objective, rank: int, seed: int, samples: int | None = None
    ) -> Residuals:
        """On the objective's samples, the first so many or all, read once; the directions are drawn at the goal's outputs.

        Raises WoodburyError when there are no samples, or the likelihood has no directions.
        """
        batches = list(regrouped(objective.batches, 64, samples))
        if not batches:
            raise WoodburyError("No batch was given: outputs are compared on at least one sample.")
        of_all = drawn(replace(goal, batches=batches), rank, seed, _at_once(batches[0][0]))
        return cls(objective, [(x, along, _along(goal, goal.weights, x, along)) for x, along in of_all])

    @property
    def m(self) -> int:
        """The number of residuals, rank × samples."""
        return sum(told.numel() for *_, told in self.parts)

    def at(self, weights: Tensor) -> Tensor:
        """r(w): (d,) -> (m,), those of a sample one after the other."""
        found = [_along(self.objective, weights, inputs, directions) - told for inputs, directions, told in self.parts]
        return torch.cat([part.flatten() for part in found])

    def jacobian(self, engine: Engine | None = None, progress: Progress | None = None) -> Tensor:
        """J: (m, d)."""
        batches = [repeated(inputs, directions) for inputs, directions, _ in self.parts]
        return rows(self._in(batches), self.m, engine=engine, progress=progress)

    def gradient(self, r: Tensor) -> Tensor:
        """Jᵀr/m, by one backward pass: (m,) -> (d,)."""
        return self._pulled(r.split([told.numel() for *_, told in self.parts]))

    def curved(self, v: Tensor) -> Tensor:
        """JᵀJ v/m, by a forward and a backward pass: (d,) -> (d,). Raises WoodburyError if the model has no forward mode."""
        return self._pulled(self._pushed(inputs, directions, v) for inputs, directions, _ in self.parts)

    def _in(self, batches: list[Batch]) -> Objective:
        return replace(self.objective, batches=batches, likelihood=Likelihood(self.objective.likelihood.along))

    @torch.no_grad()
    def _pushed(self, inputs: Any, directions: Tensor, v: Tensor) -> Tensor:
        """J v of one part: (d,) -> (b, rank)."""
        objective = self.objective
        try:
            # The fused attentions have no forward mode; and torch's own import of it, on first use, warns of itself.
            with evaluating(objective.model), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".torch.jit.script", category=DeprecationWarning)
                return jvp(lambda w: _inner(objective, w, inputs, directions), (objective.weights,), (v,))[1]
        except NotImplementedError as error:
            why = str(error).strip().splitlines()[0]
            raise WoodburyError(
                f"This model cannot be differentiated forward, which a refit by iterations needs: leave them out. ({why})"
            ) from error

    def _pulled(self, coefficients: Iterable[Tensor]) -> Tensor:
        """Jᵀu/m for the u (b·rank) of each part: the directions of a sample are summed, and one backward pass will do."""
        batches = [
            (inputs, torch.einsum("br,br...->b...", u.view(told.shape).to(directions.dtype), directions))
            for u, (inputs, directions, told) in zip(coefficients, self.parts, strict=True)
        ]
        return mean_gradient(self._in(batches)) / self.parts[0][2].shape[1]


def _at_once(inputs: Any) -> int:
    """How many samples like these."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    numbers = sum(leaf[:1].numel() * (1 if leaf.is_floating_point() else 1000) for leaf in tensors)
    return max(16, min(1024, AT_ONCE // max(1, numbers)))


@torch.no_grad()
def _along(objective: Objective, weights: Tensor, inputs: Any, directions: Tensor) -> Tensor:
    with evaluating(objective.model):
        return _inner(objective, weights, inputs, directions)


def _inner(objective: Objective, weights: Tensor, inputs: Any, directions: Tensor) -> Tensor:
    """sᵀf of every sample and direction: (b, rank)."""
    output = objective.likelihood.read(objective.forward(objective.space.unflatten(weights), inputs))
    return torch.bmm(directions.flatten(2), output.to(directions.dtype).flatten(1)[..., None])[..., 0]
