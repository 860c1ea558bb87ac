"""Gradients by layers against one ordinary backward pass per sample, on layers of every kind."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from support.limits import Limited
from support.random import normal
from support.trained_models import MODELS, Model
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from woodbury.errors import WoodburyError
from woodbury.estimation.engines import fastest, looped, vmapped
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_rows
from woodbury.estimation.layer_gradients import hooked
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace


class Convolutions(nn.Module):
    """Strides, paddings and dilations of every kind, then a Linear over positions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding="valid", dilation=(1, 2))
        self.circular = nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular")
        self.point = nn.Conv2d(4, 3, 1, stride=2, padding=1)
        self.wide = nn.Linear(3, 5, bias=False)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.circular(self.first(x)).relu_())
        return self.head(self.wide(input=x.flatten(2).mT).tanh().mean(1))


class Overwriting(nn.Module):
    """Overwrites the input of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = 1 * x
        y = self.layer(x)
        x.zero_()
        return y


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class Functional(nn.Module):
    """Its layer's weight is used, but the layer is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.layer.weight)


class Mixing(nn.Module):
    """Its samples see each other, so that no gradient is of one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0) if len(x) > 1 else x)


def weights_of(model: nn.Module, x: Tensor) -> Objective:
    model = model.double()
    space = ParameterSpace.from_model(model, min_ndim=2)
    return Objective.from_model(model, [(x, torch.arange(len(x)) % 3)], space=space)


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("removed", [False, True])
def test_rows_are_those_of_single_samples(removed: bool, few: bool, limited: Limited) -> None:
    limited(patches=500 if few else 2**25)
    objective = weights_of(Convolutions(), normal(7, 2, 6, 7))
    if removed:
        keep = normal(objective.space.d, seed=1) > 0
        objective = objective.at(objective.weights[keep], objective.space.restrict(keep))
    for rows in (objective, gauss_newton_rows(objective, 3)):
        for inputs, target in rows.batches.in_batches(21):
            assert_close(hooked(rows, inputs, target), looped(rows, inputs, target))
            assert fastest(rows, inputs, target) is hooked


def test_samples_with_equal_inputs_share_a_pass() -> None:
    objective = weights_of(nn.Linear(3, 3), normal(4, 3))
    seen: list[int] = []
    objective.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    rows = gauss_newton_rows(objective, 5)
    for inputs, target in rows.batches:
        seen.clear()
        found = hooked(rows, inputs, target)
        assert len(found) == 20 and seen == [4]
        unequal = inputs[:13], target[:13]  # the last sample has three of its five
        assert_close(hooked(rows, *unequal), found[:13])
        assert seen == [4, 13]


@pytest.mark.parametrize(
    ("build", "says"),
    [(Overwriting, "left as it is"), (Twice, "more than once"), (Functional, "not the weight")],
)
def test_what_is_no_sum_over_positions_is_refused(
    build: Callable[[], nn.Module], says: str
) -> None:
    objective = weights_of(build(), normal(5, 3))
    inputs, target = next(iter(objective.batches))
    with pytest.raises(WoodburyError, match=says):
        hooked(objective, inputs, target)
    if build is not Overwriting:  # which no backward pass takes
        assert fastest(objective, inputs, target) is not hooked
    assert not any(module._forward_hooks for module in objective.model.modules())
    assert all(parameter.requires_grad for parameter in objective.model.parameters())


def test_samples_that_see_each_other_are_noticed() -> None:
    objective = weights_of(Mixing(), normal(5, 3))
    inputs, target = next(iter(objective.batches))
    assert fastest(objective, inputs, target) is not hooked


def test_a_layer_without_a_gradient_has_rows_of_zeros() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            return self.used(x)

    objective = weights_of(Idle(), normal(5, 3))
    inputs, target = next(iter(objective.batches))
    assert_close(hooked(objective, inputs, target), looped(objective, inputs, target))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_all_engines_agree_on_real_models(model: Model) -> None:
    torch.manual_seed(0)
    net = copy.deepcopy(model.build()).double()
    inputs, target = model.data()
    few = {k: t[:3] for k, t in inputs.items()} if isinstance(inputs, dict) else inputs[:3]
    if isinstance(few, Tensor) and few.is_floating_point():
        few = few.double()
    space = ParameterSpace.from_model(net, exclude=model.exclude, min_ndim=2)
    objective = Objective.from_model(net, [(few, target[:3])], model.likelihood, space)
    with eval_mode(net):
        truth = looped(objective, few, target[:3])
        if model.vmaps:
            assert_close(vmapped(objective, few, target[:3]), truth)
        try:
            found = hooked(objective, few, target[:3])
        except WoodburyError:
            found = None
        expected = model.name in ("ResNet-20", "ViT", "BERT")  # the others have other layers
        assert (found is not None) is expected
        if found is not None:
            assert_close(found, truth)
    assert_close(gradient_rows(objective, 3), truth)


class Mixed(nn.Module):
    """As accelerate and Lightning train: products in bfloat16, weights and norms in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


def test_layers_under_autocast_have_the_rows_of_single_samples() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 6), torch.arange(8) % 3)]
    space = ParameterSpace.from_model(Mixed(), min_ndim=2)
    torch.manual_seed(0)
    objective = Objective.from_model(Mixed(), batches, space=space)
    one_by_one = looped(objective, *batches[0])
    assert float(one_by_one.abs().max()) > 0
    torch.testing.assert_close(hooked(objective, *batches[0]), one_by_one, rtol=1e-2, atol=1e-3)
