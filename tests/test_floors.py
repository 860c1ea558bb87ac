"""Imports go down only: the floors of docs/architecture.md, kept by reading every import statement."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import woodbury

ROOT = Path(woodbury.__file__).parent
MODELS = {
    "likelihood",
    "objective",
    "gradients",
    "gauss_newton",
    "residuals",
    "patches",
    "layerwise",
    "factors",
    "hessian",
    "flops",
    "batchnorm",
    "calibration",
}  # the half of floor 1 that knows models
TENSORS = {
    *("fisher.operator", "fisher.small", "fisher.streams", "fisher.explicit", "fisher.lowrank"),
    *("fisher.kronecker", "fisher.restricted", "fisher.blocks", "fisher.window", "fisher.triangle", "fisher.iterative"),
    "fisher.metric",
}
PRUNING = {
    *("pruning.quadratic", "pruning.saliency", "pruning.units"),
    *("pruning.select", "pruning.contest", "pruning.selection", "pruning.exhaustive", "pruning.exchange"),
    *("pruning.update", "pruning.schedule", "pruning.moments"),
}
FLOORS = [
    {"errors", "space", "comm", "cost"},
    MODELS | TENSORS,
    {"fisher.estimate"} | PRUNING,
    {
        *("report", "pictures", "per_layer", "export", "comparison", "records"),
        *("optim", "optim_layout", "optim_window", "optim_damping", "optim_preconditioner"),
        *("pruning.pruner", "pruning.pattern", "pruning.masks", "pruning.gradual", "finetuning"),
        *(
            "pruning.stages",
            "pruning.tuned",
            "pruning.refit",
            "pruning.reconstruction",
            "pruning.effort",
            "pruning.door",
        ),
    },
    {"cli"},
]


def imports(tree: ast.AST) -> set[str]:
    """Every `woodbury.…` that an import in the tree names, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: import from woodbury.…, not by dots"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("woodbury.") for name in found if name.split(".")[0] == "woodbury"}


def module_of(name: str) -> str:
    """The module on a floor that an imported name belongs to: space.ParameterSpace -> space, cli.data.load -> cli."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in ("fisher", "pruning") else 1])


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.stem != "__init__"]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in FILES}
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name: str) -> None:
    own = module_of(name)
    assert own in FLOOR_OF, f"{name} is on no floor"
    for used in map(module_of, imports(MODULES[name])):
        assert used in FLOOR_OF, f"{name} imports {used}, which is on no floor (never import from the door)"
        assert FLOOR_OF[used] <= FLOOR_OF[own], (
            f"{name} (floor {FLOOR_OF[own]}) imports {used} (floor {FLOOR_OF[used]})"
        )
        for half, other in ((MODELS, TENSORS), (TENSORS, MODELS)):
            assert not (own in half and used in other), f"{name} imports {used}: models and tensors meet on floor 2"


def test_no_module_imports_itself_around_a_corner() -> None:
    """Imports inside a function or under TYPE_CHECKING run later or never: those alone may close a circle."""
    graph = {name: set[str]() for name in map(module_of, MODULES)}
    for name, tree in MODULES.items():
        tops = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        used = set(map(module_of, imports(ast.Module(tops, []))))
        graph[module_of(name)] |= used - {module_of(name)}
    assert set(TopologicalSorter(graph).static_order()) == set(graph)  # raises CycleError, which names the cycle


def test_every_floor_is_inhabited() -> None:
    assert {module_of(name) for name in MODULES} | {"cli"} == set(FLOOR_OF)
