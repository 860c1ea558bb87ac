"""ResNet-20, a depthwise net, ViT, BERT and GPT-2, trained for seconds on real tasks and pruned."""

from __future__ import annotations

import copy
import importlib.util
from collections import UserDict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trained_models import LOGITS, MODELS, TOKENS, Batches, Model, split, train
from torch import Tensor, nn

import woodbury
from woodbury import (
    Likelihood,
    Objective,
    ParameterSpace,
    Pruner,
    WoodburyError,
    cross_entropy,
    diagonal_fisher,
    kfac,
    mfac,
    woodfisher,
)
from woodbury.estimation.engines import fastest, looped, vmapped
from woodbury.estimation.gradients import gradient_rows, mean_gradient
from woodbury.estimation.labels import sampled
from woodbury.pruning.saliencies import magnitude, obd, obs
from woodbury.pruning.updates import joint, zero

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None,
        reason="needs transformers, of the extra models",
    ),
]
BY_NAME = {model.name: model for model in MODELS}
COUNT = 256
MAGNITUDE = Pruner(None, magnitude, zero)
CURVED = {
    "WoodFisher": Pruner(woodfisher(COUNT, 64, 1e-3)),
    "M-FAC": Pruner(mfac(COUNT, 1e-3)),
    "diagonal": Pruner(diagonal_fisher(COUNT, 1e-3), obd, zero),
}


@cache
def _trained(name: str) -> tuple[nn.Module, Batches, Batches]:
    model = BY_NAME[name]
    torch.manual_seed(0)
    net, (training, held) = model.build(), split(model)
    train(model, net, training, model.steps)
    return net, training, held


@pytest.fixture(params=MODELS, ids=lambda model: model.name)
def model(request: pytest.FixtureRequest) -> Model:
    return request.param


def copied(model: Model) -> nn.Module:
    return copy.deepcopy(_trained(model.name)[0])


def objective_of(model: Model) -> Objective:
    net, training, _ = _trained(model.name)
    return Objective.from_model(
        net,
        training,
        model.likelihood,
        ParameterSpace.from_model(net, exclude=model.exclude, min_ndim=2),
    )


def held_out(model: Model, net: nn.Module) -> float:
    return Objective.from_model(net, _trained(model.name)[2], model.likelihood).loss()


def zeros(space: ParameterSpace, net: nn.Module) -> int:
    return sum(
        int((weight == 0).sum()) for name, weight in net.named_parameters() if name in space.shapes
    )


def first(batches: Batches, count: int, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    inputs, target = batches[0]
    if isinstance(inputs, dict):
        return {name: tensor[:count] for name, tensor in inputs.items()}, target[:count]
    return inputs[:count].to(dtype) if inputs.is_floating_point() else inputs[:count], target[
        :count
    ]


def own_gradient(net: nn.Module, inputs: Any, target: Tensor) -> dict[str, Tensor]:
    """The user's own backward pass of one sample, its loss summed over its tokens."""
    net.zero_grad()
    output = net(**inputs) if isinstance(inputs, dict) else net(inputs)
    logits = output if isinstance(output, Tensor) else output.logits
    nn.functional.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="sum").backward()
    return {
        name: torch.zeros_like(w) if w.grad is None else w.grad.clone()
        for name, w in net.named_parameters()
    }


def test_rows_are_the_gradients_of_single_samples(model: Model) -> None:
    net = copied(model).double()
    inputs, target = first(_trained(model.name)[1], 5)
    objective = Objective.from_model(net, [(inputs, target)], model.likelihood)
    truth = []
    for i in range(5):
        one = (
            {k: t[i : i + 1] for k, t in inputs.items()}
            if isinstance(inputs, dict)
            else inputs[i : i + 1]
        )
        truth.append(objective.space.flatten(own_gradient(net, one, target[i : i + 1])))
    truth = torch.stack(truth)
    assert truth.abs().sum(1).min() > 0
    torch.testing.assert_close(gradient_rows(objective, 5), truth)
    torch.testing.assert_close(mean_gradient(objective), truth.mean(0))
    if model.vmaps:
        torch.testing.assert_close(gradient_rows(objective, 5, engine=vmapped), truth)
    else:
        with pytest.raises(WoodburyError, match="take engine=looped"):
            gradient_rows(objective, 5, engine=vmapped)
        assert looped is fastest(objective, inputs, target)


def test_one_shot_beats_magnitude_and_the_joint_update_beats_zeroing(model: Model) -> None:
    objective, held = objective_of(model), _trained(model.name)[2]
    before = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    sparsity = (
        0.5 if model.name == "MobileNet" else 0.8
    )  # its 5,376 weights lose all at .8 in one step
    by_size = MAGNITUDE(objective, sparsity).objective.loss(held)
    for name, pruner in CURVED.items():
        pruned = pruner(objective, sparsity)
        assert pruned.objective.space.d == objective.space.n - round(sparsity * objective.space.n)
        loss = pruned.objective.loss(held)
        assert loss < by_size + 0.01, name
        if pruner.update is joint:
            zeroed = objective.at(objective.weights[pruned.keep], pruned.objective.space).loss(held)
            assert loss < zeroed and loss < by_size - 0.01 * abs(by_size), name
    torch.testing.assert_close(objective.model.state_dict(), before, rtol=0, atol=0)


def by_turns(model: Model, pruner: Pruner) -> tuple[nn.Module, float, float]:
    """Pruned to .5 and .8 with some steps of training after each.

    Returns the net, and its loss right after the last pruning and at the end.
    """
    net, (_, training, _) = copied(model), _trained(model.name)
    options: dict[str, Any] = {
        "likelihood": model.likelihood,
        "exclude": model.exclude,
        "keep_zeros": True,
    }
    right_after = 0.0
    for sparsity, stages in ((0.5, 1), (0.8, 2)):
        pruned = woodbury.prune(net, training, sparsity, pruner=pruner, stages=stages, **options)
        space, right_after = pruned.objective.space, held_out(model, net)
        assert zeros(space, net) == round(sparsity * space.n)
        train(model, net, training, 60, 1e-3, keep=space.unflatten(torch.ones(space.d)))
        assert zeros(space, net) >= round(sparsity * space.n)
    return net, right_after, held_out(model, net)


def test_prune_and_fine_tune_by_turns(model: Model) -> None:
    net, right_after, finally_ = by_turns(model, Pruner(mfac(128, 1e-3)))
    _, magnitude_after, magnitude_finally = by_turns(model, MAGNITUDE)
    assert right_after < magnitude_after
    assert finally_ < right_after + 0.02 and finally_ < magnitude_finally + 0.02
    dense = _trained(model.name)[0]
    assert list(net.state_dict()) == list(dense.state_dict())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_sparse_file_brings_the_same_model_back(model: Model, tmp_path: Path) -> None:
    net, (_, training, _) = copied(model), _trained(model.name)
    woodbury.prune(
        net, training, 0.8, pruner=MAGNITUDE, likelihood=model.likelihood, exclude=model.exclude
    )
    woodbury.save_sparse(tmp_path / "net.safetensors", net.state_dict())
    other = model.build().eval()
    other.load_state_dict(woodbury.load_sparse(tmp_path / "net.safetensors"))
    inputs, target = first(training, 9, torch.float32)
    objectives = [
        Objective.from_model(each, [(inputs, target)], model.likelihood) for each in (net, other)
    ]
    assert objectives[0].loss() == objectives[1].loss()
    torch.testing.assert_close(other.state_dict(), net.state_dict(), rtol=0, atol=0)
    dense = sum(
        tensor.nbytes for tensor in {t.data_ptr(): t for t in net.state_dict().values()}.values()
    )
    assert (tmp_path / "net.safetensors").stat().st_size < 0.9 * dense


@pytest.mark.parametrize("name", ["ViT", "BERT", "GPT-2"])
def test_transformers_own_files_hold_the_zeros(name: str, tmp_path: Path) -> None:
    model = BY_NAME[name]
    net: Any = copied(model)
    pruned = woodbury.prune(
        net,
        _trained(name)[1],
        0.8,
        pruner=MAGNITUDE,
        likelihood=model.likelihood,
        exclude=model.exclude,
    )
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert zeros(pruned.objective.space, again) == zeros(pruned.objective.space, net)


def test_tied_weights_stay_one(tmp_path: Path) -> None:
    net, training, _ = _trained("GPT-2")
    net: Any = copy.deepcopy(net)
    assert net.lm_head.weight is net.transformer.wte.weight
    space = ParameterSpace.from_model(net)
    assert "transformer.wte.weight" in space.shapes and "lm_head.weight" not in space.shapes
    objective = Objective.from_model(net, training, TOKENS, space)
    pruned = Pruner(mfac(64, 1e-2))(objective, 0.5)
    predicted = pruned.objective.loss()
    pruned.write()
    assert net.lm_head.weight is net.transformer.wte.weight
    assert Objective.from_model(net, training, TOKENS).loss() == pytest.approx(predicted, rel=1e-5)
    woodbury.save_sparse(tmp_path / "net.safetensors", net.state_dict())
    state = woodbury.load_sparse(tmp_path / "net.safetensors")
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()


def test_what_the_mask_hides_changes_nothing() -> None:
    net, training, _ = _trained("BERT")
    inputs, target = first(training, 12)
    hidden = inputs["attention_mask"] == 0
    assert hidden.any()
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(hidden, 7)}
    space = ParameterSpace.from_model(net, exclude="*word_embeddings*")
    found = [
        gradient_rows(Objective.from_model(net, [(given, target)], LOGITS, space), 12)
        for given in (inputs, other)
    ]
    torch.testing.assert_close(found[0], found[1])
    encoding = UserDict(inputs)  # what a tokenizer gives
    torch.testing.assert_close(
        gradient_rows(Objective.from_model(net, [(encoding, target)], LOGITS, space), 12), found[0]
    )
    with_flag = {**inputs, "output_hidden_states": True}
    torch.testing.assert_close(
        gradient_rows(Objective.from_model(net, [(with_flag, target)], LOGITS, space), 12), found[0]
    )


def test_without_padding_vmap_takes_over() -> None:
    net, training, _ = _trained("BERT")
    inputs, target = first(training, 6)
    given = {"input_ids": inputs["input_ids"][:, :8]}
    objective = Objective.from_model(net, [(given, target)], LOGITS)
    torch.testing.assert_close(
        gradient_rows(objective, 6, engine=vmapped), gradient_rows(objective, 6, engine=looped)
    )


def test_labels_that_mean_nothing_give_no_gradient() -> None:
    net, training, _ = _trained("GPT-2")
    inputs, target = first(training, 9)
    assert (target == -100).any()
    half = target.shape[1] // 2
    short = [i for i in range(9) if target[i, half] == -100]
    cut = Objective.from_model(net, [(inputs[short, :half], target[short, :half])], TOKENS)
    whole = Objective.from_model(net, [(inputs[short], target[short])], TOKENS)
    torch.testing.assert_close(
        gradient_rows(whole, len(short)), gradient_rows(cut, len(short)), rtol=1e-4, atol=1e-5
    )
    drawn = sampled(whole, inputs[short], target[short], torch.Generator().manual_seed(0))
    assert bool((drawn[:, half:] == -100).all()) and bool((drawn[:, :half] >= 0).all())


def test_a_loss_of_the_models_own() -> None:
    net, training, _ = _trained("BERT")
    inputs, target = first(training, 6)
    own = Likelihood(lambda output, target: output.loss)
    objective = Objective.from_model(net, [({**inputs, "labels": target}, target)], own)
    truth = Objective.from_model(net, [(inputs, target)], LOGITS)
    torch.testing.assert_close(gradient_rows(objective, 6), gradient_rows(truth, 6))


def test_sampled_labels(model: Model) -> None:
    objective, held = objective_of(model), _trained(model.name)[2]
    pruned = Pruner(mfac(COUNT, 1e-3, labels=sampled))(objective, 0.5)
    assert pruned.objective.loss(held) < MAGNITUDE(objective, 0.5).objective.loss(held) + 0.02


@pytest.mark.parametrize("name", ["ResNet-20", "ViT", "BERT"])
def test_kfac_where_layers_are_linear(name: str) -> None:
    objective, held = objective_of(BY_NAME[name]), _trained(name)[2]
    pruned = Pruner(kfac(COUNT, 1e-3), obs, joint)(objective, 0.5)
    assert pruned.sparsity == pytest.approx(0.5, abs=1 / objective.space.n)
    assert pruned.objective.loss(held) < MAGNITUDE(objective, 0.5).objective.loss(held) + 0.02


@pytest.mark.parametrize(
    ("name", "exclude", "says"),
    [
        (
            "MobileNet",
            (),
            r"no factors of the grouped convolution of '3\.weight'.*exclude='3\.weight'",
        ),
        (
            "GPT-2",
            ("*wte*", "*wpe*"),
            r"does not know Conv1D, which holds 'transformer\.h\.0\.attn\.c_attn\.weight'",
        ),
        (
            "BERT",
            (),
            r"does not know Embedding, which holds 'bert\.embeddings\.word_embeddings\.weight'",
        ),
        ("ViT", (), r"does not know ViTEmbeddings, which holds 'vit\.embeddings\.cls_token'"),
    ],
)
def test_layers_that_kfac_does_not_know_are_named_before_any_work(
    name: str, exclude: tuple[str, ...], says: str
) -> None:
    net, training, _ = _trained(name)
    calls: list[int] = []
    watch = net.register_forward_pre_hook(lambda *_: calls.append(1))
    objective = Objective.from_model(
        net,
        training,
        BY_NAME[name].likelihood,
        ParameterSpace.from_model(net, exclude=exclude, min_ndim=2),
    )
    with pytest.raises(WoodburyError, match=says):
        Pruner(kfac(COUNT, 1e-3))(objective, 0.5)
    watch.remove()
    assert not calls


def test_an_output_of_transformers_needs_no_likelihood() -> None:
    net, training, _ = _trained("BERT")
    plain, read = (Objective.from_model(net, training, each) for each in (cross_entropy, LOGITS))
    assert plain.loss() == read.loss()
    torch.testing.assert_close(gradient_rows(plain, 9), gradient_rows(read, 9), rtol=0, atol=0)
