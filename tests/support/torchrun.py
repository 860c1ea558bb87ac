"""Commands that torchrun, or another launcher, starts in several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

SECONDS = 600
"""No test takes a tenth of it alone; many at once on few cores may."""


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node"]
ACCELERATE = ["accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
ACCELERATE += ["--dynamo_backend", "no", "--main_process_port", "0"]
ACCELERATE += ["--multi_gpu", "--num_processes"]  # on processors too: else it asks for MPI


class Launched:
    """A command in several processes of one machine, which meet at a free port.

    Args:
        count: How many processes.
        words: Of the command: a script with its arguments, or "-m" and a module.
        folder: Where it runs.
        launcher: A module with its options, to which the number of processes is added.
    """

    def __init__(
        self, count: int, words: list[str], folder: Path, launcher: list[str] | None = None
    ) -> None:
        before = [sys.executable, "-m", *(launcher or TORCHRUN), str(count)]
        paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
        paths.append(os.environ.get("PYTHONPATH", ""))
        self.process = subprocess.Popen(
            [*before, *words],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ended(self) -> tuple[int, str, str]:
        """The exit code, stdout and stderr, once all processes have ended."""
        try:
            out, err = self.process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()  # torchrun alone would leave its processes behind
            raise
        return self.process.returncode, out, err

    def ranks(self) -> list[int]:
        """The process of each rank, in their order; of Linux only."""
        found: dict[int, int] = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                words = Path(f"/proc/{child}/environ").read_text().split("\0")
                settings = dict(word.split("=", 1) for word in words if "=" in word)
                if "LOCAL_RANK" in settings:
                    found[int(settings["RANK"])] = int(child)
        return [found[rank] for rank in sorted(found)]

    def kill(self) -> None:
        """Kill all processes at once, without a chance to clean up; of Linux only."""
        for rank in self.ranks():  # each is in a session of its own
            os.kill(rank, signal.SIGKILL)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=SECONDS)
