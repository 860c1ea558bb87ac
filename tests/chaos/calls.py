"""Every public function and method, called with something that makes no sense or is extreme."""

from __future__ import annotations

import inspect
import itertools
import random
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import hypothesis.configuration
import numpy as np
import torch
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import woodbury
from chaos.tally import HALF, RAW, RIGHT, SENTENCE, SILENT
from chaos.workers import Tell
from woodbury import optim
from woodbury.io.fingerprint import digest

NAMESPACES = (
    woodbury,
    woodbury.units,
    woodbury.scopes,
    woodbury.costs,
    woodbury.saliencies,
    woodbury.selections,
    woodbury.likelihoods,
    woodbury.updates,
    woodbury.presets,
    woodbury.fisher,
    woodbury.estimation,
    woodbury.inspection,
    woodbury.pruning,
    woodbury.training,
    woodbury.applications,
    optim,
)
NOT_CALLED = {
    "load_sparse": "damaged files are its trials",
    "export_onnx": "it takes seconds; tests/integrations has its refusals",
    "Influence": "what influence() returns; its methods are called",
    "Counterfactual": "what counterfactual() returns",
    "Predicted": "what a Laplace returns",
    "MissingDependency": "an exception",
    "RankError": "an exception",
    "WoodburyError": "an exception",
    "progress": "its context holds a callback",
    "Fisher": "abstract",
    "Limits": "its fields are for experiments",
    "readable": "a repr",
    "exact": "of parts that operators make",
    "upper_bound": "of parts that operators make",
    "LeastSquaresResult": "of numbers that a run makes",
    "joint_cost": "of numbers that searches make",
    "Inspection": "numbers that `inspect` finds",
    "LossAlong": "numbers that `loss_along` finds",
    "HessianComparison": "numbers that `compare_with_hessian` finds",
    "Sensitivity": "numbers that `sensitivity` finds",
    "ForecastCalibration": "numbers that `calibrate_forecast` finds",
}
"""Public names without trials, and why."""


class World:
    """What valid calls are made with, new for each of them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        self.batches = [(torch.randn(12, 4), torch.arange(12) % 3) for _ in range(2)]
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.space = woodbury.ParameterSpace.from_model(self.model, min_ndim=2)
        self.objective = woodbury.Objective.from_model(self.model, self.batches, space=self.space)
        self.d = self.space.d
        self.rows = torch.randn(8, self.d)
        self.vector = torch.randn(self.d)
        self.keep = torch.arange(self.d) % 3 != 0
        self.groups = torch.arange(self.d).view(-1, 2)
        self.fisher = woodbury.fisher.LowRank(self.rows, 0.1)
        self.quadratic = woodbury.saliencies.Quadratic(
            self.objective.weights, self.fisher, self.vector
        )

    @property
    def pruner(self) -> Any:
        return woodbury.Pruner(woodbury.mfac(12, 1e-2))

    @property
    def mfac(self) -> Any:
        return woodbury.MFAC(self.model.parameters(), window=4, damping=0.1)

    @property
    def influence(self) -> Any:
        return woodbury.influence(self.model, self.batches, self.batches, damping=0.1)

    @property
    def consolidation(self) -> Any:
        return woodbury.Consolidation(self.fisher, self.vector, 2.0, space=self.space)

    def operators(self) -> dict[str, Any]:
        """One of each, of the same 42 weights."""
        made = woodbury.fisher
        scatter = torch.randn(self.d, 60)
        return {
            "Diagonal": made.Diagonal(self.vector.square(), 0.1),
            "Dense": made.Dense(scatter @ scatter.T, 0.1),
            "LowRank": self.fisher,
            "Kronecker": made.Kronecker(_moments(6), _moments(7), 0.1),
            "KroneckerRows": made.KroneckerRows(torch.rand(6) + 0.1, _moments(7), 0.1),
            "BlockDiagonal": made.dense_blocks(self.rows, [20, 22], 0.1),
        }


def _moments(size: int) -> Tensor:
    scatter = torch.randn(size, 20)
    return scatter @ scatter.T / 20


VALUES: dict[str, Callable[[World], Any]] = {
    "model": lambda w: w.model,
    "batches": lambda w: w.batches,
    "calibration": lambda w: w.batches,
    "held_back": lambda w: w.batches,
    "confidence": lambda w: 0.9,
    "optimizer": lambda w: w.optimizer,
    "LevenbergMarquardt.optimizer": lambda w: w.mfac,
    "params": lambda w: w.model.parameters(),
    "sparsity": lambda w: 0.5,
    "sparsities": lambda w: [0.3, 0.5],
    "space": lambda w: w.space,
    "objective": lambda w: w.objective,
    "dense": lambda w: w.objective,
    "quadratic": lambda w: w.quadratic,
    "budget": lambda w: woodbury.Pruner(None).budget(w.space, 0.5),
    "saliency": lambda w: woodbury.saliencies.magnitude,
    "groups": lambda w: w.groups,
    "KroneckerRows.groups": lambda w: 1,
    "weights": lambda w: w.vector,
    "LeastSquares.weights": lambda w: None,
    "least_squares.weights": lambda w: None,
    "LowRank.weights": lambda w: torch.rand(8),
    "dense_blocks.weights": lambda w: torch.rand(8),
    "Reconstruction.weight": lambda w: 1e-3,
    "rows": lambda w: w.rows,
    "MFAC().rows": lambda w: [torch.randn(2, *p.shape) for p in w.model.parameters()],
    "MFAC().residuals": lambda w: torch.randn(2),
    "residual": lambda w: lambda u, x: u(x),
    "points": lambda w: w.batches[0][0],
    "keep": lambda w: w.keep,
    "hold_zeros.keep": lambda w: w.space,
    "MFAC.keep": lambda w: None,
    "KroneckerRows.keep": lambda w: None,
    "removed": lambda w: w.vector,
    "gradient": lambda w: w.vector,
    "gradients": lambda w: w.vector,
    "measured": lambda w: torch.ones(1, dtype=torch.float64),
    "v": lambda w: w.vector,
    "vectors": lambda w: torch.ones(w.d, 2),
    "loss_along.step": lambda w: w.vector,
    "curvatures": lambda w: woodbury.inspection.estimate_curvatures(w.objective, 12, 0.1),
    "fishers": lambda w: {"mine": w.fisher},
    "vector": lambda w: w.vector,
    "delta": lambda w: w.vector,
    "c": lambda w: torch.randn(8),
    "curvature": lambda w: w.vector.square(),
    "Dense.curvature": lambda w: _moments(5),
    "damping": lambda w: 0.1,
    "left": lambda w: _moments(6),
    "right": lambda w: _moments(7),
    "scales": lambda w: torch.rand(6),
    "KroneckerRows.inputs": lambda w: _moments(7),
    "inputs": lambda w: w.batches[0][0],
    "target": lambda w: w.batches[0][1],
    "output": lambda w: w.model(w.batches[0][0]),
    "direction": lambda w: torch.randn(12, 3),
    "read": lambda w: lambda output: output,
    "generator": lambda w: torch.Generator(),
    "parts": lambda w: (w.fisher,),
    "sizes": lambda w: [20, 22],
    "blocks().sizes": lambda w: [[20], [22]],
    "per_group.sizes": lambda w: [[20], [22]],
    "per_parameter.sizes": lambda w: [[20], [22]],
    "whole.sizes": lambda w: [[20], [22]],
    "size": lambda w: 2,
    "shape": lambda w: 2,
    "members": lambda w: [{"0.weight": [0]}, {"2.weight": [1]}],
    "capacity": lambda w: 4,
    "d": lambda w: w.d,
    "columns": lambda w: 3,
    "KroneckerRows.columns": lambda w: None,
    "n": lambda w: 2,
    "m": lambda w: 4,
    "exponent": lambda w: 0.5,
    "cost": lambda w: woodbury.costs.weights,
    "per_weight": lambda w: {"0.weight": 1.0, "2.weight": 2.0},
    "steps": lambda w: 2,
    "by_size.power": lambda w: 0.5,
    "finetune.steps": lambda w: range(1, 3),
    "max_steps": lambda w: 3,
    "samples": lambda w: 12,
    "mc_samples": lambda w: 1,
    "keep_per_stage": lambda w: 0.7,
    "count": lambda w: 12,
    "end": lambda w: 4,
    "pruning_steps": lambda w: [1, 3],
    "step": lambda w: 1,
    "recipe": lambda w: w.pruner,
    "gauss_newton.recipe": lambda w: woodbury.mfac(12),
    "pruner": lambda w: w.pruner,
    "estimate": lambda w: woodbury.kfac(12),
    "several.heads": lambda w: {0: woodbury.cross_entropy},
    "several.weights": lambda w: {0: 0.5},
    "likelihood": lambda w: woodbury.cross_entropy,
    "loss": lambda w: 1.0,
    "Likelihood.loss": lambda w: nn.functional.cross_entropy,
    "path": lambda w: "w.safetensors",
    "state_dict": lambda w: w.model.state_dict(),
    "state": lambda w: {},
    "shapes": lambda w: dict(w.space.shapes),
    "tensors": lambda w: {name: torch.ones(s) for name, s in w.space.shapes.items()},
    "parameters": lambda w: dict(w.model.named_parameters()),
    "name": lambda w: "0.weight",
    "position": lambda w: 3,
    "index": lambda w: 3,
    "why": lambda w: "a test",
    "param_group": lambda w: {"params": [nn.Parameter(torch.ones(3))]},
    "fits": lambda w: {},
    "part": lambda w: None,
    "compact.example": lambda w: w.batches[0][0],
    "coupled_channels.example": lambda w: w.batches[0][0],
    "train": lambda w: w.batches,
    "held_out": lambda w: w.batches,
    "test": lambda w: w.batches,
    "found": lambda w: w.influence,
    "several": lambda w: [w.influence],
    "retrain": lambda w: lambda places: w.model,
    "unseen_losses.networks": lambda w: [w.model, w.model],
    "complementary_halves.networks": lambda w: 4,
    "complementary_halves.n": lambda w: 12,
    "trained_on": lambda w: [torch.arange(6), torch.arange(6, 12)],
    "sample": lambda w: 3,
    "k": lambda w: 2,
    "fisher": lambda w: w.fisher,
    "other": lambda w: w.consolidation,
    "Consolidation().rows": lambda w: 6,
    "precision": lambda w: 1.0,
    "draws": lambda w: torch.ones(2, w.d),
}
"""A valid value of each argument: by its name, or by that of the function and its own."""

HANDED_OVER = {"quadratic", "space", "budget", "part", "generator", "carried", "dense", "saliency"}
"""Arguments that the package itself gives to the functions that users choose or write."""
SKIPPED_METHODS = {
    *("profile_hook_step", "zero_grad", "scipy"),
    *("saliency", "update", "unit", "scope", "cost", "selection", "elements", "labels"),
    *("run", "on_quadratic", "of_rows", "from_gram", "around", "check_state", "at_optimum"),
    *("admit", "measure", "batch_loss", "forward", "in_words", "increase", "slope_at"),
    *("output_of", "output_tensor", "directional", "with_output", "check_vector"),
}
"""Of torch, or for the package's own use."""


@dataclass(frozen=True)
class Subject:
    """A function, or a method of an object, that is called.

    Attributes:
        name: What it is called.
        bind: From a world to what is called.
        parameters: The names of its arguments, and whether each is needed.
        owner: By whose name arguments are looked up.
    """

    name: str
    bind: Callable[[World], Callable[..., Any]]
    parameters: dict[str, bool]
    owner: str

    def value(self, name: str, world: World) -> Any:
        return (VALUES.get(f"{self.owner}.{name}") or VALUES[name])(world)

    def lacks(self) -> list[str]:
        """Needed arguments that have no valid value here."""
        return [
            name
            for name, needed in self.parameters.items()
            if needed and name not in VALUES and f"{self.owner}.{name}" not in VALUES
        ]


def subjects() -> list[Subject]:
    """All that is public."""
    found: dict[str, Subject] = {}
    for namespace in NAMESPACES:
        for name in dir(namespace):  # vars() has only those that are imported by now
            value = getattr(namespace, name)
            if name.startswith("_") or name in NOT_CALLED or not callable(value):
                continue
            module = getattr(value, "__module__", "")
            is_package = hasattr(namespace, "__path__")
            if not module.startswith("woodbury") or not (
                is_package or module == namespace.__name__
            ):
                continue
            add(found, name, lambda _, value=value: value, value, name)
            for method in ("from_model",):
                if inspect.isclass(value) and hasattr(value, method):
                    function = getattr(value, method)
                    add(found, f"{name}.{method}", lambda _, f=function: f, function, name)
    for name, make in INSTANCES.items():
        instance = make(World())
        for method, _ in inspect.getmembers(type(instance), inspect.isfunction):
            if method in SKIPPED_METHODS or method.startswith("register_"):
                continue
            if method.startswith("_") and method not in ("__call__", "__matmul__"):
                continue
            bind = partial(_bound, make, method)
            add(found, f"{name}().{method}", bind, getattr(instance, method), f"{name}()")
    return list(found.values())


def _bound(make: Callable[[Any], Any], method: str, world: Any) -> Any:
    return getattr(make(world), method)


def add(
    found: dict[str, Subject], name: str, bind: Any, function: Callable[..., Any], owner: str
) -> None:
    kinds = inspect.Parameter
    parameters = {
        key: each.default is kinds.empty and each.kind is not kinds.VAR_KEYWORD
        for key, each in inspect.signature(function).parameters.items()
    }
    found.setdefault(name, Subject(name, bind, parameters, owner))


def _operator(name: str) -> Callable[[World], Any]:
    return lambda world: world.operators()[name]


OPERATOR_KINDS = ("Diagonal", "Dense", "LowRank", "Kronecker", "KroneckerRows", "BlockDiagonal")
OPERATORS = {*OPERATOR_KINDS, "Window", "dense_blocks", "pi_corrected"}

INSTANCES: dict[str, Callable[[World], Any]] = {
    **{name: _operator(name) for name in OPERATOR_KINDS},
    "Window": lambda w: woodbury.fisher.Window(4, w.d, 0.1),
    "Objective": lambda w: w.objective,
    "ParameterSpace": lambda w: w.space,
    "Quadratic": lambda w: w.quadratic,
    "Pruner": lambda w: w.pruner,
    "Pruned": lambda w: w.pruner(w.objective, 0.5),
    "Refit": lambda w: woodbury.Refit(1, 1, samples=12),
    "LayerByLayer": lambda w: woodbury.pruning.LayerByLayer(12, 1),
    "LayerSequence": lambda w: woodbury.pruning.LayerSequence(samples=12),
    "ShareSearch": lambda w: woodbury.pruning.ShareSearch(samples=12),
    "MFAC": lambda w: w.mfac,
    "LevenbergMarquardt": lambda w: woodbury.LevenbergMarquardt(w.mfac),
    "LeastSquares": lambda w: woodbury.LeastSquares(w.model, lambda u, x: u(x), w.batches[0][0]),
    "Gradual": lambda w: woodbury.Gradual(
        w.model, w.optimizer, w.batches, 0.5, end=4, steps=2, pruner=w.pruner
    ),
    "Preconditioner": lambda w: woodbury.Preconditioner(
        w.optimizer, w.model, woodbury.kfac(12), w.batches
    ),
    "PeekingLoader": lambda w: woodbury.PeekingLoader(w.batches, 12),
    "Likelihood": lambda w: woodbury.cross_entropy,
    "mfac": lambda w: woodbury.mfac(12),
    "woodfisher": lambda w: woodbury.woodfisher(12, 10),
    "diagonal_fisher": lambda w: woodbury.diagonal_fisher(12),
    "kfac": lambda w: woodbury.kfac(12),
    "kfac_by_rows": lambda w: woodbury.estimation.kfac_by_rows(12),
    "hessian_diagonal": lambda w: woodbury.hessian_diagonal(12),
    "gauss_newton": lambda w: woodbury.gauss_newton(woodbury.mfac(12), 1),
    "blocks": lambda w: optim.blocks(2),
    "block": lambda w: woodbury.units.block(2),
    "consecutive": lambda w: woodbury.scopes.consecutive(2),
    "Influence": lambda w: w.influence,
    "Consolidation": lambda w: w.consolidation,
    "Laplace": lambda w: woodbury.Laplace(w.fisher, w.objective),
    "cosine_restarts": lambda w: woodbury.training.cosine_restarts([1, 3], 4),
}
"""One object of each public class, whose methods are called."""

STRANGE: dict[str, Callable[[World], Any]] = {
    "None": lambda w: None,
    "True": lambda w: True,
    "nan": lambda w: float("nan"),
    "infinity": lambda w: float("inf"),
    "minus infinity": lambda w: float("-inf"),
    "10**12": lambda w: 10**12,
    "2**70": lambda w: 2**70,
    "1e-300": lambda w: 1e-300,
    "1e300": lambda w: 1e300,
    "1j": lambda w: 1j,
    "''": lambda w: "",
    "'quick'": lambda w: "quick",
    "bytes": lambda w: b"x",
    "[]": lambda w: [],
    "()": lambda w: (),
    "{}": lambda w: {},
    "[None]": lambda w: [None],
    "{'a': 1}": lambda w: {"a": 1},
    "[0.5, 2]": lambda w: [0.5, 2],
    "an object": lambda w: object(),
    "a class": lambda w: int,
    "a function": lambda w: lambda *_: None,
    "a function that fails": lambda w: _fails,
    "a generator": lambda w: (each for each in w.batches),
    "a module": lambda w: nn.Linear(2, 2),
    "a module without parameters": lambda w: nn.ReLU(),
    "a lazy module": lambda w: nn.LazyLinear(2),
    "its own model": lambda w: w.model,
    "an empty tensor": lambda w: torch.empty(0),
    "a scalar tensor": lambda w: torch.tensor(0.5),
    "a short vector": lambda w: torch.ones(3),
    "a long vector": lambda w: torch.ones(w.d + 1),
    "a matrix": lambda w: torch.ones(w.d, 2),
    "three dimensions": lambda w: torch.ones(2, w.d, 2),
    "NaN vector": lambda w: torch.full((w.d,), float("nan")),
    "one infinity": lambda w: torch.ones(w.d).index_fill(0, torch.tensor([1]), float("inf")),
    "1e30 vector": lambda w: torch.full((w.d,), 1e30),
    "1e-30 vector": lambda w: torch.full((w.d,), 1e-30),
    "zeros": lambda w: torch.zeros(w.d),
    "integers": lambda w: torch.arange(w.d),
    "bools": lambda w: torch.ones(w.d, dtype=torch.bool),
    "all False": lambda w: torch.zeros(w.d, dtype=torch.bool),
    "complex": lambda w: torch.ones(w.d, dtype=torch.complex64),
    "half": lambda w: torch.ones(w.d, dtype=torch.float16),
    "double": lambda w: torch.ones(w.d, dtype=torch.float64),
    "on meta": lambda w: torch.ones(w.d, device="meta"),
    "sparse": lambda w: torch.ones(w.d).to_sparse(),
    "requires grad": lambda w: torch.ones(w.d, requires_grad=True),
    "expanded": lambda w: torch.ones(1).expand(w.d),
    "an array": lambda w: np.ones(w.d, dtype=np.float32),
    "an array of ints": lambda w: np.arange(3),
    "pairs out of range": lambda w: torch.tensor([[0, 10**6]]),
    "a pair twice": lambda w: torch.tensor([[0, 0]]),
    "negative places": lambda w: torch.tensor([[-1, 3]]),
    "one batch": lambda w: w.batches[0],
    "empty batches": lambda w: [(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))],
    "ignored labels": lambda w: [(torch.ones(12, 4), torch.full((12,), -100))],
    "labels out of range": lambda w: [(torch.ones(12, 4), torch.full((12,), 7))],
    "float labels": lambda w: [(torch.ones(12, 4), torch.ones(12))],
    "NaN inputs": lambda w: [(torch.full((12, 4), float("nan")), torch.zeros(12).long())],
    "wide inputs": lambda w: [*w.batches, (torch.ones(12, 5), torch.zeros(12).long())],
    "no labels": lambda w: [(torch.ones(12, 4), None)],
    "a short state": lambda w: {"step": 1, "keep": None},
    "meta device": lambda w: torch.device("meta"),
    "int8": lambda w: torch.int8,
}
NOT_FINITE = {"nan", "infinity", "minus infinity", "NaN vector", "one infinity", "NaN inputs"}
NOT_FINITE |= {"1e300", "1e30 vector", "its own model", "2**70", "1e-300"}
"""From which something that is not finite may rightly come."""


def _fails(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("the user's own")


POOL = 500
"""Numbers, texts and lists that hypothesis makes once: for each call they take too long."""


def plain_values(seed: int) -> list[Any]:
    """Numbers, texts and lists of any kind."""
    kinds = st.one_of(
        st.integers(-3, 60),
        st.floats(-2, 2),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
        st.lists(st.integers(-2, 50), max_size=4),
        st.lists(st.floats(-1, 2), max_size=4),
    )
    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=POOL,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(kinds)
    def collect(value: Any) -> None:
        found.append(value)

    hypothesis.configuration.set_hypothesis_home_dir(".hypothesis")  # of this child
    collect()
    return found


def calls(seed: int, tell: Tell) -> None:
    """Calls without end of public names, one or two of whose arguments are strange."""
    draw = random.Random(seed)
    plain = plain_values(seed)
    known = [
        subject
        for subject in subjects()
        if not subject.lacks() and subject.parameters.keys() - HANDED_OVER
    ]

    def value() -> tuple[str, Callable[[World], Any]]:
        if draw.random() < 0.6:
            return draw.choice(list(STRANGE.items()))
        drawn = draw.choice(plain)
        return repr(drawn), lambda _: drawn

    while True:
        subject = draw.choice(known)
        names = sorted(subject.parameters.keys() - HANDED_OVER)
        chosen = draw.sample(names, min(len(names), draw.choice([1, 1, 2])))
        strange = {name: value() for name in chosen}
        said = {name: label for name, (label, _) in strange.items()}
        story = f"{subject.name} with {said}"
        tell(f"calls, {kind_of(subject)}", "", story)
        ending, why = attempt(subject, World(), strange)
        tell(f"calls, {kind_of(subject)}", ending, f"{story}: {why}")


def kind_of(subject: Subject) -> str:
    """Operators are counted by themselves."""
    return "operators" if subject.owner.removesuffix("()") in OPERATORS else "the rest"


def attempt(subject: Subject, world: World, strange: dict[str, Any]) -> tuple[str, str]:
    """Make a call: how it ends, and what was raised."""
    arguments = {
        name: subject.value(name, world)
        for name, needed in subject.parameters.items()
        if needed and name not in strange
    }
    arguments |= {name: make(world) for name, (_, make) in strange.items()}
    function = subject.bind(world)
    before = digest({"model": world.model.state_dict(), "batches": world.batches})
    try:
        result = _followed(world, _called(function, subject, arguments))
    except Exception as error:
        now = digest({"model": world.model.state_dict(), "batches": world.batches})
        if now != before and subject.owner not in MAY_HAVE_STEPPED:
            return HALF, f"it changes the model or the data, then {error!r}"
        if isinstance(error, woodbury.WoodburyError):
            return SENTENCE, ""
        if isinstance(error, ZeroDivisionError) and "the user's own" in str(error):
            return SENTENCE, ""  # of a callback: the caller knows best
        return RAW, repr(error)[:200]
    labels = {label for label, _ in strange.values()}
    if not labels & NOT_FINITE and not _is_finite([result, world.model.state_dict()]):
        return SILENT, "what comes back is not finite"
    return RIGHT, ""


MAY_HAVE_STEPPED = {"finetune", "MFAC", "MFAC()", "Gradual", "Preconditioner"}
"""Training that was refused after some steps."""


def _called(function: Callable[..., Any], subject: Subject, arguments: dict[str, Any]) -> Any:
    kinds = inspect.signature(function).parameters
    positional = [
        arguments.pop(name)
        for name, each in kinds.items()
        if each.kind in (each.POSITIONAL_ONLY, each.VAR_POSITIONAL) and name in arguments
    ]
    return function(*positional, **arguments)


def _followed(world: World, result: Any) -> Any:
    """What a user does next with a result: steps, calls, reads."""
    if isinstance(result, types.GeneratorType | Iterator):
        return list(itertools.islice(result, 3))
    if isinstance(result, woodbury.Pruned):
        result.write()
        return result.objective.weights
    if isinstance(result, woodbury.fisher.Fisher):
        return result.solve(torch.ones(result.d))
    if isinstance(result, torch.optim.Optimizer | woodbury.Gradual | woodbury.Preconditioner):
        optimizer = result if isinstance(result, torch.optim.Optimizer) else world.optimizer
        for inputs, target in world.batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(world.model(inputs), target).backward()
            optimizer.step()
        return None
    if callable(result) and type(result).__module__.startswith("woodbury"):
        names = inspect.signature(result).parameters
        owner = f"{getattr(result, '__name__', type(result).__name__)}()"
        given = [
            VALUES.get(f"{owner}.{name}") or VALUES.get(name)
            for name, each in names.items()
            if each.default is each.empty
        ]
        if all(given):
            return _followed(world, result(*(value(world) for value in given)))
    return result


def _is_finite(tree: Any) -> bool:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.is_meta:
            if not bool(torch.isfinite(leaf.detach().to_dense()).all()):
                return False
        elif isinstance(leaf, float) and leaf != leaf:
            return False
    return True
