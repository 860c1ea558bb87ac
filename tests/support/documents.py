"""The code blocks of the documents, and the names that a reader of the README is told to have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import woodbury

ROOT = Path(__file__).parents[2]
SAMPLES = 512
FEATURES = 32
CLASSES = 10


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    code: str


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a Markdown file, in their order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(*found) for found in fenced]


def python_block(path: Path, holding: str) -> str:
    """The only Python block of the document that holds the words."""
    (code,) = [
        block.code for block in blocks(path) if block.language == "python" and holding in block.code
    ]
    return code


def readers_names() -> dict[str, Any]:
    """What a reader has before a block: a trained model, data, an optimizer, the imports."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
    target = (inputs[:, :CLASSES] + inputs[:, CLASSES : 2 * CLASSES]).argmax(1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(FEATURES, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, CLASSES)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    model.eval()
    return {
        "torch": torch,
        "woodbury": woodbury,
        "model": model,
        "loader": DataLoader(TensorDataset(inputs, target), batch_size=32),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "loss_of": nn.functional.cross_entropy,
    }
