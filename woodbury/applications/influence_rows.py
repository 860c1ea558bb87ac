"""InfluenceRows: gradients of all samples as rows of one matrix, and where each kind lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from woodbury.applications.inner_products import InnerProducts
from woodbury.applications.ridge_choice import Parts
from woodbury.errors import WoodburyError
from woodbury.estimation.factored_gradients import factored_rows
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_chunks
from woodbury.linalg.factored_rows import FactoredRows
from woodbury.linalg.paged_rows import Rows
from woodbury.linalg.precision import wide_dtype
from woodbury.memory.budget import bytes_in_words, row_bytes
from woodbury.memory.row_store import stored_rows
from woodbury.model.batches import Batch, Samples, samples_in
from woodbury.model.likelihood import Likelihood
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace, Patterns
from woodbury.monitor import report

MATRICES = 5
"""Of N × N numbers in float64 that are held at once: products, eigenvectors, what LAPACK needs."""


class Scored(NamedTuple):
    """The tensors of an `Influence`."""

    scores: Tensor
    leave_one_out: Tensor
    self_influence: Tensor


@dataclass(frozen=True, eq=False)
class InfluenceRows:
    """The rows of a search and of the scores, in one store.

    Attributes:
        rows: (N, d), the last of which is the weights; or N − 1 gradients as outer products.
        weights: (d,).
        curvature: Where the rows of the curvature lie.
        per_sample: How many of them a training sample has.
        test: Where the gradients of the test samples lie.
        parts: Where the others lie.
    """

    rows: Rows | FactoredRows
    weights: Tensor
    curvature: slice
    per_sample: int
    test: slice
    parts: Parts

    @classmethod
    def collected(
        cls,
        model: nn.Module,
        train: Iterable[Batch],
        test: Iterable[Batch],
        held_out: Iterable[Batch] | None,
        likelihood: Likelihood,
        names: tuple[Patterns, Patterns],
        mc_samples: int | None,
        seed: int,
    ) -> InfluenceRows:
        """All rows, in memory or on a disk.

        Args:
            model: The network.
            train: Its training data.
            test: The test data.
            held_out: Data to choose a damping on, or None.
            likelihood: The loss.
            names: Patterns to include, and to exclude.
            mc_samples: Gauss–Newton rows per sample; None for gradients by labels.
            seed: Of the Gauss–Newton rows.

        Raises:
            WoodburyError: As `influence`.
        """
        space = ParameterSpace.from_model(model, *names)

        def of(batches: Iterable[Batch], what: str) -> Objective:
            _check_order(batches, what)
            found = Objective.from_model(model, batches, likelihood, space)
            held = list(found.batches)  # read once: all kinds of rows are of the same samples
            return replace(found, batches=Samples(held))

        data = {"train": of(train, "train"), "test": of(test, "test")}
        if held_out is not None:
            data["held_out"] = of(held_out, "held_out")
        counts = {name: _count(name, objective) for name, objective in data.items()}
        data["train"].probe()
        kinds = [(name, objective, counts[name]) for name, objective in data.items()]
        if mc_samples is not None:
            for name in [name for name in data if name != "test"]:
                rows = gauss_newton_rows(data[name], mc_samples, seed)
                kinds.append((f"{name} curvature", rows, mc_samples * counts[name]))
        total = sum(count for _, _, count in kinds) + 1
        _check_room(total)
        weights = data["train"].weights
        rows = factored_rows([(objective, count) for _, objective, count in kinds])
        if rows is None:
            chunks = _chunks(kinds, weights, total)
            shape = (total, space.d)
            rows = stored_rows(chunks, shape, weights.dtype, device=weights.device)
        return cls._of(rows, weights, kinds, mc_samples)

    @classmethod
    def _of(
        cls,
        rows: Rows | FactoredRows,
        weights: Tensor,
        kinds: list[tuple[str, Objective, int]],
        mc_samples: int | None,
    ) -> InfluenceRows:
        places: dict[str, slice] = {}
        start = 0
        for name, _, count in kinds:
            places[name] = slice(start, start + count)
            start += count
        none = slice(0, 0)
        held_out = places.get("held_out", none)
        parts = Parts(
            places["train"],
            held_out,
            held_out if mc_samples is None else places.get("held_out curvature", none),
            slice(start, start + 1),
        )
        curvature = places.get("train curvature", places["train"])
        return cls(rows, weights, curvature, mc_samples or 1, places["test"], parts)

    def products(self, dtype: torch.dtype | None = None) -> InnerProducts:
        """The inner products of all rows.

        Args:
            dtype: What they are taken in; None for that of the rows, float32 at least. Outer
                products are taken in float64 always, which costs them little.

        Raises:
            WoodburyError: If they overflow, or no training or no test sample has a gradient.
        """
        if isinstance(self.rows, FactoredRows):
            matrix = _with_weights(self.rows, self.weights)
            found = InnerProducts.checked(matrix, self.curvature, torch.float64)
        else:
            dtype = dtype or wide_dtype(self.rows.dtype)
            found = InnerProducts.of(self.rows, self.curvature, dtype)
        squares = found.matrix.diagonal()
        for part, name in ((self.parts.train, "train"), (self.test, "test")):
            if not bool(squares[part].any()):
                raise WoodburyError(
                    f"Every gradient of {name} is zero: does the loss depend on the chosen "
                    "parameters, and are there labels that count?"
                )
        if not bool(squares[self.curvature].any()):
            raise WoodburyError(
                "Every Gauss–Newton row is zero: the network's outputs leave no doubt, so take "
                "rows by labels (mc_samples=None)."
            )
        return found

    @property
    def in_float64(self) -> bool:
        """Whether products are taken in float64 whatever is asked for."""
        return isinstance(self.rows, FactoredRows) or self.rows.dtype == torch.float64

    def scored(self, products: InnerProducts, damping: float) -> Scored:
        """The scores from the inner products.

        Args:
            products: Of all rows.
            damping: λ.
        """
        train = self.parts.train
        n = train.stop - train.start
        scores = products.solved(self.test, train, damping) / n
        own = products.solved_diagonal(train, damping) / n
        return Scored(scores, self._left_out(products, damping, scores), own)

    def _left_out(self, products: InnerProducts, damping: float, scores: Tensor) -> Tensor:
        """The scores once the rows of the sample have left F too, by Woodbury on each sample."""
        k, n = self.per_sample, scores.shape[1]
        inner = products.solved_with_own(self.curvature, damping, k) / products.m
        pull = products.solved_with_own(self.parts.train, damping, k).mT / n
        reach = products.solved(self.test, self.curvature, damping) / products.m
        eye = torch.eye(k, dtype=inner.dtype, device=inner.device)
        step = torch.linalg.solve(eye - inner, pull)[:, :, 0]
        return scores + torch.einsum("tnk,nk->tn", reach.view(-1, n, k), step)


def _with_weights(rows: FactoredRows, weights: Tensor) -> Tensor:
    """The Gram matrix (N, N) of gradients, and the weights as one row more."""
    matrix = weights.new_empty(rows.m + 1, rows.m + 1, dtype=torch.float64)
    matrix[:-1, :-1] = rows.gram()
    matrix[-1, :-1] = matrix[:-1, -1] = rows.times(weights)
    matrix[-1, -1] = weights.double().square().sum()
    return matrix


def _chunks(
    kinds: list[tuple[str, Objective, int]], weights: Tensor, total: int
) -> Iterator[Tensor]:
    """All gradient rows in their order, and last the weights themselves."""
    done = 0
    for name, objective, count in kinds:
        with _named(name.split()[0]):
            for chunk in gradient_chunks(objective, count):
                yield chunk
                done += len(chunk)
                report("gradients", done, total)
    yield weights[None]


@contextmanager
def _named(what: str) -> Iterator[None]:
    """A context whose refusals say in which data the fault is."""
    try:
        yield
    except WoodburyError as error:
        raise WoodburyError(f"In {what}: {error}") from error


def _check_order(batches: Iterable[Batch], what: str) -> None:
    """Raise for a DataLoader that shuffles: a score belongs to a sample by its place."""
    if isinstance(getattr(batches, "sampler", None), RandomSampler):
        raise WoodburyError(
            f"{what} is a DataLoader that shuffles, so that a score would have no sample: give one "
            "with shuffle=False."
        )


def _count(what: str, objective: Objective) -> int:
    count = sum(samples_in(inputs) for inputs, _ in objective.batches)
    if not count:
        raise WoodburyError(f"{what} holds no samples: give at least one.")
    return count


def _check_room(total: int) -> None:
    needed, room = MATRICES * 8 * total**2, row_bytes()  # half is for the rows, half for these
    if needed > room:
        raise WoodburyError(
            f"The inner products of {total:,} gradients need {bytes_in_words(needed)}, and half "
            f"of the budget is {bytes_in_words(room)}: give fewer samples, or more memory=."
        )
