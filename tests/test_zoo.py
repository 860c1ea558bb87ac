"""Every public entry on every row of the zoo: right, or refused by a sentence; nothing left behind.

Gradient rows are compared with a loop over samples of the user's own backward pass in float64.
"""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.cli import woodbury as command
from support.unchanged import unchanged
from support.zoo import ROWS, Batches, Row
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import woodbury
from woodbury import Objective, ParameterSpace, Pruner, WoodburyError
from woodbury.estimation.engines import looped
from woodbury.estimation.gradients import gradient_rows
from woodbury.estimation.labels import observed
from woodbury.evaluation.comparison import compare
from woodbury.evaluation.methods import Method
from woodbury.limits import Limits
from woodbury.model.space import matches
from woodbury.model.wrappers import bare
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero
from woodbury.training.finetuning import finetune

COUNT = 9
"""Samples that every row has at least."""

MAGNITUDE = Pruner(None, magnitude, zero)
MFAC = Pruner(woodbury.mfac(COUNT, 0.1))
CHANNELS = Pruner(woodbury.mfac(COUNT, 0.1), unit=woodbury.units.output_channels)


class Case(NamedTuple):
    """A row that was built."""

    row: Row
    model: Any
    batches: Batches

    @property
    def space(self) -> ParameterSpace:
        options = {"min_ndim": 1 if self.row.options.get("include") == "*" else 2}
        return ParameterSpace.from_model(self.model, **{**options, **self.row.options})

    def objective(self) -> Objective:
        return Objective.from_model(self.model, self.batches, self.row.likelihood, self.space)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=1e-3)

    def train(self, optimizer: Any, steps: int = 4) -> None:
        """The user's own loop."""
        self.model.train()
        batches = [batch for batch in self.batches if _size(batch[0]) > 1]
        for step in range(steps):
            inputs, target = batches[step % len(batches)]
            optimizer.zero_grad()
            self.row.likelihood.loss(_called(self.model, _copied(inputs)), target).backward()
            optimizer.step()


def built(row: Row) -> Case:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit and quantized tensors are on their way out
        model = row.build()
    return Case(row, model.train(), row.data())


def _copied(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)


def _called(model: Any, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _size(inputs: Any) -> int:
    if isinstance(inputs, Tensor):
        return len(inputs)
    children = inputs.values() if isinstance(inputs, dict) else inputs
    return max((_size(child) for child in children if not isinstance(child, bool)), default=0)


def _sample(tree: Any, index: int, size: int) -> Any:
    """One sample of a batch, cut by a rule of the test's own."""
    if isinstance(tree, Tensor):
        return tree[index : index + 1].clone()
    if isinstance(tree, dict):
        return {name: _sample(part, index, size) for name, part in tree.items()}
    if isinstance(tree, list) and len(tree) == size and isinstance(tree[0], dict):
        return [tree[index]] if "boxes" in tree[0] else [_sample(t, index, size) for t in tree]
    if isinstance(tree, (list, tuple)):
        return type(tree)(_sample(part, index, size) for part in tree)
    return tree


def _in_double(tree: Any) -> Any:
    return tree_map(
        lambda leaf: (
            leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        ),
        tree,
    )


def true_rows(case: Case, space: ParameterSpace) -> Tensor:
    """The gradient of each single sample, by the user's own backward pass."""
    model = bare(built(case.row).model).double().eval()
    model.load_state_dict(bare(case.model).state_dict())
    named = dict(model.named_parameters())
    for name in space.shapes:
        named[name].requires_grad_()
    rows = []
    for inputs, target in case.batches:
        size = _size(inputs)
        for index in range(size):
            model.zero_grad()
            one, label = _sample(inputs, index, size), _sample(target, index, size)
            case.row.likelihood.loss(_called(model, one), label).backward()
            row = [
                torch.zeros_like(named[name])
                if named[name].grad is None
                else named[name].grad.to_dense()
                for name in space.shapes
            ]
            rows.append(torch.cat([part.flatten() for part in row]))
    return torch.stack(rows)


def rows_are_those_of_single_samples(case: Case) -> None:
    if case.row.double:
        case = Case(case.row, case.model.double(), _in_double(case.batches))
    with unchanged(case.model, case.batches):
        objective = case.objective()
        found = gradient_rows(objective, COUNT)
        one_by_one = gradient_rows(objective, COUNT, engine=looped)
    torch.testing.assert_close(found, one_by_one, rtol=1e-3, atol=1e-5)
    if case.row.double:
        truth = true_rows(case, objective.space)[:COUNT]
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-9)
        assert bool((truth != 0).any())
        v = torch.linspace(-1, 1, objective.space.d, dtype=torch.float64)
        fisher = woodbury.mfac(COUNT, 0.1, engine=looped)(objective)
        torch.testing.assert_close(fisher @ v, 0.1 * v + truth.T @ (truth @ v) / COUNT)


def recipe(estimate: Callable[[Objective], woodbury.fisher.Fisher]) -> Callable[[Case], None]:
    def estimated(case: Case) -> None:
        with unchanged(case.model, case.batches):
            objective = case.objective()
            fisher = estimate(objective)
            ones = torch.ones_like(objective.weights)
            assert bool(fisher.solve(ones).isfinite().all())
            assert bool((fisher.diagonal() > 0).all())

    return estimated


def zeros_of(case: Case, space: ParameterSpace) -> int:
    named = dict(bare(case.model).named_parameters())
    return sum(int((named[name] == 0).sum()) for name in space.shapes)


def user_loss(case: Case) -> float:
    """The mean loss in eval mode, by the user's own call."""
    model = bare(built(case.row).model).eval()
    model.load_state_dict(bare(case.model).state_dict())
    total = samples = 0.0
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for inputs, target in case.batches:
        loss = case.row.likelihood.loss(_called(model, _copied(inputs)), target)
        total += _size(inputs) * float(loss.detach())
        samples += _size(inputs)
    torch.backends.mha.set_fastpath_enabled(fast)
    return total / samples


def pruned_by(**options: Any) -> Callable[[Case], None]:
    def prune(case: Case) -> None:
        given = {"likelihood": case.row.likelihood, **case.row.options}
        excluded = case.row.options.get("exclude", "")
        may_change = {
            name
            for name, parameter in case.model.named_parameters(remove_duplicate=False)
            if parameter.ndim >= 2 and parameter.is_floating_point() and not matches(name, excluded)
        }
        with unchanged(case.model, case.batches, but=may_change):
            pruned = woodbury.prune(case.model, case.batches, 0.5, **given, **options)
        space = pruned.objective.space
        assert pruned.sparsity == pytest.approx(0.5, abs=0.2 if "pruner" in options else 0.02)
        assert zeros_of(case, space) >= space.n - space.d > 0
        if case.row.double:
            assert pruned.objective.loss() == pytest.approx(user_loss(case), rel=1e-4, abs=1e-5)
        case.train(case.optimizer(), 2)

    return prune


def without_room_for_rows(case: Case) -> None:
    """As of a network of many weights: K-FAC by rows, one layer after the other."""
    with replace(Limits.current(), memory=64):
        pruned_by()(case)


def gradual(case: Case) -> None:
    optimizer = case.optimizer()
    given = {"likelihood": case.row.likelihood, **case.row.options}
    with unchanged(case.model, case.batches):
        made = woodbury.Gradual(case.model, optimizer, case.batches, 0.5, end=3, steps=2, **given)
    case.train(optimizer)
    assert case.model.training and len(made.history) == 2
    assert made.sparsity == pytest.approx(0.5, abs=0.02)
    assert zeros_of(case, made.space) >= made.space.n - made.space.d > 0


def mfac_optimizer(case: Case) -> None:
    trained = [p for p in case.model.parameters() if p.requires_grad]
    case.train(woodbury.MFAC(trained, lr=1e-3, window=4))
    assert all(bool(p.isfinite().all()) for p in trained)


def preconditioner(case: Case) -> None:
    optimizer = case.optimizer()
    made = woodbury.Preconditioner(
        optimizer,
        case.model,
        woodbury.mfac(COUNT, damping=0.1),
        case.batches,
        likelihood=case.row.likelihood,
        exclude=case.row.options.get("exclude", ()),
    )
    case.train(optimizer, 2)
    assert made.step == 2 and made.fisher is not None
    assert all(bool(p.isfinite().all()) for p in case.model.parameters())


def compared(case: Case) -> None:
    methods = {"obs": Method(Pruner(woodbury.mfac(COUNT))), "magnitude": Method(MAGNITUDE)}
    with unchanged(case.model, case.batches):
        objective = case.objective()
        results = compare(methods, [0.5], [0], lambda seed: objective, Objective.loss)
    assert [result.method for result in results] == ["obs", "magnitude"]
    assert all(math.isfinite(result.loss_after) for result in results)


def recalibrated(case: Case) -> None:
    norms = {
        f"{path}.{name}" if path else name
        for path, module in case.model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        for name in module._buffers
    }
    batches = [batch for batch in case.batches if _size(batch[0]) > 1]
    with unchanged(case.model, batches, but=norms):
        assert woodbury.recalibrate(case.model, batches) == len(norms) // 3


def planned(case: Case) -> None:
    given = {"likelihood": case.row.likelihood, **case.row.options}
    space = ParameterSpace.for_pruning(case.model, **case.row.options)
    with unchanged(case.model, case.batches):
        assert woodbury.plan(case.model, case.batches, 0.5, **given).weights == space.n


def inspected(case: Case) -> None:
    """As `prune`: the same models and data are taken, and the same are refused."""
    given = {"likelihood": case.row.likelihood, **case.row.options}
    space = ParameterSpace.for_pruning(case.model, **case.row.options)
    batches = list(case.batches) * 4
    with unchanged(case.model, batches):
        found = woodbury.inspect(case.model, batches, count=16, sparsities=(0.5,), **given)
    assert found.is_complete and found.weights == space.n
    assert all(each.measured for each in found.along)
    assert found.hessian is not None or "hessian" in found.left_out


def flops(case: Case) -> None:
    with unchanged(case.model, case.batches):
        counted = woodbury.costs.flops(case.model, case.batches[0][0])
    assert all(number >= 0 for number in counted.per_weight.values())


def saved(case: Case, folder: Path) -> None:
    state = case.model.state_dict()
    with unchanged(case.model, case.batches):
        woodbury.save_sparse(folder / "model.safetensors", state)
        again = woodbury.load_sparse(folder / "model.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def finetuned(case: Case) -> None:
    twin = built(case.row)
    batches = [batch for batch in case.batches if _size(batch[0]) > 1]
    torch.manual_seed(1)
    finetune(case.model, case.optimizer(), batches, range(1, 3), likelihood=case.row.likelihood)
    torch.manual_seed(1)
    twin.train(twin.optimizer(), 2)
    expected = twin.model.state_dict()
    for name, tensor in case.model.state_dict().items():
        if isinstance(tensor, Tensor):
            torch.testing.assert_close(tensor, expected[name])


class Entry(NamedTuple):
    """A public entry: what runs it, and which refusals hold for it beside its own."""

    run: Callable[..., None]
    kinds: tuple[str, ...]
    slow: bool = True
    trains: bool = False


CURVATURE = ("curvature", "loss", "model")
PRUNING = ("pruning", *CURVATURE)
QUICK = woodbury.presets.quick
RECIPES: dict[str, Any] = {
    "mfac": woodbury.mfac(COUNT, 0.1),
    "woodfisher": woodbury.woodfisher(COUNT, 4, 0.1),
    "diagonal": woodbury.diagonal_fisher(COUNT, 0.1),
    "kfac": woodbury.kfac(COUNT, 0.1, labels=observed),
    "kfac, skipping": woodbury.kfac(COUNT, 0.1, labels=observed, skip_unknown=True),
    "kfac by rows": woodbury.estimation.kfac_by_rows(COUNT),
    "hessian diagonal": woodbury.hessian_diagonal(COUNT, 0.1),
}
ENTRIES = {
    "rows": Entry(rows_are_those_of_single_samples, CURVATURE, slow=False),
    **{name: Entry(recipe(estimate), CURVATURE) for name, estimate in RECIPES.items()},
    "flops": Entry(flops, ("model",)),
    "recalibrate": Entry(recalibrated, ()),
    "save": Entry(saved, ()),
    "channels": Entry(pruned_by(pruner=CHANNELS), PRUNING),
    "n:m": Entry(pruned_by(pruner=woodbury.n_of_m(1, 2, MFAC).pruner), PRUNING),
    "quick": Entry(pruned_by(effort=woodbury.presets.quick), PRUNING),
    "prune": Entry(pruned_by(), PRUNING),
    "prune, large": Entry(without_room_for_rows, PRUNING),
    "compare": Entry(compared, PRUNING),
    "plan": Entry(planned, PRUNING),
    "inspect": Entry(inspected, PRUNING),
    "MFAC": Entry(mfac_optimizer, ("loss",), trains=True),
    "Preconditioner": Entry(preconditioner, ("curvature", "loss"), trains=True),
    "Gradual": Entry(gradual, PRUNING, trains=True),
    "finetune": Entry(finetuned, ("loss",), trains=True),
}


def cells() -> Iterator[Any]:
    for name, entry in ENTRIES.items():
        for row in ROWS:
            if entry.trains and not row.trains:
                continue
            marks = [pytest.mark.slow] if entry.slow else []
            yield pytest.param(name, row, id=f"{name}-{row.name}", marks=marks)


def refusal(name: str, row: Row) -> str | None:
    """What the sentence says that refuses a row at an entry; None if it is taken."""
    keys = (name, *ENTRIES[name].kinds)
    return next((row.refused[key] for key in keys if key in row.refused), None)


@pytest.mark.parametrize(("name", "row"), list(cells()))
def test_every_entry_on_every_row(name: str, row: Row, tmp_path: Path) -> None:
    case = built(row)
    run = ENTRIES[name].run
    arguments = (case, tmp_path) if name == "save" else (case,)
    sentence = refusal(name, row)
    if sentence is None:
        run(*arguments)
        return
    # A loop of one's own trains until an entry refuses.
    same = nullcontext() if ENTRIES[name].trains else unchanged(case.model, case.batches)
    with same, pytest.raises(WoodburyError, match=sentence):
        run(*arguments)


NET = """
import torch
from support.zoo import ROWS

ROW = next(row for row in ROWS if row.name == {name!r})


def model():
    torch.manual_seed(0)
    return ROW.build()


def data():
    inputs, labels = zip(*(ROW.data() * 8))
    return torch.cat(inputs), torch.cat(labels)
"""

COMMANDS = {
    "plain": None,
    "one module under two names": None,
    "stores its features": None,
    "BatchNorm": None,
    "tied by object": None,
    "names in brackets": None,
    "DataParallel": None,
    "compiled": None,
    "transposed": None,
    "attention": None,
    "an embedding": None,
    "checkpoints, re-entrant": None,
    "weight norm": "remove_parametrizations",
    "squeezes": "without squeeze",
    "two precisions": "bfloat16",
    "lazy": "has no shape yet",
}
"""Row -> what the command says, where it refuses the row."""

BY_SINGLE_SAMPLES = ("squeezes",)
"""Rows that only a method by the gradients of single samples refuses."""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("method", ["", "--method mfac --count 30"])
def test_the_command_on_some_rows(
    name: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET.format(name=name))
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "net", raising=False)
    done = command(f"prune net.py:model net.py:data --sparsity 0.5 --out out {method}")
    sentence = None if name in BY_SINGLE_SAMPLES and not method else COMMANDS[name]
    assert "Traceback" not in done.output
    if sentence is None:
        assert done.exit_code == 0, done.output
        state = woodbury.load_sparse(next((tmp_path / "out").glob("*.safetensors")))
        assert any(bool((tensor == 0).any()) for tensor in state.values() if tensor.ndim > 1)
    else:
        assert done.exit_code == 2 and re.search(sentence, done.output), done.output
