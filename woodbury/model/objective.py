"""Objective: the loss of a model as a function of some of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from woodbury.argument_types import check_fields
from woodbury.errors import (
    Refused,
    WoodburyError,
    is_out_of_memory,
    reason_with_line,
    user_code,
)
from woodbury.linalg.precision import dtype_name
from woodbury.linalg.ranks import Ranks
from woodbury.model.attributes import attributes_kept
from woodbury.model.batches import Batch, Samples, checked, samples_in, slice_samples, tensors_in
from woodbury.model.calling import call_model, run_model
from woodbury.model.likelihood import IGNORED, Likelihood, check_likelihood, cross_entropy
from woodbury.model.mean_losses import (
    MEAN_TOLERANCE,
    MOST_TRIALS,
    PROBED_SAMPLES,
    from_both_ends,
    is_of_one_class,
    remedy,
)
from woodbury.model.memory_of_weights import check_apart
from woodbury.model.modes import eval_mode
from woodbury.model.pretrained import check_shifted, may_be_unshifted
from woodbury.model.random_numbers import random_kept
from woodbury.model.sharded import is_sharded, whole_copy, write_into
from woodbury.model.space import ParameterSpace
from woodbury.model.wrappers import checked_model

ANY_SIZE = "let both take any batch size, and look at the labels"
"""What to do where several samples are taken and a single one is refused."""


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a model on some data, as a function of the weights in a space.

    It is the only object that holds a model. The model is used in eval mode and never written to,
    except by `write`.

    Attributes:
        model: The network.
        batches: The data, as `Samples`: batches given here are wrapped.
        likelihood: The loss, and what else the outputs say about the targets.
        space: Which weights are variables; the others stay at the model's own values.
        weights: (d,), where the loss is taken.
        fixed: Name -> tensor of other parameters that are not the model's own.
        sharded: The model as it was given, where its parameters are sharded over ranks, and `model`
            is a whole copy; else None.

    Raises:
        WoodburyError: If the weights do not fit the space, or the batches can be read only once.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> batches = [(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))]
        >>> objective = Objective.from_model(model, batches)
        >>> zeros = objective.at(torch.zeros(8))  # 6 weights and 2 biases; the model keeps its own
        >>> round(zeros.loss(), 4)
        0.6931
    """

    model: nn.Module
    batches: Samples
    likelihood: Likelihood
    space: ParameterSpace
    weights: Tensor
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    sharded: nn.Module | None = None

    def __repr__(self) -> str:
        """One line."""
        return f"Objective({type(self.model).__name__}, weights={self.space.d})"

    def __post_init__(self) -> None:
        # Also after replace(objective, batches=[...]), so that all code below reads Samples.
        object.__setattr__(self, "batches", Samples.of(self.batches))
        check_fields(self)
        self.space.check_vector(self.weights)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        batches: Iterable[Batch],
        likelihood: Likelihood = cross_entropy,
        space: ParameterSpace | None = None,
    ) -> Objective:
        """The objective at a model's own weights.

        Args:
            model: The network, of which wrappers such as `DataParallel` are taken off. Of one whose
                parameters are sharded over ranks, as by FSDP2, a whole copy is made, for which all
                ranks call this function.
            batches: Re-iterable pairs (inputs, target), such as a list or a DataLoader. Nothing is
                read yet.
            likelihood: The loss; classes by default.
            space: Which weights are variables; None for all parameters.

        Returns:
            The objective, with a copy of the weights.

        Raises:
            WrongType: If the likelihood is no `Likelihood`, or the model no module.
            WoodburyError: If the batches can be read only once, a weight is not finite, a
                parameter lies in another's memory, or a BatchNorm has no running statistics.
        """
        check_likelihood(likelihood)
        given = checked_model(model)
        for name, parameter in given.named_parameters():
            check_usable(name, parameter)
        check_apart(dict(given.named_parameters()))
        model = whole_copy(given)
        samples = Samples.of(batches)
        space = space or ParameterSpace.from_model(model)
        _check_norms(model)
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        _check_dtypes({name: parameters[name] for name in space.shapes if name in parameters})
        for name in space.shapes:
            if name in parameters and not torch.isfinite(parameters[name]).all():
                raise WoodburyError(f"Parameter {name!r} is not finite: load a sound checkpoint.")
        sharded = given if is_sharded(given) else None
        weights = space.flatten(parameters)
        return cls(model, samples, likelihood, space, weights, sharded=sharded)

    def at(self, weights: Tensor, space: ParameterSpace | None = None) -> Objective:
        """The same loss at other weights; the model is untouched.

        Args:
            weights: (d,), in `space`.
            space: Another space; None for the same.

        Returns:
            The objective there.

        Raises:
            WoodburyError: If the weights do not fit the space.
        """
        return replace(self, weights=weights, space=space or self.space)

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Name -> tensor of the weights in the space, removed ones 0."""
        return self.space.unflatten(self.weights)

    def forward(self, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
        """The model's output.

        Args:
            parameters: Name -> tensor; what is not named here is that of `fixed`, or the model's
                own.
            inputs: A batch's inputs.

        Returns:
            What the model returns.
        """
        with _refusing("The model", inputs):
            return call_model(self.model, inputs, {**self.fixed, **parameters})

    def batch_loss(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Any,
        target: Any,
        draw: Callable[[Any], Any] | None = None,
    ) -> Tensor:
        """The mean loss of one batch.

        Args:
            parameters: As in `forward`.
            inputs: The batch's inputs.
            target: Its labels.
            draw: The model's output -> the labels, in place of `target`.

        Returns:
            A scalar tensor.

        Raises:
            WoodburyError: If there are no labels.
            WrongType: If the likelihood's loss gives no scalar tensor.
        """
        with attributes_kept(self.model):  # the loss may read what the forward pass has stored
            with _refusing("The model", inputs):
                output = run_model(self.model, inputs, {**self.fixed, **parameters})
            if draw is not None:
                with torch.no_grad():
                    target = draw(output)
            with _refusing("The loss", inputs):
                return self.likelihood.checked_loss(output, target)

    @torch.no_grad()
    @random_kept()
    def probe(self) -> None:
        """Try the model and the loss on the first batch, and on single samples of it.

        Raises:
            WoodburyError: With the reason in one sentence, if either refuses them; if the loss of
                several samples is not the mean of theirs; also if there are no labels and the
                likelihood cannot draw any.
        """
        first = next(iter(self.batches), None)
        if first is None:
            return
        inputs, target = first
        if target is None and self.likelihood.sample is None:
            raise WoodburyError(
                "The batches carry no labels (None), and this likelihood draws none: give them."
            )
        refusal = "The model or its loss refuses the first batch: does the data fit?"
        with eval_mode(self.model), user_code(refusal):
            if samples_in(inputs) == 1:  # nothing is learnt from a single sample
                inputs, target = next(self.batches.in_batches(2, 2))
            if target is None and self.likelihood.sample is not None:
                # Whoever needs the data's own labels says so. torch's own generator is left alone.
                generator = torch.Generator(self.weights.device).manual_seed(0)
                output = self.forward(self.parameters, inputs)
                target = self.likelihood.sample(output, None, generator)
            self.batch_loss(self.parameters, inputs, target)
            if may_be_unshifted(inputs, target, IGNORED):
                check_shifted(self.forward(self.parameters, slice_samples(inputs, 0, 1)))
        self.check_mean(inputs, target)

    @torch.no_grad()
    @random_kept()
    def check_mean(self, inputs: Any, target: Any) -> None:
        """Raise unless the loss of some samples is the mean of their single losses.

        It is tried once for each data set and likelihood, and again where all had the same class.

        Args:
            inputs: Of a batch that is used; nothing is learnt from a single sample.
            target: Its labels.

        Raises:
            WoodburyError: If it is another number, or single samples are refused.
        """
        if self.batches.trusted or samples_in(inputs) < 2:
            return
        if self.batches.trials_of(self.likelihood) >= MOST_TRIALS:
            return
        refusal = "The model or its loss refuses a single sample, and each has its own gradient"
        with eval_mode(self.model), user_code(f"{refusal}: {ANY_SIZE}."):
            first = from_both_ends((inputs, target), PROBED_SAMPLES)
            count = samples_in(first[0])
            together = float(self.batch_loss(self.parameters, *first))
            singles = [
                float(self.batch_loss(self.parameters, *slice_samples(first, i, i + 1)))
                for i in range(count)
            ]
        mean = sum(singles) / max(count, 1)
        allowed = MEAN_TOLERANCE * max(map(abs, singles), default=0.0) + MEAN_TOLERANCE**2
        if abs(together - mean) > allowed:
            with eval_mode(self.model):
                again = float(self.batch_loss(self.parameters, *first))
            if again != together:
                raise WoodburyError(
                    f"The loss of the same {count} samples is {together:.4g} and then "
                    f"{again:.4g}, in eval mode: the model or the loss draws random numbers, so "
                    "let it do so in training only."
                )
            raise WoodburyError(
                f"The loss of {count} samples is {together:.4g}, the mean of their single losses "
                f"{mean:.4g}: a loss must be the mean over samples, so "
                f"{remedy(together, singles)}."
            )
        trials = 1 if is_of_one_class(first[1]) else MOST_TRIALS
        self.batches.tried.extend([self.likelihood] * trials)

    @torch.no_grad()
    @random_kept()
    def loss(self, batches: Iterable[Batch] | None = None) -> float:
        """The mean loss per sample.

        Args:
            batches: Other data; None for the objective's own. A generator will do.

        Returns:
            Σ loss of the samples ÷ samples; not finite where the weights lead to no finite output.

        Raises:
            WoodburyError: If there is no sample, a batch has no labels, or the loss is not finite
                as the data are not.
        """
        total = 0.0
        samples = 0
        with eval_mode(self.model):
            given = self.batches if batches is None else batches
            for index, (inputs, target) in enumerate(checked(given)):
                size = samples_in(inputs)
                if not size:  # its mean is 0/0
                    continue
                loss = float(self.batch_loss(self.parameters, inputs, target))
                if not math.isfinite(loss):
                    _check_data(index, inputs, target)
                total += size * loss
                samples += size
        ranks = Ranks.current()
        sums = ranks.sum(torch.tensor([total, samples], dtype=torch.float64)).tolist()
        if not sums[1]:
            raise WoodburyError("No batch was given: a loss needs at least one sample.")
        return sums[0] / sums[1]

    @torch.no_grad()
    def write(self) -> None:
        """Copy the weights into the model's parameters in place; removed ones become zeros.

        Raises:
            WoodburyError: If a weight is not finite; nothing is written then.
        """
        if not bool(torch.isfinite(self.weights).all()):
            raise WoodburyError(
                "A weight is not finite, so that none is written: raise the damping."
            )
        write_into(self.model, self.space.by_tensor(self.weights))
        if self.sharded is not None:
            write_into(self.sharded, self.space.by_tensor(self.weights))


@contextmanager
def _refusing(what: str, inputs: Any) -> Iterator[None]:
    """A context for one call of the user's code."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, Refused) and error.__cause__ else error
        if isinstance(cause, WoodburyError) or is_out_of_memory(cause):
            raise
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(inputs))
        raise Refused(
            f"{what} refuses a batch with inputs of shape {shapes}: look at it and its labels. "
            f"({reason_with_line(cause)})"
        ) from cause


def _check_data(index: int, inputs: Any, target: Any) -> None:
    """Raise where NaN or infinity in a batch is why its loss is not finite."""
    for part, what in ((inputs, "an input"), (target, "a label")):
        for tensor in tensors_in(part):
            if not bool(torch.isfinite(tensor).all()):
                raise WoodburyError(
                    f"Batch {index} holds {what} that is not finite, so that its loss is none: "
                    "look for NaN in the data."
                )


def check_dependence(loss: Tensor, what: str = "parameters") -> None:
    """Raise unless a loss can be differentiated by what was chosen.

    Args:
        loss: A scalar, computed from what requires a gradient.
        what: What was chosen, for the sentence.

    Raises:
        WoodburyError: If the loss requires no gradient.
    """
    if not loss.requires_grad:
        raise WoodburyError(
            f"The loss does not depend on the chosen {what}: "
            "does the model or the loss detach them?"
        )


def check_usable(name: str, parameter: Tensor) -> None:
    """Raise for a parameter whose values cannot be read or exchanged.

    Args:
        name: Its name.
        parameter: The parameter.

    Raises:
        WoodburyError: If it is lazy, of inference mode, or on meta.
    """
    if is_lazy(parameter):
        raise WoodburyError(
            f"{name!r} has no shape yet: show the model some data once, as its layers are lazy."
        )
    if parameter.is_inference():
        raise WoodburyError(
            f"{name!r} was made in inference mode, which forbids gradients: make the model under "
            "torch.no_grad()."
        )
    if parameter.is_meta:
        raise WoodburyError(
            f"{name!r} is on meta and has no values: load the weights first, or take an offloaded "
            "model into memory by accelerate.hooks.remove_hook_from_submodules."
        )


def _check_dtypes(parameters: Mapping[str, Tensor]) -> None:
    """Raise unless all are of one real dtype: they become one vector."""
    first = next(iter(parameters), "")
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise WoodburyError(
                f"{name!r} is complex, for which there is no Fisher here: leave it out with "
                f"exclude={name!r}."
            )
        if parameter.dtype != parameters[first].dtype:
            raise WoodburyError(
                f"{first!r} is {dtype_name(parameters[first].dtype)} and {name!r} "
                f"{dtype_name(parameter.dtype)}: choose parameters of one dtype by include=… or "
                "exclude=…, or convert the model."
            )


def _check_norms(model: nn.Module) -> None:
    """Raise for a BatchNorm that makes samples depend on each other even in eval mode."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise WoodburyError(
                f"BatchNorm {name!r} has no running statistics, so that no sample has a gradient "
                "of its own: build it with track_running_stats=True and let "
                "recalibrate(model, batches) fill them."
            )
