"""woodbury export: each format from a folder of prune's and from a network, and what it refuses."""

from __future__ import annotations

import importlib.util
import math
import re
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.cli import files, refused, report, succeeds, weights, woodbury

from woodbury.io.checkpoints import read_checkpoint
from woodbury.io.sparse_files import is_sparse

NET = Path(__file__).with_name("net.py")
PRUNE = "prune net.py:build net.py:both --sparsity 0.8 --method magnitude --update zero --out out"

RESIDUAL = """

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inside = nn.Linear(16, 24), nn.Linear(24, 24)
        self.second, self.last = nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        return self.last((x + self.second(self.inside(x).relu())).relu())


def residual():
    torch.manual_seed(0)
    return Residual().eval()
"""


@pytest.mark.parametrize(
    ("form", "name"), [("safetensors", "model.safetensors"), ("torch", "model.pt")]
)
def test_dense_files_of_a_folder(form: str, name: str, here: Path) -> None:
    succeeds(PRUNE)
    Path("net.py").unlink()  # the weights alone are needed
    result = succeeds(f"export out --to {form}")
    written, truth = read_checkpoint(f"out/{name}"), weights("out")
    assert written.keys() == truth.keys()
    assert all(torch.equal(written[key], truth[key]) for key in truth)
    size = Path(f"out/{name}").stat().st_size
    assert f"{size:,}" in result.stdout and "sparse tensors" in result.stdout
    assert f"Written: out/{name}" in result.stdout
    refused(f"out/{name} exists: choose another name", f"export out --to {form}")
    assert report("out")["sparsity"] == pytest.approx(0.8, abs=0.01)


def test_masks_of_torch_become_zeros(here: Path) -> None:
    with Path("net.py").open("a") as file:
        file.write(
            "\n\ndef masked():\n"
            "    from torch.nn.utils import prune\n"
            "    model = build()\n"
            "    prune.l1_unstructured(model[1], 'weight', amount=0.75)\n"
            "    return model\n"
        )
    succeeds("export net.py:masked --to sparse")
    assert is_sparse("weights.safetensors")
    succeeds("export net.py:masked --to safetensors --out new.safetensors")
    dense = load_file("new.safetensors")
    assert "1.weight_mask" not in dense and int((dense["1.weight"] == 0).sum()) == 288
    assert torch.equal(read_checkpoint("weights.safetensors")["1.weight"], dense["1.weight"])
    # They are kept by a pruning that goes on, from the command line too.
    succeeds(PRUNE.replace("net.py:build", "net.py:masked"), "--keep-zeros")
    assert bool((weights("out")["1.weight"][dense["1.weight"] == 0] == 0).all())


def test_onnx(here: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the export needs it")
    succeeds(PRUNE)
    result = succeeds("export out --to onnx --out small.onnx")
    assert "ONNX, dense" in result.stdout and "its outputs differ from torch's by" in result.stdout
    assert Path("small.onnx").is_file() and not Path("out/model.onnx").exists()


def test_onnx_of_smaller_layers(here: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "torch_pruning"):
        pytest.importorskip(package, reason="the export needs it")
    import onnx

    succeeds(PRUNE.replace("0.8", "0.5"), "--unit channels --exclude 4.*")
    result = succeeds("export out --to onnx --compact")
    assert re.search(r"tensors are smaller: [\d,]+ -> [\d,]+ weights, .* MFLOPs\.", result.output)
    file = onnx.load("out/model.onnx")
    elements = sum(math.prod(each.dims) for each in file.graph.initializer)
    dense = sum(tensor.numel() for tensor in weights("out").values())
    assert elements < 0.75 * dense
    refused("--compact, --store-zeros", "export out --to torch --compact")


def test_coupled_channels_end_to_end(here: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "torch_pruning"):
        pytest.importorskip(package, reason="the export needs it")
    import onnx

    with Path("net.py").open("a") as file:
        file.write(RESIDUAL)
    command = PRUNE.replace("net.py:build", "net.py:residual").replace("0.8", "0.5")
    succeeds(command, "--unit coupled-channels --max-layer-sparsity 0.6 --exclude last.*")
    assert report("out")["settings"]["unit"] == "coupled-channels"
    written = weights("out")
    # What is added has the same channels, so that they are zero in both layers or in none.
    removed = [written[f"{name}.weight"].eq(0).all(1) for name in ("first", "second")]
    assert torch.equal(*removed) and int(removed[0].sum()) > 0
    for name in ("first", "inside", "second"):
        assert float(written[f"{name}.weight"].eq(0).all(1).double().mean()) <= 0.6
    result = succeeds("export out --to onnx --compact")
    assert "its outputs differ from torch's by" in result.stdout
    sizes = {each.name: tuple(each.dims) for each in onnx.load("out/model.onnx").graph.initializer}
    left = 24 - int(removed[0].sum())
    inside = 24 - int(written["inside.weight"].eq(0).all(1).sum())
    matrices = sorted(size for size in sizes.values() if len(size) == 2)
    expected = [(left, 16), (inside, left), (left, inside), (3, left)]
    assert sorted(tuple(sorted(size)) for size in matrices) == sorted(
        tuple(sorted(size)) for size in expected
    )

    again = command.replace("--out out", "--out other --unit")
    refused("in the space", again, "coupled-channels --include last.*", at_once=False)
    refused("did you mean coupled-channels?", again, "coupled-channel")


def test_onnx_without_its_packages(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused("pip install 'woodbury[onnx]'", "export net.py:build net.py:both --to onnx")


def test_what_it_refuses(here: Path) -> None:
    refused("give one, or a network and its data", "export net.py:build --to onnx")
    refused("ends in .onnx", "export net.py:build net.py:both --to onnx --out small.pt")
    refused("--to torch needs no data", "export net.py:build net.py:both --to torch")
    refused("count for --to onnx alone", "export net.py:build --to torch --any-length")
    refused("cannot be written", "export net.py:build --to torch --out nowhere/model.pt")
    refused("--out is '/'", "export net.py:build --to torch --out /")
    refused("--to", "export net.py:build --to tensorflow")
    refused("--to", "export net.py:build")
    Path("empty").mkdir()
    refused("does not hold what prune writes", "export empty --to torch")
    refused("lazy", "export net.py:lazy --to torch")


@pytest.mark.parametrize("form", ["safetensors", "torch", "sparse"])
def test_a_full_disk(form: str, here: Path) -> None:
    before = files()
    bound = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, bound[1]))
        result = woodbury(f"export net.py:build --to {form}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bound)
    assert result.exit_code == 2 and "choose a place with room" in result.stderr, result.output
    assert files() == before
