"""What one sample costs a model, measured in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from woodbury.errors import WoodburyError, user_code
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import samples_in, tensors_in
from woodbury.model.flop_count import Flops, flops_of_calls
from woodbury.model.hooks import record_calls
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective

ELEMENTS_PER_TOKEN = 1000
"""What an integer input counts for: a token becomes a vector of about so many elements."""


@dataclass(frozen=True)
class ModelProfile:
    """The elements and the FLOPs of one sample in a model.

    Attributes:
        input_elements: Elements of the inputs; an integer counts for `ELEMENTS_PER_TOKEN`.
        activation_elements: The most elements that one module returns.
        total_activation_elements: The elements that all modules without children return.
        output_elements: Elements of the output that the likelihood reads.
        flops: FLOPs of one weight of each parameter, per sample.
        forward_flops: FLOPs of the forward pass, by the weights of all parameters.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
        >>> objective = Objective.from_model(model, [(torch.ones(4, 3), None)])
        >>> profile = ModelProfile.measure(objective)
        >>> profile.activation_elements, profile.forward_flops
        (5, 64.0)
    """

    input_elements: int
    activation_elements: int
    total_activation_elements: int
    output_elements: int
    flops: Flops
    forward_flops: float

    @classmethod
    @torch.no_grad()
    def measure(cls, objective: Objective) -> ModelProfile:
        """Measure the first sample by one hooked forward pass, which leaves the model as it was.

        Args:
            objective: The model at its weights, its data and its likelihood.

        Returns:
            The profile, per sample.

        Raises:
            WoodburyError: If there is no sample, or the model refuses the first one.
        """
        with Ranks.apart():  # any sample will do
            first = next(objective.batches.in_batches(1, 1), None)
        if first is None:
            raise WoodburyError("No batch was given: a profile needs at least one sample.")
        inputs, _ = first
        model = objective.model
        refusal = "The model refuses the first sample: does the data fit?"
        with user_code(refusal), eval_mode(model):
            output, calls = record_calls(
                model, lambda: objective.forward(objective.parameters, inputs)
            )
            output_elements = objective.likelihood.output_of(output).numel()
        largest = max((use.output_elements for uses in calls.values() for use in uses), default=0)
        total = sum(
            use.output_elements
            for module, uses in calls.items()
            for use in uses
            if next(module.children(), None) is None
        )
        flops = flops_of_calls(model, calls, samples_in(inputs))
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        return cls(
            input_elements=_weighted_elements(inputs),
            activation_elements=largest,
            total_activation_elements=total,
            output_elements=output_elements,
            flops=flops,
            forward_flops=sum(flops.per_weight[name] * size for name, size in sizes.items()),
        )


def _weighted_elements(inputs: Any) -> int:
    """Elements of all tensors, an integer for `ELEMENTS_PER_TOKEN`."""
    return sum(
        tensor.numel() * (1 if tensor.is_floating_point() else ELEMENTS_PER_TOKEN)
        for tensor in tensors_in(inputs)
    )
