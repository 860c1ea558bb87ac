"""Whether a loss is the mean over samples: what it is tried on, and what to do if it is not."""

from __future__ import annotations

from typing import Any

from woodbury.model.batches import Batch, concatenated, samples_in, slice_samples, tensors_in

PROBED_SAMPLES = 6
"""Samples of which a probe takes the loss together and one by one."""

MOST_TRIALS = 8
"""Batches of one class on which a loss is tried: what weights classes shows only on several."""

MEAN_TOLERANCE = 1e-2
"""How far the two may differ, as a share of the largest single loss: halves round so much."""


def from_both_ends(batch: Batch, most: int) -> Batch:
    """The first and the last samples of a batch, as data may be sorted by class.

    Args:
        batch: (inputs, target).
        most: Samples at most.

    Returns:
        A batch of so many samples, or fewer where there are fewer.

    Example:
        >>> import torch
        >>> from_both_ends((torch.arange(9), None), 4)[0]
        tensor([0, 1, 7, 8])
    """
    size = samples_in(batch[0])
    if size <= most:
        return slice_samples(batch, 0, size)
    last = slice_samples(batch, size - most // 2, size)
    return concatenated(slice_samples(batch, 0, most - most // 2), last)


def is_of_one_class(target: Any) -> bool:
    """Whether all samples have the same labels, which are whole numbers.

    Args:
        target: The labels of some samples.

    Returns:
        True if what weighs classes differently cannot show on them.
    """
    labels = [label for label in tensors_in(target) if not label.is_floating_point()]
    return bool(labels) and all(bool((label == label[:1]).all()) for label in labels)


def remedy(together: float, singles: list[float]) -> str:
    """What to do about a loss of some samples that is not the mean of their single losses.

    Args:
        together: The loss of all of them.
        singles: That of each.

    Returns:
        The end of a sentence.

    Example:
        >>> remedy(3.0, [1.0, 2.0])
        "divide the sum by the number of samples, or take reduction='mean'"
    """
    if abs(together - sum(singles)) <= MEAN_TOLERANCE * abs(together):
        return "divide the sum by the number of samples, or take reduction='mean'"
    if min(singles) <= together <= max(singles):
        return (
            "instead of class weights, or of a mean over tokens, take "
            "likelihoods.classes(weight=…), likelihoods.binary(…) or cross_entropy, which divide "
            "by the number of samples"
        )
    return "let it compare each sample with its own label, and with no other sample of the batch"
