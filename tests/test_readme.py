"""The README's code runs, and does what is said of it."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from support import dense
from torch import Tensor, nn
from torch.func import functional_call

import woodbury

README = Path(__file__).parents[1] / "README.md"


def test_the_hand_written_woodbury_is_ours() -> None:
    by_hand, with_woodbury = re.findall(
        r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL
    )[:2]
    generator = torch.Generator().manual_seed(0)
    given = {
        "torch": torch,
        "rows": torch.randn(20, 50, generator=generator),
        "v": torch.randn(50, generator=generator),
        "keep": torch.arange(50) % 3 > 0,
        "damping": 0.1,
    }
    first, second = dict(given), dict(given)
    exec(by_hand, first)
    exec(with_woodbury, second)
    torch.testing.assert_close(first["solution"], second["solution"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first["diagonal"], second["diagonal"], rtol=1e-4, atol=1e-4)
    kept = dense.low_rank(given["rows"], 0.1)[given["keep"]][:, given["keep"]]
    truth = torch.linalg.solve(kept, given["v"][given["keep"]].double())
    torch.testing.assert_close(second["restricted"].double(), truth, rtol=1e-4, atol=1e-4)


def test_the_least_squares_of_the_readme_are_solved() -> None:
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
        if "damping.step" in block
    ]
    torch.manual_seed(0)
    model, points = (
        nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double(),
        torch.linspace(-1, 1, 20)[:, None],
    )

    def residual(weights: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(model, weights, (point.double()[None],))[0, 0] - (3 * point[0]).sin()

    given = {
        "torch": torch,
        "woodbury": woodbury,
        "model": model,
        "points": points,
        "residual": residual,
    }
    exec(code.replace("range(500)", "range(40)"), given)
    assert float(given["residuals"].abs().max()) < 1e-2
