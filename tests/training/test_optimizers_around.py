"""Optimizers beside and around each other: pruned weights are zero at the end, or it is refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.training.gradual import Gradual
from woodbury.training.masks import hold_zeros

INPUTS = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
BATCHES = [(INPUTS[i : i + 8], LABELS[i : i + 8]) for i in range(0, 24, 8)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Lookahead(torch.optim.Optimizer):
    """Slow weights that follow the fast ones, and pull them back after every other step."""

    def __init__(self, inner: torch.optim.Optimizer, hooks: bool = True) -> None:
        if hooks:
            super().__init__(inner.param_groups, {})
        self.optimizer = inner
        self.param_groups = inner.param_groups
        self.state = {}  # type: ignore[assignment]
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.optimizer.step()
        self.steps += 1
        if self.steps % 2 == 0:
            fast = [p for group in self.param_groups for p in group["params"]]
            for slow, parameter in zip(self.slow, fast, strict=True):
                slow.lerp_(parameter, 0.5)
                parameter.copy_(slow)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware: the gradient is taken where the loss is largest nearby."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def climb(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["old"] = parameter.clone()
            parameter.add_(parameter.grad, alpha=0.1)

    @torch.no_grad()
    def descend(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.copy_(self.state[parameter]["old"])
        self.base_optimizer.step()


def train(model: nn.Module, step: Callable[[Callable[[], None]], None], times: int = 3) -> None:
    for inputs, labels in BATCHES * times:

        def gradients(inputs: Tensor = inputs, labels: Tensor = labels) -> None:
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()

        gradients()
        step(gradients)


def zeros(model: nn.Module) -> float:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return sum(int((p == 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)


def in_turn(*optimizers: torch.optim.Optimizer) -> Callable[[Callable[[], None]], None]:
    def step(_: Callable[[], None]) -> None:
        for optimizer in optimizers:
            optimizer.step()

    return step


def in_two_steps(sam: SAM, gradients: Callable[[], None]) -> None:
    sam.climb()
    gradients()
    sam.descend()


@pytest.mark.parametrize("name", ["Muon beside AdamW", "Lookahead", "SAM"])
def test_gradual_pruning_keeps_its_zeros(name: str) -> None:
    model = network()
    if name == "Muon beside AdamW":
        matrix = model.get_parameter("2.weight")
        given: torch.optim.Optimizer = torch.optim.Muon([matrix], lr=0.02)
        rest = [p for p in model.parameters() if p is not matrix]
        step = in_turn(given, torch.optim.AdamW(rest, lr=0.01))
    elif name == "Lookahead":
        given = Lookahead(torch.optim.Adam(model.parameters(), lr=0.01))
        step = in_turn(given)
    else:
        given = SAM(model)
        step = partial(in_two_steps, given)
    gradual = Gradual(model, given, BATCHES, 0.5, start=3, end=6, steps=2)
    train(model, step)
    assert gradual.step == 9
    assert zeros(model) == gradual.sparsity == 0.5


def test_masks_hold_for_an_optimizer_that_was_not_given() -> None:
    model = network()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)

    step = in_turn(first, second)
    train(model, step, times=1)
    keep = {"0.weight": torch.rand(8, 6) > 0.5, "2.weight": torch.rand(3, 8) > 0.5}
    hold = hold_zeros(first, model, keep)
    train(model, step, times=1)
    for name, mask in keep.items():
        assert not bool(model.get_parameter(name)[~mask].any())
    hold.remove()
    train(model, step, times=1)
    assert bool(model.get_parameter("2.weight")[~keep["2.weight"]].any())


def test_a_wrapper_without_hooks_is_refused_at_construction() -> None:
    model = network()
    wrapper = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), hooks=False)
    with pytest.raises(WoodburyError, match="A Lookahead around an optimizer may move weights"):
        Gradual(model, wrapper, BATCHES, 0.5, end=4, steps=2)
    with pytest.raises(WoodburyError, match="A Lookahead around an optimizer may move weights"):
        hold_zeros(wrapper, model)


class PlainLookahead:
    """One that is no torch optimizer, and keeps its slow weights under a name of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.slow = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self) -> str:
        self.optimizer.step()
        for slow, fast in zip(self.slow, self.optimizer.param_groups[0]["params"], strict=True):
            slow.lerp_(fast, 0.5)
            fast.copy_(slow)
        return "stepped"


class Slotted(PlainLookahead):
    """One of which nothing can be replaced."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "step":
            raise AttributeError(name)
        super().__setattr__(name, value)


def test_a_wrapper_that_is_no_torch_optimizer_revives_nothing() -> None:
    model = network()
    wrapper: Any = PlainLookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    gradual = Gradual(model, wrapper, BATCHES, 0.5, start=3, end=6, steps=2)
    train(model, lambda _: wrapper.step())
    assert zeros(model) == gradual.sparsity == 0.5
    assert wrapper.step() == "stepped"
    gradual.remove()
    assert "step" not in vars(wrapper)
    train(model, lambda _: wrapper.step(), times=1)
    assert zeros(model) < 0.5


def test_a_wrapper_whose_step_was_set_before_has_that_again() -> None:
    model = network()
    wrapper: Any = PlainLookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    own = wrapper.step = lambda: PlainLookahead.step(wrapper)
    hold = hold_zeros(wrapper, model, {"0.weight": torch.zeros(8, 6, dtype=torch.bool)})
    train(model, lambda _: wrapper.step(), times=1)
    assert not model.get_parameter("0.weight").any()
    hold.remove()
    assert wrapper.step is own


def test_a_wrapper_that_takes_no_hook_is_refused() -> None:
    model = network()
    wrapper: Any = Slotted(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(WoodburyError, match=r"A Slotted around an optimizer .* takes no hook"):
        Gradual(model, wrapper, BATCHES, 0.5, end=4, steps=2)


def test_sparsity_is_that_of_the_model() -> None:
    model = network()
    gradual = Gradual(model, torch.optim.SGD(model.parameters(), 0.1), BATCHES, 0.5, end=1, steps=1)
    train(model, lambda _: gradual._hold.optimizer.step(), times=1)
    assert gradual.sparsity == 0.5
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1)
    assert gradual.sparsity == zeros(model) < 0.5


@pytest.mark.hears_the_end
@pytest.mark.parametrize("ending", ["remove", "forget"])
def test_a_pruning_step_that_was_not_reached_is_said(
    ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    gradual = Gradual(model, optimizer, BATCHES, 0.5, end=9, steps=2)
    train(model, in_turn(optimizer), times=1)
    if ending == "remove":
        gradual.remove()
    del gradual, model, optimizer
    gc.collect()
    said = capsys.readouterr().err
    assert "ended after step 3, before the pruning step after step 9" in said
    assert said.count("\n") == 1


CALIBRATION: dict[str, tuple[list[Any], str]] = {
    "nothing": ([], "gave 0 of the 24"),
    "no label that counts": ([(INPUTS, torch.full_like(LABELS, -100))], "counts for nothing"),
    "a loss that is not finite": ([(INPUTS * float("nan"), LABELS)], "is nan"),
    "the same in the last batch": (
        [*BATCHES[:2], (INPUTS[:8] * float("inf"), LABELS[:8])],
        "not finite|is nan|is inf",
    ),
    "fewer samples than rows": (BATCHES[:1], "8"),
    "labels out of range": ([(INPUTS, LABELS + 7)], "out of bounds"),
}


@pytest.mark.parametrize("name", CALIBRATION)
def test_a_calibration_set_with_nothing_in_it_is_refused_before_training(name: str) -> None:
    from woodbury import Pruner, mfac

    model = network()
    batches, sentence = CALIBRATION[name]
    with pytest.raises(WoodburyError, match=sentence):
        Gradual(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            batches,
            0.5,
            end=4,
            steps=2,
            pruner=Pruner(mfac(24)),
        )


def unfinished() -> Gradual:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    gradual = Gradual(model, optimizer, BATCHES, 0.5, start=2, end=9, steps=2)
    train(model, lambda _: optimizer.step(), times=1)
    return gradual


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1),
        ("step", 1.5),
        ("keep", None),
        ("keep", torch.ones(3, dtype=torch.bool)),
        ("sparsities", [0.5]),
        ("sparsities", [0.2, float("nan")]),
        ("history", [{"step": 1}]),
        ("settings", None),
        ("engine", "fast"),
    ],
)
def test_a_state_is_taken_as_a_whole_or_not_at_all(key: str, value: Any) -> None:
    saved = unfinished().state_dict()
    assert saved["engine"] in ("hooked", "vmapped", "looped")
    model = network()
    gradual = Gradual(
        model, torch.optim.SGD(model.parameters(), 0.1), BATCHES, 0.5, start=2, end=9, steps=2
    )
    before, weights = str(gradual.state_dict()), model.get_parameter("0.weight").detach().clone()
    with pytest.raises(WoodburyError):
        gradual.load_state_dict(saved | {key: value})
    assert str(gradual.state_dict()) == before
    torch.testing.assert_close(model.get_parameter("0.weight").detach(), weights, rtol=0, atol=0)
    gradual.load_state_dict(saved)
    assert gradual.engine == saved["engine"]
