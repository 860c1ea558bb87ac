"""`woodbury speed`: what a pruned network takes on this CPU, by torch, by others, and by us."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from torch import nn

from woodbury.cli.console import print_plain, print_result
from woodbury.cli.inputs.pruned import first_inputs, load_network
from woodbury.cli.invocation import repeating
from woodbury.cli.output import write_report
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.io.folders import output_folder
from woodbury.model.flop_count import flops
from woodbury.reporting.speed import Left, layers_table, speed_page, speeds_table
from woodbury.runtime.api import accelerate, choices
from woodbury.runtime.speeds import speeds


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
    compiled: Annotated[
        bool, Parameter(help="Time torch.compile too.", show_default=False)
    ] = False,
    out: Annotated[
        Path | None, Parameter(help="A folder to write, new or empty.  [default: none]")
    ] = None,
) -> None:
    """Time a pruned network: by torch, onnxruntime if installed, torch's CSR, and woodbury.

    Example:  `woodbury speed pruned`

    Example:  `woodbury speed net.py:trained data.npz --batches 1,16 --threads 1`
    """
    if threads is not None:
        check_whole_number(threads, "--threads", "how many threads compute")
        torch.set_num_threads(threads)
    pruned = load_network(where, data)
    sizes = _sizes(batches)
    timed, used = {}, []
    for size in sizes:
        inputs = first_inputs(pruned, size)
        fast = accelerate(pruned.model, inputs)
        timed[size] = speeds(pruned.model, inputs, compiled=compiled, accelerated=fast)
        used.append(choices(fast))
    left = _left(pruned.model, first_inputs(pruned, 1))
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
