"""MFAC: the optimizer of M-FAC, which multiplies the gradient by the inverse of a moving Fisher."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import (
    WoodburyError,
    WrongType,
    check_whole_number,
    reason,
    user_code,
)
from woodbury.linalg.collectives import check_group
from woodbury.linalg.conversion import as_tensor
from woodbury.memory.budget import available_bytes, bytes_in_words, parse_bytes
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.parameters import Keep, masks_of
from woodbury.optim.footprint import Room
from woodbury.optim.layout import Layout
from woodbury.optim.param_groups import check_param_group, check_saved_groups, moving_indices
from woodbury.optim.partitions import Partition, whole
from woodbury.optim.update import coupled_decay, stays_finite, update_parameters
from woodbury.optim.windows import Windows, smallest

ROW_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class MFAC(torch.optim.Optimizer):
    """M-FAC: w ← w − lr·F⁻¹g, with F the damped empirical Fisher of the last gradients (eq. 8, 13).

    F = damping·I + (1/m) Σ gᵢgᵢᵀ over the last m gradients, at most `window`; before the window is
    full, m is the number seen. A step takes O(dm) time and memory: two reads of the window. This is
    the dynamic algorithm of M-FAC (Frantar, Kurtic & Alistarh, NeurIPS 2021). With a large damping
    a step is that of SGD with the learning rate lr/damping.

    The memory is known from the start. Without a `window` the largest is taken that `memory` holds,
    at most 512 gradients; `optimizer.window` and the optimizer's text say which. A `window` that
    has no room is refused at once. All of it is taken at the first step, so that training cannot
    run out of it hours later.

    A gradient that is not finite, or whose square overflows float32, skips the whole step. A step
    that would make a weight infinite is not taken, and the first one is said on stderr. A
    parameter without a gradient does not move, and the window takes zeros for it.

    `lr`, `damping`, `momentum`, `weight_decay`, `decoupled` and `maximize` may differ between
    parameter groups; groups that share a window need the same damping.

    Args:
        params: Parameters, parameter groups, or `model.named_parameters()`.
        lr: Learning rate.
        window: The most gradients that F is made of. It takes window × d numbers of memory, and a
            step reads them twice. None for what fits into `memory`, at most 512.
        damping: Added to F's diagonal. A step is at most lr·‖g‖/damping long.
        momentum: As in SGD, of the steps F⁻¹g; in [0, 1).
        weight_decay: If decoupled, w ← w − lr·weight_decay·w beside the step. Else the step is
            F⁻¹(g + weight_decay·w), with F made of g alone.
        decoupled: Which of the two; True as in AdamW, so that the decay does not depend on F.
        maximize: Whether to maximize the loss.
        partition: Which weights share a window: `whole`, `per_group`, `per_parameter`,
            `blocks(size)`, or a function like them. F is block diagonal, one block for each window.
        dtype: Of the window's rows: float32, bfloat16 or float64. By default float32, and float64
            if a parameter is float64.
        device: Where the window lives; by default with the parameters, which then must share a
            device.
        keep: Which weights move, as a ParameterSpace, or as bool masks by parameter or name. The
            others are never touched and take no memory in the window. By default all move.
        group: A torch.distributed process group, whose ranks share the window: each holds some of
            its columns. Gradients must be equal on all ranks (as under DistributedDataParallel), or
            the parameters sharded DTensors (as under FSDP2). None for one process alone.
        memory: What this process may hold for windows, momentum and steps on the windows' device,
            in bytes or as "6GiB"; None for 60 % of what is available there. Ranks that share the
            windows take the smallest window that any of them has room for.

    Attributes:
        skipped: How many steps were skipped.
        slope: gᵀF⁻¹g of the last step.

    Raises:
        WrongType: If `window` is no whole number.
        WoodburyError: If an argument is out of range, a mask fits no parameter, the parameters are
            on several devices and `device` is None, or the memory does not hold the window; the
            sentence says what it does hold.

    Example:
        >>> import torch
        >>> import woodbury
        >>> generator = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 3)
        >>> inputs = torch.randn(64, 4)
        >>> labels = inputs[:, :3].argmax(1)
        >>> optimizer = woodbury.MFAC(
        ...     model.parameters(), lr=0.01, window=32, damping=1e-3, momentum=0.9
        ... )
        >>> for _ in range(50):
        ...     loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> loss.item() < 0.3  # from 1.09
        True
    """

    @checks_types
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        window: int | None = None,
        damping: float = 1e-5,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        maximize: bool = False,
        partition: Partition = whole,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        keep: Keep | None = None,
        group: dist.ProcessGroup | None = None,
        memory: int | str | None = None,
    ) -> None:
        # Before torch's own: that calls `add_param_group`, which needs them.
        self._settings = _Settings(
            window=window,
            partition=partition,
            dtype=dtype,
            device=_device_of(device),
            masks=masks_of(keep),
            process_group=group,
            memory=memory,
        )
        self._window: int | None = None
        self._chosen_on: torch.device | None = None
        self._indices: dict[Tensor, Tensor] = {}
        self._windows: Windows | None = None
        self.skipped = 0
        self._calls = 0  # of step, on each rank alike
        self._has_said = False  # that a step was not taken
        self._most_rows = 0  # bytes, of the steps by rows so far
        defaults = {
            "lr": lr,
            "damping": damping,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "maximize": maximize,
        }
        with _refusals_of_torch():
            super().__init__(params, defaults)
        if isinstance(keep, Mapping):  # a space may have tensors that this optimizer has not
            self._check_keys(keep)
        self._choose_window()

    @property
    def window(self) -> int | None:
        """The most gradients that F is made of; None while the parameters have no memory (meta)."""
        return self._window

    def __repr__(self) -> str:
        """The window, what it takes, and torch's text of the parameter groups."""
        if self._window is None:
            return super().__repr__()
        room = self._room()
        line = (
            f"window: {self._window} gradients of {room.d:,} weights, "
            f"{bytes_in_words(room.need.of(self._window))}"
        )
        return super().__repr__().replace("(", f"(\n{line}", 1)

    @checks_types
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, also between steps.

        A window that it shares with older weights takes zeros for the gradients seen before.

        Args:
            param_group: `params`, and options for which the defaults do not hold, as in torch.

        Raises:
            WoodburyError: If an option is out of range, a mask does not fit, the partition cuts the
                old weights in another way, or ranks share the window and a step was made.
        """
        with _refusals_of_torch():
            super().add_param_group(param_group)
        added = self.param_groups[-1]
        try:
            check_param_group(added)
            self._window_device()
            self._indices |= moving_indices(self._settings.masks, added)
            if self._windows is not None:
                layout = self._layout()
                spans = self._window_spans(layout)
                self._room().check_growth(self._windows.capacity, self._windows.spans)
                self._windows.extend(spans, layout.dampings(spans))
            elif self._window is not None:  # else torch's own __init__ is adding the first groups
                self._choose_window()
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
        """Make one step, from the parameters' gradients or from rows of a Jacobian.

        With rows Jᵢ and residuals rᵢ the loss is ½·mean(rᵢ²), its gradient g = mean(rᵢJᵢ), and all
        rows enter the window: F is the damped Gauss–Newton matrix (eq. 40).

        Args:
            closure: Computes loss and gradients, as in torch.
            rows: (k, *shape) for each parameter in turn, as `torch.func.vmap` gives them; at most
                `window` rows. They stand for the parameters' gradients, which are not looked at.
            residuals: (k,).

        Returns:
            What the closure returned; None without a closure.

        Raises:
            WoodburyError: If only one of rows and residuals is given, a shape does not fit, a
                gradient is sparse or complex, groups that share a window differ in damping, or a
                rank is at another step.
        """
        loss = None
        self._calls += 1
        if closure is not None:
            if not callable(closure):
                raise WrongType(f"closure is a {type(closure).__name__}: give a function, or None.")
            with torch.enable_grad(), user_code("The closure of the step fails."):
                loss = closure()
        if (rows is None) != (residuals is None):
            raise WoodburyError("step got only one of rows and residuals: give both, or neither.")
        layout = self._layout()
        moving = [
            part for part in layout.slices if rows is not None or part.parameter.grad is not None
        ]
        if not moving:
            return loss
        if self._windows is None:  # only now, as models move between devices before training
            self._windows = self._open(layout)
        windows = self._windows
        if rows is None or residuals is None:
            gradients = layout.gradient(windows.like)
        else:
            residuals = as_tensor(residuals, "residuals").to(windows.like.device)
            self._check_room_for(residuals.numel() * layout.d * windows.like.itemsize, windows)
            gradients = layout.matrix(rows, residuals, windows.like)
        dampings = layout.dampings(windows.spans)
        measured = windows.measure(gradients, self._calls)
        if measured is None or not (residuals is None or bool(torch.isfinite(residuals).all())):
            self.skipped += 1
            return loss
        decay = coupled_decay(moving, self.param_groups, gradients)
        finite = decay is None or bool(torch.isfinite(decay).all())
        step = windows.solve(gradients, measured, dampings, decay if finite else None, residuals)
        finite = finite and stays_finite(moving, self.param_groups, self.state, step)
        if windows.on_all_ranks(finite):
            update_parameters(moving, self.param_groups, self.state, step)
        else:
            self._not_taken()
        return loss

    def _not_taken(self) -> None:
        """Count a step that would make a weight infinite; the first of them is said."""
        self.skipped += 1
        if not self._has_said:
            sys.stderr.write(
                f"MFAC's step {self._calls} would make weights that are not finite and was not "
                "taken: lower lr or weight_decay, or raise damping. Further ones are only counted, "
                "in optimizer.skipped.\n"
            )
        self._has_said = True

    @property
    def slope(self) -> float:
        """The decrease gᵀF⁻¹g of the loss, to first order, along the last F⁻¹g (eq. 41)."""
        return 0.0 if self._windows is None else self._windows.slope

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on bit for bit, in a form that `weights_only` can load.

        Returns:
            torch's state and, under `windows`, that of the windows. The tensors are references, as
            in torch: save or copy them before the next step.
        """
        layout = self._layout()
        windows = {
            "capacity": self._window,
            "shapes": layout.shapes,
            "masks": layout.mask_checksums,
            "skipped": self.skipped,
            "spans": None,  # before the first step there is no window
        }
        if self._windows is not None:
            windows |= self._windows.state()
        return super().state_dict() | {"windows": windows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state_dict: What `state_dict` gave, of an optimizer with the same parameters, masks,
                window and partition. An optimizer without a window of its own takes the saved one.

        Raises:
            WoodburyError: If it does not fit; then nothing has changed.
        """
        check_saved_groups(state_dict, self.param_groups)
        saved = state_dict["windows"]
        layout = self._layout()
        self._check_saved(saved, layout)
        windows = None
        window = self._window
        try:
            if saved["spans"] is not None:
                windows = self._windows
                if windows is None or windows.capacity != saved["capacity"]:
                    windows = self._open(layout, saved["capacity"])
            if windows is not None:
                windows.check_state(saved)
        except Exception:
            self._window = window
            raise
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        if windows is not None:
            windows.load_state(saved)
        self._windows = windows
        self.skipped = saved["skipped"]

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles carry: torch's optimizer names its own attributes only."""
        return super().__getstate__() | {
            "_settings": self._settings,
            "_indices": self._indices,
            "_window": self._window,
            "_chosen_on": self._chosen_on,
            "_windows": self._windows,
            "skipped": self.skipped,
            "_calls": self._calls,
            "_has_said": self._has_said,
            "_most_rows": self._most_rows,
        }

    def _layout(self) -> Layout:
        return Layout.of(self.param_groups, self._indices)

    def _window_spans(self, layout: Layout) -> list[slice]:
        spans = layout.window_spans(self._settings.partition)
        # Ranks have to agree on the number of windows, empty ones included.
        if self._settings.process_group is None:
            spans = [span for span in spans if span.stop > span.start]
        if not spans:
            raise WoodburyError("No weight moves: keep is False everywhere; keep at least one.")
        return spans

    def _room(self) -> Room:
        """What the windows need where the parameters are now, against what they may hold."""
        layout = self._layout()
        return Room.of(
            layout,
            self._window_spans(layout) if layout.d else [slice(0, 0)],
            dtype=self._dtype(layout),
            device=self._window_device(),
            process_group=self._settings.process_group,
            memory=self._settings.memory,
        )

    def _choose_window(self) -> None:
        """Choose the window for where the parameters are now, or refuse the one asked for."""
        room = self._room()
        self._window = room.window(self._settings.window)
        self._chosen_on = room.device

    def _check_room_for(self, size: int, windows: Windows) -> None:
        """Raise unless a step by rows has room for its one copy of them; asked as they grow."""
        if size <= self._most_rows:
            return
        if size > available_bytes(windows.like.device):
            raise WoodburyError(
                f"A step copies its rows, {bytes_in_words(size)}, which have no room: "
                "give fewer rows at once."
            )
        self._most_rows = size

    def _dtype(self, layout: Layout) -> torch.dtype:
        double = any(part.parameter.dtype == torch.float64 for part in layout.slices)
        return self._settings.dtype or (torch.float64 if double else torch.float32)

    def _open(self, layout: Layout, window: int | None = None) -> Windows:
        """The windows, empty, and all of their memory; of what fits if no window is given."""
        settings = self._settings
        spans = self._window_spans(layout)
        room = self._room()
        if window is not None:
            window = room.window(window)
        else:
            window = self._window if room.device == self._chosen_on else None
            if window is None or not room.is_there(window):
                window = room.window(settings.window)
            if settings.window is None and settings.process_group is not None:
                window = smallest(window, room.device, settings.process_group)
        assert window is not None  # with parameters on the meta device there are no gradients
        with if_memory_runs_out(f"give MFAC a window smaller than {window}"):
            windows = Windows(
                spans,
                layout.dampings(spans),
                capacity=window,
                dtype=self._dtype(layout),
                device=room.device,
                process_group=settings.process_group,
                sharded=layout.is_sharded(settings.process_group),
            )
        self._window = window
        return windows

    def _window_device(self) -> torch.device:
        devices = {parameter.device for group in self.param_groups for parameter in group["params"]}
        if self._settings.device is None and len(devices) > 1:
            names = ", ".join(sorted(map(str, devices)))
            raise WoodburyError(
                f"The parameters live on {names}: say with device=… where the window is to live."
            )
        return self._settings.device or devices.pop()

    def _check_keys(self, masks: Mapping[Any, Tensor]) -> None:
        """Raise if a mask belongs to no parameter."""
        names = {name for group in self.param_groups for name in group.get("param_names", ())}
        for key in masks:
            if key in self._indices or (isinstance(key, str) and key in names):
                continue
            described = key if isinstance(key, str) else f"a tensor of shape {tuple(key.shape)}"
            raise WoodburyError(
                f"keep has a mask for {described}, which is no parameter of this optimizer."
            )

    def _check_saved(self, saved: Mapping[str, Any], layout: Layout) -> None:
        """Raise if a saved state is of other parameters, masks or another window."""
        if saved["shapes"] != layout.shapes:
            raise WoodburyError(
                f"The saved state is of {_described(saved['shapes'])}, "
                f"this optimizer has {_described(layout.shapes)}: "
                "it belongs to another model or to other groups."
            )
        if saved["masks"] != layout.mask_checksums:
            raise WoodburyError(
                "The saved state keeps other weights than this optimizer: give the same keep masks."
            )
        if self._settings.window is not None and saved["capacity"] != self._settings.window:
            raise WoodburyError(
                f"The saved window holds {saved['capacity']} gradients, "
                f"this one {self._settings.window}: make them equal."
            )


@dataclass(frozen=True, eq=False)
class _Settings:
    """What an MFAC is made with, beside the options of its parameter groups."""

    window: int | None
    partition: Partition
    dtype: torch.dtype | None
    device: torch.device | None
    masks: Mapping[Any, Tensor]
    process_group: dist.ProcessGroup | None
    memory: int | str | None

    def __post_init__(self) -> None:
        if self.window is not None:
            check_whole_number(self.window, "window", "the number of gradients to remember")
        if self.memory is not None:
            parse_bytes(self.memory)
        check_group(self.process_group)
        if self.dtype not in (None, *ROW_DTYPES):
            raise WoodburyError(f"dtype is {self.dtype}: rows can be float32, bfloat16 or float64.")


@contextmanager
def _refusals_of_torch() -> Iterator[None]:
    """A context in which what torch says of parameters that are none becomes our sentence."""
    try:
        yield
    except WoodburyError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        kind = WrongType if isinstance(error, TypeError) else WoodburyError
        raise kind(f"params cannot be optimized: {reason(error)}.") from error


def _device_of(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return None
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise WrongType(f"device is {device!r}: give a torch.device, or its name.") from error
    if where.type == "meta":
        raise WoodburyError("device is meta, where rows have no values: give another, or none.")
    return where


def _described(shapes: list[list[list[int]]]) -> str:
    flat = [shape for group in shapes for shape in group]
    weights = sum(math.prod(shape) for shape in flat)
    return f"{weights} weights in {len(flat)} parameters of the shapes {str(shapes)[:60]}"
