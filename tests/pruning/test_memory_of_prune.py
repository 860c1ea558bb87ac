"""prune where the memory does not hold what is asked for: a sentence, and the model untouched."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import woodbury
from woodbury import WoodburyError
from woodbury.limits import Limits
from woodbury.memory import row_bytes
from woodbury.model.objective import Objective
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner

BATCHES = [(torch.randn(20, 8), torch.arange(20) % 3)]

MAGNITUDE = Pruner(None, woodbury.saliencies.magnitude, woodbury.updates.zero)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def untouched(model: nn.Module) -> bool:
    fresh = network().state_dict()
    return all(torch.equal(fresh[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("memory", [0, "", "much", -1, float("nan"), "1e30 GiB"])
def test_what_is_no_size_is_refused(memory: Any) -> None:
    model = network()
    with pytest.raises(WoodburyError, match="give bytes or a size such as 6GiB"):
        woodbury.prune(model, BATCHES, 0.5, memory=memory)
    assert untouched(model)


def test_a_budget_below_the_vectors_of_any_pruning_is_refused() -> None:
    model = network()
    with pytest.raises(WoodburyError, match=r"66 weights takes at least 2\.64 kB"):
        woodbury.prune(model, BATCHES, 0.5, memory="2.63kB", pruner=MAGNITUDE)
    assert untouched(model)
    woodbury.prune(model, BATCHES, 0.5, memory="2.64kB", pruner=MAGNITUDE)


def test_a_budget_holds_for_the_whole_run_and_ends_with_it() -> None:
    seen: list[int] = []

    class Recording(Pruner):
        def __call__(self, objective: Objective, sparsity: Any) -> Pruned:
            seen.append(row_bytes())
            return super().__call__(objective, sparsity)

    recording = Recording(None, woodbury.saliencies.magnitude, woodbury.updates.zero)
    before = Limits.current()
    woodbury.prune(network(), BATCHES, 0.5, pruner=recording, stages=2, memory="2MB")
    assert seen == [1_000_000, 1_000_000] and Limits.current() is before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_the_errors_of_all_allocators_become_a_sentence(error: Exception) -> None:
    def recipe(objective: Objective) -> Any:
        raise error

    model = network()
    with pytest.raises(WoodburyError, match=r"The memory ran out.* give prune a smaller memory"):
        woodbury.prune(model, BATCHES, 0.5, pruner=Pruner(recipe))
    assert untouched(model)


def test_other_errors_stay_what_they_are() -> None:
    def recipe(objective: Objective) -> Any:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        woodbury.prune(network(), BATCHES, 0.5, pruner=Pruner(recipe))


LIMITED = """
import pathlib, re, resource, torch, woodbury
torch.set_num_threads(1)
model = torch.nn.Linear(2000, 100)
batches = [(torch.randn(100, 2000), torch.arange(100) % 100)] * 2
status = pathlib.Path("/proc/self/status").read_text()
limit = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", status)[1]) + 120_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = model.weight.clone()
try:
    woodbury.prune(model, batches, 0.5, pruner=woodbury.Pruner(woodbury.mfac(200)))
except woodbury.WoodburyError as error:
    print(error)
assert torch.equal(before, model.weight)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_limit_below_what_a_pruner_needs() -> None:
    """Two hundred rows of two hundred thousand weights are 160 MB, of the 120 that there are."""
    run = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("The memory ran out"), run.stdout
