"""woodbury compare: the table, the pictures and the page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from support.cli import Result, report, succeeds

from woodbury.estimation import engines

NET = Path(__file__).with_name("net.py")


def compared(*options: str) -> Result:
    return succeeds(
        "compare net.py:build net.py:both --count 60 --damping 1e-3,1e-2 --out out",
        "--methods magnitude,mfac/independent,mfac --sparsities 0.9,0.5 --seeds 2",
        *options,
    )


def test_compare_writes_tables_pictures_and_a_page(here: Path) -> None:
    result = compared()
    names = {"accuracy.svg", "prediction.svg", "report.html", "results.csv", "results.json"}
    assert {entry.name for entry in Path("out").iterdir()} == names | {"run.toml"}
    assert "magnitude" in result.stdout and "50 %" in result.stdout


def test_every_result_is_a_row_of_the_table(here: Path) -> None:
    compared()
    with Path("out/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and {row["sparsity"] for row in rows} == {"0.5", "0.9"}
    assert {row["damping"] for row in rows} <= {"", "0.001", "0.01"}
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert [row["update"] for row in rows[:6]] == ["zero"] * 2 + ["independent"] * 2 + ["joint"] * 2
    assert {row["scope"] for row in rows} == {"global"}
    for row in rows:
        low, mean, high = (
            float(row[f"predicted_interval_{part}"]) for part in ("low", "mean", "high")
        )
        assert low < mean < high and int(row["predicted_interval_samples"]) > 100
    assert all(name.isidentifier() and name == name.lower() for name in rows[0])


def test_the_numbers_and_how_they_were_made_are_one_file(here: Path) -> None:
    compared()
    record = json.loads(Path("out/results.json").read_text("utf-8"))
    assert record["measure"] == "accuracy" and 0.8 < record["dense_score"] <= 1
    assert record["settings"]["seeds"] == [0, 1] and record["settings"]["count"] == 60
    assert len(record["summary"]) == 6 and len(record["results"]) == 12
    assert record["versions"]["torch"]
    assert record["recipes"]["mfac"]["fisher"]["count"] == 60
    assert record["recipes"]["mfac/independent"]["update"] == "independent"
    assert all(key.isidentifier() and key == key.lower() for key in record)
    for cell in record["summary"]:
        assert cell["held_back_low"] < cell["held_back"] < cell["held_back_high"]
        assert (cell["warnings"] == 0) or cell["predicted"] is not None
    assert "held back" in Path("out/report.html").read_text("utf-8")


def test_a_pattern_is_compared_at_its_sparsity(here: Path) -> None:
    command = "compare net.py:build net.py:both --count 40 --damping 1e-2 --seeds 1"
    succeeds(command, "--methods magnitude --pattern 1:4 --out out")
    (row,) = json.loads(Path("out/results.json").read_text("utf-8"))["results"]
    assert row["sparsity"] == row["reached"] == 0.75


@pytest.mark.parametrize(
    ("methods", "options"),
    [
        pytest.param("gauss-newton,mfac", "", marks=pytest.mark.slow),
        ("gauss-newton,mfac/independent", "--count 60 --mc-samples 2"),
        ("gauss-newton/independent", "--damping 1e-3 --stages 2 --refit 1"),
    ],
)
def test_a_method_does_here_what_it_does_in_prune(
    methods: str, options: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each sparsity, also beside a method that chooses a damping on data held out."""
    monkeypatch.setattr(engines, "fastest", lambda *_: engines.vmapped)  # not by a clock
    words = f"net.py:build net.py:both {options}"
    succeeds("compare", words, f"--methods {methods} --sparsities 0.5,0.9 --seeds 1 --out all")
    for row in json.loads(Path("all/results.json").read_text("utf-8"))["results"]:
        name, _, update = row["method"].partition("/")
        one = f"--method {name}" + (f" --update {update}" if update else "")
        out = f"{name}-{row['sparsity']}"
        succeeds("prune", words, one, f"--sparsity {row['sparsity']} --out {out}")
        numbers = report(out)
        assert row["predicted"] == pytest.approx(numbers["predicted_increase"], rel=1e-9)
        assert row["measured"] == pytest.approx(numbers["measured_increase"], rel=1e-9)
        assert row["accuracy"] == numbers["score_after"]
        assert row["damping"] == numbers["damping"]
        interval, known = row["predicted_interval"], numbers["predicted_interval"]
        assert interval == (known and pytest.approx(known))
        assert row["predicted_warning"] == (numbers["predicted_warning"] if known else "")
        assert row["settings"]["stages"] == numbers["settings"]["stages"]
        assert row["seconds"] > 0 and row["memory"] > 1


def test_the_table_has_seconds_and_memory(here: Path) -> None:
    result = compared()
    assert "Seconds, peak MB" in result.stdout
