"""The inputs that an ONNX file is made with and checked on, and its outputs, by their names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError, WrongType, user_code
from woodbury.model.batches import tensors_in
from woodbury.model.calling import call_model

BATCH, LENGTH = "batch", "length"
"""The names of the dimensions of the samples, and of what lies in a row in each of them."""


class OutputTensors(nn.Module):
    """A network of positional tensors that returns the tensors of its output alone."""

    def __init__(self, network: nn.Module, names: Sequence[str] | None) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What `named_tensors` finds in the output."""
        if self.names is None:
            output = self.network(*inputs)
        else:
            output = self.network(**dict(zip(self.names, inputs, strict=True)))
        return tuple(named_tensors(output).values())


def named_tensors(output: Any) -> dict[str, Tensor]:
    """The tensors in what a network returned; those that a cache holds are none of them."""
    if isinstance(output, Tensor):
        return {"output": output}
    if isinstance(output, Mapping):
        return {str(key): each for key, each in output.items() if isinstance(each, Tensor)}
    return {f"output_{index}": each for index, each in enumerate(tensors_in(output))}


class ExampleBatches(NamedTuple):
    """Inputs of a network in batches of several sizes.

    Attributes:
        inputs: Name -> tensor, of the example; at least two samples, as torch takes a dimension of
            one for a constant.
        by_name: Whether the network is given them as keyword arguments.
        any_length: Whether dimension 1 varies too.
        outputs: The names of its outputs.
    """

    inputs: dict[str, Tensor]
    by_name: bool
    any_length: bool
    outputs: list[str]

    @classmethod
    def of(cls, example: Any, network: nn.Module, any_length: bool) -> ExampleBatches:
        """Take the example apart, and see that the network takes other sizes of it too.

        Raises:
            WrongType: If an input is no tensor.
            WoodburyError: If there is no sample, or the network refuses a size.
        """
        by_name = isinstance(example, Mapping)
        if by_name:
            inputs = {str(key): value for key, value in example.items()}
        else:
            several = tuple(example) if isinstance(example, (tuple, list)) else (example,)
            inputs = dict(zip(_positional_names(network, len(several)), several, strict=True))
        for name, value in inputs.items():
            if not isinstance(value, Tensor):
                raise WrongType(f"The input {name!r} is a {type(value).__name__}: give a tensor.")
        inputs = {name: value.detach().cpu() for name, value in inputs.items()}
        first = next(iter(inputs.values()), torch.empty(0))
        if not first.ndim or not len(first):
            raise WoodburyError("The example has no samples: give a batch of at least one.")
        if any_length and (first.ndim < 2 or first.shape[1] < 2):
            raise WoodburyError(
                f"any_length is True and the first input has shape {tuple(first.shape)}: give an "
                "example of two tokens at least, along dimension 1."
            )
        made = cls(inputs, by_name, any_length, [])
        with user_code("The model refuses the example."):
            output = made.run(network, made.inputs)
        if not output:
            raise WoodburyError("The model returns no tensor: ONNX has nothing else.")
        made = made._replace(inputs=made.of_size(max(2, len(first))), outputs=list(output))
        with user_code("The model refuses a batch of another size than the example's: mend that."):
            made.run(network, made.of_size(made.samples + 1, shorter=any_length))
        return made

    @property
    def samples(self) -> int:
        """In the example."""
        return len(next(iter(self.inputs.values())))

    def dynamic(self, value: Tensor) -> dict[int, str]:
        """The dimensions of an input that may have any size, with their names."""
        first = next(iter(self.inputs.values()))
        names = {0: BATCH, 1: LENGTH} if self.any_length else {0: BATCH}
        return {
            dim: name
            for dim, name in names.items()
            if dim < value.ndim and value.shape[dim] == first.shape[dim]
        }

    def of_size(self, size: int, *, shorter: bool = False) -> dict[str, Tensor]:
        """The inputs with so many samples, over again where there are fewer.

        Args:
            size: Samples.
            shorter: Whether they are one shorter along dimension 1.
        """
        chosen = torch.arange(size) % self.samples
        made = {}
        for name, value in self.inputs.items():
            dynamic = self.dynamic(value)
            made[name] = value[chosen] if 0 in dynamic else value
            if shorter and 1 in dynamic:
                made[name] = made[name][:, :-1]
        return made

    def run(self, network: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network says to some inputs."""
        given = dict(inputs) if self.by_name else tuple(inputs.values())
        with torch.inference_mode():
            return named_tensors(call_model(network, given))


def _positional_names(network: nn.Module, count: int) -> list[str]:
    """What the network calls its first arguments, where each has a name."""
    try:
        kinds = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        kinds = ()
    names = [
        each.name
        for each in kinds
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    return names[:count] if len(names) >= count else [f"input_{place}" for place in range(count)]
