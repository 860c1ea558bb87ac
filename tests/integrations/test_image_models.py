"""Classifiers of timm and torchvision by name, with weights from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import refused, report, succeeds, weights

timm = pytest.importorskip("timm", reason="needs timm", exc_type=Exception)
torchvision = pytest.importorskip("torchvision", reason="needs torchvision", exc_type=Exception)

from woodbury.cli.inputs.sources import source_of  # noqa: E402
from woodbury.cli.options import InputOptions  # noqa: E402
from woodbury.integrations.image_models import from_timm, from_torchvision  # noqa: E402

NETS = {
    "timm:test_resnet": lambda: timm.create_model("test_resnet", num_classes=2),
    "torchvision:squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=2),
}


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    for split in ("train", "test"):
        for number, kind in enumerate(("cat", "dog")):
            Path("images", split, kind).mkdir(parents=True)
            for shade in range(4):
                made = Image.new("RGB", (40 + shade, 36), (60 * shade, 90 * number, 10))
                made.save(f"images/{split}/{kind}/{shade}.png")


@pytest.mark.parametrize("name", NETS)
def test_a_checkpoint_of_another_number_of_classes_is_pruned_and_comes_back(name: str) -> None:
    torch.manual_seed(0)
    torch.save(NETS[name]().state_dict(), "net.pth")
    command = f"prune {name} images --checkpoint net.pth --size 40 --sparsity 0.5"
    result = succeeds(command, "--method magnitude --out small")
    assert "timm.create_model" in result.stdout or "model.pth" in result.stdout
    stored: Any = weights("small")
    folder = "timm:small" if name.startswith("timm") else f"{name}:small/model.pth"
    again = source_of(folder, "images", InputOptions(size=40)).model()
    torch.testing.assert_close(again.state_dict(), stored, rtol=0, atol=0)
    zeros = sum(int((w == 0).sum()) for w in again.parameters() if w.ndim > 1)
    settings = report("small")["settings"]
    assert zeros >= round(0.5 * settings["weights"]) - 1


@pytest.mark.parametrize("name", NETS)
def test_images_are_made_as_the_model_was_trained(name: str) -> None:
    from PIL import Image

    torch.save(NETS[name]().state_dict(), "net.pth")
    library, _, net = name.partition(":")
    make: Any = {"timm": from_timm, "torchvision": from_torchvision}[library]
    transform = make(net, checkpoint=Path("net.pth"), size=40).transform
    grey = transform(Image.new("RGB", (50, 60), (255, 0, 0)))
    assert grey.shape == (3, 40, 40)
    usual = {"timm": [[0.5] * 3] * 2, "torchvision": [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]}
    mean, std = torch.tensor(usual[library])
    red = torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(grey[:, 20, 20], (red - mean) / std, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("timm:test_resnt", "timm has no 'test_resnt': did you mean test_resnet?"),
        ("torchvision:resnet17", "torchvision has no 'resnet17': did you mean resnet1"),
        ("torchvision:resnet18:IMAGENET1K_V7", "weights of resnet18 has no 'IMAGENET1K_V7': did"),
        ("torchvision:resnet18:no.pth", "There is no file no.pth"),
        ("timm:test_resnet --task causal-lm", "--task is for transformers:NAME"),
    ],
)
def test_names_that_there_are_not(words: str, sentence: str) -> None:
    refused(
        sentence,
        "prune",
        words.partition(" ")[0],
        "images",
        words.partition(" ")[2],
        "--sparsity 0.5 --out out",
    )
