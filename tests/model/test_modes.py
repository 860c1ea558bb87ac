"""Eval mode, and what is restored after it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import woodbury
from woodbury.model.modes import eval_mode


def test_recurrences_go_without_cudnn_which_has_no_backward_in_eval_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    for model, expected in (
        (nn.Sequential(nn.GRU(2, 3)), False),
        (nn.Sequential(nn.Linear(2, 3)), True),
    ):
        with pytest.raises(KeyError), eval_mode(model):
            assert torch.backends.cudnn.enabled is expected
            raise KeyError
        assert torch.backends.cudnn.enabled is True


def test_each_module_has_its_own_mode_again_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    with pytest.raises(KeyError), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]


def test_a_padding_mask_goes_through_an_encoder() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.last(self.encoder(x, src_key_padding_mask=padding)[:, 0])

    padding = torch.arange(5)[None] >= torch.tensor([2, 5, 3, 4])[:, None]
    batches = [((torch.randn(4, 5, 8), padding), torch.arange(4) % 3)]
    fast = torch.backends.mha.get_fastpath_enabled()
    with eval_mode(nn.Identity()):
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert woodbury.prune(Encoder(), batches, 0.5).sparsity == 0.5


def test_only_flags_are_set_whatever_the_models_own_train_does() -> None:
    class Stubborn(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Stubborn:
            return super().train(True)

    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> Merging:
            if not mode:
                self.weight.data += 1
            return super().train(mode)

    model = nn.Sequential(Merging(6, 4), Stubborn(4), nn.Linear(4, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [(torch.randn(16, 6), torch.arange(16) % 3)]
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    woodbury.Objective.from_model(model, batches).loss()
    woodbury.influence(model, batches, batches, damping=0.1)
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    moved = {"0.weight", "2.weight"}
    woodbury.prune(model, batches, 0.5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in moved), name
