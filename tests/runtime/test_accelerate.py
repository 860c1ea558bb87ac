"""Accelerated models compute what dense ones do, whatever the layer, and refuse in a sentence."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import woodbury
from woodbury.errors import MissingDependency, WoodburyError
from woodbury.runtime import api, jobs, layers, layouts, measuring, products
from woodbury.runtime.layouts import Tiling, grid_of
from woodbury.runtime.measuring import Choice

pytest.importorskip("numba", reason="the sparse kernels need Numba")

TILINGS = (Tiling(1, 0), Tiling(2, 5), Tiling(8, 16), Tiling(4, 0))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "woodbury" / "runtime.json"


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tiling | None], None]:
    """Whatever is faster, layers run by one tiling."""

    def use(tiling: Tiling | None) -> None:
        choice = Choice(tiling, 2.0, 1.0)
        monkeypatch.setattr(measuring, "chosen", lambda key, dense, sparse: choice)
        monkeypatch.setattr(api, "_is_faster", lambda copy, model, example: True)

    return use


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def sparse(model: nn.Module, sparsity: float = 0.9) -> nn.Module:
    """A model in eval mode whose matrices and kernels have random zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            keep = torch.rand(parameter.shape, generator=generator) >= sparsity
            parameter.data.mul_(keep)
    return model.eval()


@torch.no_grad()
def error(model: nn.Module, fast: nn.Module, inputs: Any) -> float:
    """The largest difference of the outputs, relative to the float64 model's largest."""
    truth = copy.deepcopy(model).double()(inputs.double())
    output = fast(inputs)
    assert output.shape == truth.shape and output.dtype == torch.float32
    if not output.numel():
        return 0.0
    return float((output - truth).abs().max() / truth.abs().max().clamp(min=1e-3))


CONVOLUTIONS = {
    "1 × 1": {"kernel_size": 1},
    "3 × 3": {"kernel_size": 3, "padding": 1},
    "no padding": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "strided 1 × 1": {"kernel_size": 1, "stride": 2, "bias": False},
    "odd strides": {"kernel_size": (2, 7), "stride": (3, 2), "padding": (1, 3)},
    "dilated": {"kernel_size": (3, 5), "padding": (0, 2), "dilation": (2, 1)},
    "dilated and strided": {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 3},
    "same": {"kernel_size": 3, "padding": "same", "dilation": 3},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": 2, "stride": 2, "padding_mode": "circular"},
    "more padding than kernel": {"kernel_size": 1, "padding": 3},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 4},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 8},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, always: Any, threads: int) -> None:
    for sparsity in (0.6, 1.0):
        model = sparse(nn.Conv2d(8, 16, **CONVOLUTIONS[name]), sparsity)
        for tiling in TILINGS:
            always(tiling)
            fast = woodbury.accelerate(model)
            for shape in ((1, 8, 7, 7), (3, 8, 14, 9), (2, 8, 7, 21)):
                assert error(model, fast, torch.randn(shape)) < 1e-5
            assert woodbury.runtime.choices(fast)[0].choices[0].tiling == tiling


@pytest.mark.parametrize("tiling", TILINGS)
def test_linear_layers(tiling: Tiling, always: Any, threads: int) -> None:
    always(tiling)
    for inner, outer in ((40, 24), (1, 5), (17, 3), (5, 1), (9, 130)):
        for sparsity in (0.7, 1.0):
            model = sparse(nn.Linear(inner, outer, bias=outer != 3), sparsity)
            model.weight.data[0] = 0  # an empty row, and one layer whose zeros are few enough
            model.weight.data[:, : (inner + 1) // 2] = 0
            fast = woodbury.accelerate(model)
            for shape in ((inner,), (1, inner), (2, 37, inner), (130, inner), (0, inner)):
                assert error(model, fast, torch.randn(shape)) < 1e-5


class Conv1D(nn.Module):
    """That of transformers, whose import takes longer than all tests here."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(40, 24))
        self.bias = nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


@pytest.mark.parametrize("tiling", [Tiling(4, 16), None])
def test_conv1d_of_transformers(tiling: Tiling | None, always: Any) -> None:
    always(tiling)
    model = sparse(Conv1D())
    fast = woodbury.accelerate(model)
    assert type(fast) is layers.SparseConv1D
    assert error(model, fast, torch.randn(2, 5, 40)) < 1e-5
    assert error(model, fast, torch.randn(40)) < 1e-5


@pytest.mark.slow
def test_gpt2_of_transformers(always: Any) -> None:
    from support.trained_models import gpt

    always(Tiling(2, 16))
    model = sparse(gpt())
    tokens = torch.randint(0, 20, (2, 9))
    fast = woodbury.accelerate(model, {"input_ids": tokens})
    kinds = [type(module) for module in fast.modules()]
    assert kinds.count(layers.SparseConv1D) == 8
    with torch.inference_mode():
        torch.testing.assert_close(fast(tokens).logits, model(tokens).logits)


class Block(nn.Module):
    """Convolutions with a norm and an activation that is used twice, after a norm and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 4, 1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 16)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.relu(self.norm(self.first(x))))
        return self.gelu(self.head(self.relu(hidden + x).mean((2, 3))))


@pytest.fixture
def block() -> nn.Module:
    torch.manual_seed(0)
    model = sparse(Block(), 0.75)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    model.norm.weight.data.normal_()
    return model


def test_what_follows_a_layer_is_computed_with_it(block: Any, always: Any) -> None:
    always(Tiling(2, 0))
    x = torch.randn(2, 4, 6, 5)
    fast: Any = woodbury.accelerate(block, x)
    assert fast.first.run.following == [fast.norm, fast.relu]
    assert fast.second.run.following == []  # its output is added to something
    assert fast.head.run.following == [fast.gelu]
    for batch in (x, torch.randn(3, 4, 9, 8)):
        assert error(block, fast, batch) < 1e-5
    with torch.no_grad():  # the norm's numbers are read again where they change
        block.norm.bias += 1
        block.norm.running_var *= 2
    assert error(block, fast, x) < 1e-5
    fast.norm.train()  # statistics of the batch are no line: the norm works by itself
    block.norm.train()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), copy.deepcopy(block)(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sparse_seconds", [2.0, 0.5])
def test_a_network_that_gains_nothing_stays_dense(
    always: Any, monkeypatch: pytest.MonkeyPatch, sparse_seconds: float
) -> None:
    faster = api._is_faster
    always(Tiling(2, 0))
    monkeypatch.setattr(api, "_is_faster", faster)
    timed = {"sparse": [sparse_seconds] * 3, "dense": [1.0] * 3}
    monkeypatch.setattr(api, "in_turns", lambda ways, seconds: timed)
    model = sparse(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    x = torch.randn(5, 8)
    fast = woodbury.accelerate(model, x)
    reasons = {choice.reason for choice in woodbury.runtime.choices(fast)}
    if sparse_seconds < 1:
        assert reasons == {None}
    else:
        assert reasons == {"the whole network is no faster without its zeros."}
        assert type(fast.get_submodule("0")) is nn.Linear
    assert error(model, fast, x) < 1e-5


def test_gelu_is_right_everywhere(always: Any) -> None:
    always(Tiling(1, 0))
    model = nn.Sequential(nn.Linear(2, 1), nn.GELU()).eval()
    model[0].weight.data = torch.tensor([[1.0, 0.0]])
    model[0].bias.data.zero_()
    numbers = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([1e30, -1e30, 0.0])])
    x = torch.stack([numbers, numbers], 1)
    fast = woodbury.accelerate(model, x)
    assert fast[0].run.activation == "gelu"
    with torch.no_grad():
        truth = model.double()(x.double())
        model.float()
        wrong = (fast(x) - truth).abs() / truth.abs().clamp(min=1)
    assert wrong.max() < 1e-6


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(inplace=True)])
def test_bounds(activation: nn.Module, always: Any) -> None:
    always(Tiling(2, 3))  # the bound holds for the sum over all blocks alone
    model = sparse(nn.Sequential(nn.Linear(9, 30), activation), 0.5)
    model[0].weight.data.mul_(20)
    x = torch.randn(50, 9)
    fast = woodbury.accelerate(model, x)
    assert fast[0].run.following == [fast[1]]
    assert error(model, fast, x) < 1e-5


def test_not_a_number_stays(always: Any) -> None:
    always(Tiling(1, 0))
    model = sparse(nn.Sequential(nn.Linear(4, 3), nn.ReLU6()), 0.5)
    model[0].weight.data[0, 0] = float("nan")
    x = torch.randn(5, 4)
    with torch.no_grad():
        fast = woodbury.accelerate(model, x)
        assert torch.equal(fast(x).isnan(), model(x).isnan())


def test_copies_and_pickles_work_by_themselves(block: Any, always: Any) -> None:
    always(Tiling(4, 0))
    x = torch.randn(2, 4, 6, 5)
    fast = woodbury.accelerate(block, x)
    twin = copy.deepcopy(fast)
    again = pickle.loads(pickle.dumps(fast))
    assert list(fast.state_dict()) == list(block.state_dict())
    with torch.no_grad():
        fast.second.weight.zero_()  # shared with the model, not with the copies
    assert error(block, fast, x) < 1e-5
    block.second.weight.data.copy_(twin.second.weight)
    for other in (twin, again):
        assert other.norm.forward.module is other.norm
        assert error(block, other, x) < 1e-5


def test_the_model_is_left_as_it_is(block: Any, always: Any) -> None:
    always(Tiling(4, 0))
    block.train()
    before = copy.deepcopy(block.state_dict())
    woodbury.accelerate(block, torch.randn(2, 4, 6, 5))
    assert block.training and type(block.first) is nn.Conv2d
    assert all(p.requires_grad for p in block.parameters())
    assert "forward" not in vars(block.norm) and not block.norm._forward_hooks
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_gradient_is_refused(always: Any) -> None:
    always(Tiling(1, 0))
    fast = woodbury.accelerate(sparse(nn.Linear(8, 8)))
    assert not fast(torch.randn(2, 8)).requires_grad  # no parameter of the copy asks for one
    with pytest.raises(WoodburyError, match="no gradients"):
        fast(torch.randn(2, 8, requires_grad=True))
    fast.requires_grad_()
    with pytest.raises(WoodburyError, match="no gradients"):
        fast(torch.randn(2, 8))
    with torch.inference_mode():
        fast(torch.randn(2, 8))


def test_what_is_left_dense_and_why() -> None:
    class Own(nn.Linear):
        pass

    hooked, masked, normed, full = (nn.Linear(8, 8) for _ in range(4))
    hooked.register_forward_hook(lambda module, inputs, output: None)
    model = sparse(
        nn.Sequential(
            *(hooked, masked, Own(8, 8), parametrizations.orthogonal(normed)),
            *(nn.Linear(8, 8).double(), nn.Linear(8, 8).half()),
        )
    )
    prune.identity(masked, "weight")
    model.append(full)
    fast = woodbury.accelerate(model, measure=False)
    reasons = [choice.reason or "" for choice in woodbury.runtime.choices(fast)]
    words = ["hooks", "hooks", "type", "type", "float64", "float16", "fewer than half"]
    assert len(reasons) == len(words)
    for reason, word in zip(reasons, words, strict=True):
        assert word in reason


def test_a_dense_layer_that_is_faster_stays(always: Any) -> None:
    always(None)
    model = nn.Sequential(sparse(nn.Linear(8, 8)), nn.ReLU())
    fast = woodbury.accelerate(model, torch.randn(2, 8))
    assert type(fast[0]) is nn.Linear
    assert "faster" in str(woodbury.runtime.choices(fast)[0])
    assert error(model, fast, torch.randn(2, 8)) < 1e-6
    later = woodbury.accelerate(model)
    assert error(model, later, torch.randn(2, 8)) < 1e-6


def test_other_types_and_devices() -> None:
    with pytest.raises(WoodburyError, match=r"takes a torch\.nn\.Module"):
        woodbury.accelerate([1])  # type: ignore[arg-type]
    with pytest.raises(WoodburyError, match="is on meta"):
        woodbury.accelerate(nn.Linear(2, 2, device="meta"))
    with pytest.raises(WoodburyError, match="refuses the example"):
        woodbury.accelerate(sparse(nn.Linear(8, 8)), torch.randn(2, 3))
    fast = woodbury.accelerate(sparse(nn.Linear(8, 8)), measure=False).double()
    with torch.no_grad():
        assert fast(torch.randn(2, 8).double()).dtype == torch.float64
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast = woodbury.accelerate(sparse(nn.Linear(8, 8)), measure=False)
        assert fast(torch.randn(2, 8)).dtype == torch.bfloat16


def test_torch_compile_makes_its_own_products(
    block: Any, always: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    always(Tiling(2, 0))
    x = torch.randn(2, 4, 6, 5)
    fast = woodbury.accelerate(block, x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(products, "_multiply", lambda *_: pytest.fail("a kernel was called"))
    assert error(block, fast, x) < 1e-5


def test_a_trial_is_made_once_and_remembered(own_cache: Path) -> None:
    calls = []
    ways = {Tiling(1, 0): lambda: calls.append("sparse")}

    def dense() -> None:
        calls.append("dense")
        torch.randn(200, 200) @ torch.randn(200, 200)

    choice = measuring.chosen("a product", dense, ways)
    assert choice.tiling == Tiling(1, 0) and choice.sparse_seconds < choice.dense_seconds
    count = len(calls)
    assert measuring.chosen("a product", dense, ways) == choice and len(calls) == count
    assert len(json.loads(own_cache.read_text())) == 1
    own_cache.write_text("{ broken")
    assert measuring.chosen("a product", dense, ways).tiling == Tiling(1, 0)
    assert len(calls) > count


def test_a_cache_folder_that_cannot_be_written(own_cache: Path) -> None:
    own_cache.parent.parent.write_text("a file where the folder would be")
    model = sparse(nn.Linear(64, 64))
    fast = woodbury.accelerate(model, torch.randn(8, 64))
    assert error(model, fast, torch.randn(8, 64)) < 1e-5


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    products.kernels.cache_clear()
    with pytest.raises(MissingDependency, match=r"pip install 'woodbury\[fast\]'"):
        woodbury.accelerate(nn.Linear(2, 2))


def test_a_numba_that_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "woodbury.runtime.kernels", None)
    monkeypatch.delattr(woodbury.runtime, "kernels", raising=False)
    products.kernels.cache_clear()
    with pytest.raises(WoodburyError, match="Numba cannot compile"):
        woodbury.accelerate(nn.Linear(2, 2))
    products.kernels.cache_clear()


def test_work_is_shared_by_units_or_by_rows(threads: int) -> None:
    weight = torch.eye(200)
    weight[:20, :150] = 1  # the first rows have most of the non-zeros
    packed = layouts.pack(weight, torch.zeros(200), Tiling(1, 16))
    for units in (1, 2, 7):
        covered = torch.zeros(units, 200, dtype=torch.int)
        for first, last, top, bottom in jobs.shares(packed, units, threads):
            covered[first:last, top:bottom] += 1
            assert top % layouts.ROWS_AT_ONCE == 0
        assert (covered == 1).all()


@pytest.mark.parametrize(
    ("machine", "cpu", "width", "instruction"),
    [
        ("x86_64-linux-gnu", "skylake-avx512", 16, "%zmm"),
        ("x86_64-linux-gnu", "znver3", 8, "%ymm"),
        ("aarch64-linux-gnu", "neoverse-n1", 4, "fmla"),
        ("x86_64-linux-gnu", "x86-64", 4, "mulps"),
    ],
)
def test_the_code_is_that_of_the_machine(
    machine: str, cpu: str, width: int, instruction: str
) -> None:
    """One multiply-add for each register of columns, whatever the CPU; none is run here."""
    from llvmlite import binding, ir

    from woodbury.runtime.codegen import FLOAT, LONG, emit_rows

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [LONG] * 11 + [FLOAT] * 2)
    function = ir.Function(module, kind, "rows")
    builder = ir.IRBuilder(function.append_basic_block())
    emit_rows(builder, 8, width, function.args)
    builder.ret_void()
    try:
        target = binding.Target.from_triple(machine)
    except RuntimeError:
        pytest.skip(f"this LLVM makes no code for {machine}")
    code = target.create_target_machine(cpu=cpu, opt=3).emit_assembly(
        binding.parse_assembly(str(module))
    )
    products = [line for line in code.splitlines() if re.match(r"\s(vfm|fmla|mulps)", line)]
    assert len(products) == 8
    assert all(instruction in line for line in products)


def test_a_grid_needs_an_image_as_large_as_the_kernel() -> None:
    assert grid_of(nn.Conv2d(1, 1, 3), (2, 9)) is None
    fast = woodbury.accelerate(sparse(nn.Conv2d(4, 4, 3)), measure=False)
    with torch.no_grad(), pytest.raises(RuntimeError):
        fast(torch.randn(1, 4, 2, 9))
    with torch.no_grad():
        assert fast(torch.randn(4, 9, 9)).shape == (4, 7, 7)  # one image without a batch
        assert fast(torch.randn(0, 4, 9, 9)).shape == (0, 4, 7, 7)


def test_estimates_follow_the_zeros() -> None:
    few = measuring.estimated(500, 100, 100, 64, 2 * 1e4 * 64, 8)
    many = measuring.estimated(9_900, 100, 100, 64, 2 * 1e4 * 64, 8)
    assert few.tiling is not None and many.tiling is None


def test_gelus_are_known_by_their_values() -> None:
    class QuickGELU(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(1.702 * x)

    kinds = [nn.ReLU(), nn.GELU(), nn.GELU("tanh"), QuickGELU(), nn.Tanh(), nn.ReLU6()]
    assert [layers.activation_of(kind) for kind in kinds] == ["relu", "gelu", *[None] * 3, "relu6"]
