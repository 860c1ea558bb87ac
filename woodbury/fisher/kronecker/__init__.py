"""Kronecker products of two factors, and their restriction to the kept weights."""

from woodbury.fisher.kronecker.all_rows import AllRowsAtOnce as AllRowsAtOnce
from woodbury.fisher.kronecker.by_rows import KroneckerRows as KroneckerRows
from woodbury.fisher.kronecker.elements import Elements as Elements
from woodbury.fisher.kronecker.elements import exact as exact
from woodbury.fisher.kronecker.elements import upper_bound as upper_bound
from woodbury.fisher.kronecker.operator import Kronecker as Kronecker
from woodbury.fisher.kronecker.operator import pi_corrected as pi_corrected
from woodbury.fisher.kronecker.restricted import Restricted as Restricted
