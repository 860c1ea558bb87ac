"""Kronecker products of two factors, and their part on the kept weights."""

from woodbury.fisher.kronecker.operator import Kronecker as Kronecker
from woodbury.fisher.kronecker.operator import pi_corrected as pi_corrected
from woodbury.fisher.kronecker.restricted import Restricted as Restricted
from woodbury.fisher.kronecker.restricted import exact as exact
from woodbury.fisher.kronecker.restricted import upper_bound as upper_bound
