"""Differential equations with a known solution, as least squares on the residuals of a network.

Each is −Δu = f or an evolution in space and time, its network and its points drawn by a seed.
Residuals are functions of the network at one point, as `woodbury.LeastSquares` takes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import burgers
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

Network = Callable[[Tensor], Tensor]
Residual = Callable[..., Tensor]
Draw = Callable[[torch.Generator], dict[str, Tensor]]


def derivative(u: Network, x: Tensor, axis: int) -> Tensor:
    """∂u/∂x of an axis."""
    return jvp(u, (x,), (torch.eye(len(x), dtype=x.dtype)[axis],))[1]


def second_derivative(u: Network, x: Tensor, axis: int) -> Tensor:
    """∂²u/∂x² of an axis."""
    return derivative(lambda y: derivative(u, y, axis), x, axis)


@dataclass(frozen=True)
class Equation:
    """What all seeds of a problem share.

    Attributes:
        sizes: Of the layers of a perceptron of tanh.
        residuals: Of each group, at one point: (u, x) -> a number.
        draw: The points of each group.
        exact: The solution at points (n, k).
        judged: Points (n, k) at which the error is measured.
        around: The perceptron -> a network that holds what is known at the boundary by itself.
        candidates: What the points of "interior" are drawn anew from, where that is done.
    """

    sizes: tuple[int, ...]
    residuals: Mapping[str, Residual]
    draw: Draw
    exact: Callable[[Tensor], Tensor]
    judged: Callable[[], Tensor]
    around: Callable[[nn.Module], nn.Module] = lambda perceptron: perceptron
    candidates: Callable[[torch.Generator], Tensor] | None = None


@dataclass
class Problem:
    """The network and its points, drawn by a seed.

    Attributes:
        equation: What they are of.
        model: The network at its start.
        points: Of each group.
        generator: Of the points, those to come among them.
        judged: Points at which the error is measured, and the solution there.
    """

    equation: Equation
    model: nn.Module
    points: dict[str, Tensor]
    generator: torch.Generator
    judged: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, name: str, seed: int) -> Problem:
        """The problem of a seed."""
        equation = EQUATIONS[name]
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(equation.sizes, equation.sizes[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        generator = torch.Generator().manual_seed(seed)
        model = equation.around(nn.Sequential(*layers[:-1]))
        judged = equation.judged()
        points = equation.draw(generator)
        return cls(equation, model, points, generator, (judged, equation.exact(judged)))

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw the points inside anew by |residual| plus its mean (Wu et al. 2023)."""
        if self.equation.candidates is None:
            return
        found = self.equation.candidates(self.generator)
        residual = self.equation.residuals["interior"]
        sizes = vmap(lambda x: residual(lambda y: self.model(y[None])[0, 0], x))(found).abs()
        count = len(self.points["interior"])
        chosen = torch.multinomial(sizes + sizes.mean(), count, generator=self.generator)
        self.points["interior"] = found[chosen]

    def residuals(self, weights: Mapping[str, Tensor]) -> Tensor:
        """All residuals (m,), scaled so that half their squares are the loss."""

        def u(x: Tensor) -> Tensor:
            return functional_call(self.model, dict(weights), (x[None],))[0, 0]

        parts = []
        for name, residual in self.equation.residuals.items():
            points = self.points[name]

            def at(x: Tensor, residual: Residual = residual) -> Tensor:
                return residual(u, x)

            parts.append(vmap(at)(points) / len(points) ** 0.5)
        return torch.cat(parts)

    def rows(self, weights: dict[str, Tensor]) -> Tensor:
        """The Jacobian of all residuals (m, d), point by point."""
        parts = []
        for name, residual in self.equation.residuals.items():
            points = self.points[name]

            def at(w: dict[str, Tensor], x: Tensor, residual: Residual = residual) -> Tensor:
                return residual(lambda y: functional_call(self.model, w, (y[None],))[0, 0], x)

            found = vmap(grad(at), (None, 0))(weights, points)
            flat = torch.cat([found[each].flatten(1) for each in weights], 1)
            parts.append(flat.detach() / len(points) ** 0.5)
        return torch.cat(parts)

    def loss(self) -> Tensor:
        """What all methods minimise: half the mean squares."""
        return self.residuals(dict(self.model.named_parameters())).square().sum() / 2

    @torch.no_grad()
    def error(self) -> float:
        """The relative error of u in L²."""
        points, exact = self.judged
        return float((self.model(points)[:, 0] - exact).norm() / exact.norm())


def boundary_value(exact: Callable[[Tensor], Tensor]) -> Residual:
    """U less the solution there."""
    return lambda u, x: u(x) - exact(x[None])[0]


@cache
def grid_of_square(side: int = 51) -> Tensor:
    """A grid on [0, 1]²."""
    line = torch.linspace(0, 1, side)
    return torch.cartesian_prod(line, line)


def product_of_sines(x: Tensor) -> Tensor:
    """∏ sin πxᵢ, the solution of exp09."""
    return torch.sin(math.pi * x).prod(1)


def poisson_2d_inside(u: Network, x: Tensor) -> Tensor:
    """Δu + 2π² sin πx sin πy."""
    second = second_derivative(u, x, 0) + second_derivative(u, x, 1)
    return second + 2 * math.pi**2 * torch.sin(math.pi * x).prod()


def square_points(draw: torch.Generator) -> dict[str, Tensor]:
    """900 points inside the unit square, 120 on its edge."""
    inside = torch.rand(900, 2, generator=draw)
    along = torch.rand(120, generator=draw)
    side = torch.arange(120) % 4
    x = torch.where(side < 2, along, side - 2.0)
    y = torch.where(side < 2, side.to(along.dtype), along)
    return {"interior": inside, "edge": torch.stack([x, y], 1)}


def sum_of_cosines(x: Tensor) -> Tensor:
    """Σ cos πxᵢ, the solution in five dimensions."""
    return torch.cos(math.pi * x).sum(1)


def poisson_5d_inside(u: Network, x: Tensor) -> Tensor:
    """Δu + π² Σ cos πxᵢ."""
    seconds = [second_derivative(u, x, axis) for axis in range(len(x))]
    return torch.stack(seconds).sum() + math.pi**2 * torch.cos(math.pi * x).sum()


def cube_points(draw: torch.Generator) -> dict[str, Tensor]:
    """800 points inside [0, 1]⁵, 250 on its faces."""
    inside = torch.rand(800, 5, generator=draw)
    faces = torch.rand(250, 5, generator=draw)
    face = torch.arange(250) % 10
    faces[torch.arange(250), face // 2] = (face % 2).to(faces.dtype)
    return {"interior": inside, "edge": faces}


@cache
def points_of_cube() -> Tensor:
    """4,000 points in [0, 1]⁵ that no seed draws."""
    return torch.rand(4000, 5, generator=torch.Generator().manual_seed(12345))


DIFFUSION = 0.25


def decaying_sine(x: Tensor) -> Tensor:
    """exp(−π²t/4) sin πx at (x, t), the solution of the heat equation."""
    return torch.exp(-DIFFUSION * math.pi**2 * x[:, 1]) * torch.sin(math.pi * x[:, 0])


def heat_inside(u: Network, x: Tensor) -> Tensor:
    """∂u/∂t − ¼ ∂²u/∂x²."""
    return derivative(u, x, 1) - DIFFUSION * second_derivative(u, x, 0)


def heat_points(draw: torch.Generator) -> dict[str, Tensor]:
    """900 points inside (x, t) ∈ [0, 1]², 80 on its sides and 40 at its beginning."""
    inside = torch.rand(900, 2, generator=draw)
    sides = torch.rand(80, 2, generator=draw)
    sides[:, 0] = (torch.arange(80) % 2).to(sides.dtype)
    start = torch.rand(40, 2, generator=draw)
    start[:, 1] = 0
    return {"interior": inside, "edge": torch.cat([sides, start])}


EQUATIONS = {
    "Poisson, 2-D": Equation(
        (2, 64, 1),
        {"interior": poisson_2d_inside, "edge": lambda u, x: u(x)},
        square_points,
        product_of_sines,
        grid_of_square,
    ),
    "Poisson, 5-D": Equation(
        (5, 64, 1),
        {"interior": poisson_5d_inside, "edge": boundary_value(sum_of_cosines)},
        cube_points,
        sum_of_cosines,
        points_of_cube,
    ),
    "heat": Equation(
        (2, 64, 1),
        {"interior": heat_inside, "edge": boundary_value(decaying_sine)},
        heat_points,
        decaying_sine,
        grid_of_square,
    ),
    "Burgers": Equation(
        (2, 20, 20, 20, 1),
        {"interior": burgers.inside, "edge": burgers.edge},
        burgers.points,
        burgers.solution,
        burgers.grid,
    ),
    "Burgers, exact at its edge": Equation(
        (2, 10, 10, 10, 1),
        {"interior": burgers.inside},
        burgers.whole_points,
        burgers.solution,
        lambda: burgers.grid(201),
        burgers.whole,
        burgers.whole_candidates,
    ),
    "Burgers, half": Equation(
        (2, 10, 10, 10, 1),
        {"interior": burgers.inside},
        burgers.half_points,
        burgers.solution,
        burgers.half_grid,
        burgers.FromSine,
        burgers.half_candidates,
    ),
}
