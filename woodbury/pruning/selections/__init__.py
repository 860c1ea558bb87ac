"""Selections: how the saliencies of units become the weights that are kept."""

from woodbury.pruning.selections.by_tensor_size import by_size as by_size
from woodbury.pruning.selections.by_tensor_size import evenly as evenly
from woodbury.pruning.selections.greedy_selection import Selection as Selection
from woodbury.pruning.selections.greedy_selection import greedy as greedy
from woodbury.pruning.selections.greedy_selection import iterative_greedy as iterative_greedy
from woodbury.pruning.selections.local_search import (
    iterative_hard_thresholding as iterative_hard_thresholding,
)
from woodbury.pruning.selections.local_search import swaps as swaps
from woodbury.pruning.selections.subset_search import exhaustive as exhaustive
