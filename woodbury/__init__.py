"""woodbury: second-order information about neural networks, to prune them, to train them, to understand them."""

from woodbury.batchnorm import recalibrate as recalibrate
from woodbury.errors import WoodburyError as WoodburyError
from woodbury.export import load_sparse as load_sparse
from woodbury.export import save_sparse as save_sparse
from woodbury.fisher.blocks import BlockDiagonal as BlockDiagonal
from woodbury.fisher.blocks import dense_blocks as dense_blocks
from woodbury.fisher.estimate import diagonal as diagonal
from woodbury.fisher.estimate import gauss_newton as gauss_newton
from woodbury.fisher.estimate import kfac as kfac
from woodbury.fisher.estimate import mfac as mfac
from woodbury.fisher.estimate import woodfisher as woodfisher
from woodbury.fisher.explicit import Dense as Dense
from woodbury.fisher.explicit import Diagonal as Diagonal
from woodbury.fisher.kronecker import Kronecker as Kronecker
from woodbury.fisher.kronecker import pi_corrected as pi_corrected
from woodbury.fisher.lowrank import LowRank as LowRank
from woodbury.fisher.operator import Fisher as Fisher
from woodbury.fisher.window import Window as Window
from woodbury.gradients import observed as observed
from woodbury.gradients import sampled as sampled
from woodbury.objective import Likelihood as Likelihood
from woodbury.objective import Objective as Objective
from woodbury.objective import cross_entropy as cross_entropy
from woodbury.objective import squared_error as squared_error
from woodbury.optim import MFAC as MFAC
from woodbury.pruning.pruner import Pruned as Pruned
from woodbury.pruning.pruner import Pruner as Pruner
from woodbury.pruning.pruner import in_rounds as in_rounds
from woodbury.pruning.pruner import prune as prune
from woodbury.pruning.saliency import magnitude as magnitude
from woodbury.pruning.saliency import obd as obd
from woodbury.pruning.saliency import obs as obs
from woodbury.pruning.saliency import woodtaylor as woodtaylor
from woodbury.pruning.select import everything as everything
from woodbury.pruning.select import layers as layers
from woodbury.pruning.units import single as single
from woodbury.pruning.update import independent as independent
from woodbury.pruning.update import joint as joint
from woodbury.pruning.update import zero as zero
from woodbury.space import ParameterSpace as ParameterSpace

__version__ = "0.1.0"
