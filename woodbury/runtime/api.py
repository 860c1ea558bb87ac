"""`accelerate`: a copy of a model whose sparse layers skip their zeros."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, user_code
from woodbury.model.calling import call_model
from woodbury.model.channels import is_transposed_linear
from woodbury.model.hooks import has_hooks
from woodbury.monitor import announce
from woodbury.runtime import products
from woodbury.runtime.fusing import fuse
from woodbury.runtime.layers import SparseConv1D, SparseConv2d, SparseLinear, SparseRun
from woodbury.runtime.measuring import Choice, in_turns
from woodbury.runtime.pooling import separated

LEAST_SPARSITY = 0.5
"""With fewer zeros no kernel of ours was faster than the dense product (docs/results)."""

WHOLE_TRIAL_SECONDS = 1.0
"""Of the trial of a whole network, for each way."""

FEW_ZEROS = "fewer than half of its weights are zero."


@dataclass(frozen=True)
class LayerChoice:
    """How a layer of an accelerated model is computed.

    Attributes:
        name: Its name in the model.
        shape: Of its weight.
        nonzeros: Of its weight.
        reason: Why it was left dense; None where it runs sparse for some size of input.
        choices: By the size of the input, how it runs and what the ways take, as far as known.
    """

    name: str
    shape: tuple[int, ...]
    nonzeros: int
    reason: str | None
    choices: tuple[Choice, ...] = ()

    def __str__(self) -> str:
        """One line."""
        total = max(1, torch.Size(self.shape).numel())
        line = f"{self.name or 'the model'}: {1 - self.nonzeros / total:.1%} zeros, "
        if self.reason:
            return line + f"dense: {self.reason}"
        times = [f"{c.dense_seconds / c.sparse_seconds:.1f}×" for c in self.choices if c.tiling]
        return line + f"sparse, {', '.join(dict.fromkeys(times)) or 'not yet measured'}"


@checks_types
def accelerate(model: nn.Module, example: Any = None, *, measure: bool = True) -> nn.Module:
    """A copy of a model, for inference on a CPU, that does not multiply by zeros.

    Sparse Linear and Conv2d layers, and transformers' Conv1D, are replaced where that is the
    faster. That is timed once for each shape and remembered in the user's cache folder. Max pooling
    of such a network takes a faster way too. The copy is in eval mode, shares the model's weights,
    and has the same parameters, buffers and calls. It has no gradients. It keeps the memory of
    large outputs for the next ones, 256 MB for each thread at most. The first use on a machine
    compiles the kernels, which takes some seconds.

    Args:
        model: A float32 model on the CPU. It is left as it is.
        example: Inputs of a typical batch: a tensor, a tuple of positional, or a mapping of keyword
            arguments. With it all layers are timed now, then the whole network: where that gains
            nothing, it is left dense. A BatchNorm, ReLU or GELU that alone follows a layer is
            computed with it. Without it a layer is timed when it first sees inputs of a size.
        measure: False to estimate what is the faster, by non-zeros.

    Returns:
        The copy. `woodbury.runtime.choices` says what became of its layers.

    Raises:
        MissingDependency: If Numba is not installed.
        WoodburyError: If the model is not on the CPU, cannot be copied or refuses the example.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> layer = torch.nn.Linear(256, 256)
        >>> with torch.no_grad():
        ...     _ = layer.weight.mul_(torch.rand(256, 256) < 0.05)
        >>> fast = accelerate(layer, measure=False)
        >>> x = torch.randn(32, 256)
        >>> with torch.inference_mode():
        ...     torch.allclose(fast(x), layer(x), atol=1e-5)
        True
    """
    _check(model)
    products.kernels()
    with user_code("The model cannot be copied: accelerate a model that deepcopy takes."):
        copy = _copy_with_shared_weights(model).eval()
    left = {name: reason for name, layer in _matrix_layers(copy) if (reason := why_dense(layer))}
    layers = {name: layer for name, layer in _matrix_layers(copy) if name not in left}
    for layer in layers.values():
        layer.run = SparseRun(measure)
    if example is not None and layers:
        with user_code("The model refuses the example."), torch.inference_mode():
            fuse(layers.values(), copy, lambda: call_model(copy, example))
    for layer in layers.values():
        _replace(layer)
    pools = separated(copy) if layers else []
    if example is not None and layers:
        with torch.inference_mode():
            call_model(copy, example)
        for name, layer in layers.items():
            known = layer.run.choices.values()
            if known and all(choice.tiling is None for choice in known):
                left[name] = "the dense product is faster here."
                _restore(layer)
        replaced = {name: layer for name, layer in layers.items() if name not in left}
        if replaced and measure and not _is_faster(copy, model, example):
            for name, layer in replaced.items():
                left[name] = "the whole network is no faster without its zeros."
                _restore(layer)
    if len(left) == len(list(_matrix_layers(copy))):
        for pool in pools:
            pool.__class__ = nn.MaxPool2d
    copy.left_dense = left  # type: ignore[assignment]
    chosen = choices(copy)
    sparse = sum(choice.reason is None for choice in chosen)
    announce(f"{sparse} of {len(chosen)} layers run sparse.")
    return copy


def choices(model: nn.Module) -> list[LayerChoice]:
    """What became of the layers of an accelerated model.

    Args:
        model: What `accelerate` returned.

    Returns:
        Its Linear, Conv2d and Conv1D layers, in the model's order.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> print(*choices(accelerate(torch.nn.Linear(3, 2))))
        the model: 0.0% zeros, dense: fewer than half of its weights are zero.
    """
    left: Any = getattr(model, "left_dense", {})
    return [
        LayerChoice(
            name,
            tuple(layer.weight.shape),
            int(layer.weight.count_nonzero()),
            left.get(name),
            tuple(layer.run.choices.values()) if hasattr(layer, "run") else (),
        )
        for name, layer in _matrix_layers(model)
    ]


def why_dense(layer: Any) -> str | None:
    """Why a layer is not replaced, None where it can be.

    Args:
        layer: A Linear, Conv2d or Conv1D, or of a type derived from one.
    """
    weight = layer.weight
    if type(layer) not in _replacements(layer):
        return f"its type, {type(layer).__name__}, may compute something else."
    if has_hooks(layer):
        return "it has hooks, or a forward of its own: remove them first."
    if not isinstance(weight, nn.Parameter):
        return "its weight is computed by another module: make it permanent first."
    if weight.dtype != torch.float32 or weight.layout != torch.strided:
        return f"its weight is {weight.dtype}, {weight.layout}; only plain float32 is replaced."
    if not weight.numel():
        return "it has no weights."
    if weight.numel() - int(weight.count_nonzero()) < LEAST_SPARSITY * weight.numel():
        return FEW_ZEROS
    return None


def can_be_sparse(layer: nn.Module) -> bool:
    """Whether a layer could be replaced if enough of its weights were zero.

    Args:
        layer: Any module.
    """
    return type(layer) in _replacements(layer) and why_dense(layer) in (None, FEW_ZEROS)


def trial(layer: nn.Module, inputs: Tensor) -> Choice:
    """Time one layer both ways, or remember what an earlier trial of this machine gave.

    Args:
        layer: A layer that `can_be_sparse`; it is replaced.
        inputs: Its inputs.
    """
    replaced: Any = layer.eval()
    replaced.run = SparseRun()
    _replace(replaced)
    with torch.inference_mode():
        replaced(inputs)
    return next(iter(replaced.run.choices.values()))


def _is_faster(copy: nn.Module, model: nn.Module, example: Any) -> bool:
    """Whether an accelerated copy takes less time than the dense model, by a trial in turns.

    Layers are faster in their own trials, with their weights in the cache, than one after another.
    """
    dense = _copy_with_shared_weights(model).eval()
    with torch.inference_mode():
        seconds = in_turns(
            {
                "sparse": lambda: call_model(copy, example),
                "dense": lambda: call_model(dense, example),
            },
            seconds=WHOLE_TRIAL_SECONDS,
        )
    return median(seconds["sparse"]) < median(seconds["dense"])


def _check(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise WoodburyError(
                f"{name!r} is on {tensor.device}: accelerate is for CPUs; call model.cpu() first."
            )


def _copy_with_shared_weights(model: nn.Module) -> nn.Module:
    memo: dict[int, Tensor] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for module in model.modules():  # tensors of a graph, such as a masked weight, have no copies
        for value in vars(module).values():
            if isinstance(value, Tensor):
                memo.setdefault(id(value), value.detach())
    return deepcopy(model, memo)


def _replacements(layer: nn.Module) -> dict[type, type]:
    own: dict[type, type] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}
    return {**own, type(layer): SparseConv1D} if is_transposed_linear(layer) else own


def _matrix_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, SparseConv1D)) or is_transposed_linear(module):
            yield name, module


def _replace(layer: Any) -> None:
    layer.dense_type = type(layer)
    layer.__class__ = _replacements(layer)[type(layer)]


def _restore(layer: Any) -> None:
    layer.__class__ = layer.dense_type
    del layer.run, layer.dense_type
