"""Eval mode, and what is restored after it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
