"""Whatever files, folders, terminals and signals a user brings: one sentence, no traceback."""

from __future__ import annotations

import importlib
import io
import os
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.cli import files, refused, report, succeeds, weights, woodbury

from woodbury.cli import console
from woodbury.errors import MissingDependency
from woodbury.starting import is_command

NET = Path(__file__).with_name("hard_net.py")
ROOT = str(Path(importlib.import_module("woodbury").__file__ or "").parents[1])
ENVIRONMENT = {"PYTHONPATH": ROOT, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
PRUNE = "prune net.py:plain --sparsity 0.5 --method mfac --count 50 --out out"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("unequal", "cannot be read in batches of pairs (input, label) of equal shapes."),
        ("unlabelled", "cannot be read in batches of pairs"),
        ("broken", f"record is truncated; net.py, line {NET.read_text().count(chr(10))})"),
        (
            "stops",
            "DATA ends in batch 0, before its len(): let its __getitem__ not raise StopIteration",
        ),
        ("without_length", "The length of net.py:without_length failed"),
    ],
)
def test_data_sets_that_fail(data: str, sentence: str, here: Path) -> None:
    refused(sentence, PRUNE, f"net.py:{data}")


def test_models_in_wrappers_are_pruned_as_what_is_inside(here: Path) -> None:
    for model in ("plain", "parallel"):
        words = PRUNE.replace("plain", model).replace("--out out", f"--out {model}")
        succeeds(words, "net.py:data")
    assert list(weights("parallel")) == list(weights("plain"))
    refused("whose weights cannot be exchanged", PRUNE.replace("plain", "scripted"), "net.py:data")


def test_functions_that_end_the_program(here: Path) -> None:
    refused("net.py:leaves ends the program (bye): let it return.", PRUNE, "net.py:leaves")


@pytest.mark.parametrize("command", ["prune", "prune --epochs 1", "train"])
def test_what_cannot_be_stored_is_said_before_the_work(command: str, here: Path) -> None:
    target = "--sparsity 0.5" if "prune" in command else "--epochs 1"
    words = f"{command} net.py:with_extra_state net.py:interrupted {target} --out out"
    refused("'0._extra_state' in the state dict is a dict, not a tensor", words)


def test_what_is_no_function_and_errors_of_no_kind(here: Path) -> None:
    refused("net.py:instance is a Sequential, no function", PRUNE.replace("plain", "instance"), "a")
    refused("failed at net.py, line", PRUNE.replace("plain", "strange"), "net.py:data")
    words = f"{PRUNE} net.py:strange_data"
    ended = run(words, stdout=subprocess.PIPE)  # a test's own BaseException is let through
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "Error: net.py, line" in ended.stderr and "Strange: of its own kind" in ended.stderr


def test_training_on_data_that_end_early(here: Path) -> None:
    words = "train net.py:plain net.py:stops --epochs 1 --out out"
    refused("let its __getitem__ not raise StopIteration", words, at_once=False)


def test_arrays_in_another_byte_order_or_backwards(here: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 6)), np.arange(60) % 3
    np.savez("d.npz", x=x.astype(">f4"), y=y.astype(">i8"))
    succeeds(PRUNE.replace("--out out", "--out big").replace("50", "20"), "d.npz")
    np.savez("d.npz", x=x.astype("f4"), y=y)
    succeeds(PRUNE.replace("--out out", "--out little").replace("50", "20"), "d.npz")
    little = weights("little")
    assert all(torch.equal(little[name], tensor) for name, tensor in weights("big").items())


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_pipes_and_folders_that_are_called_as_files(kind: str, here: Path) -> None:
    for name in ("d.npz", "other.py", "w.pt", "w.safetensors"):
        os.mkfifo(name) if kind == "pipe" else Path(name).mkdir()
    refused("d.npz is a folder, a pipe or a device", PRUNE, "d.npz")
    made = PRUNE.replace("net.py", "other.py")
    refused("other.py is a folder, a pipe or a device", made, "net.py:data")
    for name in ("w.pt", "w.safetensors"):
        refused(f"There is no file {name}", PRUNE, f"net.py:data --checkpoint {name}")


def npz(shape: tuple[int, ...], content: bytes, method: int = zipfile.ZIP_STORED) -> None:
    header = io.BytesIO()
    facts = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    with zipfile.ZipFile("d.npz", "w", method) as file:
        file.writestr("x.npy", header.getvalue() + content)
        file.writestr("y.npy", b"")


def test_headers_of_npz_that_lie(here: Path) -> None:
    npz((5_500_000, 10**6), bytes(80))
    refused("d.npz is truncated or no .npz file (ValueError: x.npy is no array of", PRUNE, "d.npz")


def test_npz_packed_in_ways_that_nobody_knows(here: Path) -> None:
    np.savez("d.npz", x=np.zeros((9, 6)), y=np.zeros(9, dtype=int))
    content = Path("d.npz").read_bytes()
    Path("d.npz").write_bytes(content.replace(b"\0\0x.npy", b"\0\0x.npy"))
    with zipfile.ZipFile("d.npz") as file:
        offset = file.start_dir
    damaged = bytearray(content)
    damaged[offset + 10] = 99  # the method of the first entry, in the directory
    Path("d.npz").write_bytes(damaged)
    refused("That compression method is not supported", PRUNE, "d.npz")


def test_npz_that_have_no_room(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz((2_000_000,), bytes(16_000_000), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr("woodbury.cli.inputs.data.available_bytes", lambda: 10**6)
    refused("d.npz unpacks to 16.1 MB, and 1.00 MB of memory are free", PRUNE, "d.npz")


def test_a_pipe_among_images(here: Path) -> None:
    for name in ("a", "b"):
        Path("images", name).mkdir(parents=True)
        Image.new("RGB", (2, 3)).save(f"images/{name}/0.png")
    os.mkfifo("images/b/1.png")
    refused("images/b/1.png is no file: repair or remove it", PRUNE, "images")


@pytest.mark.parametrize("name", ["x" * 300, "loop", "~nobody-of-that-name"])
def test_names_that_the_system_refuses(name: str, here: Path) -> None:
    Path("loop").symlink_to("loop")
    refused("output folder", PRUNE.replace("--out out", f"--out {name}"), "net.py:data")
    refused("", PRUNE, f"{name}.npz")
    refused("", PRUNE.replace("net.py:plain", f"{name}.py:plain"), "net.py:data")
    refused("There is no file", PRUNE, f"net.py:data --checkpoint {name}")


@pytest.mark.parametrize(
    "wrapped",
    [
        RuntimeError("Error calling __set_name__"),
        MissingDependency("The picture needs matplotlib."),
    ],
)
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_an_import_makes_of_a_signal_is_still_its_end(
    sent: signal.Signals, wrapped: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise wrapped

    assert console.report_errors(fail, signals=[sent]) == 128 + sent
    said = capsys.readouterr().err
    assert "Error" not in said and ("Interrupted" in said) == (sent == signal.SIGINT)


def test_what_nobody_foresaw_is_one_sentence_too(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr("woodbury.cli.problem.probe", fail)
    result = woodbury(PRUNE, "net.py:data")
    assert result.exit_code == console.USER_ERROR  # by a line of this file, as a user's would be
    assert "Error: test_hard_places.py, line" in result.stderr and "unforeseen" in result.stderr
    monkeypatch.setattr("woodbury.cli.problem.probe", None)
    result = woodbury(PRUNE, "net.py:data")
    assert result.exit_code == console.OWN_FAULT
    assert "Error: woodbury failed (problem.py, line" in result.stderr
    assert "please report it" in result.stderr and files() == {Path("net.py")}


@pytest.mark.parametrize("room", [0, 300, 12_000])
@pytest.mark.parametrize("command", ["prune", "compare", "train"])
def test_a_full_disk_at_the_end(command: str, room: int, here: Path) -> None:
    words = {
        "prune": "--sparsity 0.5 --method magnitude",
        "compare": "--methods magnitude --sparsities 0.5 --seeds 1 --count 20",
        "train": "--epochs 1 --optimizer sgd",
    }[command]
    bound = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, bound[1]))
        result = woodbury(f"{command} net.py:plain net.py:data {words} --out out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bound)
    assert result.exit_code == (0 if room == 12_000 else 2), result.output
    if result.exit_code:
        assert "Error: " in result.stderr and "choose a place with room" in result.stderr
        assert files() == {Path("net.py")}
    else:
        assert "report.html is left out" in result.stderr
        assert not Path("out/report.html").exists()
        if command == "prune":
            assert report("out")["sparsity"] == pytest.approx(0.5, abs=0.01)
            assert any((each == 0).any() for each in weights("out").values())
        elif command == "train":
            assert report("out")["score"] > 0 and weights("out")
        else:
            assert Path("out/results.json").exists()


def run(words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "woodbury.cli", *words.split()]
    environment = ENVIRONMENT | options.pop("env", {})  # type: ignore[operator]
    return subprocess.run(
        command, env=environment, text=True, check=False, stderr=subprocess.PIPE, **options
    )  # type: ignore[call-overload]


def test_terminals_that_take_no_more_or_not_our_letters(here: Path) -> None:
    words = "prune net.py:plain net.py:data --sparsity 0.5 --method magnitude --out"
    with open("/dev/full", "w") as full:
        ended = run(f"{words} full", stdout=full)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "The output cannot be shown (OSError: [Errno 28]" in ended.stderr
    assert Path("full/weights.safetensors").exists()
    ended = run(f"{words} ascii", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0 and " ? " in ended.stdout


@pytest.mark.slow
def test_a_reader_that_has_left(here: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = run("demo --help", stdout=writing)
    os.close(writing)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "cannot be shown (nobody reads it any more): what is in files was" in ended.stderr


def test_ctrl_c_while_everything_is_imported(here: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "woodbury.cli", "demo", "--out", "out"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
        # Where these tests are a job in the background, they ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if line.rstrip().endswith(" woodbury.starting"):
                process.send_signal(signal.SIGINT)
                break
        stderr = process.stderr.read()
    assert process.returncode == 130
    assert "Interrupted: nothing was written." in stderr and "Traceback" not in stderr


def test_only_our_own_command_takes_the_signal() -> None:
    assert is_command("-m", ["python", "-m", "woodbury.cli", "demo"])
    assert is_command("/opt/bin/woodbury", ["python3", "-X", "dev", "/opt/bin/woodbury", "demo"])
    assert not is_command("-m", ["python", "-m", "pytest", "woodbury"])
    assert not is_command("-c", ["python", "-c", "import woodbury"])
    assert not is_command("", [])


@pytest.mark.slow
def test_two_comparisons_take_two_folders(here: Path) -> None:
    words = "compare net.py:plain net.py:data --methods magnitude --sparsities 0.5 --seeds 1"
    command = [sys.executable, "-m", "woodbury.cli", *words.split(), "--count", "20"]
    both = [subprocess.Popen(command, env=ENVIRONMENT, stdout=-3, stderr=-3) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert Path("runs/plain-compared/results.json").exists()
    assert Path("runs/plain-compared-2/results.json").exists()
