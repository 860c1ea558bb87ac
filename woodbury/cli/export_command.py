"""`woodbury export`: a pruned network as a file for other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from cyclopts import Parameter

from woodbury.cli.console import print_note, print_plain, print_result, progress_bars
from woodbury.cli.inputs.pruned import first_inputs, load_network, load_weights, run_folder_of
from woodbury.errors import WoodburyError
from woodbury.integrations.compaction.api import compacted
from woodbury.integrations.onnx.exporting import export_onnx
from woodbury.io.dense_files import save_safetensors, save_torch
from woodbury.io.file_sizes import FileSize, dense_and_sparse_size
from woodbury.io.folders import check_new_file
from woodbury.io.sparse_files import save_sparse
from woodbury.reporting.file_sizes import sizes_table

FormatName = Literal["onnx", "safetensors", "torch", "sparse"]
EXAMPLES = 2
"""Samples that a network is exported with."""

COMPARED = 16
"""Samples that smaller layers are compared on."""


@Parameter(name="*")
@dataclass(frozen=True)
class OnnxOptions:
    """What counts for `--to onnx` alone.

    Attributes:
        any_length: Inputs may be longer or shorter than those of the data, along dimension 1, as
            the tokens of a text.
        compact: Take channels out of the layers that no weight makes or reads: fewer FLOPs.
        store_zeros: Store zeros too, for programs other than onnxruntime.
        tolerance: How much the outputs in onnxruntime may differ, relative to the largest one.
    """

    any_length: Annotated[bool, Parameter(show_default=False)] = False
    compact: Annotated[bool, Parameter(show_default=False)] = False
    store_zeros: Annotated[bool, Parameter(show_default=False)] = False
    tolerance: float = 1e-5


def export(
    where: Annotated[
        str,
        Parameter(
            help="A folder that `prune` wrote, or `FILE.py:FUNCTION` that returns a network."
        ),
    ],
    data: Annotated[
        str | None,
        Parameter(
            help="For `--to onnx` the inputs, as for `prune`.  "
            "[default: what the folder was pruned on]"
        ),
    ] = None,
    /,
    *,
    to: Annotated[
        FormatName,
        Parameter(
            help="onnx runs in onnxruntime on batches of any size; safetensors and torch are dense "
            "state dicts; sparse is what `prune` writes."
        ),
    ],
    out: Annotated[
        Path | None,
        Parameter(
            help="The file to write.  [default: model.onnx, model.safetensors, model.pt or "
            "weights.safetensors, in the folder]"
        ),
    ] = None,
    onnx: OnnxOptions = OnnxOptions(),
) -> None:
    """Write a pruned network as a file for other programs, and say what it takes.

    Example:  `woodbury export pruned --to onnx`

    Example:  `woodbury export pruned --to onnx --compact`

    Example:  `woodbury export net.py:pruned --to safetensors --out small.safetensors`
    """
    form = FORMATS[to]
    if to != "onnx" and onnx != OnnxOptions():
        raise WoodburyError(
            "--any-length, --compact, --store-zeros and --tolerance count for --to onnx alone: "
            "leave them out."
        )
    if data is not None and to != "onnx":
        raise WoodburyError(f"--to {to} needs no data: leave {data} out.")
    path = out or (run_folder_of(where) or Path()) / form.file_name
    if path.suffix != Path(form.file_name).suffix:
        raise WoodburyError(
            f"--out is {str(path)!r}: a file of --to {to} ends in {Path(form.file_name).suffix}."
        )
    check_new_file(path)
    with progress_bars():
        written = form.write(Asked(where, data, onnx), path)
    print_result(sizes_table(written.sizes).rich())
    for note in written.notes:
        print_note(note)
    print_plain(f"Written: {path}{written.remark}")


class Asked(NamedTuple):
    """What is to be exported.

    Attributes:
        where: As the user wrote it.
        data: As the user wrote it.
        onnx: The options of ONNX.
    """

    where: str
    data: str | None
    onnx: OnnxOptions


class Written(NamedTuple):
    """What was exported.

    Attributes:
        sizes: For the table; the dense tensors first.
        remark: What else is known of the file.
        notes: What was decided for the user.
    """

    sizes: tuple[FileSize, ...]
    remark: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A format's name on the command line.

    Attributes:
        file_name: What the file is called by default.
        write: Writes it.
    """

    file_name: str
    write: Callable[[Asked, Path], Written]


def _to_onnx(asked: Asked, path: Path) -> Written:
    network = load_network(asked.where, asked.data)
    options = asked.onnx
    model, notes = network.model, []
    if options.compact:
        smaller = compacted(model, first_inputs(network, COMPARED))
        model, notes = smaller.model, [str(smaller)]
    made = export_onnx(
        model,
        first_inputs(network, EXAMPLES),
        path,
        any_length=options.any_length,
        sparse=not options.store_zeros,
        tolerance=options.tolerance,
    )
    sizes = (*dense_and_sparse_size(network.model.state_dict()), *made.sizes)
    remark = f"; its outputs differ from torch's by {made.difference:.1e} of the largest."
    return Written(sizes, remark, (*notes, *([made.note] if made.note else [])))


def _to_safetensors(asked: Asked, path: Path) -> Written:
    weights = load_weights(asked.where)
    save_safetensors(path, weights)
    return _sized(weights, path)


def _to_torch(asked: Asked, path: Path) -> Written:
    weights = load_weights(asked.where)
    save_torch(path, weights)
    return _sized(weights, path)


def _to_sparse(asked: Asked, path: Path) -> Written:
    weights = load_weights(asked.where)
    save_sparse(path, weights)
    return _sized(weights, path)


def _sized(weights: dict, path: Path) -> Written:
    return Written((*dense_and_sparse_size(weights), FileSize.of_file(path.name, path)))


FORMATS: Mapping[FormatName, Format] = {
    "onnx": Format("model.onnx", _to_onnx),
    "safetensors": Format("model.safetensors", _to_safetensors),
    "torch": Format("model.pt", _to_torch),
    "sparse": Format("weights.safetensors", _to_sparse),
}
