"""MFAC as users of several processes start it: torchrun."""

from __future__ import annotations

from pathlib import Path

import torch
from support.torchrun import Launched
from torchrun_training import trained

HERE = Path(__file__).parent


def test_torchrun_trains_as_one_process(tmp_path: Path) -> None:
    code, _, err = Launched(2, [str(HERE / "torchrun_training.py"), str(tmp_path)], HERE).ended()
    assert code == 0, err[-2000:]
    alone = trained(0, 1, None)
    first, second = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(first, alone, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    assert float((trained(0, 2, None) - alone).norm()) > 1e-3  # half of every batch is not enough
