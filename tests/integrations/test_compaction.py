"""Smaller layers compute what the network with zeros did; what is not constant is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.unchanged import unchanged
from support.zoo_nets import Net
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_masks

import woodbury
from woodbury.errors import MissingDependency, WoodburyError, WrongType
from woodbury.model.attributes import copy_of

pytest.importorskip("torch_pruning", reason="the graph of channels is Torch-Pruning's")
from woodbury.integrations.compaction import api, coupled_units


def residual(width: int, norm: Any = nn.BatchNorm2d) -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        norm(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        norm(width),
    )
    return Net(lambda self, x: (self.body(x) + x).relu(), body=body)


def head(channels: int, after: nn.Module | None = None) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), after or nn.Linear(channels, 3)]


def conv_net(second: nn.Module, *between: nn.Module, outputs: int) -> nn.Module:
    first = nn.Conv2d(3, 8, 3, padding=1)
    return nn.Sequential(first, *(between or (nn.ReLU(),)), second, nn.ReLU(), *head(outputs))


def mlp_block() -> nn.Module:
    """The MLP of a transformer, with its residual sum and LayerNorm."""

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.norm(x + self.second(nn.functional.gelu(self.first(x))))
        return self.last(hidden.mean(1))

    parts = {"first": nn.Linear(6, 8), "second": nn.Linear(8, 6, bias=False)}
    return Net(forward, **parts, norm=nn.LayerNorm(6), last=nn.Linear(6, 3))


def concatenated() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        both = torch.cat([self.a(x), self.b(x)], 1)
        return self.last(self.norm(both).relu()).mean((2, 3))

    parts = {"a": nn.Conv2d(3, 5, 3), "b": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(9)}
    return Net(forward, **parts, last=nn.Conv2d(9, 3, 3, padding=1))


def joined_then_flattened() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.a(x), self.b(x)], 1).relu().flatten(1))

    return Net(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 5, 3), last=nn.Linear(9 * 16, 3))


def flattened_then_joined() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        parts = [self.a(x).relu().flatten(1), x.mean((2, 3)), self.b(x).relu().flatten(1)]
        return self.last(torch.cat(parts, -1))

    return Net(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 5, 1), last=nn.Linear(4 * 16 + 183, 3))


def split_then_joined() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        first, second = self.a(x).split([6, 2], 1)
        return self.last(torch.cat([second.relu(), self.b(x), first.tanh()], 1)).mean((2, 3))

    return Net(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 5, 3), last=nn.Conv2d(13, 3, 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    # what it is: the network, the shape of a sample, a layer that must be smaller
    "linear": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.PReLU(8), nn.Linear(8, 3)
        ),
        (6,),
        "2",
    ),
    "tokens": (mlp_block, (5, 6), "first"),
    "norm and padding": (
        lambda: conv_net(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), outputs=6),
        (3, 6, 6),
        "3",
    ),
    "no padding": (lambda: conv_net(nn.Conv2d(8, 6, 3, bias=False), outputs=6), (3, 6, 6), "2"),
    "reflected": (
        lambda: conv_net(
            nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), nn.GELU(), outputs=6
        ),
        (3, 6, 6),
        "2",
    ),
    "pooled with padding": (
        lambda: conv_net(nn.Conv2d(8, 6, 1), nn.Sigmoid(), nn.MaxPool2d(2, 2, 1), outputs=6),
        (3, 6, 6),
        "3",
    ),
    "depthwise": (
        lambda: conv_net(
            nn.Conv2d(8, 6, 1),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8),
            outputs=6,
        ),
        (3, 6, 6),
        "3",
    ),
    "transposed": (lambda: conv_net(nn.ConvTranspose2d(8, 6, 2, 2), outputs=6), (3, 4, 4), "2"),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3),
            nn.Flatten(), nn.Linear(4 * 7, 3),
        ),
        (3, 9),
        "3",
    ),
    "residual": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), residual(8), residual(8),
            *head(8),
        ),
        (3, 6, 6),
        "3.body.3",
    ),
    "concatenated": (concatenated, (3, 6, 6), "last"),
    "concatenated, then flat": (joined_then_flattened, (3, 6, 6), "last"),
    "flat, then concatenated": (flattened_then_joined, (3, 6, 6), "last"),
    "split, then concatenated": (split_then_joined, (3, 6, 6), "last"),
}  # fmt: skip


def made(name: str) -> tuple[Any, tuple[int, ...], str]:
    """A network in eval mode whose norms are no identities."""
    make, shape, smaller = NETWORKS[name]
    return ready(make()), shape, smaller


def ready(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.2)
    return model.eval()


@torch.no_grad()
def remove(model: nn.Module, shape: tuple[int, ...], share: float = 0.5) -> None:
    """Set the weights of some coupled channels to zero, the biases and norms not."""
    unit = woodbury.coupled_channels(model, torch.randn(2, *shape))
    generator = torch.Generator().manual_seed(1)
    for members in unit.members:
        if torch.rand((), generator=generator) < share:
            for name, where in members.items():
                if model.get_parameter(name).ndim > 1:
                    model.get_parameter(name)[where] = 0


@torch.no_grad()
def error(model: nn.Module, smaller: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest difference over sizes of batches, relative to the float64 network's outputs."""
    truth = copy_of(model).double()
    worst = 0.0
    for size in (1, 2, 7):
        x = 3 * torch.randn(size, *shape)
        expected = truth(x.double())
        worst = max(worst, float((smaller(x) - expected).abs().max() / expected.abs().max()))
    return worst


@pytest.mark.parametrize("name", NETWORKS)
def test_smaller_layers_compute_the_same(name: str) -> None:
    model, shape, layer = made(name)
    remove(model, shape)
    example = torch.randn(4, *shape)
    with unchanged(model, [example]):
        result = api.compacted(model, example)
    assert error(model, result.model, shape) < 1e-5
    assert result.difference < 1e-5
    assert f"{layer}.weight" in result.shapes
    weight = result.model.get_submodule(layer).weight
    assert isinstance(weight, nn.Parameter) and result.shapes[f"{layer}.weight"][1] == weight.shape
    assert type(result.model.get_submodule(layer)) is type(model.get_submodule(layer))
    assert result.parameters[1] < result.parameters[0] and result.flops[1] < result.flops[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_channel_is_removed_that_counts(name: str) -> None:
    model, shape, _ = made(name)
    result = api.compacted(model, torch.randn(4, *shape))
    assert not result.shapes and "No channel" in str(result)
    assert result.flops[0] == result.flops[1]
    assert error(model, result.model, shape) < 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_of_zeros_keeps_one_channel(name: str) -> None:
    model, shape, _ = made(name)
    remove(model, shape, share=1.0)
    smaller = woodbury.compact(model, torch.randn(4, *shape))
    assert error(model, smaller, shape) < 1e-5
    assert min(parameter.numel() for parameter in smaller.parameters()) >= 1


def test_the_channels_that_are_left_are_those_with_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[[0, 3, 4]] = 0
        bias = model[2].bias + model[2].weight @ (
            model[0].weight.any(1).logical_not() * model[0].bias.relu()
        )
    smaller: Any = woodbury.compact(model, torch.randn(5, 4))
    assert torch.equal(smaller[0].weight, model[0].weight[[1, 2, 5]])
    assert torch.equal(smaller[0].bias, model[0].bias[[1, 2, 5]])
    assert torch.equal(smaller[2].weight, model[2].weight[:, [1, 2, 5]])
    assert torch.allclose(smaller[2].bias, bias, atol=1e-6)


def test_constants_before_a_padded_convolution_need_one_channel() -> None:
    model, shape, _ = made("norm and padding")
    with torch.no_grad():
        model[0].weight[:5] = 0
        model[1].bias[:5] = torch.tensor([1.0, 2.0, 3.0, -4.0, -5.0])  # 1, 2, 3, 0, 0 after ReLU
        model[1].running_mean[:5] = model[0].bias[:5]
    smaller: Any = woodbury.compact(model, torch.randn(4, *shape))
    assert smaller[0].out_channels == 3 + 1
    assert error(model, smaller, shape) < 1e-5


def test_channels_that_nothing_reads_are_removed() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[4].weight[:, :2] = 0  # then 0 and 1 of the second layer are not read,
        model[2].weight[2:, 3] = 0  # and without them nothing reads 3 of the first
    smaller: Any = woodbury.compact(model, torch.randn(5, 4))
    assert [smaller[i].out_features for i in (0, 2)] == [5, 3]
    assert error(model, smaller, (4,)) < 1e-5


@pytest.mark.parametrize("role", ["read", "made"])
def test_grouped_convolutions_lose_equally_many_in_each_group(role: str) -> None:
    grouped = nn.Conv2d(8, 6, 3, padding=1, groups=2)
    model = ready(nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), grouped, nn.Conv2d(6, 4, 1),
                                *head(4)))  # fmt: skip
    with torch.no_grad():
        if role == "read":
            model[0].weight[[0, 1, 2, 5, 6]] = 0  # three of the first four, two of the others
        else:
            model[1].weight[[0, 3, 5]] = 0  # one of the first three, two of the others
    smaller: Any = woodbury.compact(model, torch.randn(4, 3, 6, 6))
    expected = (4, 6) if role == "read" else (8, 4)
    assert (smaller[1].in_channels, smaller[1].out_channels) == expected
    assert smaller[1].groups == 2 and error(model, smaller, (3, 6, 6)) < 1e-5


def test_a_depthwise_filter_of_zeros_removes_its_channel() -> None:
    model, shape, _ = made("depthwise")
    with torch.no_grad():
        model[3].weight[:3] = 0
    smaller: Any = woodbury.compact(model, torch.randn(4, *shape))
    assert smaller[0].out_channels == smaller[3].groups == smaller[5].in_channels == 5
    assert error(model, smaller, shape) < 1e-5


def test_a_shortcut_around_a_depthwise_filter_of_zeros_is_kept() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        wide = self.first(x).relu()
        return self.last((wide + self.depth(wide)).mean((2, 3)))

    depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    model = Net(forward, first=nn.Conv2d(3, 8, 1), depth=depth, last=nn.Linear(8, 3))
    with torch.no_grad():
        depth.weight[:3] = 0
        model.first.bias[:3] = -100.0  # ReLU lets nothing through, on inputs such as these
    smaller: Any = woodbury.compact(model, torch.randn(4, 3, 6, 6))
    assert smaller.first.out_channels == 8


def test_a_unit_that_is_only_dead_on_the_example_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].bias[:3] = -100.0
    smaller: Any = woodbury.compact(model, torch.randn(5, 4))
    assert smaller[0].out_features == 6


def attention(self: Any, x: Tensor) -> Tensor:
    parts = [layer(x).view(len(x), -1, 2, 3).transpose(1, 2) for layer in (self.q, self.k, self.v)]
    mixed = nn.functional.scaled_dot_product_attention(*parts)
    return self.o(mixed.transpose(1, 2).reshape(x.shape))


def halves_added(x: Tensor) -> Tensor:
    return x[..., :3] + x[..., 3:]


def in_halves(x: Tensor) -> Tensor:
    """As in ShuffleNet: channels of both halves in turns."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).reshape(x.shape)


def rotated(x: Tensor) -> Tensor:
    """As in rotary embeddings: each channel is added to another one, which is added to it."""
    return x * 0.5 + torch.cat([-x[..., 3:], x[..., :3]], -1) * 0.7


def mixed_channels() -> dict[str, tuple[Any, tuple[int, ...], str]]:
    """Networks and a layer of which no channel can be removed, though half of it is zero."""
    layers = {name: nn.Linear(6, 6) for name in ("q", "k", "v")}
    shuffled = nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.ChannelShuffle(2), nn.Conv2d(8, 6, 1), *head(6)
    )
    fixed = Net(lambda self, x: self.b(self.a(x).view(-1, 8 * 16).relu()),
                a=nn.Conv2d(3, 8, 3), b=nn.Linear(128, 3))  # fmt: skip
    hooked = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    hooked[2].register_forward_hook(lambda module, inputs, output: output * inputs[0].shape[1])
    shared = nn.Linear(6, 6)
    return {
        "attention": (Net(attention, **layers, o=nn.Linear(6, 3)), (5, 6), "v"),
        "LayerNorm": (
            nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (6,), "0",
        ),
        "GroupNorm": (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1)), (3, 4, 4),
            "0",
        ),
        "softmax": (
            nn.Sequential(nn.Linear(6, 6), nn.Softmax(-1), nn.Linear(6, 3)), (6,), "0",
        ),
        "the input": (Net(lambda self, x: self.b(self.a(x) + x), a=nn.Linear(6, 6),
                          b=nn.Linear(6, 3)), (6,), "a"),
        "outputs": (nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)), (6,), "1"),
        "fixed size": (fixed, (3, 6, 6), "a"),
        "shuffled": (shuffled, (3, 4, 4), "0"),
        "shuffled in halves": (
            Net(lambda self, x: self.b(in_halves(torch.cat([x, self.a(x)], 1))).mean((2, 3)),
                a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(6, 3, 1)), (3, 4, 4), "a",
        ),
        "hooks": (hooked, (6,), "0"),
        "used twice": (nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(6, 3)), (6,), "0"),
        "weight norm": (
            nn.Sequential(
                nn.Linear(6, 6), nn.ReLU(), parametrizations.weight_norm(nn.Linear(6, 3))
            ), (6,), "0",
        ),
        "halves that are added": (
            Net(lambda self, x: self.b(halves_added(self.a(x))), a=nn.Linear(6, 6),
                b=nn.Linear(3, 3)), (6,), "a",
        ),
        "rotated": (
            Net(lambda self, x: self.b(rotated(self.a(x))), a=nn.Linear(6, 6),
                b=nn.Linear(6, 3)), (5, 6), "a",
        ),
        "own parameter": (
            Net(lambda self, x: self.b(self.a(x) * self.scale), a=nn.Linear(6, 6),
                b=nn.Linear(6, 3), scale=nn.Parameter(torch.randn(6))), (6,), "a",
        ),
        "LSTM": (
            Net(lambda self, x: self.b(self.rnn(self.a(x))[0]), a=nn.Linear(6, 6),
                rnn=nn.LSTM(6, 4, batch_first=True), b=nn.Linear(4, 3)), (5, 6), "a",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", mixed_channels())
def test_channels_that_meet_others_are_left_alone(name: str) -> None:
    model, shape, layer = mixed_channels()[name]
    model.eval()
    with torch.no_grad():
        model.get_submodule(layer).weight[: len(model.get_submodule(layer).weight) // 2] = 0
    result = api.compacted(model, torch.randn(4, *shape))
    assert f"{layer}.weight" not in result.shapes
    assert error(model, result.model, shape) < 1e-5
    if name not in ("the input", "shuffled"):  # of these the zeros themselves do no good
        assert any(reason.endswith(".") for reason in result.kept.values()), result.kept


def test_masks_become_smaller_layers_and_modes_are_kept() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    torch_masks.ln_structured(model[0], "weight", amount=4, n=2, dim=0)
    model[0].weight_orig.requires_grad_(False)
    model[2].eval()
    smaller: Any = woodbury.compact(model, torch.randn(5, 4))
    assert [module.training for module in smaller] == [True, True, False, True]
    assert smaller[0].out_features == smaller[1].num_features == 4
    assert not smaller[0].weight.requires_grad and smaller[3].weight.requires_grad
    assert error(model.eval(), smaller.eval(), (4,)) < 1e-5


def test_inputs_by_name_and_of_several_kinds() -> None:
    def forward(self: Any, codes: Tensor, scale: Tensor) -> dict[str, Tensor]:
        hidden = self.first(self.codes(codes)).relu() * scale[:, None]
        return {"logits": self.last(hidden)}

    parts = {"codes": nn.Embedding(9, 4), "first": nn.Linear(4, 6), "last": nn.Linear(6, 2)}
    model = Net(forward, **parts)
    with torch.no_grad():
        model.first.weight[:3] = 0
        model.first.bias[:3] = 0
    inputs = {"codes": torch.arange(5), "scale": torch.rand(5)}
    smaller: Any = woodbury.compact(model, inputs)
    assert smaller.first.out_features == 3
    assert torch.allclose(smaller(**inputs)["logits"], model(**inputs)["logits"], atol=1e-6)


def test_half_precision() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).bfloat16()
    with torch.no_grad():
        model[0].weight[:4] = 0
    smaller: Any = woodbury.compact(model, torch.randn(5, 8, dtype=torch.bfloat16))
    assert smaller[0].out_features == 4 and smaller[2].bias.dtype == torch.bfloat16


def refused(make: Callable[[], Any], example: Any, words: str) -> None:
    for call in (woodbury.compact, woodbury.coupled_channels):
        with pytest.raises(WoodburyError, match=words):
            call(make(), example)


def test_what_cannot_be_done_is_said_in_a_sentence() -> None:
    def fails(self: Any, x: Tensor) -> Tensor:
        raise KeyError("not today")

    x = torch.randn(4, 6)
    refused(lambda: nn.Linear(5, 2), x, "The model refuses the example.*shapes")
    refused(lambda: Net(fails, a=nn.Linear(6, 2)), x, "refuses the example.*not today")
    refused(lambda: nn.LazyLinear(3), x, "has no shape yet")
    refused(lambda: nn.ReLU(), x, "no parameters")
    refused(lambda: nn.Linear(6, 2).to("meta"), x, "meta")
    with pytest.raises(WrongType, match="model"):
        woodbury.compact(3, x)  # type: ignore[arg-type]
    broken = nn.Linear(6, 2)
    broken.weight.data[0, 0] = float("nan")
    with pytest.raises(WoodburyError, match="not finite"):
        woodbury.compact(broken, x)
    with pytest.raises(WoodburyError, match=r"No channel of the model .* outputs"):
        woodbury.coupled_channels(nn.Linear(6, 2), x)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    for call in (woodbury.compact, woodbury.coupled_channels):
        with pytest.raises(MissingDependency, match=r"pip install 'woodbury\[compact\]'"):
            call(nn.Linear(6, 2), torch.randn(4, 6))


def test_coupled_channels_are_what_is_added() -> None:
    model, shape, _ = made("residual")
    unit = coupled_units.coupled_channels(model, torch.randn(2, *shape))
    assert (unit.groups, unit.channels) == (3, 24)  # the sum, and one inside each of two blocks
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    sizes = {groups.shape[1]: len(groups) for groups in unit(space)}
    summed = 27 + 72 + 72  # filters of the first layer and of the last one of each block
    assert sizes == {72: 16, summed: 8}
    everything = woodbury.ParameterSpace.from_model(model)
    # with biases and norms: three filters, three biases and three norms of two numbers
    assert {groups.shape[1] for groups in unit(everything)} == {72 + 2, summed + 3 + 6}


def test_pruned_by_coupled_channels_then_compacted() -> None:
    model, shape, _ = made("residual")
    batches = [(torch.randn(16, *shape), torch.arange(16) % 3) for _ in range(2)]
    pruner = woodbury.Pruner(
        woodbury.mfac(32, 1e-2), unit=woodbury.coupled_channels(model, batches[0][0])
    )
    woodbury.prune(model, batches, 0.5, pruner=pruner)
    result = api.compacted(model, batches[0][0])
    assert result.parameters[1] < 0.55 * result.parameters[0]
    assert error(model, result.model, shape) < 1e-5


def test_units_of_another_model_are_refused() -> None:
    unit = woodbury.coupled_channels(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    )
    with pytest.raises(WoodburyError, match="No weight of the coupled channels"):
        unit(woodbury.ParameterSpace.from_model(nn.Linear(3, 2)))
