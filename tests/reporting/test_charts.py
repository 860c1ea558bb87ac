"""Charts: values are where the axes say, names keep their order, what is not finite is left out."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.results import prune_numbers, results

from woodbury.reporting import axes, plots
from woodbury.reporting.charts import STYLES, Chart, spread_out, styles
from woodbury.reporting.records import EpochNumbers, GradualNumbers, PruningStepNumbers


def test_scores_are_where_the_axes_say() -> None:
    chart = plots.accuracies(results(), dense=0.98)
    first = chart.lines[0]
    assert [line.name for line in chart.lines] == [
        "magnitude",
        "M-FAC <joint>",
        "[red]WoodFisher[/]",
    ]
    assert [(point.x, point.y) for point in first.points] == [(0, 0.955), (1, 0.505)]
    assert (first.points[0].low, first.points[0].high) == pytest.approx((0.95, 0.96))
    assert first.points[1].words == "magnitude at 97.5 %: 50.5 ± 0.5 %"
    (rule,) = chart.rules
    assert (rule.name, rule.left, rule.right) == ("dense 98.0 %", 0.98, 0.98)
    assert [tick.text for tick in chart.x.ticks] == ["50 %", "97.5 %"]


def test_two_comparisons_have_the_same_axis_of_scores() -> None:
    worse = [replace(result, accuracy=result.accuracy / 2) for result in results()]
    assert plots.accuracies(results()).y == plots.accuracies(worse).y


def test_without_seeds_there_are_no_bars() -> None:
    chart = plots.accuracies(results(seeds=1))
    assert all(point.low is None for line in chart.lines for point in line.points)
    assert "spread" not in chart.words


def test_predictions_lie_on_the_diagonal_where_they_are_right() -> None:
    assert plots.predictions(results()) is None  # nothing was predicted
    predicted = [replace(result, predicted=result.measured) for result in results()]
    chart = plots.predictions(predicted)
    assert chart is not None
    assert all(point.x == point.y for line in chart.lines for point in line.points)
    assert (chart.rules[0].left, chart.rules[0].right) == (0, 1)


def test_what_is_not_finite_has_no_place() -> None:
    diverged = [
        replace(result, accuracy=math.nan, predicted=math.inf, measured=math.nan)
        for result in results()
    ]
    chart = plots.accuracies(diverged, dense=math.nan)
    assert not chart.rules and not any(line.points for line in chart.lines) and not chart.labels
    assert plots.predictions(diverged) is None
    numbers = prune_numbers()
    lost = [replace(stage, measured_increase=math.nan) for stage in numbers.stages]
    predicted, measured = plots.stages(lost).lines
    assert len(predicted.points) == 2 and not measured.points


def test_stages_are_over_the_sparsity_and_begin_at_no_increase() -> None:
    chart = plots.stages(prune_numbers().stages)
    assert [line.name for line in chart.lines] == ["predicted", "measured"]
    assert chart.y.low == 0 and chart.lines[1].points[-1].y == chart.y.place(0.2)
    unpredicted = [replace(stage, predicted_increase=None) for stage in prune_numbers().stages]
    assert [line.name for line in plots.stages(unpredicted).lines] == ["measured"]


def test_a_gain_has_room_below_zero_where_it_matters() -> None:
    first, last = prune_numbers().stages
    slight = plots.stages([replace(first, measured_increase=-0.001), last])
    assert slight.y.low == 0 and slight.lines[1].points[0].y == 0
    assert plots.stages([replace(first, measured_increase=-0.1), last]).y.low <= -0.1


def gradual(before: float | None) -> Chart | None:
    steps = (PruningStepNumbers(10, 0.5, 0.5, None, None, before, 0.8),)
    numbers = GradualNumbers("accuracy", 0.5, 9, 0.9, 0.1, 0.8, 0.1, 0.9, 0.1, 1.0, steps)
    return plots.gradual(numbers, "accuracy")


def test_gradual_pruning_has_a_chart_where_steps_were_scored() -> None:
    chart = gradual(0.9)
    assert chart is not None and gradual(None) is None
    before, after = chart.lines
    assert before.points[0].y == chart.y.place(0.9) > after.points[0].y == chart.y.place(0.8)


def test_training_has_one_point_an_epoch() -> None:
    chart = plots.training([EpochNumbers(1, 0.5, 0.8), EpochNumbers(2, 0.25, 0.9)])
    assert [point.y * chart.y.high for point in chart.lines[0].points] == [0.5, 0.25]


def test_an_axis_begins_and_ends_at_round_numbers() -> None:
    axis = axes.linear("loss", [0.13, 0.87])
    assert (axis.low, axis.high) == (0, 1) and axis.place(0.5) == 0.5
    assert axis.place(2.0) == 1 and axis.place(-1.0) == 0
    assert axes.linear("loss", [0.0]).high == 1 and axes.linear("loss", [math.nan]).high == 1
    assert axes.linear("loss", [-0.1, 0.1]).ticks[0].text == "−0.1"
    assert axes.linear("score", [0.8, 0.9], unit=0.01).ticks[-1].text == "90"


@pytest.mark.parametrize(
    ("high", "texts"),
    [
        (2e-4, ["0", "0.00005", "0.0001", "0.00015", "0.0002"]),
        (2e-6, ["0", "0.5·10⁻⁶", "1·10⁻⁶", "1.5·10⁻⁶", "2·10⁻⁶"]),
        (4e7, ["0", "1·10⁷", "2·10⁷", "3·10⁷", "4·10⁷"]),
        (4e4, ["0", "10000", "20000", "30000", "40000"]),
    ],
)
def test_the_ticks_of_an_axis_are_written_alike(high: float, texts: list[str]) -> None:
    assert [tick.text for tick in axes.linear("loss", [0.0, high]).ticks] == texts


def test_a_logarithmic_axis_has_whole_decades() -> None:
    axis = axes.decades("loss", [0.02, 0.5])
    assert (axis.low, axis.high) == (0.01, 1) and axis.place(0.1) == pytest.approx(0.5)
    assert len(axes.decades("loss", [1e-30, 1]).ticks) <= axes.MOST_DECADES + 1
    assert axes.decades("loss", [1.0]).high == 10


def test_sparsities_near_one_have_room_and_texts_do_not_touch() -> None:
    axis = axes.sparsities([0.0, 0.9, 0.99, 0.999])
    places = [round(axis.place(s), 6) for s in (0.0, 0.9, 0.99, 0.999)]
    assert places == [0, round(1 / 3, 6), round(2 / 3, 6), 1]
    many = axes.sparsities([0.5 + index / 100 for index in range(49)]).ticks
    assert all(b.place - a.place > axes.NEAR for a, b in itertools.pairwise(many))
    major = [tick.place for tick in many if not tick.is_minor]
    assert major[-1] == 1 and len(major) < len(many)
    assert all(b - a > axes.NEAR_ON_A_PHONE for a, b in itertools.pairwise(major))
    assert axes.sparsities([0.9]).place(0.9) == 1


def test_magnitude_is_grey_and_each_method_has_one_style() -> None:
    assert styles(["a", "magnitude", "b", "a"]) == {"a": 1, "magnitude": 0, "b": 2}
    many = styles([str(index) for index in range(STYLES)])
    assert set(many.values()) == set(range(1, STYLES)) and many["0"] == many[str(STYLES - 1)]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.floats(0.1, 20))
def test_labels_are_spread_out_and_keep_their_order(values: list[float], gap: float) -> None:
    places = spread_out(values, gap)
    assert steps_of(values, places, gap)
    assert sum(places) == pytest.approx(sum(values), abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_labels_stay_beside_the_chart(values: list[float]) -> None:
    places = spread_out(values, 0.1, 0.0, 1.0)
    assert steps_of(values, places, 0.1)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)


def steps_of(values: list[float], places: list[float], gap: float) -> bool:
    """Whether neighbours are a gap apart, in the order of the values."""
    order = sorted(range(len(values)), key=values.__getitem__)
    steps = [places[b] - places[a] for a, b in itertools.pairwise(order)]
    return all(step >= gap * (1 - 1e-6) - 1e-9 for step in steps)


def test_labels_far_apart_stay() -> None:
    assert spread_out([10, 50, 90], 5) == [10, 50, 90]


def test_long_names_are_cut_beside_the_chart_alone() -> None:
    long = [replace(result, method="hessian-diagonal/independent") for result in results()]
    chart = plots.accuracies(long)
    assert [label.name for label in chart.labels] == ["hessian-diagonal/…"]
    assert chart.lines[0].name == "hessian-diagonal/independent"
