"""Where the words of the command line become objects: one table for each kind of name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.estimation.engines import Engine, looped, vmapped
from woodbury.estimation.labels import Labels, observed, sampled
from woodbury.estimation.layer_gradients import hooked
from woodbury.evaluation.metrics import accuracy, r_squared, share_of_right_answers
from woodbury.integrations.transformers import tasks
from woodbury.integrations.transformers.tasks import Task
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood, binary, classes, cross_entropy, squared_error
from woodbury.model.objective import Objective
from woodbury.pruning.damping_search import DAMPINGS
from woodbury.pruning.schedule import Targets, check_sparsity, check_targets
from woodbury.pruning.scopes import Scope, global_, layerwise
from woodbury.pruning.selections.greedy_selection import Selection, greedy, iterative_greedy
from woodbury.pruning.selections.local_search import iterative_hard_thresholding, swaps
from woodbury.pruning.selections.subset_search import exhaustive
from woodbury.pruning.semi_structured import n_of_m
from woodbury.pruning.units import Unit, block, input_channels, output_channels, single
from woodbury.pruning.updates import Update, independent, joint, zero

T = TypeVar("T")

EngineName = Literal["hooked", "vmapped", "looped"]
LabelsName = Literal["own", "observed", "sampled"]
LossName = Literal["cross_entropy", "smoothed_cross_entropy", "binary", "squared_error"]
MethodName = Literal[
    "gauss-newton",
    "magnitude",
    "diagonal-fisher",
    "hessian-diagonal",
    "woodfisher",
    "mfac",
    "kfac",
    "kfac-upper-bound",
]
ScopeName = Literal["global", "layerwise"]
TaskName = Literal[
    "text-classification",
    "token-classification",
    "causal-lm",
    "masked-lm",
    "image-classification",
]
UpdateName = Literal["zero", "independent", "joint"]


@dataclass(frozen=True)
class Loss:
    """A loss's name on the command line.

    Attributes:
        likelihood: The loss itself.
        metric: What its networks are judged by, (objective, batches) -> a number that should be
            large.
        measure: What that number is called in a report.
        measure_without_labels: What it is called where the dense network's own outputs stand for
            missing labels.
        labels_from: Outputs of a network -> the labels that stand for missing ones.
    """

    likelihood: Likelihood
    metric: Callable[[Objective, Iterable[Batch]], float]
    measure: str
    measure_without_labels: str
    labels_from: Callable[[Tensor], Tensor]


def _highest_scores(outputs: Tensor) -> Tensor:
    return outputs.argmax(1)


def _answers(outputs: Tensor) -> Tensor:
    return (outputs > 0).to(outputs)


def _themselves(outputs: Tensor) -> Tensor:
    return outputs


LOSSES: Mapping[LossName, Loss] = {
    "cross_entropy": Loss(cross_entropy, accuracy, "accuracy", "agreement", _highest_scores),
    "smoothed_cross_entropy": Loss(
        classes(label_smoothing=0.1), accuracy, "accuracy", "agreement", _highest_scores
    ),
    "binary": Loss(binary(), share_of_right_answers, "accuracy", "agreement", _answers),
    "squared_error": Loss(squared_error, r_squared, "r_squared", "r_squared", _themselves),
}
ENGINES: Mapping[EngineName, Engine] = {
    "hooked": hooked,
    "vmapped": vmapped,
    "looped": looped,
}
LABELS: Mapping[LabelsName, Labels | None] = {
    "own": None,
    "observed": observed,
    "sampled": sampled,
}
"""None stands for the labels that each method takes by itself."""
TASKS: Mapping[TaskName, Task] = {
    "text-classification": tasks.text_classification,
    "token-classification": tasks.token_classification,
    "causal-lm": tasks.causal_lm,
    "masked-lm": tasks.masked_lm,
    "image-classification": tasks.image_classification,
}
UPDATES: Mapping[UpdateName, Update] = {"zero": zero, "independent": independent, "joint": joint}
SCOPES: Mapping[ScopeName, Scope] = {"global": global_, "layerwise": layerwise}
UNITS: Mapping[str, Unit] = {
    "single": single,
    "channels": output_channels,
    "rows": output_channels,
    "columns": input_channels,
}
COUPLED = "coupled-channels"
"""The unit that is found on a network: channels with all that must be removed with them."""
SELECTIONS: Mapping[str, Selection] = {"greedy": greedy, "exhaustive": exhaustive}
NUMBERED_SELECTIONS: Mapping[str, Callable[[int], Selection]] = {
    "iterative-greedy": iterative_greedy,
    "swaps": swaps,
    "iht": iterative_hard_thresholding,
}
"""Selections that take a number: `iterative-greedy:16`."""


def pick(table: Mapping[Any, T], name: str, what: str) -> T:
    """The object of a name.

    Args:
        table: Name -> object.
        name: The name asked for.
        what: What the table holds, for the sentence.

    Raises:
        WoodburyError: If there is none of that name; it says which there are.

    Example:
        >>> pick(SCOPES, "globl", "scope")
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: There is no scope 'globl': did you mean global?
    """
    if name not in table:
        raise WoodburyError(f"There is no {what} {name!r}: {hint(name, table)}")
    return table[name]


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of the names that was meant, None where none is near."""
    matches = get_close_matches(name, list(names), 1)
    return matches[0] if matches else None


def hint(name: str, names: Iterable[str]) -> str:
    """Which of the names was meant, or all of them.

    Example:
        >>> hint("jont", ["joint", "zero"]), hint("all", ["joint", "zero"])
        ('did you mean joint?', 'choose joint, zero.')
    """
    names = list(names)
    near = nearest(name, names)
    return f"did you mean {near}?" if near else f"choose {', '.join(names)}."


def parse_unit(text: str) -> Unit | None:
    """`single`, `channels`, `rows`, `columns`, or tiles as `block:4` and `block:4x1`.

    Args:
        text: The name.

    Returns:
        None for `coupled-channels`, which a network says.

    Raises:
        WoodburyError: For anything else.

    Example:
        >>> parse_unit("block:4x1")
        block(4, 1)
    """
    name, colon, size = text.partition(":")
    if text == COUPLED:
        return None
    if name != "block":
        return pick({**UNITS, COUPLED: single}, text, "unit")
    sides = size.split("x")
    if not (colon and all(side.isdigit() and int(side) for side in sides)):
        raise WoodburyError(
            f"--unit is {text!r}: give the size of a block, such as block:4 or block:4x1."
        )
    return block(*map(int, sides))


def parse_selection(text: str) -> Selection:
    """`greedy`, `exhaustive`, or with a number `iterative-greedy:16`, `swaps:20`, `iht:20`.

    Raises:
        WoodburyError: For anything else.

    Example:
        >>> parse_selection("swaps:20")
        swaps(max_steps=20, start=greedy)
    """
    name, colon, number = text.partition(":")
    if not colon and name in SELECTIONS:
        return SELECTIONS[name]
    if not colon:
        pick({**SELECTIONS, **NUMBERED_SELECTIONS}, name, "selection")
    if not number.isdigit():
        raise WoodburyError(
            f"--selection is {text!r}: give a number of steps, such as iterative-greedy:16."
        )
    return pick(NUMBERED_SELECTIONS, name, "selection with a number")(int(number))


def parse_pattern(text: str) -> tuple[int, int]:
    """`2:4` as (2, 4).

    Raises:
        WoodburyError: For anything else.
    """
    n, _, m = text.partition(":")
    if not (n.isdigit() and m.isdigit()):
        raise WoodburyError(f"--pattern is {text!r}: give how many are kept of how many, as 2:4.")
    return int(n), int(m)


def pattern_sparsity(text: str) -> float:
    """The sparsity of an n:m pattern.

    Raises:
        WoodburyError: If there is no such pattern.

    Example:
        >>> pattern_sparsity("2:4")
        0.5
    """
    return n_of_m(*parse_pattern(text)).sparsity


def parse_targets(text: str) -> Targets:
    """A sparsity, or several by the names of the parameters.

    Args:
        text: `0.9`, or `conv1*=0,fc*=0.8,*=0.9`, of which the first that matches counts.

    Raises:
        WoodburyError: For anything else.

    Example:
        >>> parse_targets("fc*=0.8,*=0.9")
        {'fc*': 0.8, '*': 0.9}
    """
    try:
        if "=" not in text:
            return check_sparsity(float(text))
        pairs = [part.rsplit("=", 1) for part in text.split(",")]
        return check_targets({name.strip(): float(number) for name, number in pairs})
    except WoodburyError:
        raise
    except ValueError as error:
        raise WoodburyError(
            f"--sparsity is {text!r}: give a number such as 0.9, or PATTERN=NUMBER with commas "
            "between, such as fc*=0.8,*=0.9."
        ) from error


def parse_sparsities(text: str) -> list[float]:
    """`0.9,0.5` as sparsities: each once, rising.

    Raises:
        WoodburyError: If one is no number in [0, 1).

    Example:
        >>> parse_sparsities("0.9,0.5,0.9")
        [0.5, 0.9]
    """
    try:
        return sorted({check_sparsity(float(part)) for part in text.split(",")})
    except WoodburyError:
        raise
    except ValueError as error:
        raise WoodburyError(
            f"--sparsities is {text!r}: give numbers with commas between, such as 0.5,0.9."
        ) from error


def parse_columns(text: str | None) -> dict[str, tuple[str, ...]]:
    """What columns hold: `text=review,label=stars`, and two for pairs as `text=first+second`.

    Raises:
        WoodburyError: For anything else.

    Example:
        >>> parse_columns("text=premise+hypothesis,label=gold")
        {'text': ('premise', 'hypothesis'), 'label': ('gold',)}
    """
    if text is None:
        return {}
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(role.strip() and names.strip() for role, _, names in pairs):
        raise WoodburyError(
            f"--columns is {text!r}: give ROLE=COLUMN with commas between, such as "
            "text=review,label=stars."
        )
    return {
        role.strip(): tuple(name.strip() for name in names.split("+")) for role, _, names in pairs
    }


def parse_dampings(text: str) -> tuple[float, ...]:
    """`auto`, a number, or several with commas between.

    Raises:
        WoodburyError: If one is no positive number.

    Example:
        >>> parse_dampings("1e-3,0.1")
        (0.001, 0.1)
    """
    if text == "auto":
        return DAMPINGS
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value < float("inf") for value in values):
        raise WoodburyError(
            f"--damping is {text!r}: give a positive number, several with commas between, or auto."
        )
    return values
