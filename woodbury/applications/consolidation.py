"""Consolidation: a penalty that keeps what was learnt before, by the curvature of its loss."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from woodbury.applications.merged_rows import merged_rows
from woodbury.applications.proximal_step import ProximalStep
from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_keep, check_vector
from woodbury.fisher.lowrank import LowRank
from woodbury.model.parameters import optimized_parameters, unwrapped
from woodbury.model.space import ParameterSpace
from woodbury.model.wrappers import checked_model


@dataclass(frozen=True, eq=False)
class Consolidation:
    """The penalty ½ s (w − w*)ᵀF(w − w*), by which training keeps to an earlier task  (eq. 84).

    With a diagonal it is elastic weight consolidation. With rows, `LowRank`, weights may still move
    together where the earlier task does not mind. The damping of F holds all weights a little.

    Attributes:
        fisher: F, of the earlier task's loss at w*.
        weights: w*, (d,), the weights that the earlier task ended with.
        strength: s > 0; the number of samples of the earlier task over that of the new one, where
            both losses are means.
        space: Which weights of the model they are.

    Raises:
        WoodburyError: If Fisher, weights and space are not of the same size, or the strength is not
            positive.

    Example:
        >>> import woodbury
        >>> model = nn.Linear(3, 2)
        >>> batches = [(torch.ones(4, 3), torch.ones(4).long())]
        >>> objective = woodbury.Objective.from_model(model, batches)
        >>> fisher = woodbury.mfac(4)(objective)
        >>> kept = Consolidation(fisher, objective.weights, 10.0, space=objective.space)
        >>> kept.penalty(model).item()
        0.0

    Source:
        Kirkpatrick et al., PNAS 2017 (a diagonal); Huszár 2018 (one penalty for all tasks).
    """

    fisher: Fisher
    weights: Tensor
    strength: float = 1.0
    _: KW_ONLY
    space: ParameterSpace

    def __post_init__(self) -> None:
        check_fields(self)
        d = self.space.d
        if self.fisher.d != d:
            raise WoodburyError(
                f"The Fisher is of {self.fisher.d} weights and the space has {d}: give the space "
                "that it was estimated in; after a pruning take restrict(keep)."
            )
        weights = check_vector(self.weights, d, columns=False).detach().clone()
        object.__setattr__(self, "weights", weights)
        if not (math.isfinite(self.strength) and self.strength > 0):
            raise WoodburyError(
                f"strength is {self.strength}: it scales the penalty and must be positive and "
                "finite."
            )

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return f"Consolidation({self.fisher!r}, strength={self.strength:g})"

    @checks_types
    def penalty(self, model: nn.Module) -> Tensor:
        """The penalty at a model's weights, to be added to its loss.

        Args:
            model: The network, with the parameters of the space.

        Returns:
            A scalar that can be differentiated once; it takes one product with F.

        Raises:
            WoodburyError: If the model lacks a parameter, a weight is not finite, or weights have
                been pruned since.
        """
        return _Penalty.apply(self._weights_of(model), self)

    @checks_types
    def attach(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> RemovableHandle:
        """Add the penalty's gradient to the gradients before every step of an optimizer.

        Args:
            optimizer: What steps, without a closure.
            model: The network that it trains.

        Returns:
            The hook; its `remove()` ends it.

        Raises:
            WoodburyError: If the optimizer moves none of the space's parameters. At a step: as
                `penalty`, or if it has a closure.
        """
        inner = unwrapped(optimizer)
        mine = self._moved(inner, model)

        @torch.no_grad()
        def add(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if any(callable(given) for given in (*arguments, *named.values())):
                raise WoodburyError(
                    "A step with a closure makes its gradients after the penalty's: call backward "
                    "first, or add penalty(model) to the loss."
                )
            slopes = self.space.unflatten(self._slope(self._weights_of(model)))
            for name, parameter in mine.items():
                slope = slopes[name].to(parameter)
                if parameter.grad is None:
                    parameter.grad = slope.clone()
                else:
                    parameter.grad.add_(slope)

        return inner.register_step_pre_hook(add)

    @checks_types
    def attach_implicit(
        self, optimizer: torch.optim.Optimizer, model: nn.Module
    ) -> RemovableHandle:
        """Let every step of an optimizer be followed by the penalty's proximal step  (eq. 97).

        `attach` adds the penalty's gradient, and diverges where learning rate · strength · largest
        eigenvalue of F is above 2. This step solves with I + η s F and is stable at any strength.
        η is the learning rate, over 1 − momentum where the optimizer has it, so that training ends
        where it does with `attach`.

        Args:
            optimizer: What steps: SGD, or another whose `lr` is in the units of the gradient. Where
                it divides each gradient by its size, as Adam does, the penalty is another.
            model: The network that it trains.

        Returns:
            The hook; its `remove()` ends it.

        Raises:
            WoodburyError: If the optimizer moves none of the space's parameters, or not all of
                them by one learning rate. At a step: as `penalty`.

        Example:
            >>> import woodbury
            >>> model = nn.Linear(3, 2)
            >>> space = woodbury.ParameterSpace.from_model(model)
            >>> fisher = woodbury.fisher.Diagonal(torch.ones(8), 1e-3)
            >>> term = Consolidation(fisher, torch.zeros(8), 1e6, space=space)
            >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
            >>> hook = term.attach_implicit(optimizer, model)
            >>> model(torch.ones(4, 3)).sum().backward()
            >>> optimizer.step()
            >>> bool(model.weight.abs().max() < 1e-4)
            True
        """
        inner = unwrapped(optimizer)
        mine = self._moved(inner, model)
        if set(mine) != set(self.space.shapes):
            raise WoodburyError(
                f"The optimizer does not move {sorted(set(self.space.shapes) - set(mine))[0]!r}, "
                "which the penalty is on: an implicit step needs all of its parameters."
            )
        follow = ProximalStep(self.fisher, self.strength, self.space, inner, mine)

        def step(*_: Any) -> None:
            follow(self._weights_of(model).detach() - self.weights)

        return inner.register_step_post_hook(step)

    def _moved(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
        """The space's parameters that the optimizer moves, one at least."""
        moved = optimized_parameters(optimizer, model, trainable=True)
        mine = {name: moved[name] for name in self.space.shapes if name in moved}
        self._weights_of(model)
        if not mine:
            raise WoodburyError(
                "The optimizer moves no parameter that the penalty is on: give the optimizer of "
                "this model."
            )
        return mine

    def restrict(self, keep: Tensor) -> Consolidation:
        """The penalty on the kept weights once the others are zero, but for a constant.

        Args:
            keep: (d,) bool, True = kept.

        Returns:
            A penalty with F_KK, around the optimum that the removal has moved  (eq. 9).

        Raises:
            WoodburyError: If nothing is kept, or the mask does not fit.
        """
        keep = check_keep(keep, self.fisher.d)
        moved = self.fisher.compensate(keep, self.weights.masked_fill(keep, 0))
        return replace(
            self,
            fisher=self.fisher.restrict(keep),
            weights=self.weights[keep] + moved.to(self.weights),
            space=self.space.restrict(keep),
        )

    @checks_types
    def merged(self, other: Consolidation, rows: int) -> Consolidation:
        """One penalty in place of two, but for a constant, in the memory of `rows` rows  (eq. 84).

        The rows of both are concatenated, and where they are more than `rows` those of the largest
        curvature are kept (`LowRank.spectral`).

        Args:
            other: Of the same space.
            rows: The most rows that the result has.

        Returns:
            A penalty of strength 1.

        Raises:
            WoodburyError: If a Fisher is no `LowRank` with its rows in memory, or the spaces
                differ.
        """
        check_whole_number(rows, "rows", "the number of rows that are kept")
        same = dict(self.space.shapes) == dict(other.space.shapes)
        if not same or not torch.equal(self.space.keep.cpu(), other.space.keep.cpu()):
            raise WoodburyError(
                "The penalties are on the weights of different spaces: restrict both to the same."
            )
        terms = ((self.fisher, self.strength), (other.fisher, other.strength))
        whole = merged_rows(terms)
        pull = other.strength * (other.fisher @ (other.weights - self.weights))
        centre = self.weights + whole.solve(pull).to(self.weights)
        return replace(self, fisher=_largest(whole, rows), weights=centre, strength=1.0)

    def _slope(self, weights: Tensor) -> Tensor:
        """S F (w − w*), (d,)."""
        return self.strength * (self.fisher @ (weights.detach() - self.weights))

    def _weights_of(self, model: nn.Module) -> Tensor:
        """The model's weights in the space, with their graph."""
        vector = self.space.flatten(dict(checked_model(model).named_parameters()))
        found = vector.detach()
        if not bool(torch.isfinite(found).all()):
            raise WoodburyError("A weight of the model is not finite: has its training diverged?")
        removed = int(((found == 0) & (self.weights != 0)).sum())
        if removed:
            raise WoodburyError(
                f"{removed} weights are zero now that the penalty would pull back: if they were "
                "pruned, take restrict(keep) with the weights that are kept."
            )
        return vector


class _Penalty(torch.autograd.Function):
    """The penalty as a function of the weights; the product with F serves value and gradient."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, term: Consolidation) -> Tensor:
        slope = term._slope(weights)
        ctx.save_for_backward(slope.to(weights))
        return ((weights - term.weights) @ slope.to(weights)) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None


def _largest(fisher: LowRank, rows: int) -> LowRank:
    """The operator of the largest eigenvalues of the curvature, in so many rows."""
    if fisher.m <= rows:
        return fisher
    ordered = fisher.spectral()  # by rising eigenvalues
    kept = ordered.rows[-rows:] * (rows / fisher.m) ** 0.5  # type: ignore[index]
    return LowRank(kept, fisher.damping)
