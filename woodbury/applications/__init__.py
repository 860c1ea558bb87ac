"""What products with an inverse Hessian are used for besides pruning and training."""

from woodbury.applications.consolidation import Consolidation as Consolidation
from woodbury.applications.data_influence import Influence as Influence
from woodbury.applications.data_influence import influence as influence
from woodbury.applications.halves import complementary_halves as complementary_halves
from woodbury.applications.laplace import Laplace as Laplace
from woodbury.applications.laplace import Predicted as Predicted
from woodbury.applications.retraining import Counterfactual as Counterfactual
from woodbury.applications.retraining import counterfactual as counterfactual
from woodbury.applications.ridge_choice import RidgeSearch as RidgeSearch
from woodbury.applications.unseen import unseen_losses as unseen_losses
