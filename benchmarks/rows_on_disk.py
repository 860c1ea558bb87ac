"""One M-FAC step whose rows have no room in memory: python benchmarks/rows_on_disk.py resnet50

The process is limited to the budget and runs in two threads. Its two limits are measured beside
it: backward passes alone, and a file of the same disk written and read from end to end. `--compare`
also takes the step with the rows in memory, and counts the weights that the two keep differently.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from typing import Any

import torch
from networks import resnet18, resnet50
from torch import Tensor, nn

import woodbury
from woodbury.estimation.engines import vmapped
from woodbury.estimation.gradients import gradient_chunks
from woodbury.evaluation.resources import measured
from woodbury.memory import parse_bytes
from woodbury.memory.row_file import RowFile

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
FILE_BYTES = 2**33
"""Of the file that the disk is measured by: one of a gigabyte was read from a cache."""
PROBED = 16


NETWORKS = {"resnet18": resnet18, "resnet50": resnet50}


def noise(count: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Noise with random labels, in batches of 16."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(16, 3, size, size, generator=generator),
            torch.randint(1000, (16,), generator=generator),
        )
        for _ in range(count // 16)
    ]


@torch.no_grad()
def normalised(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The model with the BatchNorm statistics of some inputs, so that its activations are sound."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(inputs)
    return model.eval()


def disk_rates(folder: str) -> tuple[float, float]:
    """Bytes per second of a file written to the disk and read from it, end to end."""
    data = memoryview(bytearray(os.urandom(2**20)) * 32)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        start = time.perf_counter()
        for _ in range(FILE_BYTES // len(data)):
            file.write(data)
        os.fsync(file.fileno())
        written = time.perf_counter()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        begun = time.perf_counter()
        while file.readinto(data):  # type: ignore[attr-defined]
            pass
        return FILE_BYTES / (written - start), FILE_BYTES / (time.perf_counter() - begun)


def counted(moved: dict[str, int], seconds: dict[str, float]) -> None:
    """Count the bytes that row files read, and the seconds that writing takes."""
    read, write = RowFile._read, RowFile.write

    def counting_read(self: RowFile, start: int, buffer: Tensor) -> Tensor:
        values = read(self, start, buffer)
        moved["read"] += values.numel() * values.element_size()
        return values

    def timed_write(self: RowFile, first: int, rows: Tensor) -> None:
        begun = time.perf_counter()
        write(self, first, rows)
        seconds["write"] += time.perf_counter() - begun
        moved["written"] += rows.numel() * self.dtype.itemsize

    RowFile._read, RowFile.write = counting_read, timed_write  # type: ignore[method-assign]


def main() -> None:
    """Take one step, and print its seconds, bytes and limits as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--budget", default="4GiB")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    parser.add_argument("--bfloat16", action="store_true", help="half of the bytes")
    parser.add_argument("--compare", action="store_true", help="with the rows in memory, too")
    asked = parser.parse_args()
    if not asked.compare:
        limit = parse_bytes(asked.budget)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    batches = noise(asked.rows, asked.size)
    model = normalised(NETWORKS[asked.network](), batches[0][0])
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    objective = woodbury.Objective.from_model(model, batches, space=space)
    moved, seconds = {"read": 0, "written": 0}, {"write": 0.0}
    counted(moved, seconds)

    for _ in gradient_chunks(objective, 4, engine=vmapped):
        pass
    begun = time.perf_counter()
    for _ in gradient_chunks(objective, PROBED, engine=vmapped):
        pass
    backward = (time.perf_counter() - begun) * asked.rows / PROBED
    write_rate, read_rate = disk_rates(asked.scratch)

    def step(**where: Any) -> woodbury.Pruned:
        dtype = torch.bfloat16 if asked.bfloat16 else None
        recipe = woodbury.mfac(asked.rows, 1e-3, engine=vmapped, dtype=dtype, **where)
        return woodbury.Pruner(recipe)(objective, 0.5)

    pruned, used = measured(lambda: step(memory=asked.budget, scratch=asked.scratch))
    disk = moved["written"] / write_rate + moved["read"] / read_rate
    facts = {
        "network": asked.network,
        "weights": space.n,
        "rows": asked.rows,
        "budget": asked.budget,
        "seconds": round(used.seconds, 1),
        "peak_megabytes": round(used.memory),
        "backward_seconds": round(backward, 1),
        "disk_seconds": round(disk, 1),
        "ratio": round(used.seconds / max(disk, backward), 2),
        "written_gigabytes": round(moved["written"] / 1e9, 1),
        "read_gigabytes": round(moved["read"] / 1e9, 1),
        "write_megabytes_per_second": round(write_rate / 1e6),
        "read_megabytes_per_second": round(read_rate / 1e6),
        "seconds_in_writes": round(seconds["write"], 1),
    }
    if asked.compare:
        begun = time.perf_counter()
        other = step(memory="1TB")
        facts["seconds_in_memory"] = round(time.perf_counter() - begun, 1)
        facts["kept_differently"] = int((pruned.keep != other.keep).sum())
        apart = (pruned.weights - other.weights)[pruned.keep & other.keep]
        facts["apart"] = float(apart.norm() / other.weights.norm())
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
