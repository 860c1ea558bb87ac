"""FLOPs against counts by hand, on the layers of convolutional nets and of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.model.flop_count import Flops, flops
from woodbury.model.space import ParameterSpace
from woodbury.pruning import costs
from woodbury.pruning.api import prune
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero


def per_weight(model: nn.Module, *shape: int, samples: int = 3) -> dict[str, float]:
    return dict(flops(model, torch.zeros(samples, *shape)).per_weight)


def test_convolutions_count_output_pixels_and_linear_layers_one() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(72, 5),
    )
    assert per_weight(net, 1, 8, 8) == {
        **{f"0.{name}": 2 * 9 for name in ("weight", "bias")},
        **{f"1.{name}": 2 * 9 for name in ("weight", "bias")},
        **{f"3.{name}": 2 for name in ("weight", "bias")},
    }
    cost = flops(net, torch.zeros(1, 1, 8, 8))
    total = sum(
        cost.per_weight[name] * p.numel() for name, p in net.named_parameters() if p.ndim > 1
    )
    assert total == 2 * (9 * 4 * 9 + 9 * 8 * 9 + 72 * 5)  # a group's kernel sees one channel


@pytest.mark.parametrize(
    ("layer", "shape", "positions"),
    [
        (nn.Conv1d(2, 3, 3), (2, 10), 8),
        (nn.Conv3d(1, 2, 2), (1, 3, 4, 5), 2 * 3 * 4),
        (nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 4, 5), 20),
        (nn.Linear(4, 7), (6, 4), 6),
        (nn.Linear(4, 7), (), None),
        (nn.BatchNorm2d(5), (5, 3, 2), 6),
        (nn.GroupNorm(2, 4), (4, 3, 3), 9),
        (nn.LayerNorm(4), (6, 4), 6),
        (nn.LSTM(4, 5, batch_first=True), (6, 4), 6),
    ],
)
def test_positions_of_every_layer(
    layer: nn.Module, shape: tuple[int, ...], positions: int | None
) -> None:
    found = per_weight(layer, *(shape or (4,)))
    assert set(found.values()) == {2.0 * (positions or 1)}


def test_attention_and_encoder_layers_count_tokens() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x)[0]

    assert set(per_weight(Attention(), 5, 8).values()) == {10.0}
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert set(per_weight(encoder, 5, 8).values()) == {10.0}
    assert set(per_weight(encoder.requires_grad_(False).eval(), 5, 8).values()) == {
        10.0
    }  # the fused path


def test_tied_weights_add_up_and_embeddings_are_free() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.free, self.head = (
                nn.Embedding(10, 4),
                nn.Embedding(7, 4),
                nn.Linear(4, 10, bias=False),
            )
            self.head.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.table(tokens) + self.free(tokens))

    found = flops(Tied(), {"tokens": torch.zeros(2, 6, dtype=torch.int64)})
    assert found.per_weight == {"table.weight": 12.0, "free.weight": 0.0}
    with pytest.raises(WoodburyError, match=r"A cost in 'free\.weight' is zero"):
        Pruner(cost=found).budget(ParameterSpace.from_model(Tied()), 0.5)


def test_a_layer_that_is_called_twice_counts_twice_and_an_unused_one_not() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.shared = nn.Parameter(torch.zeros(4, 4)), nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.shared(x)) @ self.own

    assert per_weight(Twice(), 3, 4) == {"own": 6.0, "shared.weight": 12.0}


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flops(net, torch.randn(5, 4))
    torch.testing.assert_close(net.state_dict(), before)
    assert net.training and all(not module._forward_hooks for module in net.modules())
    with pytest.raises(
        WoodburyError,
        match=r"The model refuses the inputs that its FLOPs are counted on\. \(RuntimeError",
    ):
        flops(net, torch.randn(5, 3))
    assert all(not module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("power", [None, 0.5, 1.0])
def test_a_target_of_flops_is_met_within_a_percent(share: float, power: float | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10)
    )
    x = torch.randn(4, 1, 8, 8)
    cost = flops(net, x)
    dense = {
        n: float(cost.per_weight[n]) * p.numel() for n, p in net.named_parameters() if p.ndim > 1
    }
    per = None if power is None else costs.power(cost, power)
    pruned = prune(
        net,
        [(x, torch.zeros(4).long())],
        share,
        pruner=Pruner(None, magnitude, zero, cost=cost, normalize_by=per),
    )
    left = sum(
        cost.per_weight[n] * int(p.count_nonzero()) for n, p in net.named_parameters() if p.ndim > 1
    )
    assert left / sum(dense.values()) == pytest.approx(1 - share, abs=0.01)
    assert left >= (1 - share) * sum(dense.values())
    assert abs(pruned.sparsity - share) > 0.005  # it is another thing than a share of weights


def test_unknown_names_are_told() -> None:
    with pytest.raises(WoodburyError, match=r"The FLOPs of '0\.weight' are not known"):
        Flops({"weight": 2.0})(ParameterSpace.from_model(nn.Sequential(nn.Linear(2, 2))))


def test_transposed_linear_layers_of_transformers() -> None:
    module: Any = pytest.importorskip("transformers.pytorch_utils")
    assert per_weight(module.Conv1D(12, 4), 5, 4) == {"weight": 10.0, "bias": 10.0}
