"""woodbury inspect: the page, the numbers, what is refused, and what Ctrl-C leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cli import Result, refused, report, succeeds, woodbury

from woodbury.cli import inspect_command
from woodbury.inspection.findings import Inspection
from woodbury.inspection.questions import answers

NET = Path(__file__).with_name("net.py")
WORDS = "inspect net.py:build net.py:both --count 40 --sparsities 0.3,0.6"


def inspected(*options: str) -> Result:
    return succeeds(WORDS, "--out out", *options)


def test_it_writes_a_page_the_numbers_and_how_to_repeat_it(here: Path) -> None:
    result = inspected()
    names = {entry.name for entry in Path("out").iterdir()}
    assert names == {"report.html", "report.json", "run.toml"}
    facts = report("out")
    assert facts["command"] == "inspect" and facts["is_complete"]
    assert facts["count"] == facts["settings"]["count"] == 40
    assert facts["settings"]["parameters"] == ["1.weight", "4.weight"]
    assert facts["samples_held_back"] == 60, "a fifth of the training data"
    for question, answer in facts["verdicts"].items():
        assert f"{question}: {answer}" in result.stdout
    assert {*facts["forecast"]["points"]} == {"gauss_newton", "empirical", "kfac", "diagonal"}
    trials = [trial for axis in facts["sensitivity"]["axes"] for trial in axis["trials"]]
    assert all(trial["increase"] is not None for trial in trials)
    assert len(facts["along"]) == 2 and len(facts["along"][0]["measured"]) == 11
    page = Path("out/report.html").read_text("utf-8")
    assert "woodbury inspect --config out/run.toml" in page.replace("<span>", "").replace(
        "</span>", ""
    )


def test_run_toml_repeats_it(here: Path) -> None:
    inspected("--damping 0.01 --exclude 4.*")
    succeeds("inspect --config out/run.toml --out again")
    first, second = report("out"), report("again")
    for facts in (first, second):
        facts.pop("command_line")
    assert first == second
    assert first["settings"]["exclude"] == ["4.*"] and first["settings"]["damping"] == 0.01


def test_a_folder_is_found_and_data_without_labels_will_do(here: Path) -> None:
    words = "inspect net.py:build net.py:without_labels --labels sampled --count 40"
    result = succeeds(words, "--sparsities 0.5")
    assert "The results will be in runs/build-inspected" in result.stderr
    assert report("runs/build-inspected")["is_complete"]


def test_ctrl_c_keeps_what_is_known(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any) -> Iterator[Inspection]:
        known = answers(*arguments)
        yield next(known)
        yield next(known)
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_command, "answers", stopped)
    result = woodbury(WORDS, "--out out")
    assert result.exit_code == 130
    assert result.stderr.endswith("Interrupted: what was found until then is in out.\n")
    facts = report("out")
    assert not facts["is_complete"] and facts["hessian"] and facts["along"]
    assert facts["sensitivity"] is None
    assert "It was interrupted" in Path("out/report.html").read_text("utf-8")


def test_ctrl_c_before_the_first_answer_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any) -> Iterator[Inspection]:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_command, "answers", stopped)
    result = woodbury(WORDS, "--out out")
    assert result.exit_code == 130 and not Path("out").exists()


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("sparsity is 1.5", "net.py:build net.py:both --sparsity 1.5"),
        ("--sparsities is 'many'", "net.py:build net.py:both --sparsities many"),
        ("sparsities is (0.0, 0.5)", "net.py:build net.py:both --sparsities 0,0.5"),
        ("damping is -1.0", "net.py:build net.py:both --damping -1"),
        ("--count is '0'", "net.py:build net.py:both --count 0"),
        ("gives 300 of the 900 gradients", "net.py:build net.py:both --count 900"),
        ("takes at least", "net.py:build net.py:both --memory 30kB"),
        ("matches no parameter", "net.py:build net.py:both --include nothing"),
        ("the inputs", "net.py:build net.py:too_wide"),
    ],
)
def test_what_is_wrong_is_one_sentence(sentence: str, words: str, here: Path) -> None:
    if sentence == "the inputs":
        sentence = woodbury(f"prune {words} --sparsity 0.5 --out out").stderr[7:60]
    refused(sentence, f"inspect {words} --out out")


def test_zeros_that_are_kept_leave_room_for_more(here: Path) -> None:
    text = NET.read_text("utf-8") + (
        "\n\ndef sparse():\n    net = build()\n    net[1].weight.data[:22] = 0\n    return net\n"
    )
    Path("net.py").write_text(text, "utf-8")
    words = "inspect net.py:sparse net.py:both --count 40 --keep-zeros --out out"
    refused("are removed already: give more", words, "--sparsity 0.5")
