"""A Trainer with a PruningCallback, for a launcher that starts it in several processes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from test_trainer_of_transformers import Made


def main() -> None:
    """Train, prune, and save what this rank has."""
    folder = Path(sys.argv[1])
    made = Made(folder / "run", max_steps=6, save_strategy="no", pruner=None, samples=24).run()
    found = {
        "weights": {name: tensor.clone() for name, tensor in made.weights.items()},
        "keep": made.gradual.space.keep,
        "sparsity": made.gradual.sparsity,
        "steps": len(made.gradual.history),
        "size": torch.distributed.get_world_size(),
    }
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main()
