"""The plain training loop: its order of samples, its end, and what it refuses."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from support.random import normal
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.monitor import progress
from woodbury.training.finetuning import batches_in, finetune, shuffled


def test_an_epoch_shows_each_sample_once_in_an_order_of_its_own() -> None:
    batches = list(islice(shuffled(12, 4, seed=3), 6))
    epochs = torch.cat(batches[:3]), torch.cat(batches[3:])
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(12))
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("done", [0, 1, 2, 3, 7])
def test_skipped_batches_are_those_of_a_run_that_was_not_stopped(done: int) -> None:
    whole = list(islice(shuffled(13, 5, seed=1), 10))
    resumed = islice(shuffled(13, 5, seed=1, done=done), 10 - done)
    assert all(map(torch.equal, whole[done:], resumed))


def test_samples_that_fill_no_batch_are_left_out() -> None:
    assert batches_in(13, 5) == 2 and batches_in(4, 5) == 1
    assert [len(batch) for batch in islice(shuffled(13, 5, seed=0), 4)] == [5, 5, 5, 5]
    assert len(next(shuffled(4, 5, seed=0))) == 4


def test_it_trains_in_train_mode_and_ends_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    batches = [(normal(8, 3, dtype=torch.float32), torch.arange(8) % 2)] * 9
    modes: list[bool] = []
    reports: list[tuple[str, int, int]] = []
    with progress(lambda *now: reports.append(now)):
        finetune(
            model,
            optimizer,
            batches,
            range(3, 6),
            scheduler=scheduler,
            after=lambda step: modes.append(model.training),
        )
    assert modes == [True] * 3 and not model.training
    assert scheduler.get_last_lr() == [0.1 / 8]
    assert reports == [("training", step, 5) for step in (3, 4, 5)]


def test_the_statistics_of_batchnorm_move_as_in_any_training() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    batches = [(torch.randn(8, 3), torch.arange(8) % 2) for _ in range(4)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    finetune(models[0], optimizers[0], batches, range(1, 5))
    for inputs, target in batches:
        optimizers[1].zero_grad()
        nn.functional.cross_entropy(models[1](inputs), target).backward()
        optimizers[1].step()
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict())


def test_a_loss_that_is_not_finite_is_named_with_its_step() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    finite = (torch.ones(4, 3), torch.zeros(4).long())
    infinite = (torch.full((4, 3), torch.inf), torch.zeros(4).long())
    with pytest.raises(WoodburyError, match="not finite at step 2: lower the learning rate"):
        finetune(model, optimizer, [finite, infinite], range(1, 3))
    assert not model.training


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([(torch.ones(4, 3), torch.arange(4))], "refuses the batch of step 1"),
        ([(torch.ones(4, 5), torch.arange(4) % 2)], "refuses the batch of step 1"),
        ([torch.ones(4, 3)], "Batch 0 is a Tensor, not a pair"),
        (3, "batches is a int"),
        ([(torch.ones(4, 3), ["a"] * 4)], "labels that are a list"),
    ],
)
def test_batches_that_do_not_fit_are_named(batches: Any, sentence: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(WoodburyError, match=sentence):
        finetune(model, optimizer, batches, range(1, 3))
    with pytest.raises(WoodburyError, match="The optimizer is a list"):
        finetune(model, [], batches, range(1, 3))  # type: ignore[arg-type]


def test_a_callback_that_fails_is_named_with_its_line() -> None:
    def after(step: int) -> None:
        if step == 2:
            raise KeyError("no such column")

    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.ones(4, 3), torch.arange(4) % 2)] * 3
    sentence = (
        r"`after` fails at step 2\. \(KeyError: 'no such column'; test_finetuning.py, line \d+"
    )
    with pytest.raises(WoodburyError, match=sentence):
        finetune(model, optimizer, batches, range(1, 4), after=after)
    assert not model.training
