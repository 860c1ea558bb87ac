"""Samples of each task against transformers' own loss, of one sample at a time without padding."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pretrained import reviews, saved, tokenizer, write_csv
from torch import Tensor

from woodbury import Objective
from woodbury.estimation.ggn import draw_directions
from woodbury.estimation.gradients import gradient_rows
from woodbury.estimation.labels import sampled
from woodbury.integrations import transformers as hf
from woodbury.integrations.transformers.models import Source

pytestmark = pytest.mark.usefixtures("hub_is_away")


def own_losses(model: Any, samples: Iterable[dict[str, list]]) -> Tensor:
    """transformers' loss of each sample, summed over what counts in it."""
    losses = []
    for sample in samples:
        given = {name: torch.tensor([values]) for name, values in sample.items()}
        counted = given["labels"] != -100
        if "CausalLM" in type(model(**given)).__name__:
            counted = counted[:, 1:]
        losses.append(model(**given).loss * counted.sum())
    return torch.stack(losses)


def agrees(loaded: hf.Loaded, samples: list[dict[str, list]], rtol: float = 1e-9) -> None:
    """Whether loss and gradient of all samples, padded together, are those of transformers.

    Its losses of tokens round the scores to float32.
    """
    model = loaded.model.double()
    truth = own_losses(model, samples).mean()
    model.zero_grad()
    truth.backward()
    objective = Objective.from_model(model, loaded.batches)
    assert objective.loss() == pytest.approx(float(truth.detach()), rel=rtol)
    rows = gradient_rows(objective, len(samples))
    gradients = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in model.named_parameters()
    }
    truth = objective.space.flatten(gradients)
    torch.testing.assert_close(rows.mean(0), truth, rtol=100 * rtol, atol=rtol)


def lengths(loaded: hf.Loaded) -> set[int]:
    """The lengths of the calibration set without padding."""
    return {int(n) for inputs, _ in loaded.batches for n in inputs["attention_mask"].sum(1)}


def whole(loaded: hf.Loaded, count: int) -> hf.Loaded:
    """The test split must not have taken any sample away."""
    assert sum(len(target) for _, target in loaded.batches) == count
    return loaded


def tables(rows: list[dict], name: str) -> str:
    """A folder with the same rows to train and to test on."""
    Path(name).mkdir()
    for split in ("train", "test"):
        text = "\n".join(json.dumps(row) for row in rows)
        Path(name, f"{split}.jsonl").write_text(text)
    return name


def test_text_classification(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in reviews(12)]
    loaded = whole(hf.load(str(saved("text", tmp_path / "bert")), tables(rows, "data")), 12)
    assert len(lengths(loaded)) > 1
    encode = tokenizer()
    samples = [
        {**encode(row["text"]), "labels": ["neg", "pos"].index(row["label"])} for row in rows
    ]
    agrees(loaded, samples)


def test_pairs_of_texts(tmp_path: Path) -> None:
    rows = [{"premise": "the film", "hypothesis": text, "label": 1} for text, _ in reviews(6)]
    loaded = whole(hf.load(str(saved("text", tmp_path / "bert")), tables(rows, "data")), 6)
    encode = tokenizer()
    agrees(loaded, [{**encode(row["premise"], row["hypothesis"]), "labels": 1} for row in rows])
    assert any(bool(inputs["token_type_ids"].any()) for inputs, _ in loaded.batches)


def test_a_decoder_finds_the_last_token_before_the_padding(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in reviews(8)]
    folder = str(saved("causal classifier", tmp_path / "gpt"))
    loaded = whole(hf.load(folder, tables(rows, "data")), 8)
    encode = tokenizer(causal=True)
    agrees(
        loaded,
        [{**encode(row["text"]), "labels": ["neg", "pos"].index(row["label"])} for row in rows],
    )


def test_token_classification_labels_the_first_token_of_each_word(tmp_path: Path) -> None:
    words = ["the", "not-bad", "film"]
    rows = [
        {"tokens": words[: 1 + number % 3], "ner_tags": [1, 0, 1][: 1 + number % 3]}
        for number in range(6)
    ]
    loaded = whole(hf.load(str(saved("tokens", tmp_path / "bert")), tables(rows, "data")), 6)
    encode, samples = tokenizer(), []
    for row in rows:
        labels = [-100, *([1], [1, 0, -100, -100], [1, 0, -100, -100, 1])[len(row["tokens"]) - 1]]
        samples.append({**encode(" ".join(row["tokens"])), "labels": [*labels, -100]})
    agrees(loaded, samples, rtol=1e-6)


def pieces(tokens: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


def test_causal_language_models_predict_the_next_token(tmp_path: Path) -> None:
    rows = [{"text": "the film was very good " * (1 + number % 4)} for number in range(4)]
    loaded = hf.load(str(saved("causal", tmp_path / "gpt")), tables(rows, "data"))
    encode = tokenizer(causal=True)
    samples = [
        {"input_ids": piece, "labels": piece}
        for row in rows
        for piece in pieces(encode(row["text"])["input_ids"], 12)
        if len(piece) > 1
    ]
    assert len(samples) > len(rows) and len(lengths(loaded)) > 1
    agrees(whole(loaded, len(samples)), samples, rtol=1e-6)


def test_masked_language_models_predict_what_is_hidden(tmp_path: Path) -> None:
    rows = [{"text": "the film was very good " * (number % 5)} for number in range(40)]
    folder, data = str(saved("masked", tmp_path / "bert")), tables(rows, "data")
    loaded = hf.load(folder, data)
    samples, hidden, tokens = [], 0, 0
    for inputs, target in loaded.batches:
        for row in range(len(target)):
            kept = inputs["attention_mask"][row] == 1
            assert bool((target[row][~kept] == -100).all())
            sample = {name: values[row][kept].tolist() for name, values in inputs.items()}
            samples.append({**sample, "labels": target[row][kept].tolist()})
            hidden += int((target[row] != -100).sum())
            tokens += int(kept.sum()) - 2
    assert 0.1 < hidden / tokens < 0.2
    counted = [sample for sample in samples if set(sample["labels"]) != {-100}]
    model = loaded.model.double()
    truth = own_losses(model, counted).sum() / len(samples)  # the loss of none is 0/0 there
    assert Objective.from_model(model, loaded.batches).loss() == pytest.approx(
        float(truth.detach())
    )
    again, other = hf.load(folder, data).batches, hf.load(folder, data, seed=1).batches
    assert torch.equal(again[0][0]["input_ids"], loaded.batches[0][0]["input_ids"])
    assert not torch.equal(other[0][0]["input_ids"], loaded.batches[0][0]["input_ids"])
    restored = torch.where(
        loaded.batches[0][1] == -100, loaded.batches[0][0]["input_ids"], loaded.batches[0][1]
    )
    assert {tuple(row[row > 5].tolist()) for row in restored} <= {
        tuple(piece)
        for row in rows
        for piece in pieces(tokenizer()(row["text"])["input_ids"][1:-1], 14)
    }


def test_image_classification(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = saved("image", tmp_path / "vit")
    for split in ("train", "test"):
        for number, kind in enumerate(("cat", "dog")):
            Path("images", split, kind).mkdir(parents=True)
            for shade in range(3):
                made = image.new("RGB", (9 + shade, 7), (80 * shade, 90 * number, 10))
                made.save(f"images/{split}/{kind}/{shade}.png")
    loaded = whole(hf.load(str(folder), "images"), 6)
    processor = Source.find(str(folder), hf.image_classification).processor
    samples = [
        {
            "pixel_values": processor(image.open(path), return_tensors="pt")["pixel_values"][0]
            .double()
            .tolist(),
            "labels": int(path.parent.name == "dog"),
        }
        for path in sorted(Path("images/train").rglob("*.png"))
    ]
    model = loaded.model.double()
    batches = [({"pixel_values": i["pixel_values"].double()}, t) for i, t in loaded.batches]
    truth = sum(
        float(
            model.requires_grad_(False)(
                torch.tensor([sample["pixel_values"]], dtype=torch.float64),
                labels=torch.tensor([sample["labels"]]),
            ).loss
        )
        for sample in samples
    ) / len(samples)
    assert Objective.from_model(model, batches).loss() == pytest.approx(truth)


def test_padding_has_no_directions_and_no_drawn_labels(tmp_path: Path) -> None:
    rows = [{"text": "the film was " + "very " * number + "good"} for number in range(6)]
    loaded = hf.load(str(saved("causal", tmp_path / "gpt")), tables(rows, "data"))
    objective = Objective.from_model(loaded.model, loaded.batches)
    for batch in draw_directions(objective, 2, 0, 4):
        norms = batch.directions.square().sum((1, 2))  # (b, T)
        predicts = batch.inputs["attention_mask"].roll(-1, 1)
        predicts[:, -1] = 0  # nothing follows the last token
        assert bool(((norms > 0) == (predicts == 1)).all()) and bool((predicts == 0).any())
        drawn = sampled(objective, batch.inputs, batch.target, torch.Generator())
        assert bool(((drawn == -100) == (predicts == 0)).all())


def test_prune_and_save(tmp_path: Path) -> None:
    import woodbury

    folder = str(saved("text", tmp_path / "bert"))
    write_csv(tmp_path / "data.csv", reviews())
    loaded = hf.load(folder, "data.csv", hf.text_classification)
    pruned = woodbury.prune(loaded.model, loaded.batches, 0.5)
    assert "classifier.weight" in pruned.settings["left out"]
    loaded.save(tmp_path / "small")
    again = hf.load(str(tmp_path / "small"), "data.csv")
    torch.testing.assert_close(again.model.state_dict(), loaded.model.state_dict())
    for name, part in pruned.objective.space.slices.items():
        removed = ~pruned.keep[part].view(pruned.objective.space.shapes[name])
        assert bool((again.model.get_parameter(name)[removed] == 0).all())
    assert len(next(iter(loaded.test))[1]) == 8  # a fifth of 40
