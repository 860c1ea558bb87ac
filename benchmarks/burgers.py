"""Burgers' equation from −sin πx, ν = .01/π, for `residual_problems.py`: on [−1, 1] with its edge
in the loss or exact by the network's form, and on half of that.

The solution is odd in x, so that [0, 1] with u = 0 at x = 0 says all: there the front at x = 0
cannot be elsewhere. On [−1, 1] the form does not fix it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jvp

Network = Callable[[Tensor], Tensor]

VISCOSITY = 0.01 / math.pi
NODES = 120
"""Of the Gauss–Hermite quadrature in the solution by Cole and Hopf."""


def solution(x: Tensor) -> Tensor:
    """Burgers' equation from −sin πx at (x, t), by the transform of Cole and Hopf."""
    nodes, weights = (torch.as_tensor(each) for each in np.polynomial.hermite.hermgauss(NODES))
    shifted = x[:, :1] - nodes * (4 * VISCOSITY * x[:, 1:]).sqrt()
    exponent = -torch.cos(math.pi * shifted) / (2 * math.pi * VISCOSITY)
    share = weights * torch.exp(exponent - exponent.amax(1, keepdim=True))
    return -(share * torch.sin(math.pi * shifted)).sum(1) / share.sum(1)


def inside(u: Network, x: Tensor) -> Tensor:
    """∂u/∂t + u ∂u/∂x − ν ∂²u/∂x², u and ∂u/∂x being by-products of the second derivative."""
    along_x, along_t = torch.eye(2, dtype=x.dtype)

    def with_slope(y: Tensor) -> Any:
        return jvp(u, (y,), (along_x,))

    values, derivatives = jvp(with_slope, (x,), (along_x,))[:2]
    value, slope = values
    second = derivatives[1]
    return jvp(u, (x,), (along_t,))[1] + value * slope - VISCOSITY * second


def points(draw: torch.Generator) -> dict[str, Tensor]:
    """1,200 points inside x ∈ [−1, 1], t ∈ [0, 1], 80 on its sides and 120 at its beginning."""
    interior = torch.rand(1200, 2, generator=draw)
    interior[:, 0] = 2 * interior[:, 0] - 1
    sides = torch.rand(80, 2, generator=draw)
    sides[:, 0] = (torch.arange(80) % 2).to(sides.dtype) * 2 - 1
    start = torch.rand(120, 2, generator=draw)
    start[:, 0] = 2 * start[:, 0] - 1
    start[:, 1] = 0
    return {"interior": interior, "edge": torch.cat([sides, start])}


def edge(u: Network, x: Tensor) -> Tensor:
    """U + sin πx at the beginning, and u on the sides, where the sine is zero."""
    return u(x) + torch.sin(math.pi * x[0])


@cache
def grid(across: int = 101) -> Tensor:
    """A grid on [−1, 1] × [0, 1], of so many points in x."""
    return torch.cartesian_prod(torch.linspace(-1, 1, across), torch.linspace(0, 1, 41))


class FromSine(nn.Module):
    """−sin πx + t (1 − x) (x − left) n(x, t), right at the beginning and on both sides.

    Args:
        inner: n.
        left: Where x begins.
    """

    def __init__(self, inner: nn.Module, left: float = 0.0) -> None:
        super().__init__()
        self.inner = inner
        self.left = left

    def forward(self, at: Tensor) -> Tensor:
        """(n, 2) -> (n, 1)."""
        x, t = at[:, :1], at[:, 1:]
        inner = self.inner(at)
        return t * (1 - x) * (x - self.left) * inner - torch.sin(math.pi * x)


def whole(inner: nn.Module) -> FromSine:
    """That network on [−1, 1]."""
    return FromSine(inner, -1.0)


def whole_points(draw: torch.Generator) -> dict[str, Tensor]:
    """2,500 points inside [−1, 1] × [0, 1]."""
    return {"interior": whole_candidates(draw, 2500)}


def whole_candidates(draw: torch.Generator, count: int = 10000) -> Tensor:
    """10,000 points of it, of which 2,500 are drawn by their residuals."""
    found = torch.rand(count, 2, generator=draw)
    found[:, 0] = 2 * found[:, 0] - 1
    return found


def half_points(draw: torch.Generator) -> dict[str, Tensor]:
    """2,000 points inside the unit square."""
    return {"interior": torch.rand(2000, 2, generator=draw)}


def half_candidates(draw: torch.Generator) -> Tensor:
    """8,000 points of it, of which 2,000 are drawn by their residuals."""
    return torch.rand(8000, 2, generator=draw)


@cache
def half_grid() -> Tensor:
    """A grid on [0, 1]², twice as fine in x as that of the whole."""
    return torch.cartesian_prod(torch.linspace(0, 1, 101), torch.linspace(0, 1, 41))
