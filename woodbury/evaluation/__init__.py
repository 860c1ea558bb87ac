"""Measuring: methods side by side, accuracy, seconds and memory."""

from woodbury.evaluation.comparison import Method as Method
from woodbury.evaluation.comparison import compare as compare
