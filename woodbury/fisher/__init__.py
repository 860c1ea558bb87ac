"""Damped Fisher matrices on tensors, and M-FAC's moving window of them: multiply, solve, invert."""

from woodbury.fisher.base import Fisher as Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal as BlockDiagonal
from woodbury.fisher.blocks_of_rows import dense_blocks as dense_blocks
from woodbury.fisher.dense import Dense as Dense
from woodbury.fisher.diagonal import Diagonal as Diagonal
from woodbury.fisher.kronecker import AllRowsAtOnce as AllRowsAtOnce
from woodbury.fisher.kronecker import Kronecker as Kronecker
from woodbury.fisher.kronecker import KroneckerRows as KroneckerRows
from woodbury.fisher.kronecker import exact as exact
from woodbury.fisher.kronecker import pi_corrected as pi_corrected
from woodbury.fisher.kronecker import upper_bound as upper_bound
from woodbury.fisher.lowrank import LowRank as LowRank
from woodbury.fisher.window import Window as Window
