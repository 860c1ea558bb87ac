"""What a page says of its command: it repeats the run, and its Python loads the weights."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from support.cli import report, same_weights, succeeds, weights

from woodbury.cli.invocation import command_line, invoked, loading, repeating

NET = Path(__file__).with_name("net.py")
PRUNE = "prune net.py:build net.py:both --sparsity 0.5 --count 60 --damping 1e-3 --out out"


def test_the_command_of_a_report_repeats_it(here: Path) -> None:
    succeeds(PRUNE)
    command = report("out")["command_line"]
    assert command == f"woodbury {PRUNE}"
    succeeds(command.replace("--out out", "--out again").removeprefix("woodbury "))
    assert same_weights("out", "again")


def test_the_page_and_the_terminal_repeat_a_run_by_the_same_words(here: Path) -> None:
    result = succeeds(PRUNE)
    words = "prune --config out/run.toml"
    assert f"woodbury {words}\n" in result.stdout
    page = re.sub(r"<[^>]*>", "", Path("out/report.html").read_text("utf-8"))
    assert f"woodbury {words}" in page
    succeeds(f"{words} --out again")
    assert same_weights("out", "again")


@pytest.mark.parametrize(
    ("words", "again"),
    [
        ("demo --out out/ --seed 1", "woodbury demo --out out-again --seed 1"),
        ("speed a 'b c' --out=out", "woodbury speed a 'b c' --out=out-again"),
        ("speed a b", "woodbury speed a b"),
    ],
)
def test_a_run_is_repeated_into_another_folder(words: str, again: str) -> None:
    with invoked(shlex.split(words)):
        assert repeating().text == again
        assert command_line() == shlex.join(["woodbury", *shlex.split(words)])
    assert command_line() == "woodbury"


def test_the_python_of_a_page_loads_the_weights(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeds(PRUNE)
    monkeypatch.syspath_prepend(here)
    names: dict[str, torch.nn.Module] = {}
    exec(loading("net.py:build", Path("out/weights.safetensors")).text, names)
    loaded, written = names["model"].state_dict(), weights("out")
    assert all(torch.equal(loaded[name], written[name]) for name in loaded | written)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("net.py:build", "from net import build"),
        ("package.nets:build", "from package.nets import build"),
        ("nets/net.py:build", "model = ...  # nets/net.py:build"),
        ("timm:resnet18", "model = ...  # timm:resnet18"),
    ],
)
def test_what_makes_a_network_is_named(model: str, line: str) -> None:
    assert line in loading(model, Path("w")).text.splitlines()


@pytest.mark.parametrize(
    ("call", "lines"),
    [
        (
            'transformers.AutoModel.from_pretrained("out")',
            ["import transformers", "", 'model = transformers.AutoModel.from_pretrained("out")'],
        ),
        (
            'model.load_state_dict(torch.load("out/model.pth"))',
            [
                "import torch",
                "",
                "model = ...  # torchvision:resnet18",
                'model.load_state_dict(torch.load("out/model.pth"))',
            ],
        ),
    ],
)
def test_a_network_of_a_library_is_loaded_by_its_own_line(call: str, lines: list[str]) -> None:
    assert loading("torchvision:resnet18", Path("w"), call).text.splitlines() == lines


def test_a_run_with_a_file_of_options_is_repeated_by_it() -> None:
    with invoked(["train", "net.py:build", "net.py:both", "--out", "a b"]):
        assert repeating(Path("a b/run.toml")).text == "woodbury train --config 'a b/run.toml'"
