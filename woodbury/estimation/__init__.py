"""From a model to its curvature: gradient and GGN rows, K-FAC factors, and recipes of these."""

from woodbury.estimation.hessian_products import hessian_products as hessian_products
from woodbury.estimation.labels import observed as observed
from woodbury.estimation.labels import sampled as sampled
from woodbury.estimation.recipes import diagonal_fisher as diagonal_fisher
from woodbury.estimation.recipes import gauss_newton as gauss_newton
from woodbury.estimation.recipes import hessian_diagonal as hessian_diagonal
from woodbury.estimation.recipes import kfac as kfac
from woodbury.estimation.recipes import mfac as mfac
from woodbury.estimation.recipes import woodfisher as woodfisher
from woodbury.estimation.row_recipes import kfac_by_rows as kfac_by_rows
