"""Rows of G against one ordinary backward pass per sample, on nets of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from support.limits import Limited
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.engines import fastest, looped, vmapped
from woodbury.estimation.gradients import gradient_chunks, gradient_rows, mean_gradient
from woodbury.estimation.labels import observed, sampled
from woodbury.model.likelihood import Likelihood, cross_entropy, squared_error
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.monitor import progress


class Tied(nn.Module):
    """One matrix as embedding and as output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = (
            nn.Embedding(5, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 5, bias=False),
        )
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(words)).tanh().mean(1))


class Branching(nn.Module):
    """Control flow that depends on the data: vmap refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.split(1)
        return torch.cat([self.first(r) if r.sum().item() > 0 else self.second(r) for r in rows])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def normed() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    net(normal(20, 2, 4, 4, seed=7) * 2 + 1)  # running statistics that are not 0 and 1
    return net


def grouped() -> nn.Module:
    convolutions = nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 6, 2, groups=6, bias=False)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(6, 3))


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.5, batch_first=True)
    return nn.Sequential(layer, nn.LayerNorm(4), nn.Flatten(), nn.Linear(12, 3))


class Net(NamedTuple):
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    classes: int = 3
    vmaps: bool = True


def words(*shape: int) -> Tensor:
    return torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(3))


COUNT = 11
NETS = [
    Net("linear", lambda: nn.Linear(4, 3), lambda: normal(COUNT, 4)),
    Net("convolution and BatchNorm", normed, lambda: normal(COUNT, 2, 4, 4)),
    Net("grouped and depthwise convolutions", grouped, lambda: normal(COUNT, 4, 4, 4)),
    Net(
        "LayerNorm",
        lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)),
        lambda: normal(COUNT, 4),
    ),
    Net("attention", attention, lambda: normal(COUNT, 3, 4)),
    Net(
        "embedding",
        lambda: nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 3)),
        lambda: words(COUNT, 3),
    ),
    Net(
        "bag of embeddings",
        lambda: nn.Sequential(nn.EmbeddingBag(5, 2), nn.Linear(2, 3)),
        lambda: words(COUNT, 3),
    ),
    Net("tied weights", Tied, lambda: words(COUNT, 3), 5),
    Net("recurrent", Recurrent, lambda: normal(COUNT, 5, 3), vmaps=False),
    Net("control flow by data", Branching, lambda: normal(COUNT, 4), vmaps=False),
]


def objective_of(net: Net) -> Objective:
    torch.manual_seed(1)
    model, inputs = net.build().double(), net.inputs()
    target = torch.arange(len(inputs)) % net.classes
    return Objective.from_model(model, [(inputs[:4], target[:4]), (inputs[4:], target[4:])])


def one_by_one(objective: Objective) -> Tensor:
    """The truth: the user's own loss.backward() on each sample."""
    model, found = objective.model, []
    with eval_mode(model):
        for inputs, target in objective.batches.in_batches(1):
            model.zero_grad()
            objective.likelihood.loss(model(inputs), target).backward()
            named = {
                name: torch.zeros_like(p) if p.grad is None else p.grad
                for name, p in model.named_parameters()
            }
            found.append(objective.space.flatten(named))
    model.zero_grad()
    return torch.stack(found)


@pytest.fixture(params=NETS, ids=lambda net: net.name)
def objective(request: pytest.FixtureRequest) -> Objective:
    return objective_of(request.param)


LINEAR = NETS[0]


def test_rows_are_the_gradients_of_single_samples(objective: Objective) -> None:
    truth = one_by_one(objective)
    assert truth.abs().sum(1).min() > 0
    torch.testing.assert_close(gradient_rows(objective, COUNT), truth)
    torch.testing.assert_close(gradient_rows(objective, 6), truth[:6])


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_the_two_engines_agree_and_the_loop_takes_over_where_vmap_fails(net: Net) -> None:
    objective = objective_of(net)
    truth = gradient_rows(objective, COUNT, engine=looped)
    torch.testing.assert_close(truth, one_by_one(objective))
    with eval_mode(objective.model):
        chosen = fastest(objective, *next(iter(objective.batches)))
    if net.vmaps:
        torch.testing.assert_close(gradient_rows(objective, COUNT, engine=vmapped), truth)
    else:
        assert chosen is looped
        with pytest.raises(WoodburyError, match="take engine=looped"):
            gradient_rows(objective, COUNT, engine=vmapped)


def test_the_model_is_left_as_it_was(objective: Objective) -> None:
    model = objective.model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradient_rows(objective, COUNT)
    mean_gradient(objective)
    assert all(module.training for module in model.modules())
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_generator_closed_early_restores_the_mode() -> None:
    objective = objective_of(LINEAR)
    stream = gradient_chunks(objective, COUNT, engine=looped)
    next(stream)
    stream.close()
    assert objective.model.training


def test_frozen_parameters_have_rows_all_the_same() -> None:
    objective = objective_of(LINEAR)
    truth = one_by_one(objective)
    objective.model.requires_grad_(False)
    for engine in (vmapped, looped):
        torch.testing.assert_close(gradient_rows(objective, COUNT, engine=engine), truth)


def test_rows_carry_no_graph() -> None:
    model = objective_of(LINEAR).model
    part = Objective.from_model(
        model, objective_of(LINEAR).batches, space=ParameterSpace.from_model(model, "weight")
    )
    for options in ({"engine": looped}, {"batch": 2}, {"engine": vmapped}):
        assert not gradient_rows(part, 3, **options).requires_grad
    assert not mean_gradient(part).requires_grad


def test_an_outer_no_grad_does_not_matter() -> None:
    objective = objective_of(LINEAR)
    truth = one_by_one(objective)
    with torch.no_grad():
        torch.testing.assert_close(mean_gradient(objective), truth.mean(0))
        torch.testing.assert_close(gradient_rows(objective, COUNT), truth)


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_batch_rows_are_scaled_means(batch: int) -> None:
    objective = objective_of(LINEAR)
    single, count = one_by_one(objective), COUNT // batch
    truth = batch**0.5 * single[: count * batch].view(count, batch, -1).mean(1)
    found = gradient_rows(objective, count, batch=batch)
    torch.testing.assert_close(found, truth)
    torch.testing.assert_close(found.mean(0) / batch**0.5, mean_gradient(objective, count * batch))


def test_mean_gradient_weighs_every_sample_alike(objective: Objective) -> None:
    single = one_by_one(objective)
    if not isinstance(objective.model, Branching):  # which decides by the batch
        torch.testing.assert_close(mean_gradient(objective), single.mean(0))
        torch.testing.assert_close(mean_gradient(objective, 5), single[:5].mean(0))
        many = Objective.from_model(
            objective.model, list(objective.batches) * 30
        )  # more than one group of 256
        torch.testing.assert_close(mean_gradient(many), single.mean(0))


def softmax_linear(labels: Tensor | None = None) -> tuple[Objective, Tensor]:
    """A linear classifier of two samples, and its true Fisher: mean of (diag p − p pᵀ) ⊗ x xᵀ."""
    torch.manual_seed(2)
    model, x = nn.Linear(2, 3, bias=False).double(), normal(2, 2, seed=5)
    p = model(x).softmax(1).detach()
    fisher = torch.stack(
        [torch.kron(q.diag() - q.outer(q), z.outer(z)) for q, z in zip(p, x, strict=True)]
    ).mean(0)
    return Objective.from_model(model, [(x, labels)]), fisher


def test_batch_rows_have_the_fisher_as_their_exact_expectation() -> None:
    """Over all labels, √2 · mean of two gradients has the second moment of one gradient."""
    objective, truth = softmax_linear()
    x = next(iter(objective.batches))[0]
    p = objective.model(x).softmax(1).detach()
    moment = torch.zeros_like(truth)
    for first, second in product(range(3), range(3)):
        one = softmax_linear(torch.tensor([first, second]))[0]
        row = gradient_rows(one, 1, batch=2)[0]
        moment += p[0, first] * p[1, second] * row.outer(row)
    torch.testing.assert_close(moment, truth)


@pytest.mark.parametrize("batch", [1, 2])
def test_sampled_labels_approach_the_true_fisher(batch: int) -> None:
    objective, truth = softmax_linear()  # whose targets are None
    draws = 3000
    many = Objective.from_model(objective.model, list(objective.batches) * (draws * batch // 2))
    found = gradient_rows(
        many, draws, batch=batch, labels=sampled, generator=torch.Generator().manual_seed(0)
    )
    products = found[:, :, None] * found[:, None, :]
    error = (products.mean(0) - truth).abs()
    assert bool(
        (error < 4.5 * products.std(0) / draws**0.5).all()
    )  # 36 entries at 4.5 standard errors
    assert float(error.max()) < 0.1 * float(truth.abs().max())


def test_sampled_labels_are_fixed_by_the_seed() -> None:
    objective, _ = softmax_linear()
    many = Objective.from_model(objective.model, list(objective.batches) * 10)

    def drawn(seed: int) -> Tensor:
        return gradient_rows(
            many, 20, labels=sampled, engine=looped, generator=torch.Generator().manual_seed(seed)
        )

    torch.testing.assert_close(drawn(1), drawn(1), rtol=0, atol=0)
    assert not torch.equal(drawn(1), drawn(2))


def test_sampled_regression_labels_have_unit_variance() -> None:
    model = nn.Linear(1, 1).double()
    data = [(torch.full((2000, 1), 3.0, dtype=torch.float64), None)]
    found = gradient_rows(
        Objective.from_model(model, data, squared_error),
        2000,
        labels=sampled,
        generator=torch.Generator().manual_seed(0),
    )
    truth = torch.tensor([[9.0, 3.0], [3.0, 1.0]], dtype=torch.float64)  # x xᵀ with x = (3, 1)
    torch.testing.assert_close(
        found.mT @ found / 2000, truth, rtol=5 * (2 / 2000) ** 0.5, atol=0
    )  # χ² at 5 sigma


def test_rows_of_a_restricted_space_are_the_columns_kept(objective: Objective) -> None:
    keep = torch.arange(objective.space.d) % 3 != 1
    small = objective.at(objective.weights[keep], objective.space.restrict(keep))
    whole = objective.at(small.space.expand(small.weights))
    for options in ({}, {"batch": 3}):
        torch.testing.assert_close(
            gradient_rows(small, 3, **options), gradient_rows(whole, 3, **options)[:, keep]
        )
    torch.testing.assert_close(mean_gradient(small), mean_gradient(whole)[keep])


@pytest.mark.parametrize(
    ("count", "batch", "says"),
    [
        (12, 1, "gave 11 of the 12 rows"),
        (4, 3, "gave 3 of the 4 rows of 3"),
        (1, 12, "gave 0 of the 1 rows of 12"),
        (0, 1, "at least 1"),
        (3, 0, "at least 1"),
    ],
)
def test_too_little_data_says_how_much_there_was(count: int, batch: int, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        gradient_rows(objective_of(LINEAR), count, batch=batch)
    assert len(gradient_rows(objective_of(LINEAR), 3, batch=3)) == 3


def test_mean_gradient_of_too_little_data() -> None:
    objective = objective_of(LINEAR)
    with pytest.raises(WoodburyError, match="gave 11 of the 12 samples"):
        mean_gradient(objective, 12)
    with pytest.raises(WoodburyError, match="gave 0"):
        mean_gradient(Objective.from_model(objective.model, []))


def test_a_batch_without_samples_counts_for_nothing() -> None:
    empty = torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(WoodburyError, match="gave 0 of the 3 rows"):
        gradient_rows(Objective.from_model(objective_of(LINEAR).model, [empty]), 3)


class Rooted(nn.Module):
    """√(x·s) + linear: at x = 0 the gradient of s alone is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.root = nn.Linear(1, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (x * self.root).sqrt()


@pytest.mark.parametrize("options", [{"engine": looped}, {"engine": vmapped}, {}])
@pytest.mark.parametrize("restricted", [False, True])
def test_a_gradient_that_is_not_finite_is_named(options: dict[str, Any], restricted: bool) -> None:
    x = torch.ones(90, 1, dtype=torch.float64)
    x[77] = 0
    objective = Objective.from_model(Rooted().double(), [(x, torch.zeros(90, dtype=torch.int64))])
    if restricted:
        keep = torch.tensor([True, False, False, True, False, True])
        objective = objective.at(objective.weights[keep], objective.space.restrict(keep))
    assert len(gradient_rows(objective, 77, **options)) == 77
    with pytest.raises(WoodburyError, match="Gradient 77 is not finite at parameter 'root'"):
        gradient_rows(objective, 78, **options)


def test_half_precision_rows_of_many_weights_are_finite() -> None:
    model, x = nn.Linear(1000, 100).half(), torch.ones(3, 1000).half()
    likelihood = Likelihood(lambda output, target: output.float().sum(1).mean())
    found = gradient_rows(Objective.from_model(model, [(x, x)], likelihood), 3, engine=looped)
    torch.testing.assert_close(found, torch.ones_like(found))


@pytest.mark.parametrize(
    ("labels", "likelihood", "target", "says"),
    [
        (observed, cross_entropy, None, "carry no labels"),
        (sampled, Likelihood(cross_entropy.loss), None, "cannot draw labels"),
        (observed, Likelihood(lambda output, target: output.sum(1)), 0, r"tensor of shape \(3,\)"),
        (observed, Likelihood(lambda output, target: float(output.sum())), 0, "gave float"),
        (observed, Likelihood(lambda output, target: output.detach().mean()), 0, "does not depend"),
        (observed, squared_error, 0, "must be equal"),
    ],
)
def test_labels_and_losses_that_do_not_fit(
    labels, likelihood: Likelihood, target, says: str
) -> None:
    labelled = None if target is None else torch.zeros(3, dtype=torch.int64)
    objective = Objective.from_model(
        nn.Linear(2, 2).double(), [(normal(3, 2), labelled)], likelihood
    )
    with pytest.raises(WoodburyError, match=says):
        gradient_rows(objective, 3, labels=labels)
    assert objective.model.training


def test_sampling_from_outputs_that_are_not_finite_is_named() -> None:
    objective = Objective.from_model(nn.Linear(2, 2), [(torch.full((3, 2), float("nan")), None)])
    with pytest.raises(WoodburyError, match="finite"):
        gradient_rows(objective, 3, labels=sampled)


def test_fewer_labels_than_samples_are_named() -> None:
    with pytest.raises(WoodburyError, match="label"):
        gradient_rows(
            Objective.from_model(
                nn.Linear(4, 3).double(), [(normal(5, 4), torch.zeros(4, dtype=torch.int64))]
            ),
            5,
        )


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
    ],
)
def test_chunks_stay_within_the_memory_budget(dtype: torch.dtype, limited: Limited) -> None:
    model, x = nn.Linear(30, 10).to(dtype), normal(50, 30).to(dtype)
    objective = Objective.from_model(model, [(x, torch.zeros(50, dtype=torch.int64))])
    whole = gradient_rows(objective, 50, engine=vmapped)
    limited(gradient_chunk=10_000)
    chunks = list(gradient_chunks(objective, 50, engine=vmapped))
    torch.testing.assert_close(torch.cat(chunks), whole)
    assert max(2 * chunk.numel() * chunk.element_size() for chunk in chunks) <= 10_000  # two copies
    assert whole.untyped_storage().nbytes() == 50 * 310 * whole.element_size()
    limited(gradient_chunk=1)
    assert [len(chunk) for chunk in gradient_chunks(objective, 3, engine=vmapped)] == [1, 1, 1]


def test_progress_counts_rows() -> None:
    seen: list[tuple[str, int, int]] = []
    with progress(lambda *what: seen.append(what)):
        gradient_rows(objective_of(LINEAR), 3, batch=2)
    assert seen == [("gradients", 1, 3), ("gradients", 2, 3), ("gradients", 3, 3)]


def test_a_chosen_part_of_the_parameters() -> None:
    objective = objective_of(NETS[1])
    part = Objective.from_model(
        objective.model, objective.batches, space=ParameterSpace.from_model(objective.model, "4.*")
    )
    torch.testing.assert_close(
        gradient_rows(part, COUNT),
        one_by_one(objective)[:, objective.space.slices["4.weight"].start :],
    )


class Sequences(nn.Module):
    """A layer over sequences of any length, whose output is a dict, and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)

    def forward(self, words: Tensor, double: bool) -> dict[str, Tensor]:
        return {"logits": self.head(self.embed(words)) * (2 if double else 1)}


def sequences(*lengths: int) -> Objective:
    torch.manual_seed(1)
    batches = []
    for size, length in zip((2, 1, 2, 3), lengths, strict=True):
        given = words(size, length)
        batches.append(
            ({"words": given, "double": True}, given.masked_fill(torch.arange(length) > 4, -100))
        )
    return Objective.from_model(
        Sequences().double(), batches, cross_entropy.with_output(lambda output: output["logits"].mT)
    )


@pytest.mark.parametrize("engine", [vmapped, looped])
def test_sequences_of_several_lengths_are_grouped_by_length(engine: Any) -> None:
    objective = sequences(3, 3, 6, 2)
    assert [len(inputs["words"]) for inputs, _ in objective.batches.in_batches(64)] == [3, 2, 3]
    assert [len(inputs["words"]) for inputs, _ in objective.batches.in_batches(2, 5)] == [2, 1, 2]
    one_each = [
        Objective.from_model(objective.model, [one], objective.likelihood)
        for one in objective.batches.in_batches(1)
    ]
    truth = torch.stack([mean_gradient(one) for one in one_each])
    torch.testing.assert_close(gradient_rows(objective, 8, engine=engine), truth)
    torch.testing.assert_close(gradient_rows(objective, 4, engine=engine), truth[:4])
    torch.testing.assert_close(mean_gradient(objective), truth.mean(0))


def test_a_row_of_several_samples_takes_them_from_one_length() -> None:
    objective = sequences(3, 3, 6, 2)
    single = gradient_rows(objective, 8)
    truth = 2**0.5 * torch.stack(
        [single[i : i + 2].mean(0) for i in (0, 3, 5)]
    )  # the third and the last are left over
    torch.testing.assert_close(gradient_rows(objective, 3, batch=2), truth)
    with pytest.raises(WoodburyError, match="gave 3 of the 4 rows"):
        gradient_rows(objective, 4, batch=2)


def test_no_label_is_drawn_where_the_data_have_none() -> None:
    objective = sequences(6, 6, 6, 6)
    for inputs, target in objective.batches:
        drawn = sampled(objective, inputs, target, torch.Generator().manual_seed(0))
        assert bool((drawn[:, 5] == -100).all()) and bool((drawn[:, :5] >= 0).all())
        assert not torch.equal(drawn, target)
    one = torch.full((1, 6), -100)
    empty = Objective.from_model(
        objective.model, [(list(objective.batches)[1][0], one)], objective.likelihood
    )
    assert empty.loss() == 0 and not gradient_rows(empty, 1).any()


@pytest.mark.parametrize("pruned", [False, True])
def test_rows_of_a_large_network_take_turns_in_memory(
    pruned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(LINEAR)
    if pruned:
        keep = torch.arange(objective.space.n) % 3 > 0
        objective = objective.at(objective.weights[keep], objective.space.restrict(keep))
    expected = gradient_rows(objective, COUNT, engine=looped)
    monkeypatch.setattr("woodbury.estimation.gradients.WEIGHTS_TO_LOOP", 0)
    # Rows that are held keep their values, and a view holds a row.
    held = torch.cat([row[:, 1:] for row in gradient_chunks(objective, COUNT)])
    torch.testing.assert_close(held, expected[:, 1:])
    places = set()
    for number, row in enumerate(gradient_chunks(objective, COUNT)):
        torch.testing.assert_close(row[0], expected[number])
        places.add(row.data_ptr())
    assert len(places) == 2  # one row is held while the next is computed


def test_labels_of_a_large_network_are_drawn_by_the_forward_pass_of_the_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective, passes = objective_of(LINEAR), []
    objective.model.register_forward_hook(lambda *_: passes.append(1))

    def rows(**options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return gradient_rows(objective, COUNT, labels=sampled, generator=generator, **options)

    expected = rows(engine=looped)
    assert not torch.equal(expected, gradient_rows(objective, COUNT, engine=looped))
    monkeypatch.setattr("woodbury.estimation.gradients.WEIGHTS_TO_LOOP", 0)
    passes.clear()
    torch.testing.assert_close(rows(), expected)
    assert len(passes) == COUNT


def test_a_large_network_whose_labels_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("woodbury.estimation.gradients.WEIGHTS_TO_LOOP", 0)
    objective = objective_of(LINEAR)
    unable = replace(objective.likelihood, sample=None)
    with pytest.raises(WoodburyError, match="cannot draw labels"):
        gradient_rows(replace(objective, likelihood=unable), COUNT, labels=sampled)

    def failing(*_: Any) -> Tensor:
        raise ValueError("no such distribution")

    failing_too = replace(objective.likelihood, sample=failing)
    with pytest.raises(WoodburyError, match="function of the labels fails"):
        gradient_rows(replace(objective, likelihood=failing_too), COUNT, labels=sampled)
