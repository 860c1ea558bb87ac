"""Every public name of the top level, and where it comes from."""

from woodbury import applications as applications
from woodbury import estimation as estimation
from woodbury import fisher as fisher
from woodbury import inspection as inspection
from woodbury import pruning as pruning
from woodbury import runtime as runtime
from woodbury import training as training
from woodbury.applications.consolidation import Consolidation as Consolidation
from woodbury.applications.data_influence import Influence as Influence
from woodbury.applications.data_influence import influence as influence
from woodbury.applications.laplace import Laplace as Laplace
from woodbury.applications.retraining import counterfactual as counterfactual
from woodbury.applications.ridge_choice import RidgeSearch as RidgeSearch
from woodbury.errors import MissingDependency as MissingDependency
from woodbury.errors import RankError as RankError
from woodbury.errors import WoodburyError as WoodburyError
from woodbury.estimation.recipes import diagonal_fisher as diagonal_fisher
from woodbury.estimation.recipes import gauss_newton as gauss_newton
from woodbury.estimation.recipes import hessian_diagonal as hessian_diagonal
from woodbury.estimation.recipes import kfac as kfac
from woodbury.estimation.recipes import mfac as mfac
from woodbury.estimation.recipes import woodfisher as woodfisher
from woodbury.inspection.api import inspect as inspect
from woodbury.integrations.compaction.api import compact as compact
from woodbury.integrations.compaction.coupled_units import coupled_channels as coupled_channels
from woodbury.integrations.onnx.exporting import export_onnx as export_onnx
from woodbury.io.sparse_files import load_sparse as load_sparse
from woodbury.io.sparse_files import save_sparse as save_sparse
from woodbury.limits import Limits as Limits
from woodbury.linalg.ranks import ALONE as ALONE
from woodbury.model import likelihood as likelihoods  # noqa: F401  (a namespace)
from woodbury.model.batchnorm import recalibrate as recalibrate
from woodbury.model.likelihood import Likelihood as Likelihood
from woodbury.model.likelihood import cross_entropy as cross_entropy
from woodbury.model.likelihood import squared_error as squared_error
from woodbury.model.objective import Objective as Objective
from woodbury.model.peeking import PeekingLoader as PeekingLoader
from woodbury.model.space import ParameterSpace as ParameterSpace
from woodbury.model.torch_masks import apply_masks as apply_masks
from woodbury.monitor import progress as progress
from woodbury.optim.levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from woodbury.optim.nonlinear_least_squares.fitting import least_squares as least_squares
from woodbury.optim.nonlinear_least_squares.solver import LeastSquares as LeastSquares
from woodbury.optim.optimizer import MFAC as MFAC
from woodbury.optim.preconditioner import Preconditioner as Preconditioner
from woodbury.pruning import costs as costs
from woodbury.pruning import presets as presets
from woodbury.pruning import saliencies as saliencies
from woodbury.pruning import scopes as scopes
from woodbury.pruning import selections as selections
from woodbury.pruning import units as units
from woodbury.pruning import updates as updates
from woodbury.pruning.api import prune as prune
from woodbury.pruning.planning import plan as plan
from woodbury.pruning.pruned import Pruned as Pruned
from woodbury.pruning.pruner import Pruner as Pruner
from woodbury.pruning.refit.layer_goal import Reconstruction as Reconstruction
from woodbury.pruning.refit.output_fit import Refit as Refit
from woodbury.pruning.semi_structured import n_of_m as n_of_m
from woodbury.runtime.api import accelerate as accelerate
from woodbury.runtime.layer_seconds import latency as latency
from woodbury.training.gradual import Gradual as Gradual
from woodbury.training.masks import hold_zeros as hold_zeros

__all__: list[str]
__version__: str
