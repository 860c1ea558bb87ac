"""Which norm and activation follow a layer and nothing else, seen in one run of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from woodbury.model.batches import tensors_in
from woodbury.model.hooks import has_hooks
from woodbury.runtime.layers import UnlessDone, activation_of

METADATA = frozenset({"size", "dim", "numel", "stride", "is_contiguous", "is_floating_point"})
"""Functions of a tensor that do not read its values."""


@dataclass
class Made:
    """A tensor that a module made, and the modules that read it; None for a reader outside them.

    Attributes:
        tensor: The tensor, kept so that no other one has its address.
        readers: Who read it.
    """

    tensor: Tensor
    readers: list[nn.Module | None] = field(default_factory=list)


class Reads(TorchFunctionMode):
    """Records who reads the tensors that some modules make, while a model runs."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.made: dict[int, Made] = {}
        self.by_module: dict[nn.Module, list[Made]] = {}
        self.inside: list[nn.Module] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch and record whose tensors it was given."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in METADATA or (name == "__get__" and not isinstance(result, Tensor)):
            return result
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) in self.made:
                self.made[id(leaf)].readers.append(self.inside[-1] if self.inside else None)
        return result

    def before(self, module: nn.Module, inputs: Any) -> None:
        """A hook before a module's forward."""
        self.inside.append(module)

    def after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A hook after it."""
        self.inside.pop()
        if isinstance(output, Tensor):
            made = Made(output)
            self.made[id(output)] = made
            self.by_module.setdefault(module, []).append(made)

    def only_reader(self, module: nn.Module) -> nn.Module | None:
        """The one module that reads everything that a module made, and reads it once a time."""
        readers = [set(made.readers) for made in self.by_module.get(module, [])]
        if not readers or any(len(each) != 1 or each != readers[0] for each in readers):
            return None
        return next(iter(readers[0]))


def fuse(layers: Iterable[nn.Module], model: nn.Module, call: Callable[[], Any]) -> None:
    """Let layers do the work of a norm and an activation that alone read their output.

    Args:
        layers: Layers that will be replaced, with their `run`; in eval mode.
        model: The model that they are in.
        call: Runs the model once on an example.
    """
    layers = list(layers)
    norms = [module for module in model.modules() if _is_norm(module)]
    activations = {
        module: kind
        for module in model.modules()
        if not has_hooks(module) and (kind := activation_of(module))
    }
    reads = Reads()
    with ExitStack() as stack:
        for module in (*layers, *norms, *activations):
            stack.callback(module.register_forward_pre_hook(reads.before).remove)
            stack.callback(module.register_forward_hook(reads.after).remove)
        with reads:
            output = call()
    for tensor in tensors_in(output):
        if id(tensor) in reads.made:
            reads.made[id(tensor)].readers.append(None)
    for layer in layers:
        reader = reads.only_reader(layer)
        run: Any = layer.run
        if reader in norms and isinstance(layer, nn.Conv2d):
            run.norm = reader
            reader = reads.only_reader(reader)
        run.activation = activations.get(reader) if reader is not None else None
        following = [run.norm, reader if run.activation else None]
        run.following = [module for module in following if module is not None]
        for module in run.following:
            module.forward = UnlessDone(module)


def _is_norm(module: nn.Module) -> bool:
    return (
        type(module) is nn.BatchNorm2d
        and module.running_mean is not None
        and not module.training
        and not has_hooks(module)
    )
