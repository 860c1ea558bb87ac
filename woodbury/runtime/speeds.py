"""The ways to run a pruned model on this CPU, timed in turns within one process."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from woodbury.errors import WoodburyError, reason, user_code
from woodbury.model.batches import tensors_in
from woodbury.model.calling import call_model
from woodbury.model.random_numbers import random_kept
from woodbury.runtime.api import accelerate
from woodbury.runtime.measuring import in_turns

ROUNDS = 15
SECONDS = 20.0
"""About what one way may take in all."""
TOLERANCE = 1e-3
"""A way whose outputs differ more, relative to the largest output, computes something else."""

EAGER = "torch, dense"
COMPILED = "torch.compile, dense"
ONNX = "onnxruntime, dense"
CSR = "torch, CSR linear layers"
OURS = "woodbury, sparse"


@dataclass(frozen=True)
class Speed:
    """What one way takes for a batch.

    Attributes:
        way: Its name.
        seconds: The median of whole runs; None where it does not work.
        difference: Of its outputs to the dense model's, relative to their largest entry.
        note: Why it does not work.
    """

    way: str
    seconds: float | None
    difference: float = 0.0
    note: str = ""


@random_kept()
def speeds(
    model: nn.Module,
    inputs: Any,
    *,
    compiled: bool = False,
    rounds: int = ROUNDS,
    accelerated: nn.Module | None = None,
) -> list[Speed]:
    """Time a pruned model by torch, onnxruntime where it is installed, torch's CSR, and ours.

    The ways take turns, so that whatever else runs on the machine slows all of them. With one
    thread its own time is counted, else the time that passes, each after a call that is not timed.

    Args:
        model: The pruned model, float32 and on the CPU, in eval mode.
        inputs: A batch: a tensor, a tuple of positional or a mapping of keyword arguments.
        compiled: Whether to time `torch.compile` too, which takes long to compile.
        rounds: Runs of each way, fewer where they are slow.
        accelerated: What `accelerate` made of the model; None to make it here.

    Returns:
        One for each way, the dense model in eager mode first, ours last.

    Raises:
        MissingDependency: If Numba is not installed.
        WoodburyError: If the model is not on the CPU or refuses the inputs.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> model = nn.Linear(64, 64).eval()
        >>> [speed.way for speed in speeds(model, torch.randn(2, 64), rounds=1)][::3]
        ['torch, dense', 'woodbury, sparse']
    """
    ours = accelerate(model, inputs) if accelerated is None else accelerated
    with user_code("The model refuses the inputs."), torch.inference_mode():
        truth = _first(call_model(model, inputs))
    builders: dict[str, Callable[[], Callable[[], Any]]] = {EAGER: lambda: _caller(model, inputs)}
    if compiled:
        builders[COMPILED] = lambda: _caller(torch.compile(model), inputs)
    builders |= {ONNX: lambda: _by_onnxruntime(model, inputs)}
    builders |= {CSR: lambda: _caller(_with_csr(model), inputs)}
    builders |= {OURS: lambda: _caller(ours, inputs)}
    works: dict[str, Callable[[], Any]] = {}
    result: dict[str, Speed] = {}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters and of torch's sparse tensors
        for way, build in builders.items():
            try:
                work = build()
                off = _difference(_first(work()), truth)
            except Exception as error:
                if way in (EAGER, OURS):
                    raise
                result[way] = Speed(way, None, note=reason(error))
                continue
            if off > TOLERANCE:
                result[way] = Speed(way, None, off, "its outputs are other ones.")
            else:
                works[way] = work
                result[way] = Speed(way, None, off)
        for way, seconds in in_turns(works, rounds, SECONDS, settled=True).items():
            result[way] = Speed(way, median(seconds), result[way].difference)
    return list(result.values())


def _first(output: Any) -> Tensor:
    tensors = tensors_in(output)
    if not tensors:
        raise WoodburyError(f"The model returned a {type(output).__name__}: return a tensor.")
    return tensors[0]


def _difference(output: Tensor, truth: Tensor) -> float:
    if output.shape != truth.shape:
        return float("inf")
    if not truth.numel():
        return 0.0
    return float((output - truth).abs().max() / truth.abs().max().clamp(min=1e-30))


def _caller(model: Any, inputs: Any) -> Callable[[], Any]:
    if isinstance(inputs, Tensor):
        return lambda: model(inputs)
    if isinstance(inputs, Mapping):
        return lambda: model(**inputs)
    return lambda: model(*inputs)


class _FirstTensor(nn.Module):
    """A model that returns the first tensor of its output, as exporters need it."""

    def __init__(self, model: nn.Module, names: list[str] | None) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.names is None:
            return _first(self.model(*inputs))
        return _first(self.model(**dict(zip(self.names, inputs, strict=True))))


def _by_onnxruntime(model: nn.Module, inputs: Any) -> Callable[[], Any]:
    """The model in onnxruntime, with as many threads as torch has."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise WoodburyError("onnxruntime is not installed.")
    import onnxruntime  # type: ignore[import-not-found]

    names = list(inputs) if isinstance(inputs, Mapping) else None
    given = tuple(tensors_in(inputs))
    file = io.BytesIO()
    with torch.no_grad():
        wrapped = _FirstTensor(deepcopy(model), names).eval()
        plain = tuple(each.clone() for each in given)
        # The signature names paths alone; this exporter writes to files in memory too.
        target: Any = file
        torch.onnx.export(wrapped, plain, target, dynamo=False, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    keys = [each.name for each in session.get_inputs()]
    feed = {key: each.numpy() for key, each in zip(keys, given, strict=False)}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


class _CsrLinear(nn.Module):
    """A Linear with its weight in torch's compressed rows."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight.detach().to_sparse_csr()
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _with_csr(model: nn.Module) -> nn.Module:
    """A copy with the Linear layers that are mostly zero in torch's compressed rows."""
    copy = deepcopy(model)
    found = False
    for module in list(copy.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and (child.weight == 0).sum() * 2 >= child.weight.numel():
                setattr(module, name, _CsrLinear(child))
                found = True
    if not found:
        raise WoodburyError("No linear layer inside the model is mostly zero.")
    return copy
