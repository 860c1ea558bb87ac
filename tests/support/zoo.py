"""The zoo: small models, losses and data of the kinds that people really have, one line each.

`tests/test_zoo.py` runs every public entry on every row. A new row is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    ctc_loss,
    kl_div,
    mse_loss,
    normalize,
)
from torch.nn.utils import parametrizations, spectral_norm
from torch.nn.utils import prune as torch_pruning

from support.random import normal
from support.zoo_nets import (
    Answer,
    Conv1D,
    Net,
    add_mask,
    attribute_and_child,
    branching,
    changed,
    checkpointed,
    cross_attention,
    detached_head,
    exactly_four,
    fixed_batch,
    forces,
    frozen_features,
    halves,
    in_brackets,
    lists,
    looped_cell,
    masked_encoder,
    mlp,
    move_average,
    of_inference_mode,
    pooled,
    quantized,
    recurrent,
    self_attention,
    shared_module,
    storing,
    tied,
    trained_on_quantization,
    with_buffer,
)
from woodbury import Likelihood, cross_entropy, likelihoods, squared_error

Batches = list[tuple[Any, Any]]
NO_FACTORS = {"kfac": "K-FAC"}
"""K-FAC names what it does not know."""
B = 4
"""Samples of a batch."""


@dataclass(frozen=True)
class Row:
    """A model with its data and its loss.

    Attributes:
        name: In words.
        build: Makes the model; torch is seeded before.
        data: Makes three batches.
        likelihood: The loss.
        options: `include` and `exclude`, for every entry that takes them.
        refused: What the sentence says that refuses the row, by entry or by kind of entry:
            "model" by all that call it, "curvature" by all that take gradients, "pruning" by all
            that write zeros. None for an entry that takes it all the same, as n:m leaves out what
            it does not divide.
        trains: Whether it trains in a plain loop of torch.
        double: Whether a copy in float64 computes the same, so that rows have a truth.
    """

    name: str
    build: Callable[[], Any]
    data: Callable[[], Batches]
    likelihood: Likelihood = cross_entropy
    options: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str | None] = field(default_factory=dict)
    double: bool = True
    trains: bool = True


def vectors(*shape: int, labels: Callable[[int], Any] | None = None) -> Callable[[], Batches]:
    """Batches of normal inputs, and classes or what `labels(seed)` gives."""

    def made() -> Batches:
        def batch(seed: int) -> tuple[Tensor, Any]:
            inputs = normal(B, *(shape or (6,)), seed=seed, dtype=torch.float32)
            return inputs, (torch.arange(B) + seed) % 3 if labels is None else labels(seed)

        return [batch(seed) for seed in range(3)]

    return made


def codes(*shape: int, most: int = 9, labels: Callable[[int], Any] | None = None) -> Any:
    """Batches of random whole numbers."""

    def made() -> Batches:
        return [(drawn(seed, B, *shape, most=most), target(seed)) for seed in range(3)]

    def target(seed: int) -> Any:
        return (torch.arange(B) + seed) % 3 if labels is None else labels(seed)

    return made


def drawn(seed: int, *shape: int, most: int) -> Tensor:
    return torch.randint(0, most, shape, generator=torch.Generator().manual_seed(seed))


def of(change: Callable[[Any, Any], tuple[Any, Any]], data: Any = None) -> Callable[[], Batches]:
    """The batches of `data` in another form."""
    return lambda: [change(*batch) for batch in (data or vectors())()]


def boxes(seed: int) -> list[dict[str, Tensor]]:
    return [{"boxes": normal(1 + (seed + i) % 3, 3, dtype=torch.float32)} for i in range(B)]


def box_loss(output: Tensor, target: Any) -> Tensor:
    each = [
        (one - t["boxes"].to(one)).square().mean() for one, t in zip(output, target, strict=True)
    ]
    return torch.stack(each).mean()


def speech(seed: int) -> tuple[Tensor, Tensor]:
    return 1 + drawn(seed, B, 3, most=2), 1 + drawn(seed, B, most=3)


def speech_loss(output: Tensor, target: Any) -> Tensor:
    labels, lengths = target
    frames = torch.full((len(output),), output.shape[1])
    log_p = output.log_softmax(-1).transpose(0, 1)
    return ctc_loss(log_p, labels, frames, lengths, reduction="sum") / len(output)


def concatenated_speech(seed: int) -> tuple[Tensor, Tensor]:
    labels, lengths = speech(seed)
    return torch.cat([row[:n] for row, n in zip(labels, lengths, strict=True)]), lengths


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    unit = normalize(output, dim=1)
    return nn.functional.cross_entropy(5 * unit @ unit.T, torch.arange(len(output)))


def with_ignored(seed: int) -> Tensor:
    labels = drawn(seed, B, 5, most=3)
    labels[:, 3:] = -100
    return labels


def unequal_batches() -> Batches:
    batches = vectors()()
    return [batches[0], tuple(part[:1] for part in batches[1]), batches[2]]


def longer_later() -> Batches:
    return [(drawn(s, B, 3 + s, most=9), (torch.arange(B) + s) % 3) for s in range(3)]


def wider_later() -> Batches:
    batches = vectors()()
    return [*batches[:2], (batches[2][0][:, :5], batches[2][1])]


def soft(seed: int) -> Tensor:
    return normal(B, 3, seed=seed, dtype=torch.float32).softmax(1)


def values(seed: int) -> Tensor:
    return normal(B, 3, seed=seed + 9, dtype=torch.float32)


def answers(seed: int) -> Tensor:
    return (values(seed) > 0).float()


def loss_of(function: Callable[[Any, Any], Tensor]) -> Likelihood:
    return Likelihood(function, cross_entropy.sample, None, cross_entropy.directions)


def bag(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts, nn.Linear(6, 3))


LOSS = Likelihood
ROWS = [
    # 1. The model comes back as it was.
    Row("plain", mlp, vectors()),
    Row("one module under two names", shared_module, vectors()),
    Row("a module as attribute and child", attribute_and_child, vectors()),
    Row("stores its features", lambda: storing(lambda m, h: setattr(m, "features", h)), vectors()),
    Row(
        "stored its features before",
        lambda: changed(
            storing(lambda m, h: setattr(m, "features", h)), lambda m: m(vectors()()[0][0])
        ),
        vectors(),
    ),
    Row(
        "keeps a history",
        lambda: storing(lambda m, h: m.history.append(h), history=[]),
        vectors(),
    ),
    Row(
        "stores deep inside",
        lambda: storing(lambda m, h: m.kept["maps"].append(h), kept={"maps": []}),
        vectors(),
    ),
    Row(
        "moves an average that is no buffer",
        lambda: storing(lambda m, h: m.mean.lerp_(h.detach().mean(0), 0.1), mean=torch.zeros(8)),
        vectors(),
        double=False,
    ),
    Row("makes a buffer when first called", lambda: storing(add_mask), vectors()),
    Row("moves an average", lambda: with_buffer(move_average, torch.zeros(8)), vectors()),
    Row(
        "counts its calls",
        lambda: with_buffer(lambda m, h: m.seen.add_(1), torch.zeros(())),
        vectors(),
    ),
    Row("BatchNorm", lambda: mlp(norm=nn.BatchNorm1d(8)), vectors()),
    Row("BatchNorm, cumulative", lambda: mlp(norm=nn.BatchNorm1d(8, momentum=None)), vectors()),
    Row(
        "InstanceNorm with statistics",
        lambda: pooled(
            nn.Conv1d(2, 4, 2), nn.InstanceNorm1d(4, track_running_stats=True), channels=4
        ),
        vectors(2, 5),
        refused=NO_FACTORS,
    ),
    Row("LayerNorm", lambda: mlp(norm=nn.LayerNorm(8)), vectors()),
    Row("GroupNorm", lambda: mlp(norm=nn.GroupNorm(2, 8)), vectors()),
    Row("dropout", lambda: mlp(norm=nn.Dropout(0.5)), vectors()),
    Row(
        "normalises in place",
        lambda: Net(lambda m, x: m.a(x.sub_(1).div_(2)), a=nn.Linear(6, 3)),
        vectors(),
    ),
    Row("trained for quantization", trained_on_quantization, vectors(), double=False),
    Row("has a hook of its own", detached_head, vectors()),
    Row("frozen layer", lambda: changed(mlp(), lambda m: m[0].requires_grad_(False)), vectors()),
    # 2. Parameters are what they are.
    Row("tied by object", lambda: tied("object"), vectors()),
    Row("tied by memory", lambda: tied("data"), vectors()),
    Row(
        "whole numbers",
        lambda: Net(
            lambda m, x: m.a(x) @ (m.codes.to(x) / 9),
            a=nn.Linear(6, 3),
            codes=nn.Parameter(torch.arange(9).view(3, 3).to(torch.int8), requires_grad=False),
        ),
        vectors(),
    ),
    Row(
        "complex numbers",
        lambda: Net(
            lambda m, x: m.a((torch.fft.rfft(x) @ m.turn.to(torch.fft.rfft(x))).abs()),
            a=nn.Linear(4, 3),
            turn=nn.Parameter(torch.randn(4, 4, dtype=torch.cfloat)),
        ),
        vectors(),
        refused={
            "MFAC": "complex64",
            "curvature": "'turn' is complex.*exclude='turn'",
            "n:m": None,
        },
    ),
    Row(
        "two precisions",
        lambda: Net(
            lambda m, x: m.b(m.a(x.bfloat16()).float()),
            a=nn.Linear(6, 8).bfloat16(),
            b=nn.Linear(8, 3),
        ),
        vectors(),
        double=False,
        refused={"curvature": "is bfloat16 and .* float32: choose parameters of one dtype"},
    ),
    Row(
        "float32 beside bfloat16",
        lambda: Net(
            lambda m, x: m.b(m.a(x.bfloat16()).float()),
            a=nn.Linear(6, 8).bfloat16(),
            b=nn.Linear(8, 3),
        ),
        vectors(),
        options={"exclude": "a.*"},
        double=False,
    ),
    Row("float64", lambda: mlp().double(), of(lambda x, y: (x.double(), y))),
    Row(
        "weight norm",
        lambda: changed(mlp(), lambda m: parametrizations.weight_norm(m[0])),
        vectors(),
        refused={
            **NO_FACTORS,
            "pruning": r"remove_parametrizations\(module, 'weight'\)",
            "n:m": None,
        },
    ),
    Row(
        "orthogonal",
        lambda: changed(shared_module(), lambda m: parametrizations.orthogonal(m[0])),
        vectors(),
        refused={
            **NO_FACTORS,
            "pruning": r"remove_parametrizations\(module, 'weight'\)",
            "n:m": None,
        },
    ),
    Row(
        "spectral norm, parametrized",
        lambda: changed(mlp(), lambda m: parametrizations.spectral_norm(m[0])),
        vectors(),
        refused={
            **NO_FACTORS,
            "pruning": r"remove_parametrizations\(module, 'weight'\)",
            "n:m": None,
        },
    ),
    Row(
        "masks of torch",
        lambda: changed(mlp(), lambda m: torch_pruning.l1_unstructured(m[0], "weight", 0.5)),
        vectors(),
        refused={"kfac": "never called", "pruning": r"has a mask of torch\.nn\.utils\.prune"},
    ),
    Row(
        "a view of another weight",
        lambda: changed(
            mlp(),
            lambda m: setattr(m[2], "weight", nn.Parameter(m[0].weight.data.view(-1, 8)[:3])),
        ),
        vectors(),
        refused={"curvature": "are views of the same memory"},
        double=False,
    ),
    Row(
        "made in inference mode",
        of_inference_mode,
        vectors(),
        trains=False,
        double=False,
        refused={"curvature": "was made in inference mode"},
    ),
    Row(
        "an expanded weight",
        lambda: changed(
            mlp(), lambda m: setattr(m[2], "weight", nn.Parameter(torch.randn(1, 8).expand(3, 8)))
        ),
        vectors(),
        trains=False,
        refused={"pruning": "is expanded"},
    ),
    Row(
        "on meta",
        lambda: mlp().to("meta"),
        vectors(),
        trains=False,
        refused={"curvature": "is on meta", "flops": "refuses", "save": "on meta"},
    ),
    Row(
        "lazy",
        lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)),
        vectors(),
        trains=False,
        refused={
            "model": "has no shape yet",
            "MFAC": "has no shape yet",
            "save": "has no shape yet",
        },
    ),
    Row(
        "quantized",
        quantized,
        vectors(),
        refused={"model": "'a' is quantized", "save": "not a tensor"},
        double=False,
        trains=False,
    ),
    Row(
        "scripted",
        lambda: torch.jit.trace(mlp(), vectors()()[0][0]),
        vectors(),
        trains=False,
        refused={"model": "cannot be exchanged", "recalibrate": "cannot be exchanged"},
    ),
    Row(
        "a scripted layer",
        lambda: nn.Sequential(torch.jit.script(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3)),
        vectors(),
        trains=False,
        refused={
            "model": "module '0' of the model is a .* cannot be exchanged",
            "recalibrate": "cannot be exchanged",
        },
    ),
    Row(
        "halves by autocast",
        lambda: Net(halves, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        vectors(),
        double=False,
    ),
    Row("no parameters", nn.Tanh, vectors(), trains=False, refused={"model": "has no parameters"}),
    Row("names in brackets", in_brackets, vectors()),
    Row("DataParallel", lambda: nn.DataParallel(mlp()), vectors()),
    Row("compiled", lambda: torch.compile(mlp(), backend="eager"), vectors()),
    Row(
        "lists of parameters",
        lambda: Net(
            lambda m, x: x @ m.w[0] @ m.w[1] + m.d["b"],
            w=nn.ParameterList([torch.randn(6, 8), torch.randn(8, 3)]),
            d=nn.ParameterDict({"b": torch.zeros(3)}),
        ),
        vectors(),
        refused={
            **NO_FACTORS,
            "channels": "belongs to ParameterList",
            "n:m": "belongs to ParameterList",
        },
    ),
    Row(
        "empty and scalar parameters",
        lambda: Net(
            lambda m, x: m.a(x) * m.scale,
            a=nn.Linear(6, 3),
            scale=nn.Parameter(torch.ones(())),
            none=nn.Parameter(torch.empty(0, 4)),
        ),
        vectors(),
    ),
    # 3. Losses and targets.
    Row("boxes", mlp, vectors(labels=boxes), LOSS(box_loss)),
    Row(
        "speech, padded",
        lambda: nn.Linear(6, 3),
        vectors(6, 6, labels=speech),
        LOSS(speech_loss),
        refused={"hessian diagonal": "cannot be differentiated twice"},
    ),
    Row(
        "speech, concatenated",
        lambda: nn.Linear(6, 3),
        vectors(6, 6, labels=concatenated_speech),
        LOSS(speech_loss),
        refused={"curvature": "labels of shape .* one label per sample"},
    ),
    Row(
        "targets in a dict",
        mlp,
        of(lambda x, y: (x, {"y": y})),
        LOSS(lambda output, target: cross_entropy.loss(output, target["y"])),
    ),
    Row("nested inputs", lists, of(lambda x, y: (([x, {"there": x + 1}],), y))),
    Row(
        "inputs by name, with a flag",
        lambda: Net(lambda m, x, fast: m.a(x) if fast else None, a=nn.Linear(6, 3)),
        of(lambda x, y: ({"x": x, "fast": True}, y)),
    ),
    Row(
        "a padding mask",
        masked_encoder,
        of(lambda x, y: ((x, torch.arange(5)[None] >= 2 + y[:, None]), y), vectors(5, 8)),
        refused=NO_FACTORS,
    ),
    Row(
        "class weights",
        mlp,
        vectors(),
        LOSS(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 50.0]))),
        refused={"curvature": "must be the mean over samples"},
        double=False,
    ),
    Row(
        "a sum for a mean",
        mlp,
        vectors(),
        LOSS(nn.CrossEntropyLoss(reduction="sum")),
        refused={"curvature": "must be the mean over samples"},
    ),
    Row(
        "contrasts within the batch",
        mlp,
        vectors(),
        LOSS(contrastive),
        refused={"curvature": "must be the mean over samples"},
    ),
    Row(
        "squeezes",
        lambda: Net(lambda m, x: m.a(x).squeeze(), a=nn.Linear(6, 3)),
        vectors(),
        refused={"curvature": "without squeeze"},
    ),
    Row(
        "views a batch of four",
        lambda: fixed_batch(lambda x: x.view(4, 6)),
        vectors(),
        refused={"curvature": "refuses a "},
    ),
    Row(
        "asserts a batch of four",
        lambda: fixed_batch(exactly_four),
        vectors(),
        refused={"curvature": "refuses a "},
    ),
    Row("checkpoints, re-entrant", lambda: checkpointed(True), vectors()),
    Row("checkpoints", lambda: checkpointed(False), vectors()),
    Row(
        "no gradient inside",
        frozen_features,
        vectors(),
        options={"exclude": "body.*"},
    ),
    Row(
        "forces",
        forces,
        of(lambda x, y: (x, x + 1)),
        squared_error,
        refused={"kfac": "in other ways"},
    ),
    Row(
        "pixels",
        lambda: nn.Conv2d(2, 3, 2),
        vectors(2, 3, 3, labels=lambda seed: drawn(seed, B, 2, 2, most=3)),
    ),
    Row(
        "ignored labels",
        lambda: Net(lambda m, x: m.a(x).mT, a=nn.Linear(6, 3)),
        vectors(5, 6, labels=with_ignored),
    ),
    Row(
        "classes last, said so",
        lambda: nn.Linear(6, 3),
        vectors(5, 6, labels=with_ignored),
        cross_entropy.with_output(lambda output: output.mT),
    ),
    Row(
        "classes last",
        lambda: nn.Linear(6, 3),
        vectors(5, 6, labels=with_ignored),
        refused={"loss": "lie along dimension 1.*movedim"},
    ),
    Row("regression", mlp, vectors(labels=values), squared_error),
    Row("soft labels", mlp, vectors(labels=soft)),
    Row(
        "distillation",
        mlp,
        vectors(labels=soft),
        loss_of(lambda o, t: kl_div(o.log_softmax(1), t, reduction="batchmean")),
    ),
    Row(
        "yes or no",
        mlp,
        vectors(labels=answers),
        LOSS(lambda o, t: binary_cross_entropy_with_logits(o, t.to(o))),
    ),
    Row("mean squares", mlp, vectors(labels=values), LOSS(mse_loss)),
    Row("smoothed labels", mlp, vectors(), loss_of(nn.CrossEntropyLoss(label_smoothing=0.1))),
    Row("weighted classes", mlp, vectors(), likelihoods.classes([1, 5, 50])),
    Row("smoothed classes", mlp, vectors(), likelihoods.classes(label_smoothing=0.1)),
    Row("several labels", mlp, vectors(labels=answers), likelihoods.binary([1, 2, 3])),
    Row("known noise", mlp, vectors(labels=values), likelihoods.normal([0.5, 1, 2])),
    Row(
        "weighted tokens",
        lambda: Net(lambda m, x: m.a(x).mT, a=nn.Linear(6, 3)),
        vectors(5, 6, labels=with_ignored),
        likelihoods.classes([1, 2, 3], label_smoothing=0.1),
    ),
    Row(
        "several heads",
        lambda: Net(lambda m, x: Answer(m.b(m.a(x)), m.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        of(lambda x, y: (x, {"logits": y, "hidden": x.repeat(1, 2)[:, :8]})),
        likelihoods.several({"logits": cross_entropy, "hidden": squared_error}, {"hidden": 0.1}),
    ),
    Row("int32 labels", mlp, of(lambda x, y: (x, y.int()))),
    Row(
        "several outputs",
        lambda: Net(lambda m, x: Answer(m.b(m.a(x)), m.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        vectors(),
        cross_entropy.with_output(lambda output: output.logits),
    ),
    Row(
        "BatchNorm without statistics",
        lambda: mlp(norm=nn.BatchNorm1d(8, track_running_stats=False)),
        vectors(),
        refused={"curvature": "no running statistics"},
    ),
    Row(
        "a weight used by itself",
        lambda: Net(lambda m, x: m.a(x) + x.sin() @ m.a.weight.mT, a=nn.Linear(6, 3)),
        vectors(),
        refused={"kfac": "'a.weight' takes part in the loss in other ways"},
    ),
    Row("control flow by data", branching, vectors(), refused=NO_FACTORS),
    Row("a single sample in between", mlp, unequal_batches),
    Row(
        "sequences of several lengths",
        lambda: Net(lambda m, x: m.b(m.a(x).mean(1)), a=nn.Embedding(9, 6), b=nn.Linear(6, 3)),
        longer_later,
        refused=NO_FACTORS,
    ),
    Row(
        "a wider batch later",
        mlp,
        wider_later,
        trains=False,
        refused={"curvature": "refuses"},
    ),
    # 4. Layers know their dimensions.
    Row(
        "Conv1d", lambda: pooled(nn.Conv1d(4, 6, 2), channels=6), vectors(4, 5), refused=NO_FACTORS
    ),
    Row("Conv2d", lambda: pooled(nn.Conv2d(4, 6, 2), channels=6), vectors(4, 3, 3)),
    Row(
        "Conv3d",
        lambda: pooled(nn.Conv3d(4, 6, 2), channels=6),
        vectors(4, 2, 3, 2),
        refused=NO_FACTORS,
    ),
    Row(
        "grouped",
        lambda: pooled(nn.Conv2d(4, 6, 2, groups=2), channels=6),
        vectors(4, 3, 3),
        refused=NO_FACTORS,
    ),
    Row(
        "depthwise",
        lambda: pooled(nn.Conv2d(4, 4, 2, groups=4), nn.Conv2d(4, 6, 1), channels=6),
        vectors(4, 3, 3),
        refused=NO_FACTORS,
    ),
    Row(
        "transposed",
        lambda: pooled(nn.ConvTranspose2d(4, 6, 2), channels=6),
        vectors(4, 3, 3),
        refused=NO_FACTORS,
    ),
    Row(
        "transposed in groups",
        lambda: pooled(nn.ConvTranspose1d(4, 6, 2, groups=2), channels=6),
        vectors(4, 3),
        refused=NO_FACTORS,
    ),
    Row(
        "Conv1D of transformers",
        lambda: nn.Sequential(Conv1D(8, 6), nn.Tanh(), nn.Linear(8, 3)),
        vectors(),
        refused=NO_FACTORS,
    ),
    Row("attention", self_attention, vectors(4, 6), refused=NO_FACTORS),
    Row(
        "attention between sequences",
        cross_attention,
        of(lambda x, y: ((x, x[:, :3, :6]), y), vectors(4, 8)),
        options={"exclude": "*bias_?"},
        refused=NO_FACTORS,
    ),
    Row(
        "one embedding",
        lambda: nn.Sequential(nn.Embedding(9, 3)),
        codes(),
        options={"include": "*"},
        refused={**NO_FACTORS, "n:m": "belongs to Embedding.* nothing else is left"},
    ),
    Row(
        "an embedding",
        lambda: bag(nn.Embedding(9, 2), nn.Flatten()),
        codes(3),
        refused=NO_FACTORS,
    ),
    Row(
        "an embedding with sparse gradients",
        lambda: bag(nn.Embedding(9, 2, sparse=True), nn.Flatten()),
        codes(3),
        refused={
            **NO_FACTORS,
            "MFAC": "sparse",
            "Preconditioner": r"sparse.*exclude='0\.weight'",
        },
    ),
    Row(
        "a bag of codes",
        lambda: bag(nn.EmbeddingBag(9, 6)),
        codes(3),
        refused={
            **NO_FACTORS,
            "hessian diagonal": "cannot be differentiated twice",
        },
    ),
    Row("LSTM", lambda: recurrent(nn.LSTM), vectors(3, 6), refused=NO_FACTORS),
    Row("GRU", lambda: recurrent(nn.GRU), vectors(3, 6), refused=NO_FACTORS),
    Row("a cell in a loop", looped_cell, vectors(3, 6), refused=NO_FACTORS),
    Row(
        "Bilinear",
        lambda: Net(lambda m, x: m.a(x, x.flip(1)), a=nn.Bilinear(6, 6, 3)),
        vectors(),
        refused=NO_FACTORS,
    ),
    Row(
        "spectral norm, by a hook",
        lambda: changed(mlp(), lambda m: spectral_norm(m[0])),
        vectors(),
        refused={"kfac": "never called", "pruning": "remove_spectral_norm"},
    ),
]
