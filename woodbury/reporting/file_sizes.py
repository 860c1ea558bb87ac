"""The table of what weights take in one form and another."""

from __future__ import annotations

from collections.abc import Sequence

from woodbury.io.file_sizes import FileSize
from woodbury.reporting.tables import Grid


def sizes_table(sizes: Sequence[FileSize]) -> Grid:
    """Forms × bytes, plain and compressed.

    Args:
        sizes: Of each form; the first is what the others are compared with.
    """
    dense = max(1, sizes[0].plain)
    rows = tuple(
        (
            size.form,
            f"{size.plain:,}",
            f"{100 * size.plain / dense:.1f} %",
            f"{size.compressed:,}",
            f"{100 * size.compressed / dense:.1f} %",
        )
        for size in sizes
    )
    header = ("form", "bytes", "of dense", "compressed", "of dense")
    return Grid("Sizes", header, rows, note="Compressed by zlib, at its fastest level.")
