"""Measuring: methods side by side, accuracy, seconds and memory."""

from woodbury.evaluation.comparison import compare as compare
from woodbury.evaluation.methods import ByEffort as ByEffort
from woodbury.evaluation.methods import Method as Method
