"""Pruned networks on this CPU: torch, onnxruntime where it is installed, torch's CSR, and ours:

python benchmarks/speed.py [--networks bert,resnet50] [--sparsities .9] [--batches 1] [--threads 1]

The networks have random weights, of which the smallest of each layer are zero; MobileNetV2 keeps
its depthwise convolutions and its first one dense. The ways take turns in one process, and a number
is the median of its runs. With one thread its own time is counted: other jobs on the machine take
none of it, but they do take cache and memory bandwidth.

Each cell also has what its layers took in their trials, and the rate of torch's dense product.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import networks
import torch
from limits import table
from measured import finished, keep
from rich.console import Console
from torch import Tensor, nn

from woodbury.runtime.api import LayerChoice, accelerate, choices
from woodbury.runtime.measuring import in_turns, machine
from woodbury.runtime.speeds import COMPILED, CSR, EAGER, ONNX, OURS, speeds

CELLS = Path("runs/speed.json")


class Network(NamedTuple):
    """How a network is built, its inputs, and which of its layers are pruned."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    pruned: Callable[[nn.Module], bool]


def bert() -> nn.Module:
    """BERT-base with three layers."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(num_hidden_layers=3))


def with_statistics(model: nn.Module) -> nn.Module:
    """A network whose norms are as after training: none of them is the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model


def is_matrix(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Conv2d))


def is_pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    )


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 224, 224)


NETWORKS = {
    "bert": Network(bert, lambda count: torch.randint(0, 30_000, (count, 128)), is_matrix),
    "resnet50": Network(networks.resnet50, images, is_matrix),
    "mobilenetv2": Network(networks.mobilenetv2, images, is_pointwise),
}


@torch.no_grad()
def pruned(network: Network, sparsity: float) -> nn.Module:
    """The network without the smallest weights of each layer."""
    torch.manual_seed(0)
    model = with_statistics(network.build()).eval()
    for layer in model.modules():
        if network.pruned(layer):
            weight: Any = layer.weight
            removed = weight.abs().flatten().argsort()[: round(sparsity * weight.numel())]
            weight.view(-1)[removed] = 0
    return model


def peak() -> float:
    """FLOPs per second of torch's dense product of 768 × 768 matrices."""
    a, b = torch.randn(768, 768), torch.randn(768, 768)
    return 2 * 768**3 / min(in_turns({0: lambda: a @ b}, rounds=20)[0])


def by_layer(layers: list[LayerChoice]) -> tuple[float, float]:
    """Seconds of all sparse layers in their trials, dense and sparse."""
    known = [layer.choices[-1] for layer in layers if layer.choices]
    return sum(each.dense_seconds for each in known), sum(each.sparse_seconds for each in known)


def cell(name: str, sparsity: float, batch: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """One network at one sparsity and batch."""
    network = NETWORKS[name]
    model = pruned(network, sparsity)
    inputs = network.inputs(batch)
    fast = accelerate(model, inputs)
    used = choices(fast)
    dense, sparse = by_layer(used)
    nonzeros = sum(layer.nonzeros for layer in used)
    return {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "peak": peak(),
        "nonzeros": nonzeros,
        "layers_dense": dense,
        "layers_sparse": sparse,
        "sparse_layers": sum(layer.reason is None for layer in used),
        "layers": len(used),
        "ways": {
            each.way: [each.seconds, each.difference, each.note]
            for each in speeds(model, inputs, rounds=rounds, compiled=compiled, accelerated=fast)
        },
    }


def show(cells: dict[str, Any]) -> None:
    """Print all cells: milliseconds, and ours against each other way."""
    rows = []
    for key, each in cells.items():
        ours = each["ways"][OURS][0]
        row = [key, f"{1000 * ours:.1f}"]
        for way in (EAGER, COMPILED, ONNX, CSR):
            seconds = each["ways"].get(way, [None])[0]
            row.append("–" if seconds is None else f"{1000 * seconds:.1f} ({seconds / ours:.2f}×)")
        row.append(f"{each['ways'][OURS][1]:.0e}")
        row.append(f"{each['sparse_layers']}/{each['layers']}")
        rows.append(row)
    header = (
        "cell",
        "ours, ms",
        "torch dense",
        "torch.compile",
        "onnxruntime",
        "CSR",
        "difference",
        "sparse layers",
    )
    Console(width=150).print(table("Milliseconds, and the ratio to ours", header, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="bert,resnet50,mobilenetv2")
    parser.add_argument("--sparsities", default="0.8,0.9,0.95,0.98")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--compiled", action="store_true", help="torch.compile too; it needs g++")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    cells = finished(CELLS)
    for name in asked.networks.split(","):
        for batch in map(int, asked.batches.split(",")):
            for sparsity in map(float, asked.sparsities.split(",")):
                key = f"{name} {sparsity} batch {batch} threads {asked.threads}"
                key += ", compiled" * asked.compiled
                if key not in cells:
                    cells[key] = cell(name, sparsity, batch, asked.rounds, asked.compiled)
                    keep(cells, CELLS)
                    print(key, cells[key]["ways"], flush=True)
    show(cells)


if __name__ == "__main__":
    main()
