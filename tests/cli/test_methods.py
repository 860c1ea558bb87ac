"""Methods by their names: recipes that print, compare and pickle, and what a name stands for."""

from __future__ import annotations

import pickle

import pytest

from woodbury import mfac
from woodbury.cli.methods import plan_method
from woodbury.cli.named_methods import METHODS, Sampling, gauss_newton_that_fits
from woodbury.cli.options import PruningOptions

SAMPLING = Sampling(count=100, batch=1, mc_samples=2, block=None, seed=0)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_value(name: str) -> None:
    plan = plan_method(name, PruningOptions())
    first, second = (plan.method(SAMPLING).pruner.fisher for _ in range(2))
    assert first == second and pickle.loads(pickle.dumps(first)) == first


def test_the_gauss_newton_recipe_prints_its_settings() -> None:
    recipe = gauss_newton_that_fits(count=200, mc_samples=2, damping=1e-3)
    assert repr(recipe).startswith("gauss_newton_that_fits(count=200, mc_samples=2, damping=0.001")


def test_a_name_with_an_update_is_taken_apart() -> None:
    plan = plan_method("mfac/independent", PruningOptions())
    assert plan.name == "mfac" and plan.update == "independent"
    assert isinstance(plan.method(SAMPLING).pruner.fisher, mfac)
