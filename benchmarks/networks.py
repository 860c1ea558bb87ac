"""Ordinary networks with random weights, and inputs of their size, for benchmarks/scale.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 16


class Residual(nn.Module):
    """Convolutions and the shortcut around them (He et al. 2016)."""

    def __init__(self, body: nn.Sequential, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


def basic(before: int, width: int, stride: int) -> Residual:
    """Two 3 × 3 convolutions, and the shortcut around them."""
    body = nn.Sequential(
        nn.Conv2d(before, width, 3, stride, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
    )
    return Residual(body, before, width, stride)


def bottleneck(before: int, width: int, stride: int) -> Residual:
    """1 × 1, 3 × 3 and 1 × 1 convolutions, and the shortcut around them."""
    body = nn.Sequential(
        nn.Conv2d(before, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 4 * width, 1, bias=False),
        nn.BatchNorm2d(4 * width),
    )
    return Residual(body, before, 4 * width, stride)


def resnet18() -> nn.Module:
    """ResNet-18 for images of 224 × 224, 11.7 million weights."""
    return _resnet(basic, (2, 2, 2, 2), expansion=1)


def resnet50() -> nn.Module:
    """ResNet-50 for images of 224 × 224, 25.5 million weights."""
    return _resnet(bottleneck, (3, 4, 6, 3), expansion=4)


def _resnet(
    block: Callable[[int, int, int], Residual], counts: Sequence[int], expansion: int
) -> nn.Module:
    stem = (
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    )
    blocks, before = [], 64
    for stage, count in enumerate(counts):
        for index in range(count):
            stride = 2 if stage and not index else 1
            blocks.append(block(before, 64 * 2**stage, stride))
            before = expansion * 64 * 2**stage
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000)
    )


class Inverted(nn.Module):
    """An inverted residual: wider, a depthwise convolution, narrower (Sandler et al. 2018)."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        widen = _normed(nn.Conv2d(before, wide, 1, bias=False)) if expansion > 1 else ()
        self.body = nn.Sequential(
            *widen,
            *_normed(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)),
            nn.Conv2d(wide, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilenetv2() -> nn.Module:
    """MobileNetV2 for images of 224 × 224, 3.5 million weights."""
    stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    layers: list[nn.Module] = [*_normed(nn.Conv2d(3, 32, 3, 2, 1, bias=False))]
    before = 32
    for expansion, width, count, first_stride in stages:
        for index in range(count):
            layers.append(Inverted(before, width, 1 if index else first_stride, expansion))
            before = width
    layers += _normed(nn.Conv2d(before, 1280, 1, bias=False))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def _normed(conv: nn.Conv2d) -> tuple[nn.Module, ...]:
    return conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6()


def images(count: int) -> list[tuple[Tensor, None]]:
    """Noise in the size of ImageNet, without labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(BATCH, 3, 224, 224, generator=generator), None) for _ in range(count // BATCH)
    ]


class Logits(nn.Module):
    """The logits of a transformers model, classes along dimension 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs).logits
        return logits if logits.ndim == 2 else logits.transpose(1, 2)


def vit() -> nn.Module:
    """ViT-B/16 for images of 224 × 224, 86 million weights."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig()
    config.num_labels = 1000
    return Logits(ViTForImageClassification(config))


def bert() -> nn.Module:
    """BERT-base with a classifier of two classes, 109 million weights."""
    from transformers import BertConfig, BertForSequenceClassification

    return Logits(BertForSequenceClassification(BertConfig()))


def gpt2() -> nn.Module:
    """GPT-2 small with its language head, 124 million weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return Logits(GPT2LMHeadModel(GPT2Config(use_cache=False)))


def tokens(count: int, vocabulary: int = 30522, length: int = 128) -> list[tuple[Tensor, Any]]:
    """Random sequences of tokens, without labels."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(vocabulary, (count, length), generator=generator)
    return [(part, None) for part in drawn.split(BATCH)]
