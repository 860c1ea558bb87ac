"""Train a small GPT-2 on Python's own help, letter by letter, and prune its matrices in one shot.

pip install -e '.[models]'
python examples/transformer.py
"""

from __future__ import annotations

import copy
import math
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import woodbury

LENGTH = 64
"""Letters in a piece of text."""


def pieces() -> tuple[Tensor, Tensor]:
    """The text in pieces, (b, T + 1) codes: its first four fifths, and some of the rest."""
    text = "\n".join(topics[name] for name in sorted(topics))
    codes = torch.tensor([min(ord(letter), 127) for letter in text])
    text_pieces = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    training = len(text_pieces) * 4 // 5
    return text_pieces[:training], text_pieces[training:][:512]


def batches(text_pieces: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Letters and the letters that follow them, (b, T) each."""
    return [(chunk[:, :-1], chunk[:, 1:]) for chunk in text_pieces.split(32)]


def train(model: nn.Module, data: list[tuple[Tensor, Tensor]], steps: int) -> None:
    """Train in place, in train mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        letters, following = data[step % len(data)]
        optimizer.zero_grad()
        woodbury.cross_entropy.loss(model(letters), following).backward()
        optimizer.step()
        schedule.step()


def perplexity(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> float:
    """Per letter; a sample's loss is the sum over its letters."""
    return math.exp(woodbury.Objective.from_model(model, data).loss() / LENGTH)


def main() -> None:
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "vocab_size": 128,
        "n_positions": LENGTH,
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 3,
    }
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=None))
    training, held_out = pieces()
    shuffled = training[torch.randperm(len(training))]
    train(model, batches(shuffled), 400)
    dense = perplexity(model, batches(held_out))
    print(f"perplexity per letter on text not seen: {dense:.2f} dense")

    magnitude = woodbury.Pruner(None, woodbury.saliencies.magnitude, woodbury.updates.zero)
    second_order = woodbury.Pruner(woodbury.mfac(256, damping=1e-3))
    methods = {
        "magnitude": (magnitude, 1),
        "M-FAC, joint": (second_order, 1),
        "... in 4 stages": (second_order, 4),
    }
    print("sparsity          50 %    80 %    90 %")
    for name, (pruner, stages) in methods.items():
        row = []
        for sparsity in (0.5, 0.8, 0.9):
            pruned = copy.deepcopy(model)
            # The embeddings, and the head that is tied to them, are left out by themselves.
            woodbury.prune(pruned, batches(shuffled), sparsity, pruner=pruner, stages=stages)
            row.append(perplexity(pruned, batches(held_out)))
        print(f"{name:<15}" + "".join(f"{value:>8.2f}" for value in row))


if __name__ == "__main__":
    main()
