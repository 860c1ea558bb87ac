"""A step on a rank's own columns: the masks, weights and report of one process, and its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.live_tensors import LiveTensors
from support.processes import on_ranks
from torch import nn

import woodbury
from woodbury import Pruner
from woodbury.estimation.engines import looped
from woodbury.fisher import LowRank
from woodbury.fisher.sharded import Sharded
from woodbury.limits import Limits
from woodbury.linalg.ranks import Ranks
from woodbury.pruning import pruner as pruner_module
from woodbury.pruning import step_over_ranks
from woodbury.pruning.quadratic import Quadratic

ROWS = 32
SPARSITY = 0.8


def network(width: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 4)).double()


def data() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(ROWS, 10, generator=generator, dtype=torch.float64)
    return [(inputs, torch.arange(ROWS) % 4)]


def equal_weights(model: nn.Module) -> None:
    """All weights and inputs alike, so that scores are equal in many places."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)


PRUNERS = {
    "obs": Pruner(woodbury.mfac(ROWS, 1e-2)),
    "obd": Pruner(woodbury.mfac(ROWS, 1e-2), woodbury.saliencies.obd, woodbury.updates.zero),
    "independent": Pruner(woodbury.mfac(ROWS, 1e-2), update=woodbury.updates.independent),
    "first order": Pruner(
        woodbury.mfac(ROWS, 1e-1), woodbury.saliencies.woodtaylor, first_order=True
    ),
    "blocks": Pruner(woodbury.woodfisher(ROWS, 7, 1e-2)),
    "blocks of rows": Pruner(woodbury.mfac(ROWS, 1e-2, block=100)),
}
"""The last has two blocks: of four ranks two have no weight."""
WHOLE = {
    "own saliency": Pruner(woodbury.mfac(ROWS, 1e-2), lambda quadratic, groups: quadratic.weights),
    "layer-wise": Pruner(woodbury.mfac(ROWS, 1e-2), scope=woodbury.scopes.layerwise),
    "limits": Pruner(woodbury.mfac(ROWS, 1e-2), max_layer_sparsity=0.9),
    "inner steps": Pruner(
        woodbury.mfac(ROWS, 1e-2), selection=woodbury.selections.iterative_greedy(2)
    ),
}
"""What works on whole vectors."""


def pruned(pruner: Pruner, alike: bool = False, stages: int = 2) -> dict[str, Any]:
    model = network()
    if alike:
        equal_weights(model)
    taken: list[None] = []
    known = pruner_module.divided_step
    pruner_module.divided_step = lambda *given: taken.append(None) or known(*given)
    try:
        found = woodbury.prune(model, data(), SPARSITY, pruner=pruner, stages=stages)
    finally:
        pruner_module.divided_step = known
    return {
        "weights": found.weights,
        "written": torch.cat(
            [each.detach().flatten() for each in model.parameters() if each.ndim > 1]
        ),
        "steps": found.steps,
        "divided": len(taken),
    }


def ties() -> torch.Tensor:
    """Scores that are all equal: the first weights are removed, whichever rank has them."""
    quadratic = Quadratic(torch.ones(20), spread(torch.ones(2, 20)))
    space = woodbury.ParameterSpace({"a": torch.Size([7]), "b": torch.Size([13])})
    budget = Pruner().budget(space, 0.55)
    rules = pruner_module.StepRules(
        woodbury.saliencies.obs, woodbury.selections.greedy, woodbury.updates.joint
    )
    return step_over_ranks.divided_step(rules, quadratic, budget, space).keep


def spread(rows: torch.Tensor) -> Sharded:
    ranks = Ranks.current()
    bounds = [20 * rank // ranks.size for rank in range(ranks.size + 1)]
    own = rows[:, bounds[ranks.rank] : bounds[ranks.rank + 1]]
    return Sharded.of(LowRank(own, 0.1, group=ranks.group), bounds, 0.1, rows)


def not_finite() -> str:
    """A weight of the last rank whose square overflows."""
    weights = torch.ones(20)
    weights[19] = 1e30
    space = woodbury.ParameterSpace({"a": torch.Size([20])})
    rules = pruner_module.StepRules(
        woodbury.saliencies.obs, woodbury.selections.greedy, woodbury.updates.joint
    )
    budget = Pruner().budget(space, 0.5)
    quadratic = Quadratic(weights, spread(torch.ones(2, 20)))
    step_over_ranks.divided_step(rules, quadratic, budget, space)
    return "nothing"


def held() -> float:
    """The most that this rank has of what is larger than a part of a vector, in vectors."""
    model = network(8000).float()
    batches = [(inputs.float(), labels) for inputs, labels in data()]
    space = woodbury.ParameterSpace.for_pruning(model)
    pruner = Pruner(woodbury.mfac(ROWS, 1e-2, engine=looped))
    with Limits(gradient_chunk=1, row_columns=256), LiveTensors(least=space.n // 8) as live:
        woodbury.prune(model, batches, SPARSITY, pruner=pruner)
    return live.peak / (4 * space.n)


def halves() -> torch.Tensor:
    """The same step of a network in half precision."""
    model = network().bfloat16()
    batches = [(inputs.bfloat16(), labels) for inputs, labels in data()]
    pruner = Pruner(woodbury.mfac(ROWS, 1e-2, engine=looped))
    return woodbury.prune(model, batches, SPARSITY, pruner=pruner).weights


def sent() -> dict[str, float]:
    with Ranks.of(None).started("a step that is counted") as ranks:
        model = network(2000).float()
        batches = [(inputs.float(), labels) for inputs, labels in data()]
        pruner = Pruner(woodbury.mfac(ROWS, 1e-2, engine=looped))
        woodbury.prune(model, batches, SPARSITY, pruner=pruner)
        return {"sent": ranks.traffic.sent, "d": 2000 * 14, "size": ranks.size}


def on_meta() -> str:
    """A model of which one layer was never loaded, or is kept elsewhere."""
    model = network()
    model[2] = model[2].to("meta")
    try:
        woodbury.prune(model, data(), SPARSITY)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def everything(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: pruned(each) for name, each in (PRUNERS | WHOLE).items()}
    # The less of two: gloo's threads may let go of what was sent after the next gradient is made.
    found["held"] = min(held(), held())
    with Ranks.of(None).started("ties"):
        found["ties"] = ties()
    found["sent"] = sent()
    found["halves"] = halves()
    found["on meta"] = on_meta()
    try:
        with Ranks.of(None).started("prune"):
            found["not finite"] = not_finite()
    except woodbury.WoodburyError as error:
        found["not finite"] = str(error)
    return found


def alone() -> dict[str, Any]:
    found: dict[str, Any] = {name: pruned(each) for name, each in (PRUNERS | WHOLE).items()}
    return found | {"held": held(), "halves": halves()}


@pytest.fixture(scope="module", params=[2, 4])
def on_several(request: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(request.param, Path(tmp_path_factory.mktemp("ranks")), everything)


@pytest.fixture(scope="module")
def on_one() -> dict[str, Any]:
    return alone()


@pytest.mark.parametrize("name", [*PRUNERS, *WHOLE])
def test_the_step_is_that_of_one_process(
    name: str, on_several: list[dict[str, Any]], on_one: dict[str, Any]
) -> None:
    one = on_one[name]
    assert one["divided"] == 0
    for found in on_several:
        assert not isinstance(found, Exception), found
        mine = found[name]
        assert mine["divided"] == (2 if name in PRUNERS else 0)
        assert torch.equal(mine["weights"] != 0, one["weights"] != 0)
        torch.testing.assert_close(mine["weights"], one["weights"], rtol=1e-7, atol=1e-9)
        assert torch.equal(mine["written"], mine["weights"])
        assert torch.equal(mine["weights"], on_several[0][name]["weights"])
        for step, same in zip(mine["steps"], one["steps"], strict=True):
            assert step.predicted == pytest.approx(same.predicted, rel=1e-6)
            if same.damping_share is not None:
                assert step.damping_share == pytest.approx(same.damping_share, rel=1e-6)
            assert list(step.saliencies) == list(same.saliencies)
            for tensor, quantiles in same.saliencies.items():
                for which in ("q10", "median", "q90"):
                    expected = pytest.approx(getattr(quantiles, which), rel=1e-6)
                    assert getattr(step.saliencies[tensor], which) == expected


def test_halves_go_over_the_wire(on_several: list[dict[str, Any]], on_one: dict[str, Any]) -> None:
    for found in on_several:
        assert found["halves"].dtype == torch.bfloat16
        torch.testing.assert_close(found["halves"], on_one["halves"])


def test_equal_scores_go_by_the_index_among_all(on_several: list[dict[str, Any]]) -> None:
    for found in on_several:
        assert found["ties"].tolist() == [False] * 11 + [True] * 9


def test_a_rank_holds_its_part_and_three_vectors(
    on_several: list[dict[str, Any]], on_one: dict[str, Any]
) -> None:
    """Weights, a gradient by tensor and in one piece; then the kept weights and a mask."""
    rows = ROWS / len(on_several)
    for found in on_several:
        assert rows + 2 < found["held"] < rows + 3.6
    assert on_one["held"] > ROWS + 2


def test_what_is_sent(on_several: list[dict[str, Any]]) -> None:
    """The rows once; a byte and the kept weights; counts, (m, m) and (m,) sums."""
    for found in on_several:
        sent, d, size = (found["sent"][name] for name in ("sent", "d", "size"))
        elsewhere = (size - 1) / size
        rows = ROWS / size * 4 * d * elsewhere
        gathered = (1 + 4 * (1 - SPARSITY)) * d * elsewhere
        small = 4 * 8 * ROWS**2 * 2 + 20_000 * size
        assert rows + gathered < sent < rows + 1.05 * gathered + small


def test_a_score_that_is_not_finite_is_named_on_all_ranks(
    on_several: list[dict[str, Any]],
) -> None:
    last = len(on_several) - 1
    sentence = "The saliency of unit 19 is not finite"
    for rank, found in enumerate(on_several):
        said = found["not finite"]
        assert sentence in said
        assert said.startswith(sentence if rank == last else f"Rank {last} failed in prune: ")


def test_a_model_without_values_is_a_sentence(on_several: list[dict[str, Any]]) -> None:
    for found in on_several:
        assert "'2.weight' is on meta and has no values: load the weights" in found["on meta"]
        assert found["on meta"].startswith(("WoodburyError: '2.weight'", "RankError: Rank "))
