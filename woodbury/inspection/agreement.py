"""How far two numbers, two rankings, two choices agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

NEGLIGIBLE_SHARE = 0.05
"""Of the dense loss: increases that differ by less are taken as equal."""

FACTOR = 2.0
"""A forecast holds within this factor."""


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors; equal entries share their mean rank.

    Args:
        a: (d,).
        b: (d,).

    Returns:
        From −1 to 1; 1 where one of them has no order at all and is the same as the other, else 0.

    Example:
        >>> rank_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.2, 0.3]))
        1.0
    """
    first, second = _centred_ranks(a), _centred_ranks(b)
    scale = math.sqrt(float(first @ first) * float(second @ second))
    if not scale:
        return float(torch.equal(first, second))
    return min(1.0, max(-1.0, float(first @ second) / scale))


def _centred_ranks(values: Tensor) -> Tensor:
    """(d,) float64: ranks, less their mean."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks = (ends - (counts.double() - 1) / 2)[place]
    return ranks - ranks.mean()


def shared_removals(keep: Tensor, other: Tensor) -> float:
    """The share of the weights that one choice removes which another one removes too.

    Args:
        keep: (n,) bool, True = kept.
        other: (n,) bool.

    Returns:
        From 0 to 1; 1 where neither removes any.

    Example:
        >>> shared_removals(torch.tensor([True, False, False]), torch.tensor([False, False, True]))
        0.5
    """
    removed = max(int((~keep).sum()), int((~other).sum()))
    return float((~keep & ~other).sum()) / removed if removed else 1.0


def is_within_factor(predicted: float, measured: float, negligible: float) -> bool:
    """Whether a predicted increase is the measured one, but for a factor of two.

    Args:
        predicted: The increase that was forecast.
        measured: The increase.
        negligible: A difference that does not count.
    """
    if not (math.isfinite(predicted) and math.isfinite(measured)):
        return False
    if abs(predicted - measured) <= negligible:
        return True
    return 0 < measured <= FACTOR * predicted and predicted <= FACTOR * measured


def last_within_factor(
    places: Sequence[float], predicted: Iterable[float], measured: Iterable[float], dense: float
) -> float | None:
    """Up to which place on an axis every forecast holds within a factor of two.

    Args:
        places: Rising, such as sparsities.
        predicted: The increase forecast at each.
        measured: The increase measured at each.
        dense: The loss that they are increases of.

    Returns:
        The last place before the first that does not hold; None where the first does not.

    Example:
        >>> last_within_factor([0.5, 0.7, 0.9], [0.1, 0.2, 0.3], [0.12, 0.3, 2.0], dense=0.1)
        0.7
    """
    last = None
    pairs = zip(places, predicted, measured, strict=True)
    for place, forecast, increase in pairs:
        if not is_within_factor(forecast, increase, NEGLIGIBLE_SHARE * abs(dense)):
            break
        last = place
    return last


def in_digits(number: float, form: str = ".2g") -> str:
    """A number for a sentence: its minus is no hyphen, and a large one has all its digits.

    Args:
        number: Such as −0.0067.
        form: Of `format`.

    Example:
        >>> in_digits(-0.0067), in_digits(1e-05), in_digits(127.3)
        ('−0.0067', '1e-05', '127')
    """
    text = f"{number:{form}}"
    if "e+" in text:
        text = f"{number:,.0f}"
    return f"−{text[1:]}" if text.startswith("-") else text


def in_percent(share: float) -> str:
    """A share for a sentence.

    Args:
        share: Such as 0.07.

    Example:
        >>> in_percent(0.07)
        '7 %'
    """
    return f"{100 * share:.0f} %"
