"""woodbury compare: the table, the pictures and the page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from support.cli import Result, succeeds

NET = Path(__file__).with_name("net.py")


def compared(*options: str) -> Result:
    return succeeds(
        "compare net.py:build net.py:both --count 60 --damping 1e-3,1e-2 --out out",
        "--methods magnitude,mfac/independent,mfac --sparsities 0.9,0.5 --seeds 2",
        *options,
    )


def test_compare_writes_tables_pictures_and_a_page(here: Path) -> None:
    result = compared()
    names = ["accuracy.svg", "prediction.svg", "report.html", "results.csv", "results.json"]
    assert sorted(entry.name for entry in Path("out").iterdir()) == names
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


def test_a_pattern_is_compared_at_its_sparsity(here: Path) -> None:
    command = "compare net.py:build net.py:both --count 40 --damping 1e-2 --seeds 1"
    succeeds(command, "--methods magnitude --pattern 1:4 --out out")
    (row,) = json.loads(Path("out/results.json").read_text("utf-8"))["results"]
    assert row["sparsity"] == row["reached"] == 0.75
