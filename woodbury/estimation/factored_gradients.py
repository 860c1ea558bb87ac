"""Per-sample gradients of linear layers as the outer products that they are, never written out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.engines import TRIAL_SAMPLES, looped
from woodbury.estimation.gradients import gradient_chunks
from woodbury.estimation.layer_gradients import LayerSlopes, layer_slopes
from woodbury.linalg.factored_rows import FactoredRows, OuterProducts
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import row_bytes
from woodbury.model.batches import slice_samples
from woodbury.model.layers import parameter_owners
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.monitor import report


@dataclass(frozen=True, eq=False)
class FactoredGradients:
    """An engine of `gradient_chunks` that gives the factors of each gradient in place of it.

    Where a network's layers are linear and see one position of each sample, the gradient by a
    weight is g aᵀ, a the layer's input and g the gradient by its output  (eq. 27).

    Attributes:
        layers: Under their paths.
        names: Of the chosen parameters: (path, attribute) -> where it lies among the weights.
        d: The number of weights.
    """

    layers: dict[str, nn.Linear]
    names: dict[tuple[str, str], slice]
    d: int

    @classmethod
    def of(cls, objective: Objective) -> FactoredGradients | None:
        """The engine of a network.

        Args:
            objective: The loss and the weights.

        Returns:
            None where a chosen parameter is not of one nn.Linear alone, weights are pruned, ranks
            share the samples, or the factors would be no smaller than the gradients.
        """
        space = objective.space
        if space.kept is not None or Ranks.current().size > 1:
            return None
        layers: dict[str, nn.Linear] = {}
        names: dict[tuple[str, str], slice] = {}
        for owner in parameter_owners(objective.model, space.shapes):
            if type(owner.module) is not nn.Linear:  # a subclass may compute something else
                return None
            layers[owner.path] = owner.module
            for attribute, name in owner.names.items():
                names[owner.path, attribute] = space.slices[name]
        starts = sorted(part.start for part in names.values())
        if starts != sorted(part.start for part in space.slices.values()):
            return None  # a parameter is shared, or of no layer
        found = cls(layers, names, space.d)
        return found if found.width < space.d else None

    @property
    def width(self) -> int:
        """Numbers that stand for one gradient."""
        return sum(layer.in_features + layer.out_features for layer in self.layers.values())

    def __call__(self, objective: Objective, inputs: Any, target: Any) -> Tensor:
        """The factors of each sample, layer after layer: (c, width).

        Args:
            objective: The loss and the weights.
            inputs: The inputs of c samples.
            target: Their labels.

        Raises:
            WoodburyError: If a layer is not used once, on one position of each sample, or a factor
                is not finite.
        """
        found = layer_slopes(objective, self.layers.items(), inputs, target, self.layers)
        factors = torch.cat([_of_layer(found[path]) for path in self.layers], 1)
        if not bool(torch.isfinite(factors).all()):
            raise WoodburyError("A factor of a gradient is not finite.")
        return factors.detach()

    def rows(self, factors: Tensor) -> FactoredRows:
        """The gradients whose factors are given.

        Args:
            factors: (m, width).
        """
        ones = factors.new_ones(1, 1).expand(len(factors), 1)
        parts: list[OuterProducts] = []
        end = 0
        for path, layer in self.layers.items():
            start, middle = end, end + layer.out_features
            end = middle + layer.in_features
            outputs, inputs = factors[:, start:middle], factors[:, middle:end]
            for attribute, right in (("weight", inputs), ("bias", ones)):
                if (columns := self.names.get((path, attribute))) is not None:
                    parts.append(OuterProducts(columns, outputs, right))
        return FactoredRows(tuple(parts), self.d)

    def agrees(self, objective: Objective) -> bool:
        """Whether it gives the gradients of one backward pass each, on the first samples.

        Args:
            objective: The loss, the data and the weights.
        """
        with eval_mode(objective.model):
            for batch in objective.batches.in_batches(TRIAL_SAMPLES):
                inputs, target = slice_samples(batch, 0, TRIAL_SAMPLES)
                try:
                    factors = self(objective, inputs, target)
                    rows = looped(objective, inputs, target).double()
                except Exception:  # what a model does to its layers has no common type
                    return False
                if len(factors) != len(rows):
                    return False
                exact = rows @ rows.mT
                away = (self.rows(factors).gram() - exact).abs()
                scale = rows.norm(dim=1)
                tolerance = torch.finfo(factors.dtype).eps ** 0.5
                return bool((away <= tolerance * scale[:, None] * scale).all())
        return False


def factored_rows(sources: Sequence[tuple[Objective, int]]) -> FactoredRows | None:
    """The gradients of several sets of samples of one network, by their factors.

    Args:
        sources: Each an objective, all with the same model, weights and space, and how many
            gradients to take.

    Returns:
        (m, d), those of the first objective first. None where `FactoredGradients.of` is None, the
        factors have no room in memory, or a sample has other gradients, such as ones that are not
        finite: `gradient_chunks` says what is wrong, or gives them.
    """
    first = sources[0][0]
    engine = FactoredGradients.of(first)
    total = sum(count for _, count in sources)
    if engine is None or total * engine.width * first.weights.element_size() > row_bytes():
        return None
    if not all(engine.agrees(objective) for objective, _ in sources):
        return None
    factors = first.weights.new_empty(total, engine.width)
    try:
        done = 0
        for chunk in _chunks(engine, sources):
            factors[done : done + len(chunk)] = chunk
            done += len(chunk)
            report("gradients", done, total)
    except WoodburyError:
        return None
    return engine.rows(factors)


def _chunks(
    engine: FactoredGradients, sources: Sequence[tuple[Objective, int]]
) -> Iterator[Tensor]:
    for objective, count in sources:
        yield from gradient_chunks(objective, count, engine=engine)


def _of_layer(found: LayerSlopes) -> Tensor:
    """Output gradients and inputs of a layer, sample by sample: (c, o + i)."""
    given = found.use.given
    inputs = given.reshape(len(given), -1, given.shape[-1])
    if inputs.shape[1] != 1:
        raise WoodburyError("A layer sees several positions of a sample.")
    outputs = torch.stack([slope.reshape(len(given), -1) for slope in found.slopes], 1)
    repeated = inputs.expand(-1, outputs.shape[1], -1)
    return torch.cat([outputs, repeated], 2).flatten(0, 1)
