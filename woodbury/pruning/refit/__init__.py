"""Output reconstruction: the kept weights move until the network's outputs are the dense network's again."""

from woodbury.pruning.refit.least_squares import Refit as Refit
from woodbury.pruning.refit.reconstruction import Reconstruction as Reconstruction
from woodbury.pruning.refit.with_refit import WithRefit as WithRefit
