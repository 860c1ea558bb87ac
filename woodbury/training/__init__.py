"""Pruning inside a training loop: gradual pruning, masks that hold, fine-tuning, learning rates."""

from woodbury.training.finetuning import finetune as finetune
from woodbury.training.gradual import Gradual as Gradual
from woodbury.training.learning_rate import cosine_restarts as cosine_restarts
from woodbury.training.masks import hold_zeros as hold_zeros
