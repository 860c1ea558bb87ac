"""prune() as a newcomer calls it: little data, wrong arguments, weights that are zero already."""

from __future__ import annotations

import ast
import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.limits import Limited
from torch import Tensor, nn

import woodbury
from woodbury import (
    Likelihood,
    Objective,
    ParameterSpace,
    Pruner,
    Reconstruction,
    Refit,
    WoodburyError,
    gauss_newton,
    kfac,
    mfac,
)
from woodbury.errors import WrongType
from woodbury.estimation.labels import sampled
from woodbury.estimation.layer_equations import POSITIONS
from woodbury.estimation.row_recipes import kfac_by_rows
from woodbury.fisher.kronecker import AllRowsAtOnce
from woodbury.pruning.presets import standard
from woodbury.pruning.refit.solver_choice import choose_refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.scopes import layerwise
from woodbury.pruning.step_choice import EveryNthRow
from woodbury.pruning.updates import independent, zero

IN_STAGES = replace(standard, in_turn=None)


def data(samples: int = 40) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 6, generator=generator)
    return [(x, (x[:, 0] > 0).long())]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))


def test_fewer_samples_than_the_effort_takes_are_enough() -> None:
    model = network()
    pruned = woodbury.prune(model, data(), 0.5)
    assert pruned.sparsity == 0.5
    assert int((model[0].weight == 0).sum() + (model[2].weight == 0).sum()) == 40


def test_stages_are_of_ggn_rows_with_a_refit_after_each() -> None:
    first, second = network(), network()
    woodbury.prune(first, data(19), 0.5, effort=IN_STAGES)
    dense = Objective.from_model(
        copy.deepcopy(second), [], space=ParameterSpace.from_model(second, min_ndim=2)
    )
    fisher = mfac(19, 3e-4)
    recipe = WithRefit.around(
        Pruner(gauss_newton(fisher, 1)),
        dense,
        Refit(mc_samples=2, damping=3e-4, reconstruction=Reconstruction()),
        EveryNthRow(fisher, 2),
    )
    woodbury.prune(second, data(19), 0.5, pruner=recipe, stages=2)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=1e-4, atol=1e-5)


class RoundStraightThrough(torch.autograd.Function):
    """A straight-through rounding of the old kind, without a forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.round()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        return slope


class Rounded(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(RoundStraightThrough.apply(super().forward(x)[:, :6]))


def wide(
    kind: type[nn.Sequential] = nn.Sequential, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    torch.manual_seed(0)
    return kind(nn.Linear(6, 200), nn.ReLU(), nn.Linear(200, 8)).to(dtype)


@pytest.mark.parametrize(
    ("model", "refit"),
    [
        (wide(), "1 step by 100 conjugate gradients, 10 GGN samples per input"),
        (wide(dtype=torch.bfloat16), "1 step by rows, 2 GGN samples per input"),
        (wide(Rounded), "1 step by rows, 2 GGN samples per input"),
    ],
    ids=["float32", "bfloat16", "no forward mode"],
)
def test_the_solver_of_refits_is_one_that_the_model_allows(model: nn.Module, refit: str) -> None:
    [(x, y)] = data(500)
    pruned = woodbury.prune(
        model, [(x.to(next(model.parameters()).dtype), y)], 0.05, effort=IN_STAGES
    )
    assert pruned.settings["refit_per_stage"] == f"{refit}, with the outputs of layers"
    assert pruned.sparsity == pytest.approx(0.05, abs=1e-3)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_layers_are_left_out_where_the_outputs_give_two_equations_per_kept_weight() -> None:
    refit = Refit(mc_samples=4, reconstruction=Reconstruction())
    objective = Objective.from_model(network(), data(19))
    weights = objective.space.n
    for sparsity, with_layers in (
        (0.0, True),
        (1 - 39 / weights, True),
        (1 - 37 / weights, False),
        ({"0.*": 0.99, "*": 0.0}, False),
    ):
        chosen = choose_refit(refit, objective, 19, sparsity)
        assert chosen is not None and (chosen.reconstruction is not None) == with_layers, sparsity
    with pytest.raises(WoodburyError, match="nothing"):
        choose_refit(refit, objective, 19, {"nothing*": 0.99})


# A float32 square for every output of every tensor, biases too, a float64 sum for each tensor, four
# such for one of them, and the outputs at the drawn positions of fifty samples.
ROOM = (
    4 * (200 * 6 * 6 + 200 + 8 * 200 * 200 + 8)
    + 8 * (6 * 6 + 1 + 200 * 200 + 1)
    + 32 * 200 * 200
    + 4 * 50 * POSITIONS * 2 * (200 + 8)
)


def test_a_refit_takes_as_many_directions_as_have_room(limited: Limited) -> None:
    objective = Objective.from_model(wide(Rounded), data(50))
    for directions, chosen in ((5, 4), (4, 4), (3, 3), (1, 1)):
        limited(memory=4 * directions * 50 * objective.space.d)
        refit = choose_refit(Refit(), objective, 50, 0.5)
        assert refit is not None and refit.mc_samples == chosen
    limited(memory=ROOM)
    refit = choose_refit(Refit(reconstruction=Reconstruction()), objective, 50, 0.5)
    assert refit is not None and refit.reconstruction is not None
    limited(memory=ROOM - 1)
    refit = choose_refit(Refit(reconstruction=Reconstruction()), objective, 50, 0.5)
    assert refit is not None and refit.reconstruction is None
    limited(memory=1000)
    assert choose_refit(Refit(), objective, 50, 0.5) is None
    with pytest.raises(WoodburyError, match="take fewer samples"):
        choose_refit(Refit(), objective, 50, 0.5, required=True)


def test_directions_of_many_outputs_need_room_too(limited: Limited) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1))
    objective = Objective.from_model(model, [(torch.ones(5, 1, 9, 9), torch.zeros(5, 9, 9).long())])
    for directions in (3, 1):
        limited(memory=4 * directions * 5 * 2 * 9 * 9)
        refit = choose_refit(Refit(), objective, 5, 0.5)
        assert refit is not None and refit.mc_samples == directions and refit.iterations is None
    limited(memory=4 * 5 * 2 * 9 * 9 - 1)
    assert choose_refit(Refit(), objective, 5, 0.5) is None
    with pytest.raises(WoodburyError, match="20 weights and 162 outputs"):
        choose_refit(Refit(), objective, 5, 0.5, required=True)


class Alone(nn.Sequential):
    """One number to a sample, (b,)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(-1)


def test_regression_on_one_number() -> None:
    torch.manual_seed(0)
    model, x = Alone(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 1)), data()[0][0]
    start = Objective.from_model(model, [(x, x.sum(1))], woodbury.squared_error)
    assert start.loss() == pytest.approx(
        0.5 * float((model(x) - x.sum(1)).square().mean().detach())
    )
    pruned = woodbury.prune(model, [(x, x.sum(1))], 0.5, likelihood=woodbury.squared_error)
    assert pruned.sparsity == 0.5 and bool(model(x).isfinite().all()) and model(x).shape == (40,)


class DoubleOutput(nn.Sequential):
    """Its outputs are float64, its weights float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


def test_outputs_of_another_precision_than_the_weights(limited: Limited) -> None:
    limited(equations_per_weight=float("inf"))
    torch.manual_seed(0)
    model, x = DoubleOutput(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 2)), data(400)[0]
    pruned = woodbury.prune(model, [x], 0.5, effort=IN_STAGES)
    refit = str(pruned.settings["refit_per_stage"])
    assert "conjugate gradients" in refit and "layers" in refit
    assert pruned.sparsity == 0.5
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batches": [(torch.ones(3, 5), torch.zeros(3).long())]}, "refuses the first batch"),
        ({"batches": [(torch.ones(3, 6), torch.zeros(3))]}, "refuses the first batch"),
        ({"batches": [(torch.ones(3, 6), torch.full((3,), 7))]}, "refuses the first batch"),
        (
            {"batches": [(torch.ones(3, 6).double(), torch.zeros(3).long())]},
            "refuses the first batch",
        ),
        ({"batches": [(torch.ones(3, 6), None)], "pruner": Pruner(mfac(3))}, "no labels"),
        ({"batches": []}, "no samples"),
        ({"batches": [(torch.ones(3, 6), torch.zeros(2).long())]}, "one label per sample"),
        ({"likelihood": nn.functional.cross_entropy}, "wrap a loss"),
        ({"pruner": mfac(10)}, r"Pruner\(mfac"),
        ({"model": network}, "torch.nn.Module"),
        ({"likelihood": Likelihood(lambda output, target: output)}, "scalar"),
    ],
)
def test_wrong_arguments_are_named_before_the_model_is_touched(options, says: str) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WoodburyError, match=says):
        woodbury.prune(**{"model": model, "batches": data(), "sparsity": 0.5, **options})
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [{"model": network}, {"pruner": mfac(10)}, {"likelihood": nn.functional.cross_entropy}],
    ids=["model", "pruner", "likelihood"],
)
def test_an_argument_of_a_wrong_type_is_a_type_error(options: dict[str, Any]) -> None:
    with pytest.raises(WrongType):
        woodbury.prune(**{"model": network(), "batches": data(), "sparsity": 0.5, **options})


def test_stages_are_refused_beside_an_effort() -> None:
    with pytest.raises(WoodburyError, match="an effort chooses its own stages"):
        woodbury.prune(network(), data(), 0.5, stages=3)


def test_a_layer_sparser_than_asked_is_named() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[:, 1:] = 0
    by_magnitude = Pruner(None, magnitude, zero, scope=layerwise)
    with pytest.raises(WoodburyError, match=r"'2\.weight', 18 is removed"):
        woodbury.prune(model, data(), 0.5, pruner=by_magnitude, keep_zeros=True)


def test_a_tensor_that_no_gradient_reaches_is_named() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.back, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.back(x).detach())

    with pytest.raises(WoodburyError, match=r"No gradient reached 'back\.weight'"):
        woodbury.prune(Detached(), data(), 0.5, effort=IN_STAGES)
    woodbury.prune(Detached(), data(), 0.5, exclude="back.weight")


class Excited(nn.Module):
    """Channels that are scaled by themselves, as in MobileNetV3, with a gate that is saturated."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.fc1 = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.fc2, self.head = nn.Conv2d(4, 8, 1), nn.Linear(8, 2)
        with torch.no_grad():
            self.fc2.bias.fill_(9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.kernel(x).relu()
        gate = nn.functional.hardsigmoid(self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()))
        return self.head((x * gate).mean((2, 3)))


@pytest.mark.parametrize("by_rows", [False, True], ids=["in stages", "that of large networks"])
def test_what_the_sentence_says_leaves_a_saturated_gate_alone(by_rows: bool) -> None:
    torch.manual_seed(0)
    model = Excited()
    before = model.fc1.weight.detach().clone()
    batches = [(torch.randn(40, 2, 5, 5), torch.arange(40) % 2)]
    options: dict[str, Any] = {"effort": IN_STAGES}
    if by_rows:
        options = {"pruner": Pruner(kfac_by_rows(40, approximation=AllRowsAtOnce()))}
    with pytest.raises(WoodburyError, match="No gradient reached") as refused:
        woodbury.prune(model, batches, 0.5, **options)
    said = str(refused.value)
    assert said.endswith("with exclude=['fc1.weight', 'fc2.weight'].")
    assert torch.equal(model.fc1.weight, before)
    named = ast.literal_eval(said[said.index("[", said.index("exclude=")) : -1])
    pruned = woodbury.prune(model, batches, 0.5, exclude=named, **options)
    assert pruned.sparsity == 0.5 and torch.equal(model.fc1.weight, before)


def test_rows_pinned_to_an_engine_agree_bit_for_bit() -> None:
    from woodbury.estimation.engines import looped

    found = []
    for _ in range(2):
        model = network()
        woodbury.prune(
            model, data(), 0.5, pruner=Pruner(mfac(40, 1e-3, engine=looped), update=independent)
        )
        found.append(model.state_dict())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "recipe", [woodbury.diagonal_fisher, woodbury.hessian_diagonal, mfac, woodbury.woodfisher, kfac]
)
@pytest.mark.parametrize("stages", [1, 3])
def test_ten_samples_without_labels_are_enough(recipe, stages: int) -> None:
    inputs = torch.randn(10, 6, generator=torch.Generator().manual_seed(3))
    unlabelled = [(inputs[:4], None), (inputs[4:], None)]
    model = network()
    pruned = woodbury.prune(
        model,
        unlabelled,
        0.5,
        pruner=Pruner(recipe(10, damping=0.1, labels=sampled)),
        stages=stages,
    )
    assert pruned.sparsity == 0.5
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


@pytest.mark.parametrize(
    "options",
    [{"pruner": Pruner(mfac(10))}, {"pruner": Pruner(mfac(10, labels=sampled), first_order=True)}],
)
def test_what_needs_labels_says_so_and_leaves_the_model(options: dict) -> None:
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(WoodburyError, match="carry no labels"):
        woodbury.prune(model, [(torch.ones(10, 6), None)], 0.5, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
