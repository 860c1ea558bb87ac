"""A Trainer of several processes with a PruningCallback prunes alike on all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.torchrun import ACCELERATE, TORCHRUN, Launched

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which the Trainer needs, is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_of_a_trainer_end_with_the_same_weights(
    launcher: list[str], tmp_path: Path
) -> None:
    here = Path(__file__).parent
    words = ["trainer_on_ranks.py", str(tmp_path)]
    code, _, err = Launched(2, words, here, launcher).ended()
    assert code == 0, err[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["size"] == 2 and first["steps"] == 3
    assert first["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert torch.equal(first["keep"], second["keep"])
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name]), name
