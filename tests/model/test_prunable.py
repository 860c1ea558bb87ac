"""Parameters are what they are: tied ones count once, others are left out or named before work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_pruning

import woodbury
from woodbury.errors import WoodburyError


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 6, generator=generator), torch.arange(16) % 3) for _ in range(4)]


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def weight_normed() -> nn.Module:
    model = network()
    parametrizations.weight_norm(model[0])
    return model


def orthogonal() -> nn.Module:
    model = network()
    parametrizations.orthogonal(model[2])
    return model


def masked() -> nn.Module:
    model = network()
    torch_pruning.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def of_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return network()


def expanded() -> nn.Module:
    model = network()
    model[4].weight = nn.Parameter(torch.randn(1, 6).expand(3, 6))
    return model


def half_and_half() -> nn.Module:
    model = network()
    model[0].to(torch.float64)
    return model


def complex_valued() -> nn.Module:
    model = network()
    model[0].register_parameter("phase", nn.Parameter(torch.ones(2, 2, dtype=torch.complex64)))
    return model


REFUSED: dict[Callable[[], nn.Module], str] = {
    weight_normed: r"0\.parametrizations\.weight.*remove_parametrizations\(module, 'weight'\)",
    orthogonal: r"2\.parametrizations\.weight.*remove_parametrizations\(module, 'weight'\)",
    masked: r"'0.weight_orig' has a mask of torch\.nn\.utils\.prune.*woodbury\.apply_masks",
    of_inference_mode: "'0.weight' was made in inference mode",
    expanded: "'4.weight' is expanded",
    half_and_half: "'0.weight' is float64 and '2.weight' float32",
    complex_valued: "'0.phase' is complex",
}


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_what_cannot_be_pruned_is_named_before_any_work(build: Callable[[], nn.Module]) -> None:
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WoodburyError, match=REFUSED[build]):
        woodbury.prune(model, data(), 0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_gradual_refuses_a_parametrization_when_it_is_made() -> None:
    model = weight_normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(WoodburyError, match="remove_parametrizations"):
        woodbury.Gradual(model, optimizer, data(), 0.5, end=2, steps=1)


def test_inside_inference_mode() -> None:
    model = network()
    with torch.inference_mode(), pytest.raises(WoodburyError, match="inference mode forbids"):
        woodbury.prune(model, data(), 0.5)


def test_tied_weights_count_once_however_they_are_tied() -> None:
    for tie in ("object", "data"):
        model = network()
        if tie == "object":
            model[2].weight = model[0].weight
        else:
            model[2].weight.data = model[0].weight.data
        pruned = woodbury.prune(model, data(), 0.5)
        assert list(pruned.objective.space.shapes) == ["0.weight", "4.weight"]
        assert torch.equal(model[0].weight, model[2].weight)
        said = pruned.objective.loss()
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(model(x), y) for x, y in data()]
        assert said == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_whole_numbers_are_left_out() -> None:
    model = network()
    codes = torch.arange(36, dtype=torch.int8).view(6, 6)
    model[2].register_parameter("codes", nn.Parameter(codes, requires_grad=False))
    pruned = woodbury.prune(model, data(), 0.5)
    assert "2.codes" not in pruned.objective.space.shapes
    assert torch.equal(model[2].codes, codes)
    with pytest.raises(WoodburyError, match="No parameter is left"):
        woodbury.prune(model, data(), 0.5, include="2.codes")


def test_a_name_matches_itself() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({"[CLS]": nn.Linear(6, 6), "other*": nn.Linear(6, 6)})
            self.last = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.heads["[CLS]"](x) + self.heads["other*"](x))

    pruned = woodbury.prune(Heads(), data(), 0.5, include="heads.[CLS].weight")
    assert list(pruned.objective.space.shapes) == ["heads.[CLS].weight"]
    targets = {"heads.[CLS].weight": 0.0, "*": 0.5}
    keep = woodbury.prune(Heads(), data(), targets).keep
    assert bool(keep[:36].all())


def test_sparse_gradients_of_an_embedding() -> None:
    batches = [(torch.randint(0, 20, (16, 5)), torch.arange(16) % 3) for _ in range(4)]

    def build(sparse: bool) -> Any:
        torch.manual_seed(0)
        embedding = nn.Embedding(20, 6, sparse=sparse)
        return nn.Sequential(embedding, nn.Flatten(), nn.Linear(30, 3))

    recipe = woodbury.Pruner(woodbury.mfac(64, 1e-2))
    masks = [woodbury.prune(build(s), batches, 0.5, pruner=recipe).keep for s in (False, True)]
    assert torch.equal(*masks)
    model = build(sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    woodbury.hold_zeros(optimizer, model, {"0.weight": torch.arange(120).view(20, 6) % 2 == 0})
    for inputs, target in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    assert int((model[0].weight == 0).sum()) == 60


def test_weights_that_are_not_finite_are_never_written() -> None:
    model = network()
    objective = woodbury.Objective.from_model(model, data())
    before = model[0].weight.detach().clone()
    weights = objective.weights.clone()
    weights[-1] = torch.nan
    with pytest.raises(WoodburyError, match="not finite"):
        objective.at(weights).write()
    assert torch.equal(before, model[0].weight)
