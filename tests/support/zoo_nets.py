"""The networks of the zoo that are more than a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """A network from its parts and its forward pass: `Net(lambda self, x: self.a(x), a=…)`."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.forward_of_it = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        return self.forward_of_it(self, *positional, **keywords)


class Conv1D(nn.Module):
    """That of transformers, which stores (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


Conv1D.__module__ = "transformers.pytorch_utils"


class Answer(NamedTuple):
    """What a model may return in place of a tensor."""

    logits: Tensor
    hidden: Tensor


def mlp(*, norm: nn.Module | None = None) -> Any:
    middle = nn.Tanh() if norm is None else nn.Sequential(norm, nn.Tanh())
    return nn.Sequential(nn.Linear(6, 8), middle, nn.Linear(8, 3))


def changed(model: nn.Module, change: Callable[[Any], Any]) -> nn.Module:
    """A model after something was done to it."""
    change(model)
    return model


def shared_module() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 3))


def attribute_and_child() -> nn.Module:
    layer = nn.Linear(6, 8)
    body = nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 3))
    return Net(lambda self, x: self.all(x), layer=layer, all=body)


def storing(store: Callable[[Any, Tensor], Any], **parts: Any) -> nn.Module:
    """A model that stores something on itself in each forward pass."""

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(x))
        store(self, hidden)
        return self.b(hidden)

    return Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3), **parts)


def with_buffer(store: Callable[[Any, Tensor], Any], buffer: Tensor) -> nn.Module:
    return changed(storing(store), lambda model: model.register_buffer("seen", buffer))


def add_mask(model: Any, hidden: Tensor) -> None:
    if "mask" not in model._buffers:
        model.register_buffer("mask", torch.ones_like(hidden))


def move_average(model: Any, hidden: Tensor) -> None:
    model.seen = 0.9 * model.seen + 0.1 * hidden.mean(0)


def trained_on_quantization() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    fake = torch.ao.quantization.FakeQuantize.with_args(
        observer=torch.ao.quantization.MovingAverageMinMaxObserver
    )
    return Net(
        lambda self, x: self.after(self.body(self.before(x))),
        before=fake(),
        body=model,
        after=fake(),
    )


def tied(by: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    if by == "object":
        model[2].weight = model[0].weight
    else:
        model[2].weight.data = model[0].weight.data
    return model


def of_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return mlp()


def in_brackets() -> nn.Module:
    heads = nn.ModuleDict({"[CLS]": nn.Linear(6, 8), "other*": nn.Linear(6, 8)})
    return Net(
        lambda self, x: self.last(torch.tanh(self.heads["[CLS]"](x) + self.heads["other*"](x))),
        heads=heads,
        last=nn.Linear(8, 3),
    )


def checkpointed(reentrant: bool) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(
            checkpoint(lambda z: torch.tanh(self.b(z)), self.a(x), use_reentrant=reentrant)
        )

    return Net(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 3))


def forces() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        energy = self.b(torch.tanh(self.a(x))).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]

    return Net(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 1, bias=False))


def frozen_features() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.tanh(self.body(x))
        return self.head(y)

    return Net(forward, body=nn.Linear(6, 8), head=nn.Linear(8, 3))


def branching() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        rows = [self.a(row) if row.sum().item() > 0 else self.b(row) for row in x.split(1)]
        return torch.cat(rows)

    return Net(forward, a=nn.Linear(6, 3), b=nn.Linear(6, 3))


def halves(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return self.b(torch.tanh(self.a(x))).float()


def masked_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.1, batch_first=True)
    return Net(
        lambda self, x, padding: self.head(self.body(x, src_key_padding_mask=padding)[:, 0]),
        body=nn.TransformerEncoder(layer, 2),
        head=nn.Linear(8, 3),
    )


def cross_attention() -> nn.Module:
    return Net(
        lambda self, x, y: self.head(self.attention(x, y, y)[0].mean(1)),
        attention=nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True, add_bias_kv=True),
        head=nn.Linear(8, 3),
    )


def self_attention() -> nn.Module:
    return Net(
        lambda self, x: self.head(self.attention(x, x, x)[0].mean(1)),
        attention=nn.MultiheadAttention(6, 2, batch_first=True),
        head=nn.Linear(6, 3),
    )


def pooled(*layers: nn.Module, channels: int) -> nn.Module:
    """Convolutions, then the mean over all positions, then a Linear."""
    return Net(
        lambda self, x: self.head(self.body(x).tanh().flatten(2).mean(2)),
        body=nn.Sequential(*layers),
        head=nn.Linear(channels, 3),
    )


def recurrent(kind: type[nn.RNNBase]) -> nn.Module:
    return Net(
        lambda self, x: self.head(self.body(x)[0][:, -1]),
        body=kind(6, 4, batch_first=True),
        head=nn.Linear(4, 3),
    )


def looped_cell() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)

    return Net(forward, cell=nn.GRUCell(6, 4), head=nn.Linear(4, 3))


def lists() -> nn.Module:
    return Net(
        lambda self, features: self.a(features[0]) + self.b(features[1]["there"]),
        a=nn.Linear(6, 3),
        b=nn.Linear(6, 3),
    )


def fixed_batch(refuse: Callable[[Tensor], Any]) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(refuse(x))

    return Net(forward, a=nn.Linear(6, 3))


def exactly_four(x: Tensor) -> Tensor:
    assert len(x) == 4
    return x


def quantized() -> nn.Module:
    return Net(
        lambda self, x: self.b(self.a(x)),
        a=torch.ao.nn.quantized.dynamic.Linear(6, 6),
        b=nn.Linear(6, 3),
    )


def detached_head() -> nn.Module:
    model = mlp()
    model.register_forward_hook(lambda module, given, output: output * 2)
    return model
