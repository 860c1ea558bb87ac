"""export_onnx: the file computes what the network does, on any batch, and takes less with zeros."""

from __future__ import annotations

import inspect
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_pruning

from woodbury.errors import MissingDependency, WoodburyError, WrongType
from woodbury.integrations.onnx import OnnxFile, export_onnx, exporting

onnx = pytest.importorskip("onnx", reason="the export needs onnx, onnxscript and onnxruntime")
pytest.importorskip("onnxscript", reason="the export needs onnx, onnxscript and onnxruntime")
runtime = pytest.importorskip("onnxruntime", reason="the export is checked in onnxruntime")
if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
    pytest.skip("this torch exports no batches of any size", allow_module_level=True)


def network() -> Any:
    """A CNN in training mode, a layer of which is masked, one mostly zero, and one half zero."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 5),
    )
    torch_pruning.l1_unstructured(model[4], "weight", amount=0.9)
    with torch.no_grad():
        model[6].weight.mul_(torch.rand(64, 64) < 0.5)
        model(torch.randn(64, 3, 4, 4))  # statistics of BatchNorm that are not 0 and 1
    return model


class Made(NamedTuple):
    model: Any
    file: OnnxFile
    proto: Any


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    model = network()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    file = export_onnx(model, torch.randn(1, 3, 4, 4), path)  # one sample, as many people have
    return Made(model, file, onnx.load(path))


def answers(path: Path, inputs: Tensor) -> Tensor:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_onnxruntime_says_what_torch_does_on_any_batch(made: Made, samples: int) -> None:
    inputs = torch.randn(samples, 3, 4, 4)
    with torch.no_grad():
        truth = made.model.eval()(inputs)
    torch.testing.assert_close(answers(made.file.path, inputs), truth, rtol=1e-5, atol=1e-5)
    assert made.file.difference < 1e-5


def test_the_file_is_valid_and_its_batch_has_a_name(made: Made) -> None:
    onnx.checker.check_model(made.proto)
    shapes = {
        each.name: [side.dim_param or side.dim_value for side in each.type.tensor_type.shape.dim]
        for each in (*made.proto.graph.input, *made.proto.graph.output)
    }
    assert shapes == {"input": ["batch", 3, 4, 4], "output": ["batch", 5]}


def test_zeros_are_left_out_where_that_is_smaller(made: Made) -> None:
    graph = made.proto.graph
    (sparse,) = graph.sparse_initializer
    assert sparse.values.name == "4.weight" and list(sparse.dims) == [64, 128]
    values = torch.from_numpy(onnx.numpy_helper.to_array(sparse.values).copy())
    places = torch.from_numpy(onnx.numpy_helper.to_array(sparse.indices).copy())
    weight = torch.zeros(64 * 128).index_copy_(0, places, values).view(64, 128)
    assert torch.equal(weight, made.model[4].weight)
    assert {"6.weight", "8.weight"} <= {each.name for each in graph.initializer}
    dense, without_zeros = made.file.sizes
    assert without_zeros.plain == made.file.path.stat().st_size
    saved = 4 * 64 * 128 - (4 + 8) * int(weight.count_nonzero())
    assert saved - 200 < dense.plain - without_zeros.plain < saved
    assert made.file.sparse == 1 and not made.file.note


def test_the_model_is_left_as_it_was(made: Made) -> None:
    (hook,) = made.model[4]._forward_pre_hooks.values()
    assert isinstance(hook, torch_pruning.L1Unstructured)
    assert "4.weight_mask" in made.model.state_dict()
    assert all(parameter.requires_grad for parameter in made.model.parameters())


@pytest.fixture
def exported_before(made: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The exporter gives what it gave before, with dense weights; all else runs."""
    weights = onnx.numpy_helper.from_array(made.model[4].weight.detach().numpy(), "4.weight")

    def dense(*_: Any) -> Any:
        proto = onnx.ModelProto()
        proto.CopyFrom(made.proto)
        del proto.graph.sparse_initializer[:]
        proto.graph.initializer.append(weights)
        return proto

    monkeypatch.setattr(exporting, "_exported", dense)
    return made


def test_outputs_that_differ_are_refused(exported_before: Made, tmp_path: Path) -> None:
    example = torch.randn(2, 3, 4, 4)
    with pytest.raises(WoodburyError, match=r"outputs differ from torch's by .*e-0\d of the"):
        export_onnx(exported_before.model, example, tmp_path / "model.onnx", tolerance=1e-12)
    other = network()
    with torch.no_grad():
        other[8].bias.add_(1)
    with pytest.raises(WoodburyError, match="take a larger tolerance"):
        export_onnx(other, example, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("theirs", "difference"),
    [
        ([1.0, float("nan"), float("inf"), 4.0], 0.0),
        ([1.0, float("nan"), float("inf"), 3.0], 0.25),
        ([float("nan"), float("nan"), float("inf"), 4.0], float("inf")),
        ([1.0, 2.0, float("inf"), 4.0], float("inf")),
        ([1.0, float("nan"), 5.0, 4.0], float("inf")),
        ([1.0], float("inf")),
    ],
)
def test_what_is_not_finite_is_compared_too(theirs: list[float], difference: float) -> None:
    ours = torch.tensor([1.0, float("nan"), float("inf"), 4.0])
    assert exporting._relative(ours, torch.tensor(theirs)) == difference


def test_zeros_are_stored_where_onnxruntime_cannot_leave_them_out(
    exported_before: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misplaced(proto: Any) -> int:
        for tensor in proto.graph.initializer:
            if tensor.name == "4.weight":
                tensor.dims[:] = [128, 64]
        return 1

    monkeypatch.setattr(exporting, "leave_zeros_out", misplaced)
    path = tmp_path / "model.onnx"
    file = export_onnx(exported_before.model, torch.randn(2, 3, 4, 4), path)
    assert file.note.startswith("Zeros are stored: onnxruntime does not run") and not file.sparse
    assert len(file.sizes) == 1 and file.sizes[0].plain == path.stat().st_size


def test_zeros_are_stored_on_demand(exported_before: Made, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    example = torch.randn(2, 3, 4, 4)
    file = export_onnx(exported_before.model, example, path, sparse=False)
    assert not onnx.load(path).graph.sparse_initializer and not file.sparse


def test_a_full_disk_leaves_the_file_that_was_there(exported_before: Made, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    bound = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, bound[1]))
        with pytest.raises(WoodburyError, match=r"cannot be written .*a place with room"):
            export_onnx(exported_before.model, torch.randn(2, 3, 4, 4), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bound)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


class Eigenvalues(nn.Module):
    def forward(self, matrices: Tensor) -> Tensor:
        return torch.linalg.eigvals(matrices).abs()


class OneBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 9)


class ByItsData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "nothing"


SQUARE = torch.randn(2, 3, 3)


@pytest.mark.parametrize(
    ("build", "example", "sentence"),
    [
        pytest.param(
            Eigenvalues, SQUARE, "ONNX has no operator for aten.linalg_eig", marks=pytest.mark.slow
        ),
        (OneBatch, SQUARE, "refuses a batch of another size than the example's"),
        (Nothing, SQUARE, "The model returns no tensor"),
        (network, SQUARE, "The model refuses the example"),
        (network, torch.empty(0, 3, 4, 4), "The example has no samples"),
        (network, torch.tensor(1.0), "The example has no samples"),
        (network, {}, "The example has no samples"),
        pytest.param(ByItsData, SQUARE, "test_onnx.py, line", marks=pytest.mark.slow),
        (
            lambda: nn.Linear(2**15, 2**15, device="meta"),
            torch.randn(2, 2**15),
            "The weights take more than 2 GiB",
        ),
    ],
)
def test_what_cannot_be_exported(
    build: Callable[[], nn.Module], example: Any, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(WoodburyError, match=sentence) as refusal:
        export_onnx(build(), example, tmp_path / "model.onnx")
    assert "\n" not in str(refusal.value) and not list(tmp_path.iterdir())


def test_an_operator_that_onnx_has_not_is_named_from_a_chain_of_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, dynamic_shapes: Any, **__: Any) -> None:
        inner = "No ONNX function found for <OpOverload(op='aten.linalg_eig', overload='default')>."
        try:
            raise RuntimeError(f"{inner} Failure message: none")
        except RuntimeError as error:
            raise RuntimeError("Failed to convert the program.\n- Debug it.\n" * 9) from error

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(
        WoodburyError, match=r"no operator for aten\.linalg_eig: compute"
    ) as refusal:
        export_onnx(nn.Linear(2, 2), torch.randn(2, 2), tmp_path / "model.onnx")
    assert "\n" not in str(refusal.value) and not list(tmp_path.iterdir())


def test_inputs_that_are_no_tensors_and_texts_of_one_word(tmp_path: Path) -> None:
    with pytest.raises(WrongType, match="The input 'x' is a str: give a tensor"):
        export_onnx(nn.Identity(), {"x": "words"}, tmp_path / "model.onnx")
    with pytest.raises(WoodburyError, match=r"any_length is True .*shape \(3, 1\)"):
        export_onnx(nn.Identity(), torch.ones(3, 1), tmp_path / "model.onnx", any_length=True)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        exporting.importlib.util, "find_spec", lambda name: None if name == package else name
    )
    with pytest.raises(MissingDependency, match=rf"needs {package}: pip install 'woodbury\[onnx\]"):
        export_onnx(nn.Linear(2, 2), torch.randn(2, 2), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Bert", "GPT2"])
def test_models_of_transformers_take_texts_of_any_length(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "Bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.BertConfig(**sizes, intermediate_size=64, vocab_size=100)
        model = transformers.BertForSequenceClassification(config)
    else:
        config = transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=2, vocab_size=100, bos_token_id=1, eos_token_id=1
        )
        model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand_like(parameter) < 0.1)
    ids, mask = torch.randint(0, 100, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    mask[0, 5:] = 0
    path = tmp_path / "model.onnx"
    file = export_onnx(model, {"input_ids": ids, "attention_mask": mask}, path, any_length=True)
    assert file.sparse and not file.note and file.sizes[1].plain < file.sizes[0].plain
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    longer = {
        "input_ids": torch.randint(0, 100, (3, 11)),
        "attention_mask": torch.ones(3, 11).long(),
    }
    feed = {name: value.numpy() for name, value in longer.items()}
    (logits,) = session.run(["logits"], feed)
    with torch.no_grad():
        truth = model.eval()(**longer).logits
    torch.testing.assert_close(torch.from_numpy(logits), truth, rtol=1e-5, atol=1e-5)
