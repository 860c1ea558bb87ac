"""Likelihoods: what a model's output says about the target, for the losses that people train by."""

from woodbury.model.likelihood.base import IGNORED as IGNORED
from woodbury.model.likelihood.base import Likelihood as Likelihood
from woodbury.model.likelihood.base import check_likelihood as check_likelihood
from woodbury.model.likelihood.of_answers import binary as binary
from woodbury.model.likelihood.of_classes import classes as classes
from woodbury.model.likelihood.of_classes import cross_entropy as cross_entropy
from woodbury.model.likelihood.of_heads import several as several
from woodbury.model.likelihood.of_values import normal as normal
from woodbury.model.likelihood.of_values import squared_error as squared_error
