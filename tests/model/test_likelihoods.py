"""The likelihoods of `woodbury.likelihoods`, each against autograd in output space, in float64.

1. The loss is that of torch.
2. The sum of the directions' outer products, over all signs, is the Hessian of the loss by the
   output; without labels it is the Hessian's mean over the labels that are drawn.
3. Labels are drawn with the model's own mean and variance, at a mean gradient of zero.
4. Every recipe takes them; their rows are those of autograd.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from support.random import normal as numbers
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import cross_entropy as torch_cross_entropy

import woodbury
from woodbury import Likelihood, Objective, WoodburyError
from woodbury.errors import WrongType
from woodbury.estimation import observed, sampled
from woodbury.estimation.ggn import directions_at, gauss_newton_rows
from woodbury.estimation.gradients import gradient_rows
from woodbury.model.batches import slice_samples
from woodbury.model.likelihood import (
    binary,
    classes,
    cross_entropy,
    normal,
    several,
    squared_error,
)

B, C = 2, 3
WEIGHT = [0.5, 2.0, 4.0]
SCALE = [0.5, 1.0, 3.0]
POSITIVE = [0.5, 2.0, 4.0]


def labels(*shape: int) -> Tensor:
    target = torch.arange(math.prod(shape)).view(shape) % C
    if len(shape) > 1:
        target[0, 0] = -100
    return target


def answers(*shape: int) -> Tensor:
    target = (numbers(*shape, seed=3) > 0).double()
    target[0, 0] = -100
    return target


@dataclass(frozen=True)
class Case:
    """A likelihood, the shape of an output (b, C, …), targets, and torch's loss of one sample."""

    name: str
    likelihood: Likelihood
    target: Any
    of_torch: Callable[[Tensor, Any], Tensor]
    shape: tuple[int, ...] = (B, C)

    @property
    def output(self) -> Tensor:
        return numbers(*self.shape, seed=1)


def summed(**options: Any) -> Callable[[Tensor, Any], Tensor]:
    return lambda output, target: torch_cross_entropy(output, target, reduction="sum", **options)


def summed_answers(weight: list[float]) -> Callable[[Tensor, Any], Tensor]:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        w = output.new_tensor(weight)
        each = bce(output, target.clamp(min=0), pos_weight=w, reduction="none")
        return (each * (target != -100)).sum()

    return loss


W = torch.tensor(WEIGHT, dtype=torch.float64)
SOFT = numbers(B, C, seed=4).softmax(1)
CASES = [
    Case("cross_entropy", cross_entropy, labels(B), summed()),
    Case("tokens", cross_entropy, labels(B, 2), summed(), (B, C, 2)),
    Case("soft labels", cross_entropy, SOFT, summed()),
    Case("weights", classes(WEIGHT), labels(B), summed(weight=W)),
    Case("weights, tokens", classes(W), labels(B, 2), summed(weight=W), (B, C, 2)),
    Case("smoothed", classes(label_smoothing=0.2), labels(B), summed(label_smoothing=0.2)),
    Case(
        "smoothed and weighted, tokens",
        classes(WEIGHT, label_smoothing=0.2),
        labels(B, 2),
        summed(weight=W, label_smoothing=0.2),
        (B, C, 2),
    ),
    Case(
        "smoothed, weighted and soft",
        classes(WEIGHT, label_smoothing=0.2),
        SOFT,
        summed(weight=W, label_smoothing=0.2),
    ),
    Case("yes or no", binary(), answers(B, C), summed_answers([1.0] * C)),
    Case("weighted yes", binary(POSITIVE), answers(B, C), summed_answers(POSITIVE)),
    Case("weighted soft yes", binary(2.0), SOFT, summed_answers([2.0] * C)),
    Case(
        "squared_error",
        squared_error,
        numbers(B, C, seed=2),
        lambda output, target: 0.5 * (output - target).square().sum(),
    ),
    Case(
        "known noise",
        normal(SCALE),
        numbers(B, C, 2, seed=2),
        lambda output, target: (
            nn.functional.gaussian_nll_loss(
                output,
                target,
                output.new_tensor(SCALE).square().view(-1, 1).expand_as(output),
                reduction="sum",
            )
            - 2 * len(output) * output.new_tensor(SCALE).log().sum()
        ),
        (B, C, 2),
    ),
]
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def hessian(case: Case, index: int, target: Any) -> Tensor:
    """Of one sample's loss by its output, by autograd."""
    one = case.output[index : index + 1]
    size = one.numel()
    found = torch.autograd.functional.hessian(lambda f: case.likelihood.loss(f, target), one)
    assert isinstance(found, Tensor)
    return found.reshape(size, size)


@contextmanager
def all_signs(count: int) -> Iterator[int]:
    """A context in which `count` signs are all those that there are, as so many GGN samples."""
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=count)), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        for of in ("of_classes", "of_answers", "of_values"):
            patch.setattr(
                f"woodbury.model.likelihood.{of}.random_signs",
                lambda shape, *_: signs.view(1, *shape[1:]).expand(shape),
            )
        yield len(signs)


def mean_outer(case: Case, target: Any) -> Tensor:
    """The mean over all signs of Σ s sᵀ, for each sample: (b, k, k)."""
    assert case.likelihood.directions is not None
    with all_signs(case.output[0].numel()) as count:
        directions = case.likelihood.directions(case.output, target, count, None).flatten(2)
    return directions.mT @ directions


@each_case
def test_the_loss_is_that_of_torch(case: Case) -> None:
    expected = case.of_torch(case.output, case.target) / B
    torch.testing.assert_close(case.likelihood.loss(case.output, case.target), expected)


@each_case
def test_directions_are_a_root_of_the_hessian_by_the_output(case: Case) -> None:
    found = mean_outer(case, case.target)
    for i in range(B):
        torch.testing.assert_close(found[i], hessian(case, i, case.target[i : i + 1]))


@each_case
def test_without_labels_it_is_the_mean_over_drawn_labels(case: Case) -> None:
    assert case.likelihood.sample is not None
    found = mean_outer(case, None)
    one = case.output[:1]
    many = one.expand(2000, *case.shape[1:])
    drawn = case.likelihood.sample(many, None, torch.Generator().manual_seed(0))
    of_loss = torch.func.jacrev(lambda f, label: case.likelihood.loss(f, label[None]))
    hessians = torch.func.vmap(torch.func.jacrev(of_loss), (None, 0))(one, drawn)
    expected = hessians.mean(0).reshape(one.numel(), one.numel())
    torch.testing.assert_close(found[0], expected, rtol=0.1, atol=0.02 * float(expected.max()))


@each_case
def test_labels_are_drawn_at_a_mean_gradient_of_zero(case: Case) -> None:
    """And with the Fisher that follows from the model's own probabilities."""
    assert case.likelihood.sample is not None
    count = 20_000
    many = case.output[:1].repeat(count, *([1] * (len(case.shape) - 1))).requires_grad_()
    drawn = case.likelihood.sample(many.detach(), None, torch.Generator().manual_seed(0))
    (slopes,) = torch.autograd.grad(count * case.likelihood.loss(many, drawn), many)
    flat = slopes.flatten(1)
    size = flat.square().mean().sqrt()
    assert float(flat.mean(0).abs().max()) < 0.03 * float(size)
    if "weight" not in case.name:  # a normalised likelihood: its Fisher is its Hessian
        expected = mean_outer(case, None)[0]
        found = flat.T @ flat / count
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.03 * float(expected.max()))


def test_drawn_labels_have_the_right_mean_and_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = numbers(1, C, seed=1).expand(40_000, C)
    p = logits[0].softmax(0)

    def shares(likelihood: Likelihood) -> Tensor:
        assert likelihood.sample is not None
        return likelihood.sample(logits, None, generator).bincount(minlength=C) / len(logits)

    torch.testing.assert_close(shares(cross_entropy), p.float(), rtol=0, atol=0.01)
    fewer = ((p / W) / (p / W).sum()).float()
    torch.testing.assert_close(shares(classes(WEIGHT)), fewer, rtol=0, atol=0.01)
    without = p.clone()
    without[1] = 0
    without = (without / without.sum()).float()
    torch.testing.assert_close(shares(classes([1, 0, 1])), without, rtol=0, atol=0.01)

    smooth = classes(label_smoothing=0.3)
    assert smooth.sample is not None and binary().sample is not None
    whole = 0.7 * smooth.sample(logits, None, generator) + 0.3 / C
    assert bool(((whole - whole.round()).abs() < 1e-12).all())
    torch.testing.assert_close(whole.mean(0), p, rtol=0, atol=0.01)

    answer = binary().sample(logits, None, generator)
    yes = logits[0].sigmoid()
    torch.testing.assert_close(answer.mean(0), yes, rtol=0, atol=0.01)
    torch.testing.assert_close(answer.var(0), yes * (1 - yes), rtol=0.03, atol=0)
    weighted = binary(POSITIVE).sample
    assert weighted is not None
    odds = yes / (1 - yes) / torch.tensor(POSITIVE)
    drawn = weighted(logits, None, generator).mean(0)
    torch.testing.assert_close(drawn, odds / (1 + odds), rtol=0, atol=0.01)

    noisy = normal(SCALE).sample
    assert noisy is not None
    values = noisy(logits, None, generator) - logits
    torch.testing.assert_close(values.mean(0), torch.zeros(C).double(), rtol=0, atol=0.06)
    torch.testing.assert_close(values.std(0), torch.tensor(SCALE).double(), rtol=0.02, atol=0)


SMOOTHED = classes(label_smoothing=0.2)


@pytest.mark.parametrize("likelihood", [cross_entropy, classes(WEIGHT), SMOOTHED])
def test_what_was_not_observed_is_not_drawn(likelihood: Likelihood) -> None:
    target, output = labels(B, 2), numbers(B, C, 2).requires_grad_()
    assert likelihood.sample is not None
    drawn = likelihood.sample(output.detach(), target, torch.Generator().manual_seed(0))
    (slopes,) = torch.autograd.grad(likelihood.loss(output, drawn), output)
    assert bool((slopes[0, :, 0] == 0).all()) and bool((slopes[1] != 0).all())
    answered = binary().sample
    assert answered is not None
    again = answered(numbers(B, C), answers(B, C), None)
    assert again[0, 0] == -100 and bool((again.flatten()[1:] >= 0).all())


class Heads(nn.Module):
    """Two heads on one body; the output is a dict, an object, or a tuple."""

    def __init__(self, of: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 3)
        self.kind = nn.Linear(3, C)
        self.size = nn.Linear(3, 2)
        self.of = of

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x).tanh()
        return self.of(self.kind(hidden), self.size(hidden))


class Pair(NamedTuple):
    kind: Tensor
    size: Tensor


NAMED = several({"kind": classes(WEIGHT), "size": normal([0.5, 2])}, weights={"size": 0.3})
PLACED = several({0: classes(WEIGHT), 1: normal([0.5, 2])}, weights={1: 0.3})
FORMS: dict[str, tuple[Callable[[Any, Any], Any], Likelihood]] = {
    "dict": (lambda kind, size: {"kind": kind, "size": size, "more": None}, NAMED),
    "object": (lambda kind, size: SimpleNamespace(kind=kind, size=size), NAMED),
    "named tuple": (Pair, NAMED),
    "tuple": (lambda kind, size: (kind, size), PLACED),
}
INPUTS = numbers(6, 4)
KINDS, SIZES = torch.arange(6) % C, numbers(6, 2, seed=5)


def of_heads(form: str) -> Objective:
    of, likelihood = FORMS[form]
    target = {"kind": KINDS, "size": SIZES} if likelihood is NAMED else (KINDS, SIZES)
    return Objective.from_model(Heads(of).double(), [(INPUTS, target)], likelihood)


@pytest.mark.parametrize("form", FORMS)
def test_several_heads_are_a_sum_of_likelihoods(form: str) -> None:
    objective = of_heads(form)
    hidden = objective.model.body(INPUTS).tanh()
    kind, size = objective.model.kind(hidden), objective.model.size(hidden)
    expected = classes(WEIGHT).loss(kind, KINDS) + 0.3 * normal([0.5, 2]).loss(size, SIZES)
    assert objective.loss() == pytest.approx(expected.item())
    drawn = sampled(objective, INPUTS, None, torch.Generator().manual_seed(0))
    assert float(objective.batch_loss(objective.parameters, INPUTS, drawn)) > 0
    rows = gradient_rows(objective, 6)
    each = [
        torch.autograd.functional.jacobian(
            lambda w, i=i: objective.batch_loss(objective.space.unflatten(w), *one(objective, i)),
            objective.weights,
        )
        for i in range(6)
    ]
    torch.testing.assert_close(rows, torch.stack(each))


def one(objective: Objective, index: int) -> Any:
    return slice_samples(next(iter(objective.batches)), index, index + 1)


def ggn(objective: Objective) -> Tensor:
    """JᵀHJ averaged over samples, by autograd, with H at the labels."""
    total = torch.zeros(objective.space.d, objective.space.d, dtype=torch.float64)
    for i in range(6):
        inputs, target = one(objective, i)

        def output(w: Tensor, inputs: Any = inputs) -> Tensor:
            found = objective.forward(objective.space.unflatten(w), inputs)
            return objective.likelihood.output_of(found)

        def loss(flat: Tensor, target: Any = target) -> Tensor:
            return objective.likelihood.loss({"kind": flat[:, :C], "size": flat[:, C:]}, target)

        found = output(objective.weights)
        jacobian = torch.autograd.functional.jacobian(output, objective.weights)[0]
        by_output = torch.autograd.functional.hessian(loss, found.detach())
        assert isinstance(by_output, Tensor) and isinstance(jacobian, Tensor)
        total += jacobian.T @ by_output.reshape(len(jacobian), len(jacobian)) @ jacobian / 6
    return total


def test_the_ggn_of_several_heads_is_that_of_autograd() -> None:
    objective = of_heads("dict")
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=C + 2)), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        for of, part in (("of_classes", slice(0, C)), ("of_values", slice(C, None))):
            patch.setattr(
                f"woodbury.model.likelihood.{of}.random_signs",
                lambda shape, *_, part=part: signs[None, :, part].expand(shape),
            )
        rows = gauss_newton_rows(objective, len(signs))
        found = gradient_rows(rows, 6 * len(signs))
    torch.testing.assert_close(found.T @ found / len(found), ggn(objective))


RECIPES: dict[str, Any] = {
    "mfac": woodbury.mfac(6, 0.1),
    "mfac, sampled": woodbury.mfac(6, 0.1, labels=sampled),
    "woodfisher": woodbury.woodfisher(6, 4, 0.1),
    "woodfisher, sampled": woodbury.woodfisher(6, 4, 0.1, labels=sampled),
    "kfac": woodbury.kfac(6, 0.1, labels=observed),
    "kfac, sampled": woodbury.kfac(6, 0.1, labels=sampled),
    "kfac by rows": woodbury.estimation.kfac_by_rows(6),
    "gauss_newton": woodbury.gauss_newton(woodbury.mfac(12, 0.1), 2),
}
ON_A_MODEL: dict[str, tuple[Likelihood, Any]] = {
    "weights": (classes(WEIGHT), KINDS),
    "smoothed": (classes(label_smoothing=0.2), KINDS),
    "yes or no": (binary(POSITIVE), answers(6, C)),
    "known noise": (normal(SCALE), numbers(6, C)),
    "heads": (NAMED, {"kind": KINDS, "size": SIZES}),
}


def problem(name: str) -> Objective:
    torch.manual_seed(0)
    likelihood, target = ON_A_MODEL[name]
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C))
    if name == "heads":
        model = Heads(FORMS["dict"][0])
    return Objective.from_model(model.double(), [(INPUTS, target)], likelihood)


@pytest.mark.parametrize("name", ON_A_MODEL)
def test_every_recipe_takes_them(name: str) -> None:
    objective = problem(name)
    for recipe in RECIPES.values():
        fisher = recipe(objective)
        assert bool((fisher.diagonal() > 0).all())
        assert bool(fisher.solve(objective.weights).isfinite().all())
    batches, likelihood = objective.batches, objective.likelihood
    optimizer = woodbury.MFAC(objective.model.parameters(), lr=1e-3, window=4)
    gradual = woodbury.Gradual(
        objective.model, optimizer, batches, 0.5, end=2, steps=1, likelihood=likelihood
    )
    woodbury.training.finetune(
        objective.model, optimizer, [*batches] * 3, range(1, 4), likelihood=likelihood
    )
    assert gradual.sparsity == pytest.approx(0.5, abs=0.02)
    pruned = woodbury.prune(objective.model, batches, 0.6, likelihood=likelihood)
    assert pruned.sparsity == pytest.approx(0.6, abs=0.02) and pruned.predicted is not None
    unlabelled = [(inputs, None) for inputs, _ in batches]
    again = woodbury.prune(objective.model, unlabelled, 0.7, likelihood=likelihood)
    assert again.sparsity == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(
    "likelihood", [classes(WEIGHT), classes(label_smoothing=0.2), binary(2), normal(SCALE), NAMED]
)
def test_they_are_compared_printed_and_pickled(likelihood: Likelihood) -> None:
    again = pickle.loads(pickle.dumps(likelihood))
    assert again == likelihood and hash(again) == hash(likelihood)
    assert again != cross_entropy
    assert " object at 0x" not in repr(likelihood)


def test_directions_of_weighted_tokens_are_read_in_the_estimation() -> None:
    output, target = numbers(B, C, 2), labels(B, 2)
    found = directions_at(classes([4.0] * C), output, target, 2, torch.Generator().manual_seed(0))
    plain = directions_at(cross_entropy, output, target, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, 2 * plain)
    assert bool((found[0, :, :, 0] == 0).all())


OUTPUT = torch.zeros(2, 3)
SENTENCES: dict[str, tuple[Callable[[], Any], str]] = {
    "negative": (lambda: classes([1, -1]), "weight holds -1.0: give finite numbers of at least 0"),
    "all zero": (lambda: classes([0.0, 0.0]), "All class weights are 0"),
    "text": (lambda: classes(["a"]), "weight is a list: give numbers"),  # type: ignore[list-item]
    "matrix": (lambda: normal(torch.ones(2, 2)), "one number for each output"),
    "no numbers": (lambda: classes([]), "one number for each output"),
    "smoothing": (lambda: classes(label_smoothing=1), "label_smoothing is 1: it is α"),
    "no scale": (lambda: normal(0), "scale holds 0.0: give finite numbers above 0"),
    "no yes": (lambda: binary(0), "pos_weight holds 0.0"),
    "heads": (lambda: several({}), "has no heads"),
    "no head": (lambda: several({"a": nn.MSELoss()}), "Likelihood"),  # type: ignore[dict-item]
    "whose weight": (
        lambda: several({"a": cross_entropy}, weights={"b": 1.0}),
        "weight for 'b': give one of 'a'",
    ),
    "weights of a head": (
        lambda: several({"a": cross_entropy}, weights={"a": [1, 2]}),  # type: ignore[dict-item]
        "The weight of 'a' is several numbers",
    ),
    "no method": (
        lambda: several({"count": cross_entropy}).loss((OUTPUT,), {"count": KINDS[:2]}),
        "The output is a tuple of 1, without a part 'count'",
    ),
    "no such part": (
        lambda: several({"a": cross_entropy}).loss({"b": OUTPUT}, {"a": KINDS[:2]}),
        "The output is a dict of 'b', without a part 'a'",
    ),
    "no part of a tensor": (
        lambda: several({0: cross_entropy}).loss(OUTPUT, (KINDS[:2],)),
        "The output is a Tensor, without a part 0",
    ),
    "no such target": (
        lambda: several({1: cross_entropy}).loss((OUTPUT, OUTPUT), (KINDS[:2],)),
        "The target is a tuple of 1, without a part 1",
    ),
    "classes": (
        lambda: classes([1.0, 2.0]).loss(OUTPUT, KINDS[:2]),
        r"2 class weights met an output of shape \(2, 3\)",
    ),
    "label": (
        lambda: directions_at(classes(WEIGHT), OUTPUT, torch.tensor([0, 3]), 1, torch.Generator()),
        "A label is 3 and there are 3 classes",
    ),
    "scales": (
        lambda: normal([1, 2]).loss(OUTPUT, OUTPUT),
        r"scale holds 2 numbers and the output has the shape \(2, 3\)",
    ),
    "answer": (
        lambda: binary().loss(OUTPUT, OUTPUT - 1),
        "got the label -1: give numbers from 0 for no to 1 for yes, or -100",
    ),
    "column": (
        lambda: binary().loss(OUTPUT[:, :1], OUTPUT[:, 0]),
        r"binary\(\)\.with_output\(lambda output: output\[\.\.\., 0\]\)",
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_what_makes_no_sense_is_one_sentence(name: str) -> None:
    call, sentence = SENTENCES[name]
    with pytest.raises(WoodburyError, match=sentence):
        call()


WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor(WEIGHT))
NO_MEANS: dict[str, tuple[Callable[..., Any], str]] = {
    "class weights": (WEIGHTED, r"instead of class weights.*likelihoods\.classes\(weight=…\)"),
    "a sum": (nn.CrossEntropyLoss(reduction="sum"), "divide the sum by the number of samples"),
    "contrasts": (
        lambda output, _: torch_cross_entropy(output @ output.T, torch.arange(len(output))),
        "with no other sample of the batch",
    ),
}


@pytest.mark.parametrize("name", NO_MEANS)
@pytest.mark.parametrize("size", [1, 3, 12])
def test_a_loss_that_is_no_mean_is_refused_with_its_remedy(name: str, size: int) -> None:
    """Also where the data are sorted by class, and where a batch is one sample."""
    loss, sentence = NO_MEANS[name]
    torch.manual_seed(0)
    inputs, target = torch.randn(12, 4), torch.arange(12) // 4
    batches = list(zip(inputs.split(size), target.split(size), strict=True))
    pruner = woodbury.Pruner(woodbury.mfac(12))
    with pytest.raises(WoodburyError, match=f"must be the mean over samples, so .*{sentence}"):
        woodbury.prune(nn.Linear(4, 3), batches, 0.3, likelihood=Likelihood(loss), pruner=pruner)


def test_a_wrong_kind_of_target_is_a_wrong_type() -> None:
    for likelihood in (binary(), normal(2)):
        with pytest.raises(WrongType, match="give a tensor"):
            likelihood.loss(OUTPUT, [1, 2])
