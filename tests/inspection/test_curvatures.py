"""The estimates that are inspected, against their matrices written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inspection.inspected import label_rows, linear, perceptron
from support.dense import low_rank
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.estimation.kfac_factors import factors
from woodbury.estimation.recipes import kfac, mfac
from woodbury.fisher.base import Fisher
from woodbury.fisher.diagonal import Diagonal
from woodbury.inspection.curvatures import (
    estimate_curvatures,
    in_the_wrong_order,
    products_of,
)
from woodbury.model.likelihood import Likelihood, cross_entropy


def matrix_of(fisher: Fisher) -> Tensor:
    return products_of(fisher)(torch.eye(fisher.d, dtype=torch.float64))


def test_each_is_what_its_name_says() -> None:
    objective = perceptron()
    found = estimate_curvatures(objective, 30, 1e-3)
    rows = label_rows(objective, 30)
    empirical = low_rank(rows, 0.0)
    torch.testing.assert_close(matrix_of(found.fishers["empirical"]), empirical)
    diagonal = matrix_of(found.fishers["diagonal"])
    torch.testing.assert_close(diagonal, empirical.diagonal().diag())
    assert {fisher.damping for fisher in found.fishers.values()} == {1e-3}
    assert not found.left_out and found.count == 30


def test_without_labels_the_diagonal_is_that_of_gauss_newton() -> None:
    found = estimate_curvatures(perceptron(), 30, 1e-3, has_labels=False)
    assert list(found.fishers) == ["gauss_newton", "kfac", "diagonal"]
    diagonal = matrix_of(found.fishers["gauss_newton"]).diagonal()
    torch.testing.assert_close(found.fishers["diagonal"].diagonal() - 1e-3, diagonal)
    assert found.left_out == {"empirical": "The data has no labels."}


def test_what_a_likelihood_lacks_is_left_out_with_the_reason() -> None:
    objective = replace(perceptron(), likelihood=Likelihood(cross_entropy.loss))
    found = estimate_curvatures(objective, 30)
    assert list(found.fishers) == ["empirical", "kfac", "diagonal"]
    assert "directions" in found.left_out["gauss_newton"]
    with pytest.raises(WoodburyError, match="directions"):
        estimate_curvatures(objective, 30, has_labels=False)


def test_k_fac_in_the_wrong_order_is_the_other_product() -> None:
    objective = linear()
    right = kfac(40, 0.1)(objective)
    wrong = in_the_wrong_order(right)
    assert wrong is not None
    left, inputs = factors(objective, 40, generator=torch.Generator().manual_seed(0))["weight"]
    torch.testing.assert_close(matrix_of(right), torch.kron(left, inputs))
    torch.testing.assert_close(matrix_of(wrong), torch.kron(inputs, left))
    assert wrong.damping == 0.1


def test_where_there_are_no_factors_there_is_no_wrong_order() -> None:
    objective = linear()
    keep = torch.arange(8) != 3
    smaller = objective.at(objective.weights[keep], objective.space.restrict(keep))
    assert in_the_wrong_order(kfac(40, 0.1)(smaller)) is None
    assert in_the_wrong_order(mfac(40, 0.1)(objective)) is None
    assert in_the_wrong_order(Diagonal(torch.ones(3), 0.1)) is None
