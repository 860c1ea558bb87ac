"""What the commands refuse: one sentence, exit code 2, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli import refused

NET = Path(__file__).with_name("net.py")
BROKEN_LINE = 1 + NET.read_text("utf-8").splitlines().index("    return 1 / 0")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("prun", "There is no command 'prun': did you mean prune?"),
        (
            "fly",
            "There is no command 'fly': choose demo, prune, compare, inspect, train, speed, "
            "export.",
        ),
        ("prune", "MODEL is missing"),
        ("prune net.py:build", "DATA is missing"),
        ("prune net.py:build net.py:both", "There is no target: give --sparsity"),
        ("prune net.py:build net.py:both --out", "--out is missing or has no value"),
        ("prune net.py:build net.py:both more --out out", "'more' belongs to no option"),
        ("prune net.py:build net.py:both --outt out", "There is no option --outt: did you mean"),
        ("demo --wings 2", "There is no option --wings: see woodbury demo --help."),
        ("demo --out a --out b", "--out is given more than once"),
        ("demo --seed 1.5", "--seed is '1.5': give a whole number."),
        ("train net.py:build net.py:both --out out --lr fast", "--lr is 'fast': give a number."),
        ("compare net.py:build net.py:both --seeds 0", "--seeds is '0': give a whole number of"),
    ],
)
def test_words_that_are_no_command_line(words: str, sentence: str, here: Path) -> None:
    refused(sentence, words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("net.py:biuld net.py:both", "net.py has no function 'biuld': did you mean build?"),
        ("net.py:number net.py:both", "net.py has no function 'number'"),
        ("net.py:data net.py:both", "must return a torch.nn.Module"),
        (
            "net.py:broken net.py:both",
            f"net.py, line {BROKEN_LINE}: ZeroDivisionError: division by zero",
        ),
        ("no.py:build net.py:both", "There is no file no.py"),
        ("no.module:build net.py:both", "There is no module 'no.module'"),
        ("net.py net.py:both", "write FILE.py:FUNCTION"),
        ("net.py:lazy net.py:data", "'0.weight' has no shape yet"),
        ("net.py:build net.py:both --exclude 7.*", "exclude pattern '7.*' matches no parameter"),
        ("net.py:build net.py:both --checkpoint no.pt", "There is no file no.pt"),
        ("net.py:build nothing", "There is no data at nothing"),
        ("net.py:build none.npz", "There is no file none.npz"),
        ("net.py:build net.py:one_part", "return (x, y)"),
        (
            "net.py:build net.py:without_labels",
            "net.py:without_labels has no labels: give y, or prune with --labels sampled",
        ),
        ("net.py:build net.py:items_without_labels", "are the labels missing?"),
        (
            "net.py:build net.py:too_wide",
            "The model refuses a batch of shape (6, 17): does DATA fit it?",
        ),
        ("net.py:build net.py:too_many_classes", "but the model knows 3 classes"),
        ("net.py:build net.py:one_class_too_many", "but the model knows 3 classes"),
        ("net.py:build net.py:endless", "returned an IterableDataset"),
        ("net.py:build net.py:float_labels", "The labels are float32"),
        ("net.py:build net.py:uneven", "there must be one label per input"),
        ("net.py:build net.py:empty", "holds no samples"),
        ("net.py:build net.py:data --loss squared_error", "squared_error got outputs of shape"),
        ("net.py:build net.py:data --loss binary", "binary() got outputs of shape"),
        ("net.py:linear net.py:data --loss smoothed_cross_entropy", "the model knows 2 classes"),
    ],
)
def test_models_and_data_that_will_not_do(words: str, sentence: str, here: Path) -> None:
    refused(sentence, "prune", words, "--sparsity 0.5 --out out")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("", "There is no target: give --sparsity"),
        ("--sparsity 1.0", "sparsity is 1.0: it is removed ÷ all weights"),
        ("--sparsity -0.1", "sparsity is -0.1"),
        ("--sparsity half", "--sparsity is 'half'"),
        ("--sparsity fc*=0.5,0.9", "--sparsity is 'fc*=0.5,0.9'"),
        ("--sparsity 1.*=0.5,*=1.5", "sparsity is 1.5"),
        ("--sparsity 1.*=0.5", "No target is given for '4.weight'"),
        ("--sparsity fc*=0.5,*=0.9", "The target 'fc*' matches no parameter"),
        ("--pattern 2", "--pattern is '2'"),
        ("--pattern 4:4", "The pattern is 4:4"),
        ("--pattern 2:5", "Groups of 5 do not divide the 16 weights along dimension 1"),
        ("--pattern 2:4 --sparsity 0.5", "--pattern 2:4 fixes the sparsity"),
        ("--pattern 2:4 --scope layerwise", "--pattern fixes the scope"),
        ("--pattern 2:4 --unit block:4", "--pattern fixes the unit: leave --unit block:4 out"),
        ("--pattern 2:4 --max-layer-sparsity 0.9", "--max-layer-sparsity has no effect"),
    ],
)
def test_sparsities_that_cannot_be(options: str, sentence: str, here: Path) -> None:
    refused(sentence, "prune net.py:build net.py:both --out out", options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--method mfc", "--method is 'mfc': did you mean mfac?"),
        ("--update all", "--update is 'all': choose zero, independent, joint."),
        ("--scope layer", "--scope is 'layer': did you mean layerwise?"),
        ("--loss mse", "--loss is 'mse': choose cross_entropy, smoothed_cross_entropy, binary, "),
        ("--labels drawn", "--labels is 'drawn': choose own, observed, sampled."),
        ("--unit blok:4", "There is no unit 'blok:4'"),
        ("--unit block", "--unit is 'block'"),
        ("--unit block:4x0", "--unit is 'block:4x0'"),
        ("--unit block:5", "Blocks of 5 do not tile '1.weight'"),
        ("--selection swaps", "--selection is 'swaps': give a number"),
        ("--selection greedy:3", "There is no selection with a number 'greedy'"),
        ("--selection twice", "There is no selection 'twice'"),
        ("--selection greeedy", "There is no selection 'greeedy': did you mean greedy?"),
        ("--max-layer-sparsity 0", "--max-layer-sparsity is 0.0"),
        ("--max-layer-sparsity 0.3", "possible"),
        ("--damping 0", "--damping is '0'"),
        ("--damping small", "--damping is 'small'"),
        ("--method magnitude --update joint", "magnitude has no Fisher"),
        ("--method diagonal-fisher --first-order", "diagonal-fisher has no first-order form"),
        ("--method kfac --batch 2", "kfac takes single samples"),
        ("--method hessian-diagonal --batch 2", "hessian-diagonal takes single samples"),
        ("--batch 2", "gauss-newton takes single samples"),
        ("--count 9999", "300 of the 9999 gradients"),
        ("--count 0", "--count is '0': give a whole number of at least 1."),
        ("--refit -1", "--refit is '-1': give a whole number of at least 0."),
    ],
)
def test_options_that_cannot_be(options: str, sentence: str, here: Path) -> None:
    refused(sentence, "prune net.py:build net.py:both --sparsity 0.5 --out out", options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--sparsities half", "--sparsities is 'half'"),
        ("--sparsities 0.5,1.5", "sparsity is 1.5"),
        ("--methods kfacc", "There is no method 'kfacc'"),
        ("--methods mfac/exact", "There is no update 'exact'"),
        ("--methods magnitude/joint", "magnitude has no Fisher"),
        ("--pattern 2:4 --sparsities 0.5", "--pattern 2:4 fixes the sparsity"),
    ],
)
def test_comparisons_that_cannot_be(options: str, sentence: str, here: Path) -> None:
    refused(sentence, "compare net.py:build net.py:both --out out", options)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("prune net.py:interrupted net.py:both --sparsity 0.5 --out full", "is not empty"),
        ("prune net.py:interrupted net.py:both --sparsity 0.5 --out net.py", "is a file"),
        ("prune net.py:interrupted net.py:both --sparsity 0.5 --out net.py/below", "cannot be"),
        ("compare net.py:interrupted net.py:both --out full", "is not empty"),
        ("train net.py:interrupted net.py:both --out full", "is not empty"),
        ("demo --out full", "is not empty"),
    ],
)
def test_the_output_folder_is_checked_before_any_work(
    command: str, sentence: str, here: Path
) -> None:
    Path("full").mkdir()
    Path("full/precious").touch()
    refused(sentence, command)


@pytest.mark.parametrize("memory", ["0", "''", "much", "-1", "nan", "'1e30 GiB'"])
def test_what_is_no_memory(memory: str, here: Path) -> None:
    for command in ("prune", "compare", "train"):
        target = "--sparsity 0.5" if command == "prune" else ""
        words = f"{command} net.py:build net.py:both {target} --memory {memory} --out out"
        refused("--memory is ", words)


@pytest.mark.parametrize("options", ["", "--count 20", "--epochs 1"])
def test_a_memory_without_room_for_the_weights(options: str, here: Path) -> None:
    words = f"prune net.py:build net.py:both --sparsity 0.5 --memory 10kB --out out {options}"
    refused("Pruning 456 weights takes at least 18.3 kB, and the memory is '10kB'", words)


def test_a_memory_without_room_for_the_window(here: Path) -> None:
    words = "train net.py:build net.py:both --memory 100kB --out out"
    refused("A window of 128 gradients of 531 weights takes", words)


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("nowhere", "The scratch folder 'nowhere' does not exist: make it, or give another."),
        ("net.py", "The scratch folder 'net.py' does not exist"),
        ("/proc", "The scratch folder '/proc' cannot be written"),
    ],
)
def test_a_scratch_folder_that_cannot_be_used(folder: str, sentence: str, here: Path) -> None:
    words = f"net.py:interrupted net.py:both --scratch {folder} --out out"
    refused(sentence, "prune --sparsity 0.5", words)
    refused(sentence, "compare", words)
