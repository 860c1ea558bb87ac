"""Files of numbers: settings as columns, strict JSON, keys that need no quotes."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from support.results import results

from woodbury.reporting.files import versions, write_csv, write_json
from woodbury.reporting.records import (
    Baseline,
    DampingTrial,
    EpochNumbers,
    GradualNumbers,
    PruneNumbers,
    PruningStepNumbers,
    StageNumbers,
    TrainNumbers,
)


def test_csv_has_the_settings_as_columns(tmp_path: Path) -> None:
    first, second, *_ = results(seeds=1)
    rows = [
        replace(first, settings={"stages": 1, "update": "joint"}),
        replace(second, seed=1, settings={"block": 50}),
    ]
    write_csv(tmp_path / "r.csv", rows)
    with (tmp_path / "r.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["seed"] for row in read] == ["0", "1"]
    assert [row["sparsity"] for row in read] == ["0.5", "0.975"]
    assert read[0]["update"] == "joint" and read[0]["block"] == "" and read[1]["block"] == "50"
    assert float(read[0]["accuracy"]) == first.accuracy
    assert "settings" not in read[0]


def test_json_is_strict(tmp_path: Path) -> None:
    facts = {
        "results": [replace(results()[0], memory=math.nan)],
        "path": Path("a"),
        "versions": versions(),
        "levels": (0.5, 1),
    }
    write_json(tmp_path / "r.json", facts)
    text = (tmp_path / "r.json").read_text()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert read["results"][0]["memory"] is None and read["path"] == "a"
    assert read["levels"] == [0.5, 1]
    assert read["versions"]["torch"] == torch.__version__


def test_versions_are_texts() -> None:
    assert set(versions()) == {"woodbury", "torch", "python", "system", "threads"}
    assert all(type(value) is str for value in versions().values())


@pytest.mark.parametrize(
    "kind",
    [
        Baseline,
        DampingTrial,
        EpochNumbers,
        GradualNumbers,
        PruneNumbers,
        PruningStepNumbers,
        StageNumbers,
        TrainNumbers,
    ],
)
def test_keys_of_reports_are_snake_case(kind: type) -> None:
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", field.name) for field in fields(kind))
