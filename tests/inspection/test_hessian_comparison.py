"""Estimates beside the exact Hessian, against both written out in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inspection.inspected import dense_hessian, linear, perceptron
from support.random import normal

from woodbury.errors import WoodburyError
from woodbury.fisher.dense import Dense
from woodbury.inspection.curvatures import Curvatures, estimate_curvatures, products_of
from woodbury.inspection.hessian_comparison import (
    HessianComparison,
    compare_with_hessian,
)
from woodbury.inspection.matches import Match, Spectrum, compared, match_of_matrices


def frobenius(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum())


def test_a_match_is_in_frobenius_norms() -> None:
    a, b = normal(6, 6), normal(6, 6, seed=1)
    a, b = a + a.mT, 2 * a + b + b.mT
    scale = frobenius(a, b) / frobenius(a, a)
    for match in (match_of_matrices(a, b), compared(a @ torch.eye(6).double(), b)):
        assert match.scale == pytest.approx(scale)
        assert match.cosine == pytest.approx(frobenius(a, b) / float(a.norm() * b.norm()))
        assert match.error == pytest.approx(float((a - b).norm() / b.norm()))
        assert match.error_scaled == pytest.approx(float((scale * a - b).norm() / b.norm()))
    exact = torch.linalg.eigvalsh(a).flip(0).tolist()
    assert match_of_matrices(a, b).eigenvalues == pytest.approx(exact)


def test_matrices_of_zeros_have_no_part_in_each_other() -> None:
    zeros = torch.zeros(3, 3).double()
    match = match_of_matrices(zeros, normal(3, 3))
    assert (match.scale, match.cosine, match.error) == (0, 0, 1)
    assert match_of_matrices(zeros, zeros).error == 0


def test_a_third_of_the_hessian_is_found_to_be_one() -> None:
    objective = linear()
    hessian = dense_hessian(objective)
    curvatures = Curvatures({"third": Dense(hessian / 3, 1e-3)}, count=40)
    found = compare_with_hessian(objective, curvatures, samples=40, steps=8, block=4)
    match = found.matches["third"]
    assert match.scale == pytest.approx(3) and match.cosine == pytest.approx(1)
    assert match.error == pytest.approx(2 / 3) and match.error_scaled == pytest.approx(0, abs=1e-6)
    exact = torch.linalg.eigvalsh(hessian).flip(0)
    # Both outputs have the same inputs: each eigenvalue is there twice, and Lanczos sees it once.
    assert found.hessian.top == pytest.approx(exact[::2].tolist(), rel=1e-6)
    assert found.spectra["third"].top == pytest.approx((exact[::2] / 3).tolist(), rel=1e-6)
    assert found.spectra["third"].overlap == pytest.approx(1)
    assert found.scales == {"third": match.scale}


def test_the_whole_and_its_parts_are_those_of_the_matrices() -> None:
    objective = perceptron()
    curvatures = estimate_curvatures(objective, 40, 1e-3)
    found = compare_with_hessian(objective, curvatures, samples=40, probes=400, block=8, parts=2)
    hessian = dense_hessian(objective)
    trace = float(hessian.trace())
    assert found.hessian.trace == pytest.approx(trace, abs=4 * found.hessian.trace_error)
    assert 0 < found.hessian.trace_error < 0.06 * trace
    values = torch.linalg.eigvalsh(hessian)
    assert found.hessian.top == pytest.approx(values[-5:].flip(0).tolist(), rel=1e-6)
    assert found.hessian.least == pytest.approx(float(values[0]), abs=1e-3)
    identity = torch.eye(objective.space.d, dtype=torch.float64)
    for name, fisher in curvatures.fishers.items():
        exact = match_of_matrices(products_of(fisher)(identity), hessian)
        match = found.matches[name]
        assert match.cosine == pytest.approx(exact.cosine, abs=5 * match.cosine_error)
        assert match.scale == pytest.approx(exact.scale, rel=0.2)
        assert 0 < match.cosine_error < 0.06
    assert [(block.tensor, block.weights) for block in found.blocks] == [
        ("0.weight", 8),
        ("2.weight", 8),
    ]


def test_the_parts_are_drawn_from_their_tensors() -> None:
    objective = perceptron()
    curvatures = estimate_curvatures(objective, 40, 1e-3)
    found = compare_with_hessian(objective, curvatures, samples=40, block=100, parts=3)
    hessian = dense_hessian(objective)
    identity = torch.eye(objective.space.d, dtype=torch.float64)
    for block, part in zip(found.blocks, objective.space.slices.values(), strict=True):
        exact = hessian[part, part]
        assert block.hessian == pytest.approx(torch.linalg.eigvalsh(exact).flip(0).tolist())
        for name, fisher in curvatures.fishers.items():
            whole = products_of(fisher)(identity)
            expected = match_of_matrices(whole[part, part], exact)
            assert block.matches[name].cosine == pytest.approx(expected.cosine, rel=1e-6)
            assert block.matches[name].error == pytest.approx(expected.error, rel=1e-6)


def test_k_fac_is_nearer_with_its_factors_in_order() -> None:
    """On one linear layer of squares the Hessian is I ⊗ E[xxᵀ]: K-FAC but for drawn labels."""
    objective = linear()
    curvatures = estimate_curvatures(objective, 40, 1e-3)
    found = compare_with_hessian(objective, curvatures, samples=40, block=8, parts=1)
    (block,) = found.blocks
    assert block.matches["kfac"].cosine > 0.97
    assert block.matches["kfac_swapped"].cosine < 0.9
    assert found.matches["kfac"].cosine > found.matches["kfac_swapped"].cosine
    assert "with its factors swapped" in found.verdict


def test_removed_weights_have_no_part() -> None:
    objective = perceptron()
    keep = torch.arange(35) >= 18
    objective = objective.at(objective.weights[keep], objective.space.restrict(keep))
    found = compare_with_hessian(
        objective, estimate_curvatures(objective, 40), samples=40, block=30, parts=3
    )
    exact = torch.linalg.eigvalsh(dense_hessian(objective)[2:, 2:]).flip(0)
    assert [(block.tensor, block.weights) for block in found.blocks] == [
        ("0.weight", 2),
        ("2.weight", 15),
    ]
    assert found.blocks[1].hessian == pytest.approx(exact.tolist())


def comparison(**changes) -> HessianComparison:
    spectrum = Spectrum(3.0, 0.1, (2.0, 1.0), (0.0, 0.0), -0.01)
    matches = {
        "gauss_newton": Match(0.9, 0.8, 0.7, 0.6),
        "empirical": Match(5.0, 0.4, 0.9, 0.92),
        "kfac": Match(1.1, 0.5, 0.9, 0.87),
        "kfac_swapped": Match(0.7, 0.2, 0.9, 0.98),
    }
    return replace(HessianComparison(64, 8, spectrum, {}, matches, ()), **changes)


def test_the_verdict_answers_the_questions() -> None:
    assert comparison().verdict == (
        "Gauss–Newton is nearest to the Hessian: cosine 0.80 ± 0.00, and times 0.9 it is off by "
        "60 %. The empirical Fisher has cosine 0.40 and is the Hessian only times 5. "
        "K-FAC has 0.50, with its factors swapped 0.20."
    )
    far = Spectrum(3.0, 0.1, (2.0, 1.0), (0.0, 0.0), -0.5)
    assert "far from a minimum" in comparison(hessian=far).verdict
    alone = {"empirical": comparison().matches["empirical"]}
    assert comparison(matches=alone).verdict.startswith("Empirical Fisher is nearest")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"samples": 41}, "40 of the 41"),
        ({"probes": 0}, "probes is 0"),
        ({"block": 1}, "block is 1"),
        ({"parts": -1}, "parts is -1"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_requests_are_named(changes: dict, says: str) -> None:
    objective = linear()
    curvatures = Curvatures({"one": Dense(torch.eye(8).double(), 1e-3)})
    with pytest.raises(WoodburyError, match=says):
        compare_with_hessian(objective, curvatures, **{"samples": 40, **changes})
