"""Recipes: the papers' names for what turns an Objective into a Fisher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import user_code
from woodbury.estimation.engines import Engine
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_chunks, gradient_rows
from woodbury.estimation.grouped_blocks import block_sums, on_tensors
from woodbury.estimation.hessian import second_derivatives
from woodbury.estimation.kfac_factors import factors
from woodbury.estimation.labels import Labels, observed, sampled
from woodbury.estimation.rows_over_ranks import blocks, parts, whole_matrix
from woodbury.fisher.base import Fisher
from woodbury.fisher.blocks_of_rows import dense_blocks, is_primal, summed_blocks
from woodbury.fisher.checks import check_damping
from woodbury.fisher.diagonal import Diagonal
from woodbury.fisher.kronecker import Elements, Kronecker, exact
from woodbury.fisher.lowrank import LowRank
from woodbury.io.representation import readable
from woodbury.linalg.conversion import seeded
from woodbury.linalg.paged_rows import Rows
from woodbury.linalg.precision import at_least_float32, wide_dtype
from woodbury.linalg.ranks import Ranks
from woodbury.memory import check_room, parse_bytes, stored_rows
from woodbury.memory.budget import limits_within
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.objective import Objective
from woodbury.model.random_numbers import random_kept
from woodbury.model.space import ParameterSpace, check_block_size
from woodbury.monitor import report

Estimate = Callable[[Objective], Fisher]
"""A recipe: objective -> Fisher on its d weights."""

COUNT = 1000
"""Gradient rows, or samples, by default: the size of calibration set in docs/results."""

DAMPING = 1e-5
"""λ by default: that of both papers (Singh & Alistarh 2020; Frantar et al. 2021)."""

BLOCK_WEIGHTS = 2000
"""Weights per block of `woodfisher`, by default: 32 MB in float64 for each block."""


@dataclass(frozen=True)
class diagonal_fisher:
    """The diagonal of the empirical Fisher, (1/m) Σ gᵢ² + damping  (eq. 3).

    The rows are streamed and never stored. Optimal Brain Damage uses it (LeCun et al. 1989).

    Args:
        count: Gradient rows m.
        damping: Added to the diagonal.
        batch: Samples that a row averages.
        labels: `observed` for the empirical, `sampled` for the true Fisher.
        seed: Of the sampled labels.
        engine: `hooked`, `vmapped` or `looped`; None for the fastest, decided by a clock.

    Raises:
        WoodburyError: If the damping is not positive, or the data gives fewer rows.

    Example:
        >>> import torch
        >>> import woodbury
        >>> batches = [(torch.randn(8, 3), torch.arange(8) % 2)]
        >>> objective = woodbury.Objective.from_model(torch.nn.Linear(3, 2), batches)
        >>> woodbury.diagonal_fisher(8)(objective).d
        8
    """

    count: int = COUNT
    damping: float = DAMPING
    _: KW_ONLY
    batch: int = 1
    labels: Labels = observed
    seed: int = 0
    engine: Engine | None = None

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        check_damping(self.damping)

    @checks_types
    @random_kept()
    def __call__(self, objective: Objective) -> Diagonal:
        """Estimate the Fisher at the objective's weights."""
        squares = torch.zeros_like(objective.weights, dtype=torch.float64)
        for chunk in _chunks(self, objective):
            squares += at_least_float32(chunk).square().sum(0)  # squares of halves underflow
        mean = Ranks.current().sum(squares) / self.count
        return Diagonal(mean.to(wide_dtype(objective.weights.dtype)), self.damping)


@dataclass(frozen=True)
class hessian_diagonal:
    """The exact diagonal of the Hessian of the mean loss, negative entries as 0  (eq. 35).

    Optimal Brain Damage approximates it (LeCun et al. 1989), and assumes a minimum, where no
    entry is negative. Elsewhere a weight of negative curvature costs the damping alone. It takes
    one Hessian-vector product per weight: see `second_derivatives`.

    Args:
        count: Samples that the loss is averaged over.
        damping: Added to the diagonal.
        labels: `observed` for the data's own, `sampled` for labels drawn from the model.
        seed: Of the sampled labels.

    Raises:
        WoodburyError: If the damping is not positive, or the data gives fewer samples.

    Example:
        >>> import torch
        >>> import woodbury
        >>> batches = [(torch.randn(8, 3), torch.arange(8) % 2)]
        >>> objective = woodbury.Objective.from_model(torch.nn.Linear(3, 2), batches)
        >>> woodbury.hessian_diagonal(8)(objective).d
        8
    """

    count: int = COUNT
    damping: float = DAMPING
    _: KW_ONLY
    labels: Labels = observed
    seed: int = 0

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        check_damping(self.damping)

    @checks_types
    @random_kept()
    def __call__(self, objective: Objective) -> Diagonal:
        """Compute the diagonal at the objective's weights."""
        generator = _generator(objective, self.seed)
        curvature = second_derivatives(
            objective, self.count, labels=self.labels, generator=generator
        )
        dtype = wide_dtype(objective.weights.dtype)
        return Diagonal(curvature.clamp(min=0).to(dtype), self.damping)


@dataclass(frozen=True)
class mfac:
    """The empirical Fisher (1/m) Σ gᵢgᵢᵀ + damping·I of m gradients, matrix-free  (eq. 2, 6).

    It holds count × d numbers, in a file where memory has no room for them, or with small blocks
    their sums: little more than block/2 × d numbers, in groups of tensors where they have no room
    at once (Frantar, Kurtic & Alistarh, NeurIPS 2021).

    Args:
        count: Gradient rows m.
        damping: Added to the diagonal.
        block: Weights per diagonal block, each inside one tensor; None for the whole matrix.
        batch: Samples that a row averages.
        labels: `observed` for the empirical, `sampled` for the true Fisher.
        seed: Of the sampled labels.
        engine: `hooked`, `vmapped` or `looped`; None for the fastest. Give one where two runs must
            agree bit for bit.
        dtype: What the rows of the whole matrix are stored in; None for that of the weights.
            `torch.bfloat16` takes half of the room.
        memory: The budget of the run, in bytes or as "6GiB", of which the rows of the whole matrix
            may take half. None for 60 % of what this process may still have.
        scratch: A folder for rows that have no room in memory; None for that of `woodbury.prune`,
            else the system's temporary one.

    Raises:
        WoodburyError: If the damping is not positive, the block is empty, or the data gives fewer
            rows.

    Example:
        >>> import torch
        >>> import woodbury
        >>> batches = [(torch.randn(8, 3), torch.arange(8) % 2)]
        >>> objective = woodbury.Objective.from_model(torch.nn.Linear(3, 2), batches)
        >>> fisher = woodbury.mfac(8, damping=1e-3)(objective)
        >>> fisher.solve(torch.ones(8)).shape
        torch.Size([8])
    """

    count: int = COUNT
    damping: float = DAMPING
    _: KW_ONLY
    block: int | None = None
    batch: int = 1
    labels: Labels = observed
    seed: int = 0
    engine: Engine | None = None
    dtype: torch.dtype | None = None
    memory: int | str | None = field(default=None, compare=False, repr=False)
    scratch: str | Path | None = field(default=None, compare=False, repr=False)

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        check_damping(self.damping)
        if self.memory is not None:
            parse_bytes(self.memory)
        if self.block is not None:
            check_block_size(self.block)

    @checks_types
    @random_kept()
    def __call__(self, objective: Objective) -> Fisher:
        """Estimate the Fisher at the objective's weights."""
        if self.block is None:
            return self._whole_matrix(objective)
        with limits_within(self.memory):
            return self._blocks(objective, self.block)

    def _blocks(self, objective: Objective, block: int) -> Fisher:
        sizes = objective.space.block_sizes(block)
        if is_primal(self.count, sizes):
            return block_sums(objective, block, self.damping, partial(_chunks, self))
        if Ranks.current().size > 1:
            chunks = _chunks(self, objective)
            return blocks(chunks, sizes, self.damping, objective.weights, primal=False)
        return dense_blocks(_rows(self, objective), sizes, self.damping)

    def _whole_matrix(self, objective: Objective) -> Fisher:
        weights = objective.weights
        dtype = weights.dtype if self.dtype is None else self.dtype

        def stored(chunks: Iterable[Tensor], columns: int) -> Rows:
            return stored_rows(
                chunks,
                (self.count, columns),
                dtype,
                device=weights.device,
                memory=self.memory,
                scratch=self.scratch,
            )

        # Each chunk of rows is finite.
        d = objective.space.d
        return whole_matrix(stored, _chunks(self, objective), d, self.damping, weights)

    def of_rows(self, rows: Tensor, space: ParameterSpace) -> Fisher:
        """The Fisher of rows that are there already, in place of `count` of its own.

        Args:
            rows: (m, d), which may be overwritten afterwards.
            space: Of the d weights.

        Returns:
            The Fisher in the same structure and with the same damping.
        """
        if Ranks.current().size > 1:
            return self._of_rows_of_all_ranks(rows, space)
        if self.block is None:
            return LowRank(rows.clone(), self.damping)
        sizes = space.block_sizes(self.block)
        if is_primal(len(rows), sizes):
            return summed_blocks([rows], sizes, self.damping)
        return dense_blocks(rows.clone(), sizes, self.damping)

    def _of_rows_of_all_ranks(self, rows: Tensor, space: ParameterSpace) -> Fisher:
        if self.block is None:
            return whole_matrix(
                lambda chunks, _: torch.cat(list(chunks)), [rows], space.d, self.damping, rows
            )
        sizes = space.block_sizes(self.block)
        primal = is_primal(Ranks.current().total(len(rows)), sizes)
        return blocks([rows], sizes, self.damping, rows, primal=primal)


@dataclass(frozen=True)
class woodfisher:
    """The empirical Fisher in dense diagonal blocks  (eq. 11).

    The same matrix as `mfac` with that block, computed in whichever form is cheaper (WoodFisher,
    Singh & Alistarh, NeurIPS 2020).

    Args:
        count: Gradient rows m.
        block: Weights per block, each inside one tensor.
        damping: Added to the diagonal.
        batch: Samples that a row averages.
        labels: `observed` for the empirical, `sampled` for the true Fisher.
        seed: Of the sampled labels.
        engine: As in `mfac`.
        memory: The budget of the run, in bytes or as "6GiB". None for 60 % of what this process may
            still have.

    Raises:
        WoodburyError: If the damping is not positive, the block is empty, the data gives fewer
            rows, or rows that blocks of more than half as many weights need have no room.

    Example:
        >>> import torch
        >>> import woodbury
        >>> batches = [(torch.randn(8, 3), torch.arange(8) % 2)]
        >>> objective = woodbury.Objective.from_model(torch.nn.Linear(3, 2), batches)
        >>> woodbury.woodfisher(8, block=2)(objective).d
        8
    """

    count: int = COUNT
    block: int = BLOCK_WEIGHTS
    damping: float = DAMPING
    _: KW_ONLY
    batch: int = 1
    labels: Labels = observed
    seed: int = 0
    engine: Engine | None = None
    memory: int | str | None = field(default=None, compare=False, repr=False)

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        self._as_mfac()

    @checks_types
    @random_kept()
    def __call__(self, objective: Objective) -> Fisher:
        """Estimate the Fisher at the objective's weights."""
        return self._as_mfac()(objective)

    def _as_mfac(self) -> mfac:
        return mfac(
            self.count,
            self.damping,
            block=self.block,
            batch=self.batch,
            labels=self.labels,
            seed=self.seed,
            engine=self.engine,
            memory=self.memory,
        )


@dataclass(frozen=True)
class kfac:
    """K-FAC: one Kronecker product of two factors for each tensor of the space  (eq. 27).

    It needs neither rows nor labels (Martens & Grosse, ICML 2015; convolutions: Grosse & Martens,
    ICML 2016).

    Args:
        count: Samples that the factors average.
        damping: Added to the diagonal; with `damped=pi_corrected` it is another number.
        labels: `sampled` for the true Fisher, as in the paper; `observed` for the empirical one.
        seed: Of the sampled labels.
        damped: How the damping enters: `Kronecker` adds exactly damping·I, `pi_corrected` damps
            both factors as the paper does.
        elements: Inverse elements once weights are removed: `exact`, at O(n³) for n weights of a
            tensor that are kept or removed, or `upper_bound`, for several stages on tensors
            beyond a few thousand weights.
        skip_unknown: Whether a tensor that is not in a Linear or an ungrouped Conv2d has the
            diagonal of its gradients in place of an error, which takes a pass over the samples
            more for each such tensor.

    Raises:
        WoodburyError: If the damping is not positive, the data gives fewer samples, or a tensor
            of the space is not in a Linear or an ungrouped Conv2d.

    Example:
        >>> import torch
        >>> import woodbury
        >>> batches = [(torch.randn(8, 3), torch.arange(8) % 2)]
        >>> objective = woodbury.Objective.from_model(torch.nn.Linear(3, 2), batches)
        >>> woodbury.kfac(8, damping=1e-3)(objective).inverse_diagonal().shape
        torch.Size([8])
    """

    count: int = COUNT
    damping: float = DAMPING
    _: KW_ONLY
    labels: Labels = sampled
    seed: int = 0
    damped: Callable[[Tensor, Tensor, float], Kronecker] = Kronecker
    elements: Elements = exact
    skip_unknown: bool = False

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        check_damping(self.damping)

    @checks_types
    @random_kept()
    def __call__(self, objective: Objective) -> Fisher:
        """Estimate the Fisher at the objective's weights."""
        space = objective.space
        generator = _generator(objective, self.seed)
        pairs = factors(
            objective,
            self.count,
            labels=self.labels,
            generator=generator,
            skip_unknown=self.skip_unknown,
        )
        keep = space.keep.to(objective.weights.device)
        masks = {name: keep[where] for name, where in space.slices.items() if keep[where].any()}
        diagonal = diagonal_fisher(self.count, self.damping, labels=self.labels, seed=self.seed)
        unknown = {
            name: diagonal(on_tensors(objective, (name,))) for name in masks if name not in pairs
        }
        names = list(masks)

        def part(index: int) -> Fisher:
            name = names[index]
            if name in unknown:
                return unknown[name]
            whole = self.damped(*pairs[name], self.damping)
            return replace(whole, elements=self.elements).restrict(masks[name])

        sizes = [int(mask.sum()) for mask in masks.values()]
        return parts(sizes, part, self.damping, objective.weights)


@dataclass(frozen=True)
class gauss_newton:
    """A recipe from rows of the Gauss–Newton matrix in place of gradients by labels  (eq. 29).

    The rows are gradients along random directions of the model's output, and need no labels. In
    expectation their Fisher is the true one (Martens 2020).

    Args:
        recipe: `mfac`, `woodfisher` or `diagonal_fisher`. Its `count` counts rows:
            `gauss_newton(mfac(2000), 2)` reads 1,000 inputs.
        mc_samples: GGN samples (rows) per input; 2 as in docs/results.
        seed: Of the directions.

    Raises:
        WoodburyError: When it is called, if the likelihood has no directions.

    Example:
        >>> import torch
        >>> import woodbury
        >>> batches = [(torch.randn(8, 3), None)]
        >>> objective = woodbury.Objective.from_model(torch.nn.Linear(3, 2), batches)
        >>> woodbury.gauss_newton(woodbury.mfac(16), mc_samples=2)(objective).d
        8
    """

    recipe: Estimate
    mc_samples: int = 2
    _: KW_ONLY
    seed: int = 0

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)

    @checks_types
    @random_kept()
    def __call__(self, objective: Objective) -> Fisher:
        """Estimate the Fisher at the objective's weights."""
        rows = gauss_newton_rows(objective, self.mc_samples, self.seed)
        with (
            if_memory_runs_out("give fewer mc_samples or rows"),
            user_code("The recipe inside gauss_newton fails.", keeps_refusals=True),
        ):
            return self.recipe(rows)


def _chunks(recipe: diagonal_fisher | mfac, objective: Objective) -> Iterator[Tensor]:
    """The recipe's gradient rows, (c, d) at a time, with their progress."""
    chunks = gradient_chunks(
        objective,
        recipe.count,
        batch=recipe.batch,
        labels=recipe.labels,
        generator=_generator(objective, recipe.seed),
        engine=recipe.engine,
    )
    return _reported(chunks, objective.batches.own(recipe.count))


def _rows(recipe: mfac, objective: Objective) -> Tensor:
    """The recipe's gradient rows in one tensor (count, d)."""
    weights, shape = objective.weights, (recipe.count, objective.space.d)
    check_room(shape, weights.dtype, device=weights.device, memory=recipe.memory)
    return gradient_rows(
        objective,
        recipe.count,
        batch=recipe.batch,
        labels=recipe.labels,
        generator=_generator(objective, recipe.seed),
        engine=recipe.engine,
    )


def _reported(chunks: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    done = 0
    for chunk in chunks:
        done += len(chunk)
        yield chunk
        del chunk  # before the next is computed
        report("gradients", done, count)


def _generator(objective: Objective, seed: int) -> torch.Generator:
    return seeded(seed, objective.weights.device)
