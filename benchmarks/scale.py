"""Seconds and peak memory of ordinary networks: python benchmarks/scale.py [resnet18 ...]

Each network runs in a process of its own, whose data segment is limited to the budget, with two
threads. The weights are random, which is enough for the cost: accuracy is measured elsewhere. The
seconds are of `woodbury.prune` as it comes; the peak is the process's, python and torch included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from networks import bert, gpt2, images, mobilenetv2, resnet18, tokens, vit
from torch import nn

import woodbury
from woodbury.evaluation.resources import measured
from woodbury.memory import parse_bytes
from woodbury.pruning.run_plan import Plan

THREADS = 2


class Row(NamedTuple):
    """One network: its samples, its budget, and the sparsity it is pruned to."""

    build: Callable[[], nn.Module]
    data: Callable[[int], Any]
    samples: int
    budget: str
    sparsity: float
    effort: woodbury.presets.Effort = woodbury.presets.standard


ROWS = {
    "resnet18": Row(resnet18, images, 256, "6GiB", 0.8),
    "mobilenetv2": Row(mobilenetv2, images, 32, "2.5GiB", 0.5, woodbury.presets.quick),
    "vit": Row(vit, images, 128, "12GiB", 0.5),
    "bert": Row(bert, tokens, 128, "12GiB", 0.5),
    "gpt2": Row(gpt2, tokens, 128, "12GiB", 0.5),
    "resnet18 in half": Row(resnet18, images, 256, "3GiB", 0.8),
    "vit in half": Row(vit, images, 128, "6GiB", 0.5),
    "bert in half": Row(bert, tokens, 128, "6GiB", 0.5),
    "gpt2 in half": Row(gpt2, tokens, 128, "6GiB", 0.5),
}


def run(name: str, plan_only: bool) -> dict[str, Any]:
    """Plan or prune one network in this process, within its budget."""
    row = ROWS[name]
    limit = parse_bytes(row.budget)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = row.build().eval()
    batches = row.data(row.samples)
    options: dict[str, Any] = {"effort": row.effort, "memory": row.budget}
    _, before = measured(lambda: None)
    if plan_only:
        plan = woodbury.plan(model, batches, row.sparsity, **options)
        return {"network": name, "budget": row.budget, **_predicted(plan, before.memory)}
    begun = time.process_time()
    pruned, resources = measured(lambda: woodbury.prune(model, batches, row.sparsity, **options))
    assert pruned.plan is not None
    return {
        "network": name,
        "weights": pruned.objective.space.n,
        "samples": row.samples,
        "budget": row.budget,
        "sparsity": pruned.sparsity,
        "seconds": round(resources.seconds, 1),
        "processor_seconds": round(time.process_time() - begun, 1),
        "peak_megabytes": round(resources.memory),
        **_predicted(pruned.plan, before.memory),
        **pruned.settings,
    }


def _predicted(plan: Plan, megabytes_before: float) -> dict[str, Any]:
    """The plan's seconds, and its peak with what the process held before."""
    return {
        "predicted_seconds": round(plan.seconds, 1),
        "predicted_peak_megabytes": round(megabytes_before + plan.peak_bytes / 2**20),
        "structure": plan.structure,
    }


def main() -> None:
    """Run the rows that are asked for, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--plan", action="store_true", help="the plan alone")
    parser.add_argument("--here", action="store_true", help="in this process, as JSON")
    asked = parser.parse_args()
    for name in asked.networks:
        if asked.here:
            print(json.dumps(run(name, asked.plan)))
            continue
        begun = time.perf_counter()
        command = [sys.executable, __file__, name, "--here", *(["--plan"] if asked.plan else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(
                f"{name}: failed after {time.perf_counter() - begun:.0f} s: {done.stderr[-2000:]}"
            )
        else:
            print(done.stdout.strip())


if __name__ == "__main__":
    main()
