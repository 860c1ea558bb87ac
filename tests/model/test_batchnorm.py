"""recalibrate(): the data's own statistics, and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.model.batchnorm import recalibrate
from woodbury.model.modes import eval_mode

BATCHES = [(3 * normal(16, 2, 5, 5, seed=seed) + seed, None) for seed in range(3)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3, momentum=0.3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(27, 4),
        nn.BatchNorm1d(4, momentum=None),
        nn.BatchNorm1d(4, track_running_stats=False),
    ).double()


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_statistics_are_those_of_the_data() -> None:
    model = network()
    before = copied(model)
    assert recalibrate(model, BATCHES) == 2  # the third norm has no statistics
    features = [model[0](inputs).detach() for inputs, _ in BATCHES]  # type: ignore[index]
    mean = torch.stack([feature.mean((0, 2, 3)) for feature in features]).mean(0)
    variance = torch.stack([feature.var((0, 2, 3)) for feature in features]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)  # type: ignore[index]
    torch.testing.assert_close(model[1].running_var, variance)  # type: ignore[index]
    assert int(model[1].num_batches_tracked) == 3  # type: ignore[index]
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {
        f"{i}.{what}"
        for i in (1, 6)
        for what in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_a_deeper_norm_sees_the_network_in_eval_mode_but_for_the_norms() -> None:
    model = network()
    recalibrate(model, BATCHES[:1])
    model.eval()
    model[1].train()  # type: ignore[index]  # normalised by the batch, as while recalibrating; no dropout
    features = model[:6](BATCHES[0][0]).detach()  # type: ignore[index]
    torch.testing.assert_close(model[6].running_mean, features.mean(0))  # type: ignore[index]
    torch.testing.assert_close(model[6].running_var, features.var(0))  # type: ignore[index]


def test_what_was_there_before_does_not_count() -> None:
    first, second = network(), network()
    first(50 * normal(8, 2, 5, 5, seed=9))
    for model in (first, second):
        recalibrate(model, BATCHES)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    recalibrate(first, iter(BATCHES))  # batches are read once: an iterator will do
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def breaking() -> Any:
    yield BATCHES[0]
    raise OSError("disk gone")


@pytest.mark.parametrize(
    "batches",
    [BATCHES, breaking(), [], [(BATCHES[0][0],)]],
    ids=["all well", "data that break off", "no data", "no pairs"],
)
def test_modes_and_momentum_are_restored_whatever_happens(batches: Any) -> None:
    model = network().train()
    model[1].eval()  # type: ignore[index]
    modes = [module.training for module in model.modules()]
    if batches is BATCHES:
        recalibrate(model, batches)
    else:
        with pytest.raises((OSError, WoodburyError)):
            recalibrate(model, batches)
    assert [module.training for module in model.modules()] == modes
    assert [model[i].momentum for i in (1, 6)] == [0.3, None]  # type: ignore[index]


@pytest.mark.parametrize(
    ("batches", "error", "says"),
    [
        ([], WoodburyError, "at least one"),
        ([BATCHES[0], BATCHES[0][0]], WoodburyError, "Batch 1 is a Tensor, not a pair"),
        ([(BATCHES[0][0][:1], None)], WoodburyError, "at least two"),
        (
            [BATCHES[0], (torch.full_like(BATCHES[0][0], torch.nan), None)],
            WoodburyError,
            "running_mean is not finite",
        ),
        ([BATCHES[0], (torch.zeros(2, 7).double(), None)], RuntimeError, "Expected 3D"),
    ],
)
def test_statistics_are_put_back_on_error(batches: list, error: type[Exception], says: str) -> None:
    model = network()
    model(BATCHES[0][0])
    before = copied(model)
    with pytest.raises(error, match=says):
        recalibrate(model, batches)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sizes", "as_if"), [([6, 1], [7]), ([1, 6], [7]), ([1] * 5, [2, 3]), ([4, 1, 3], [4, 4])]
)
def test_a_single_sample_joins_others(sizes: list[int], as_if: list[int]) -> None:
    x = normal(*BATCHES[0][0].shape)[:1].repeat(sum(sizes), *[1] * (BATCHES[0][0].ndim - 1))
    x = x + normal(*x.shape, seed=1)
    found, expected = network(), network()
    recalibrate(found, [(part, None) for part in x.split(sizes)])
    recalibrate(expected, [(part, None) for part in x.split(as_if)])
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_inputs_by_name_and_by_position() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2).double()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.norm(a + b)

    model, a, b = Named(), normal(9, 2), normal(9, 2, seed=1)
    for inputs in ((a, b), [a, b], {"b": b, "a": a}):
        model.norm.reset_running_stats()
        recalibrate(model, [(inputs, None)])
        torch.testing.assert_close(model.norm.running_mean, (a + b).mean(0))


def test_a_model_without_batchnorm_reads_nothing() -> None:
    assert recalibrate(nn.Linear(2, 2), []) == 0


def test_recalibration_repairs_a_net_whose_weights_were_moved() -> None:
    model = network()
    recalibrate(model, BATCHES)
    inputs = torch.cat([inputs for inputs, _ in BATCHES])
    with eval_mode(model):
        before = model[:2](inputs).detach()  # type: ignore[index]
        with torch.no_grad():
            model[0].weight *= 5  # type: ignore[index]
            model[0].bias *= 5  # type: ignore[index]
        recalibrate(model, BATCHES)
        torch.testing.assert_close(model[:2](inputs).detach(), before, rtol=0, atol=1e-4)  # type: ignore[index]
