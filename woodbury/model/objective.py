"""Objective = model + likelihood + batches + space: the only thing that holds a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch, checked, samples_in
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.modes import eval_mode
from woodbury.model.space import ParameterSpace


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a model as a function of the weights in a space.

    batches: re-iterable pairs (inputs, target). The model is used in eval mode and never written to, except by `write`.
    weights: (d,), where the loss is taken; by default those of the model.
    """

    model: nn.Module
    batches: Iterable[Batch]
    likelihood: Likelihood
    space: ParameterSpace
    weights: Tensor

    def __post_init__(self) -> None:
        if self.weights.shape != (self.space.d,):
            raise WoodburyError(
                f"Weights of shape {tuple(self.weights.shape)} met a space of {self.space.d} weights."
            )

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        batches: Iterable[Batch],
        likelihood: Likelihood = cross_entropy,
        space: ParameterSpace | None = None,
    ) -> Objective:
        """The objective at the model's own weights.

        Raises WoodburyError when a weight is NaN or infinite, or a BatchNorm has no running statistics.
        """
        if not isinstance(likelihood, Likelihood):
            raise WoodburyError(
                f"The likelihood is a {type(likelihood).__name__}: wrap a loss as Likelihood(loss)."
            )
        if isinstance(batches, Iterator):
            raise WoodburyError(
                "batches can be read only once: give a list or a DataLoader, not a generator."
            )
        space = space or ParameterSpace.from_model(model)
        _check_norms(model)
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        for name in space.shapes:
            if name in parameters and not torch.isfinite(parameters[name]).all():
                raise WoodburyError(f"Parameter {name!r} is not finite: load a sound checkpoint.")
        return cls(model, batches, likelihood, space, space.flatten(parameters))

    def at(self, weights: Tensor, space: ParameterSpace | None = None) -> Objective:
        """The same loss at other weights (d,), in another space if given; the model is untouched."""
        return replace(self, weights=weights, space=space or self.space)

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """name -> tensor: the weights in the space (removed ones 0)."""
        return self.space.unflatten(self.weights)

    def forward(self, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
        """The model's output under `parameters`; what is not named there is the model's own."""
        keywords = dict(inputs) if isinstance(inputs, Mapping) else {}
        positional = (
            ()
            if isinstance(inputs, Mapping)
            else tuple(inputs)
            if isinstance(inputs, (tuple, list))
            else (inputs,)
        )
        return functional_call(self.model, dict(parameters), positional, keywords)

    def batch_loss(self, parameters: Mapping[str, Tensor], inputs: Any, target: Any) -> Tensor:
        """The mean loss of one batch, a scalar. Raises WoodburyError without labels, or if the likelihood gives anything else."""
        if target is None:
            raise WoodburyError(
                "The batches carry no labels (None) and a loss needs them: give labels."
            )
        loss = self.likelihood.loss(self.forward(parameters, inputs), target)
        if not isinstance(loss, Tensor) or loss.ndim:
            given = (
                f"a tensor of shape {tuple(loss.shape)}"
                if isinstance(loss, Tensor)
                else type(loss).__name__
            )
            raise WoodburyError(
                f"The likelihood's loss gave {given}: it must give the batch's mean loss, a scalar tensor."
            )
        return loss

    @torch.no_grad()
    def probe(self) -> None:
        """Raises WoodburyError, with the reason in one sentence, unless model and likelihood take the first batch.

        Batches without labels (None) pass if the likelihood can draw some.
        """
        with eval_mode(self.model):
            for inputs, target in checked(self.batches):
                if target is None and self.likelihood.sample is None:
                    raise WoodburyError(
                        "The batches carry no labels (None), and this likelihood draws none: give them."
                    )
                try:
                    if (
                        target is None
                    ):  # whoever needs the data's own says so; a generator leaves torch's own alone
                        assert self.likelihood.sample is not None
                        generator = torch.Generator(self.weights.device).manual_seed(0)
                        target = self.likelihood.sample(
                            self.forward(self.parameters, inputs), generator
                        )
                    self.batch_loss(self.parameters, inputs, target)
                except WoodburyError:
                    raise
                except Exception as error:  # whatever the user's network or loss raises
                    why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else 'no reason'}"
                    raise WoodburyError(
                        f"The model or its loss refuses the first batch: does the data fit? ({why})"
                    ) from error
                return

    @torch.no_grad()
    def loss(self, batches: Iterable[Batch] | None = None) -> float:
        """The mean loss per sample over `batches` (default: the objective's own)."""
        losses, samples = 0.0, 0
        with eval_mode(self.model):
            for inputs, target in checked(self.batches if batches is None else batches):
                size = samples_in(inputs)
                if not size:  # its mean is 0/0
                    continue
                losses += size * float(self.batch_loss(self.parameters, inputs, target))
                samples += size
        if not samples:
            raise WoodburyError("No batch was given: a loss needs at least one sample.")
        return losses / samples

    @torch.no_grad()
    def write(self) -> None:
        """Copy the weights into the model's parameters, in place; removed ones become exact zeros."""
        parameters = dict(self.model.named_parameters())
        for name, tensor in self.parameters.items():
            parameters[name].copy_(tensor)


def _check_norms(model: nn.Module) -> None:
    """An error for a BatchNorm in which the samples of a batch would depend on each other even in eval mode."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise WoodburyError(
                f"BatchNorm {name!r} has no running statistics, so that no sample has a gradient of its own: build it with "
                "track_running_stats=True and let recalibrate(model, batches) fill them."
            )
