"""The solver of a refit: rows or conjugate gradients, with the outputs of layers or without."""

from __future__ import annotations

from dataclasses import replace

from woodbury.errors import WoodburyError
from woodbury.estimation.layer_equations import POSITIONS
from woodbury.estimation.output_residuals import BYTES_PER_FLOAT, supports_forward_mode
from woodbury.limits import Limits
from woodbury.memory.budget import row_bytes
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile
from woodbury.model.space import ParameterSpace
from woodbury.pruning.feasibility import kept_count
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.schedule import Targets

CG_ITERATIONS = 100
"""Conjugate gradients of a refit that is solved by them (docs/results)."""

CG_MC_SAMPLES = 10
"""GGN samples per input of such a refit, which cost it no more than one (docs/results)."""


def choose_refit(
    refit: Refit, objective: Objective, samples: int, sparsity: Targets, required: bool = False
) -> Refit | None:
    """The solver of a refit, and whether the outputs of layers take part in it.

    1. By rows: as many GGN samples per input as were asked for, fewer where the rows have no room
       in `Limits.memory`.
    2. By conjugate gradients: where they take fewer FLOPs than rows, their directions have room,
       and the model can be differentiated forward.
    3. None: where rows have no room, and conjugate gradients take more FLOPs than one row per input
       would, or are impossible. A refit that is `required` takes the slower conjugate gradients.
    4. Without the outputs of layers: where their matrices have no room, or the network's own
       outputs give `Limits.equations_per_weight` equations per kept weight.

    Args:
        refit: What was asked for; its `mc_samples` is the most that rows take.
        objective: The dense network.
        samples: Samples of its calibration set that the refit reads.
        sparsity: Of the last stage.
        required: Whether the user asked for a refit, so that there is no way around it.

    Returns:
        The refit with the solver chosen, or None.

    Raises:
        WoodburyError: If a refit is required and impossible, or a target matches no parameter.

    Example:
        >>> import torch
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> choose_refit(Refit(), dense, samples=20, sparsity=0.5).iterations is None
        True
    """
    chosen = _choose_solver(refit, objective, samples, required)
    if chosen is None or chosen.reconstruction is None:
        return chosen
    equations = chosen.mc_samples * samples
    kept = kept_count(objective.space, sparsity)
    outputs_suffice = equations >= Limits.current().equations_per_weight * kept
    if outputs_suffice or not _layers_fit_in_memory(objective.space, samples):
        return replace(chosen, reconstruction=None)
    return chosen


def _choose_solver(
    refit: Refit, objective: Objective, samples: int, required: bool
) -> Refit | None:
    """The refit by rows or by conjugate gradients: the first three rules of `choose_refit`."""
    memory = row_bytes()
    d = objective.space.d
    profile = ModelProfile.measure(objective)
    outputs = profile.output_elements
    bytes_per_row = BYTES_PER_FLOAT * max(d, outputs)
    mc_samples = min(refit.mc_samples, memory // (samples * bytes_per_row))
    # Rows: their Gram matrix, and a forward and a backward pass for each, about three forward. A
    # sketch spares most of the Gram matrix (eq. 68), but where rows have no more to say than that,
    # conjugate gradients, which see ten directions per input, are the better refit.
    m = max(mc_samples, 1) * samples
    rows_flops = m**2 * d + 3 * m * profile.forward_flops
    # Conjugate gradients: forward mode and a backward pass per iteration, about five forward.
    cg_flops = 5 * CG_ITERATIONS * samples * profile.forward_flops
    directions_fit = BYTES_PER_FLOAT * samples * CG_MC_SAMPLES * outputs <= memory
    wants_cg = cg_flops < rows_flops or (required and not mc_samples)
    if wants_cg and directions_fit and supports_forward_mode(objective):
        return replace(refit, mc_samples=CG_MC_SAMPLES, iterations=CG_ITERATIONS)
    if mc_samples:
        return replace(refit, mc_samples=mc_samples)
    if required:
        raise WoodburyError(
            f"A refit on {samples} samples of {d:,} weights and {outputs:,} outputs takes more "
            f"than {memory / 2**30:.3g} GiB by rows, and conjugate gradients are impossible here: "
            "take fewer samples, or no refit."
        )
    return None


def describe_refit(refit: Refit | None) -> str:
    """A refit in words.

    Args:
        refit: The refit, or None for no refit.

    Returns:
        Its steps, solver and samples, for a report.

    Example:
        >>> describe_refit(Refit(steps=2))
        '2 steps by rows, 4 GGN samples per input'
        >>> describe_refit(None)
        'none'
    """
    if refit is None:
        return "none"
    solver = "rows" if refit.iterations is None else f"{refit.iterations} conjugate gradients"
    layers = "" if refit.reconstruction is None else ", with the outputs of layers"
    steps = "1 step" if refit.steps == 1 else f"{refit.steps} steps"
    return f"{steps} by {solver}, {refit.mc_samples} GGN samples per input{layers}"


def _layers_fit_in_memory(space: ParameterSpace, samples: int) -> bool:
    """Whether the layers' least-squares problems and the goal's outputs have room.

    For a tensor of r rows of i inputs: r float32 factors (i, i), a float64 sum (i, i) of moments,
    and four such temporaries for one tensor at a time; r float32 outputs at each drawn position.
    """
    rows = [shape[0] for shape in space.shapes.values()]
    squares = [shape[1:].numel() ** 2 for shape in space.shapes.values()]
    lasting = sum((4 * r + 8) * square for r, square in zip(rows, squares, strict=True))
    outputs = BYTES_PER_FLOAT * samples * POSITIONS * sum(rows)
    return lasting + outputs + 32 * max(squares) <= row_bytes()
