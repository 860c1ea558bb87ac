"""Each setting against the same pruning by dense matrices in float64."""

from __future__ import annotations

import re
import weakref
from dataclasses import replace

import pytest
import torch
from inspection.inspected import classes, label_rows, loss_at, perceptron
from inspection.test_agreement import mean_ranks
from support.dense import blocks_only, compensate, low_rank
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import gradient_rows
from woodbury.estimation.labels import sampled
from woodbury.fisher.base import Fisher
from woodbury.fisher.lowrank import LowRank
from woodbury.inspection.choices import Choice, Chooser, mean_rows
from woodbury.inspection.curvatures import estimate_curvatures
from woodbury.inspection.sensitivity_report import Axis, Sensitivity, Trial
from woodbury.inspection.settings_plans import rows_of
from woodbury.inspection.settings_tried import sensitivity
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.monitor import progress

DAMPING = 1e-3
COUNT = 40


def labels_only() -> Objective:
    """Without Gauss–Newton rows: those of the data's labels are what is tried."""
    likelihood = Likelihood(cross_entropy.loss, cross_entropy.sample)
    return replace(perceptron(COUNT), likelihood=likelihood)


def by_hand(objective: Objective, matrix: Tensor, sparsity: float) -> tuple[Tensor, Tensor, float]:
    """Saliencies, the kept weights, and the loss held back, by the definitions alone."""
    weights = objective.weights
    scores = weights.square() / (2 * torch.linalg.inv(matrix).diagonal())
    keep = torch.ones(len(weights), dtype=torch.bool)
    keep[scores.argsort()[: round(sparsity * len(weights))]] = False
    pruned = torch.zeros_like(weights)
    pruned[keep] = weights[keep] + compensate(matrix, keep, weights)
    there = replace(objective, batches=classes(30, seed=7))
    increase = loss_at(there, pruned) - loss_at(there, weights)
    return scores, keep, float(increase)


def assert_is(trial: Trial, mine: tuple, reference: tuple) -> None:
    scores, keep, increase = mine
    assert trial.increase == pytest.approx(increase, rel=1e-7)
    both = float((~keep & ~reference[1]).sum())
    assert trial.shared == pytest.approx(both / float((~keep).sum()))
    ranks = torch.stack([mean_ranks(scores), mean_ranks(reference[0])])
    assert trial.rank_correlation == pytest.approx(float(torch.corrcoef(ranks)[0, 1]), abs=1e-9)


def test_every_trial_is_the_pruning_that_it_is_called() -> None:
    objective, sparsity = labels_only(), 0.4
    rows = label_rows(objective, COUNT)
    found = sensitivity(
        objective,
        classes(30, seed=7),
        sparsity,
        count=COUNT,
        damping=DAMPING,
        dampings=(1e-5, 1e-3, 0.1),
        blocks=(5,),
        batches=(4,),
        seed=2,
    )
    whole = low_rank(rows, DAMPING)
    generator = torch.Generator().manual_seed(2)
    drawn = gradient_rows(objective, COUNT, labels=sampled, generator=generator)
    expected = {
        "damping": {"1e-05": low_rank(rows, 1e-5), "0.1": low_rank(rows, 0.1)},
        "rows": {str(m): low_rank(rows[:m], DAMPING) for m in (5, 10, 20)},
        "block": {"5": blocks_only(whole, [5] * 7)},
        "kind of rows": {"drawn labels": low_rank(drawn, DAMPING)},
        "samples per row": {"4": low_rank(2 * rows.view(10, 4, -1).mean(1), DAMPING)},
        "samples": {"the other half": low_rank(rows[20:], DAMPING)},
    }
    assert {axis.name for axis in found.axes} == set(expected)
    for axis in found.axes:
        matrix = low_rank(rows[:20], DAMPING) if axis.name == "samples" else whole
        reference = by_hand(objective, matrix, sparsity)
        first, *others = axis.trials
        assert_is(first, reference, reference)
        assert [trial.value for trial in others] == list(expected[axis.name])
        for trial in others:
            mine = by_hand(objective, expected[axis.name][trial.value], sparsity)
            assert_is(trial, mine, reference)
    largest = float(torch.linalg.eigvalsh(whole)[-1]) - DAMPING
    assert found.largest_eigenvalue == pytest.approx(largest)
    assert found.rows == COUNT and found.samples == 30


def test_what_several_axes_ask_for_chooses_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Fisher] = []
    choice = Chooser.choice

    def counted(self: Chooser, fisher: Fisher) -> Choice:
        chosen.append(fisher)
        return choice(self, fisher)

    monkeypatch.setattr(Chooser, "choice", counted)
    told: list[tuple[str, int, int]] = []
    objective = perceptron(COUNT)
    curvatures = estimate_curvatures(objective, COUNT, DAMPING)
    with progress(lambda *what: told.append(what)):
        found = sensitivity(objective, classes(30, 7), curvatures=curvatures, damping=DAMPING)
    trials = [trial for axis in found.axes for trial in axis.trials]
    # All rows are in five axes, all labels in two, half of the rows in two.
    assert len(chosen) == len(set(map(id, chosen))) == len(trials) - 6
    assert chosen[0] is curvatures.fishers["gauss_newton"]
    assert curvatures.fishers["empirical"] in chosen
    assert [done for what, done, _ in told if what == "settings"] == [*range(1, len(chosen) + 1)]


def test_turned_rows_are_let_go_with_the_dampings(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are as many numbers as a whole matrix of rows, and no other setting reads them."""
    made: list[weakref.ref[Tensor]] = []
    spectral = LowRank.spectral

    def watched(self: LowRank) -> LowRank:
        turned = spectral(self)
        made.append(weakref.ref(rows_of(turned)))
        return turned

    monkeypatch.setattr(LowRank, "spectral", watched)
    held: list[int] = []
    with progress(lambda *_: held.append(sum(each() is not None for each in made))):
        sensitivity(perceptron(COUNT), classes(30, 7), count=COUNT, damping=DAMPING)
    assert max(held) == 1 and held[-1] == 0
    assert held.count(1) <= 8, "while dampings are tried, and no longer"


def test_means_of_rows_are_rows_of_means() -> None:
    objective = perceptron(COUNT)
    rows = gradient_rows(objective, 10, batch=4)
    torch.testing.assert_close(mean_rows(label_rows(objective, COUNT), 4), rows)
    assert mean_rows(rows, 3).shape == (3, 35)


def test_rows_that_are_there_are_used() -> None:
    objective = perceptron(COUNT)
    curvatures = estimate_curvatures(objective, COUNT, DAMPING)
    known = sensitivity(objective, classes(30, 7), curvatures=curvatures, damping=DAMPING)
    anew = sensitivity(objective, classes(30, 7), count=COUNT, damping=DAMPING)
    assert known == anew
    names = {axis.name: [trial.value for trial in axis.trials] for axis in known.axes}
    assert names["kind of rows"] == ["Gauss–Newton", "observed labels", "drawn labels"]
    assert names["seed"] == ["0", "1"]
    assert names["block"] == ["whole", "32"], "blocks as large as the space are the whole"


def test_a_damping_that_is_refused_is_no_end() -> None:
    objective = perceptron(COUNT)
    found = sensitivity(objective, classes(30, 7), count=COUNT, dampings=(1e-25,))
    trial = found.axes[0].trials[1]
    assert "lost in rounding" in trial.refused and trial.increase is None
    assert "damping" not in found.verdicts


def test_bad_requests_are_named() -> None:
    objective, held_back = perceptron(COUNT), classes(30, 7)
    for changes, says in [
        ({"sparsity": 1.5}, "1.5"),
        ({"count": 0}, "count is 0"),
        ({"count": 41}, "40 of the 41"),
        ({"damping": 0.0}, "damping is 0"),
        ({"dampings": (1.0, -1.0)}, "damping is -1"),
        ({"blocks": (0,)}, "blocks is 0"),
        ({"batches": (1,)}, "batches is 1"),
    ]:
        with pytest.raises(WoodburyError, match=says):
            sensitivity(objective, held_back, **{"count": COUNT, **changes})
    with pytest.raises(WoodburyError, match="at least one sample"):
        sensitivity(objective, [], count=COUNT)
    bare = replace(objective, likelihood=Likelihood(cross_entropy.loss))
    with pytest.raises(WoodburyError, match="neither labels nor directions"):
        sensitivity(bare, held_back, count=COUNT, has_labels=False)


def report(**trials: tuple[Trial, ...]) -> Sensitivity:
    axes = tuple(Axis(name, each[0].value, each) for name, each in trials.items())
    return Sensitivity(0.5, 30, 1.0, 400, 1e-7, 3.0, 2.0**-23, axes)


def trial(value: str, shared: float, increase: float) -> Trial:
    return Trial(value, 0.9, shared, increase)


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ([("100", 0.95, 0.2), ("200", 0.995, 0.2)], "From 200 rows to 400 the choice of weights "),
        ([("100", 0.995, 0.2), ("200", 0.995, 0.2)], "From 100 rows .* more gradients will not"),
        (
            [("200", 0.9, 0.4)],
            "by 10 % and the loss falls by 0.2: more gradients will help",
        ),
        ([("200", 0.9, 0.21)], "and the loss hardly: more gradients may not help"),
        (
            [("100", 0.999, 0.5), ("200", 0.999, 0.4)],
            "by less than 1 % and the loss falls by 0.2: more gradients will help",
        ),
    ],
)
def test_more_gradients_help_or_not(others: list, says: str) -> None:
    first = trial("400", 1.0, 0.2)
    found = report(rows=(first, *(trial(*other) for other in others)))
    assert re.search(says, found.verdicts["rows"]), found.verdicts


@pytest.mark.parametrize(
    ("by_blocks", "says"),
    [(0.1, "will not help one matrix; blocks do."), (0.19, "more gradients will not help.")],
)
def test_rows_that_one_matrix_makes_nothing_of_may_serve_in_blocks(
    by_blocks: float, says: str
) -> None:
    """As on a GPT: 12 and 100 rows of 800,000 weights are alike, and blocks far ahead of both."""
    found = report(
        rows=(trial("100", 1.0, 0.2), trial("12", 0.999, 0.2)),
        block=(trial("whole", 1.0, 0.2), trial("32", 0.85, by_blocks)),
    )
    assert found.verdicts["rows"].endswith(says)


def test_large_losses_have_their_digits() -> None:
    found = report(block=(trial("whole", 1.0, 136.0), trial("32", 0.85, 8.6)))
    assert "32 is best, with a loss 127 lower" in found.verdicts["block"]


@pytest.mark.parametrize(
    ("apart", "shared", "says"),
    [
        (0.15, 0.9, "by 10 % and the loss falls by 0.2: more gradients will help"),
        (0.25, 0.9, "which two halves of the samples differ by as well: more gradients may help"),
        (0.25, 0.999, "less than 1 % and the loss falls by 0.2, which two halves of the samples"),
    ],
)
def test_what_two_halves_differ_by_is_no_proof_for_more_gradients(
    apart: float, shared: float, says: str
) -> None:
    """Nor is it one against them: ResNet-20's loss halved from 50 rows to 400, on the same weights.

    Its two halves differed by as much as the last doubling of the rows was worth.
    """
    found = report(
        rows=(trial("400", 1.0, 0.2), trial("200", shared, 0.4)),
        samples=(trial("one half", 1.0, 0.2), trial("the other half", 0.9, 0.2 + apart)),
    )
    assert says in found.verdicts["rows"]


def test_a_damping_below_the_resolution_is_named() -> None:
    found = report(damping=(trial("1e-07", 1.0, 0.5), trial("0.01", 0.8, 0.2)))
    assert found.verdicts["damping"] == (
        "Up to 20 % of the choice of weights changes with the damping; 0.01 is best, with a loss "
        "0.3 lower than 1e-07. The damping 1e-07 is below what float32 resolves beside the largest "
        "eigenvalue 3: 4e-07 is the least that counts."
    )
    fine = replace(found, damping=1e-3)
    assert "resolves" not in fine.verdicts["damping"]


def test_noise_and_blocks_have_their_words() -> None:
    found = report(
        samples=(trial("one half", 1.0, 0.2), trial("the other half", 0.88, 0.25)),
        block=(trial("whole", 1.0, 0.2), trial("32", 0.7, 0.19)),
    )
    assert found.verdict == (
        "Two halves of the samples choose 12 % of the weights differently, and their losses differ "
        "by 0.05: smaller differences are noise. Up to 30 % of the choice of weights changes "
        "with the size of the blocks, and no value is much better than whole."
    )
    same = report(block=(trial("whole", 1.0, 0.2), trial("32", 0.999, 0.2)))
    assert same.verdict.startswith("Less than 1 % of the choice of weights changes")
    nowhere = float("inf")
    ruined = report(block=(trial("whole", 1.0, nowhere), trial("32", 0.7, nowhere)))
    assert "no loss is finite" in ruined.verdict


def test_another_seed_is_other_directions_of_the_same_samples() -> None:
    objective = perceptron(COUNT)
    found = sensitivity(objective, classes(30, 7), count=COUNT, damping=DAMPING, seed=3)
    seeds = next(axis for axis in found.axes if axis.name == "seed")
    other = sensitivity(objective, classes(30, 7), count=COUNT, damping=DAMPING, seed=4)
    base = other.axes[0].trials[0]
    assert [trial.value for trial in seeds.trials] == ["3", "4"]
    assert seeds.trials[1].increase == base.increase != seeds.trials[0].increase
