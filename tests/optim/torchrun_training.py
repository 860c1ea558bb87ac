"""What test_torchrun.py launches: MFAC under DistributedDataParallel on two ranks."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from woodbury.optim import MFAC

STEPS = 15
BATCH = 8


def trained(rank: int, ranks: int, group: Any) -> Tensor:
    """The weights after STEPS steps, the window of 6 replaced twice."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    optimizer = MFAC(
        model.parameters(), 0.02, window=6, damping=0.1, momentum=0.9, weight_decay=0.1, group=group
    )
    wrapped = model if group is None else nn.parallel.DistributedDataParallel(model)
    x = torch.randn(
        STEPS, BATCH, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    for batch in x.chunk(ranks, 1)[rank]:
        optimizer.zero_grad()
        (wrapped(batch) - batch.sin().sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    weights = trained(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    torch.save(weights, f"{sys.argv[1]}/{dist.get_rank()}.pt")
    dist.barrier()  # a rank that leaves first may take the other's threads down
    dist.destroy_process_group()
