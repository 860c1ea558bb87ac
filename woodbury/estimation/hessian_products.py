"""Products of the exact Hessian of the loss with vectors, by a second backward pass each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, check_whole_number, user_code
from woodbury.estimation.hessian import slopes_to_differentiate
from woodbury.estimation.labels import Labels, labelled, observed
from woodbury.fisher.checks import check_columns, check_groups
from woodbury.limits import Limits
from woodbury.linalg.conversion import as_tensor
from woodbury.linalg.precision import wide_dtype
from woodbury.memory.budget import row_bytes
from woodbury.model.batches import check_enough_data, samples_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile
from woodbury.model.random_numbers import random_kept
from woodbury.model.space import ParameterSpace
from woodbury.monitor import report

SAMPLES_PER_PASS = 32
"""Samples whose graph of both passes is held at once, at most."""
GRAPH_SHARE = 0.25
"""Of what the gradient rows of a run may take, that graphs may take which are held."""
ACTIVATION_COPIES = 4
"""Of all that the modules return, in the graph of both passes: 2.0 on ResNet-20."""
WEIGHT_COPIES = 3
"""Of the weights in the graph of one batch."""


class _Graph(NamedTuple):
    """The samples of one batch, and the slopes of its mean loss with their graph."""

    samples: int
    parameters: dict[str, Tensor]
    slopes: list[Tensor]


@checks_types
@random_kept()
def hessian_products(
    objective: Objective,
    vectors: Tensor,
    count: int,
    *,
    labels: Labels = observed,
    generator: torch.Generator | None = None,
) -> Tensor:
    """H V, H = ∂²L/∂w∂w of the mean loss L of the first samples  (eq. 77).

    Exact but for rounding, at about the cost of two gradients for each vector and sample; the
    forward pass is shared by all vectors of one call (Pearlmutter 1994).

    Args:
        objective: The loss, the data and the d weights.
        vectors: V (d,) or (d, k).
        count: Samples that the loss is averaged over, from the first.
        labels: `observed` for the data's own, `sampled` for labels drawn from the model.
        generator: Of the sampled labels.

    Returns:
        The same shape, float32 at least.

    Raises:
        WoodburyError: If the shape does not fit, the data gives fewer samples, the model cannot be
            differentiated twice, or a product is not finite.

    Example:
        >>> from woodbury.model.likelihood import squared_error
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> objective = Objective.from_model(torch.nn.Linear(1, 1), [(x, 0 * x)], squared_error)
        >>> hessian_products(objective, torch.tensor([1.0, 0.0]), 2)  # the means of x² and of x
        tensor([5., 2.])
    """
    check_whole_number(count, "count", "the number of samples")
    graphs = _of_batches(objective, count, labels, generator)
    return _mean_products(objective, vectors, count, graphs)


@contextmanager
def held_hessian(objective: Objective, count: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """V -> H V as by `hessian_products`, for one call after the other, such as those of Lanczos.

    The graphs of the slopes are held meanwhile where they have room, which spares two of four
    passes; else each call makes them again.

    Args:
        objective: The loss, the data with labels, and the d weights.
        count: Samples that the loss is averaged over, from the first.

    Yields:
        The products with (d,) or (d, k).

    Raises:
        WoodburyError: As `hessian_products`.

    Example:
        >>> from woodbury.model.likelihood import squared_error
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> objective = Objective.from_model(torch.nn.Linear(1, 1), [(x, 0 * x)], squared_error)
        >>> with held_hessian(objective, 2) as hessian:
        ...     hessian(torch.tensor([1.0, 0.0])), hessian(torch.tensor([0.0, 1.0]))
        (tensor([5., 2.]), tensor([2., 1.]))
    """
    check_whole_number(count, "count", "the number of samples")
    if graph_bytes(objective, count) > GRAPH_SHARE * row_bytes():
        yield lambda vectors: hessian_products(objective, vectors, count)
        return
    with eval_mode(objective.model):  # also where a backward pass computes activations again
        graphs = list(_of_batches(objective, count, observed, None))
        yield lambda vectors: _mean_products(objective, vectors, count, graphs)


def graph_bytes(objective: Objective, count: int) -> int:
    """What the graphs of the slopes of some samples take, roughly.

    Args:
        objective: The network; one sample is read.
        count: The samples.

    Returns:
        Bytes.
    """
    activations = ModelProfile.measure(objective).total_activation_elements
    batches = -(-count // _at_once())
    elements = ACTIVATION_COPIES * count * activations + WEIGHT_COPIES * batches * objective.space.n
    return objective.weights.element_size() * elements


def _mean_products(
    objective: Objective, vectors: Tensor, count: int, graphs: Iterable[_Graph]
) -> Tensor:
    """H V of the mean loss over all batches."""
    d = objective.space.d
    vectors = check_columns(vectors, d, f"The Hessian on d = {d} weights got a vector")
    dtype = wide_dtype(objective.weights.dtype)
    columns = vectors.reshape(d, -1).to(objective.weights)
    total = torch.zeros(columns.shape, dtype=dtype, device=columns.device)
    for size, parameters, slopes in graphs:
        for index in range(columns.shape[1]):
            product = _product(objective, parameters, slopes, columns[:, index])
            total[:, index] += size * product.to(dtype)
    finite = torch.isfinite(total).all(1)
    if not bool(finite.all()):
        name = objective.space.name_of(int((~finite).nonzero()[0]))
        raise WoodburyError(
            f"A product with the Hessian is not finite at parameter {name!r}: look at the loss."
        )
    return (total / count).reshape(vectors.shape)


@checks_types
@random_kept()
def hessian_block(
    objective: Objective,
    index: Tensor,
    count: int,
    *,
    labels: Labels = observed,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The exact Hessian of the mean loss by some of the weights, H_QQ  (eq. 77).

    One product for each of the weights, through the layers between them and the output alone.

    Args:
        objective: The loss, the data and the d weights.
        index: (s,) int64, some of the d weights, each once.
        count: Samples that the loss is averaged over, from the first.
        labels: As for `hessian_products`.
        generator: Of the sampled labels.

    Returns:
        (s, s) float64, symmetric.

    Raises:
        WoodburyError: If an index is out of range, or as `hessian_products`.

    Example:
        >>> from woodbury.model.likelihood import squared_error
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> objective = Objective.from_model(torch.nn.Linear(1, 1), [(x, 0 * x)], squared_error)
        >>> hessian_block(objective, torch.tensor([0, 1]), 2)
        tensor([[5., 2.],
                [2., 1.]], dtype=torch.float64)
    """
    check_whole_number(count, "count", "the number of samples")
    space = objective.space
    index = check_groups(as_tensor(index, "index").reshape(-1, 1), space.d)[:, 0].cpu()
    positions = space.keep.cpu().nonzero()[index, 0]
    places = _places(space, positions)
    total = torch.zeros(len(index), len(index), dtype=torch.float64)
    for size, parameters, slopes in _of_batches(objective, count, labels, generator):
        slope_of = dict(zip(parameters, slopes, strict=True))
        chosen = {name: parameters[name] for name in places}
        for name, where in places.items():
            if slope_of[name].requires_grad:  # else it is constant
                block = _rows_of_tensor(slope_of[name], where, chosen, places)
                total[where.rows] += size * block
    if not bool(torch.isfinite(total).all()):
        raise WoodburyError("A part of the Hessian is not finite: look at the loss.")
    return (total + total.mT) / (2 * count)


class _Places(NamedTuple):
    """Some weights of one tensor.

    Attributes:
        local: (k,) where they are in the tensor.
        rows: (k,) where they are among all that were asked for.
    """

    local: Tensor
    rows: Tensor


def _rows_of_tensor(
    slope: Tensor, where: _Places, chosen: Mapping[str, Tensor], places: Mapping[str, _Places]
) -> Tensor:
    """One row of the block for each weight of one tensor: (k, s)."""
    size = sum(len(each.rows) for each in places.values())
    rows = torch.zeros(len(where.rows), size, dtype=torch.float64)
    for row, local in zip(rows, where.local.tolist(), strict=True):
        unit = slope.new_zeros(slope.numel())
        unit[local] = 1
        products = _differentiated([slope], list(chosen.values()), [unit.view(slope.shape)])
        for other, product in zip(chosen, products, strict=True):
            entries = product.flatten()[places[other].local.to(product.device)]
            row[places[other].rows] = entries.double().cpu()
    return rows


def _places(space: ParameterSpace, positions: Tensor) -> dict[str, _Places]:
    """The tensors that some of all n weights lie in."""
    found = {}
    for name, where in space.slices.items():
        rows = ((positions >= where.start) & (positions < where.stop)).nonzero()[:, 0]
        if len(rows):
            found[name] = _Places(positions[rows] - where.start, rows)
    return found


def _at_once() -> int:
    """Samples of one batch."""
    return min(SAMPLES_PER_PASS, Limits.current().hessian_samples)


def _of_batches(
    objective: Objective, count: int, labels: Labels, generator: torch.Generator | None
) -> Iterator[_Graph]:
    """The graph of each batch."""
    done = 0
    with eval_mode(objective.model):
        for inputs, target in objective.batches.in_batches(_at_once(), count):
            size = samples_in(inputs)
            target = labelled(labels, objective, inputs, target, generator)
            objective.check_mean(inputs, target)
            parameters, slopes = slopes_to_differentiate(objective, inputs, target)
            yield _Graph(size, parameters, slopes)
            done += size
            report("products with the Hessian", done, count)
    check_enough_data(done, count)


def _product(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    slopes: Sequence[Tensor],
    vector: Tensor,
) -> Tensor:
    """The Hessian of one batch's loss times one vector (d,)."""
    along = objective.space.unflatten(vector)
    pairs = [
        (slope, along[name])
        for name, slope in zip(parameters, slopes, strict=True)
        if slope.requires_grad  # else it is constant
    ]
    if not pairs:
        return torch.zeros_like(vector)
    products = _differentiated(
        [slope for slope, _ in pairs], list(parameters.values()), [values for _, values in pairs]
    )
    return objective.space.flatten(dict(zip(parameters, products, strict=True)))


def _differentiated(
    slopes: Sequence[Tensor], parameters: Sequence[Tensor], vectors: Sequence[Tensor]
) -> list[Tensor]:
    """Σ vᵀ ∂slope/∂parameter for each parameter, dense."""
    with user_code("The loss cannot be differentiated twice: leave the Hessian out."):
        products = torch.autograd.grad(
            slopes, parameters, vectors, retain_graph=True, materialize_grads=True
        )
    return [(each.to_dense() if each.is_sparse else each).detach() for each in products]
