"""MODEL and DATA: checkpoints, files and folders of every kind, and those that are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.cli import refused, succeeds, weights
from torch import Tensor, nn

from woodbury.cli.inputs.fit import probe
from woodbury.cli.inputs.images import Images, LabelledFile
from woodbury.errors import WoodburyError
from woodbury.io.sparse_files import save_sparse
from woodbury.model.likelihood import cross_entropy

NET = Path(__file__).with_name("net.py")


def state() -> dict[str, Tensor]:
    """A state dict of net.py's network."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)
    ).state_dict()


@pytest.mark.parametrize("kind", ["wrapped.pt", "dense.safetensors", "sparse.safetensors"])
def test_checkpoints_of_three_kinds_are_loaded(kind: str, here: Path) -> None:
    saved = state()
    if kind == "wrapped.pt":
        wrapped = {f"module.{name}": tensor for name, tensor in saved.items()}
        torch.save({"state_dict": wrapped}, kind)
    elif kind == "dense.safetensors":
        save_file(saved, kind)
    else:
        save_sparse(kind, saved)
    command = "prune net.py:build net.py:both --sparsity 0 --method magnitude --out out"
    succeeds(command, "--checkpoint", kind)
    assert all(torch.equal(weights("out")[name], tensor) for name, tensor in saved.items())


CHECKPOINT = "prune net.py:build net.py:both --sparsity 0.5 --damping 1e-3 --out out --checkpoint"


def test_checkpoints_of_another_network_are_refused(here: Path) -> None:
    torch.save(nn.Linear(16, 24).state_dict(), "other.pt")
    refused("other.pt lacks '1.weight'", CHECKPOINT, "other.pt")
    torch.save({**state(), "4.weight": torch.zeros(3, 25)}, "wide.pt")
    refused("'4.weight' has shape (3, 25)", CHECKPOINT, "wide.pt")
    torch.save({**state(), "5.weight": torch.zeros(3)}, "more.pt")
    refused("more.pt has '5.weight'", CHECKPOINT, "more.pt")


def test_damaged_checkpoints_are_refused(here: Path) -> None:
    torch.save(state(), "whole.pt")
    Path("cut.pt").write_bytes(Path("whole.pt").read_bytes()[:500])
    refused("cut.pt is truncated", CHECKPOINT, "cut.pt")
    torch.save(nn.Linear(2, 2), "module.pt")
    refused("no plain state dict", CHECKPOINT, "module.pt")
    torch.save([1, 2], "list.pt")
    refused("holds no state dict", CHECKPOINT, "list.pt")
    save_file(state(), "whole.safetensors")
    Path("cut.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:-8])
    refused("cut.safetensors is truncated", CHECKPOINT, "cut.safetensors")
    torch.save({**state(), "4.weight": torch.full((3, 24), torch.nan)}, "nan.pt")
    refused("'4.weight' is not finite", CHECKPOINT, "nan.pt")


@pytest.mark.parametrize("data", ["d.npz", "net.py:datasets", "net.py:data"])
def test_data_of_every_kind(data: str, here: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (60, 16), dtype=np.uint8)
    y = np.arange(60) % 3
    np.savez("d.npz", x=x, y=y, x_test=x, y_test=y)
    command = "prune net.py:build --sparsity 0.5 --count 30 --damping 1e-2 --out out"
    result = succeeds(command, data)
    assert ("held out by seed 0" in result.stderr) == (data == "net.py:data")


PRUNE = "prune net.py:build --sparsity 0.5 --out out"


def test_files_that_are_not_what_they_are_called(here: Path) -> None:
    np.save("array.npy", np.zeros((30, 16)))
    Path("array.npy").rename("array.npz")
    refused("no .npz file", PRUNE, "array.npz")
    ragged = np.array([[1], [2, 3]], dtype=object)
    np.savez("ragged.npz", x=ragged, y=np.zeros(2, dtype=int))
    refused("Python objects", PRUNE, "ragged.npz")
    Path("cut.npz").write_bytes(b"PK\x03\x04")
    refused("cut.npz is truncated", PRUNE, "cut.npz")


def test_a_file_without_labels_is_pruned_with_sampled_ones(here: Path) -> None:
    np.savez("x.npz", x=np.random.default_rng(0).normal(size=(50, 16)))
    refused("x.npz has no labels: give y, or prune with --labels sampled", PRUNE, "x.npz")
    succeeds(PRUNE, "x.npz --labels sampled --method magnitude")


@pytest.mark.parametrize(
    ("given", "missing"), [("y", "x"), ("x y y_test", "x_test"), ("x y x_test", "y_test")]
)
def test_files_that_lack_an_array_are_refused(given: str, missing: str, here: Path) -> None:
    np.savez("slip.npz", **{name: np.zeros((3, 16)) for name in given.split()})  # type: ignore[arg-type]
    refused(f"slip.npz has no array {missing!r}", PRUNE, "slip.npz")


def write_images(folder: str, sizes: dict[str, tuple[int, int]]) -> None:
    image = pytest.importorskip("PIL.Image")
    for index, (name, (width, height)) in enumerate(sizes.items()):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (height, width), dtype=np.uint8)
        image.fromarray(pixels).save(path)


def test_folders_of_class_folders_of_images(here: Path) -> None:
    names = [
        f"{part}/{kind}/{i}.png" for part in ("train", "test") for kind in "abc" for i in "123"
    ]
    write_images("pets", dict.fromkeys(names, (4, 4)))
    result = succeeds(PRUNE, "pets --damping 1e-2")
    assert "held out" not in result.stderr


def test_images_of_several_sizes_need_a_size(here: Path) -> None:
    write_images("mixed", {f"{kind}/{i}.png": (4 + i, 5) for kind in "abc" for i in range(3)})
    refused("differ in size", PRUNE, "mixed")
    succeeds(PRUNE, "mixed --size 4 --damping 1e-2")


def test_images_that_cannot_be_read_are_refused(here: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    write_images("pets", {f"{kind}/{i}.png": (4, 4) for kind in "abc" for i in range(3)})
    first = Path("pets/a/0.png")
    first.write_bytes(first.read_bytes()[:-30])
    refused("no image that Pillow can read", PRUNE, "pets")
    image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) << 11).save(first)
    refused("more than 8 bits", PRUNE, "pets")
    first.write_bytes(b"no image")
    refused("no image that Pillow can read", PRUNE, "pets")


def test_no_piece_missing_from_a_png_gives_other_pixels(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 255, (6, 7, 3), dtype=np.uint8)
    path = tmp_path / "0.png"
    pillow.fromarray(pixels).save(path)
    whole = path.read_bytes()
    true = torch.from_numpy(pixels)
    images = Images([LabelledFile(path, 0)], lambda image: torch.from_numpy(np.array(image)))
    assert torch.equal(images[0][0], true)
    refusals = 0
    for at in range(140, len(whole)):  # within and behind the pixels
        for length in (1, 4, 18, 40):
            path.write_bytes(whole[:at] + whole[at + length :])
            try:
                assert torch.equal(images[0][0], true), (at, length)
            except WoodburyError as error:
                assert "no image that Pillow can read" in str(error)
                refusals += 1
    assert refusals > 100


def test_folders_without_images_are_refused(here: Path) -> None:
    Path("hollow/cat").mkdir(parents=True)
    refused("holds no image", PRUNE, "hollow")
    Path("void").mkdir()
    refused("void holds no class folders of images", PRUNE, "void")


def test_a_label_that_means_no_observation_is_no_class() -> None:
    net, x = nn.Linear(2, 3), torch.ones(4, 2)
    probe(net, [(x, torch.tensor([0, 2, -100, 1])), (x, torch.full((4,), -100))], cross_entropy)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [([0, 3, -100, 1], "run from 0 to 3"), ([-1, 0, 0, 0], "run from -1"), ([-100] * 4, "Every")],
)
def test_labels_out_of_range_are_refused(labels: list[int], sentence: str) -> None:
    with pytest.raises(WoodburyError, match=sentence):
        probe(nn.Linear(2, 3), [(torch.ones(4, 2), torch.tensor(labels))], cross_entropy)
