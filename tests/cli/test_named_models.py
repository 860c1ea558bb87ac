"""MODEL by name: from a folder of transformers to a pruned one, and what is refused."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from typing import Any

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


def language_model(folder: Path) -> str:
    """A fresh GPT and its text in a folder; what a command begins with after its name."""
    saved("causal", folder / "gpt")
    lines = ["the film was very good . it was not bad"] * 40
    Path("texts.txt").write_text("\n".join(lines))
    return "transformers:gpt texts.txt --length 8"


def perplexity_by_transformers(folder: str) -> float:
    """exp(mean loss of a predicted token) on the text, by the model's own loss of its labels."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    total, tokens = 0.0, 0
    for inputs, _ in hf.load(folder, "texts.txt", length=8).batches:
        if not bool(inputs["attention_mask"].all()):
            continue  # the last, shorter piece
        ids = inputs["input_ids"]
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * len(ids)
        tokens += len(ids)
    return math.exp(total / tokens)


def test_compare_has_the_perplexity_that_prune_has(tmp_path: Path) -> None:
    command = language_model(tmp_path)
    shared = "--count 20 --seed 3"
    succeeds("prune", command, shared, "--sparsity 0.5 --method magnitude --out small")
    pruned = report("small")
    options = "--sparsities 0.5,0.9 --seeds 1 --methods magnitude --out compared"
    result = succeeds("compare", command, shared, options)
    facts = json.loads(Path("compared/results.json").read_text("utf-8"))
    half, most = facts["results"]
    assert half["perplexity_before"] == pytest.approx(pruned["perplexity_before"], rel=1e-6)
    assert half["perplexity_after"] == pytest.approx(pruned["perplexity_after"], rel=1e-6)
    # the loss of a sample is a sum over its tokens, the perplexity one of a token
    tokens = math.log(most["perplexity_after"]) / most["loss_after"]
    assert tokens == pytest.approx(1 / pruned["tokens_per_sample"], rel=1e-6)
    assert [each["perplexity_after"] for each in facts["summary"]] == [
        half["perplexity_after"],
        most["perplexity_after"],
    ]
    page = html.unescape(Path("compared/report.html").read_text("utf-8"))
    title = "Perplexity on the calibration set"
    assert title in " ".join(result.stdout.split()) and title in page
    assert "perplexity_after" in Path("compared/results.csv").read_text().splitlines()[0]


def test_train_has_perplexities_that_fall(tmp_path: Path) -> None:
    command = language_model(tmp_path)
    options = "--optimizer adamw --lr 0.01 --batch-size 8 --epochs 3 --out trained"
    result = succeeds("train", command, options)
    numbers = report("trained")
    of_epochs = [each["held_out_perplexity"] for each in numbers["epochs"]]
    assert of_epochs == sorted(of_epochs, reverse=True) and of_epochs[-1] < of_epochs[0]
    # the text repeats itself, so that every part of it has nearly the same perplexity
    assert numbers["perplexity"] == pytest.approx(perplexity_by_transformers("trained"), rel=0.05)
    page = html.unescape(Path("trained/report.html").read_text("utf-8"))
    words = " ".join(result.stdout.split())
    assert f"perplexity {numbers['perplexity']:.4g} on the test data" in words
    assert page.count("perplexity") >= 2


def test_gradual_pruning_has_perplexities(tmp_path: Path) -> None:
    command = language_model(tmp_path)
    options = "--sparsity 0.5 --method magnitude --epochs 3 --steps 2 --batch-size 8"
    training = "--optimizer adamw --lr 0.01 --out grown"
    result = succeeds("prune", command, options, training)
    numbers = report("grown")
    before, pruned, after = (
        numbers[f"perplexity_{name}"] for name in ("before", "pruned", "after")
    )
    assert 1 < after < pruned < before
    assert after == pytest.approx(perplexity_by_transformers("grown"), rel=0.05)
    assert math.log(after) * numbers["tokens_per_sample"] == pytest.approx(numbers["loss_after"])
    page = html.unescape(Path("grown/report.html").read_text("utf-8"))
    assert "perplexity" in result.stdout and "perplexity, calibration set" in page


def test_other_networks_have_no_perplexity() -> None:
    options = "--sparsities 0.5 --seeds 1 --methods magnitude --count 20 --out compared"
    result = succeeds("compare transformers:bert data.csv", options)
    assert "Perplexity" not in result.stdout
    [cell] = json.loads(Path("compared/results.json").read_text("utf-8"))["results"]
    assert cell["perplexity_before"] is None and cell["perplexity_after"] is None


def test_a_class_that_transformers_cannot_import(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    class Broken:
        """transformers beside a torchvision that was built for another release of torch."""

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("BertFor"):
                return getattr(transformers, name)
            try:
                raise RuntimeError("operator torchvision::nms does not exist")
            except RuntimeError as error:
                raise ModuleNotFoundError(f"Could not import module {name!r}.") from error

    monkeypatch.setattr("woodbury.integrations.transformers.library.transformers", Broken)
    sentence = (
        "transformers cannot import BertForSequenceClassification (RuntimeError: operator "
        "torchvision::nms does not exist): install"
    )
    refused(sentence, PRUNE)


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


def test_a_table_without_a_column_of_text_says_what_to_type() -> None:
    write_csv(Path("other.csv"), [("a", "b")] * 60, "foo,bar")
    sentence = "has the columns foo, bar, none with a usual name of text: name it with --columns"
    refused(sentence, "prune transformers:bert other.csv --sparsity 0.5 --out out")


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
