"""Factors of K-FAC by rows, collected layer by layer in one pass over the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError, check_whole_number
from woodbury.estimation.labels import Labels, labelled, observed, sampled
from woodbury.estimation.layer_products import Loss, used_elsewhere
from woodbury.estimation.row_layers import (
    RowLayout,
    by_output,
    draw_positions,
    has_factors,
    inputs_at,
)
from woodbury.limits import Limits
from woodbury.linalg.conversion import seeded
from woodbury.linalg.precision import at_least_float32
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import row_bytes
from woodbury.model.batches import check_enough_data, samples_in
from woodbury.model.hooks import ForwardHook, forward_hooks, layer_input
from woodbury.model.layers import parameter_owners
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective, check_dependence
from woodbury.model.spread import drawn_at_once, per_run
from woodbury.monitor import report

POSITIONS = 64
"""Positions per sample whose inputs are summed, at most; all output gradients are."""

MOST_GRAPH_BYTES = 2**30
"""What one batch keeps for its backward pass at most; less where the memory is short."""

LEAST_GRAPH_BYTES = 2**26
"""And what it may keep however short the memory is."""

BYTES_PER_OUTPUT = 32
"""Of drawing a direction of one element of the output: signs, probabilities and products."""


def row_layouts(objective: Objective) -> dict[str, RowLayout]:
    """How every tensor of the space is a matrix of rows.

    Args:
        objective: The model and its space.

    Returns:
        Parameter name -> its layout: of a layer that has factors, where one of its uses is such.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2, bias=False))
        >>> objective = Objective.from_model(model, [(torch.zeros(1, 3).long(), None)])
        >>> [layout.rows for layout in row_layouts(objective).values()]
        [9, 2]
    """
    layouts: dict[str, RowLayout] = {}
    for owner in parameter_owners(objective.model, objective.space.shapes):
        for attribute, name in owner.names.items():
            known = attribute == "weight" and has_factors(owner.module)
            if known or name not in layouts:
                module = owner.module if known else nn.Identity()  # one that nobody knows
                layouts[name] = RowLayout.of(module, objective.parameters[name])
    return layouts


class RowFactors(NamedTuple):
    """The factors of one tensor's Fisher, diag(scales) ⊗ inputs  (eq. 67).

    Attributes:
        scales: (o,), mean squared gradients of the outputs, summed over positions.
        inputs: (g·b, s, s), the mean second moments of the inputs, in blocks of columns.
        layout: How the tensor is a matrix of rows.
    """

    scales: Tensor
    inputs: Tensor
    layout: RowLayout


def row_factors(
    objective: Objective,
    count: int,
    max_columns: int,
    labels: Labels | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, RowFactors]:
    """The factors of every tensor of the space, in one pass  (eq. 67).

    1. A Linear, a Conv2d of any groups, and the Conv1D of transformers: from the inputs at
       `POSITIONS` positions of each sample, and the gradients of all outputs.
    2. An Embedding is a Linear of one-hot inputs: its rows are the tokens, their scales how often
       each occurs, one occurrence added to all; the gradients of its outputs are the columns.
    3. Any other tensor, and a weight that the model uses in other ways than by its layer: from its
       gradients G of whole batches, scales ‖G_r‖² and inputs GᵀG, as in Shampoo (Gupta et al.,
       ICML 2018). Gradients of different samples are independent with mean zero where directions
       or labels are drawn, so that a batch counts as its samples' sum.
    Where a tensor is used in several ways, the sum of their Kronecker products is replaced by the
    product of row sums and column sums, which has the same trace over every row.

    Args:
        objective: The model, its data and the space.
        count: Samples m, from the first.
        max_columns: Columns that interact at most.
        labels: None draws directions of the output in the same pass, or labels where the likelihood
            has no directions; `sampled` and `observed` take labels.
        generator: Of directions and labels; on the device of the weights.

    Returns:
        Parameter name -> its factors.

    Raises:
        WoodburyError: If the data gives fewer samples, or a factor is not finite.

    Example:
        >>> objective = Objective.from_model(nn.Linear(3, 2), [(torch.ones(4, 3), None)])
        >>> row_factors(objective, 4, max_columns=2)["weight"].inputs.shape
        torch.Size([2, 2, 2])
    """
    check_whole_number(count, "count", "the number of samples")
    likelihood = objective.likelihood
    if labels is None and likelihood.directions is None:
        labels = observed if likelihood.sample is None else sampled
    done = 0
    with eval_mode(objective.model):
        collector = _Collector(objective, max_columns)
        size = 1
        with Ranks.apart():  # any sample will do
            for inputs, _ in objective.batches.in_batches(1, 1):
                size = collector.batch_size(inputs)
        positions = collector.positions
        for inputs, target in objective.batches.in_batches(drawn_at_once(size), count):
            drawn_by = generator and per_run(generator, done)
            collector.positions = per_run(positions, done)
            if labels is not None:
                target = labelled(labels, objective, inputs, target, drawn_by)
            if target is not None:
                objective.check_mean(inputs, target)
            if not done:  # with random numbers of its own
                trial = _loss_of(objective, labels, seeded(0, objective.weights.device))
                collector.take_gradients_of_odd_layers(trial, inputs, target)
            collector.add(_loss_of(objective, labels, drawn_by), inputs, target)
            done += samples_in(inputs)
            report("factors", done, objective.batches.own(count))
    check_enough_data(done, objective.batches.own(count))
    collector.sum_over_ranks()
    return {name: collector.factors(name, count) for name in objective.space.shapes}


@dataclass
class _Sums:
    """The sums of one way in which a tensor is used.

    Attributes:
        scales: (o,), Σ g² over samples and positions; of an Embedding, the occurrences.
        inputs: (g·b, s, s), Σ a aᵀ; of an Embedding, Σ g gᵀ.
        rows: How many a were summed.
    """

    scales: Tensor
    inputs: Tensor
    rows: int = 0


@dataclass
class _Collector:
    """The running sums of all tensors, and the hooks that add to them."""

    objective: Objective
    max_columns: int
    sums: dict[tuple[str, str], _Sums] = field(default_factory=dict)
    layouts: dict[str, RowLayout] = field(default_factory=dict)
    watched: list[tuple[str, nn.Module]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    listening: bool = True
    positions: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        self.layouts = row_layouts(self.objective)
        self.watched = [
            (owner.names["weight"], owner.module)
            for owner in parameter_owners(self.objective.model, self.objective.space.shapes)
            if "weight" in owner.names and has_factors(owner.module)
        ]

    def batch_size(self, inputs: Any) -> int:
        """How many samples like these go through the model at once; notes who is called at all.

        Args:
            inputs: Those of one sample.
        """
        kept: dict[int, int] = {}
        called: set[str] = set()
        root = self._new_root()

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        def hook_of(name: str) -> ForwardHook:
            def note(_: Any, positional: Any, keywords: Any, output: Tensor) -> Tensor:
                called.add(name)
                return output + root

            return note

        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            forward_hooks((module, hook_of(name)) for name, module in self.watched),
        ):
            output = self.objective.forward(self._detached(), inputs)
        weights = {tensor.data_ptr() for tensor in self.objective.model.parameters()}
        weights |= {tensor.data_ptr() for tensor in self.objective.parameters.values()}
        needed = sum(size for place, size in kept.items() if place not in weights)
        needed += BYTES_PER_OUTPUT * self.objective.likelihood.output_of(output).numel()
        self.watched = [(name, module) for name, module in self.watched if name in called]
        self._note_others()
        room = max(LEAST_GRAPH_BYTES, min(MOST_GRAPH_BYTES, row_bytes() // 4))
        return max(1, min(Limits.current().kfac_samples, room // max(1, needed)))

    def take_gradients_of_odd_layers(self, loss_of: Loss, inputs: Any, target: Any) -> None:
        """Watch no layer whose weight is used in other ways than by the layer.

        Args:
            loss_of: The loss.
            inputs: Those of a batch.
            target: Its labels.
        """
        odd = used_elsewhere(self.objective, self.watched, loss_of, inputs, target)
        self.watched = [(name, module) for name, module in self.watched if name not in odd]
        self._note_others()

    def _note_others(self) -> None:
        names = {name for name, _ in self.watched}
        self.others = [name for name in self.objective.space.shapes if name not in names]

    def add(self, loss_of: Loss, inputs: Any, target: Any) -> None:
        """Add a batch.

        Args:
            loss_of: (parameters, inputs, target) -> the mean loss of the samples.
            inputs: Those of the batch.
            target: Its labels.
        """
        parameters = self._detached()
        wanted = [parameters[name].requires_grad_() for name in self.others]
        root = self._new_root()
        with torch.enable_grad(), self._watching(root):
            self.listening = False  # a model may differentiate within its forward pass
            loss = samples_in(inputs) * loss_of(parameters, inputs, target)
            self.listening = True
            check_dependence(loss, "layers")
            # Hooks see the gradients of the layers' outputs on the way to these.
            gradients = torch.autograd.grad(loss, [root, *wanted], allow_unused=True)
        for name, gradient in zip(self.others, gradients[1:], strict=True):
            if gradient is not None:
                self._add_gradient(name, at_least_float32(gradient))

    def sum_over_ranks(self) -> None:
        """Make the sums those of all ranks."""
        ranks = Ranks.current()
        if ranks.size == 1:
            return
        for sums in (self.sums[key] for key in sorted(self.sums)):
            sums.scales, sums.inputs = ranks.sum(sums.scales), ranks.sum(sums.inputs)
            sums.rows = ranks.total(sums.rows)

    def factors(self, name: str, count: int) -> RowFactors:
        """The averages of one tensor over so many samples."""
        layout = self.layouts[name]
        ways = [way for owner, way in self.sums if owner == name]
        means = [_means(way, self.sums.pop((name, way)), count) for way in ways]
        if not means:  # no gradient reached it
            return RowFactors(*self._zeros(layout), layout)
        for scales, inputs in means:
            if not bool(torch.isfinite(scales).all() and torch.isfinite(inputs).all()):
                raise WoodburyError(
                    f"The inputs or output gradients of parameter {name!r} are not finite: look at "
                    "the data and at the loss."
                )
        return RowFactors(*_one_product(means), layout)

    def _detached(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.objective.parameters.items()}

    def _zeros(self, layout: RowLayout) -> tuple[Tensor, Tensor]:
        like = at_least_float32(self.objective.weights[:0])
        return like.new_zeros(layout.rows), layout.empty(self.max_columns, like)

    def _sums_of(self, name: str, way: str) -> _Sums:
        if (name, way) not in self.sums:
            self.sums[name, way] = _Sums(*self._zeros(self.layouts[name]))
        return self.sums[name, way]

    def _new_root(self) -> Tensor:
        """A zero that is added to the layers' outputs, so that these have gradients."""
        return torch.zeros((), requires_grad=True, device=self.objective.weights.device)

    @contextmanager
    def _watching(self, root: Tensor) -> Iterator[None]:
        """A context in which the layers' inputs and the gradients of their outputs are summed."""

        def hook_of(name: str) -> ForwardHook:
            def note(module: Any, positional: Any, keywords: Any, output: Tensor) -> Tensor:
                given = layer_input(positional, keywords)
                if isinstance(module, nn.Embedding):
                    sums = self._sums_of(name, "tokens")
                    sums.scales += given.flatten().bincount(minlength=len(sums.scales))
                    watch = partial(self._add_token_gradient, name)
                else:
                    self._add_inputs(name, module, given.detach())
                    watch = partial(self._add_output_gradient, name, module)
                # A sum of its own, as the output may be overwritten in place.
                output = output + root
                output.register_hook(watch)
                return output

            return note

        with forward_hooks((module, hook_of(name)) for name, module in self.watched):
            yield

    def _add_inputs(self, name: str, module: nn.Module, given: Tensor) -> None:
        sums = self._sums_of(name, "products")
        drawn = draw_positions(module, given, POSITIONS, self.positions)
        for chunk in inputs_at(module, given, drawn):
            self.layouts[name].add(sums.inputs, chunk)
            sums.rows += len(chunk)

    def _add_output_gradient(self, name: str, module: nn.Module, gradient: Tensor) -> None:
        if not self.listening:
            return
        rows = by_output(module, gradient.detach())
        self._sums_of(name, "products").scales += rows.square().sum(0)

    def _add_token_gradient(self, name: str, gradient: Tensor) -> None:
        if not self.listening:
            return
        rows = at_least_float32(gradient.detach()).reshape(-1, gradient.shape[-1])
        sums = self._sums_of(name, "tokens")
        self.layouts[name].add(sums.inputs, rows)
        sums.rows += len(rows)

    def _add_gradient(self, name: str, gradient: Tensor) -> None:
        layout = self.layouts[name]
        sums = self._sums_of(name, "gradients")
        stored = gradient.flatten(1).T if layout.transposed else gradient
        rows = stored.reshape(layout.rows, layout.columns)
        sums.scales += rows.square().sum(1)
        for group, part in enumerate(rows.chunk(layout.groups)):
            blocks = len(sums.inputs) // layout.groups
            where = slice(group * blocks, (group + 1) * blocks)
            replace(layout, groups=1).add(sums.inputs[where], part)
        sums.rows += layout.rows // layout.groups


def _loss_of(
    objective: Objective, labels: Labels | None, generator: torch.Generator | None
) -> Loss:
    """The loss by labels, or along random directions of the output."""
    if labels is not None:
        return objective.batch_loss
    return partial(_directional_loss, objective, generator)


def _directional_loss(
    objective: Objective,
    generator: torch.Generator | None,
    parameters: Mapping[str, Tensor],
    inputs: Any,
    target: Any,
) -> Tensor:
    """The mean product of the outputs with random directions, drawn in the same forward pass."""
    likelihood = objective.likelihood
    assert likelihood.directions is not None
    output = objective.forward(parameters, inputs)
    with torch.no_grad():
        direction = likelihood.directions(output, target, 1, generator)[:, 0]
    return likelihood.directional(output, direction)


def _means(way: str, sums: _Sums, count: int) -> tuple[Tensor, Tensor]:
    """The scales and the inputs' second moments of one way in which a tensor is used."""
    scales, inputs = sums.scales, sums.inputs
    if way == "tokens":
        # One more occurrence of every token: those that these samples lack may come yet.
        occurred = float(scales.sum())
        scales = (scales + 1) * (occurred / (occurred + len(scales)))
    if way == "gradients":
        # scales ⊗ inputs has the trace of the scales alone.
        trace = float(inputs.diagonal(dim1=1, dim2=2).sum()) / len(inputs)
        return scales / count, inputs.div_(trace or 1.0)
    return scales / count, inputs.div_(max(1, sums.rows))


def _one_product(means: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One Kronecker product in place of a sum of them, of the same trace over every row."""
    if len(means) == 1:
        return means[0]
    total = sum(float(scales.sum()) for scales, _ in means) or 1.0
    inputs = torch.zeros_like(means[0][1])
    rows = torch.zeros_like(means[0][0])
    for scales, moments in means:
        inputs.add_(moments, alpha=float(scales.sum()) / total)
        rows.add_(scales, alpha=float(moments.diagonal(dim1=1, dim2=2).sum()))
    trace = float(inputs.diagonal(dim1=1, dim2=2).sum())
    return rows / (trace or 1.0), inputs
