"""`woodbury speed`: what a pruned network takes on this CPU, by torch, by others, and by us."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from cyclopts import Parameter
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from woodbury.cli.console import print_plain, print_result
from woodbury.cli.inputs.sources import LIBRARIES, Source, source_of
from woodbury.cli.options import InputOptions
from woodbury.cli.output import folded, write_report
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.io.checkpoints import load_state_dict_checked
from woodbury.io.folders import output_folder
from woodbury.io.sparse_files import load_sparse
from woodbury.model.flop_count import flops
from woodbury.reporting.page import write_page
from woodbury.reporting.speed import Left, layers_table, speeds_table
from woodbury.runtime.api import accelerate, choices
from woodbury.runtime.speeds import speeds

REPORT, WEIGHTS = "report.json", "weights.safetensors"


def speed(
    where: Annotated[
        str,
        Parameter(help="A folder that `prune` wrote, or a network as for `prune`."),
    ],
    data: Annotated[
        str | None,
        Parameter(help="The inputs, as for `prune`.  [default: what the folder was pruned on]"),
    ] = None,
    /,
    *,
    batches: Annotated[str, Parameter(help="Samples of a batch, with commas between.")] = "1,16",
    threads: Annotated[int | None, Parameter(help="Threads.  [default: torch's]")] = None,
    compiled: Annotated[bool, Parameter(help="Time torch.compile too.")] = False,
    out: Annotated[
        Path | None, Parameter(help="A folder to write, new or empty.  [default: none]")
    ] = None,
) -> None:
    """Time a pruned network: dense, by onnxruntime where installed, by torch's CSR, and by us.

    Example:  `woodbury speed pruned`

    Example:  `woodbury speed net.py:trained data.npz --batches 1,16 --threads 1`
    """
    if threads is not None:
        check_whole_number(threads, "--threads", "how many threads compute")
        torch.set_num_threads(threads)
    pruned = _pruned(where, data)
    sizes = _sizes(batches)
    model, test = pruned.source.model(), pruned.source.inputs()
    if pruned.weights is not None:
        load_state_dict_checked(model, load_sparse(pruned.weights), pruned.weights)
    timed, used = {}, []
    for size in sizes:
        inputs = _inputs(test, size)
        fast = accelerate(model, inputs)
        timed[size] = speeds(model, inputs, compiled=compiled, accelerated=fast)
        used.append(choices(fast))
    left = _left(model, _inputs(test, 1))
    grids = [speeds_table(timed, left), *map(layers_table, used, sizes)]
    settings = {"model": where, "data": pruned.data, "batches": sizes}
    settings["threads"] = torch.get_num_threads()
    if out is not None:
        with output_folder(out) as folder:
            rows = [
                {"batch": size, **asdict(each)} for size, ways in timed.items() for each in ways
            ]
            write_report(folder, "speed", settings, {"left": left, "speeds": rows})
            title = "Speed of a pruned network"
            write_page(folder / "report.html", title, str(left), grids, folded(settings))
    for grid in grids:
        print_result(grid.rich())
    print_plain(str(left))


def _sizes(text: str) -> list[int]:
    """`1,16` as [1, 16], each once."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise WoodburyError(f"--batches is {text!r}: give numbers of samples, such as 1,16.")
    return list(dict.fromkeys(map(int, words)))


class _Pruned(NamedTuple):
    """A pruned network.

    Attributes:
        source: Where it is from.
        data: Where its inputs are.
        weights: What holds its weights; None where they are its own.
    """

    source: Source
    data: str
    weights: Path | None


def _pruned(where: str, data: str | None) -> _Pruned:
    folder = Path(where).expanduser()
    if not folder.is_dir():
        if data is None:
            raise WoodburyError(
                f"{where} is no folder that prune wrote: give one, or a network and its data."
            )
        return _Pruned(source_of(where, data, InputOptions()), data, None)
    settings = _settings(folder)
    data = data or settings["data"]
    assert data is not None
    known = {each.name for each in fields(InputOptions)} - {"checkpoint", "loss"}
    options = InputOptions(**{name: settings[name] for name in known & set(settings)})
    library, _, name = settings["model"].partition(":")
    if library in LIBRARIES and library != "torchvision":  # the folder is one of the library's too
        return _Pruned(source_of(f"{library}:{folder}", data, options), data, None)
    if library == "torchvision":
        options = replace(options, checkpoint=folder / WEIGHTS)
        model = f"{library}:{name.partition(':')[0]}"
        return _Pruned(source_of(model, data, options), data, None)
    return _Pruned(source_of(settings["model"], data, options), data, folder / WEIGHTS)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / REPORT).read_text("utf-8"))["settings"]
        if {"model", "data"} <= set(settings) and (folder / WEIGHTS).is_file():
            return settings
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise WoodburyError(
        f"{folder} does not hold what prune writes, {REPORT} and {WEIGHTS}: give such a folder."
    )


def _inputs(test: Dataset, size: int) -> Tensor | Any:
    """The first inputs of a data set, over again where there are fewer."""
    count = len(test)  # type: ignore[arg-type]
    return default_collate([test[number % count][0] for number in range(size)])


def _left(model: nn.Module, inputs: Any) -> Left:
    """What is left of the matrices and kernels; a weight of zero takes no FLOPs."""
    per_weight = flops(model, inputs).per_weight
    named = {name: tensor for name, tensor in model.named_parameters() if tensor.ndim > 1}
    nonzeros = {name: int(tensor.count_nonzero()) for name, tensor in named.items()}
    return Left(
        weights=sum(nonzeros.values()),
        weights_before=sum(tensor.numel() for tensor in named.values()),
        flops=sum(per_weight[name] * count for name, count in nonzeros.items()),
        flops_before=sum(per_weight[name] * tensor.numel() for name, tensor in named.items()),
    )
