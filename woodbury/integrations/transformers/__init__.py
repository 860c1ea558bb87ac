"""Models of transformers by name, with their data, and back into a folder of theirs.

Importing this package imports neither transformers nor datasets.
"""

from woodbury.integrations.transformers.loaded import Loaded as Loaded
from woodbury.integrations.transformers.loaded import load as load
from woodbury.integrations.transformers.tasks import causal_lm as causal_lm
from woodbury.integrations.transformers.tasks import image_classification as image_classification
from woodbury.integrations.transformers.tasks import masked_lm as masked_lm
from woodbury.integrations.transformers.tasks import text_classification as text_classification
from woodbury.integrations.transformers.tasks import token_classification as token_classification
