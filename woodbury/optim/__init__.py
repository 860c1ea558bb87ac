"""Optimizers: M-FAC with its moving Fisher, its damping rule, and a preconditioner for any other optimizer."""

from woodbury.optim.levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from woodbury.optim.optimizer import MFAC as MFAC
from woodbury.optim.preconditioner import Preconditioner as Preconditioner
