"""Layers' normal equations and a refit with them, against brute force and a dense float64 solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.limits import Limited
from support.random import normal
from torch import Tensor, nn
from torch.testing import assert_close

from woodbury.errors import WoodburyError
from woodbury.estimation.layer_equations import layer_fits
from woodbury.estimation.output_residuals import Residuals
from woodbury.model.layers import by_position
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.monitor import progress
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit.layer_goal import LayerTerms, Reconstruction
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero


class Net(nn.Module):
    """Four kinds of layers.

    A convolution whose output is overwritten, one that is grouped, a Linear over positions that is
    used twice, and a head.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.twice = nn.Linear(9, 9)
        self.head = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.conv(x).relu_()).flatten(2)
        return self.head(self.twice(input=self.twice(x).tanh()).flatten(1))


def pair(samples: int = 20) -> tuple[Objective, Objective]:
    """A network, and what magnitude left of it."""
    torch.manual_seed(0)
    model = Net().double()
    batches = list(
        zip(normal(samples, 2, 6, 6).split(8), (torch.arange(samples) % 3).split(8), strict=True)
    )
    start = Objective.from_model(model, batches, space=ParameterSpace.from_model(model, min_ndim=2))
    return Pruner(None, magnitude, zero)(start, 0.4).objective, start


def uses(objective: Objective, name: str) -> list[tuple[Tensor, Tensor]]:
    """Inputs, outputs of each use of a module, over all samples at once."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = objective.model.get_submodule(name).register_forward_hook(
        lambda _, given, keywords, output: found.append(
            ((*given, *keywords.values())[0], output.clone())
        ),
        with_kwargs=True,
    )
    with torch.no_grad():
        objective.forward(objective.parameters, torch.cat([x for x, _ in objective.batches]))
    handle.remove()
    return found


def equations(pruned: Objective, start: Objective, name: str) -> tuple[Tensor, Tensor]:
    """S and c of (64), position by position."""
    layer, moments, missed, count = pruned.model.get_submodule(name), 0.0, 0.0, 0
    for (given, output), (_, told) in zip(uses(pruned, name), uses(start, name), strict=True):
        wide = nn.functional.unfold(given, 3, 1, 1, 2).mT if given.ndim == 4 else given
        for a, lacking in zip(
            wide.reshape(-1, wide.shape[-1]), _flat(layer, told - output), strict=True
        ):
            moments, missed, count = (
                moments + torch.outer(a, a),
                missed + torch.outer(a, lacking),
                count + 1,
            )
    assert isinstance(moments, Tensor) and isinstance(missed, Tensor)
    return moments / count, missed / count


def _flat(layer: nn.Module, output: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return by_position(layer, output).flatten(0, 1)


@pytest.mark.parametrize("name", ["conv", "twice", "head"])
def test_normal_equations_are_those_of_every_position(name: str, limited: Limited) -> None:
    limited(patches=200)
    limited(layer_samples=7)
    pruned, start = pair()
    fit = layer_fits(pruned, start, 20)[f"{name}.weight"]
    moments, missed = equations(pruned, start, name)
    kept = torch.arange(len(moments))[::2]
    for output in range(missed.shape[1]):
        assert_close(fit.of(output, kept), (moments[kept][:, kept], missed[kept, output]))
    assert fit.size == pytest.approx(float(moments.trace()) / len(moments))


def test_what_is_not_a_sum_over_positions_is_left_out_and_no_hook_stays() -> None:
    pruned, start = pair()
    assert set(layer_fits(pruned, start, 20)) == {"conv.weight", "twice.weight", "head.weight"}
    assert not any(module._forward_hooks for module in pruned.model.modules())


def test_positions_are_drawn_alike_from_inputs_and_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """c = S (W⁰ − W)ᵀ at any positions, as long as they are the same for inputs and outputs."""
    monkeypatch.setattr("woodbury.estimation.layer_equations.POSITIONS", 4)
    model = nn.Linear(3, 2, bias=False).double()
    start = Objective.from_model(
        model, [(normal(10, 50, 3), torch.zeros(10, 50, dtype=torch.long))]
    )
    moved = start.at(start.weights + normal(6, seed=1))
    fit = layer_fits(moved, start, 10)["weight"]
    moments, missed = fit.inputs / fit.positions, fit.cross_moment / fit.positions
    assert fit.positions == 40 and torch.linalg.matrix_rank(moments) == 3
    assert_close(missed, moments @ (start.weights - moved.weights).view(2, 3).mT)


def test_progress_counts_the_samples(limited: Limited) -> None:
    limited(layer_samples=8)
    reports: list[tuple[str, int, int]] = []
    pruned, start = pair()
    with progress(lambda *now: reports.append(now)):
        Refit(mc_samples=2, reconstruction=Reconstruction())(pruned, start)
    assert [now[1:] for now in reports if "layers" in now[0]] == [(8, 20), (16, 20), (20, 20)]


def test_only_the_first_samples_are_read() -> None:
    pruned, start = pair()
    few = [(x[:5], y[:5]) for x, y in pruned.batches][:1]
    short = layer_fits(replace(pruned, batches=few), start, 20)["conv.weight"]
    fit = layer_fits(pruned, start, samples=5)["conv.weight"]
    assert_close(fit.inputs, short.inputs)
    assert_close(fit.cross_moment, short.cross_moment)
    assert fit.positions == short.positions


class Routed(nn.Module):
    """A layer that is not used for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expert, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(x)
        return self.out(torch.cat([self.expert(x[x[:, 0] > 0]), x[x[:, 0] <= 0]]))


def test_a_layer_that_both_use_differently_is_left_out() -> None:
    torch.manual_seed(0)
    start = Objective.from_model(
        Routed().double(), [(normal(9, 4), torch.zeros(9, dtype=torch.long))]
    )
    other = start.at(-start.weights)
    assert set(layer_fits(other, start, 9)) == {"gate.weight", "out.weight"}


def test_what_is_not_finite_is_named() -> None:
    pruned, start = pair()
    x, y = next(iter(pruned.batches))
    with pytest.raises(WoodburyError, match=r"conv\.weight"):
        layer_fits(replace(pruned, batches=[(torch.full_like(x, torch.inf), y)]), start, 20)


def truth(pruned: Objective, start: Objective, refit: Refit) -> Tensor:
    """The minimum of (65), by one dense solve."""
    layers = refit.reconstruction
    space = pruned.space
    assert layers is not None
    residuals = Residuals.between(pruned, start, refit.mc_samples, refit.seed + 2 * space.d)
    jacobian, r = residuals.jacobian(), residuals.at(pruned.weights)
    curved = jacobian.mT @ jacobian / len(r)
    damping = refit.damping * torch.eye(space.n, dtype=torch.float64)
    target = torch.zeros(space.n, dtype=torch.float64)
    curvature = space.expand(curved.diagonal())
    for name in ("conv", "twice", "head"):
        moments, missed = equations(pruned, start, name)
        first, inputs = space.slices[f"{name}.weight"].start, len(moments)
        ridged = moments + layers.ridge * moments.diagonal().mean() * torch.eye(
            inputs, dtype=torch.float64
        )
        for output in range(missed.shape[1]):
            where = torch.arange(first + output * inputs, first + (output + 1) * inputs)
            kept = space.keep[where].nonzero()[:, 0]
            own = ridged[kept][:, kept]
            target[where[kept]] = layers.target_fraction * torch.linalg.solve(
                own, missed[kept, output]
            )
            scale = layers.weight * curvature[where[kept]].sum() / own.trace()
            damping[where[kept][:, None], where[kept]] = scale * own
    damping, target = damping[space.keep][:, space.keep], target[space.keep]
    return target - torch.linalg.solve(
        curved + damping, jacobian.mT @ (r + jacobian @ target) / len(r)
    )


@pytest.mark.parametrize(
    "layers",
    [
        Reconstruction(0.1),
        Reconstruction(1.0, target_fraction=0.0),
        Reconstruction(10.0, 0.2, ridge=0.5),
    ],
)
def test_a_step_minimises_the_residuals_of_network_and_layers(layers: Reconstruction) -> None:
    pruned, start = pair()
    refit = Refit(mc_samples=2, damping=1e-2, reconstruction=layers)
    found = refit(pruned, start).weights - pruned.weights
    assert_close(found, truth(pruned, start, refit))


def test_conjugate_gradients_reach_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, start = pair()
    refit = Refit(mc_samples=2, damping=1e-2, reconstruction=Reconstruction(0.1))
    by_rows = refit(pruned, start).weights
    monkeypatch.setattr(
        Residuals, "diagonal", lambda self, probes: self.jacobian().square().mean(0)
    )
    assert_close(
        replace(refit, iterations=300)(pruned, start).weights, by_rows, rtol=1e-4, atol=1e-4
    )


def test_conjugate_gradients_make_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, start = pair()
    refit = Refit(mc_samples=2, damping=1e-2, reconstruction=Reconstruction(0.1))
    by_rows = refit(pruned, start)
    monkeypatch.delattr(Residuals, "jacobian")
    found = replace(refit, iterations=300)(pruned, start)
    before, *left = (refit.distance(one, start) for one in (pruned, by_rows, found))
    assert max(left) < 0.5 * before and abs(left[0] - left[1]) < 0.1 * before


def test_layers_alone_restore_the_dense_network() -> None:
    """One layer, nothing removed: the whole step leads to the dense layer, up to the ridge."""
    model = nn.Linear(5, 3).double()
    start = Objective.from_model(
        model,
        [(normal(50, 5), torch.arange(50) % 3)],
        space=ParameterSpace.from_model(model, min_ndim=2),
    )
    moved = start.at(start.weights + 0.1 * normal(15, seed=3))
    found = Refit(
        mc_samples=1, reconstruction=Reconstruction(1e6, target_fraction=1.0, ridge=1e-9)
    )(moved, start)
    assert_close(found.weights, start.weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "silence", [lambda x: 0 * x, lambda x: x.detach()], ids=["no input", "no gradient"]
)
def test_a_silent_layer_stays_where_it_is(silence: Callable[[Tensor], Tensor]) -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loud, self.silent, self.head = (
                nn.Linear(4, 4),
                nn.Linear(4, 4, bias=False),
                nn.Linear(4, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.loud(x).tanh() + silence(self.silent(silence(x))))

    torch.manual_seed(0)
    model = Silent().double()
    start = Objective.from_model(
        model,
        [(normal(30, 4), torch.arange(30) % 3)],
        space=ParameterSpace.from_model(model, min_ndim=2),
    )
    pruned = Pruner(None, magnitude, zero)(start, 0.3).objective
    found = Refit(reconstruction=Reconstruction())(pruned, start)
    assert bool(torch.isfinite(found.weights).all())
    assert not torch.equal(found.weights, pruned.weights)
    before, after = (one.space.unflatten(one.weights)["silent.weight"] for one in (pruned, found))
    assert_close(after, before, rtol=0, atol=0)


def test_the_dense_network_itself_does_not_move() -> None:
    _, start = pair()
    refit = Refit(reconstruction=Reconstruction())
    recipe = WithRefit.around(Pruner(None, magnitude, zero), start, refit)
    found = recipe(start, 0.0)
    assert_close(found.objective.weights, start.weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", 0.0),
        ("weight", float("nan")),
        ("target_fraction", 1.5),
        ("target_fraction", -0.1),
        ("ridge", 0.0),
        ("ridge", float("inf")),
    ],
)
def test_a_number_out_of_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(WoodburyError, match=f"{name} is {value}: it must"):
        Reconstruction(**{name: value})


def test_the_curvature_given_to_layers_does_not_depend_on_the_damping() -> None:
    recorded: list[Tensor] = []

    class Recording(Reconstruction):
        def __call__(self, fits: Any, space: Any, curvature: Tensor, damping: float) -> LayerTerms:
            recorded.append(curvature)
            return super().__call__(fits, space, curvature, damping)

    pruned, start = pair()
    refit = Refit(mc_samples=2, damping=1e9, reconstruction=Recording())
    refit(pruned, start)
    exact = (
        Residuals.between(pruned, start, 2, refit.seed + 2 * pruned.space.d)
        .jacobian()
        .square()
        .mean(0)
    )
    assert_close(recorded[0], exact, rtol=1e-9, atol=0)


def test_conjugate_gradients_in_half_precision_end_finite() -> None:
    pruned, start = pair()
    batches = [(x.bfloat16(), y) for x, y in start.batches]
    start.model.bfloat16()
    start, pruned = (
        replace(one, weights=one.weights.bfloat16(), batches=batches) for one in (start, pruned)
    )
    refit = Refit(mc_samples=2, damping=1e-2, iterations=5, reconstruction=Reconstruction(0.1))
    found = refit(pruned, start)
    assert found.weights.dtype == torch.bfloat16 and bool(found.weights.isfinite().all())
    assert not torch.equal(found.weights, pruned.weights)
