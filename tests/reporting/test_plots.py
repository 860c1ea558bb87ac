"""Plots are PNGs in two versions; labels keep their order; a missing matplotlib is named."""

from __future__ import annotations

import builtins
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.results import pruned_net, results, tensors_of
from woodbury.reporting.figures import COLOURS, spread_out, styles

from woodbury.errors import MissingDependency
from woodbury.estimation.recipes import mfac
from woodbury.pruning.pruner import Pruner, Quantiles
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero
from woodbury.reporting import plots


def test_accuracies_are_a_png_in_two_versions() -> None:
    pytest.importorskip("matplotlib")
    light, dark = (plots.accuracies(results(), dense=0.98, dark=dark) for dark in (False, True))
    assert light.startswith(b"\x89PNG") and dark.startswith(b"\x89PNG") and light != dark


def test_tensors_and_predictions_are_pngs() -> None:
    pytest.importorskip("matplotlib")
    for pruner in (Pruner(mfac(30, 1e-2)), Pruner(None, magnitude, zero)):
        tensors = tensors_of(pruned_net(pruner))
        light, dark = (plots.per_tensor(tensors, dark=dark) for dark in (False, True))
        assert light.startswith(b"\x89PNG") and light != dark
    assert plots.predictions(results()) is None  # nothing was predicted
    predicted = [replace(result, predicted=0.1) for result in results()]
    picture = plots.predictions(predicted)
    assert picture and picture.startswith(b"\x89PNG")


def test_tensors_without_saliencies_have_one_panel() -> None:
    pytest.importorskip("matplotlib")
    tensors = tensors_of(pruned_net(Pruner(None, magnitude, zero)))
    bare = [replace(tensor, saliencies=None) for tensor in tensors]
    assert plots.per_tensor(bare) != plots.per_tensor(tensors)


def test_saliencies_of_zero_do_not_stretch_the_axis() -> None:
    rows = [Quantiles(0.0, 1e-3, 2.0), None, Quantiles(0.0, 0.0, 0.0), Quantiles(0.5, 0.6, 0.7)]
    assert plots._positive(rows) == [
        (0, Quantiles(1e-4, 1e-3, 2.0)),
        (3, Quantiles(0.5, 0.6, 0.7)),
    ]
    assert plots._positive([None, Quantiles(0.0, 0.0, 0.0)]) == []


def test_sparsities_near_one_have_room() -> None:
    assert [round(plots.kept_axis(s), 6) for s in (0.0, 0.9, 0.99, 0.999)] == [0, 1, 2, 3]


def test_each_method_has_one_style() -> None:
    first, second = styles(["a", "b", "a"])
    assert (first.method, second.method) == ("a", "b") and first[1:] != second[1:]
    many = styles([str(index) for index in range(len(COLOURS) + 1)])
    assert many[0].colour == many[-1].colour


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def without(name: str, *args: Any, **given: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return there(name, *args, **given)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"pip install 'woodbury\[demo\]'"):
        plots.accuracies(results())


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.floats(0.1, 20))
def test_labels_are_spread_out_and_keep_their_order(values: list[float], gap: float) -> None:
    places = spread_out(values, gap)
    order = sorted(range(len(values)), key=values.__getitem__)
    steps = [places[b] - places[a] for a, b in itertools.pairwise(order)]
    assert all(step >= gap * (1 - 1e-6) - 1e-9 for step in steps)
    assert sum(places) == pytest.approx(sum(values), abs=1e-6)


def test_labels_far_apart_stay() -> None:
    assert spread_out([10, 50, 90], 5) == [10, 50, 90]
