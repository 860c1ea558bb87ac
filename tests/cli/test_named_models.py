"""MODEL by name: from a folder of transformers to a pruned one, and what is refused."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
import torch
from support.cli import refused, report, same_weights, succeeds, weights
from support.pretrained import reviews, saved, write_csv

import woodbury
from woodbury.integrations import transformers as hf

pytestmark = pytest.mark.usefixtures("hub_is_away")

PRUNE = "prune transformers:./bert ./data.csv --task text-classification --sparsity 0.8"


@pytest.fixture(autouse=True)
def bert(hub_is_away: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    saved("text", tmp_path / "bert")
    write_csv(tmp_path / "data.csv", reviews(60))


def test_prune_writes_a_folder_of_transformers_and_goes_on_from_it() -> None:
    import transformers

    result = succeeds(PRUNE, "--out small")
    assert 'AutoModelForSequenceClassification.from_pretrained("small")' in result.stdout
    left_out = "embeddings (bert.embeddings.word_embeddings.weight and 2 more), head (classifier"
    assert left_out in result.stderr and "--include '*' takes them in" in result.stderr
    settings = report("small")["settings"]
    assert left_out in settings["left out"] and settings["task"] == "text-classification"
    model = transformers.AutoModelForSequenceClassification.from_pretrained("small")
    torch.testing.assert_close(model.state_dict(), dict(weights("small")), rtol=0, atol=0)
    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in settings["parameters"])
    assert zeros >= round(0.8 * settings["weights"]) - 1
    assert "classifier.weight" not in settings["parameters"]
    loaded = hf.load("bert", "data.csv")  # the command is what Python does
    pruned = woodbury.prune(loaded.model, loaded.batches, 0.8)
    for name in pruned.objective.space.shapes:
        torch.testing.assert_close(loaded.model.get_parameter(name).data, weights("small")[name])
    again = "prune transformers:small data.csv --sparsity 0.85 --keep-zeros --method magnitude"
    succeeds(again, "--out smaller")
    assert report("smaller")["sparsity"] == pytest.approx(0.85, abs=1e-3)


def test_embeddings_and_head_are_taken_in_by_one_argument() -> None:
    command = "prune transformers:bert data.csv --sparsity 0.5 --method magnitude --include '*'"
    assert "Not pruned" not in succeeds(command, "--out all").stderr
    settings = report("all")["settings"]
    assert {"classifier.weight", "bert.embeddings.word_embeddings.weight"} <= set(
        settings["parameters"]
    )
    assert "left out" not in settings


def test_gradual_pruning_resumes_and_training_starts_from_a_name(tmp_path: Path) -> None:
    import transformers

    options = "--method magnitude --epochs 2 --steps 2 --batch-size 8 --out gradual"
    succeeds(PRUNE, options)
    assert "is finished" in succeeds(PRUNE, options, "--resume").stderr
    again = options.replace("gradual", "again")
    succeeds(PRUNE, again)
    assert same_weights("gradual", "again")
    model = transformers.AutoModelForSequenceClassification.from_pretrained("gradual")
    torch.testing.assert_close(model.state_dict(), dict(weights("gradual")), rtol=0, atol=0)
    succeeds("train transformers:bert data.csv --epochs 1 --optimizer adamw --out trained")
    model = transformers.AutoModelForSequenceClassification.from_pretrained("trained")
    torch.testing.assert_close(model.state_dict(), dict(weights("trained")), rtol=0, atol=0)


def test_plan_and_compare() -> None:
    assert "left out" in succeeds(PRUNE, "--plan --out none").stdout
    compare = "compare transformers:bert data.csv --sparsities 0.5 --seeds 1 --out compared"
    succeeds(compare, "--methods magnitude,mfac/joint --count 20 --damping 1e-3")
    assert Path("compared/report.html").is_file()


def test_data_without_labels() -> None:
    write_csv(Path("bare.csv"), [(text,) for text, _ in reviews(60)], "review")
    command = "prune transformers:bert bare.csv --sparsity 0.5 --out small"
    refused("bare.csv has no column of labels: name it with --columns label=COLUMN", command)
    succeeds(command, "--labels sampled --columns text=review --method magnitude")
    assert report("small")["measure"] == "agreement" and report("small")["score_before"] == 1.0


def test_language_models(tmp_path: Path) -> None:
    saved("causal", tmp_path / "gpt")
    Path("texts.txt").write_text("the film was very good . it was not bad\n" * 40)
    command = "prune transformers:gpt texts.txt --sparsity 0.5 --length 8 --out small"
    result = succeeds(command, "--method magnitude")
    numbers = report("small")
    # Without training every token is about as likely as any other.
    tokens = len(json.loads(Path("gpt/tokenizer.json").read_text("utf-8"))["model"]["vocab"])
    assert numbers["perplexity_before"] == pytest.approx(tokens, rel=0.3)
    assert numbers["perplexity_after"] > 1 and 5 < numbers["tokens_per_sample"] <= 7
    page = html.unescape(Path("small/report.html").read_text("utf-8"))
    assert "perplexity" in result.stdout and "perplexity" in page
    call = 'transformers.AutoModelForCausalLM.from_pretrained("small")'
    assert call in result.stdout and f"model = {call}" in re.sub(r"<[^>]*>", "", page)
    assert set(numbers["settings"]["parameters"]) == {
        f"transformer.h.0.{name}.weight"
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert Path("small/tokenizer.json").is_file()


def test_speed_loads_what_prune_wrote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="the sparse kernels need Numba")
    from woodbury.runtime import measuring, speeds
    from woodbury.runtime.layouts import Tiling
    from woodbury.runtime.measuring import Choice

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(speeds, "ROUNDS", 1)
    monkeypatch.setattr(
        measuring, "chosen", lambda key, dense, sparse: Choice(Tiling(1, 0), 2.0, 1.0)
    )
    monkeypatch.setattr(speeds, "_by_onnxruntime", lambda model, inputs: lambda: torch.zeros(1))
    succeeds(PRUNE, "--method magnitude --out small")
    Path("bert").rename("elsewhere")  # the folder has all of it
    assert "woodbury, sparse" in succeeds("speed small --batches 2").stdout


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("transformer:bert data.csv", "There is no module 'transformer': did you mean transf"),
        ("transformers:brt data.csv", "brt has no configuration of transformers"),
        ("transformers:./brt data.csv", "There is no folder ./brt: did you mean ./bert?"),
        ("transformers: data.csv", "'transformers:' names no model: write transformers:NAME"),
        ("transformers:bert ./dta.csv", "There is no data at ./dta.csv: did you mean ./data.csv?"),
        ("transformers:bert data.csv --task causal-lm", "was not trained for causal-lm: give"),
        ("transformers:bert data.csv --task causl-lm", "--task is 'causl-lm': did you mean causal"),
        ("transformers:bert data.csv --columns text", "--columns is 'text': give ROLE=COLUMN"),
        ("transformers:bert data.csv --columns text=x", "data.csv has no column 'x': there are"),
        ("transformers:bert data.csv --length 1", "--length is '1': give a whole number"),
        ("transformers:bert data.csv --length 99", "The length is 99: the model takes 16 tokens"),
        ("transformers:bert data.csv --size 8", "--size is for folders of images"),
        ("net.py:build data.csv --task causal-lm", "--task is for transformers:NAME: leave it"),
        ("transfrmers:bert data.csv --length 9", "did you mean transformers:bert?"),
    ],
)
def test_names_that_will_not_do(command: str, sentence: str) -> None:
    refused(sentence, "prune", command, "--sparsity 0.5 --out out")
