"""One network, its data and what counts as good: what `prune` and `compare` start from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from woodbury.cli.choices import LABELS, LOSSES, Sampling
from woodbury.cli.common import Options, note
from woodbury.cli.data import (
    HELD_OUT,
    Data,
    answers,
    batches,
    labels_of,
    load_data,
    probe,
    sample,
    split_off,
)
from woodbury.cli.load import load_model
from woodbury.cli.rules import pick
from woodbury.errors import WoodburyError
from woodbury.evaluation.metrics import accuracy, r_squared
from woodbury.model.batches import Batch
from woodbury.model.batchnorm import recalibrate
from woodbury.model.flop_count import Flops, flops
from woodbury.model.likelihood import Likelihood
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.autoconfig import choose_refit
from woodbury.pruning.presets import standard
from woodbury.pruning.refit.least_squares import Refit
from woodbury.pruning.refit.reconstruction import Reconstruction
from woodbury.pruning.schedule import Targets

USUAL_COUNT = 1000


MOST_HELD_OUT = 2000


@dataclass(frozen=True)
class Problem:
    """A dense model with its calibration data, its test data, and data held out to choose a damping.

    measure: what `score` is called; `score` and `validate` want to be large. count: gradients, of `batch` samples each.
    trainable: the names of the parameters that required a gradient when the model came.
    """

    model: nn.Module
    trainable: tuple[str, ...]
    likelihood: Likelihood
    space: ParameterSpace
    calibration: Dataset
    held_out: Iterable[Batch] | None
    test: Iterable[Batch]
    measure: str
    count: int
    options: Options

    def objective(self, seed: int) -> Objective:
        """The dense objective on a calibration sample drawn by `seed`."""
        objective = Objective.from_model(self.model, self.drawn(seed), self.likelihood, self.space)
        if not self.options.keep_zeros:
            return objective
        nonzero = objective.weights != 0
        return objective.at(objective.weights[nonzero], self.space.restrict(nonzero))

    def drawn(self, seed: int) -> Iterable[Batch]:
        """The calibration sample drawn by `seed`."""
        return batches(sample(self.calibration, self.count * self.options.batch, seed))

    def score(self, objective: Objective) -> float:
        """The accuracy (or R²) on the test data, with BatchNorm recalibrated where that was asked for."""
        return SCORES[self.measure](self.recalibrated(objective), self.test)

    def validate(self, objective: Objective) -> float:
        """Minus the loss on held-out training data."""
        return -self.recalibrated(objective).loss(self.held_out)

    def recalibrated(self, objective: Objective) -> Objective:
        """The objective as it will be used: on a copy of the model with new BatchNorm statistics, if asked for."""
        if not self.options.recalibrate:
            return objective
        recalibrated = replace(objective, model=copy.deepcopy(self.model))
        recalibrated.write()
        recalibrate(recalibrated.model, objective.batches)
        return recalibrated

    def dense(self) -> float:
        """The dense model's score, as it is."""
        return SCORES[self.measure](
            Objective.from_model(self.model, [], self.likelihood, self.space), self.test
        )

    def sampling(self) -> Sampling:
        """What the Fishers are estimated from."""
        o = self.options
        return Sampling(self.count, o.batch, o.block, o.seed, LABELS[o.labels])

    def refit(self, steps: int, sparsity: Targets, patient: bool = True) -> Refit | None:
        """So many steps as they suit the model best; None for none, or without room for those who are not patient."""
        if not steps:
            return None
        damping, layers = standard.dampings[0], Reconstruction()
        asked = Refit(steps, damping=damping, reconstruction=layers, seed=self.options.seed)
        return choose_refit(
            asked,
            self.objective(self.options.seed),
            self.count * self.options.batch,
            sparsity,
            patient,
        )

    def flops(self) -> Flops:
        """What each weight costs, on the first batch of the test data."""
        inputs, _ = next(iter(self.test))
        return flops(self.model, inputs)

    def settings(self) -> dict[str, Any]:
        """What was asked for and what was decided, for the report."""
        decided = {
            "count": self.count,
            "parameters": list(self.space.shapes),
            "weights": self.space.n,
        }
        return {**asdict(self.options), **decided}


def pose(model: str, data: str, options: Options, *, choosing: bool) -> Problem:
    """Load both, see that they fit, and split off what is needed; whatever is decided for the user is said.

    choosing: hold training data out to choose a damping on.
    """
    likelihood = pick(LOSSES, options.loss, "loss")
    pick(LABELS, options.labels, "kind of labels")
    torch.manual_seed(options.seed)
    network = load_model(model, options.checkpoint)
    trainable = tuple(
        name for name, parameter in network.named_parameters() if parameter.requires_grad
    )
    network.requires_grad_(False)  # gradients are taken of copies
    if others := {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32}:
        raise WoodburyError(
            f"The model's weights are {str(others.pop())[6:]} and DATA comes as float32: return model.float()."
        )
    space = ParameterSpace.from_model(
        network, options.include or "*", options.exclude or (), min_ndim=2
    )
    stand_in = partial(ANSWERS[options.loss], network) if options.labels == "sampled" else None
    found = load_data(data, seed=options.seed, size=options.size, answer=stand_in)
    for remark in found.notes:
        note(remark)
    if found.answered:
        note(
            f"{data} has no labels: what the dense network says stands for them, and the score is agreement with it."
        )
    test = batches(found.test)
    probe(network, test, likelihood)
    calibration, held_out = _held_out(found, options.seed) if choosing else (found.train, None)
    probe(
        network, batches(sample(calibration, 250, options.seed)), likelihood, labels_of(calibration)
    )
    return Problem(
        model=network,
        trainable=trainable,
        likelihood=likelihood,
        space=space,
        calibration=calibration,
        held_out=held_out,
        test=test,
        measure=MEASURES[options.loss, found.answered],
        count=_count(calibration, options),
        options=options,
    )


SCORES: Mapping[str, Callable[[Objective, Iterable[Batch]], float]] = {
    "accuracy": accuracy,
    "agreement": accuracy,
    "R²": r_squared,
}


MEASURES = {
    ("cross_entropy", False): "accuracy",
    ("cross_entropy", True): "agreement",
    ("squared_error", False): "R²",
    ("squared_error", True): "R²",
}


ANSWERS: Mapping[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "cross_entropy": lambda model, inputs: answers(model, inputs).argmax(1),
    "squared_error": answers,
}
"""For each loss, the labels that a dense network's own outputs give."""


def _held_out(found: Data, seed: int) -> tuple[Dataset, Iterable[Batch]]:
    rest, aside = split_off(found.train, HELD_OUT, seed)
    return rest, batches(sample(aside, MOST_HELD_OUT, seed))


def _count(calibration: Dataset, options: Options) -> int:
    """How many gradients: as many as asked for, else 1000, else as many as there are."""
    there = len(calibration) // options.batch  # type: ignore[arg-type]
    wanted = options.count or USUAL_COUNT
    if there >= wanted:
        return wanted
    if options.count or not there:
        raise WoodburyError(
            f"The training data gives {there} of the {wanted} gradients of {options.batch} sample(s): lower --count or --batch."
        )
    note(f"The Fisher is made of {there} gradients: that is all the training data gives.")
    return there
