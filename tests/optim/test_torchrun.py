"""MFAC as users of several processes start it: torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torchrun_training import trained

HERE = Path(__file__).parent


def test_torchrun_trains_as_one_process(tmp_path: Path) -> None:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    script = [str(HERE / "torchrun_training.py"), str(tmp_path)]
    ran = subprocess.run(
        [*launch, *script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    alone = trained(0, 1, None)
    first, second = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(first, alone, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    assert float((trained(0, 2, None) - alone).norm()) > 1e-3  # half of every batch is not enough
