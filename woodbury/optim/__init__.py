"""Optimizers: M-FAC, and any Fisher as a preconditioner of any other optimizer."""

from woodbury.optim.levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from woodbury.optim.nonlinear_least_squares import LeastSquares as LeastSquares
from woodbury.optim.nonlinear_least_squares import LeastSquaresResult as LeastSquaresResult
from woodbury.optim.nonlinear_least_squares import least_squares as least_squares
from woodbury.optim.optimizer import MFAC as MFAC
from woodbury.optim.partitions import Partition as Partition
from woodbury.optim.partitions import blocks as blocks
from woodbury.optim.partitions import per_group as per_group
from woodbury.optim.partitions import per_parameter as per_parameter
from woodbury.optim.partitions import whole as whole
from woodbury.optim.preconditioner import Preconditioner as Preconditioner
