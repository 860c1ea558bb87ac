"""Consolidation against dense penalties, joint training and the closed form of two regressions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import dense
from support.random import normal
from torch import Tensor, nn

import woodbury
from woodbury import Consolidation, Objective, ParameterSpace, WoodburyError, squared_error
from woodbury.fisher import Diagonal, LowRank
from woodbury.memory import stored_rows

WIDTH, DAMPING = 6, 0.02


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def consolidated(model: nn.Module, m: int = 8, seed: int = 0, strength: float = 3.0) -> Any:
    space = ParameterSpace.from_model(model)
    fisher = LowRank(normal(m, space.d, seed=seed), DAMPING)
    return Consolidation(fisher, normal(space.d, seed=seed + 50), strength, space=space)


def quadratic(term: Consolidation, vector: Tensor) -> Tensor:
    """The penalty by its definition, on the matrix written out."""
    assert isinstance(term.fisher, LowRank)
    fisher = term.fisher
    matrix = dense.low_rank(fisher.rows, fisher.damping, fisher.weights)  # type: ignore[arg-type]
    away = vector - term.weights
    return term.strength / 2 * away @ matrix @ away


def vector_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_value_and_gradient_are_those_of_the_dense_quadratic() -> None:
    model = network()
    term = consolidated(model)
    value = term.penalty(model)
    (2 * value).backward()
    found = gradients(model)
    model.zero_grad()
    expected = quadratic(term, vector_of(model))
    (2 * expected).backward()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(found, gradients(model), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("unused", [False, True])
def test_the_hook_steps_as_the_term_in_the_loss_does(unused: bool) -> None:
    """Also for a parameter that the new task's loss does not use."""

    def stepped(by_hook: bool) -> Tensor:
        model = network()
        term = consolidated(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        hook = term.attach(optimizer, model) if by_hook else None
        for _ in range(3):
            optimizer.zero_grad()
            x = normal(7, 4)
            loss = (model[0](x) if unused else model(x)).square().mean()  # type: ignore[index]
            (loss if by_hook else loss + term.penalty(model)).backward()
            optimizer.step()
        if hook is not None:
            hook.remove()
            before = vector_of(model).detach().clone()
            optimizer.zero_grad(set_to_none=True)
            optimizer.step()
            assert torch.equal(before, vector_of(model))
        return vector_of(model).detach()

    torch.testing.assert_close(stepped(True), stepped(False), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("strength", [0.3, 1e6])
def test_an_implicit_step_solves_the_proximal_problem(strength: float) -> None:
    """argmin ½|w − v|² + η · penalty, v where the optimizer alone would go; at any strength."""
    model, plain = network(), network()
    term = consolidated(model, strength=strength)
    hook = term.attach_implicit(torch.optim.SGD(model.parameters(), 0.01), model)
    hook.remove()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    hook = term.attach_implicit(optimizer, model)
    x = normal(7, 4)
    for each, steps in ((model, optimizer), (plain, torch.optim.SGD(plain.parameters(), 0.01))):
        each(x).square().mean().backward()
        steps.step()
    assert isinstance(term.fisher, LowRank)
    fisher = term.fisher
    matrix = dense.low_rank(fisher.rows, DAMPING, fisher.weights)  # type: ignore[arg-type]
    whole = torch.eye(len(matrix)).double() + 0.01 / (1 - 0.9) * strength * matrix
    expected = term.weights + torch.linalg.solve(whole, vector_of(plain).detach() - term.weights)
    torch.testing.assert_close(vector_of(model).detach(), expected, rtol=1e-7, atol=1e-9)
    hook.remove()
    before = vector_of(model).detach().clone()
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert torch.equal(before, vector_of(model))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_implicit_steps_end_where_the_added_gradient_does(momentum: float) -> None:
    def ended(implicit: bool) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(WIDTH, 1, bias=False).double()
        space = ParameterSpace.from_model(model)
        term = Consolidation(
            LowRank(normal(4, WIDTH), DAMPING), normal(WIDTH, seed=9), 0.7, space=space
        )
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=momentum)
        (term.attach_implicit if implicit else term.attach)(optimizer, model)
        x, y = regression(1)
        for _ in range(3000):
            optimizer.zero_grad()
            (model(x)[:, 0] - y).square().mean().backward()
            optimizer.step()
        return vector_of(model).detach()

    torch.testing.assert_close(ended(True), ended(False), rtol=1e-6, atol=1e-8)


def test_an_implicit_step_refuses_what_it_cannot_solve() -> None:
    model = network()
    term = consolidated(model)
    some = torch.optim.SGD(model[0].parameters(), 0.1)  # type: ignore[index]
    with pytest.raises(WoodburyError, match=r"does not move '2\.bias'"):
        term.attach_implicit(some, model)
    first, last = model[0], model[2]  # type: ignore[index]
    groups = [{"params": first.parameters()}, {"params": last.parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, 0.1)
    term.attach_implicit(optimizer, model)
    model(normal(7, 4)).sum().backward()
    with pytest.raises(WoodburyError, match="one learning rate"):
        optimizer.step()


def regression(seed: int, count: int = 20) -> tuple[Tensor, Tensor]:
    x = normal(count, WIDTH, seed=seed)
    return x, x @ normal(WIDTH, seed=seed + 10) + normal(count, seed=seed + 20)


def test_two_regressions_in_turn_end_where_both_together_do() -> None:
    """The curvature of a linear regression is exact, so that nothing of the first is forgotten."""
    (x1, y1), (x2, y2) = regression(0), regression(1)
    first = torch.linalg.lstsq(x1, y1).solution
    model = nn.Linear(WIDTH, 1, bias=False).double()
    model.weight.data.copy_(first[None])
    objective = Objective.from_model(model, [(x1, y1[:, None])], squared_error)
    fisher = woodbury.gauss_newton(woodbury.mfac(20, 1e-12), 1)(objective)
    term = Consolidation(fisher, objective.weights, 1.0, space=objective.space)

    def slope(weights: Tensor) -> Tensor:
        model.weight.data.copy_(weights[None])
        model.zero_grad()
        loss = (model(x2)[:, 0] - y2).square().mean() / 2
        (loss + term.penalty(model)).backward()
        assert model.weight.grad is not None
        return model.weight.grad[0]

    both = torch.linalg.lstsq(torch.cat([x1, x2]), torch.cat([y1, y2])).solution
    torch.testing.assert_close(slope(both), torch.zeros_like(both), rtol=0, atol=1e-9)
    assert slope(first).norm() > 0.1


def test_merged_penalties_are_their_sum_but_for_a_constant() -> None:
    model = network()
    one, other = consolidated(model, 5, 0, 2.0), consolidated(model, 7, 1, 0.5)
    both = one.merged(other, rows=12)
    assert both.strength == 1 and both.fisher.d == one.fisher.d
    points = [normal(one.fisher.d, seed=s) for s in (5, 6, 7)]
    differences = [quadratic(one, p) + quadratic(other, p) - quadratic(both, p) for p in points]
    for difference in differences[1:]:
        torch.testing.assert_close(difference, differences[0], rtol=1e-9, atol=1e-9)


def test_few_rows_are_those_of_the_largest_curvature() -> None:
    model = network()
    one, other = consolidated(model, 5, 0, 2.0), consolidated(model, 7, 1, 0.5)
    few = one.merged(other, rows=4)
    whole = one.merged(other, rows=12)
    assert isinstance(few.fisher, LowRank) and few.fisher.m == 4
    torch.testing.assert_close(few.weights, whole.weights)
    fisher: Any = whole.fisher
    values, vectors = torch.linalg.eigh(dense.low_rank(fisher.rows, 1e-300, fisher.weights))
    largest = vectors[:, -4:] * values[-4:] @ vectors[:, -4:].mT
    found = dense.low_rank(few.fisher.rows, 1e-300)  # type: ignore[arg-type]
    torch.testing.assert_close(found, largest, rtol=1e-9, atol=1e-9)
    assert few.fisher.damping == pytest.approx(2.5 * DAMPING)


def test_a_restricted_penalty_is_the_whole_one_at_zeros_but_for_a_constant() -> None:
    term = consolidated(network())
    keep = torch.arange(term.fisher.d) % 3 > 0
    kept = term.restrict(keep)
    assert kept.space.d == int(keep.sum())
    differences = []
    for seed in (5, 6, 7):
        point = normal(term.fisher.d, seed=seed).masked_fill(~keep, 0)
        matrix = dense.low_rank(term.fisher.rows, DAMPING)  # type: ignore[attr-defined]
        away = point[keep] - kept.weights
        inner = term.strength / 2 * away @ matrix[keep][:, keep] @ away
        differences.append(quadratic(term, point) - inner)
    for difference in differences[1:]:
        torch.testing.assert_close(difference, differences[0], rtol=1e-8, atol=1e-8)


def test_what_does_not_fit_is_said_in_one_sentence() -> None:
    model = network()
    term = consolidated(model)
    d = term.fisher.d
    smaller = term.space.restrict(torch.arange(d) > 3)
    with pytest.raises(WoodburyError, match=f"Fisher is of {d} weights and the space has {d - 4}"):
        Consolidation(term.fisher, term.weights, space=smaller)
    with pytest.raises(WoodburyError, match="not finite"):
        Consolidation(term.fisher, term.weights * torch.nan, space=term.space)
    for strength in (0.0, -1.0, float("nan")):
        with pytest.raises(WoodburyError, match="strength is"):
            Consolidation(term.fisher, term.weights, strength, space=term.space)
    with pytest.raises(WoodburyError, match=r"Parameter '0\.weight' is missing"):
        term.penalty(nn.Linear(4, 5).double())
    pruned = network()
    woodbury.prune(pruned, [(normal(20, 4), torch.arange(20) % 3)], 0.5)
    optimizer = torch.optim.SGD(pruned.parameters(), 0.1)
    for call in (lambda: term.penalty(pruned), lambda: term.attach(optimizer, pruned)):
        with pytest.raises(WoodburyError, match=r"weights are zero now .* take restrict\(keep\)"):
            call()
    with pytest.raises(WoodburyError, match="moves none of the model's parameters"):
        term.attach(optimizer, model)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf  # type: ignore[index]
    with pytest.raises(WoodburyError, match="A weight of the model is not finite"):
        term.penalty(model)


def test_a_closure_is_refused_as_its_gradients_come_too_late() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    consolidated(model).attach(optimizer, model)
    with pytest.raises(WoodburyError, match="call backward first"):
        optimizer.step(lambda: 0.0)


def test_what_cannot_be_merged_is_said() -> None:
    term = consolidated(network())
    d = term.fisher.d
    diagonal = Consolidation(Diagonal(torch.ones(d).double(), 0.1), term.weights, space=term.space)
    with pytest.raises(WoodburyError, match="A Diagonal cannot be merged"):
        term.merged(diagonal, rows=4)
    paged = LowRank(stored_rows([torch.ones(2, d).double()], (2, d), torch.float64, memory=8), 0.1)
    on_disk = Consolidation(paged, term.weights, space=term.space)
    assert float(on_disk.penalty(network()).detach()) > 0
    with pytest.raises(WoodburyError, match="rows are in memory"):
        term.merged(on_disk, rows=4)
    with pytest.raises(WoodburyError, match="different spaces"):
        term.merged(term.restrict(torch.arange(d) > 3), rows=4)
    with pytest.raises(WoodburyError, match="rows is 0"):
        term.merged(term, rows=0)
