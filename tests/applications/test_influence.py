"""influence() against ridge regression in closed form, dense inverses, and retraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.random import normal
from support.unchanged import unchanged
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import woodbury
from woodbury import Influence, RidgeSearch, WoodburyError, counterfactual, influence, squared_error
from woodbury.applications.inner_products import InnerProducts
from woodbury.errors import WrongType
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_rows
from woodbury.memory import row_store

N, T, WIDTH, DAMPING = 30, 7, 5, 0.05


def regression() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, x_test = normal(N, WIDTH), normal(T, WIDTH, seed=1)
    truth = normal(WIDTH, 1, seed=2)
    return x, x @ truth + normal(N, 1, seed=3), x_test, x_test @ truth + normal(T, 1, seed=4)


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """The weights of least ½ Σ (xw − y)²/N + ½ DAMPING |w|²; N is 30 with fewer samples too."""
    return torch.linalg.solve(
        x.mT @ x / N + DAMPING * torch.eye(WIDTH, dtype=torch.float64), x.mT @ y / N
    )[:, 0]


def linear(weights: Tensor) -> nn.Linear:
    model = nn.Linear(len(weights), 1, bias=False).double()
    model.weight.data.copy_(weights[None])
    return model


def found_on_ridge(**options: Any) -> tuple[Influence, Tensor]:
    x, y, x_test, y_test = regression()
    weights = ridge(x, y)
    options = {"damping": DAMPING, "mc_samples": 1, **options}
    found = influence(
        linear(weights), [(x, y)], [(x_test, y_test)], likelihood=squared_error, **options
    )
    return found, weights


def test_leaving_one_sample_out_of_a_ridge_regression_is_exact() -> None:
    found, weights = found_on_ridge()
    x, y, x_test, y_test = regression()
    for sample in range(N):
        kept = torch.arange(N) != sample
        moved = x_test @ (ridge(x[kept], y[kept]) - weights)
        slope = (x_test @ weights - y_test[:, 0]) * moved
        torch.testing.assert_close(found.leave_one_out[:, sample], slope, rtol=1e-9, atol=1e-12)
        loss = lambda w: 0.5 * (x_test @ w - y_test[:, 0]).square()  # noqa: E731
        rise = loss(ridge(x[kept], y[kept])) - loss(weights)
        torch.testing.assert_close(
            found.leave_one_out[:, sample] + moved.square() / 2, rise, rtol=1e-9, atol=1e-12
        )


def test_scores_are_the_derivative_by_the_weight_of_a_sample() -> None:
    found, _ = found_on_ridge()
    x, y, x_test, y_test = regression()

    def losses(weight: float, sample: int) -> Tensor:
        scale = torch.ones(N, 1, dtype=torch.float64)
        scale[sample] = weight**0.5
        w = ridge(scale * x, scale * y)
        return 0.5 * (x_test @ w - y_test[:, 0]).square()

    step = 1e-5
    for sample in (0, 11, 29):
        slope = (losses(1 - step, sample) - losses(1 + step, sample)) / (2 * step)
        torch.testing.assert_close(found.scores[:, sample], slope, rtol=1e-6, atol=1e-9)


def classifier(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches(count: int, seed: int = 0, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    x, y = normal(count, 4, seed=seed), (torch.arange(count) * 7 + seed) % 3
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("mc_samples", [None, 1, 2])
def test_the_scores_of_a_network_are_those_of_the_dense_matrix(mc_samples: int | None) -> None:
    model = classifier()
    objective = woodbury.Objective.from_model(model, batches(20))
    tests = woodbury.Objective.from_model(model, batches(8, seed=1))
    train, test = gradient_rows(objective, 20), gradient_rows(tests, 8)
    rows, k = train, 1
    if mc_samples is not None:
        k = mc_samples
        rows = gradient_rows(gauss_newton_rows(objective, k), 20 * k)
    eye = torch.eye(rows.shape[1], dtype=torch.float64)
    matrix = rows.mT @ rows / len(rows) + 0.01 * eye
    found = influence(model, batches(20), batches(8, 1), damping=0.01, mc_samples=mc_samples)
    expected = test @ torch.linalg.solve(matrix, train.mT) / 20
    torch.testing.assert_close(found.scores, expected, rtol=1e-8, atol=1e-12)
    own = (train @ torch.linalg.solve(matrix, train.mT)).diagonal() / 20
    torch.testing.assert_close(found.self_influence, own, rtol=1e-8, atol=1e-12)
    for sample in (0, 13):
        without = rows[sample * k : (sample + 1) * k]
        less = matrix - without.mT @ without / len(rows)
        step = torch.linalg.solve(less, train[sample]) / 20
        torch.testing.assert_close(
            found.leave_one_out[:, sample], test @ step, rtol=1e-7, atol=1e-12
        )


def test_rows_on_a_disk_and_in_memory_give_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = row_store._open
    monkeypatch.setattr(row_store, "_open", lambda *file: opened.append(file) or real(*file))
    torch.manual_seed(0)
    # Gradients of PReLU are no outer products, so that rows are written out.
    model = nn.Sequential(nn.Linear(4, 100), nn.PReLU(), nn.Linear(100, 3))
    train = [(x.float(), y) for x, y in batches(40)]
    here = influence(model, train, train[:1], damping=1e-3)
    assert not opened
    # Half of it is for the rows, which take 47 · 804 · 4 bytes.
    there = influence(model, train, train[:1], damping=1e-3, memory=200_000, scratch=tmp_path)
    assert (there.scores - here.scores).norm() < 1e-4 * here.scores.norm()
    assert opened == [(tmp_path, 47 * 804 * 4)]
    assert not list(tmp_path.iterdir())


def test_float32_is_answered_by_products_in_float64_where_the_damping_is_small() -> None:
    model = classifier().float()
    train = [(x.float(), y) for x, y in batches(40)]
    found = influence(model, train, train[:1], damping=1e-9)
    exact = influence(model.double(), batches(40), batches(40)[:1], damping=1e-9)
    error = (found.scores - exact.scores).norm() / exact.scores.norm()
    assert error < 1e-2


def test_the_search_takes_the_ridge_of_least_held_out_error() -> None:
    """On a linear model the predicted loss is the true one, up to a constant."""
    x, y, x_test, y_test = regression()
    held_out = (normal(50, WIDTH, seed=5), normal(50, 1, seed=6))
    dampings = (1e-3, 1e-2, 0.1, 1.0, 10.0)

    def true_loss(damping: float) -> Tensor:
        w = torch.linalg.solve(
            x.mT @ x / N + damping * torch.eye(WIDTH, dtype=torch.float64), x.mT @ y / N
        )
        return (held_out[0] @ w - held_out[1]).square().mean()

    found = influence(
        linear(normal(WIDTH, seed=9)),  # from wherever the network stands
        [(x, y)],
        [(x_test, y_test)],
        damping=RidgeSearch([held_out], dampings),
        mc_samples=1,
        likelihood=squared_error,
    )
    assert found.damping == min(dampings, key=true_loss)


def test_rows_by_labels_are_judged_by_their_quadratic_of_held_out_samples() -> None:
    model = classifier()
    objective = woodbury.Objective.from_model(model, batches(20))
    rows = gradient_rows(objective, 20)
    judged = gradient_rows(woodbury.Objective.from_model(model, batches(30, 2)), 30)
    dampings = (1e-4, 1e-2, 1.0, 100.0)

    def loss(damping: float) -> float:
        matrix = rows.mT @ rows / 20 + damping * torch.eye(rows.shape[1], dtype=torch.float64)
        way = -torch.linalg.solve(matrix, rows.mean(0) + damping * objective.weights)
        return float((1 + judged @ way).square().mean())

    found = influence(
        model, batches(20), batches(8, 1), damping=RidgeSearch(batches(30, 2), dampings)
    )
    assert found.damping == min(dampings, key=loss)


def test_cross_validation_is_that_of_golub_heath_and_wahba() -> None:
    model = classifier()
    objective = woodbury.Objective.from_model(model, batches(20))
    rows = gradient_rows(objective, 20)
    target = rows @ objective.weights - 1
    dampings = (1e-3, 1e-2, 1e-1)

    def score(damping: float) -> float:
        kernel = rows @ rows.mT
        hat = kernel @ torch.linalg.inv(kernel + 20 * damping * torch.eye(20, dtype=torch.float64))
        left = torch.eye(20, dtype=torch.float64) - hat
        return float((left @ target).square().mean() / (left.trace() / 20) ** 2)

    found = influence(model, batches(20), batches(8, 1), damping=RidgeSearch(dampings=dampings))
    assert found.damping == min(dampings, key=score)
    assert influence(model, batches(20), batches(8, 1)).damping > 0


def test_the_model_is_unchanged_and_top_names_the_strongest() -> None:
    model = classifier().train()
    data = batches(20)
    with unchanged(model, data):
        found = influence(model, data, batches(8, 1))
    best, worst = found.top(2), found.top(2, harmful=True)
    assert bool((found.scores.max(1).indices == best[:, 0]).all())
    assert bool((found.scores.min(1).indices == worst[:, 0]).all())
    assert repr(found).startswith("Influence(tests=8, samples=20, damping=")


def test_a_counterfactual_measures_by_retraining() -> None:
    x, y, x_test, y_test = regression()
    found, weights = found_on_ridge()
    checked = counterfactual(
        found,
        lambda places: linear(ridge(x[places], y[places])),
        [(x_test, y_test)],
        sample=2,
        k=3,
        likelihood=squared_error,
    )
    assert checked.left_out.tolist() == found.top(3)[2].tolist()
    kept = [i for i in range(N) if i not in checked.left_out]
    loss = lambda w: 0.5 * (x_test[2] @ w - y_test[2, 0]).square()  # noqa: E731
    assert checked.measured == pytest.approx(float(loss(ridge(x[kept], y[kept])) - loss(weights)))
    assert checked.predicted == pytest.approx(float(found.scores[2].topk(3).values.sum()))
    assert checked.measured > checked.predicted > 0  # to first order, and without their curvature


def dense_scores(model: nn.Module, data: Any, test: Any, count: int) -> Tensor:
    """(t, count), with the inverse of the matrix written out; damping 0.1."""
    train = gradient_rows(woodbury.Objective.from_model(model, data), count)
    tests = gradient_rows(woodbury.Objective.from_model(model, test), 8)
    matrix = train.mT @ train / count + 0.1 * torch.eye(train.shape[1], dtype=torch.float64)
    return tests @ torch.linalg.solve(matrix, train.mT) / count


def test_in_an_average_each_network_counts_the_same() -> None:
    models = [classifier(0), classifier(1)]
    models[1][2].weight.data.mul_(5)  # pyright: ignore[reportIndexIssue]  # larger gradients
    test = batches(8, 1)
    mean = Influence.averaged([influence(m, batches(20), test, damping=0.1) for m in models])
    dense = [dense_scores(model, batches(20), test, 20) for model in models]
    for sample in range(8):
        lengths = [scores[sample].norm() for scores in dense]
        unit = (dense[0][sample] / lengths[0] + dense[1][sample] / lengths[1]) / 2
        expected = unit * (lengths[0] + lengths[1]) / 2
        torch.testing.assert_close(mean.scores[sample], expected, rtol=1e-8, atol=1e-12)
    assert not torch.allclose(mean.scores, (dense[0] + dense[1]) / 2, rtol=0.01)


def test_networks_of_halves_are_averaged_by_the_places_of_their_samples() -> None:
    x, y = normal(20, 4), torch.arange(20) * 7 % 3
    halves = [torch.tensor([*range(8), 19]), torch.arange(5, 20).flip(0)]
    test = batches(8, 1)
    several = [
        influence(classifier(seed), [(x[own], y[own])], test, damping=0.1)
        for seed, own in enumerate(halves)
    ]
    mean = Influence.averaged(several, halves)
    dense = [
        dense_scores(classifier(seed), [(x[own], y[own])], test, len(own))
        for seed, own in enumerate(halves)
    ]
    lengths = [scores.norm(dim=1) for scores in dense]
    own = several[0].self_influence, several[1].self_influence
    for sample in range(20):
        terms, sizes = [], []
        for k, places in enumerate(halves):
            for at in (places == sample).nonzero().flatten().tolist():
                terms.append(dense[k][:, at] / lengths[k])
                sizes.append(own[k][at])
        expected = sum(terms) / len(terms) * (lengths[0] + lengths[1]) / 2
        torch.testing.assert_close(mean.scores[:, sample], expected, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(mean.self_influence[sample], sum(sizes) / len(sizes))


def _nan_inputs() -> list[tuple[Tensor, Tensor]]:
    return [(torch.full((6, 4), torch.nan, dtype=torch.float64), torch.zeros(6).long())]


SHUFFLED = DataLoader(TensorDataset(torch.zeros(6, 4), torch.zeros(6).long()), 3, shuffle=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"test": _nan_inputs()}, "In test: Gradient 0 is not finite"),
        ({"train": _nan_inputs()}, "In train: Gradient 0 is not finite|loss"),
        ({"train": SHUFFLED}, "train is a DataLoader that shuffles"),
        ({"test": [(torch.zeros(0, 4), torch.zeros(0).long())]}, "test holds no samples"),
        ({"test": [(normal(3, 4), torch.full((3,), -100))]}, "Every gradient of test is zero"),
        ({"test": [(normal(3, 4), None)]}, "In test: The batches carry no labels"),
        ({"test": [(normal(3, 9), torch.zeros(3).long())]}, "In test: "),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"damping": "auto"}, "damping is 'auto'"),
        ({"mc_samples": 2}, "have no cross-validation"),
        ({"mc_samples": 0, "damping": 0.1}, "mc_samples is 0"),
        ({"memory": 1000}, "inner products of 29 gradients need"),
        ({"include": "nowhere"}, "include pattern 'nowhere' matches no parameter"),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_sentence(
    change: dict[str, Any], sentence: str
) -> None:
    arguments = {"train": batches(20), "test": batches(8, 1), **change}
    with pytest.raises(WoodburyError, match=sentence):
        influence(classifier(), **arguments)


def test_a_search_refuses_what_it_cannot_use() -> None:
    with pytest.raises(WoodburyError, match="can be read only once"):
        RidgeSearch(iter(batches(8)))
    with pytest.raises(WoodburyError, match="dampings is empty"):
        RidgeSearch(dampings=())
    with pytest.raises(WoodburyError, match=r"damping is 0\.0"):
        RidgeSearch(dampings=(0.0,))


def test_scores_of_other_data_are_refused() -> None:
    found = influence(classifier(), batches(20), batches(8, 1), damping=0.1)
    other = influence(classifier(), batches(14), batches(8, 1), damping=0.1)
    with pytest.raises(WoodburyError, match="of the same test samples, and of the same training"):
        Influence.averaged([found, other])
    halves = [torch.arange(20), torch.arange(14)]
    with pytest.raises(WoodburyError, match="Network 0 has scores of 20 training samples and 14"):
        Influence.averaged([found, other], halves[::-1])
    with pytest.raises(WoodburyError, match="places of 1 networks, and there are 2"):
        Influence.averaged([found, other], halves[:1])
    with pytest.raises(WoodburyError, match="Training sample 20 belongs to no network"):
        Influence.averaged([found, other], [torch.arange(20), torch.arange(14) + 21])
    with pytest.raises(WoodburyError, match="places of network 1 are negative or repeat"):
        Influence.averaged([found, other], [torch.arange(20), torch.zeros(14).long()])
    with pytest.raises(WrongType, match="trained_on is no list of places"):
        Influence.averaged([found], [torch.ones(20) > 0])
    with pytest.raises(WrongType, match="no list of Influence"):
        Influence.averaged([found.scores])  # pyright: ignore[reportArgumentType]
    with pytest.raises(WoodburyError, match="k is 21"):
        found.top(21)

    def retrain(places: Tensor) -> Any:
        return classifier() if len(places) == 20 else None

    with pytest.raises(WoodburyError, match="test has 7 samples and the scores are of 8"):
        counterfactual(found, retrain, batches(7, 1), 0)
    with pytest.raises(WrongType, match="retrain gave a NoneType"):
        counterfactual(found, retrain, batches(8, 1), 0)
    with pytest.raises(WoodburyError, match=r"trains again fails.*ZeroDivisionError"):
        counterfactual(found, lambda _: 1 / 0, batches(8, 1), 0)  # pyright: ignore


def test_inner_products_that_overflow_are_named() -> None:
    rows = torch.full((2, 3), 1e30)
    with pytest.raises(WoodburyError, match="overflow float32"):
        InnerProducts.of(rows, slice(0, 1), torch.float32)
