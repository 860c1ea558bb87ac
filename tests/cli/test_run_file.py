"""run.toml and --config: a run is repeated, the command line counts more, slips are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli import refused, report, same_weights, succeeds, woodbury

from woodbury.cli.run_file import write_run_file

NET = Path(__file__).with_name("net.py")
FULL = "[prune]\nmodel = 'net.py:build'\ndata = 'net.py:both'\nsparsity = 0.5"
PRUNE = "prune net.py:build net.py:both --sparsity 0.5 --count 60 --damping 1e-3"


def test_a_run_is_repeated_to_the_same_weights(here: Path) -> None:
    result = succeeds(PRUNE, "--seed 3 --mc-samples 2 --include 1.* --include 4.* --out pruned")
    assert "Repeat it with  woodbury prune --config pruned/run.toml" in result.stdout
    succeeds("prune --config pruned/run.toml --out again")
    assert same_weights("pruned", "again")
    assert report("again")["settings"] == report("pruned")["settings"]
    succeeds("prune --config again/run.toml --out third")
    third, again = Path("third/run.toml").read_text("utf-8"), Path("again/run.toml")
    assert third == again.read_text("utf-8"), "what is repeated can be repeated"


def test_a_gradual_run_and_a_comparison_are_repeated(here: Path) -> None:
    succeeds(PRUNE, "--epochs 1 --steps 2 --method mfac --out gradual")
    succeeds("prune --config gradual/run.toml --out again")
    assert same_weights("gradual", "again")
    pytest.importorskip("matplotlib")
    succeeds(
        "compare net.py:build net.py:both --methods magnitude --sparsities 0.5,0.9 --seeds 1",
        "--count 20 --out compared",
    )
    result = succeeds("compare --config compared/run.toml --sparsities 0.75 --out another")
    assert "75 %" in result.stdout and "90 %" not in result.stdout


def test_the_command_line_counts_more(here: Path) -> None:
    Path("run.toml").write_text(
        '[prune]\nmodel = "nowhere.py:net"\ndata = "net.py:both"\nsparsity = 0.5\ncount = 60\n'
        'damping = "1e-3"\nout = "there"\nkeep_zeros = true\nexclude = ["4.*"]\n'
    )
    succeeds("prune net.py:build --config run.toml --sparsity 0.75 --count=40")
    settings = report("there")["settings"]
    assert (settings["model"], settings["data"]) == ("net.py:build", "net.py:both")
    assert (settings["sparsity"], settings["count"]) == (0.75, 40)
    assert settings["keep_zeros"] and settings["parameters"] == ["1.weight"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[prune]\ncuont = 3", "run.toml has a key 'cuont': did you mean count?"),
        ("[prune]\nmodle = 'net.py:build'", "run.toml has a key 'modle': did you mean model?"),
        ("[prune]\nconfig = 'run.toml'", "run.toml has a key 'config'"),
        (f"{FULL}\ncount = 'many'", "count in run.toml is 'many': give a whole number"),
        (f"{FULL}\nmethod = 'mfca'", "method in run.toml is 'mfca': did you mean mfac?"),
        (f"{FULL}\nmax-layer-sparsity = 'x'", "max-layer-sparsity in run.toml is 'x': give a num"),
        (f"{FULL}\ncount = [1, 2]", "count in run.toml is [1, 2]: give one"),
        ("[prune.count]\nx = 1", "count in run.toml is {'x': 1}: give one value."),
        ("[compare]\ncount = 3", "run.toml has [compare]: woodbury prune reads its table [prune]."),
        ("count = 3", "run.toml has [count]: woodbury prune reads its table [prune]."),
        ("", "run.toml has nothing: woodbury prune reads its table [prune]."),
        ("[prune\ncount = 3", "run.toml is no TOML"),
        ("[prune]\nsparsity = 0.5", "MODEL is missing"),
        ("[prune]\nmodel = 3\ndata = 'net.py:both'\nsparsity = 0.5", "'3' does not name a func"),
    ],
)
def test_slips_in_a_file_are_named(text: str, sentence: str, here: Path) -> None:
    Path("run.toml").write_text(text)
    refused(sentence, "prune --config run.toml")


def test_a_file_that_is_not_there(here: Path) -> None:
    Path("run.toml").touch()
    refused("There is no file rnu.toml: did you mean run.toml?", "prune --config rnu.toml")
    refused(".. is a folder, a pipe or a device: check --config.", "prune --config ..")


def test_texts_are_quoted(here: Path) -> None:
    odd = 'net.py:it\'s "odd"\\\n'
    write_run_file(here, "prune", {"model": odd, "data": "d", "sparsity": 0.5})
    result = woodbury("prune --config run.toml")
    assert result.exit_code == 2 and "net.py has no function" in result.stderr
