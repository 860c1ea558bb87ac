"""The best known recipe for one pruning step of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from woodbury.estimation.labels import Labels, observed
from woodbury.estimation.recipes import gauss_newton, mfac
from woodbury.estimation.row_recipes import kfac_by_rows
from woodbury.fisher.base import Fisher
from woodbury.fisher.kronecker import AllRowsAtOnce
from woodbury.limits import Limits
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import row_bytes
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit.output_fit import FisherOfRows, Refit
from woodbury.pruning.selections import iterative_greedy

MAX_BLOCK_SIZE = 128
"""Weights of a diagonal block of a space that is too large for the whole matrix.

Blocks of 500 take four times as long to choose by (docs/log).
"""

MIN_BLOCK_SIZE = 16
"""Weights of a block where the memory is short."""


ROWS_UP_TO = 1_500_000
"""Weights beyond which K-FAC by rows is taken even where gradient rows have room."""

INNER_STEPS = 4
"""Inner steps of K-FAC by rows where no sparsity is known; eight were no better (docs/log)."""

RIDGE = "a hundredth of the inputs' mean square"
"""The damping of K-FAC by rows, in words."""

BY_ROWS = "K-FAC by the rows of each tensor"
"""That structure, in words."""

BYTES_PER_FLOAT = 4
"""Of a gradient row and of a direction of the output."""


class StepChoice(NamedTuple):
    """What is chosen for one pruning step.

    Attributes:
        pruner: The recipe.
        rows: Rows that its Fisher is estimated from, or samples of K-FAC's factors.
        structure: That of the Fisher, in words.
        mc_samples: GGN samples per input; None for labels.
        block: Weights of a diagonal block; None for the whole matrix.
        by_rows: Whether it is K-FAC by rows, which has no rows, stages or dampings to choose.
        fisher_of_rows: What makes the same Fisher of the rows of a refit; None for K-FAC by rows.
    """

    pruner: Pruner
    rows: int
    structure: str
    mc_samples: int | None
    block: int | None = None
    by_rows: bool = False
    fisher_of_rows: mfac | None = None

    def rows_in_words(self) -> str:
        """How many rows of which kind, for a report."""
        if self.pruner.fisher is None:
            return "none"
        if self.by_rows:
            return f"none, factors of {self.rows} samples"
        if self.mc_samples is None:
            return f"{self.rows} gradient rows"
        return f"{self.rows} Gauss–Newton rows, {self.mc_samples} per input"


@dataclass(frozen=True)
class EveryNthRow:
    """The Fisher of every n-th row of a refit, which has several rows of each input in a row.

    Half of the rows take a quarter of the time of their Gram matrix, and choose no worse
    (docs/log/selection.md).

    Attributes:
        fisher: What makes a Fisher of rows.
        n: At least 1.
    """

    fisher: mfac
    n: int

    def __call__(self, rows: Tensor, space: ParameterSpace) -> Fisher:
        """The Fisher of rows 0, n, 2n, … of (m, d), which are copied."""
        return self.fisher.of_rows(rows[:: self.n], space)


@Ranks.apart()
def best_step(
    objective: Objective,
    samples: int,
    mc_samples: int,
    damping: float,
    labels: Labels = observed,
) -> StepChoice:
    """The best known recipe for one pruning step: Gauss–Newton rows and the joint update.

    Where the likelihood has no directions, one gradient row per sample by `labels`. Where not even
    one row per sample has room in the memory, or the network has more than `ROWS_UP_TO` weights,
    K-FAC by rows of each tensor.

    Args:
        objective: The network.
        samples: Samples of its calibration set to use.
        mc_samples: GGN samples per input.
        damping: Added to the diagonal of the Fisher.
        labels: Of the gradient rows: `observed`, or `sampled` where the data has none.

    Returns:
        The recipe, its rows and its structure.

    Example:
        >>> import torch
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> best_step(dense, samples=20, mc_samples=2, damping=1e-3).rows
        40
    """
    d = objective.space.d
    rows_in_memory = row_bytes() // (BYTES_PER_FLOAT * d)
    if takes_kfac(objective, samples):
        return step_by_rows(objective, samples)
    block = block_size(d)
    structure = f"blocks of {block}" if block else "whole matrix"
    if objective.likelihood.directions is None:
        rows = max(1, min(samples, rows_in_memory))
        fisher = mfac(rows, damping, block=block, labels=labels)
        return StepChoice(Pruner(fisher), rows, structure, None, block)
    rows = max(1, min(mc_samples * samples, rows_in_memory))
    fisher = mfac(rows, damping, block=block)
    pruner = Pruner(gauss_newton(fisher, mc_samples))
    return StepChoice(pruner, rows, structure, mc_samples, block, fisher_of_rows=fisher)


@Ranks.apart()
def takes_kfac(objective: Objective, samples: int) -> bool:
    """Whether not even one gradient row per sample has room, or the network is large.

    Args:
        objective: The network.
        samples: Of its calibration set.

    Returns:
        True where K-FAC by rows is the curvature to take.
    """
    d = objective.space.d
    return d > ROWS_UP_TO or row_bytes() // (BYTES_PER_FLOAT * d) < samples


def step_by_rows(objective: Objective, samples: int) -> StepChoice:
    """K-FAC by rows and inner steps: for networks whose gradient rows have no room.

    All rows of a tensor are solved at once at any sparsity, so that inner steps on one estimate do
    what stages with new gradients do elsewhere (docs/log).

    Args:
        objective: The network.
        samples: Of its calibration set.

    Returns:
        The recipe, which needs no rows.
    """
    fisher = kfac_by_rows(samples, approximation=AllRowsAtOnce())
    pruner = Pruner(fisher, selection=iterative_greedy(INNER_STEPS))
    mc_samples = None if objective.likelihood.directions is None else 1
    return StepChoice(pruner, samples, BY_ROWS, mc_samples, by_rows=True)


def block_size(d: int) -> int | None:
    """The size of the diagonal blocks that d weights are best divided into.

    Args:
        d: The number of weights.

    Returns:
        None for the whole matrix, up to `Limits.whole_matrix` weights; else at most
        `MAX_BLOCK_SIZE`, and less where the memory is short.

    Example:
        >>> block_size(1000), block_size(1_000_000)
        (None, 128)
    """
    limits = Limits.current()
    if d <= limits.whole_matrix:
        return None
    return max(MIN_BLOCK_SIZE, min(MAX_BLOCK_SIZE, row_bytes() // (8 * d)))


def rows_of_refits(step: StepChoice, refit: Refit) -> FisherOfRows | None:
    """What makes the next stage's Fisher of the rows of a refit.

    Args:
        step: The step of a stage.
        refit: The refit after it.

    Returns:
        None for a refit without rows, or K-FAC by rows.
    """
    if refit.iterations is not None or step.fisher_of_rows is None:
        return None
    if step.block is not None:  # their sums take a share of the time that is small
        return step.fisher_of_rows.of_rows
    return EveryNthRow(step.fisher_of_rows, max(1, refit.mc_samples // (step.mc_samples or 1)))
