"""Sparse inference: a copy of a model that skips the zeros of its weights."""

from woodbury.runtime.api import LayerChoice as LayerChoice
from woodbury.runtime.api import accelerate as accelerate
from woodbury.runtime.api import choices as choices
from woodbury.runtime.layer_seconds import Latency as Latency
from woodbury.runtime.layer_seconds import latency as latency
