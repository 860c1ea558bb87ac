"""Every kind of file that is read, truncated, with flipped bits and worse."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import woodbury
from woodbury.cli.inputs.data import load_data
from woodbury.io.checkpoints import load_state_dict_checked, read_checkpoint
from woodbury.io.fingerprint import digest
from woodbury.io.run_folder import STATE_FILE, run_folder
from woodbury.reporting.files import read_json, write_json


@dataclass(frozen=True)
class FileKind:
    """A file and how it is read.

    Attributes:
        name: What it is.
        file: Where.
        read: What is read from it, as a checksum.
        checked: How many of its first bytes have a checksum or mean something to the reader; None
            for all.
    """

    name: str
    file: Path
    read: Callable[[], str]
    checked: int | None = None


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def kinds(folder: Path) -> list[FileKind]:
    """One file of each kind, in a folder."""
    model = net()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["0.weight"][torch.rand(8, 6) < 0.8] = 0

    sparse = folder / "sparse.safetensors"
    woodbury.save_sparse(sparse, state, ["0.weight", "3.weight"])
    plain = folder / "plain.pt"
    torch.save({"model": {f"module.{name}": each for name, each in state.items()}}, plain)
    dense = folder / "dense.safetensors"
    save_file(state, dense)
    header = 8 + int.from_bytes(dense.read_bytes()[:8], "little")

    run = folder / "run"
    with run_folder(run) as unfinished:
        unfinished.save({"settings": {"lr": 0.1}, "model": state, "done": 3})
    report = folder / "report.json"
    write_json(report, {"asked": {"lr": 0.1}, "levels": [0.5, None], "ä": "→"}, sealed=True)

    draw = np.random.default_rng(0)
    arrays = {"x": draw.normal(size=(20, 6)), "y": draw.integers(0, 3, 20)}
    stored, packed = folder / "stored.npz", folder / "packed.npz"
    np.savez(stored, **arrays)
    np.savez_compressed(packed, **arrays)
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        pixels = draw.integers(0, 255, (6, 7, 3), dtype=np.uint8)
        for number in range(4):
            Image.fromarray(pixels + number).save(folder / "images" / name / f"{number}.png")

    def loaded(path: Path) -> Callable[[], str]:
        def read() -> str:
            target = net()
            load_state_dict_checked(target, read_checkpoint(path), path)
            return digest(target.state_dict())

        return read

    return [
        FileKind("sparse weights", sparse, lambda: digest(woodbury.load_sparse(sparse))),
        FileKind("sparse weights as --checkpoint", sparse, loaded(sparse)),
        FileKind(".pt as --checkpoint", plain, loaded(plain)),
        # Its values have no checksum: nobody can see a flipped bit there.
        FileKind("header of dense .safetensors", dense, loaded(dense), header),
        FileKind("unfinished run", run / STATE_FILE, lambda: _state_of(run)),
        FileKind("report.json", report, lambda: digest(read_json(report))),
        FileKind(".npz", stored, lambda: _data_of(stored)),
        FileKind("compressed .npz", packed, lambda: _data_of(packed)),
        FileKind("image", folder / "images" / "a" / "0.png", lambda: _data_of(folder / "images")),
    ]


def _state_of(run: Path) -> str:
    with run_folder(run, resume=True) as folder:
        return digest(folder.saved)


def _data_of(path: Path) -> str:
    splits = load_data(str(path))
    return digest([[splits.train[i] for i in range(len(splits.train))], len(splits.test)])


def damaged(whole: bytes, draw: random.Random, checked: int | None) -> tuple[bytes, str]:
    """The bytes of a file after some accident, and what it was."""
    size = len(whole) if checked is None else checked
    at = draw.randrange(size)
    length = draw.randint(1, min(64, size - at))
    other = draw.randrange(size)
    accidents: dict[str, Callable[[], bytes]] = {
        "a flipped bit": lambda: _put(whole, at, bytes([whole[at] ^ 1 << draw.randrange(8)])),
        "another bit": lambda: _put(whole, at, bytes([whole[at] ^ 1 << draw.randrange(8)])),
        "another byte": lambda: _put(whole, at, bytes([draw.randrange(256)])),
        "zeros": lambda: _put(whole, at, bytes(length)),
        "noise": lambda: _put(whole, at, draw.randbytes(length)),
        "a piece from elsewhere": lambda: _put(whole, at, whole[other : other + length]),
        "cut off": lambda: whole[:at],
        "a piece missing": lambda: whole[:at] + whole[at + length :],
        "a piece twice": lambda: whole[: at + length] + whole[at:],
        "more at the end": lambda: whole + draw.randbytes(length),
        "another file": lambda: draw.randbytes(length),
    }
    if checked is not None:
        del accidents["a piece missing"], accidents["a piece twice"], accidents["more at the end"]
    what = draw.choice(list(accidents))
    return accidents[what](), f"{what} at {at}"


def _put(whole: bytes, at: int, piece: bytes) -> bytes:
    return (whole[:at] + piece + whole[at + len(piece) :])[: len(whole)]


def trial(kind: FileKind, truth: str, whole: bytes, draw: random.Random) -> tuple[str, str]:
    """Damage a file and read it: how it ends, and what was done."""
    from chaos.tally import RAW, RIGHT, SENTENCE, SILENT

    content, story = damaged(whole, draw, kind.checked)
    kind.file.write_bytes(content)
    try:
        ending = RIGHT if kind.read() == truth else SILENT
    except woodbury.WoodburyError as error:
        ending = SENTENCE if "\n" not in str(error) else RAW
        story += f": {error}"
    except Exception as error:
        ending, story = RAW, f"{story}: {type(error).__name__}: {error}"
    finally:
        kind.file.write_bytes(whole)
    return ending, f"{kind.name}, {story}"


def files_in(folder: Path) -> list[tuple[FileKind, str, bytes]]:
    """The kinds with what is read from them whole."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return [(kind, kind.read(), kind.file.read_bytes()) for kind in kinds(folder)]


__all__: list[Any] = ["files_in", "trial"]
