"""prune() and its parts: what removals cost, what is removed, how the rest moves, in stages."""

from woodbury.pruning.api import prune as prune
from woodbury.pruning.damping_search import DampingSearch as DampingSearch
from woodbury.pruning.layer_sequence import LayerSequence as LayerSequence
from woodbury.pruning.pruned import Pruned as Pruned
from woodbury.pruning.pruner import Pruner as Pruner
from woodbury.pruning.refit import LayerByLayer as LayerByLayer
from woodbury.pruning.refit import Reconstruction as Reconstruction
from woodbury.pruning.refit import Refit as Refit
from woodbury.pruning.refit import WithRefit as WithRefit
from woodbury.pruning.semi_structured import n_of_m as n_of_m
from woodbury.pruning.share_search import ShareSearch as ShareSearch
from woodbury.pruning.staged import inner_stages as inner_stages
from woodbury.pruning.staged import run_stages as run_stages
from woodbury.pruning.staged import stages as stages
