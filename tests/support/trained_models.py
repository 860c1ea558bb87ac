"""Models beyond the toy, built from configs, each with a small real task that ships with Python or
scikit-learn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from woodbury import Likelihood, cross_entropy

Batches = list[tuple[Any, Tensor]]
LENGTH = 32
"""Letters of a piece of text."""


class Model(NamedTuple):
    """A network, its data, how its output is read, the parameters that pruning leaves alone, and
    whether vmap takes it."""

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor | dict[str, Tensor], Tensor]]
    likelihood: Likelihood = cross_entropy
    exclude: tuple[str, ...] = ()
    vmaps: bool = True
    steps: int = 150


class Residual(nn.Module):
    """Two 3 × 3 convolutions and the way around them (He et al. 2016); where the shape changes, the
    way is 1 × 1."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
            *(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)),
        )
        self.way = (
            nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.way(x)).relu()


def resnet(width: int = 6) -> nn.Module:
    """ResNet-20: one convolution, three stages of three blocks, one linear layer."""
    blocks, before = [], width
    for stage, block in ((stage, block) for stage in range(3) for block in range(3)):
        blocks.append(Residual(before, width * 2**stage, 2 if stage and not block else 1))
        before = width * 2**stage
    stem = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)
    )


def mobilenet(width: int = 16) -> nn.Module:
    """Depthwise and pointwise convolutions by turns, the last pointwise one in groups (MobileNet,
    Howard et al. 2017)."""

    def separable(before: int, after: int, stride: int, groups: int = 1) -> Iterator[nn.Module]:
        yield from (
            nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False),
            nn.BatchNorm2d(before),
            nn.ReLU6(),
        )
        yield from (
            nn.Conv2d(before, after, 1, groups=groups, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU6(),
        )

    stem = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()
    body = (
        *separable(width, 2 * width, 1),
        *separable(2 * width, 4 * width, 2),
        *separable(4 * width, 4 * width, 1, 4),
    )
    return nn.Sequential(
        *stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)
    )


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(**SMALL, image_size=8, patch_size=2, num_channels=1, num_labels=10)
    )


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    size = {"vocab_size": VOCABULARY, "max_position_embeddings": 15, "num_labels": len(TOPICS)}
    return BertForSequenceClassification(BertConfig(**SMALL, **size))


def gpt() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    size: dict[str, Any] = {
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 3,
        "n_positions": LENGTH,
        "vocab_size": 128,
    }
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=None))


def digits() -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits, (b, 1, 8, 8), in a fixed random order, and their classes."""
    images, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 8 - 1, torch.tensor(
        classes
    )[order]


TOPICS = ("debugger", "formatstrings", "specialnames", "typesseq", "import", "compound")
VOCABULARY = 512


def passages() -> tuple[dict[str, Tensor], Tensor]:
    """Runs of 8 to 15 words of Python's own help, 0 being the padding that the mask hides, and
    their topics."""
    from pydoc_data.topics import topics

    spoken = [re.findall(r"\w+", topics[topic].lower()) for topic in TOPICS]
    seen = Counter(word for words in spoken for word in words)
    common = sorted(seen, key=lambda word: (-seen[word], word))[: VOCABULARY - 2]
    place = {word: i for i, word in enumerate(common, 2)}
    rows, labels = [], []
    for label, words in enumerate(spoken):
        start = 0
        while start + 15 <= len(words):
            length = 8 + len(rows) % 8
            rows.append(
                [place.get(word, 1) for word in words[start : start + length]] + [0] * (15 - length)
            )
            labels.append(label)
            start += length
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor(rows)[order]
    return {"input_ids": tokens, "attention_mask": (tokens > 0).long()}, torch.tensor(labels)[order]


def letters(count: int = 3000) -> tuple[Tensor, Tensor]:
    """Pieces of Python's own help, letter by letter, and the letters that follow; every third piece
    ends early (−100)."""
    from pydoc_data.topics import topics

    text = torch.tensor(
        [min(ord(letter), 127) for letter in "\n".join(topics[name] for name in sorted(topics))]
    )
    pieces = text[: count * (LENGTH + 1)].view(count, LENGTH + 1)
    pieces = pieces[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    following = pieces[:, 1:].clone()
    following[::3, LENGTH // 2 :] = -100
    return pieces[:, :-1], following


LOGITS = cross_entropy.with_output(lambda output: output.logits)
TOKENS = cross_entropy.with_output(lambda output: output.logits.mT)
MODELS = [
    Model("ResNet-20", resnet, digits, steps=80),
    Model("MobileNet", mobilenet, digits, steps=250),
    Model("ViT", vit, digits, LOGITS, ("*embeddings*",), steps=300),
    Model("BERT", bert, passages, LOGITS, ("*embeddings*",), vmaps=False, steps=300),
    Model("GPT-2", gpt, letters, TOKENS, ("*wte*", "*wpe*"), steps=300),
]


def split(model: Model, training: float = 0.8) -> tuple[Batches, Batches]:
    """Batches of 64 to train and to calibrate on, and those that the model never saw."""
    inputs, target = model.data()
    last = int(training * len(target))

    def part(start: int, end: int) -> tuple[Any, Tensor]:
        cut = slice(start, end)
        return {name: t[cut] for name, t in inputs.items()} if isinstance(inputs, dict) else inputs[
            cut
        ], target[cut]

    def batches(start: int, end: int) -> Batches:
        return [part(first, min(first + 64, end)) for first in range(start, end, 64)]

    return batches(0, last), batches(last, len(target))


def train(
    model: Model,
    net: nn.Module,
    batches: Batches,
    steps: int,
    lr: float = 3e-3,
    keep: dict[str, Tensor] | None = None,
) -> None:
    """Plain steps of Adam, the learning rate falling to nothing; zeros held where `keep` is
    False."""
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    net.train()
    for step in range(steps):
        inputs, target = batches[step % len(batches)]
        output = net(**inputs) if isinstance(inputs, dict) else net(inputs)
        optimizer.zero_grad()
        model.likelihood.loss(output, target).backward()
        optimizer.step()
        schedule.step()
        for name, weight in net.named_parameters():
            if keep and name in keep:
                weight.data.mul_(keep[name])
    net.eval()
