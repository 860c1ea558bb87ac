"""Per-sample gradients of linear and convolutional layers from one ordinary backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._pytree import tree_leaves, tree_map

from woodbury.errors import WoodburyError
from woodbury.limits import Limits
from woodbury.model.batches import samples_in
from woodbury.model.hooks import ForwardHook, forward_hooks, layer_input
from woodbury.model.layers import MatrixLayer, by_position, known_layers
from woodbury.model.objective import Objective, check_dependence


def hooked(objective: Objective, inputs: Any, target: Any) -> Tensor:
    """Per-sample gradients of layers from their inputs and output gradients  (eq. 27).

    One ordinary forward pass; samples in a row whose inputs are equal share it, such as the GGN
    samples of one input. One backward pass by the layers' outputs for each of these.

    Args:
        objective: The loss and the weights, all of which are weights of an nn.Linear or an
            ungrouped nn.Conv2d that the model uses once.
        inputs: The inputs of c samples.
        target: Their labels.

    Returns:
        (c, d).

    Raises:
        WoodburyError: If a weight of the space is elsewhere, or its layer is not used once, with
            the samples along dimension 0.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> batches = [(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 1))]
        >>> from woodbury import squared_error
        >>> objective = Objective.from_model(layer, batches, squared_error)
        >>> zero = objective.at(torch.zeros(2))
        >>> hooked(zero, batches[0][0], torch.ones(2, 1))
        tensor([[-1., -2.],
                [-3., -4.]])
    """
    layers = list(known_layers(objective.model, objective.space.shapes))
    slopes = layer_slopes(objective, layers, inputs, target, objective.space.shapes)
    rows = objective.weights.new_empty(samples_in(inputs), objective.space.d)
    columns = _kept_columns(objective)
    with torch.no_grad():
        for name, (use, of_copies) in slopes.items():
            _fill(rows, columns[name], use, of_copies)
    return rows


def layer_slopes(
    objective: Objective,
    layers: Iterable[tuple[str, MatrixLayer]],
    inputs: Any,
    target: Any,
    needed: Iterable[str],
) -> dict[str, LayerSlopes]:
    """The inputs of layers, and the gradients of each sample by their outputs.

    Args:
        objective: The loss and the weights.
        layers: Each under a name of its own.
        inputs: The inputs of c samples, of which those in a row that are equal share a forward
            pass.
        target: Their labels.
        needed: Names of layers that must be used.

    Returns:
        By name; of each layer that was used.

    Raises:
        WoodburyError: If a layer is used twice, or without the samples along dimension 0, or its
            input is overwritten, or a needed one is not used.
    """
    copies = _copies(inputs)
    distinct = _every(inputs, copies)
    size = samples_in(distinct)
    uses: dict[str, LayerUse] = {}
    parameters = {name: tensor.detach() for name, tensor in objective.parameters.items()}
    hooks = [(layer, _noting(uses, name, size)) for name, layer in layers]
    slopes: list[tuple[Tensor | None, ...]] = []
    with torch.enable_grad():
        with _frozen(objective.model), forward_hooks(hooks):
            output = objective.forward(parameters, distinct)
        _check_uses(uses, needed)
        probes = [use.probe for use in uses.values()]
        for copy in range(copies):
            labels = _every(target, copies, copy)
            # The loss is a mean over the samples, of which each has a gradient of its own.
            loss = size * objective.likelihood.loss(output, labels)
            check_dependence(loss)
            more = copy + 1 < copies
            slopes.append(torch.autograd.grad(loss, probes, retain_graph=more, allow_unused=True))
    by_layer = zip(uses.items(), zip(*slopes, strict=True), strict=True)
    return {
        name: LayerSlopes(use, [_or_zero(slope, use) for slope in of_copies])
        for (name, use), of_copies in by_layer
    }


@dataclass(frozen=True)
class LayerUse:
    """One use of a layer.

    Attributes:
        layer: The layer.
        given: Its input, (b, …).
        version: Of the input, which nothing may overwrite.
        probe: Zeros that were added to its output, whose gradient is that by the output.
    """

    layer: MatrixLayer
    given: Tensor
    version: int
    probe: Tensor


class LayerSlopes(NamedTuple):
    """A layer's input, and the gradients by its output.

    Attributes:
        use: The input of c/k samples.
        slopes: k gradients by the layer's output, of the 1st, 2nd … of k samples that share an
            input.
    """

    use: LayerUse
    slopes: list[Tensor]


@dataclass(frozen=True)
class _Columns:
    """Where the kept weights of one tensor are.

    Attributes:
        rows: Their columns among the d of a row.
        kept: (k,) int64, which of the tensor's weights they are; None for all.
    """

    rows: slice
    kept: Tensor | None


def _copies(inputs: Any) -> int:
    """How many samples in a row have equal inputs, the same number throughout; else 1."""
    size = samples_in(inputs)
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if size < 2 or any(len(leaf) != size for leaf in leaves):
        return 1
    same = torch.ones(size - 1, dtype=torch.bool, device=leaves[0].device)
    for leaf in leaves:
        same &= (leaf[1:] == leaf[:-1]).reshape(size - 1, -1).all(1)
    first = [0, *((~same).nonzero()[:, 0] + 1).tolist(), size]
    lengths = {end - start for start, end in pairwise(first)}
    return lengths.pop() if len(lengths) == 1 else 1


def _every(batch: Any, step: int, start: int = 0) -> Any:
    """Every `step`-th sample of a batch."""
    if step == 1:
        return batch
    return tree_map(lambda leaf: leaf[start::step] if isinstance(leaf, Tensor) else leaf, batch)


def _noting(uses: dict[str, LayerUse], name: str, size: int) -> ForwardHook:
    def note(
        layer: MatrixLayer, positional: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
    ) -> Tensor:
        given = layer_input(positional, keywords)
        is_image = isinstance(layer, nn.Conv2d)
        if name in uses or len(given) != size or given.ndim < 2 or (is_image and given.ndim != 4):
            raise WoodburyError(
                f"The layer of {name!r} is used more than once, or not with the samples along "
                "dimension 0: take the engine vmapped or looped."
            )
        zero = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        probe = zero.expand_as(output)
        kept = given.detach().to(output.dtype)  # autocast multiplies in another precision
        uses[name] = LayerUse(layer, kept, kept._version, probe)
        return output + probe

    return note


class _frozen:
    """A context in which no parameter of a model asks for a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._trained:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self._trained:
            parameter.requires_grad_(True)


def _check_uses(uses: Mapping[str, LayerUse], needed: Iterable[str]) -> None:
    for name in needed:
        if name not in uses or uses[name].given._version != uses[name].version:
            raise WoodburyError(
                f"{name!r} is not the weight of a Linear or an ungrouped Conv2d whose input is "
                "left as it is: take the engine vmapped or looped."
            )


def _or_zero(slope: Tensor | None, use: LayerUse) -> Tensor:
    return torch.zeros_like(use.probe) if slope is None else slope


def _kept_columns(objective: Objective) -> dict[str, _Columns]:
    space = objective.space
    columns = {}
    end = 0
    for name, part in space.slices.items():
        kept = None
        start, end = end, end + part.stop - part.start
        if space.kept is not None:
            kept = space.kept[part].nonzero()[:, 0].to(objective.weights.device)
            end = start + len(kept)
        columns[name] = _Columns(slice(start, end), kept)
    return columns


def _fill(rows: Tensor, columns: _Columns, use: LayerUse, slopes: list[Tensor]) -> None:
    """The gradients of one tensor, Σ_t g_t a_tᵀ over the positions t, into their columns."""
    layer, copies = use.layer, len(slopes)
    by_copy = torch.stack([by_position(layer, slope) for slope in slopes], 2)  # (b, T, k, o)
    size, positions, _, outputs = by_copy.shape
    slope = by_copy.view(size, positions, copies * outputs).mT
    kernel = layer.weight[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
    order = columns.kept
    if order is not None and kernel > 1:
        order = _kernel_first(order, layer.weight[0].numel(), kernel)
    start = 0
    for inputs in _inputs_by_kernel_row(layer, use.given):  # (c, T, i/kh) for each row
        end = start + len(inputs[0])
        part = rows[start * copies : end * copies, columns.rows]
        by_row = [torch.bmm(slope[start:end], row) for row in inputs]
        products = by_row[0] if len(by_row) == 1 else torch.stack(by_row, 2)
        if order is not None:
            part.copy_(products.view(len(part), -1)[:, order])
        elif kernel == 1:
            part.copy_(products.view(len(part), -1))
        else:
            by_place = products.view(len(part), outputs, kernel, -1)
            part.view(len(part), outputs, -1, kernel).copy_(by_place.mT)
        start = end


def _kernel_first(kept: Tensor, inputs: int, kernel: int) -> Tensor:
    """Indices of weights (o, channels, kernel) as those of weights (o, kernel, channels)."""
    output, within = kept // inputs, kept % inputs
    channel, place = within // kernel, within % kernel
    return output * inputs + place * (inputs // kernel) + channel


def _inputs_by_kernel_row(layer: MatrixLayer, given: Tensor) -> Iterator[list[Tensor]]:
    """The inputs under each position, for some samples at a time and each row of the kernel.

    (c, T, kw·channels), the channels of a pixel side by side. Only the columns of the kernel are
    copied out: another row of it sees the same copies further down.
    """
    if isinstance(layer, nn.Linear):
        yield [given.reshape(len(given), -1, given.shape[-1])]
        return
    (height, width), (down, right) = layer.weight.shape[2:], layer.stride
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    elements = max(1, given[0].numel() * width)
    for chunk in given.split(max(1, Limits.current().patches // elements)):
        padded = pad(chunk, layer._reversed_padding_repeated_twice, mode=mode)
        pixels = padded.permute(0, 2, 3, 1)  # (c, h, w, channels)
        reach = layer.dilation[1] * (width - 1) + 1
        across = pixels.unfold(2, reach, right)[..., :: layer.dilation[1]]
        lines = across.transpose(3, 4).flatten(3)  # (c, h, w of the output, kw·channels)
        last = lines.shape[1] - layer.dilation[0] * (height - 1)
        yield [
            lines[:, first : first + last : down].flatten(1, 2)
            for first in range(0, layer.dilation[0] * height, layer.dilation[0])
        ]
