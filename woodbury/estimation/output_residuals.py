"""Output residuals: one network's outputs minus another's, as a function of its weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from woodbury.errors import Refused, WoodburyError, is_out_of_memory, reason
from woodbury.estimation.engines import Engine
from woodbury.estimation.ggn import directions_after, draw_directions, repeat_per_direction
from woodbury.estimation.gradients import gradient_rows, mean_gradient
from woodbury.limits import Limits
from woodbury.linalg.precision import at_least_float32
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import available_bytes, bytes_in_words
from woodbury.model.batches import Batch, Samples, samples_in
from woodbury.model.likelihood import Likelihood
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile
from woodbury.model.spread import per_run, runs_of

BYTES_PER_FLOAT = 4
"""Of a gradient row and of a direction of the output."""

READING_BATCH = 64
"""Samples per batch in which the inputs are held."""

MAX_SAMPLES_PER_PASS = 1024
"""Samples that go through the network at once, at most; `Limits.activations` may ask for fewer."""


class GoalBatch(NamedTuple):
    """Some samples, directions of their outputs, and the goal's outputs along these.

    Attributes:
        inputs: The inputs of b samples.
        directions: (b, mc_samples, …), the s of eq. 29.
        goal_values: (b, mc_samples), sᵀf⁰ with f⁰ the goal's output.
        goal_output: What the goal returned.
        target: The labels, as in `DirectedBatch`.
    """

    inputs: Any
    directions: Tensor
    goal_values: Tensor
    goal_output: Any
    target: Any


@dataclass(frozen=True, eq=False)
class Residuals:
    """r(w) (m,): outputs at weights w minus a goal's, along random directions  (eq. 61).

    Half their mean square is the distance that the Fisher measures. Their Jacobian J at the
    objective's weights comes as rows, or as products without a row in memory  (eq. 63). What is
    held are the inputs, and mc_samples numbers per element of their outputs.

    Attributes:
        objective: The network that is fitted, at its weights.
        parts: The samples with the goal's outputs.
        samples_per_pass: Samples that go through the network at once.

    Example:
        >>> goal = Objective.from_model(torch.nn.Linear(3, 2), [(torch.ones(4, 3), None)])
        >>> residuals = Residuals.between(goal.at(0 * goal.weights), goal, mc_samples=2, seed=0)
        >>> residuals.m, residuals.jacobian().shape
        (8, torch.Size([8, 8]))
        >>> bool(residuals.at(goal.weights).any())
        False
    """

    objective: Objective
    parts: list[GoalBatch]
    samples_per_pass: int

    @classmethod
    def between(
        cls,
        objective: Objective,
        goal: Objective,
        mc_samples: int,
        seed: int,
        samples: int | None = None,
        at_once: int = MAX_SAMPLES_PER_PASS,
    ) -> Residuals:
        """The residuals on the objective's data, which is read once.

        Args:
            objective: The network that is fitted, and the data.
            goal: The network whose outputs are the goal; the directions are drawn at them.
            mc_samples: Directions per sample.
            seed: Of the directions.
            samples: How many, from the first; None for all.
            at_once: Samples that go through the network at once, at most.

        Returns:
            mc_samples × samples residuals.

        Raises:
            WoodburyError: If there are no samples, or the likelihood has no directions.
        """
        batches = list(objective.batches.in_batches(READING_BATCH, samples))
        if not batches:
            raise WoodburyError("No batch was given: outputs are compared on at least one sample.")
        goal = replace(goal, batches=objective.batches.read(batches, trusted=True))
        profile = ModelProfile.measure(goal)
        read = sum(samples_in(batch[0]) for batch in batches)
        check_room_for_directions(mc_samples, read, profile.output_elements)
        samples_per_pass = min(at_once, _samples_per_pass(profile, mc_samples))
        likelihood = goal.likelihood
        parts = [
            GoalBatch(
                batch.inputs,
                batch.directions,
                _projected(likelihood.output_tensor(batch.output), batch.directions),
                batch.output,
                batch.target,
            )
            for batch in draw_directions(goal, mc_samples, seed, samples_per_pass)
        ]
        return cls(objective, parts, samples_per_pass)

    def redrawn(self, objective: Objective, seed: int) -> Residuals:
        """The residuals of a network along other directions, without a pass through the goal.

        Args:
            objective: The network that is fitted, on the same data.
            seed: Of the directions, which are those that `between` draws from it.
        """
        likelihood = objective.likelihood
        generator = torch.Generator(objective.weights.device).manual_seed(seed)
        parts = []
        done = 0
        for part in self.parts:
            size, mc_samples = part.directions.shape[:2]
            output = part.goal_output
            directions = directions_after(
                done, size, likelihood, output, part.target, mc_samples, generator
            )
            done += size
            values = _projected(likelihood.output_tensor(output), directions)
            parts.append(part._replace(directions=directions, goal_values=values))
        return replace(self, objective=objective, parts=parts)

    @property
    def m(self) -> int:
        """Residuals, mc_samples × samples: of ranks, this one's."""
        return sum(part.goal_values.numel() for part in self.parts)

    @property
    def samples(self) -> int:
        """Samples of all ranks."""
        return Ranks.current().total(sum(len(part.directions) for part in self.parts))

    @torch.no_grad()
    def outputs(self, weights: Tensor) -> list[Tensor]:
        """The outputs at weights w.

        Args:
            weights: w, (d,).

        Returns:
            (b, …) for each part.
        """
        with eval_mode(self.objective.model):
            return [_output(self.objective, weights, part.inputs) for part in self.parts]

    def is_in_batches_of(self, outputs: list[Tensor]) -> bool:
        """Whether outputs are those of the parts, by their numbers of samples.

        Args:
            outputs: (b, …) for each batch.
        """
        return [len(output) for output in outputs] == [len(part.directions) for part in self.parts]

    def along(self, outputs: list[Tensor]) -> Tensor:
        """The residuals of known outputs.

        Args:
            outputs: What `outputs` gave.

        Returns:
            (m,), those of a sample one after the other.
        """
        differences = [
            _projected(output, part.directions) - part.goal_values
            for output, part in zip(outputs, self.parts, strict=True)
        ]
        return torch.cat([difference.flatten() for difference in differences])

    def at(self, weights: Tensor) -> Tensor:
        """r(w).

        Args:
            weights: w, (d,).

        Returns:
            (m,), those of a sample one after the other.
        """
        return self.along(self.outputs(weights))

    def jacobian(self, engine: Engine | None = None) -> Tensor:
        """J, (m, d): one gradient row per residual.

        Args:
            engine: As for `gradient_chunks`.
        """
        batches = [repeat_per_direction(part.inputs, part.directions) for part in self.parts]
        return gradient_rows(self._along_directions(batches), self.m, engine=engine)

    def gradient(self, r: Tensor) -> Tensor:
        """Jᵀr/m, by one backward pass.

        Args:
            r: (m,).

        Returns:
            (d,).
        """
        return self._vjp(r.split([part.goal_values.numel() for part in self.parts]))

    def gauss_newton_product(self, v: Tensor) -> Tensor:
        """JᵀJ v/m, by a forward-mode and a backward pass  (eq. 63).

        Args:
            v: (d,).

        Returns:
            (d,).

        Raises:
            WoodburyError: If the model cannot be differentiated forward.
        """
        return self._vjp(self._jvp(part, v) for part in self.parts)

    def diagonal(self, probes: int, seed: int = 0) -> Tensor:
        """An estimate without bias of the diagonal of JᵀJ/m  (eq. 66).

        Args:
            probes: Random sign vectors, a backward pass each.
            seed: Of the signs.

        Returns:
            (d,), float32 at least.
        """
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros_like(at_least_float32(self.objective.weights))
        for probe in range(probes):
            total += self.gradient(self._signs(generator, probe).to(total)).square()
        return total * Ranks.current().total(self.m) / probes

    def _signs(self, generator: torch.Generator, probe: int) -> Tensor:
        """Random signs of the residuals, (m,)."""
        if Ranks.current().is_alone:
            return torch.randint(2, (self.m,), generator=generator).mul(2).sub(1)
        seeded = torch.Generator().manual_seed(generator.initial_seed() + probe)
        per_sample = self.parts[0].goal_values.shape[1]
        signs = []
        for run in runs_of(0, self.m // per_sample):
            count = per_sample * (run.stop - run.start)
            signs.append(torch.randint(2, (count,), generator=per_run(seeded, run.start)))
        return torch.cat(signs).mul(2).sub(1)

    def _along_directions(self, batches: list[Batch]) -> Objective:
        """The objective whose loss is the mean output along the targets of `batches`."""
        return replace(
            self.objective,
            batches=Samples(batches, trusted=True),
            likelihood=Likelihood(self.objective.likelihood.directional),
        )

    @torch.no_grad()
    def _jvp(self, part: GoalBatch, v: Tensor) -> Tensor:
        """J v of one part: (d,) -> (b, mc_samples)."""
        objective = self.objective
        here = objective.weights
        try:
            with eval_mode(objective.model), _forward_mode():
                product = jvp(
                    lambda w: _output_along(objective, w, part.inputs, part.directions),
                    (here,),
                    (v.to(here.dtype),),
                )[1]
        except (RuntimeError, Refused) as error:
            if is_out_of_memory(error):
                raise
            cause = error.__cause__ if isinstance(error, Refused) else error
            raise WoodburyError(
                "This model cannot be differentiated forward, which a refit by iterations needs: "
                f"use Refit(iterations=None). ({reason(cause or error)})"
            ) from error
        return product

    def _vjp(self, coefficients: Iterable[Tensor]) -> Tensor:
        """Jᵀu/m for the u (b·mc_samples) of each part.

        The directions of a sample are summed, weighted by u, so that one backward pass will do.
        """
        batches = []
        for u, part in zip(coefficients, self.parts, strict=True):
            dtype = part.goal_values.dtype
            weights = u.view(part.goal_values.shape).to(dtype)
            summed = torch.einsum("br,br...->b...", weights, part.directions.to(dtype))
            batches.append((part.inputs, summed))
        # A mean over the samples, of which each has mc_samples residuals.
        mean = mean_gradient(
            self._along_directions(batches), samples_per_pass=self.samples_per_pass
        )
        return mean / self.parts[0].goal_values.shape[1]


def supports_forward_mode(objective: Objective) -> bool:
    """Whether iterations that need products J v can run on a model.

    Args:
        objective: The model at its weights, and its data, of which the first sample is used.

    Returns:
        True if the weights are float32 or float64, and the first sample goes through the model in
        forward mode.
    """
    if objective.weights.dtype not in (torch.float32, torch.float64):
        return False
    try:
        first = Residuals.between(objective, objective, mc_samples=1, seed=0, samples=1)
        first.gauss_newton_product(objective.weights)
    except Exception:  # what an operation without a forward mode raises has no common type
        return False
    return True


def check_room_for_directions(mc_samples: int, samples: int, elements: int) -> None:
    """Raise unless the directions of all samples have room in memory.

    Args:
        mc_samples: Directions per sample.
        samples: How many samples there are.
        elements: Of the output of one, and of a direction.

    Raises:
        WoodburyError: If they take more than the process may still have.
    """
    needed = BYTES_PER_FLOAT * mc_samples * samples * elements
    available = available_bytes()
    if needed > available:
        raise WoodburyError(
            f"mc_samples is {mc_samples:,}: the random directions of {samples:,} samples take "
            f"{bytes_in_words(needed)}, and {bytes_in_words(available)} are left: lower it."
        )


def _samples_per_pass(profile: ModelProfile, mc_samples: int) -> int:
    elements = max(
        1,
        profile.input_elements,
        profile.activation_elements,
        mc_samples * profile.output_elements,
    )
    return max(1, min(MAX_SAMPLES_PER_PASS, Limits.current().activations // elements))


@contextmanager
def _forward_mode() -> Iterator[None]:
    """A context without the fused attentions, which cannot be differentiated forward."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # torch's own import of its forward mode, on first use, warns of itself: with a
            # DeprecationWarning up to 2.13, with a FutureWarning, which everybody sees, since.
            warnings.filterwarnings("ignore", message=".torch.jit.script")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _output(objective: Objective, weights: Tensor, inputs: Any) -> Tensor:
    """f, (b, …)."""
    output = objective.forward(objective.space.unflatten(weights), inputs)
    return objective.likelihood.output_tensor(output)


def _output_along(objective: Objective, weights: Tensor, inputs: Any, directions: Tensor) -> Tensor:
    """sᵀf of every sample and direction: (b, mc_samples)."""
    return _projected(_output(objective, weights, inputs), directions)


def _projected(output: Tensor, directions: Tensor) -> Tensor:
    """sᵀf of every sample and direction: (b, mc_samples)."""
    samples, mc_samples = directions.shape[:2]
    flat = directions.to(output.dtype).reshape(samples, mc_samples, -1)
    return torch.bmm(flat, output.reshape(samples, -1, 1))[..., 0]
