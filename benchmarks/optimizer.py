"""The optimizer's step against the machine, the paper's algorithm and the training step itself:

python benchmarks/optimizer.py [--quick] [--threads 2] [--device cuda]

The limit of a step is two reads of the window at the copy rate of the same run. The rival is the
dynamic algorithm of M-FAC in plain torch: one product for the new Gram row, the coefficients in a
loop over the rows, one product for the step. The training step is that of a ResNet-20 on a batch of
128 images (needs ../shared/bench beside the project).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from limits import copy_rate, seconds, table
from rich.console import Console
from torch import Tensor, nn

from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.window import Window
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.optim import per_parameter
from woodbury.optim.optimizer import MFAC

BENCH = Path(__file__).resolve().parents[2] / "shared" / "bench"
RESNET20 = 272_474
DAMPING = 1.0


def fill(window: Window) -> Tensor:
    """Let a window that has taken one gradient be full of random ones: m steps would take
    minutes."""
    window.rows.normal_()
    window.gram.copy_(LowRank(window.rows, DAMPING).gram * len(window.rows))
    window.pushed, window.float64_until_push = len(window.rows), 0
    return window.rows


def paper_step(rows: Tensor, dots: Tensor, row: int, gradient: Tensor, damping: float) -> Tensor:
    """M-FAC's dynamic algorithm: vᵢ = F⁻¹ᵢ₋₁ gᵢ as coefficients of the rows, one row after the
    other, then F⁻¹g."""
    m = len(rows)
    rows[row] = gradient
    dots[row] = dots[:, row] = rows @ gradient
    met, scale = dots / damping, torch.empty(m, device=rows.device)  # met[i, j] = vᵢᵀgⱼ for j ≥ i
    coefficients = torch.eye(m, device=rows.device) / damping
    for i in range(m):
        if i:
            weights = met[:i, i] / scale[:i]
            met[i, i:] -= weights @ met[:i, i:]
            coefficients[i, :i] = -(weights @ coefficients[:i, :i])
        scale[i] = m + met[i, i]
    spanned = (coefficients @ dots[row] / scale) @ coefficients
    return gradient / damping - spanned @ rows


def small_work(window: Window) -> float:
    """Seconds of all that is m × m in a step: the inverse's change, one refined solve, the estimate
    of the error."""
    unit = torch.zeros(len(window.rows), dtype=torch.float64, device=window.gram.device)
    unit[0] = 1
    updates = window.inverse.updates

    def work() -> None:
        window.inverse.replace(0, window.gram[0])
        window._estimates(unit, window._solve_small(unit), slice(0, 1))

    spent = seconds(work, 9)
    window.inverse.updates = updates
    return spent


def step_row(d: int, m: int, device: torch.device, rival: bool) -> list[str]:
    parameter = nn.Parameter(torch.zeros(d, device=device))
    parameter.grad = torch.ones_like(parameter)
    optimizer = MFAC([parameter], lr=1e-3, window=m, damping=DAMPING)
    optimizer.step()
    assert optimizer._windows is not None
    window, gradient = optimizer._windows.windows[0], parameter.grad
    rows = fill(window)
    sample = rows[: max(1, (1 << 28) // d)]
    rate = copy_rate(sample)
    ours = seconds(optimizer.step, 7, prepare=gradient.normal_)
    rate = max(rate, copy_rate(sample))  # the machine may have been busier before
    limit = 2 * rows.numel() * rows.element_size() / rate
    small, factor = small_work(window), seconds(lambda: damped_cholesky(window.gram, DAMPING), 3)
    cells = [
        f"{d:,}",
        str(m),
        f"{rate / 1e9:.1f}",
        *(f"{1e3 * each:.1f}" for each in (limit, ours)),
    ]
    cells += [f"{ours / limit:.2f}", f"{1e3 * small:.2f}", f"{1e3 * factor:.2f}"]
    if not rival:
        return [*cells, "", "", ""]
    gradient.normal_()
    found = window.solve_newest() if window.push(gradient) else gradient
    dots = window.gram.float()
    slow = seconds(lambda: paper_step(rows, dots, window.newest_index, gradient, DAMPING), 2)
    other = paper_step(rows, dots, window.newest_index, gradient, DAMPING)
    apart = float((found - other).norm() / found.norm())
    return [*cells, f"{1e3 * slow:.1f}", f"{slow / ours:.1f}", f"{apart:.0e}"]


def training_rows(m: int, device: torch.device) -> list[list[str]]:
    """What MFAC adds to the training step of a ResNet-20: forward, backward, step."""
    sys.path.insert(0, str(BENCH))
    bench: Any = importlib.import_module("bench_data")
    images, labels = (
        torch.randn(128, 3, 32, 32, device=device),
        torch.randint(10, (128,), device=device),
    )

    def timed(make: Callable[[nn.Module], torch.optim.Optimizer]) -> float:
        model = bench.ResNet20().to(device)
        optimizer = make(model)

        def whole_step() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        whole_step()
        if isinstance(optimizer, MFAC):
            assert optimizer._windows is not None
            for window in optimizer._windows.windows:
                fill(window)
        return seconds(whole_step, 5)

    sgd = timed(lambda model: torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9))
    forms: dict[str, dict[str, Any]] = {
        "one window": {},
        "one window, bfloat16": {"dtype": torch.bfloat16},
        "a window per parameter": {"partition": per_parameter},
    }
    found = [["SGD with momentum", f"{1e3 * sgd:.0f}", ""]]
    for name, options in forms.items():
        spent = timed(
            lambda model, options=options: MFAC(
                model.parameters(), 1e-6, window=m, damping=DAMPING, **options
            )
        )
        found.append([f"MFAC, m = {m}, {name}", f"{1e3 * spent:.0f}", f"{spent / sgd - 1:+.0%}"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small windows: half a minute")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    cases = [(RESNET20, m) for m in ((32, 128) if arguments.quick else (32, 128, 512, 1024))]
    cases += (
        [] if arguments.quick else [(5_000_000, m) for m in (32, 128, 512)]
    )  # 1024 rows would be 20 GB
    rows = [step_row(d, m, arguments.device, rival=m <= 512 and d == RESNET20) for d, m in cases]
    console = Console(width=140)
    columns = (
        "d",
        "m",
        "copy GB/s",
        "two reads ms",
        "step ms",
        "ratio",
        "m × m ms",
        "a factor instead ms",
    )
    title = f"One step, {arguments.threads} threads, {arguments.device}, float32"
    console.print(table(title, (*columns, "rival ms", "times faster", "difference"), rows))
    if BENCH.exists():
        title = "Training step of a ResNet-20, batch 128"
        found = training_rows(64 if arguments.quick else 512, arguments.device)
        console.print(table(title, ("optimizer", "step ms", "overhead"), found))


if __name__ == "__main__":
    main()
