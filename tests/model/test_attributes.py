"""What a forward pass stores on modules is put back, wherever it lies."""

from __future__ import annotations

import copy
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from support.zoo_nets import storing
from torch import Tensor, nn

import woodbury
from woodbury.model import attributes
from woodbury.model.attributes import MOST_ENTRIES, attributes_kept, copy_of


class Notes:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.feature: Tensor | None = None
        self.all: dict[str, list[Tensor]] = {"maps": []}


def test_containers_in_containers_and_objects_have_their_old_content() -> None:
    model = nn.Linear(1, 1)
    model.cache = {"maps": [], "last": deque([1], maxlen=2)}  # type: ignore[assignment]
    model.notes = Notes()  # type: ignore[assignment]
    model.space = SimpleNamespace(seen=set())  # type: ignore[assignment]
    cache: Any = model.cache
    notes: Any = model.notes
    space: Any = model.space
    with attributes_kept(model):
        cache["maps"].append(torch.zeros(1))
        cache["last"].extend([2, 3])
        cache["new"] = 1
        notes.feature = torch.zeros(1)
        notes.all["maps"].append(torch.zeros(1))
        notes.later = 1
        space.seen.add(1)
    assert cache == {"maps": [], "last": deque([1])} and model.cache is cache
    assert notes.feature is None and notes.all == {"maps": []} and not hasattr(notes, "later")
    assert space.seen == set()


def test_numbers_that_are_moved_in_place_are_the_old_ones() -> None:
    model = nn.Linear(1, 1)
    mean, counts, inner = torch.zeros(2), numpy.zeros(2), torch.zeros(1)
    model.mean = mean
    model.counts = counts  # type: ignore[assignment]
    model.pairs = (inner, "name")  # type: ignore[assignment]
    model.several = [mean, {"same": mean}]  # type: ignore[assignment]
    here: Any = model
    with attributes_kept(model):
        assert here.several[0] is here.mean and here.several[1]["same"] is here.mean
        here.mean += 1
        here.counts += 1
        here.pairs[0].add_(1)
    assert here.mean is mean and here.several[0] is mean and here.pairs[0] is inner
    assert not mean.any() and not counts.any() and not inner.any()


def test_an_error_on_the_way_puts_all_back_too() -> None:
    model = nn.Linear(1, 1)
    model.cache = {"maps": []}  # type: ignore[assignment]
    cache: Any = model.cache
    with pytest.raises(KeyError), attributes_kept(model):
        cache["maps"].append(1)
        raise KeyError
    assert cache == {"maps": []}


def test_a_vocabulary_is_not_looked_into_but_has_its_old_words() -> None:
    model = nn.Linear(1, 1)
    words = {str(index): [index] for index in range(MOST_ENTRIES + 1)}
    model.words = words  # type: ignore[assignment]
    before = dict(words)
    with attributes_kept(model):
        words["more"] = []
        words.pop("0")
    assert words == before


def test_what_refers_to_itself_is_looked_at_once() -> None:
    model = nn.Linear(1, 1)
    ring: list[Any] = []
    ring.append(ring)
    model.ring = ring  # type: ignore[assignment]
    with attributes_kept(model):
        ring.append(1)
    assert ring == [ring]


def test_a_copy_has_no_graphs_however_deep_they_lie() -> None:
    model = nn.Linear(1, 1)
    model.notes = SimpleNamespace(all={"maps": [model(torch.ones(1))]})  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    copied: Any = copy_of(model)
    assert not copied.notes.all["maps"][0].requires_grad


def test_a_model_of_the_zoo_stores_without_end() -> None:
    model: Any = storing(lambda m, h: m.cache["maps"].append(h))
    model.cache = {"maps": []}
    with attributes_kept(model):
        model(torch.zeros(1, 6))
        assert len(model.cache["maps"]) == 1
    assert not model.cache["maps"]


def test_a_write_to_a_large_tensor_that_is_no_buffer_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(attributes, "MOST_NUMBERS", 10)
    model = nn.Linear(1, 1)
    model.queue = torch.zeros(4, 5)  # type: ignore[assignment]
    with attributes_kept(model):
        pass  # what only reads it goes on
    written = pytest.raises(woodbury.WoodburyError, match=r"\(4, 5\).*register_buffer")
    with written, attributes_kept(model):
        model.queue[0] = 1  # type: ignore[index]


def test_an_error_of_the_model_is_not_hidden_by_that_sentence(monkeypatch) -> None:
    monkeypatch.setattr(attributes, "MOST_NUMBERS", 10)
    model = nn.Linear(1, 1)
    model.queue = torch.zeros(4, 5)  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError), attributes_kept(model):
        model.queue[0] = 1  # type: ignore[index]
        _ = 1 / 0
