"""Nonlinear least squares: a network is trained on residuals by Levenberg–Marquardt steps."""

from woodbury.optim.nonlinear_least_squares.fitting import least_squares as least_squares
from woodbury.optim.nonlinear_least_squares.outcome import LeastSquaresResult as LeastSquaresResult
from woodbury.optim.nonlinear_least_squares.outcome import Step as Step
from woodbury.optim.nonlinear_least_squares.solver import LeastSquares as LeastSquares
