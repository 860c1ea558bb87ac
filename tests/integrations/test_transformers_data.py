"""Tables of every kind, their columns and labels; and models and data that will not do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pretrained import reviews, saved, tokenizer, write_csv

from woodbury import WoodburyError
from woodbury.errors import MissingDependency
from woodbury.integrations import transformers as hf
from woodbury.integrations.transformers import data as tables
from woodbury.integrations.transformers.models import Source

pytestmark = pytest.mark.usefixtures("hub_is_away")


@pytest.fixture
def bert(tmp_path: Path) -> str:
    saved("text", tmp_path / "bert")
    return "bert"


def rows(count: int = 12) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in reviews(count)]


def write(path: str) -> None:
    import datasets

    name, table = Path(path), datasets.Dataset.from_list(rows())
    if name.suffix in (".csv", ".tsv"):
        table.to_pandas().to_csv(name, index=False, sep="\t" if name.suffix == ".tsv" else ",")
    elif name.suffix == ".jsonl":
        name.write_text("\n".join(json.dumps(row) for row in rows()))
    elif name.suffix == ".json":
        name.write_text(json.dumps(rows()))
    elif name.suffix == ".parquet":
        table.to_parquet(str(name))
    elif path == "saved":
        table.save_to_disk(path)
    elif path == "saved splits":
        datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(path)
    else:
        name.mkdir()
        for split in ("train", "test"):
            write_csv(name / f"{split}.csv", reviews(12))


@pytest.mark.parametrize(
    "data",
    ["d.csv", "d.tsv", "d.json", "d.jsonl", "d.parquet", "saved", "saved splits", "folder"],
)
def test_tables_of_every_kind(data: str, bert: str) -> None:
    write(data)
    samples = Source.find(bert, None).read(data, {})
    assert len(samples.train) == 12
    assert (samples.test is not None) == (data in ("saved splits", "folder"))
    inputs, label = samples.train[1]
    assert inputs["input_ids"].tolist()[:7] == tokenizer()(reviews()[1][0])["input_ids"]
    assert int(label) == 1


def test_texts_for_language_models(tmp_path: Path) -> None:
    source = Source.find(str(saved("causal", tmp_path / "gpt")), None)
    text = "the film was\nvery good\n" * 6
    Path("one.txt").write_text(text)
    Path("folder").mkdir()
    Path("folder/a.txt").write_text(text)
    tokens = tokenizer(causal=True)(text)["input_ids"]
    for data in ("one.txt", "folder"):
        train = source.read(data, {}, length=7).train
        found = [inputs["input_ids"][: int(inputs["attention_mask"].sum())] for inputs, _ in train]
        assert torch.cat(found).tolist() == tokens[: len(torch.cat(found))]
        assert len(tokens) - len(torch.cat(found)) < 2 and len(train[0][1]) == 7


@pytest.mark.parametrize(
    ("header", "columns", "texts"),
    [
        ("sentence,labels", {}, 1),
        ("review,label", {}, 1),  # the only column of texts
        ("review,stars", {"text": ("review",), "label": ("stars",)}, 1),
        ("sentence1,sentence2,label", {}, 2),
        ("a,b,label", {"text": ("a", "b")}, 2),
    ],
)
def test_columns_are_found_or_named(header: str, columns: Any, texts: int, bert: str) -> None:
    lines = [("the film", "was good", "pos")[-texts - 1 :]] * 6
    write_csv(Path("d.csv"), lines, header)
    train = Source.find(bert, None).read("d.csv", columns).train
    inputs, label = train[0]
    assert int(label) == 1
    assert bool(inputs["token_type_ids"].any()) == (texts == 2)


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (["neg", "POS"], [0, 1]),
        (["1", "0"], [1, 0]),
        ([1.0, 0.0], [1, 0]),
        ([True, False], [1, 0]),
    ],
)
def test_labels_by_name_and_number(labels: list, numbers: list[int], bert: str) -> None:
    Path("d.json").write_text(
        json.dumps([{"text": "a film", "label": label} for label in labels * 3])
    )
    train = Source.find(bert, None).read("d.json", {}).train
    assert [int(label) for _, label in train] == numbers * 3


@pytest.mark.parametrize(
    ("names", "number", "note"),
    [(["pos", "neg"], 0, False), (["negative", "positive"], 1, True)],
)
def test_classes_with_names_are_matched_by_them(
    names: list[str], number: int, note: bool, bert: str
) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    table = datasets.Dataset.from_list([{"text": "a film", "label": 1}] * 6, features=features)
    table.save_to_disk("named")
    samples = Source.find(bert, None).read("named", {})
    assert int(samples.train[0][1]) == number
    assert [("in this order" in each) for each in samples.notes] == [True] * note


def test_data_without_labels_has_those_of_the_model(bert: str) -> None:
    write_csv(Path("d.csv"), [(text,) for text, _ in reviews()], "text")
    loaded = hf.load(bert, "d.csv")
    assert not loaded.labelled
    for inputs, target in loaded.batches:
        assert torch.equal(loaded.model(**inputs).logits.argmax(1), target)


@pytest.mark.parametrize(
    ("lines", "header", "sentence"),
    [
        ([("a film", "good")], "text,label", r"label 'good', which the model does not know: there"),
        ([("a film", "poz")], "text,label", r"did you mean pos\?"),
        ([("a film", 7), ("it", 0)], "text,label", r"label 7, and the model knows 2 classes"),
        ([("a film", -1)], "text,label", r"label -1, and the model"),
        ([("a film", 0.5)], "text,label", r"label 0\.5: give the number or the name"),
        ([("a film", ""), ("it", 1)], "text,label", r"label nan|label None"),
        ([("", 1), ("it", 0)], "text,label", r"Row 0 of d\.csv has no value in the column 'text'"),
        ([], "text,label", r"d\.csv|no rows"),
        ([(1, 0)], "number,label", r"columns number, label, none .* --columns text=COL"),
    ],
)
def test_rows_that_will_not_do(lines: list, header: str, sentence: str, bert: str) -> None:
    write_csv(Path("d.csv"), lines, header)
    with pytest.raises(WoodburyError, match=sentence):
        hf.load(bert, "d.csv")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"columns": {"text": "txt"}}, r"d\.csv has no column 'txt': did you mean text\?"),
        ({"columns": {"labl": "label"}}, r"columns names 'labl': did you mean label\?"),
        ({"columns": {"label": ("label", "text")}}, "2 columns of label, label and text: give one"),
        ({"task": hf.token_classification}, r"holds a BertForSequenceClassification, which was no"),
        ({"task": hf.image_classification}, r"is a bert model, which does no image-classification"),
        ({"length": 99}, r"The length is 99: the model takes 16 tokens"),
        ({"samples": 0}, r"samples is 0"),
    ],
)
def test_requests_that_will_not_do(options: dict[str, Any], sentence: str, bert: str) -> None:
    write_csv(Path("d.csv"), reviews())
    with pytest.raises(WoodburyError, match=sentence):
        hf.load(bert, "d.csv", **options)


def test_names_that_there_are_not(bert: str) -> None:
    write_csv(Path("d.csv"), reviews())
    for model, data, sentence in (
        ("./brt", "d.csv", r"There is no folder \./brt: did you mean \./bert\?"),
        ("brt", "d.csv", r"brt has no configuration .*: did you mean bert\?"),
        ("d.csv", "d.csv", r"There is no folder d\.csv"),
        (bert, "./e.csv", r"There is no data at \./e\.csv: did you mean \./d\.csv\?"),
        (bert, "nobody/nothing", r"There is no data nobody/nothing here, nor on the hub"),
        (bert, "bert/config.yaml", r"There is no data at bert/config\.yaml"),
    ):
        with pytest.raises(WoodburyError, match=sentence):
            hf.load(model, data)
    Path("d.xyz").write_text("")
    with pytest.raises(WoodburyError, match=r"d\.xyz is no table: give a \.csv"):
        hf.load(bert, "d.xyz")


def test_folders_that_lack_something(tmp_path: Path, bert: str) -> None:
    write_csv(Path("d.csv"), reviews())
    shutil.copytree(bert, "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("mute", name).unlink()
    saved("bare", tmp_path / "bare")
    saved("masked", tmp_path / "masked")
    Path("empty").mkdir()
    shutil.copytree(bert, "cut")
    whole = Path("cut/model.safetensors").read_bytes()
    Path("cut/model.safetensors").write_bytes(whole[:-100])
    shutil.copytree(bert, "other")
    more = tokenizer()
    more.add_tokens(["surprising"])
    more.save_pretrained("other")
    write_csv(Path("e.csv"), [("a surprising film", "pos")] * 6)
    write_csv(Path("n.csv"), [("a film", 1)] * 6)
    for model, data, task, sentence in (
        ("mute", "d.csv", None, r"mute has no tokenizer, or one without words: save it there"),
        ("bare", "d.csv", None, r"bare holds a BertModel, which does not tell the task: give"),
        ("bare", "n.csv", hf.text_classification, r"bare lacks 'classifier\.bias', which text-"),
        ("masked", "d.csv", hf.text_classification, r"BertForMaskedLM, .*: give the task masked"),
        ("empty", "d.csv", None, r"empty has no config\.json: give a folder that save_pretrained"),
        ("cut", "d.csv", None, r"The weights of cut cannot be read"),
        ("other", "e.csv", None, r"The tokenizer gives the token 21 and the model knows 21"),
    ):
        with pytest.raises(WoodburyError, match=sentence):
            hf.load(model, data, task)


def test_models_of_values_are_refused(tmp_path: Path) -> None:
    import transformers as library
    from support.pretrained import BERT

    write_csv(Path("d.csv"), reviews())
    config = library.BertConfig(**BERT, num_labels=1)
    library.BertForSequenceClassification(config).save_pretrained("value")
    tokenizer().save_pretrained("value")
    with pytest.raises(WoodburyError, match="is a model of regression, and text-classification is"):
        hf.load("value", "d.csv")


@pytest.mark.parametrize("library", ["transformers", "datasets"])
def test_without_the_extra_a_sentence_says_so(
    library: str, bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(Path("d.csv"), reviews())
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependency, match=r"pip install 'woodbury\[models\]'"):
        hf.load(bert, "d.csv")


def test_nothing_is_imported_before_it_is_needed() -> None:
    import subprocess

    code = (
        "import sys, woodbury.cli, woodbury.integrations.transformers\n"
        "late = ['transformers', 'datasets', 'timm', 'torchvision', 'lightning']\n"
        "assert not [name for name in late if name in sys.modules]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_test_split_without_labels_is_not_taken(bert: str) -> None:
    import datasets

    table = datasets.Dataset.from_list(rows())
    splits = {"train": table, "test": table.remove_columns("label")}
    datasets.DatasetDict(splits).save_to_disk("splits")
    assert Source.find(bert, None).read("splits", {}).test is None
    assert tables.read("splits").test is not None


def test_files_of_other_columns(bert: str) -> None:
    Path("data").mkdir()
    write_csv(Path("data/train.csv"), reviews())
    Path("data/test.jsonl").write_text('{"texts": "a film"}')
    with pytest.raises(WoodburyError, match="data cannot be read as a table"):
        tables.read("data")
