"""influence(): what leaving a training sample out would do to the loss of each test sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from woodbury.applications.halves import check_places, mean_by_sample
from woodbury.applications.influence_rows import InfluenceRows
from woodbury.applications.ridge_choice import RidgeSearch, best_damping
from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType, check_whole_number
from woodbury.fisher.checks import check_damping
from woodbury.memory.budget import limits_within
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.memory.row_store import scratch_in
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.random_numbers import random_kept
from woodbury.model.space import Patterns

IF_MEMORY_RUNS_OUT = "give influence fewer samples, or fewer parameters (include=…)"


@dataclass(frozen=True, eq=False)
class Influence:
    """What training samples do to the losses of test samples; `influence` makes one.

    Attributes:
        scores: (t, n), how much the loss of a test sample rises, to first order, if a training
            sample is left out; negative where that sample does harm  (eq. 81).
        leave_one_out: (t, n), the same with the curvature of the sample left out too, so that the
            weights of a quadratic loss are those of training without it  (eq. 82).
        self_influence: (n,), the score of each training sample on its own loss; large for samples
            that the network could only memorise, such as mislabelled ones.
        damping: λ that they were computed with.
    """

    scores: Tensor
    leave_one_out: Tensor
    self_influence: Tensor
    damping: float

    def __repr__(self) -> str:
        """One line, without the numbers."""
        tests, samples = self.scores.shape
        return f"Influence(tests={tests}, samples={samples}, damping={self.damping:.3g})"

    @checks_types
    def top(self, k: int, *, harmful: bool = False) -> Tensor:
        """The training samples of the largest scores for each test sample.

        Args:
            k: How many.
            harmful: Whether the most negative scores are wanted in place of the largest.

        Returns:
            (t, k) int64, places in the training data, the strongest first.

        Raises:
            WoodburyError: If there are not so many training samples.
        """
        samples = self.scores.shape[1]
        check_whole_number(k, "k", "the number of training samples to name", most=samples)
        return self.scores.topk(k, dim=1, largest=not harmful).indices

    @classmethod
    def averaged(
        cls, several: Sequence[Influence], trained_on: Sequence[Tensor] | None = None
    ) -> Influence:
        """The mean over networks that were trained alike, which is less noisy than any of them.

        Each network counts the same for each test sample: its scores there are divided by their
        length, and their mean is given the mean length. Else those with a large loss would decide.

        Args:
            several: Of the networks, with the same test samples.
            trained_on: For each network the places (int64) of its training samples among all, in
                the order that `influence` was given them; None where all had the same.

        Returns:
            For each training sample the mean over the networks that had it; and the mean damping.

        Raises:
            WoodburyError: If there is none, their numbers of samples differ, or a training sample
                belongs to no network.

        Example:
            >>> scores = torch.tensor([[3.0, 4.0]])
            >>> one = Influence(scores, scores, torch.zeros(2), 0.1)
            >>> Influence.averaged([one, one]).scores
            tensor([[3., 4.]])
            >>> Influence.averaged([one, one], [torch.tensor([0, 1]), torch.tensor([2, 1])]).scores
            tensor([[3., 4., 3.]])
        """
        if not isinstance(several, (list, tuple)) or not all(
            isinstance(each, Influence) for each in several
        ):
            raise WrongType("several is no list of Influence: give what influence() returned.")
        shapes = {tuple(each.scores.shape) for each in several}
        tests = {shape[0] for shape in shapes}
        if len(tests) != 1 or (trained_on is None and len(shapes) != 1):
            raise WoodburyError(
                f"The scores have the shapes {sorted(shapes)}: give at least one Influence, all of "
                "the same test samples, and of the same training samples without trained_on=."
            )
        samples = [each.scores.shape[1] for each in several]
        if trained_on is None:
            trained_on = [torch.arange(count) for count in samples]
        check_places(trained_on, len(several))
        for number, (places, count) in enumerate(zip(trained_on, samples, strict=True)):
            if len(places) != count:
                raise WoodburyError(
                    f"Network {number} has scores of {count} training samples and {len(places)} "
                    "places: give the places of the data that influence() was given."
                )
        return cls(
            _mean_direction([each.scores for each in several], trained_on),
            _mean_direction([each.leave_one_out for each in several], trained_on),
            mean_by_sample([each.self_influence for each in several], trained_on),
            sum(each.damping for each in several) / len(several),
        )


def _mean_direction(several: list[Tensor], places: Sequence[Tensor]) -> Tensor:
    """(t, n): the mean of the rows once each has the length 1, times their mean length."""
    lengths = [scores.norm(dim=1, keepdim=True) for scores in several]
    least = torch.finfo(several[0].dtype).tiny
    units = [
        scores / length.clamp_min(least) for scores, length in zip(several, lengths, strict=True)
    ]
    return mean_by_sample(units, places) * torch.stack(lengths).mean(0)


@checks_types
@random_kept()
def influence(
    model: nn.Module,
    train: Iterable[Batch],
    test: Iterable[Batch],
    *,
    damping: float | RidgeSearch | None = None,
    mc_samples: int | None = None,
    likelihood: Likelihood = cross_entropy,
    include: Patterns = "*",
    exclude: Patterns = (),
    seed: int = 0,
    memory: int | str | None = None,
    scratch: str | Path | None = None,
) -> Influence:
    """Scores of training samples for test samples, by influence functions  (eq. 81).

    All gradients are rows of one matrix, whose inner products are taken once. What follows, each
    damping, the scores and the self-influence, is work on these products alone: O(N³) for N rows,
    and O(N²) memory.

    Args:
        model: The trained network; it is not changed.
        train: The training data, n samples: re-iterable (inputs, target), in an order that is the
            same each time.
        test: The test data, t samples with labels.
        damping: λ, absolute; or a `RidgeSearch`. None chooses it by cross-validation, and needs
            rows by labels.
        mc_samples: None takes the training gradients as rows of the curvature, the empirical
            Fisher; a number takes so many Gauss–Newton rows per training sample  (eq. 29).
        likelihood: The loss that the network was trained by, without weight decay.
        include: Names of the parameters to take, or shell patterns of them.
        exclude: Names or patterns to leave out of these.
        seed: Of the Gauss–Newton rows.
        memory: What the run may hold, in bytes or as "6GiB", of which the rows may take half; None
            for 60 % of what the process may still have.
        scratch: A folder for rows that have no room in memory.

    Returns:
        The scores; a sample whose gradient is zero has the score 0.

    Raises:
        WrongType: If the model is no torch.nn.Module.
        WoodburyError: If the data do not fit the model, a gradient is not finite, no training or no
            test sample has a gradient, or a damping is missing.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> train = [(torch.randn(20, 3), torch.arange(20) % 2)]
        >>> found = influence(model, train, [(torch.randn(4, 3), torch.arange(4) % 2)])
        >>> found.scores.shape, found.top(3).shape
        (torch.Size([4, 20]), torch.Size([4, 3]))

    Source:
        Koh & Liang, ICML 2017; the range form and the choice of the damping are this package's.
    """
    search = damping if isinstance(damping, RidgeSearch) else RidgeSearch()
    if damping is not None and not isinstance(damping, RidgeSearch):
        damping = check_damping(damping)
        search = RidgeSearch(dampings=(damping,))
    elif mc_samples is not None and search.held_out is None:
        raise WoodburyError(
            "Gauss–Newton rows have no cross-validation: give damping a number, or "
            "RidgeSearch(held_out=…) with data that the network was not trained on."
        )
    with limits_within(memory), scratch_in(scratch), if_memory_runs_out(IF_MEMORY_RUNS_OUT):
        rows = InfluenceRows.collected(
            model, train, test, search.held_out, likelihood, (include, exclude), mc_samples, seed
        )
        products = rows.products()
        if not isinstance(damping, float):
            damping = best_damping(search, products, rows.parts)
        if not rows.in_float64 and products.needs_float64(damping):
            products = rows.products(torch.float64)
        return Influence(*rows.scored(products, damping), damping)
