"""Output reconstruction: moving the kept weights until the network's outputs are the dense ones."""

from woodbury.pruning.refit.layer_by_layer import LayerByLayer as LayerByLayer
from woodbury.pruning.refit.layer_by_layer import WithLayers as WithLayers
from woodbury.pruning.refit.layer_goal import Reconstruction as Reconstruction
from woodbury.pruning.refit.output_fit import Refit as Refit
from woodbury.pruning.refit.with_refit import WithRefit as WithRefit
