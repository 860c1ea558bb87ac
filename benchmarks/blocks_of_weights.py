"""One WoodFisher step in blocks of weights: python benchmarks/blocks_of_weights.py resnet50

The process is limited to the budget and runs in two threads. Backward passes alone, of the same
engine and one sample at a time, are measured in the same process, before the step and after it.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch
from networks import images, resnet18, resnet50
from rows_on_disk import THREADS, normalised

import woodbury
from woodbury.estimation.gradients import gradient_chunks
from woodbury.evaluation.resources import measured
from woodbury.memory import parse_bytes

PROBED = 12
NETWORKS = {"resnet18": resnet18, "resnet50": resnet50}


def main() -> None:
    """Take one step, and print its seconds, peak and ratio as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--block", type=int, default=50)
    parser.add_argument("--budget", default="6GiB")
    asked = parser.parse_args()
    limit = parse_bytes(asked.budget)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    batches = images(asked.rows)
    model = normalised(NETWORKS[asked.network](), batches[0][0])
    labels = woodbury.estimation.sampled
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    objective = woodbury.Objective.from_model(model, batches, space=space)

    def backward(count: int) -> float:
        begun = time.perf_counter()
        for _ in gradient_chunks(objective, count, labels=labels):
            pass
        return (time.perf_counter() - begun) * asked.rows / count

    backward(2)
    before = backward(PROBED)
    recipe = woodbury.woodfisher(asked.rows, asked.block, 1e-3, labels=labels, memory=asked.budget)
    begun = time.process_time()
    _, used = measured(lambda: woodbury.Pruner(recipe)(objective, 0.5))
    processor = time.process_time() - begun
    passes = min(before, backward(PROBED))
    print(
        json.dumps(
            {
                "network": asked.network,
                "weights": space.n,
                "rows": asked.rows,
                "block": asked.block,
                "budget": asked.budget,
                "seconds": round(used.seconds, 1),
                "processor_seconds": round(processor, 1),
                "peak_megabytes": round(used.memory),
                "backward_seconds": round(passes, 1),
                "ratio": round(used.seconds / passes, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
