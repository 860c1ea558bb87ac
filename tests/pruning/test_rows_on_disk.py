"""Pruning with gradient rows that memory has no room for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.limits import Limited
from support.live_tensors import LiveTensors
from support.random import normal
from torch import nn

import woodbury
from woodbury.errors import WoodburyError
from woodbury.estimation.engines import vmapped
from woodbury.estimation.recipes import gauss_newton, mfac, woodfisher
from woodbury.fisher.lowrank import LowRank
from woodbury.linalg.paged_rows import Page, PagedRows
from woodbury.memory import row_store
from woodbury.memory.row_file import RowFile
from woodbury.model.objective import Objective
from woodbury.pruning.pruner import Pruner

COUNT = 24


def objective(width: int = 40) -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 5))
    return Objective.from_model(model, [(normal(COUNT, 12).float(), torch.arange(COUNT) % 5)])


def recipe(**where: Any) -> mfac:
    return mfac(COUNT, 1e-2, engine=vmapped, **where)


@pytest.mark.parametrize("first_order", [False, True])
def test_a_step_on_a_disk_is_that_in_memory(
    first_order: bool, tmp_path: Path, limited: Limited
) -> None:
    limited(page=COUNT * 4 * 64, row_columns=32)
    dense = objective()
    there = Pruner(recipe(memory=1, scratch=tmp_path), first_order=first_order)(dense, 0.6)
    here = Pruner(recipe(), first_order=first_order)(dense, 0.6)
    assert torch.equal(there.keep, here.keep)
    torch.testing.assert_close(there.weights, here.weights, rtol=1e-4, atol=1e-6)
    assert there.predicted == pytest.approx(here.predicted, rel=1e-4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("first_order", "reads"), [(False, 4), (True, 6)])
def test_a_step_reads_the_rows_as_few_times_as_it_can(
    first_order: bool, reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the Gram matrix, the inverse diagonal, and twice for the update; a gradient: two more."""
    read: list[None] = []
    pages = RowFile.pages

    def counted(self: RowFile, wanted: torch.Tensor | None = None) -> Iterator[Page]:
        read.append(None)
        return pages(self, wanted)

    monkeypatch.setattr(RowFile, "pages", counted)
    Pruner(recipe(memory=1, scratch=tmp_path), first_order=first_order)(objective(), 0.6)
    assert len(read) == reads


def test_rows_of_half_the_size_prune_alike(tmp_path: Path) -> None:
    dense = objective()
    half = Pruner(recipe(memory=1, scratch=tmp_path, dtype=torch.bfloat16))(dense, 0.6)
    whole = Pruner(recipe())(dense, 0.6)
    assert float((half.keep == whole.keep).double().mean()) > 0.97
    assert half.predicted == pytest.approx(whole.predicted, rel=0.02)


def test_recipes_hand_their_rows_to_the_store(tmp_path: Path) -> None:
    for made in (recipe(memory=1, scratch=tmp_path), recipe(memory=1)):
        for fisher in (made(objective()), gauss_newton(made)(objective())):
            assert isinstance(fisher, LowRank)
            assert isinstance(fisher.rows, PagedRows)
    in_memory = recipe()(objective())
    assert isinstance(in_memory, LowRank)
    assert isinstance(in_memory.rows, torch.Tensor)


def test_memory_and_scratch_tell_no_recipes_apart() -> None:
    assert recipe(memory=1, scratch="here") == recipe()
    assert repr(recipe(memory=1)) == repr(recipe())
    assert recipe(dtype=torch.bfloat16) != recipe()


def test_a_missing_scratch_folder_leaves_the_model_alone(tmp_path: Path) -> None:
    dense = objective()
    before = dense.weights.clone()
    with pytest.raises(WoodburyError, match="does not exist"):
        Pruner(recipe(memory=1, scratch=tmp_path / "none"))(dense, 0.6)
    assert torch.equal(dense.weights, before)


def test_prune_lets_rows_lie_in_its_scratch_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    opened = row_store._open
    monkeypatch.setattr(
        row_store, "_open", lambda folder, size: folders.append(folder) or opened(folder, size)
    )
    dense = objective()
    batches, pruner = list(dense.batches), Pruner(recipe(memory=1))
    pruned = woodbury.prune(dense.model, batches, 0.6, pruner=pruner, scratch=tmp_path)
    assert pruned.sparsity == pytest.approx(0.6, abs=0.01)
    assert folders == [tmp_path] and not list(tmp_path.iterdir())
    for folder, sentence in ((tmp_path / "none", "does not exist"), ("/proc", "cannot be written")):
        before = [each.clone() for each in dense.model.parameters()]
        with pytest.raises(WoodburyError, match=sentence):
            woodbury.prune(dense.model, batches, 0.9, pruner=pruner, scratch=folder)
        assert all(map(torch.equal, before, dense.model.parameters()))


@pytest.mark.parametrize("make", [mfac, woodfisher])
def test_a_budget_of_nothing_is_refused(make: Any) -> None:
    with pytest.raises(WoodburyError, match="give bytes or a size"):
        make(10, memory="0")


def test_blocks_whose_rows_have_no_room_are_refused_before_any_gradient() -> None:
    with pytest.raises(WoodburyError, match=r"such large blocks need .* the budget is"):
        woodfisher(COUNT, block=1000, memory=1000)(objective(width=2000))
    assert woodfisher(COUNT, block=4, memory=20_000)(objective()).d == objective().space.d


def test_a_step_holds_few_vectors_of_all_weights(tmp_path: Path, limited: Limited) -> None:
    """Nine float32 vectors: the weights, squares, scores, what competes, the step; masks."""
    dense = objective(width=2000)
    d = dense.space.d
    limited(page=2**14, gradient_chunk=1)
    with LiveTensors(least=d) as live:
        Pruner(recipe(memory=1, scratch=tmp_path))(dense, 0.5)
    assert 6 < live.peak / (4 * d) < 10
