"""Which weights are used in other ways than by their layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

from woodbury import Objective
from woodbury.estimation.layer_products import used_elsewhere
from woodbury.model.likelihood import squared_error

TOKENS = torch.tensor([[0, 1, 4], [2, 0, 3], [1, 1, 2]])
IMAGES = normal(3, 4, 5, 5, seed=1)
VECTORS = normal(3, 4, seed=2)


class Tied(nn.Module):
    """An embedding and a head of one weight, the head used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.embedding(tokens).tanh()
        return self.head(features) + self.head(features.flip(1))


def conv1d() -> nn.Module:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(2, 4)


ORDINARY: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "Linear": (lambda: nn.Linear(4, 3), VECTORS),
    "Conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding="same"), IMAGES),
    "Conv2d, reflected": (lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), IMAGES),
    "Embedding": (lambda: nn.Embedding(5, 3, padding_idx=1), TOKENS),
    "sparse Embedding": (lambda: nn.Embedding(5, 3, sparse=True), TOKENS),
    "Conv1D of transformers": (conv1d, VECTORS),
    "tied": (Tied, TOKENS),
    "overwritten in place": (lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(True)), VECTORS),
}


def found(model: nn.Module, inputs: Tensor) -> set[str]:
    """What is used elsewhere, of the layers that hold a weight of the model."""
    torch.manual_seed(0)
    model = model.double()
    target = torch.zeros_like(model(inputs)).detach()
    objective = Objective.from_model(model, [(inputs, target)], squared_error)
    names = {id(p): name for name, p in model.named_parameters()}
    layers = [
        (names[id(module.weight)], module)
        for module in model.modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
    return used_elsewhere(objective, layers, objective.batch_loss, inputs, target)


@pytest.mark.parametrize("kind", ORDINARY)
def test_layers_that_only_multiply_are_found_to_do_so(kind: str) -> None:
    make, inputs = ORDINARY[kind]
    assert found(make(), inputs) == set()


def test_what_a_hook_of_the_users_adds_is_found() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda layer, given, output: output + layer.weight.sum())
    assert found(model, VECTORS) == {"0.weight"}


def test_a_penalty_on_the_weights_in_the_loss_is_found() -> None:
    model, target = nn.Linear(4, 3).double(), torch.zeros(3, 3, dtype=torch.float64)
    objective = Objective.from_model(model, [(VECTORS, target)], squared_error)

    def loss_of(parameters: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
        loss = objective.batch_loss(parameters, inputs, target)
        return loss + parameters["weight"].square().sum()

    assert used_elsewhere(objective, [("weight", model)], loss_of, VECTORS, target) == {"weight"}
