"""Layers that multiply by the non-zeros of their weight, where that is the faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from woodbury.errors import WoodburyError
from woodbury.runtime import jobs, layouts, measuring, products
from woodbury.runtime.layouts import Grid, Packed, Tiling
from woodbury.runtime.measuring import Choice

Signature = tuple[int, ...]
"""What of an input's shape the choice depends on."""
BOUNDS = {nn.ReLU: jobs.RELU, nn.ReLU6: jobs.RELU6}
MOST_SIZES = 64
"""Sizes of images whose grids a convolution keeps."""


@dataclass
class SparseRun:
    """What a replaced layer knows beside its parameters.

    Attributes:
        measure: Whether choices are timed, or estimated.
        norm: A BatchNorm that is computed with the layer while it is in eval mode, or None.
        activation: "relu", "relu6", "gelu" or None: computed with the layer and its norm.
        following: The modules whose work the layer does: the norm and the activation.
        choices: By the size of the input, how the product is done.
    """

    measure: bool = True
    norm: nn.Module | None = None
    activation: str | None = None
    following: Sequence[nn.Module] = ()
    choices: dict[Signature, Choice] = field(default_factory=dict)
    packed: dict[Tiling, tuple[Any, Packed]] = field(default_factory=dict, repr=False)
    grids: dict[tuple[int, int], Grid | None] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: all but what is derived from the weights."""
        return {**self.__dict__, "packed": {}, "grids": {}}

    @property
    def fuses(self) -> bool:
        """Whether the modules that follow are computed here now."""
        return self.norm is None or not self.norm.training


class SparseLinear(nn.Linear):
    """A Linear that multiplies by its non-zeros where that is the faster; `accelerate` makes it."""

    run: SparseRun

    def forward(self, input: Tensor) -> Tensor:
        """The output, as of the Linear."""
        dense = super().forward
        if input.shape[-1] != self.in_features:
            return dense(input)
        return _tokens(self, input, dense, lambda: self.weight.detach())


class SparseConv1D(nn.Module):
    """The same of transformers' Conv1D, whose weight is (in, out)."""

    run: SparseRun
    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The output, as of the Conv1D."""

        def dense(x: Tensor) -> Tensor:
            flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
            return flat.view(*x.shape[:-1], self.weight.shape[1])

        if x.shape[-1] != self.weight.shape[0]:
            return dense(x)
        return _tokens(self, x, dense, lambda: self.weight.detach().T)


class SparseConv2d(nn.Conv2d):
    """A Conv2d that multiplies by its non-zeros where that is the faster."""

    run: SparseRun

    def forward(self, input: Tensor) -> Tensor:
        """The output, as of the Conv2d."""
        dense = super().forward
        if not _suits(self, input) or input.ndim != 4 or input.shape[1] != self.in_channels:
            return dense(input)
        size = (input.shape[2], input.shape[3])
        if size not in self.run.grids:
            if len(self.run.grids) >= MOST_SIZES:
                self.run.grids.clear()
            self.run.grids[size] = layouts.grid_of(self, size)
        grid = self.run.grids[size]
        if grid is None:
            return dense(input)
        check_no_gradient(self, input)

        def sparse(tiling: Tiling, activation: str | None) -> Tensor:
            packed = _packed(self, tiling, lambda: layouts.full_matrix(self))
            source = layouts.planes(self, grid, input)
            return products.times_planes(packed, grid, source, activation)

        product = _Product(len(input) * grid.columns, lambda: dense(input), sparse)
        return _fastest(self, (_bucket(len(input)), *size), product)


class _Product(NamedTuple):
    """A product of a layer's weight with `columns` columns, and the ways to compute it."""

    columns: int
    dense: Callable[[], Tensor]
    sparse: Callable[[Tiling, str | None], Tensor]


def _tokens(
    layer: Any, inputs: Tensor, dense: Callable[[Tensor], Tensor], matrix: Callable[[], Tensor]
) -> Tensor:
    """The output of a layer whose input's last dimension is multiplied."""
    if not _suits(layer, inputs):
        return dense(inputs)
    check_no_gradient(layer, inputs)
    tokens = inputs.reshape(-1, inputs.shape[-1])

    def sparse(tiling: Tiling, activation: str | None) -> Tensor:
        output = products.times_tokens(_packed(layer, tiling, matrix), tokens, activation)
        return output.view(*inputs.shape[:-1], output.shape[-1])

    count = len(tokens)
    return _fastest(layer, (_bucket(count),), _Product(count, lambda: dense(inputs), sparse))


def _fastest(layer: Any, signature: Signature, product: _Product) -> Tensor:
    """The output by the way that was chosen for this size of input, or is chosen now."""
    run: SparseRun = layer.run
    signature = (torch.get_num_threads(), *signature)
    if signature not in run.choices:
        run.choices[signature] = _choose(layer, signature, product)
    tiling = run.choices[signature].tiling
    if tiling is None:
        return product.dense()
    fuses = run.fuses
    output = product.sparse(tiling, run.activation if fuses else None)
    if fuses and run.following:
        output.done_already = list(run.following)  # type: ignore[attr-defined]
    return output


def _choose(layer: Any, signature: Signature, product: _Product) -> Choice:
    width = products.kernels().WIDTH
    outer = layer.weight.shape[1] if isinstance(layer, SparseConv1D) else len(layer.weight)
    inner = layer.weight.numel() // max(outer, 1) * getattr(layer, "groups", 1)
    nonzeros = int(layer.weight.count_nonzero())
    if not layer.run.measure:
        flops = 2.0 * layer.weight.numel() * product.columns
        return measuring.estimated(nonzeros, outer, inner, product.columns, flops, width)
    geometry = [
        getattr(layer, name, None) for name in ("kernel_size", "stride", "padding", "groups")
    ]
    key = (
        f"{type(layer).__name__} {tuple(layer.weight.shape)} {geometry} at {signature[1:]}, "
        f"{measuring.rounded(nonzeros)} non-zeros"
    )
    ways = {
        tiling: lambda tiling=tiling: product.sparse(tiling, None)
        for tiling in measuring.tilings(inner, product.columns, width)
    }
    with torch.no_grad():
        choice = measuring.chosen(key, product.dense, ways)
    layer.run.packed.clear()
    return choice


def _packed(layer: Any, tiling: Tiling, matrix: Callable[[], Tensor]) -> Packed:
    """The packed weight, with the norm that follows; packed again if anything of it changed."""
    run: SparseRun = layer.run
    norm = run.norm if run.fuses else None
    parts = [layer.weight, layer.bias]
    if norm is not None:
        parts += [norm.running_mean, norm.running_var, norm.weight, norm.bias]
    state = tuple(None if part is None else (part.data_ptr(), _version(part)) for part in parts)
    known = run.packed.get(tiling)
    if known is not None and known[0] == state:
        return known[1]
    weight = matrix()
    begin = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    if norm is not None:
        scale, shift = norm_as_line(norm)
        weight, begin = weight * scale[:, None], begin * scale + shift
    packed = layouts.pack(weight, begin, tiling, skip_unused=isinstance(layer, nn.Conv2d))
    run.packed[tiling] = (state, packed)
    return packed


def norm_as_line(norm: Any) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in eval mode does to each channel: scale·x + shift, each (c,)."""
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean.double() * scale
        shift = shift if norm.bias is None else shift + norm.bias
    return scale.float(), shift.float()


def activation_of(module: nn.Module) -> str | None:
    """Which activation a module is that a layer can compute with its product, None for others.

    GELUs of any library are known by their values.

    Args:
        module: Any module.
    """
    if type(module) in BOUNDS:
        return BOUNDS[type(module)]
    if "gelu" not in type(module).__name__.lower() or any(True for _ in module.parameters()):
        return None
    points = torch.linspace(-6, 6, 97)
    try:
        with torch.no_grad():
            same = torch.allclose(module(points), gelu(points), rtol=0, atol=1e-6)
    except Exception:  # it needs more than one tensor
        return None
    return jobs.GELU if same else None


@dataclass
class UnlessDone:
    """The forward of a module whose work a layer before it may have done already."""

    module: nn.Module

    def __call__(self, input: Tensor) -> Tensor:
        """The input itself where its layer did this module's work, else what the module makes."""
        done = getattr(input, "done_already", None)
        if done and done[0] is self.module:
            del done[0]
            return input
        return type(self.module).forward(self.module, input)


def check_no_gradient(layer: Any, inputs: Tensor) -> None:
    """Refuse what would need a backward pass.

    Raises:
        WoodburyError: If it would.
    """
    if torch.is_grad_enabled() and (
        inputs.requires_grad
        or layer.weight.requires_grad
        or (layer.bias is not None and layer.bias.requires_grad)
    ):
        raise WoodburyError(
            "An accelerated model has no gradients: call it under torch.inference_mode(), "
            "and train the model that it was made from."
        )


def _suits(layer: Any, inputs: Tensor) -> bool:
    """Whether the kernels take an input; the dense layer answers for what they do not."""
    return (
        inputs.dtype == layer.weight.dtype == torch.float32
        and inputs.device.type == layer.weight.device.type == "cpu"
        and inputs.numel() > 0
        and layer.weight.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # torch.compile makes its own dense products
    )


def _bucket(count: int) -> int:
    """The power of two from a number on; choices are made for one size in each octave."""
    return 1 << (count - 1).bit_length()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
