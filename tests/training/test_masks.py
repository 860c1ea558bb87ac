"""Zeros held while any optimizer steps, as if the removed weights did not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import diagonal_fisher
from woodbury.model.space import ParameterSpace
from woodbury.optim.optimizer import MFAC
from woodbury.pruning.api import prune
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero
from woodbury.training.masks import hold_zeros

INPUTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(40) % 3

Make = Callable[[Any], torch.optim.Optimizer]
MAKERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "mfac": lambda p: MFAC(p, 0.05, window=5, damping=0.1, momentum=0.9, weight_decay=0.01),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def masks(model: nn.Module) -> dict[str, Tensor]:
    """About half of each matrix stays."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(parameter.shape, generator=generator) < 0.5
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
    }


def masked(model: nn.Module) -> dict[str, Tensor]:
    keep = masks(model)
    for name, parameter in model.named_parameters():
        if name in keep:
            parameter.data.masked_fill_(~keep[name], 0)
    return keep


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 12, forward: Any = None
) -> None:
    for step in range(steps):
        part = slice(step % 4 * 10, step % 4 * 10 + 10)
        optimizer.zero_grad()
        nn.functional.cross_entropy((forward or model)(INPUTS[part]), LABELS[part]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


@pytest.mark.parametrize("name", MAKERS)
def test_as_if_the_removed_weights_did_not_exist(name: str) -> None:
    """The truth: a forward pass that multiplies by the mask, so that they get no gradient."""
    held, truth = network(), network()
    keep = masked(held)
    masked(truth)
    optimizer = MAKERS[name](held.parameters())
    hold_zeros(optimizer, held, keep)
    train(held, optimizer)

    def forward(inputs: Tensor) -> Tensor:
        parameters = {
            key: p * keep[key] if key in keep else p for key, p in truth.named_parameters()
        }
        return torch.func.functional_call(truth, parameters, inputs)

    train(truth, MAKERS[name](truth.parameters()), forward=forward)
    for (key, mine), theirs in zip(held.named_parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
        if key in keep:
            assert bool((mine[~keep[key]] == 0).all()) and bool((mine[keep[key]] != 0).all())


@pytest.mark.parametrize("name", MAKERS)
def test_what_was_learned_before_the_pruning_does_not_revive_a_weight(name: str) -> None:
    model = network()
    optimizer = MAKERS[name](model.parameters())
    train(model, optimizer)
    keep = masks(model)
    hold = hold_zeros(optimizer, model, keep)

    def check() -> None:
        for key, parameter in model.named_parameters():
            if key in keep:
                state = optimizer.state.get(parameter, {}).values()
                alike = [
                    part
                    for part in state
                    if isinstance(part, Tensor) and part.shape == parameter.shape
                ]
                assert name not in ("sgd", "adam", "adamw", "mfac") or alike
                for tensor in (parameter, parameter.grad, *alike):
                    assert tensor is not None and bool((tensor[~keep[key]] == 0).all()), key
                    assert not bool(torch.signbit(tensor[~keep[key]]).any())

    check()
    train(model, optimizer, 3)
    check()
    hold.remove()
    train(model, optimizer, 3)
    assert all(bool((dict(model.named_parameters())[key][~keep[key]] != 0).any()) for key in keep)


def test_a_gradient_that_is_not_finite_stays_out() -> None:
    model = network()
    keep = masked(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    hold_zeros(optimizer, model, keep)
    model[0].weight.register_hook(lambda g: torch.where(keep["0.weight"], g, torch.nan))  # type: ignore[union-attr]
    train(model, optimizer, 1)
    model[0].weight.grad = torch.full((8, 6), torch.nan, dtype=torch.float64)  # type: ignore[union-attr]
    optimizer.step()  # behind the back of the hooks on the gradient
    assert bool((model[0].weight[~keep["0.weight"]] == 0).all())


def test_zeros_of_a_pruned_model_are_found() -> None:
    model = network()
    batches = [(INPUTS, LABELS)]
    pruned = prune(model, batches, 0.6, pruner=Pruner(diagonal_fisher(20), magnitude, zero))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    hold_zeros(optimizer, model)
    train(model, optimizer)
    assert (
        sum(int((p == 0).sum()) for p in model.parameters())
        == pruned.objective.space.n - pruned.objective.space.d
    )
    by_space = network()
    optimizer = torch.optim.SGD(by_space.parameters(), 0.1)
    hold_zeros(optimizer, by_space, pruned.objective.space)
    train(by_space, optimizer)
    kept = (
        ParameterSpace.from_model(by_space, min_ndim=2).flatten(dict(by_space.named_parameters()))
        != 0
    )
    assert torch.equal(kept, pruned.keep)


def test_frozen_parameters_closures_and_wrapped_optimizers() -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    model = network()
    model[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    keep = masked(model)
    optimizer = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad], max_iter=3)
    hold_zeros(Wrapper(Wrapper(optimizer)), model, keep)  # type: ignore[arg-type]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(INPUTS), LABELS)
        loss.backward()
        return loss

    before = float(closure().detach())
    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    assert float(closure().detach()) < before
    assert all(
        bool((dict(model.named_parameters())[name][~mask] == 0).all())
        for name, mask in keep.items()
    )


def test_codes_of_the_weights_shape_are_left_alone() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.state[model[0].weight]["codes"] = torch.full((8, 6), 7, dtype=torch.uint8)  # type: ignore[index]
    hold_zeros(optimizer, model, masks(model))
    assert bool((optimizer.state[model[0].weight]["codes"] == 7).all())  # type: ignore[index]


def test_masks_that_do_not_fit_are_named_and_nothing_changes() -> None:
    model = network()
    keep = masks(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [parameter.clone() for parameter in model.parameters()]
    for sentence, wrong in {
        "which the model lacks": {"9.weight": keep["0.weight"]},
        "give a bool mask of shape \\(8, 6\\)": {
            "2.weight": keep["2.weight"],
            "0.weight": keep["0.weight"].T,
        },
        "is float32 of shape": {"0.weight": keep["0.weight"].float()},
    }.items():
        with pytest.raises(WoodburyError, match=sentence):
            hold_zeros(optimizer, model, wrong)
    with pytest.raises(WoodburyError, match="moves none of the model's parameters"):
        hold_zeros(torch.optim.SGD(network().parameters(), 0.1), model, keep)
    with pytest.raises(WoodburyError, match="The optimizer is a list"):
        hold_zeros([], model, keep)  # type: ignore[arg-type]
    assert all(map(torch.equal, before, model.parameters()))
