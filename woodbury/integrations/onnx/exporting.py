"""`export_onnx`: a network as an ONNX file, with its zeros left out, seen to compute the same."""

from __future__ import annotations

import importlib.util
import inspect
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.argument_types import checks_types
from woodbury.errors import (
    MissingDependency,
    WoodburyError,
    reason,
    reason_with_line,
    user_code,
)
from woodbury.integrations.onnx.example_batches import ExampleBatches, OutputTensors
from woodbury.integrations.onnx.zeros import leave_zeros_out
from woodbury.io.file_sizes import FileSize
from woodbury.io.folders import write_atomically
from woodbury.model.attributes import copy_of
from woodbury.model.random_numbers import random_kept
from woodbury.model.torch_masks import apply_masks
from woodbury.model.wrappers import checked_model
from woodbury.monitor import report

WORK = "ONNX export"
"""What it is called while it runs."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MOST_BYTES = 2**31 - 2**20
"""Of one protocol buffer, with room for all that is no weight."""
NO_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")


@dataclass(frozen=True)
class OnnxFile:
    """What `export_onnx` has written.

    Attributes:
        path: The file.
        sizes: With dense weights, and, where that is smaller, as written with zeros left out.
        sparse: Tensors whose zeros are left out.
        difference: Of the outputs in onnxruntime to torch's, relative to the largest one.
        note: Why zeros are not left out although that would be smaller; empty otherwise.
    """

    path: Path
    sizes: tuple[FileSize, ...]
    sparse: int
    difference: float
    note: str = ""


@checks_types
@random_kept()
def export_onnx(
    model: nn.Module,
    example: Any,
    path: str | os.PathLike,
    *,
    any_length: bool = False,
    sparse: bool = True,
    tolerance: float = 1e-5,
) -> OnnxFile:
    """Write a network as an ONNX file that takes batches of any size.

    torch's exporter translates a copy of the network, in eval mode, with masks of
    torch.nn.utils.prune made permanent. The file then runs in onnxruntime on three sizes of batch,
    and is written only if its outputs are those of the network. A tensor with more than two thirds
    of zeros becomes a `sparse_initializer`, which is smaller in the file; onnxruntime makes it
    dense again when it loads it, so that it is not faster.

    Args:
        model: The network. It is left as it is.
        example: Inputs of a batch: a tensor, a tuple of positional, or a mapping of keyword
            arguments, with the samples along dimension 0.
        path: The file to make or to replace, such as "model.onnx".
        any_length: Whether dimension 1 may have any size too, as for the tokens of a text; else it
            has that of the example.
        sparse: Whether zeros are left out where that is smaller. Programs other than onnxruntime
            may not read such a file.
        tolerance: How much outputs may differ, relative to the largest one of the network.

    Returns:
        The sizes, and how much the outputs differ.

    Raises:
        MissingDependency: Without onnx, onnxscript and onnxruntime.
        WrongType: If the model is no torch.nn.Module, or an input no tensor.
        WoodburyError: If ONNX has no operator for a part of the network, torch cannot export it, it
            takes more than 2 GiB, the outputs differ, or the file cannot be written.

    Example:
        >>> import pytest, tempfile; _ = pytest.importorskip("onnxscript")
        >>> model = nn.Linear(64, 64)
        >>> with torch.no_grad():
        ...     _ = model.weight.mul_(torch.rand(64, 64) < 0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = export_onnx(model, torch.randn(2, 64), f"{folder}/model.onnx")
        >>> dense, without_zeros = written.sizes
        >>> written.sparse, without_zeros.plain < 0.5 * dense.plain, written.difference < 1e-5
        (1, True, True)
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(f"ONNX needs {package}: pip install 'woodbury[onnx]'.")
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        raise WoodburyError(f"torch {torch.__version__} exports no batches of any size: update it.")
    network = _copy_for_export(model)
    batches = ExampleBatches.of(example, network, any_length)
    report(WORK, 0, 3)
    dense = _exported(network, batches)
    report(WORK, 1, 3)
    dense_bytes = dense.SerializeToString()
    sizes = [FileSize.of("ONNX, dense", [dense_bytes])]
    count = leave_zeros_out(dense) if sparse else 0
    written, note, difference = dense_bytes, "", None
    if count:
        written = dense.SerializeToString()
        try:
            difference = _difference(written, network, batches, tolerance)
            sizes.append(FileSize.of("ONNX, zeros left out", [written]))
        except WoodburyError as error:
            written, count, note = dense_bytes, 0, f"Zeros are stored: {error}"
    if difference is None:
        difference = _difference(written, network, batches, tolerance)
    report(WORK, 2, 3)
    write_atomically(Path(path), lambda partial: _write(partial, written))
    report(WORK, 3, 3)
    return OnnxFile(Path(path), tuple(sizes), count, difference, note)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _copy_for_export(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, without masks."""
    model = checked_model(model)
    weights = {id(each): each.nbytes for each in (*model.parameters(), *model.buffers())}
    if sum(weights.values()) > MOST_BYTES:
        raise WoodburyError(
            "The weights take more than 2 GiB, which no single ONNX file can hold: export to "
            "safetensors, or with torch.onnx.export(…, external_data=True)."
        )
    with user_code("The model cannot be copied: export a model that deepcopy takes."):
        network = copy_of(model).cpu().eval().requires_grad_(False)
    apply_masks(network)
    return network


def _exported(network: nn.Module, batches: ExampleBatches) -> Any:
    """The network as an `onnx.ModelProto` with dense weights."""
    names = list(batches.inputs)
    wrapped = OutputTensors(network, names if batches.by_name else None)
    shapes = tuple(batches.dynamic(value) for value in batches.inputs.values())
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                wrapped,
                tuple(batches.inputs.values()),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=names,
                output_names=batches.outputs,
                verbose=False,
            )
            assert program is not None  # None is for the exporter without dynamo
            for value in list(program.model.graph.initializers.values()):
                value.name = (value.name or "").removeprefix("network.")
            return program.model_proto
    except Exception as error:
        raise _explained(error) from error


def _explained(error: BaseException) -> WoodburyError:
    """Why a network was not exported; torch's own words run to pages."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if operator := NO_OPERATOR.search(str(cause)):
        return WoodburyError(
            f"ONNX has no operator for {operator[1]}: compute that part by other ones, or export "
            "to safetensors."
        )
    return WoodburyError(
        f"torch cannot export the model to ONNX ({reason_with_line(cause)}): let its forward pass "
        "depend on the shapes of its inputs alone, or export to safetensors."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without the remarks of the exporter, which are for its authors."""
    nowhere = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _difference(
    content: bytes, network: nn.Module, batches: ExampleBatches, tolerance: float
) -> float:
    """How much the outputs in onnxruntime differ, over batches of three sizes.

    Raises:
        WoodburyError: If that is more than the tolerance, or onnxruntime does not run the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    worst = 0.0
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        taken = {each.name for each in session.get_inputs()}
        for size in (1, batches.samples, batches.samples + 1):
            inputs = batches.of_size(size, shorter=batches.any_length and size > batches.samples)
            feed = {name: each.numpy() for name, each in inputs.items() if name in taken}
            outputs = session.run(batches.outputs, feed)
            truth = batches.run(network, inputs).values()
            for ours, theirs in zip(truth, outputs, strict=True):
                worst = max(worst, _relative(ours, torch.from_numpy(theirs)))
    except WoodburyError:
        raise
    except Exception as error:  # those of onnxruntime have no common type
        raise WoodburyError(
            f"onnxruntime does not run the exported model ({reason(error)}): export to safetensors."
        ) from error
    if not worst <= tolerance:
        raise WoodburyError(
            f"The exported model's outputs differ from torch's by {worst:.1e} of the largest, more "
            f"than {tolerance:g}: take a larger tolerance if that will do."
        )
    return worst


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest finite entry of ours; NaN equals NaN."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not ours.numel():
        return 0.0
    ours, theirs = ours.double(), theirs.double()
    equal = (ours == theirs) | (ours.isnan() & theirs.isnan())
    largest = ours.abs().nan_to_num(0.0, posinf=0.0).max().clamp(min=1e-30)
    difference = (ours - theirs).abs().masked_fill(equal, 0.0).max() / largest
    return float(difference.nan_to_num(float("inf"), posinf=float("inf")))
