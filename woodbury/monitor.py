"""Rows of G, streamed: gradients per sample or per batch, of observed or sampled labels."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called as long work moves on."""
