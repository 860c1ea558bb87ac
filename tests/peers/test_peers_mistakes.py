"""Mistakes that implementations of this field have made: each is caught by a check of ours.

The check passes for our own implementations and fails for the mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from support import implementations as ours
from support import mistakes, properties


class Mistake(NamedTuple):
    """A known mistake, the check that catches it, and what of ours passes it."""

    wrong: Callable[..., Any]
    check: Callable[[Any], None]
    ours: tuple[Callable[..., Any], ...]


MATRICES = (ours.low_rank, ours.spectral, ours.in_one_block, ours.full_window)
SOLVES = (ours.solve, ours.solve_as_one_of_two_blocks, ours.solve_in_the_span)
BATCH_ROWS = (ours.batch_row, ours.batch_row_by_a_loop)
ESTIMATES = (ours.mfac, ours.woodfisher, ours.diagonal_fisher, ours.hessian_diagonal, ours.kfac)
SCORES = (ours.obs, ours.obs_of_units)
MOVES = (ours.joint, ours.optimum_of_a_restriction)

MISTAKES = [
    Mistake(mistakes.all_rows_but_the_last, properties.is_the_mean_over_all_rows, MATRICES),
    Mistake(mistakes.only_the_last_chunk, properties.is_the_mean_over_all_rows, MATRICES),
    Mistake(mistakes.square_of_the_mean, properties.is_the_mean_over_all_rows, MATRICES),
    Mistake(mistakes.sum_in_place_of_the_mean, properties.is_the_mean_over_all_rows, MATRICES),
    Mistake(mistakes.damping_as_its_reciprocal, properties.is_the_mean_over_all_rows, MATRICES),
    Mistake(mistakes.no_complement, properties.solves_with_its_matrix, SOLVES),
    Mistake(mistakes.damping_of_the_sum, properties.solves_with_its_matrix, SOLVES),
    Mistake(mistakes.plus_in_woodbury, properties.solves_with_its_matrix, SOLVES),
    Mistake(
        mistakes.scaled_by_capacity, properties.window_is_scaled_by_the_rows_seen, (ours.window,)
    ),
    Mistake(
        mistakes.newest_row_overwrites_the_first,
        properties.window_is_scaled_by_the_rows_seen,
        (ours.window,),
    ),
    Mistake(mistakes.unscaled_batch_mean, properties.batch_rows_keep_the_fisher, BATCH_ROWS),
    Mistake(mistakes.batch_sum, properties.batch_rows_keep_the_fisher, BATCH_ROWS),
    Mistake(
        mistakes.kronecker_reversed, properties.is_the_fisher_of_one_sample, (ours.kfac, ours.mfac)
    ),
    Mistake(
        mistakes.damping_of_each_factor,
        properties.is_the_fisher_of_one_sample,
        (ours.kfac, ours.mfac),
    ),
    Mistake(mistakes.only_the_last_batch, properties.does_not_depend_on_the_batches, ESTIMATES),
    Mistake(mistakes.mean_of_batch_estimates, properties.does_not_depend_on_the_batches, ESTIMATES),
    Mistake(mistakes.curvature_in_place_of_the_inverse, properties.is_the_least_increase, SCORES),
    Mistake(mistakes.multiplied_by_the_inverse, properties.is_the_least_increase, SCORES),
    Mistake(mistakes.without_the_half, properties.is_the_least_increase, SCORES),
    Mistake(mistakes.single_updates_added, properties.is_the_constrained_minimum, MOVES),
    Mistake(mistakes.no_mask_after_the_update, properties.is_the_constrained_minimum, MOVES),
    Mistake(mistakes.inverse_restricted, properties.is_the_constrained_minimum, MOVES),
    Mistake(mistakes.one_of_four_removed, properties.keeps_n_of_every_m, (ours.one_of_four,)),
    Mistake(
        mistakes.one_of_four_down_the_columns, properties.keeps_n_of_every_m, (ours.one_of_four,)
    ),
    Mistake(
        mistakes.density_for_sparsity, properties.sparsity_is_the_removed_share, (ours.smallest,)
    ),
]

OURS = {
    f"{check.__name__}-{implementation.__name__}": (check, implementation)
    for _, check, implementations in MISTAKES
    for implementation in implementations
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.wrong.__name__)
def test_the_mistake_is_caught(mistake: Mistake) -> None:
    with pytest.raises(AssertionError, match=r"not close|not zero"):
        mistake.check(mistake.wrong)


@pytest.mark.parametrize(("check", "implementation"), OURS.values(), ids=OURS)
def test_ours_passes(check: Callable[[Any], None], implementation: Callable[..., Any]) -> None:
    check(implementation)
