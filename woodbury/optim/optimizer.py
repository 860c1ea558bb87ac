"""MFAC: a torch optimizer that divides the gradient by a moving Fisher, in two reads of its window per step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.checks import check_damping
from woodbury.model.parameters import Keep, masks_of
from woodbury.optim.layout import (
    ParameterSlice,
    Partition,
    check_group,
    check_sharding,
    digest,
    gradient_of,
    indices_of,
    rows_of,
    runs_of,
    sizes_of,
    slices_of,
    whole,
)
from woodbury.optim.windows import Windows

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


OWN = (
    "_capacity",
    "_partition",
    "_dtype",
    "_device",
    "_group",
    "_masks",
    "_indices",
    "_windows",
    "skipped",
)


class MFAC(torch.optim.Optimizer):
    """w ← w − lr·F⁻¹g with F = damping·I + (1/m) Σ gᵢgᵢᵀ over the last m = `window` gradients  (eq. 8, 13).

    The dynamic algorithm of M-FAC (Frantar et al. 2021), O(dm) time and memory; F is scaled by the gradients seen.

    params: parameters, groups, or `model.named_parameters()`. lr, damping, momentum, weight_decay, decoupled and maximize
    may differ between groups (one window: one damping). For large damping the step is that of SGD with lr/damping.
    momentum: as in SGD, of the steps. weight_decay: w ← w − lr·weight_decay·w if decoupled, else F⁻¹(g + weight_decay·w)
    with an F that sees g alone.
    partition: `whole`, `per_group`, `per_parameter`, `blocks(size)`, or a function like them; each run has its own window.
    dtype: of the window's rows, float32, bfloat16 or float64; by default float32, float64 for float64 parameters.
    device: where the window lives; by default with the parameters, and then these must share one.
    keep: a ParameterSpace, or (parameter or name) -> bool mask; what is False never moves and takes no memory.
    group: the ranks that share the window, each with its slice of the columns; gradients must be equal on them (as under
    DistributedDataParallel) or shards of DTensors (as under FSDP2).

    A gradient that is not finite, or whose square overflows float32, skips the whole step and is counted in `skipped`. A
    parameter without a gradient does not move; the window takes zeros for it. As in torch, `state_dict` holds references:
    save or copy it.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        window: int = 512,
        damping: float = 1e-5,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        maximize: bool = False,
        partition: Partition = whole,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        keep: Keep | None = None,
        group: Any = None,
    ) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise WoodburyError(
                f"window is {window}: it is the number of gradients to remember, at least 1."
            )
        if dtype not in (None, *DTYPES):
            raise WoodburyError(f"dtype is {dtype}: rows can be float32, bfloat16 or float64.")
        self._capacity, self._partition, self._group = window, partition, group
        self._dtype, self._device = dtype, None if device is None else torch.device(device)
        self._masks, self._indices = masks_of(keep), {}
        self._windows: Windows | None = None
        self.skipped = 0
        defaults = {
            "lr": lr,
            "damping": damping,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "maximize": maximize,
        }
        super().__init__(params, defaults)
        if isinstance(keep, Mapping):
            named = [name for each in self.param_groups for name in each.get("param_names", ())]
            unknown = [
                key
                for key in keep
                if key not in self._indices and (not isinstance(key, str) or key not in named)
            ]
            if unknown:
                what = (
                    unknown[0]
                    if isinstance(unknown[0], str)
                    else f"a tensor of shape {tuple(unknown[0].shape)}"
                )
                raise WoodburyError(
                    f"keep has a mask for {what}, which is no parameter of this optimizer."
                )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, also between steps: gradients seen before count as zero for them, or their window is new."""
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        try:
            check_group(added)
            self._window_device()
            self._indices |= indices_of(self._masks, added)
            if self._windows is not None:
                parts = self._pieces()
                runs = self._runs(parts)
                self._windows.extend(runs, self._dampings(runs, parts))
        except Exception:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        rows: Sequence[Tensor] | None = None,
        residuals: Tensor | None = None,
    ) -> Any:
        """One step from the parameters' gradients; with a closure, which computes loss and gradients, its loss.

        rows: (k, *shape) for each parameter in turn, as `torch.func.vmap` gives them; residuals: (k,). They stand for the
        gradients: of a loss ½·mean(residual²) the rows are the residuals' Jacobian, and the step is Gauss and Newton's  (eq. 40).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if (rows is None) != (residuals is None):
            raise WoodburyError("step got only one of rows and residuals: give both, or neither.")
        parts = self._pieces()
        moving = [piece for piece in parts if rows is not None or piece.parameter.grad is not None]
        if not moving:
            return loss
        if self._windows is None:  # only now, as models move between devices before training
            self._windows = self._open(parts)
        if rows is None or residuals is None:
            gradients = gradient_of(parts, self.param_groups, self._windows.like)
        else:
            gradients = rows_of(parts, self.param_groups, rows, residuals, self._windows.like)
        dampings = self._dampings(self._windows.runs, parts)
        measured = self._windows.measure(gradients)
        if measured is None or not (residuals is None or bool(torch.isfinite(residuals).all())):
            self.skipped += 1
            return loss
        decay = self._coupled_decay(moving, gradients)
        self._move(moving, self._windows.solve(gradients, measured, dampings, decay, residuals))
        return loss

    @property
    def slope(self) -> float:
        """gᵀF⁻¹g of the last step: how fast the loss falls along it at first, in the quadratic's eyes  (eq. 41)."""
        return (
            0.0 if self._windows is None else sum(window.slope for window in self._windows.windows)
        )

    def state_dict(self) -> dict[str, Any]:
        """torch's state and, under `windows`, all that the windows need to go on bit for bit; readable weights_only."""
        parts = self._pieces()
        return super().state_dict() | {
            "windows": {
                "capacity": self._capacity,
                "shapes": self._shapes(),
                "masks": digest(parts),
                "skipped": self.skipped,
                "runs": None,
                **({} if self._windows is None else self._windows.state()),
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state. Raises WoodburyError, and changes nothing, unless it fits model, masks and window."""
        if "windows" not in state_dict:
            raise WoodburyError(
                "This state holds no windows: it was saved by another optimizer than MFAC."
            )
        saved, parts = state_dict["windows"], self._pieces()
        if saved["shapes"] != self._shapes():
            raise WoodburyError(
                f"The saved state is of {_counted(saved['shapes'])}, this optimizer has {_counted(self._shapes())}: "
                "it belongs to another model or to other groups."
            )
        if saved["masks"] != digest(parts):
            raise WoodburyError(
                "The saved state keeps other weights than this optimizer: give the same keep masks."
            )
        if saved["capacity"] != self._capacity:
            raise WoodburyError(
                f"The saved window holds {saved['capacity']} gradients, this one {self._capacity}: make them equal."
            )
        windows = None if saved["runs"] is None else self._windows or self._open(parts)
        if windows is not None:
            windows.check_state(saved)
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        if windows is not None:
            windows.load_state(saved)
        self._windows, self.skipped = windows, saved["skipped"]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {name: getattr(self, name) for name in OWN}

    def _shapes(self) -> list[list[list[int]]]:
        return [
            [list(parameter.shape) for parameter in group["params"]] for group in self.param_groups
        ]

    def _pieces(self) -> list[ParameterSlice]:
        return slices_of(self.param_groups, self._indices)

    def _runs(self, parts: list[ParameterSlice]) -> list[slice]:
        runs = runs_of(self._partition, sizes_of(parts, len(self.param_groups)))
        if self._group is None:  # ranks have to agree on the number of windows, empty ones included
            runs = [run for run in runs if run.stop > run.start]
        if not runs:
            raise WoodburyError("No weight is left to move: keep is False everywhere.")
        return runs

    def _open(self, parts: list[ParameterSlice]) -> Windows:
        double = any(piece.parameter.dtype == torch.float64 for piece in parts)
        runs = self._runs(parts)
        return Windows(
            runs,
            self._dampings(runs, parts),
            capacity=self._capacity,
            dtype=self._dtype or (torch.float64 if double else torch.float32),
            device=self._window_device(),
            group=self._group,
            sharded=check_sharding(parts, self._group),
        )

    def _window_device(self) -> torch.device:
        found = {parameter.device for group in self.param_groups for parameter in group["params"]}
        if self._device is None and len(found) > 1:
            names = ", ".join(sorted(map(str, found)))
            raise WoodburyError(
                f"The parameters live on {names}: say with device=… where the window is to live."
            )
        return self._device or found.pop()

    def _dampings(self, runs: list[slice], parts: list[ParameterSlice]) -> list[float]:
        """The one damping of the groups in each run."""
        dampings = []
        for run in runs:
            inside = {
                p.group for p in parts if p.place.start < run.stop and p.place.stop > run.start
            } or {0}
            found = {float(self.param_groups[group]["damping"]) for group in inside}
            if len(found) > 1:
                raise WoodburyError(
                    f"Groups of damping {sorted(found)} share a window: use one, or partition=per_group."
                )
            dampings.append(check_damping(found.pop()))
        return dampings

    def _coupled_decay(self, moving: list[ParameterSlice], like: Tensor) -> Tensor | None:
        """weight_decay·w as a vector (d,), where it is coupled; None if it is nowhere."""
        decay = None
        for piece in moving:
            group = self.param_groups[piece.group]
            if group["weight_decay"] and not group["decoupled"]:
                decay = like.new_zeros(like.shape[-1]) if decay is None else decay
                decay[piece.place].copy_(piece.read(piece.parameter)).mul_(group["weight_decay"])
        return decay

    def _move(self, moving: list[ParameterSlice], step: Tensor) -> None:
        """w ← w − lr·(momentum of the step) − lr·(decoupled decay), for every parameter that moves."""
        for number, group in enumerate(self.param_groups):
            lr, shrink = float(group["lr"]), group["weight_decay"] if group["decoupled"] else 0.0
            weights, updates = [], []
            for piece in moving:
                if piece.group != number:
                    continue
                update = step[piece.place].to(piece.own.device)
                update = update.view(piece.own.shape) if piece.index is None else update
                if group["momentum"]:
                    update = self._with_momentum(piece, update, group["momentum"])
                if piece.index is not None:
                    update = piece.spread(update.add(piece.read(piece.parameter), alpha=shrink))
                elif shrink:
                    piece.own.mul_(1 - lr * shrink)
                weights.append(piece.own)
                updates.append(update)
            if weights:
                torch._foreach_add_(weights, updates, alpha=-lr)  # pyright: ignore[reportPrivateImportUsage]

    def _with_momentum(self, piece: ParameterSlice, update: Tensor, momentum: float) -> Tensor:
        state = self.state[piece.parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = update.to(piece.parameter.dtype, copy=True)
        else:
            state["momentum_buffer"].mul_(momentum).add_(update)
        return state["momentum_buffer"]


def _counted(shapes: list[list[list[int]]]) -> str:
    weights, parameters = (
        sum(math.prod(shape) for group in shapes for shape in group),
        sum(map(len, shapes)),
    )
    return f"{weights} weights in {parameters} parameters of the shapes {str(shapes)[:60]}"
