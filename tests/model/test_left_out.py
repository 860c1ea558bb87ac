"""What pruning leaves out unless it is named, and that every entry says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import woodbury
from woodbury import ParameterSpace, Pruner, WoodburyError, mfac
from woodbury.model.left_out import embeddings_and_heads, left_out_in_words


class Language(nn.Module):
    """Embedding, positions, a layer, and a head that may be tied."""

    def __init__(self, tied: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(7, 4)
        self.positions = nn.Parameter(torch.randn(1, 3, 4))
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 7)
        if tied == "object":
            self.head.weight = self.tokens.weight
        elif tied == "data":
            self.head.weight.data = self.tokens.weight.data

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.mix(self.tokens(words) + self.positions).tanh()).mean(1)


BATCHES = [(torch.arange(60).view(20, 3) % 7, torch.arange(20) % 7)]


@pytest.mark.parametrize(
    ("tied", "pruned"),
    [("", ["mix.weight", "head.weight"]), ("object", ["mix.weight"]), ("data", ["mix.weight"])],
)
def test_embeddings_are_left_out_with_what_is_tied_to_them(tied: str, pruned: list[str]) -> None:
    space = ParameterSpace.for_pruning(Language(tied))
    assert list(space.shapes) == pruned
    assert set(space.left_out) == {"tokens.weight", "positions"}
    assert set(space.left_out.values()) == {"embedding"}
    assert space.restrict(torch.ones(space.d, dtype=torch.bool)).left_out == space.left_out


@pytest.mark.parametrize(
    ("include", "exclude", "pruned"),
    [
        ("*", (), ["positions", "tokens.weight", "mix.weight", "head.weight"]),
        ("*", "tokens.*", ["positions", "mix.weight", "head.weight"]),
        (["tokens.weight", "mix.*"], (), ["tokens.weight", "mix.weight"]),
        (None, "head.*", ["mix.weight"]),
        (None, "tokens.*", ["mix.weight", "head.weight"]),
    ],
)
def test_what_is_named_is_taken(include: str, exclude: str, pruned: list[str]) -> None:
    space = ParameterSpace.for_pruning(Language(), include, exclude)
    assert list(space.shapes) == pruned
    left = {"positions"} if exclude == "tokens.*" else {"positions", "tokens.weight"}
    assert set(space.left_out) == (left if include is None else set())


def test_perceptrons_and_kernels_are_all_pruned() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3))
    space = ParameterSpace.for_pruning(model)
    assert dict(space.shapes) == dict(ParameterSpace.from_model(model, min_ndim=2).shapes)
    assert not space.left_out and not embeddings_and_heads(model)


def test_embeddings_alone_are_refused() -> None:
    with pytest.raises(WoodburyError, match=r'left without embedding \(weight\): include="\*" ta'):
        ParameterSpace.for_pruning(nn.Embedding(3, 2))
    with pytest.raises(WoodburyError, match="No matrix or kernel is left"):
        woodbury.prune(nn.Embedding(3, 2), BATCHES, 0.5)


@pytest.mark.parametrize("pruner", [None, Pruner(mfac(20, 1e-2))])
def test_prune_and_plan_say_what_was_left_out(pruner: Pruner | None) -> None:
    model = Language()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = woodbury.prune(model, BATCHES, 0.5, pruner=pruner)
    words = 'embeddings (positions and 1 more); include="*" takes them in'
    assert pruned.settings["left out"] == words
    assert torch.equal(model.tokens.weight, before["tokens.weight"])
    assert torch.equal(model.positions, before["positions"])
    plan = woodbury.plan(model, BATCHES, 0.5)
    assert plan.left_out in words
    assert any(line.split(None, 2)[2:] == [words] for line in str(plan).splitlines())


def test_prune_takes_them_in_by_one_argument() -> None:
    pruned = woodbury.prune(Language(), BATCHES, 0.5, pruner=Pruner(mfac(20, 1e-2)), include="*")
    assert "left out" not in pruned.settings and "tokens.weight" in pruned.objective.space.shapes


def test_gradual_leaves_them_out() -> None:
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    gradual = woodbury.Gradual(model, optimizer, BATCHES, 0.5, end=1, steps=1)
    assert set(gradual.space.left_out) == {"tokens.weight", "positions"}
    assert left_out_in_words(gradual.space.left_out) == "embeddings (positions and 1 more)"
