"""Four small training tasks, for benchmarks/training.py: images, a pruned network, text, a
differential equation."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

BENCH = Path(__file__).resolve().parents[2] / "shared" / "bench"
Rows = tuple[list[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """A network, the loss of its step-th batch, and what it is judged by: `tuning` (small) chooses
    settings, `test` reports.

    rows: where the loss is half a mean of squares, the residuals' Jacobian, (n, *shape) per
    parameter, and the residuals. keep: what stays, by the parameters' names, where the network is
    pruned.
    """

    model: nn.Module
    loss: Callable[[int], Tensor]
    tuning: Callable[[], float]
    test: Callable[[], float]
    rows: Callable[[int], Rows] | None = None
    keep: dict[str, Tensor] = field(default_factory=dict)


def images(seed: int) -> Task:
    """A ResNet-20 of half the usual width on 5,000 images of CIFAR-10, judged by its accuracy in
    %."""
    torch.manual_seed(seed)
    return _on_images(_narrow_resnet(), seed)


def pruned(seed: int, sparsity: float = 0.9) -> Task:
    """A trained ResNet-20 without the smallest tenths of its kernels, which are to stay away;
    accuracy in %."""
    model = _bench().resnet20().train()
    kernels = {name: p.detach() for name, p in model.named_parameters() if p.ndim == 4}
    every = torch.cat([kernel.abs().flatten() for kernel in kernels.values()])
    least = every.kthvalue(round(sparsity * len(every))).values
    keep = {name: kernel.abs() > least for name, kernel in kernels.items()}
    for name, kernel in kernels.items():
        kernel.mul_(keep[name])
    return _on_images(model, seed, keep)


def text(seed: int, batch: int = 16, length: int = 64) -> Task:
    """A GPT of two layers, 64 wide, on the characters of Python's language reference; nats per
    character."""
    codes, (train, held_out, test) = _characters()
    torch.manual_seed(seed)
    model, draw = GPT(len(codes), length), torch.Generator().manual_seed(seed)

    def windows(of: Tensor, starts: Tensor) -> Tensor:
        return of[starts[:, None] + torch.arange(length + 1)]

    def nats(chosen: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            model(chosen[:, :-1]).flatten(0, 1), chosen[:, 1:].flatten()
        )

    def loss(step: int) -> Tensor:
        return nats(windows(train, torch.randint(len(train) - length, (batch,), generator=draw)))

    @torch.no_grad()
    def judged(of: Tensor) -> float:
        return float(nats(windows(of, torch.arange(0, len(of) - length, length)[:256])))

    return Task(model, loss, lambda: judged(held_out), lambda: judged(test))


def equation(seed: int, interior: int = 256, boundary: int = 64) -> Task:
    """−Δu = f on the unit square, u = 0 on its edge, by a tanh network; the same points each step,
    judged by u's error.

    u = sin πx sin πy + ½ sin 3πx sin 2πy. The loss is half the mean square over all residuals; the
    error is relative, in L².
    """
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    ).double()
    inside = torch.rand(interior, 2, generator=draw, dtype=torch.float64)
    along, side = (
        torch.rand(boundary, generator=draw, dtype=torch.float64),
        torch.arange(boundary) % 4,
    )
    edge = torch.stack(
        [torch.where(side < 2, along, side - 2.0), torch.where(side < 2, side.double(), along)], 1
    )
    points, on_edge = torch.cat([inside, edge]), torch.arange(interior + boundary) >= interior

    def truth(at: Tensor, *weights: float) -> Tensor:
        x, y = torch.pi * at.unbind(-1)[0], torch.pi * at.unbind(-1)[1]
        return weights[0] * x.sin() * y.sin() + weights[1] * (3 * x).sin() * (2 * y).sin()

    source = truth(points, 2.0, 6.5)

    def residual(parameters: dict[str, Tensor], at: Tensor, edge: Tensor, f: Tensor) -> Tensor:
        w1, b1, w2, b2, w3, b3 = parameters.values()
        first = torch.tanh(at @ w1.mT + b1)
        slope, bend = 1 - first**2, -2 * first * (1 - first**2)
        second = torch.tanh(first @ w2.mT + b2)
        slope2, bend2 = 1 - second**2, -2 * second * (1 - second**2)
        laplacian: Any = 0.0
        for axis in range(2):
            inner = (slope * w1[:, axis]) @ w2.mT
            laplacian = (
                laplacian
                + (bend2 * inner**2 + slope2 * ((bend * w1[:, axis] ** 2) @ w2.mT)) @ w3[0]
            )
        return torch.where(edge, 10 * (second @ w3[0] + b3[0]), -laplacian / torch.pi**2 - f)

    grid = torch.linspace(0, 1, 41, dtype=torch.float64)
    where = torch.cartesian_prod(grid, grid)

    @torch.no_grad()
    def error() -> float:
        exact = truth(where, 1.0, 0.5)
        return float((model(where)[:, 0] - exact).norm() / exact.norm())

    def loss(step: int) -> Tensor:
        return residual(dict(model.named_parameters()), points, on_edge, source).square().mean() / 2

    def rows(step: int) -> Rows:
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        jacobian = vmap(grad(residual), (None, 0, 0, 0))(parameters, points, on_edge, source)
        return list(jacobian.values()), residual(parameters, points, on_edge, source)

    return Task(model, loss, lambda: float(loss(0).detach()), error, rows)


class GPT(nn.Module):
    """Causal attention and an MLP, twice, over learned positions."""

    def __init__(
        self, codes: int, length: int, width: int = 64, heads: int = 4, depth: int = 2
    ) -> None:
        super().__init__()
        self.token, self.place = (
            nn.Embedding(codes, width),
            nn.Parameter(0.02 * torch.randn(length, width)),
        )
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, codes, bias=False)
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = (
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width, bias=False),
        )
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.before(x)).chunk(3, -1)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).flatten(2))
        return x + self.back(nn.functional.gelu(self.wide(self.between(x))))


def _narrow_resnet(width: int = 8) -> nn.Module:
    block: Any = _bench().Block
    stages = [
        (width, width, 1),
        *[(width, width, 1)] * 2,
        (width, 2 * width, 2),
        *[(2 * width, 2 * width, 1)] * 2,
    ]
    stages += [(2 * width, 4 * width, 2), *[(4 * width, 4 * width, 1)] * 2]
    first = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)]
    return nn.Sequential(*first, *(block(*stage) for stage in stages), *last)


def _on_images(
    model: nn.Module,
    seed: int,
    keep: dict[str, Tensor] | None = None,
    batch: int = 64,
    count: int = 5000,
) -> Task:
    x, y, x_test, y_test = _cifar()
    draw, held_out = torch.Generator().manual_seed(seed), slice(count, count + 2000)
    orders = torch.cat([torch.randperm(count, generator=draw) for _ in range(20)])

    def loss(step: int) -> Tensor:
        chosen = orders[step * batch : (step + 1) * batch]
        return nn.functional.cross_entropy(model(x[chosen]), y[chosen])

    @torch.no_grad()
    def outputs(of: Tensor) -> Tensor:
        model.eval()
        found = torch.cat([model(some) for some in of.split(500)])
        model.train()
        return found

    def tuning() -> float:
        return float(nn.functional.cross_entropy(outputs(x[held_out]), y[held_out]))

    def test() -> float:
        return 100 * float((outputs(x_test).argmax(1) == y_test).double().mean())

    return Task(model, loss, tuning, test, keep=keep or {})


@cache
def _bench() -> Any:
    sys.path.insert(0, str(BENCH))
    return importlib.import_module("bench_data")


@cache
def _cifar() -> tuple[Tensor, ...]:
    x, y, x_test, y_test = _bench().cifar10()
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:7000]
    return x[mixed], y[mixed], x_test[::5].clone(), y_test[::5].clone()


@cache
def _characters() -> tuple[list[str], tuple[Tensor, Tensor, Tensor]]:
    """Python's reference as numbers: nine tenths to train on, then a twentieth each to tune and to
    test."""
    written = "".join(topics[name] for name in sorted(topics))
    codes = sorted(set(written))
    place = {code: number for number, code in enumerate(codes)}
    numbers = torch.tensor([place[code] for code in written])
    n = len(numbers)
    return codes, (
        numbers[: n * 90 // 100],
        numbers[n * 90 // 100 : n * 95 // 100],
        numbers[n * 95 // 100 :],
    )
