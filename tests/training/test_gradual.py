"""Gradual pruning in a loop of the user's own: when, how much, what is held, and resuming."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from woodbury.errors import WoodburyError
from woodbury.estimation.engines import looped, vmapped
from woodbury.estimation.recipes import mfac, woodfisher
from woodbury.memory import row_bytes
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.prediction import IncreaseInterval
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.schedule import geometric, polynomial, pruning_steps
from woodbury.pruning.scopes import layerwise
from woodbury.pruning.updates import zero
from woodbury.training.gradual import Gradual
from woodbury.training.learning_rate import cosine_restarts

BY_MAGNITUDE = Pruner(fisher=None, saliency=magnitude, update=zero)
EXACT = Pruner(mfac(60, 1e-2, engine=vmapped))


def data() -> tuple[Tensor, Tensor]:
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    return noise + 2 * torch.eye(3, 8)[labels], labels


BATCHES: list[Batch] = [data()]


def network() -> nn.Sequential:
    """150 weights in matrices."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 7)
    )


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(), 0.05, **{"momentum": 0.9, "weight_decay": 0.01, **options}
    )


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, scheduler: Any = None
) -> None:
    inputs, labels = data()
    model.train()
    for _ in range(steps):
        batch = torch.randint(60, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()


def zeros(model: nn.Module) -> int:
    return sum(
        int((parameter == 0).sum()) for parameter in model.parameters() if parameter.ndim > 1
    )


def test_pruning_steps_are_spread_from_start_to_end() -> None:
    assert pruning_steps(3, 10, every=3) == [3, 6, 9]
    assert pruning_steps(1, 10, steps=4) == [1, 4, 7, 10]
    assert pruning_steps(5, 9, steps=1) == [9]
    assert pruning_steps(2, 4, steps=3) == [2, 3, 4] and pruning_steps(4, 4, every=1) == [4]
    for size in range(1, 30):
        found = pruning_steps(1, 29, steps=size)
        assert len(set(found)) == size and found == sorted(found) and found[-1] == 29


@pytest.mark.parametrize(
    "pruner", [EXACT, BY_MAGNITUDE, Pruner(woodfisher(60, 20, 1e-2), scope=layerwise)]
)
def test_each_step_is_the_pruner_on_the_weights_reached(pruner: Pruner) -> None:
    model = network()
    optimizer = sgd(model)
    steps: list[tuple[Objective, float, Tensor, Pruned]] = []
    buffers: list[list[Tensor]] = []

    def recorded(objective: Objective, sparsity: float) -> Pruned:
        weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1])
        result = pruner(objective, sparsity)
        steps.append((objective, sparsity, weights, result))
        buffers.append([buffer.clone() for buffer in model.buffers()])
        return result

    gradual = Gradual(
        model,
        optimizer,
        BATCHES,
        0.8,
        start=3,
        end=13,
        every=5,
        pruner=recorded,
        score=Objective.loss,
    )
    assert gradual.sparsity == 0
    train(model, optimizer, 2)
    assert gradual.step == 2 and not gradual.history and zeros(model) == 0
    wanted, counts = polynomial(0.8, 3), []
    for at in (3, 8, 13):
        train(model, optimizer, at - gradual.step)
        counts.append(zeros(model))
        objective, _, weights, result = steps[-1]
        assert torch.equal(objective.space.expand(objective.weights), weights)
        written = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1])
        assert torch.equal(written, result.weights) and torch.equal(gradual.space.keep, result.keep)
        assert torch.equal(written == 0, ~result.keep) and model.training
        assert all(map(torch.equal, buffers[-1], model.buffers()))
        done = gradual.history[-1]
        assert (done.step, done.sparsity, done.predicted) == (at, result.sparsity, result.predicted)
        assert done.before == objective.loss() and done.after == result.objective.loss()
        momentum = optimizer.state[model[0].weight]["momentum_buffer"]  # type: ignore[index]
        assert bool((momentum[model[0].weight == 0] == 0).all())
    assert [entry[1] for entry in steps] == wanted
    assert counts == [round(150 * sparsity) for sparsity in wanted] or pruner.scope is layerwise
    train(model, optimizer, 10)
    assert (
        zeros(model) == 120 and len(gradual.history) == 3 and gradual.sparsity == pytest.approx(0.8)
    )
    gradual.remove()
    train(model, optimizer, 5)
    assert zeros(model) < 100 and gradual.step == 23


def test_fresh_samples_at_each_step_and_the_random_numbers_of_the_loop() -> None:
    def run(pruned: bool) -> tuple[list[int], Tensor]:
        model, asked = network(), []
        optimizer = sgd(model)

        def batches(step: int) -> DataLoader:
            asked.append(step)
            return DataLoader(TensorDataset(*data()), batch_size=20, shuffle=True)

        torch.manual_seed(5)
        if pruned:
            Gradual(model, optimizer, batches, 0.5, end=5, every=2)
        train(model, optimizer, 6)
        return asked, torch.rand(3)

    (asked, after), (_, alone) = run(True), run(False)
    assert asked == [1, 1, 3, 5] and torch.equal(after, alone)


def test_decay_off_and_zeros_kept() -> None:
    model = network()
    optimizer = sgd(model)
    Gradual(model, optimizer, BATCHES, 0.4, end=3, every=1, pruner=BY_MAGNITUDE, decay_off=True)
    train(model, optimizer, 2)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    train(model, optimizer, 1)
    assert optimizer.param_groups[0]["weight_decay"] == 0 and zeros(model) == 60
    was = [parameter == 0 for parameter in model.parameters() if parameter.ndim > 1]
    other = sgd(model)
    gradual = Gradual(model, other, BATCHES, 0.6, end=4, every=3, pruner=EXACT, keep_zeros=True)
    assert gradual.sparsity == pytest.approx(0.4)
    train(model, other, 4)
    assert zeros(model) == 90 and [round(done.sparsity, 3) for done in gradual.history] == [
        0.573,
        0.6,
    ]
    now = [parameter == 0 for parameter in model.parameters() if parameter.ndim > 1]
    assert all(bool((new | ~old).all()) for old, new in zip(was, now, strict=True))


def test_zeros_are_kept_under_targets_by_name() -> None:
    model = network()
    name = [name for name, parameter in model.named_parameters() if parameter.ndim > 1][-1]
    first = next(parameter for parameter in model.parameters() if parameter.ndim > 1)
    with torch.no_grad():
        first[:, ::2] = 0
    targets, optimizer = {name: 0.05, "*": 0.9}, sgd(model)
    Gradual(
        model, optimizer, BATCHES, targets, end=4, every=1, pruner=BY_MAGNITUDE, keep_zeros=True
    )
    train(model, optimizer, 4)
    last = dict(model.named_parameters())[name]
    assert int((last == 0).sum()) == round(0.05 * last.numel())
    assert int((first == 0).sum()) == round(0.9 * first.numel()) and not first[:, ::2].any()


def make(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, LambdaLR, Gradual]:
    model = network()
    optimizer = sgd(model)
    chosen = {
        "pruner": EXACT,
        "start": 2,
        "end": 14,
        "every": 4,
        "sparsity": 0.8,
        "batches": BATCHES,
        **options,
    }
    gradual = Gradual(model, optimizer, **chosen)
    return (
        model,
        optimizer,
        LambdaLR(optimizer, cosine_restarts(gradual.pruning_steps, 20)),
        gradual,
    )


OTHERS: list[Batch] = [(data()[0].flip(0) + 0.1, data()[1].flip(0))]
"""Samples that nothing is trained on."""


def test_each_step_is_checked_on_samples_held_back() -> None:
    model, checked = network(), []

    def pruner(objective: Objective, sparsity: Any) -> Pruned:
        pruned = EXACT(objective, sparsity)
        checked.append(pruned.checked_on(objective, OTHERS))
        return pruned

    optimizer = sgd(model)
    gradual = Gradual(
        model, optimizer, BATCHES, 0.8, end=9, steps=3, pruner=pruner, held_back=OTHERS
    )
    train(model, optimizer, 9)
    assert [step.predicted_interval for step in gradual.history] == [
        pruned.predicted_interval for pruned in checked
    ]
    assert [step.predicted_warning for step in gradual.history] == [
        pruned.predicted_warning for pruned in checked
    ]
    assert all(step.predicted_interval.samples == 60 for step in gradual.history)


@pytest.mark.parametrize("at", [0, 1, 2, 7, 14, 17])
def test_a_resumed_run_is_the_same_to_the_bit(at: int) -> None:
    model, optimizer, scheduler, gradual = make(held_back=OTHERS)
    torch.manual_seed(1)
    train(model, optimizer, at, scheduler)
    file = io.BytesIO()
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "gradual": gradual}
    torch.save(
        {name: part.state_dict() for name, part in parts.items()} | {"rng": torch.get_rng_state()},
        file,
    )
    train(model, optimizer, 20 - at, scheduler)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = dict(
        zip(("model", "optimizer", "scheduler", "gradual"), make(held_back=OTHERS), strict=True)
    )
    for name in (
        ("gradual", "scheduler", "model", "optimizer")
        if at % 2
        else ("model", "optimizer", "scheduler", "gradual")
    ):
        again[name].load_state_dict(saved[name])
    torch.set_rng_state(saved["rng"])
    assert again["gradual"].step == at
    train(again["model"], again["optimizer"], 20 - at, again["scheduler"])
    assert all(
        torch.equal(tensor, again["model"].state_dict()[name])
        for name, tensor in model.state_dict().items()
    )
    assert (
        again["gradual"].history == gradual.history
        and len(gradual.history) == 4
        and all(isinstance(step.predicted_interval, IncreaseInterval) for step in gradual.history)
        and zeros(model) == 120
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sparsity": 0.9}, "made with sparsity 0.8, now it is 0.9"),
        ({"every": 3}, r"made with pruning_steps \[2, 6, 10, 14\], now it is \[2, 5, 8, 11, 14\]"),
        (
            {"pruner": Pruner(mfac(60, 1e-3, engine=vmapped))},
            "made with pruner.fisher.damping 0.01, now it is 0.001",
        ),
        (
            {"pruner": Pruner(mfac(60, 1e-2, engine=looped))},
            "made with pruner.fisher.engine vmapped, now it is looped",
        ),
        ({"pruner": BY_MAGNITUDE}, "made with pruner.saliency obs, now it is magnitude"),
        ({"schedule": geometric}, "made with schedule polynomial, now it is geometric"),
        ({"exclude": "4.*"}, r"parameters.4.weight \[7, 10\], now it is None"),
        ({"decay_off": True}, "made with decay_off False, now it is True"),
    ],
)
def test_a_state_of_other_settings_is_refused(options: dict[str, Any], sentence: str) -> None:
    model, optimizer, _, gradual = make()
    train(model, optimizer, 7)
    other, _, _, refusing = make(**options)
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(WoodburyError, match=sentence):
        refusing.load_state_dict(gradual.state_dict())
    assert (
        refusing.step == 0
        and refusing.sparsity == 0
        and all(map(torch.equal, before, other.parameters()))
    )
    with pytest.raises(WoodburyError, match="no state of a Gradual"):
        refusing.load_state_dict(model.state_dict())


def no_loss(output: Tensor, target: Tensor) -> Tensor:
    raise ValueError("no loss today")


BAD: dict[str, dict[str, Any]] = {
    "ends at step 5, before it starts at step 9": {"start": 9, "end": 5, "every": 1},
    "starts at step 0": {"start": 0},
    "give one of the two": {"steps": 3},
    "Pruning every 0 steps": {"every": 0},
    "5 pruning steps do not fit from step 2 to step 5: give 1 to 4": {
        "every": None,
        "steps": 5,
        "end": 5,
    },
    "sparsity is 1.5": {"sparsity": 1.5},
    "exclude pattern 'x' matches no parameter": {"exclude": "x"},
    "batches can be read only once": {"batches": iter(BATCHES)},
    "at least 2 samples that are held back, not 0": {"held_back": []},
    "refuses the first batch": {"likelihood": Likelihood(no_loss)},
    "takes no \\(objective, sparsity\\)": {"pruner": mfac(60)},
    "'0.weight', 64 is removed and 60 would be": {"sparsity": 0.4},
    "sparsity 0.64.* is below what is reached already": {
        "keep_zeros": True,
        "pruner": Pruner(None, magnitude, zero, scope=layerwise),
    },
    "The target 'x' matches no parameter": {"sparsity": {"x": 0.5}},
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_input_is_refused_before_any_work(sentence: str) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:8].zero_()  # type: ignore[index, operator]
    optimizer = sgd(model)
    options = {
        "batches": BATCHES,
        "sparsity": 0.8,
        "start": 2,
        "end": 14,
        "every": 4,
        **BAD[sentence],
    }
    with pytest.raises(WoodburyError, match=sentence):
        Gradual(model, optimizer, **options)
    with pytest.raises(WoodburyError, match="none of the model's parameters"):
        Gradual(model, sgd(network()), BATCHES, 0.8, end=3, every=1)
    assert not optimizer._optimizer_step_post_hooks and not model[0].weight._backward_hooks  # type: ignore[union-attr]


def test_a_weight_that_no_loss_depends_on_is_named_at_construction() -> None:
    model = network()
    model.add_module("unused", torch.nn.Linear(4, 4))
    model.forward = lambda x: model[:-1](x)  # type: ignore[method-assign]
    with pytest.raises(WoodburyError, match=r"No gradient reached 'unused.weight'.*exclude="):
        Gradual(model, sgd(model), BATCHES, 0.8, end=3, every=1)
    Gradual(model, sgd(model), BATCHES, 0.8, end=3, every=1, exclude="unused.weight")
    Gradual(model, sgd(model), BATCHES, 0.8, end=3, every=1, pruner=Pruner(None, magnitude, zero))


def test_a_gradient_of_zeros_is_no_reason_to_refuse_training() -> None:
    model = network()
    with torch.no_grad():
        model[-1].weight.zero_()  # type: ignore[union-attr, operator]
    Gradual(model, sgd(model), BATCHES, 0.8, end=3, every=1)


def test_targets_by_name() -> None:
    model = network()
    optimizer = sgd(model)
    Gradual(model, optimizer, BATCHES, {"0.*": 0.75, "*": 0.1}, end=4, every=1, pruner=EXACT)
    train(model, optimizer, 8)
    assert [int((p == 0).sum()) for p in model.parameters() if p.ndim > 1] == [60, 7]


def test_a_gradual_run_keeps_what_one_shot_loses() -> None:
    """With the same training the loss is lower than after one pruning step at the end."""

    def loss(options: dict[str, int], pruner: Callable[..., Pruned]) -> float:
        model = network()
        optimizer = sgd(model)
        torch.manual_seed(3)
        train(model, optimizer, 30)
        Gradual(model, optimizer, BATCHES, 0.9, pruner=pruner, **options)  # type: ignore[arg-type]
        train(model, optimizer, 30)
        return Objective.from_model(model.eval(), BATCHES, cross_entropy).loss()

    assert loss({"start": 1, "end": 30, "steps": 10}, EXACT) < 0.8 * loss(
        {"end": 30, "steps": 1}, EXACT
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_cost_of_a_pruner_inside_others_counts_from_the_start(wrapped: bool) -> None:
    """Half of the first layer is zero already: many weights, and little of the cost."""
    model = network()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    start = Objective.from_model(model, BATCHES, space=ParameterSpace.from_model(model, min_ndim=2))
    pruner = Pruner(None, magnitude, zero, cost=lambda space: 1 + 99.0 * space.tensor_index())
    recipe = WithRefit.around(pruner, start) if wrapped else pruner
    gradual = Gradual(
        model, sgd(model), BATCHES, 0.2, end=1, steps=1, pruner=recipe, keep_zeros=True
    )
    assert gradual.sparsity == pytest.approx(40 / 150)
    train(model, gradual._hold.optimizer, 1)
    assert zeros(model) > 40


def test_a_saved_state_knows_the_network_it_was_refitted_to() -> None:
    model, other = network(), network()
    with torch.no_grad():
        other[0].weight += 1
    recipes = [
        WithRefit.around(
            EXACT,
            Objective.from_model(of, BATCHES, space=ParameterSpace.from_model(of, min_ndim=2)),
            Refit(),
        )
        for of in (model, model, other)
    ]
    first, same, else_ = (
        Gradual(model, sgd(model), BATCHES, 0.5, end=4, steps=2, pruner=r) for r in recipes
    )
    same.load_state_dict(first.state_dict())
    with pytest.raises(WoodburyError, match=r"pruner\.dense\.weights"):
        else_.load_state_dict(first.state_dict())


def test_a_memory_holds_for_every_pruning_step() -> None:
    seen: list[int] = []

    def pruner(objective: Objective, sparsity: Any) -> Pruned:
        seen.append(row_bytes())
        return BY_MAGNITUDE(objective, sparsity)

    model = network()
    optimizer = sgd(model)
    Gradual(model, optimizer, BATCHES, 0.5, end=4, steps=2, pruner=pruner, memory="1MB")
    train(model, optimizer, 5)
    assert seen == [500_000, 500_000]


@pytest.mark.parametrize(
    ("memory", "sentence"),
    [("much", "give bytes or a size such as 6GiB"), ("1kB", "150 weights takes at least 6")],
)
def test_a_memory_without_room_is_refused_before_any_step(memory: str, sentence: str) -> None:
    model = network()
    with pytest.raises(WoodburyError, match=sentence):
        Gradual(model, sgd(model), BATCHES, 0.5, end=4, steps=2, memory=memory)


def test_a_memory_that_runs_out_in_a_step_is_a_sentence() -> None:
    def pruner(objective: Objective, sparsity: Any) -> Pruned:
        raise MemoryError

    model = network()
    optimizer = sgd(model)
    Gradual(model, optimizer, BATCHES, 0.5, end=1, steps=1, pruner=pruner)
    with pytest.raises(WoodburyError, match="The memory ran out: give Gradual"):
        train(model, optimizer, 1)
