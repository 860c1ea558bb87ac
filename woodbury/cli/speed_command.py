"""`woodbury speed`: what a pruned network takes on this CPU, by torch, by others, and by us."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from cyclopts import Parameter
from torch import Tensor, nn
from torch.utils.data import default_collate

from woodbury.cli.console import print_plain, print_result
from woodbury.cli.inputs.data import load_data
from woodbury.cli.inputs.model import load_model
from woodbury.cli.invocation import repeating
from woodbury.cli.output import write_report
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.io.checkpoints import load_state_dict_checked
from woodbury.io.folders import output_folder
from woodbury.io.sparse_files import load_sparse
from woodbury.model.flop_count import flops
from woodbury.reporting.speed import Left, layers_table, speed_page, speeds_table
from woodbury.runtime.api import accelerate, choices
from woodbury.runtime.speeds import speeds

REPORT, WEIGHTS = "report.json", "weights.safetensors"


def speed(
    where: Annotated[
        str,
        Parameter(
            help="A folder that `prune` wrote, or `FILE.py:FUNCTION` that returns a network."
        ),
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
    timed, used = {}, []
    for size in sizes:
        inputs = _inputs(pruned.data, size)
        fast = accelerate(pruned.model, inputs)
        timed[size] = speeds(pruned.model, inputs, compiled=compiled, accelerated=fast)
        used.append(choices(fast))
    left = _left(pruned.model, _inputs(pruned.data, 1))
    grids = [speeds_table(timed, left), *map(layers_table, used, sizes)]
    settings = {"model": where, "data": pruned.data, "batches": sizes}
    settings["threads"] = torch.get_num_threads()
    if out is not None:
        with output_folder(out) as folder:
            rows = [
                {"batch": size, **asdict(each)} for size, ways in timed.items() for each in ways
            ]
            write_report(folder, "speed", settings, {"left": left, "speeds": rows})
            page = speed_page(timed, used, left, settings, [repeating()])
            page.write(folder / "report.html")
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
    """A pruned network, and where its inputs are."""

    model: nn.Module
    data: str


def _pruned(where: str, data: str | None) -> _Pruned:
    folder = Path(where).expanduser()
    if not folder.is_dir():
        if data is None:
            raise WoodburyError(
                f"{where} is no folder that prune wrote: give one, or a network and its data."
            )
        return _Pruned(load_model(where), data)
    settings = _settings(folder)
    model = load_model(settings["model"])
    weights = load_sparse(folder / WEIGHTS)
    load_state_dict_checked(model, weights, folder / WEIGHTS)
    return _Pruned(model, data or settings["data"])


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


def _inputs(data: str, size: int) -> Tensor | Any:
    """The first inputs of the test data, over again where there are fewer."""
    test = load_data(data, labels_from=lambda inputs: torch.zeros(len(inputs))).test
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
