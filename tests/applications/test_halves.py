"""complementary_halves() and unseen_losses(): networks that have not seen some of the samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.random import normal
from support.unchanged import unchanged
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from woodbury import WoodburyError, complementary_halves, squared_error, unseen_losses
from woodbury.errors import WrongType


@pytest.mark.parametrize("n", [10, 11])
def test_every_sample_is_in_half_of_the_halves(n: int) -> None:
    halves = complementary_halves(n, 6, seed=3)
    assert [len(half) for half in halves] == [n // 2, n - n // 2] * 3
    assert torch.cat(halves).bincount().tolist() == [3] * n
    assert [half.tolist() for half in halves] == [
        half.tolist() for half in complementary_halves(n, 6, seed=3)
    ]
    assert len({tuple(half.tolist()) for half in halves}) == 6
    assert halves[0].tolist() != complementary_halves(n, 2, seed=4)[0].tolist()


def test_a_half_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    complementary_halves(10, 2)
    assert bool((torch.get_rng_state() == before).all())


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 3).double()


def test_losses_are_means_over_the_networks_that_have_not_seen_a_sample() -> None:
    x, y = normal(9, 4), torch.arange(9) % 3
    models = [linear(seed) for seed in range(3)]
    seen = [torch.tensor([8, 0, 1]), torch.arange(2, 7), torch.arange(9)]
    train = [(x[:4], y[:4]), (x[4:], y[4:])]
    with unchanged(models[0], train):
        found = unseen_losses(models, seen, train)
    for sample in range(9):
        terms = [
            cross_entropy(model(x), y, reduction="none")[sample].item()
            for model, own in zip(models, seen, strict=True)
            if sample not in own.tolist()
        ]
        assert found[sample].item() == pytest.approx(sum(terms) / len(terms))
    errors = unseen_losses(models, seen, [(x, models[1](x).detach())], likelihood=squared_error)
    assert errors[8] == 0  # only network 1 has not seen it, and the targets are its outputs
    half = (models[0](x[7]) - models[1](x[7])).square().sum().item() / 2
    assert float(errors[7]) == pytest.approx(half / 2)


def fitted(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """A network that knows its samples by heart."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def test_wrong_labels_are_found_that_a_network_knows_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(200) % 4
    x = torch.eye(8)[truth] * 4 + torch.randn(200, 8, generator=generator)
    wrong = torch.arange(200) % 10 == 3
    y = torch.where(wrong, (truth + 1) % 4, truth)
    halves = complementary_halves(200, 4)
    found = unseen_losses(
        [fitted(x[own], y[own], seed) for seed, own in enumerate(halves)], halves, [(x, y)]
    )
    alone = cross_entropy(fitted(x, y, 9)(x), y, reduction="none").detach()

    assert area_under_roc(found, wrong) > 0.96
    assert area_under_roc(alone, wrong) < 0.93


def area_under_roc(measure: Tensor, positive: Tensor) -> float:
    """Of all pairs of a wrong and a right label, the share in which the wrong one is larger."""
    return float((measure[positive][:, None] > measure[~positive]).double().mean())


PLACES = [torch.arange(3), torch.arange(3, 6)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"trained_on": PLACES[:1]}, "places of 1 networks, and there are 2"),
        ({"trained_on": [PLACES[0], torch.arange(6)]}, "trained on sample 0"),
        ({"trained_on": [PLACES[0], torch.arange(3, 7)]}, "sample 6, and train has 6"),
        ({"trained_on": [PLACES[0], -PLACES[1]]}, "network 1 are negative or repeat"),
    ],
)
def test_what_has_no_unseen_loss_is_said_in_one_sentence(
    change: dict[str, Any], sentence: str
) -> None:
    arguments: dict[str, Any] = {
        "networks": [linear(0), linear(1)],
        "trained_on": PLACES,
        "train": [(normal(6, 4), torch.arange(6) % 3)],
        **change,
    }
    with pytest.raises(WoodburyError, match=sentence):
        unseen_losses(**arguments)


def test_halves_and_networks_of_another_kind_are_refused() -> None:
    with pytest.raises(WoodburyError, match="networks is 3: halves come in pairs"):
        complementary_halves(10, 3)
    with pytest.raises(WoodburyError, match="n is 1"):
        complementary_halves(1, 2)
    for n, networks in ((10**12, 2), (2, 10**12)):
        with pytest.raises(WoodburyError, match="are to have: give fewer networks"):
            complementary_halves(n, networks)
    with pytest.raises(WoodburyError, match="seed"):
        complementary_halves(10, 2, seed=2**70)
    with pytest.raises(WrongType, match="networks"):
        unseen_losses(linear(0), PLACES, [])  # pyright: ignore[reportArgumentType]
    with pytest.raises(WrongType, match="no list of networks"):
        unseen_losses([], [], [])
