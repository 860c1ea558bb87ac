"""Laplace: a normal distribution of the weights around their optimum, and what it predicts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from woodbury.applications.gaussian_draws import gaussian_draws
from woodbury.applications.golden_section import largest_between
from woodbury.applications.inverse_forms import FormsByDamping, InverseForms
from woodbury.applications.linearised_outputs import linearised, outputs_at
from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import as_tensor, check_finite
from woodbury.fisher.lowrank import LowRank
from woodbury.linalg.conversion import seeded
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.batches import Batch, Samples, samples_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.random_numbers import random_kept

DECADES = 8
"""The prior precision is sought so many decades up and down from where it is."""

HALF_DECADES = 8
"""The same, in half decades, for a choice by held-out data."""

HELD_OUT_AT_ONCE = 64
"""Samples whose Jacobians are in memory at once."""


class Predicted(NamedTuple):
    """The distribution of the outputs of the linearised network.

    Attributes:
        mean: (b, k), the outputs at the optimum.
        covariance: (b, k, k), of the weights alone, without the noise of the targets.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True, eq=False)
class Laplace:
    """The weights as a normal distribution of mean w and covariance (n F)⁻¹  (eq. 85).

    n is the number of training samples, F the mean curvature of their loss plus damping·I: a normal
    prior of mean 0 and precision n·damping.

    Attributes:
        fisher: F, best by Gauss–Newton rows: `gauss_newton(mfac(…))(objective)`.
        objective: The trained network on all of its training data, in the space of F.

    Raises:
        WoodburyError: If the space of the objective is not that of the Fisher.

    Example:
        >>> import woodbury
        >>> model = torch.nn.Linear(3, 2)
        >>> batches = [(torch.randn(40, 3), torch.arange(40) % 2)]
        >>> objective = woodbury.Objective.from_model(model, batches)
        >>> fisher = woodbury.gauss_newton(woodbury.mfac(80))(objective)
        >>> posterior = Laplace(fisher, objective).with_best_prior()
        >>> posterior.probabilities(torch.zeros(4, 3)).shape
        torch.Size([4, 2])

    Source:
        MacKay, Neural Computation 1992; Immer et al., AISTATS 2021 (the linearised network).
    """

    fisher: Fisher
    objective: Objective

    def __post_init__(self) -> None:
        check_fields(self)
        if self.fisher.d != self.objective.space.d:
            raise WoodburyError(
                f"The Fisher is of {self.fisher.d} weights and the objective's space has "
                f"{self.objective.space.d}: estimate it in this space."
            )

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return f"Laplace({self.fisher!r}, samples={self.n})"

    @cached_property
    def n(self) -> int:
        """The number of training samples."""
        count = sum(samples_in(inputs) for inputs, _ in self.objective.batches)
        if not count:
            raise WoodburyError("The objective has no samples: give it the training data.")
        return count

    @cached_property
    def _loss(self) -> float:
        """The mean training loss."""
        loss = self.objective.loss()
        if not math.isfinite(loss):
            raise WoodburyError("The training loss is not finite: look at the weights.")
        return loss

    @property
    def prior_precision(self) -> float:
        """τ = n·damping, of each weight."""
        return self.n * self.fisher.damping

    @checks_types
    def with_prior_precision(self, precision: float) -> Laplace:
        """The same network under another prior.

        Args:
            precision: τ > 0.

        Returns:
            Another distribution around the same weights.

        Raises:
            WoodburyError: If the precision is not positive and finite.
        """
        if not (math.isfinite(precision) and precision > 0):
            raise WoodburyError(f"precision is {precision}: give a positive, finite number.")
        return self._with_fisher(self.fisher.with_damping(precision / self.n))

    def _with_fisher(self, fisher: Fisher) -> Laplace:
        other = replace(self, fisher=fisher)
        known = {name: vars(self)[name] for name in ("n", "_loss") if name in vars(self)}
        vars(other).update(known)  # of the data alone
        return other

    def log_marginal_likelihood(self) -> float:
        """The logarithm of the evidence, ∫ p(data | w) p(w) dw, by Laplace's method  (eq. 86).

        Returns:
            In nats, less what the loss leaves out of the negative log-likelihood: for `normal` that
            is ½ log 2π + log scale for each output.
        """
        d, precision = self.fisher.d, self.prior_precision
        square = float(self.objective.weights.double().square().sum())
        volume = d * math.log(self.n) + self.fisher.logdet() - d * math.log(precision)
        return -self.n * self._loss - (precision * square + volume) / 2

    def with_best_prior(self) -> Laplace:
        """The prior precision of the largest evidence, the weights being the same  (eq. 86).

        It is sought over sixteen decades around the present one, and then by golden sections.

        Returns:
            The distribution under that prior.
        """
        fisher = self.fisher.spectral() if isinstance(self.fisher, LowRank) else self.fisher
        start = self._with_fisher(fisher)
        _ = start.n, start._loss  # read the data once
        centre = math.log10(self.prior_precision)

        def evidence(exponent: float) -> float:
            try:
                return start.with_prior_precision(10.0**exponent).log_marginal_likelihood()
            except WoodburyError:  # a damping that rounding swallows
                return -math.inf

        grid = [centre + step for step in range(-DECADES, DECADES + 1)]
        best = max(grid, key=evidence)
        best = largest_between(evidence, best - 1, best + 1)
        return start.with_prior_precision(10.0**best)

    @random_kept()
    def with_prior_chosen_on(self, held_out: Iterable[Batch]) -> Laplace:
        """The prior precision under which held-out classes are most probable.

        The evidence takes the weights for the most probable ones under the prior. Where a network
        was trained without weight decay, or F has fewer rows than its outputs have directions,
        held-out data are the better judge.

        Args:
            held_out: Re-iterable batches of labelled data that were not trained on, and that no
                result is reported on; the outputs are logits.

        Returns:
            The best of seventeen priors, half a decade apart, around the present one.

        Raises:
            WoodburyError: If there are no samples, or no labels.
        """
        steps = range(-HALF_DECADES, HALF_DECADES + 1)
        dampings = [self.fisher.damping * 10 ** (step / 2) for step in steps]
        forms = FormsByDamping(self.fisher, dampings)
        losses = [0.0] * len(dampings)
        samples = 0
        for inputs, target in Samples.of(held_out).in_batches(HELD_OUT_AT_ONCE):
            mean, jacobian = linearised(self.objective, inputs, self.fisher.dtype)
            samples += len(mean)
            for index, form in enumerate(forms.between(jacobian)):
                logits = _moderated(mean, form / self.n)
                loss = self.objective.likelihood.checked_loss(logits, target)
                losses[index] += len(mean) * float(loss)
        if not samples:
            raise WoodburyError("held_out holds no samples: give at least one.")
        best = min(range(len(losses)), key=losses.__getitem__)
        return self._with_fisher(self.fisher.with_damping(dampings[best]))

    @checks_types
    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        """Draws of the weights.

        Args:
            count: How many.
            seed: Of the random numbers.

        Returns:
            (count, d); `objective.at(draw)` is the network with one of them.

        Raises:
            WoodburyError: If there are no draws from this kind of Fisher.
        """
        check_whole_number(count, "count", "the number of draws")
        generator = seeded(seed, self.fisher.device)
        with if_memory_runs_out("ask for fewer draws at a time"):
            draws = gaussian_draws(self.fisher, count, generator) / self.n**0.5
        return self.objective.weights + draws.to(self.objective.weights)

    @torch.no_grad()
    @random_kept()
    def outputs(self, draws: Tensor, inputs: Any) -> Tensor:
        """The network's outputs under draws of its weights.

        Args:
            draws: (count, d), as `sample` gives them.
            inputs: A batch's inputs.

        Returns:
            (count, b, …).

        Raises:
            WoodburyError: If the draws are of another network, or not finite.
        """
        draws = as_tensor(draws, "The matrix of draws")
        d = self.objective.space.d
        if draws.ndim != 2 or draws.shape[1] != d or not len(draws):
            raise WoodburyError(
                f"The draws have shape {tuple(draws.shape)} and this network {d} weights: give "
                f"(count, {d}), as sample() of the same Laplace does."
            )
        check_finite(draws, "A draw")
        weights = self.objective.weights
        with eval_mode(self.objective.model):
            found = [outputs_at(self.objective, draw.to(weights), inputs) for draw in draws]
        return torch.stack(found)

    @random_kept()
    def predict(self, inputs: Any) -> Predicted:
        """The distribution of the linearised network's outputs, J (nF)⁻¹ Jᵀ  (eq. 85).

        Args:
            inputs: A batch's inputs, b samples.

        Returns:
            Mean and covariance of the k outputs of each sample.

        Raises:
            WoodburyError: If the model refuses the inputs, or a gradient is not finite.
        """
        mean, jacobian = linearised(self.objective, inputs, self.fisher.dtype)
        return Predicted(mean, self._inverse.between(jacobian) / self.n)

    @cached_property
    def _inverse(self) -> InverseForms:
        return InverseForms(self.fisher)

    def probabilities(self, inputs: Any) -> Tensor:
        """The classes' probabilities, the outputs being logits, by MacKay's approximation (eq. 85).

        Args:
            inputs: A batch's inputs, b samples.

        Returns:
            (b, k): less confident than softmax of the outputs where their variance is large.
        """
        return _moderated(*self.predict(inputs)).softmax(1)


def _moderated(mean: Tensor, covariance: Tensor) -> Tensor:
    """Logits divided by √(1 + π v/8), v their variances."""
    variance = covariance.diagonal(dim1=1, dim2=2).clamp_min(0).to(mean)
    return mean / (1 + math.pi / 8 * variance).sqrt()
