"""The command line: each command end to end on a small network, each bad input one sentence, nothing half-written."""

from __future__ import annotations

import csv
import importlib
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.limits import Limited
from torch import nn
from typer.testing import CliRunner, Result
from woodbury.cli.data import probe

from woodbury.cli import app, main
from woodbury.errors import WoodburyError
from woodbury.io.sparse_files import load_sparse, save_sparse
from woodbury.model.likelihood import cross_entropy

NET = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)).eval()

def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 2))

def data(count=300, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, 16))
    return x, build()(torch.tensor(5 * x).float()).argmax(1).numpy()

def both():
    return *data(), *data(100, 1)

def datasets():
    return [TensorDataset(torch.tensor(x), torch.tensor(y)) for x, y in (data(), data(100, 1))]

def regression():
    x = np.random.default_rng(0).normal(size=(200, 16))
    return x, linear()(torch.tensor(x).float()).detach().numpy() + 0.1

def unlabelled():
    return (data()[0],)

def without():
    return data()[0], None

def halfway():
    return data()[0], None, *data(100, 1)

def regression_without():
    return regression()[0], None

def unlabelled_set():
    return TensorDataset(torch.zeros(20, 16))

def too_wide():
    return np.zeros((30, 17)), np.zeros(30, dtype=int)

def too_many_classes():
    return np.zeros((30, 16)), np.arange(30)

def float_labels():
    return np.zeros((30, 16)), np.zeros(30)

def uneven():
    return np.zeros((30, 16)), np.zeros(20, dtype=int)

def empty():
    return np.zeros((0, 16)), np.zeros(0, dtype=int)

def lazy():
    return nn.Sequential(nn.LazyLinear(3))

class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(16), 0

def endless():
    return Endless()

def one_astray():
    x, y = data(400)
    return np.concatenate([x, x[:1]]), np.append(y, 7)

def counts():
    x, y = regression()
    return x, (100 * y).round().astype(int)

def few():
    return tuple(part[:10] for part in data())

def broken():
    return 1 / 0

def interrupted():
    raise KeyboardInterrupt

number = 3
"""

BROKEN = 1 + NET.splitlines().index("    return 1 / 0")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small only wait for a second thread where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def woodbury(*words: str) -> Result:
    return CliRunner().invoke(app, [word for part in words for word in part.split()])


def refused(sentence: str, *words: str) -> None:
    """The command ends with 2, one sentence on stderr, no traceback and no folder."""
    before = set(Path().iterdir())
    result = woodbury(*words)
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 2, result.output
    assert len(lines) == 1 and result.stderr.strip().endswith(lines[0]) and sentence in lines[0], (
        result.stderr
    )
    assert "Traceback" not in result.output
    assert {
        entry for entry in set(Path().iterdir()) - before if entry.name != "__pycache__"
    } == set()


PRUNE = "prune net.py:build net.py:both --sparsity 0.5 --count 100 --damping 1e-3 --out out"


def test_prune_writes_weights_and_every_number(here: Path) -> None:
    result = woodbury(PRUNE)
    assert result.exit_code == 0, result.output
    assert (
        "50.00 % of 456 weights removed" in result.stdout
        and "woodbury.load_sparse" in result.stdout
    )
    assert sorted(entry.name for entry in (here / "out").iterdir()) == [
        "report.html",
        "report.json",
        "weights.safetensors",
    ]
    report = json.loads((here / "out" / "report.json").read_text())
    weights = load_sparse(here / "out" / "weights.safetensors")
    assert report["sparsity reached"] == 0.5 and report["damping"] == 1e-3
    assert sum(layer["kept"] for layer in report["layers"]) == 228
    assert sum(int(weights[layer["name"]].count_nonzero()) for layer in report["layers"]) == 228
    assert report["measured increase"] == pytest.approx(
        report["loss after"] - report["loss before"]
    )
    assert report["settings"]["count"] == 100 and report["settings"]["method"] == "gauss-newton"
    assert report["settings"]["stages"] == 2
    assert {"woodbury", "torch", "python"} <= set(report["versions"])
    assert report["accuracy before"] > 0.8 and 0 <= report["accuracy after"] <= 1
    assert {"seconds", "predicted increase", "accuracy before"} <= set(report)
    assert [layer["flops"] for layer in report["layers"]] == [2 * 384, 2 * 72]
    assert all(
        layer["flops_left"] == 2 * layer["kept"] and len(layer["saliencies"]) == 3
        for layer in report["layers"]
    )
    assert "What stays of each tensor" in (here / "out" / "report.html").read_text()


def test_the_written_weights_score_as_reported(here: Path) -> None:
    woodbury(PRUNE, "--recalibrate --method woodfisher --block 20")
    net = importlib.util.spec_from_file_location("pruned_net", here / "net.py")
    assert net and net.loader
    module = importlib.util.module_from_spec(net)
    net.loader.exec_module(module)
    model = module.build()
    model.load_state_dict(load_sparse(here / "out" / "weights.safetensors"))
    x, y = module.data(100, 1)
    reached = float((model(torch.tensor(x).float()).argmax(1).numpy() == y).mean())
    report = json.loads((here / "out" / "report.json").read_text())
    assert reached == pytest.approx(report["accuracy after"])


@pytest.mark.parametrize(
    "options",
    [
        "--method magnitude",
        "--method diagonal --scope layers",
        "--method kfac --update independent",
        "--first-order --stages 2",
        "--method mfac --batch 2 --exclude 4.*",
        "--include 1.weight",
        "--damping 1e-4,1e-2",
        "--selection stepwise:4",
        "--selection swaps:3",
        "--selection thresholded:3 --flops-power 0.5",
        "--ceiling 0.8",
        "--flops-power 0.5",
        "--pattern 1:4 --include 1.weight",
        "--pattern 1:4 --method magnitude",
    ],
)
def test_every_option_prunes_exactly(options: str, here: Path) -> None:
    target = "" if "--pattern" in options else "--sparsity 0.75"
    result = woodbury("prune net.py:build net.py:both --count 60 --out out", target, options)
    assert result.exit_code == 0, result.output
    report = json.loads((here / "out" / "report.json").read_text())
    removed = sum(layer["weights"] - layer["kept"] for layer in report["layers"])
    assert removed == round(0.75 * sum(layer["weights"] for layer in report["layers"]))
    if "1e-4,1e-2" in options:
        assert report["damping"] in (1e-4, 1e-2)


def test_targets_for_layers_and_blocks_and_flops(here: Path) -> None:
    command = "prune net.py:build net.py:both --count 60 --damping 1e-3"
    for options in (
        "--sparsity 4.*=0,*=0.75",
        "--unit block:1x4 --sparsity 0.5",
        "--unit block:4 --sparsity 0.5 --flops",
    ):
        result = woodbury(command, options, f"--out out{len(options)}")
        assert result.exit_code == 0, result.output
        layers = json.loads((here / f"out{len(options)}" / "report.json").read_text())["layers"]
        if "*=" in options:
            assert [layer["sparsity"] for layer in layers] == [0.75, 0.0]
        else:
            weights = load_sparse(here / f"out{len(options)}" / "weights.safetensors")
            whole = [(weights[layer["name"]].view(-1, 4) != 0).sum(1) for layer in layers]
            assert (
                all(((own == 0) | (own == 4)).all() for own in whole)
                and sum(map(sum, whole)) == 228
            )


def test_channels_fall_whole(here: Path) -> None:
    command = "prune net.py:build net.py:both --sparsity 0.5 --count 60 --damping 1e-3 --include 1.weight --unit channels"
    assert woodbury(command, "--out out").exit_code == 0
    rows = (load_sparse(here / "out" / "weights.safetensors")["1.weight"] != 0).sum(1)
    assert sorted(rows.tolist()) == [0] * 12 + [16] * 12


def test_the_same_seed_gives_the_same_weights(here: Path) -> None:
    for name in ("a", "b"):
        assert woodbury(PRUNE.replace("--out out", f"--out {name}"), "--seed 5").exit_code == 0
    first, second = (load_sparse(here / name / "weights.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_sparse_file_is_an_eighth_and_can_be_pruned_on(here: Path) -> None:
    layers = "nn.Linear(16, 3000, bias=False), nn.Linear(3000, 3)"
    big = f"import torch\nfrom torch import nn\ndef net():\n    torch.manual_seed(0)\n    return nn.Sequential({layers})\n"
    (here / "big.py").write_text(big)
    options = "net.py:both --sparsity 0.9 --method magnitude --out out"
    assert woodbury("prune big.py:net", options).exit_code == 0
    dense = load_sparse(here / "out" / "weights.safetensors")
    save_file(dense, here / "dense.safetensors")
    ratio = (here / "dense.safetensors").stat().st_size / (
        here / "out" / "weights.safetensors"
    ).stat().st_size
    assert 7 < ratio < 8.5
    again = "prune big.py:net net.py:both --checkpoint out/weights.safetensors --sparsity 0.95 --keep-zeros --method magnitude"
    assert woodbury(again, "--out again").exit_code == 0
    later = load_sparse(here / "again" / "weights.safetensors")
    assert all(not later[name][dense[name] == 0].any() for name in ("0.weight", "1.weight"))


def test_checkpoints_of_three_kinds_are_loaded(here: Path) -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)
    )
    state = model.state_dict()
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, here / "a.pt"
    )
    save_file(state, here / "b.safetensors")
    save_sparse(here / "c.safetensors", state)
    for name in ("a.pt", "b.safetensors", "c.safetensors"):
        command = f"prune net.py:build net.py:both --checkpoint {name} --sparsity 0 --method magnitude --out {name}.out"
        assert woodbury(command).exit_code == 0
        loaded = load_sparse(here / f"{name}.out" / "weights.safetensors")
        assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_data_of_every_kind(here: Path) -> None:
    x, y = np.random.default_rng(0).integers(0, 255, (60, 16), dtype=np.uint8), np.arange(60) % 3
    np.savez(here / "d.npz", x=x, y=y, x_test=x, y_test=y)
    for data in ("d.npz", "net.py:datasets", "net.py:data"):
        result = woodbury(
            f"prune net.py:build {data} --sparsity 0.5 --count 30 --damping 1e-2 --out {data[:5]}{len(data)}"
        )
        assert result.exit_code == 0, result.output
        assert ("held out by seed 0" in result.stderr) == (data == "net.py:data")


def test_too_little_data_for_the_usual_count_is_said(here: Path) -> None:
    result = woodbury("prune net.py:build net.py:both --sparsity 0.5 --damping 1e-3 --out out")
    assert result.exit_code == 0 and "made of 300 gradients" in result.stderr


def test_regression_is_scored_by_r_squared(here: Path) -> None:
    result = woodbury(
        "prune net.py:linear net.py:regression --loss squared_error --sparsity 0.25 --count 50 --out out"
    )
    assert result.exit_code == 0, result.output
    report = json.loads((here / "out" / "report.json").read_text())
    assert 0.9 < report["R² before"] < 1 and report["R² after"] > 0.5


@pytest.mark.parametrize(
    "method", ["magnitude", "diagonal", "hessian", "woodfisher", "mfac", "kfac", "kfac-bound"]
)
def test_data_without_labels(method: str, here: Path) -> None:
    np.savez(here / "x.npz", x=np.random.default_rng(0).normal(size=(150, 16)))
    words = f"prune net.py:build x.npz --labels sampled --sparsity 0.5 --method {method} --damping 1e-2,1 --count 40 --out out"
    result = woodbury(words)
    assert result.exit_code == 0, result.output
    assert "what the dense network says stands for them" in result.stderr
    report = json.loads((here / "out" / "report.json").read_text())
    assert report["agreement before"] == 1 and 0.3 < report["agreement after"] <= 1
    assert report["settings"]["labels"] == "sampled"


def test_labels_of_the_test_data_alone_and_of_regression(here: Path) -> None:
    usual = "--labels sampled --damping 1e-2 --count 40 --sparsity 0.25 --out"
    result = woodbury(f"prune net.py:build net.py:halfway {usual} half")
    assert result.exit_code == 0 and "no labels" not in result.stderr, result.output
    assert json.loads((here / "half" / "report.json").read_text())["accuracy before"] > 0.3
    result = woodbury(
        f"prune net.py:linear net.py:regression_without --loss squared_error {usual} out"
    )
    assert result.exit_code == 0, result.output
    report = json.loads((here / "out" / "report.json").read_text())
    assert report["R² before"] == pytest.approx(1) and 0.5 < report["R² after"] < 1


def test_sampled_labels_make_another_fisher(here: Path) -> None:
    for labels in ("observed", "sampled", "own"):
        words = "prune net.py:build net.py:both --sparsity 0.9 --damping 1e-3 --count 20 --method mfac --update independent"
        assert woodbury(f"{words} --labels {labels} --out {labels}").exit_code == 0
    found = {
        labels: load_sparse(here / labels / "weights.safetensors")
        for labels in ("observed", "sampled", "own")
    }
    assert torch.equal(found["own"]["1.weight"], found["observed"]["1.weight"])
    assert not torch.equal(found["own"]["1.weight"], found["sampled"]["1.weight"])


@pytest.mark.parametrize(
    "data", ["net.py:few", "net.py:both --count 10", "net.py:without --labels sampled --count 10"]
)
def test_ten_samples_will_do(data: str, here: Path) -> None:
    result = woodbury(f"prune net.py:build {data} --sparsity 0.5 --out out")
    assert result.exit_code == 0, result.output
    assert json.loads((here / "out" / "report.json").read_text())["sparsity reached"] == 0.5


def images(folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
    image = pytest.importorskip("PIL.Image")
    for index, (name, size) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
        image.fromarray(pixels).save(folder / name)


def test_folders_of_class_folders_of_images(here: Path) -> None:
    images(
        here / "pets",
        {
            f"{part}/{kind}/{i}.png": (4, 4)
            for part in ("train", "test")
            for kind in "abc"
            for i in range(9)
        },
    )
    result = woodbury("prune net.py:build pets --sparsity 0.5 --damping 1e-2 --out out")
    assert result.exit_code == 0 and "held out" not in result.stderr, result.output
    images(here / "mixed", {f"{kind}/{i}.png": (4 + i, 5) for kind in "abc" for i in range(3)})
    assert (
        woodbury(
            "prune net.py:build mixed --size 4 --sparsity 0.5 --damping 1e-2 --out sized"
        ).exit_code
        == 0
    )
    refused("differ in size", "prune net.py:build mixed --sparsity 0.5 --out new")
    whole = (here / "mixed" / "a" / "0.png").read_bytes()
    (here / "mixed" / "a" / "0.png").write_bytes(whole[:-30])
    refused(
        "no image that Pillow can read",
        "prune net.py:build mixed --size 4 --sparsity 0.5 --out new",
    )
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) << 11
    pytest.importorskip("PIL.Image").fromarray(deep).save(here / "mixed" / "a" / "0.png")
    refused("more than 8 bits", "prune net.py:build mixed --size 4 --sparsity 0.5 --out new")
    (here / "mixed" / "a" / "0.png").write_bytes(b"no image")
    refused(
        "no image that Pillow can read",
        "prune net.py:build mixed --size 4 --sparsity 0.5 --out new",
    )
    (here / "hollow" / "cat").mkdir(parents=True)
    refused("holds no image", "prune net.py:build hollow --sparsity 0.5 --out new")
    (here / "void").mkdir()
    refused(
        "void holds no class folders of images", "prune net.py:build void --sparsity 0.5 --out new"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "net.py:biuld net.py:both --sparsity 0.5",
            "net.py has no function 'biuld': did you mean build?",
        ),
        ("net.py:number net.py:both --sparsity 0.5", "net.py has no function 'number'"),
        ("net.py:data net.py:both --sparsity 0.5", "must return a torch.nn.Module"),
        (
            "net.py:broken net.py:both --sparsity 0.5",
            f"net.py, line {BROKEN}: ZeroDivisionError: division by zero",
        ),
        ("no.py:build net.py:both --sparsity 0.5", "There is no file no.py"),
        ("no.module:build net.py:both --sparsity 0.5", "There is no module 'no.module'"),
        ("net.py net.py:both --sparsity 0.5", "write FILE.py:FUNCTION"),
        ("net.py:build net.py:both --sparsity 1.0", "sparsity is 1.0: it is removed ÷ all weights"),
        ("net.py:build net.py:both --sparsity -0.1", "sparsity is -0.1"),
        (
            "net.py:build net.py:both --sparsity 0.5 --exclude 7.*",
            "exclude pattern '7.*' matches no parameter",
        ),
        (
            "net.py:build net.py:both --sparsity 0.5 --method mfc",
            "There is no method 'mfc': did you mean mfac?",
        ),
        ("net.py:build net.py:both --sparsity 0.5 --update all", "There is no update 'all'"),
        (
            "net.py:build net.py:both --sparsity 0.5 --scope layer",
            "There is no scope 'layer': did you mean layers?",
        ),
        ("net.py:build net.py:both", "There is no target: give --sparsity"),
        ("net.py:build net.py:both --sparsity half", "--sparsity is 'half'"),
        ("net.py:build net.py:both --sparsity fc*=0.5,0.9", "--sparsity is 'fc*=0.5,0.9'"),
        ("net.py:build net.py:both --sparsity 1.*=0.5,*=1.5", "sparsity is 1.5"),
        ("net.py:build net.py:both --sparsity 1.*=0.5", "No target is given for '4.weight'"),
        (
            "net.py:build net.py:both --sparsity fc*=0.5,*=0.9",
            "The target 'fc*' matches no parameter",
        ),
        ("net.py:build net.py:both --sparsity 0.5 --unit blok:4", "There is no unit 'blok:4'"),
        ("net.py:build net.py:both --sparsity 0.5 --unit block", "--unit is 'block'"),
        ("net.py:build net.py:both --sparsity 0.5 --unit block:4x0", "--unit is 'block:4x0'"),
        (
            "net.py:build net.py:both --sparsity 0.5 --unit block:5",
            "Blocks of 5 do not tile '1.weight'",
        ),
        (
            "net.py:build net.py:both --sparsity 0.5 --selection stepwise",
            "--selection is 'stepwise'",
        ),
        (
            "net.py:build net.py:both --sparsity 0.5 --selection once:3",
            "There is no selection with a number 'once'",
        ),
        (
            "net.py:build net.py:both --sparsity 0.5 --selection twice",
            "There is no selection 'twice'",
        ),
        ("net.py:build net.py:both --sparsity 0.5 --ceiling 0", "--ceiling is 0.0"),
        ("net.py:build net.py:both --sparsity 0.5 --ceiling 0.3", "may fall cost"),
        ("net.py:build net.py:both --pattern 2", "--pattern is '2'"),
        ("net.py:build net.py:both --pattern 4:4", "The pattern is 4:4"),
        (
            "net.py:build net.py:both --pattern 2:5",
            "Groups of 5 do not divide the 16 weights along dimension 1",
        ),
        (
            "net.py:build net.py:both --pattern 2:4 --sparsity 0.5",
            "--pattern 2:4 settles the sparsity",
        ),
        ("net.py:build net.py:both --pattern 2:4 --scope layers", "--pattern settles the scope"),
        ("net.py:build net.py:both --pattern 2:4 --ceiling 0.9", "leave --ceiling out"),
        ("net.py:build net.py:both --sparsity 0.5 --loss mse", "There is no loss 'mse'"),
        ("net.py:build net.py:both --sparsity 0.5 --damping 0", "--damping is '0'"),
        ("net.py:build net.py:both --sparsity 0.5 --damping small", "--damping is 'small'"),
        (
            "net.py:build net.py:both --sparsity 0.5 --method magnitude --update joint",
            "magnitude has no Fisher",
        ),
        (
            "net.py:build net.py:both --sparsity 0.5 --method diagonal --first-order",
            "diagonal has no first-order form",
        ),
        (
            "net.py:build net.py:both --sparsity 0.5 --method kfac --batch 2",
            "kfac takes single samples",
        ),
        ("net.py:build net.py:both --sparsity 0.5 --batch 2", "gauss-newton takes single samples"),
        ("net.py:build net.py:both --sparsity 0.5 --count 9999", "240 of the 9999 gradients"),
        ("net.py:build net.py:unlabelled --sparsity 0.5", "return (x, y)"),
        (
            "net.py:build net.py:without --sparsity 0.5",
            "net.py:without has no labels: give y, or prune with --labels sampled",
        ),
        (
            "net.py:build net.py:without --sparsity 0.5 --labels drawn",
            "There is no kind of labels 'drawn'",
        ),
        (
            "net.py:build net.py:both --sparsity 0.5 --method hessian --batch 2",
            "hessian takes single samples",
        ),
        ("net.py:build net.py:unlabelled_set --sparsity 0.5", "are the labels missing?"),
        (
            "net.py:build net.py:too_wide --sparsity 0.5",
            "The model refuses a batch of shape (6, 17): does DATA fit it?",
        ),
        ("net.py:build net.py:too_many_classes --sparsity 0.5", "but the model knows 3 classes"),
        ("net.py:lazy net.py:data --sparsity 0.5", "'0.weight' has no shape yet"),
        ("net.py:build net.py:one_astray --sparsity 0.5", "but the model knows 3 classes"),
        ("net.py:build net.py:endless --sparsity 0.5", "returned an IterableDataset"),
        ("net.py:build net.py:float_labels --sparsity 0.5", "The labels are float32"),
        ("net.py:build net.py:uneven --sparsity 0.5", "there must be one label per input"),
        ("net.py:build net.py:empty --sparsity 0.5", "holds no samples"),
        (
            "net.py:build net.py:data --sparsity 0.5 --loss squared_error",
            "squared_error got outputs of shape",
        ),
        ("net.py:build nothing --sparsity 0.5", "There is no data at nothing"),
        ("net.py:build none.npz --sparsity 0.5", "There is no file none.npz"),
        ("net.py:build net.py:both --sparsity 0.5 --checkpoint no.pt", "There is no file no.pt"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    words: str, sentence: str, here: Path
) -> None:
    refused(sentence, "prune", words, "--out out")


def test_files_that_are_not_what_they_are_called(here: Path) -> None:
    np.save(here / "array.npy", np.zeros((30, 16)))
    (here / "array.npy").rename(here / "array.npz")
    refused("no .npz file", "prune net.py:build array.npz --sparsity 0.5 --out out")
    np.savez(here / "ragged.npz", x=np.array([[1], [2, 3]], dtype=object), y=np.zeros(2, dtype=int))
    refused("Python objects", "prune net.py:build ragged.npz --sparsity 0.5 --out out")


def test_whole_numbers_are_regressed_on_too(here: Path) -> None:
    result = woodbury(
        "prune net.py:linear net.py:counts --loss squared_error --sparsity 0.5 --damping 1 --out out"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((here / "out" / "report.json").read_text())["R² before"] < 1


def test_a_label_that_means_no_observation_is_no_class() -> None:
    net, x = nn.Linear(2, 3), torch.ones(4, 2)
    probe(net, [(x, torch.tensor([0, 2, -100, 1])), (x, torch.full((4,), -100))], cross_entropy)
    for labels, says in (
        ([0, 3, -100, 1], "run from 0 to 3"),
        ([-1, 0, 0, 0], "run from -1"),
        ([-100] * 4, "Every"),
    ):
        with pytest.raises(WoodburyError, match=says):
            probe(net, [(x, torch.tensor(labels))], cross_entropy)


def test_bad_checkpoints(here: Path) -> None:
    command = "prune net.py:build net.py:both --sparsity 0.5 --out out --checkpoint"
    state = nn.Linear(16, 24).state_dict()
    torch.save(state, here / "other.pt")
    refused("other.pt lacks '1.weight'", command, "other.pt")
    (here / "cut.pt").write_bytes((here / "other.pt").read_bytes()[:500])
    refused("cut.pt is truncated", command, "cut.pt")
    torch.save(nn.Linear(2, 2), here / "whole.pt")
    refused("no plain state dict", command, "whole.pt")
    torch.save([1, 2], here / "list.pt")
    refused("holds no state dict", command, "list.pt")
    save_file(state, here / "cut.safetensors")
    (here / "cut.safetensors").write_bytes((here / "cut.safetensors").read_bytes()[:-8])
    refused("cut.safetensors is truncated", command, "cut.safetensors")
    (here / "cut.npz").write_bytes(b"PK\x03\x04")
    refused("cut.npz is truncated", "prune net.py:build cut.npz --sparsity 0.5 --out out")
    np.savez(here / "x.npz", x=np.zeros((3, 16)))
    refused(
        "x.npz has no labels: give y, or prune with --labels sampled",
        "prune net.py:build x.npz --sparsity 0.5 --out out",
    )
    for given, missing in (("y", "x"), ("x y y_test", "x_test"), ("x y x_test", "y_test")):
        np.savez(here / "slip.npz", **{name: np.zeros((3, 16)) for name in given.split()})  # type: ignore[arg-type]
        refused(
            f"slip.npz has no array {missing!r}",
            "prune net.py:build slip.npz --sparsity 0.5 --out out",
        )
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)
    )
    wide = {**model.state_dict(), "4.weight": torch.zeros(3, 25)}
    torch.save(wide, here / "wide.pt")
    refused("'4.weight' has shape (3, 25)", command, "wide.pt")
    torch.save({**model.state_dict(), "5.weight": torch.zeros(3)}, here / "more.pt")
    refused("more.pt has '5.weight'", command, "more.pt")
    torch.save({**model.state_dict(), "4.weight": torch.full((3, 24), torch.nan)}, here / "nan.pt")
    refused("'4.weight' is not finite", command, "nan.pt", "--damping 1e-3")


def test_the_output_folder_is_checked_before_any_work(here: Path) -> None:
    (here / "full").mkdir()
    (here / "full" / "precious").touch()
    command = "prune net.py:interrupted net.py:both --sparsity 0.5 --out"
    refused("is not empty", command, "full")
    refused("is a file", command, "net.py")
    refused("cannot be written", command, "net.py/below")
    refused("is not empty", "compare net.py:interrupted net.py:both --out full")
    refused("is not empty", "demo --out full")


def test_ctrl_c_leaves_nothing(here: Path) -> None:
    result = woodbury("prune net.py:build net.py:interrupted --sparsity 0.5 --out deep/out")
    assert result.exit_code == 130 and result.stderr.strip().endswith(
        "Interrupted: nothing was written."
    )
    assert not (here / "deep").exists()


def test_compare_writes_table_picture_and_page(here: Path) -> None:
    pytest.importorskip("matplotlib")
    methods = "--methods magnitude,mfac/independent,mfac --sparsities 0.9,0.5 --seeds 2"
    result = woodbury(
        "compare net.py:build net.py:both --count 60 --damping 1e-3,1e-2 --out out", methods
    )
    assert result.exit_code == 0, result.output
    names = ["accuracy.png", "prediction.png", "report.html", "results.csv", "results.json"]
    assert sorted(entry.name for entry in (here / "out").iterdir()) == names
    with (here / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and {row["sparsity"] for row in rows} == {"0.5", "0.9"}
    assert {row["damping"] for row in rows} <= {"", "0.001", "0.01"} and {
        row["seed"] for row in rows
    } == {"0", "1"}
    record = json.loads((here / "out" / "results.json").read_text())
    assert (
        record["settings"]["seeds"] == [0, 1] and len(record["summary"]) == 6 and record["versions"]
    )
    assert [row["update"] for row in rows[:6]] == ["zero"] * 2 + ["independent"] * 2 + ["joint"] * 2
    assert "magnitude" in result.stdout and "50 %" in result.stdout
    refused(
        "--sparsities is 'half'", "compare net.py:build net.py:both --sparsities half --out new"
    )
    refused(
        "There is no method 'kfacc'", "compare net.py:build net.py:both --methods kfacc --out new"
    )


def test_demo_in_small(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    module: Any = importlib.import_module("woodbury.cli.demo")
    for name, value in {
        "SPARSITIES": (0.5, 0.9),
        "COUNT": 100,
        "EPOCHS": 4,
        "SAMPLES": 2,
        "DAMPINGS": (1e-4, 1e-2),
    }.items():
        monkeypatch.setattr(module, name, value)
    (here / "woodbury-demo").mkdir()
    threads = torch.get_num_threads()
    result = woodbury("demo")
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == threads
    assert "M-FAC, joint" in result.stdout and "What next?" in result.stdout
    assert {"accuracy.png", "report.html", "results.json"} <= {
        e.name for e in (here / "woodbury-demo-2").iterdir()
    }


@pytest.mark.slow
def test_the_demo_shows_what_it_says(here: Path) -> None:
    assert woodbury("demo --out out").exit_code == 0
    cells = json.loads((here / "out" / "results.json").read_text())["summary"]
    at = {(cell["method"], cell["sparsity"]): cell["accuracy"] for cell in cells}
    assert at["M-FAC, joint", 0.9] > max(at["magnitude", 0.9], at["diagonal Fisher", 0.9]) + 0.05
    assert at["M-FAC, joint", 0.9] > max(at["WoodFisher", 0.9], at["M-FAC", 0.9])
    others = [
        accuracy
        for (name, sparsity), accuracy in at.items()
        if sparsity == 0.95 and "refit" not in name
    ]
    assert at["… and a refit", 0.95] > max(others) + 0.1


def test_help_has_an_example_for_each_command() -> None:
    for command in ("prune", "compare", "demo"):
        result = woodbury(command, "--help")
        assert result.exit_code == 0 and f"Example:  woodbury {command}" in result.stdout


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_process_cleans_up(here: Path, sent: signal.Signals) -> None:
    if signal.getsignal(sent) is signal.SIG_IGN:
        pytest.skip("these tests themselves run under nohup")
    (here / "slow.py").write_text(
        "import time\ndef net():\n    print('here', flush=True)\n    time.sleep(60)\n"
    )
    words = [
        sys.executable,
        "-m",
        "woodbury.cli",
        "prune",
        "slow.py:net",
        "net.py:both",
        "--sparsity",
        "0.5",
        "--out",
        "out",
    ]
    root = str(Path(importlib.import_module("woodbury").__file__ or "").parents[1])
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"}
    ) as process:
        assert process.stdout and process.stdout.readline() == b"here\n"
        assert any(".partial" in entry.name for entry in here.iterdir())
        process.send_signal(sent)
        assert process.wait(20) == 128 + sent
    assert (
        not any(".partial" in entry.name for entry in here.iterdir())
        and not (here / "out").exists()
    )


def test_main_is_the_entry_point(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {sent: signal.getsignal(sent) for sent in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(sys, "argv", ["woodbury", "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "nohup asked for it"
    for sent, handler in before.items():
        signal.signal(sent, handler)
    assert end.value.code == 0 and textwrap.shorten(capsys.readouterr().out, 30).startswith(
        "Usage: woodbury"
    )


def test_refits_follow_rounds_by_default_and_as_asked(here: Path) -> None:
    words = "prune net.py:build net.py:both --sparsity 0.8 --damping 1e-3 --count 60 --stages 2"
    refits = {
        "usual": "",
        "none": "--refit 0",
        "two": "--refit 2",
        "others": "--method mfac",
        "taylor": "--first-order",
    }
    refits["magnitude"], reports = "--method magnitude --refit 1", {}
    for name, more in refits.items():
        result = woodbury(f"{words} {more} --out {name}")
        assert result.exit_code == 0, result.output
        reports[name] = json.loads((here / name / "report.json").read_text())
    assert [reports[name]["settings"]["refit"] for name in refits] == [1, 0, 2, 0, 0, 1]
    increase = {name: report["measured increase"] for name, report in reports.items()}
    assert increase["usual"] < increase["none"]
    assert (
        reports["magnitude"]["predicted increase"] > 0
    )  # what is left of the distance to the dense outputs
    assert woodbury(f"{words} --refit -1 --out wrong").exit_code == 2


def test_refits_without_room_are_left_out_or_iterated(here: Path, limited: Limited) -> None:
    words = "prune net.py:build net.py:both --damping 1e-3 --count 60 --sparsity 0.5 --stages 1"
    for out, room, more, said in (
        ("rows", 2**33, "", "1, by rows, 4 directions"),
        ("fewer", 4 * 4 * 60 * 456 - 1, "", "1, by rows, 3 directions"),
        ("out", 4 * 60 * 456 - 1, "", "0;"),
        ("asked", 4 * 60 * 456 - 1, "--refit 1", ""),
    ):
        limited(memory=room)
        result = woodbury(f"{words} {more} --out {out}")
        assert result.exit_code == 0 and (f"after each: {said}" in result.stderr) == (not more), (
            result.output
        )
    reports = [
        json.loads((here / out / "report.json").read_text()) for out in ("rows", "out", "asked")
    ]
    assert [report["settings"]["refit"] for report in reports] == [1, 0, 1]
    assert (
        reports[2]["predicted increase"] < reports[1]["predicted increase"]
    )  # what is left of the distance
