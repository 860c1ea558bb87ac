"""Pruner, stages and prune(): exact sparsity, exact zeros, a model untouched until the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import mean_gradient
from woodbury.estimation.recipes import diagonal_fisher, mfac, woodfisher
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.dense import Dense
from woodbury.model.batches import Batch
from woodbury.model.likelihood import squared_error
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.monitor import progress
from woodbury.pruning.api import prune
from woodbury.pruning.costs import weights
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude, obd, woodtaylor
from woodbury.pruning.schedule import polynomial
from woodbury.pruning.scopes import layerwise
from woodbury.pruning.staged import run_stages
from woodbury.pruning.units import block, custom
from woodbury.pruning.updates import independent, joint, zero

BY_MAGNITUDE = Pruner(fisher=None, saliency=magnitude, update=zero)


def data() -> list[Batch]:
    """Three noisy clusters."""
    label = torch.arange(60) % 3
    inputs = normal(60, 8) + 2 * torch.eye(3, 8, dtype=torch.float64)[label]
    return list(zip(inputs.split(20), label.split(20), strict=True))


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, target in data() * 15:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)).double()


@pytest.fixture
def model(trained: dict[str, Tensor]) -> nn.Module:
    """80 + 30 weights in matrices, and 33 others."""
    model = network()
    model.load_state_dict(trained)
    return model


def matrices(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim == 2])


def objective_of(model: nn.Module) -> Objective:
    return Objective.from_model(model, data(), space=ParameterSpace.from_model(model, min_ndim=2))


RECIPES = {
    "magnitude": BY_MAGNITUDE,
    "obd": Pruner(diagonal_fisher(30), obd, zero),
    "WoodFisher": Pruner(woodfisher(30, 16, 1e-3), update=independent),
    "M-FAC": Pruner(mfac(30, 1e-3), update=independent),
    "joint": Pruner(mfac(30, 1e-3), update=joint),
    "WoodTaylor": Pruner(mfac(20, 1e-2, batch=3), woodtaylor, joint, first_order=True),
    "in blocks": Pruner(mfac(30, 1e-3), unit=block(2)),
}


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("name", RECIPES)
def test_sparsity_and_zeros_are_exact(
    name: str, stages: int, model: nn.Module, trained: dict[str, Tensor]
) -> None:
    pruned = prune(model, data(), 0.6, pruner=RECIPES[name], stages=stages)
    state = model.state_dict()
    assert int((matrices(model) == 0).sum()) == 66 == int((~pruned.keep).sum())
    assert pruned.sparsity == pytest.approx(0.6)
    torch.testing.assert_close(pruned.weights, matrices(model), rtol=0, atol=0)
    assert torch.equal(pruned.weights == 0, ~pruned.keep)
    assert list(state) == list(trained)
    for other in ("0.bias", "1.weight", "1.running_mean", "1.num_batches_tracked", "3.bias"):
        assert torch.equal(state[other], trained[other])
    assert len(pruned.steps) == stages
    assert (pruned.predicted is None) == (name == "magnitude")
    assert model.training


def test_magnitude_is_a_plain_top_k(model: nn.Module, trained: dict[str, Tensor]) -> None:
    before = matrices(model)
    prune(model, data(), 0.7, pruner=BY_MAGNITUDE)
    truth = before.clone()
    truth[before.abs().topk(77, largest=False).indices] = 0
    torch.testing.assert_close(matrices(model), truth, rtol=0, atol=0)


def test_ties_do_not_overshoot(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    assert int((~prune(model, data(), 0.37, pruner=BY_MAGNITUDE).keep).sum()) == round(0.37 * 110)


@pytest.mark.parametrize("stages", [1, 4])
def test_each_layer_has_its_own_exact_share(stages: int, model: nn.Module) -> None:
    prune(model, data(), 0.7, pruner=replace(RECIPES["joint"], scope=layerwise), stages=stages)
    assert int((model[0].weight == 0).sum()) == 56  # type: ignore[index]
    assert int((model[3].weight == 0).sum()) == 21  # type: ignore[index]


def test_patterns_choose_what_is_pruned(model: nn.Module) -> None:
    before = matrices(model)
    prune(model, data(), 0.5, pruner=BY_MAGNITUDE, exclude="3.*")
    assert int((model[0].weight == 0).sum()) == 40  # type: ignore[index]
    torch.testing.assert_close(matrices(model)[80:], before[80:], rtol=0, atol=0)
    prune(model, data(), 0.5, pruner=BY_MAGNITUDE, include="3.*")
    assert int((matrices(model) == 0).sum()) == 55


@pytest.mark.parametrize("stages", [1, 3])
def test_zeros_are_kept_when_asked(stages: int, model: nn.Module) -> None:
    prune(model, data(), 0.4, pruner=RECIPES["joint"])
    gone = matrices(model) == 0
    prune(model, data(), 0.6, pruner=RECIPES["joint"], stages=stages, keep_zeros=True)
    assert bool((matrices(model)[gone] == 0).all())
    assert int((matrices(model) == 0).sum()) == 66


def test_pruning_again_to_the_same_sparsity_moves_nothing(model: nn.Module) -> None:
    prune(model, data(), 0.6, pruner=RECIPES["joint"])
    before = matrices(model)
    prune(model, data(), 0.6, pruner=RECIPES["joint"], keep_zeros=True)
    torch.testing.assert_close(matrices(model), before, rtol=0, atol=0)
    untouched = prune(model, data(), 0.0, pruner=RECIPES["joint"])
    torch.testing.assert_close(matrices(model), before, rtol=0, atol=0)
    assert untouched.predicted == pytest.approx(0, abs=1e-15)


def test_stages_are_single_steps_with_fresh_gradients(
    model: nn.Module, trained: dict[str, Tensor]
) -> None:
    objective, pruner = objective_of(model), RECIPES["joint"]
    seen: list[tuple[str, int, int]] = []
    with progress(lambda *what: seen.append(what)):
        found = run_stages(pruner, objective, [0.3, 0.6])
    seen = [what for what in seen if what[0] == "stages"]
    first = pruner(objective, 0.3)
    second = pruner(first.objective, 0.6)
    torch.testing.assert_close(found.weights, second.weights)
    assert [step.sparsity for step in found.steps] == pytest.approx([0.3, 0.6])
    assert found.predicted == pytest.approx(first.predicted + second.predicted)  # type: ignore[operator]
    assert not torch.allclose(found.weights, pruner(objective, 0.6).weights)
    assert seen == [("stages", 1, 2), ("stages", 2, 2)]
    assert bool((~second.keep | first.keep).all())
    torch.testing.assert_close(
        model.state_dict(), trained, rtol=0, atol=0
    )  # nothing is written before write()


def regression() -> tuple[nn.Module, list[Batch], Dense]:
    """Linear least squares: a quadratic loss, its Hessian the second moment of the inputs."""
    torch.manual_seed(3)
    inputs, model = normal(40, 6) @ normal(6, 6, seed=1), nn.Linear(6, 1, bias=False).double()
    target = inputs @ normal(6, 1, seed=2) + 0.1 * normal(40, 1, seed=4)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(inputs, target).solution.T)
    return model, [(inputs, target)], Dense(inputs.mT @ inputs / 40, 1e-13)


@pytest.mark.parametrize("update", [zero, independent, joint])
@pytest.mark.parametrize("converged", [True, False])
def test_the_predicted_increase_is_the_measured_one_on_a_quadratic(update, converged: bool) -> None:
    model, batches, hessian = regression()
    if not converged:
        with torch.no_grad():
            model.weight += 0.1  # type: ignore[operator]
    objective = Objective.from_model(model, batches, squared_error)
    pruner = Pruner(lambda _: hessian, woodtaylor, update, first_order=True)
    pruned = pruner(objective, 0.5)
    assert pruned.objective.loss() - objective.loss() == pytest.approx(pruned.predicted, rel=1e-8)
    if update is joint:  # the least squares of the inputs that stay
        inputs, target = batches[0]
        truth = torch.linalg.lstsq(inputs[:, pruned.keep], target).solution[:, 0]
        torch.testing.assert_close(pruned.weights[pruned.keep], truth)


def test_the_gradient_reaches_saliency_and_update_only_when_asked(model: nn.Module) -> None:
    objective, slopes = objective_of(model), []

    def saliency(quadratic, groups):
        slopes.append(quadratic.gradient)
        return magnitude(quadratic, groups)

    for first_order in (False, True):
        Pruner(mfac(20, 1e-2), saliency, joint, first_order=first_order)(objective, 0.2)
    assert slopes[0] is None
    torch.testing.assert_close(slopes[1], mean_gradient(objective))


def refuses(objective: Objective) -> Fisher:
    raise AssertionError("gradients were taken before the input was checked")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 1.0}, r"in \[0, 1\)"),
        ({"sparsity": -0.1}, r"in \[0, 1\)"),
        ({"sparsity": float("nan")}, r"in \[0, 1\)"),
        ({"sparsity": 90}, "sparsity is 90"),
        ({"stages": 0}, "0 stages"),
        ({"include": "nothing.*"}, "'nothing.*' matches no parameter"),
        ({"exclude": "nothing"}, "'nothing' matches no parameter"),
        ({"include": "0.bias"}, "No parameter is left"),
        ({"batches": iter([])}, "read only once"),
        (
            {"pruner": Pruner(refuses, magnitude, zero), "keep_zeros": True, "sparsity": 0.1},
            "below what is reached already",
        ),
        ({"stages": 2, "keep_zeros": True, "sparsity": 0.1}, "below what is reached already"),
        ({"stages": 2, "pruner": None}, "an effort chooses its own stages"),
        ({"batches": [], "pruner": Pruner(mfac(10))}, "0 of the 10 rows"),
        ({"pruner": Pruner(mfac(70))}, "60 of the 70 rows"),
        ({"pruner": Pruner(None)}, "obs needs a Fisher"),
        ({"pruner": Pruner(mfac(10), woodtaylor)}, "first_order=True"),
        ({"pruner": Pruner(mfac(10), unit=block(7))}, "do not tile"),
        ({"sparsity": 0.999, "pruner": BY_MAGNITUDE}, "leaves none of 110"),
        (
            {"pruner": Pruner(mfac(10), update=lambda q, keep: -q.weights / 0)},
            "not finite: raise the damping",
        ),
    ],
)
def test_bad_input_is_refused_and_the_model_untouched(
    options: dict, says: str, model: nn.Module, trained: dict[str, Tensor]
) -> None:
    if options.get("keep_zeros"):
        trained = {**trained, "3.weight": torch.zeros_like(trained["3.weight"])}
        model.load_state_dict(trained)
    arguments = {"batches": data(), "sparsity": 0.5, **options}
    if "pruner" not in arguments:
        arguments["pruner"] = Pruner(refuses)
    with pytest.raises(WoodburyError, match=says):
        prune(model, **arguments)
    torch.testing.assert_close(model.state_dict(), trained, rtol=0, atol=0)
    assert model.training


def test_an_error_in_a_later_stage_leaves_the_model_untouched(
    model: nn.Module, trained: dict[str, Tensor]
) -> None:
    calls: list[int] = []

    def second_fails(objective: Objective) -> Fisher:
        calls.append(1)
        if len(calls) == 2:
            raise WoodburyError("no more data")
        return mfac(10, 1e-2)(objective)

    with pytest.raises(WoodburyError, match="no more data"):
        prune(model, data(), 0.5, pruner=Pruner(second_fails), stages=3)
    torch.testing.assert_close(model.state_dict(), trained, rtol=0, atol=0)


def test_a_slow_schedule_with_a_budget_per_layer() -> None:
    """Two layers of 3: at 0.5 each loses round(1.5) = 2, so 4 of 6 and not 3."""
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 3, bias=False))
    objective = Objective.from_model(model, [(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))])
    pruned = run_stages(replace(BY_MAGNITUDE, scope=layerwise), objective, polynomial(0.51, 10))
    assert pruned.keep.view(2, 3).sum(1).tolist() == [1, 1]


def test_too_few_units_are_refused_before_any_gradient(model: nn.Module) -> None:
    with pytest.raises(WoodburyError, match="Only 16 of 99 requested removals"):
        prune(model, data(), 0.9, pruner=Pruner(refuses, unit=custom([{"0.weight": slice(2)}])))


def test_the_rest_of_a_broken_block_is_removed_whole(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight[:, ::2] = 0  # type: ignore[index]  # every block of 2 of the first layer is broken
    pruned = prune(model, data(), 0.9, pruner=replace(BY_MAGNITUDE, unit=block(2)), keep_zeros=True)
    assert abs(pruned.sparsity - 0.9) * pruned.objective.space.n <= 2


def test_a_sparsity_that_rounds_to_everything_is_refused_before_any_gradient(
    model: nn.Module,
) -> None:
    with pytest.raises(WoodburyError, match="leaves none"):
        prune(model, data(), 0.999, pruner=Pruner(refuses))


def test_a_block_diagonal_that_loses_whole_parts(model: nn.Module) -> None:
    """Blocks that are removed whole leave the others as they are."""
    objective = objective_of(model)
    fisher = woodfisher(5, 10, 1e-3)(objective)
    assert fisher.d == 110
    keep = torch.arange(110) >= 30

    def first_three_blocks(quadratic, groups) -> Tensor:
        return keep.double()

    parts = BlockDiagonal(tuple(Dense(_block(fisher, start), 1e-3) for start in range(0, 110, 10)))
    pruned = Pruner(lambda _: parts, first_three_blocks)(objective, 30 / 110)
    assert torch.equal(pruned.keep, keep)
    torch.testing.assert_close(pruned.weights[30:], objective.weights[30:], rtol=0, atol=0)


def _block(fisher: Fisher, start: int) -> Tensor:
    unit = torch.eye(fisher.d, dtype=torch.float64)[:, start : start + 10]
    return (fisher @ unit)[start : start + 10] - 1e-3 * torch.eye(10, dtype=torch.float64)


@pytest.mark.parametrize("cost", [weights, lambda space: 1.0 + space.tensor_index()])
def test_stages_with_targets_start_at_the_sparsity_of_each(model: nn.Module, cost) -> None:
    """Half of the second layer is zero already and stays so; the first layer keeps all."""
    last = list(model.state_dict())[-2]
    with torch.no_grad():
        dict(model.named_parameters())[last][:, ::2] = 0
    targets = {last: 0.75, "*": 0.0}
    pruned = prune(
        model, data(), targets, pruner=replace(BY_MAGNITUDE, cost=cost), stages=3, keep_zeros=True
    )
    space = pruned.objective.space
    sparsities = {
        name: 1 - float(space.keep[part].double().mean()) for name, part in space.slices.items()
    }
    assert {name for name, share in sparsities.items() if share} == {last}
    assert sparsities[last] == pytest.approx(0.75, abs=1 / space.shapes[last].numel())
