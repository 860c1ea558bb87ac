"""Forward hooks that are removed again, and what one forward pass shows through them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from woodbury.model.batches import tensors_in

ForwardHook = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Any]
"""hook(module, positional, keywords, output) -> None, or what takes the place of the output."""


@contextmanager
def forward_hooks(hooks: Iterable[tuple[nn.Module, ForwardHook]]) -> Iterator[None]:
    """A context in which modules have forward hooks; they are removed at its end, whatever happens.

    Args:
        hooks: Modules and their hooks; a module may have several.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> hook = lambda module, positional, keywords, output: print(tuple(output.shape))
        >>> with forward_hooks([(layer, hook)]):
        ...     result = layer(torch.zeros(3, 2))
        (3, 1)
        >>> len(layer._forward_hooks)
        0
    """
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def has_hooks(module: nn.Module) -> bool:
    """Whether more than its type's own forward runs when a module is called.

    Args:
        module: Any module.

    Returns:
        True where it has hooks, or a `forward` that was assigned to it.

    Example:
        >>> has_hooks(nn.Linear(2, 1))
        False
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def layer_input(positional: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor:
    """The input that a Linear or Conv2d was called with, by position or by name."""
    return positional[0] if positional else keywords["input"]


class ModuleCall(NamedTuple):
    """One use of a module in a forward pass.

    Attributes:
        input_shape: The shape of the first tensor that it was given.
        output_shape: The shape of the first tensor that it returned.
        output_elements: The elements of all tensors that it returned.
    """

    input_shape: torch.Size
    output_shape: torch.Size
    output_elements: int


def record_calls(
    model: nn.Module, forward: Callable[[], Any]
) -> tuple[Any, dict[nn.Module, list[ModuleCall]]]:
    """Run a forward pass and note every use of every module.

    Args:
        model: The model.
        forward: Calls it.

    Returns:
        What `forward` returns, and module -> its uses in order; modules that were not used are left
        out.
    """
    calls: dict[nn.Module, list[ModuleCall]] = defaultdict(list)

    def note(
        module: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:
        given = tensors_in((positional, keywords))
        returned = tensors_in(output)
        elements = sum(tensor.numel() for tensor in returned)
        calls[module].append(ModuleCall(_first_shape(given), _first_shape(returned), elements))

    with forward_hooks((module, note) for module in model.modules()):
        output = forward()
    return output, dict(calls)


def _first_shape(tensors: list[Tensor]) -> torch.Size:
    return tensors[0].shape if tensors else torch.Size()
