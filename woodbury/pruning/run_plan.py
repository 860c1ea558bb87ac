"""Plan: what a run of `prune` will do, and what it will take, before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from woodbury.memory.budget import bytes_in_words
from woodbury.model.left_out import HOW_TO_TAKE_IN


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        name: What is done.
        seconds: In all.
        peak_bytes: What is held at its fullest moment, besides the model and the data.
        passes: Times that the calibration set goes through the network.
    """

    name: str
    seconds: float
    peak_bytes: int
    passes: int = 0


@dataclass(frozen=True)
class Plan:
    """What a run will do and take; `str(plan)` is a table.

    Attributes:
        weights: That are pruned or kept.
        samples: Of the calibration set that are read.
        rows: Gradient rows of one estimate of the curvature; 0 where none is stored.
        structure: Of the curvature, in words.
        dtype: Of the rows.
        stages: Prunings, each on fresh curvature.
        refit: The refit after each stage, in words.
        phases: The parts of the run.
        budget_bytes: What the run may hold.
        better: What would be better with more memory; empty if nothing would.
        retained_bytes: What timing the model left with the process: the buffers of torch's kernels,
            and free memory that the allocator does not return. It is measured, so that it differs
            between runs and takes no part in the choice.
        left_out: Embeddings and heads that are not pruned, in words; empty if there are none.

    Example:
        >>> import torch, woodbury
        >>> batches = [(torch.randn(64, 8), torch.arange(64) % 2)]
        >>> plan = woodbury.plan(torch.nn.Linear(8, 2), batches, sparsity=0.5)
        >>> plan.weights, plan.structure, plan.stages
        (16, 'least squares of one layer after the other', 1)
    """

    weights: int
    samples: int
    rows: int
    structure: str
    dtype: str
    stages: int
    refit: str
    phases: tuple[Phase, ...]
    budget_bytes: int
    better: str = ""
    retained_bytes: int = 0
    left_out: str = ""

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def held_bytes(self) -> int:
        """What the run holds at its fullest moment; this has to fit the budget."""
        return max((phase.peak_bytes for phase in self.phases), default=0)

    @property
    def peak_bytes(self) -> int:
        """What the run adds to the process at its fullest moment."""
        return self.held_bytes + self.retained_bytes

    @property
    def passes(self) -> int:
        """Times that the calibration set goes through the network."""
        return sum(phase.passes for phase in self.phases)

    def facts(self) -> dict[str, Any]:
        """The plan as plain facts, for report.json.

        Returns:
            Every field and the three sums; bytes and seconds as numbers.
        """
        sums = {"seconds": self.seconds, "peak_bytes": self.peak_bytes, "passes": self.passes}
        return asdict(self) | sums

    def in_one_line(self) -> str:
        """The plan in one line: the curvature, the stages, the time and the memory."""
        stages = "1 stage" if self.stages == 1 else f"{self.stages} stages"
        line = (
            f"{self.weights:,} weights by {self.structure}, {stages}: "
            f"about {_duration(self.seconds)}, {bytes_in_words(self.peak_bytes)} of "
            f"{bytes_in_words(self.budget_bytes)}."
        )
        return f"{line} More exact {self.better}." if self.better else line

    def __str__(self) -> str:
        """The plan as a table of two columns."""
        lines = list(self._lines())
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "weights", f"{self.weights:,}"
        if self.left_out:
            yield "left out", f"{self.left_out}; {HOW_TO_TAKE_IN}"
        yield "samples", f"{self.samples:,}, {self.passes} times through the network"
        rows = f"{self.rows:,} of {self.dtype}" if self.rows else "none"
        yield "gradient rows", rows
        yield "curvature", self.structure
        yield "stages", f"{self.stages}"
        yield "refit", self.refit
        for phase in self.phases:
            yield (
                f"  {phase.name}",
                f"{_duration(phase.seconds)}, {bytes_in_words(phase.peak_bytes)}",
            )
        yield "seconds", f"about {_duration(self.seconds)}"
        yield "memory", f"{bytes_in_words(self.peak_bytes)} of {bytes_in_words(self.budget_bytes)}"
        if self.better:
            yield "with more", self.better


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min"
