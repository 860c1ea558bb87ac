"""One network, its data and what counts as good: what `prune` and `compare` start from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from woodbury.cli.console import print_note
from woodbury.cli.inputs.data import Splits, check_data_exists
from woodbury.cli.inputs.fit import predict, probe
from woodbury.cli.inputs.sources import Source, source_of
from woodbury.cli.inputs.splits import (
    AllBatches,
    WithProgress,
    at_once,
    batches,
    labels_of,
    tokens_per_sample,
)
from woodbury.cli.launched import agree_on
from woodbury.cli.named_methods import Sampling
from woodbury.cli.names import COUPLED, LABELS, LOSSES, Loss, parse_pattern
from woodbury.cli.option_values import settings_of
from woodbury.cli.options import PruningOptions
from woodbury.errors import WoodburyError
from woodbury.evaluation.metrics import standard_error
from woodbury.integrations.compaction.coupled_units import CoupledChannels, coupled_channels
from woodbury.memory.budget import check_holds
from woodbury.model.attributes import copy_of
from woodbury.model.batches import Batch
from woodbury.model.batchnorm import recalibrate
from woodbury.model.flop_count import Flops, flops
from woodbury.model.left_out import left_out_in_words
from woodbury.model.objective import Objective
from woodbury.model.prunable import check_prunable
from woodbury.model.space import ParameterSpace
from woodbury.pruning.costs import Cost
from woodbury.pruning.prediction import HELD_BACK_SAMPLES, LEAST_HELD_BACK
from woodbury.pruning.presets import standard
from woodbury.pruning.refit.layer_goal import Reconstruction
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.solver_choice import choose_refit
from woodbury.pruning.schedule import Targets
from woodbury.pruning.scopes import consecutive
from woodbury.pruning.undivided import divided, undivided_in_words
from woodbury.runtime.layer_seconds import latency
from woodbury.training.drawing import HELD_OUT_FRACTION, draw, hold_out

SHARES = ("accuracy", "agreement")
"""Measures that are a share of the samples."""
TEST_DATA = "test data"
"""What progress calls it."""
MAX_HELD_OUT_SAMPLES = 2000
"""Held-out samples that candidates are judged on at most."""


@dataclass(frozen=True)
class Problem:
    """A dense model with its calibration data, its test data, and data to choose a damping on.

    Attributes:
        source: Where the network is from.
        model: The network, in eval mode; no parameter requires a gradient.
        trainable: The names of the parameters that required a gradient when the model came.
        loss: The loss and its metric.
        space: The parameters that are pruned.
        calibration: The training data that the curvature is estimated on.
        held_out: Training data to choose among dampings on, None where there is nothing to choose.
        test: What `score` is measured on.
        test_samples: How many samples that are.
        measure: What `score` is called.
        count: Gradients in the Fisher, of `batch` samples each.
        options: What was asked for.
        unchosen: Held-out training data that no damping is chosen on, to check predictions on; None
            where there is too little.
        usual: Gradients where none are asked for and the data gives as many.
    """

    source: Source
    model: nn.Module
    trainable: tuple[str, ...]
    loss: Loss
    space: ParameterSpace
    calibration: Dataset
    held_out: Iterable[Batch] | None
    test: AllBatches
    test_samples: int
    measure: str
    count: int
    options: PruningOptions
    unchosen: Iterable[Batch] | None = None
    usual: int = standard.samples

    def objective(self, seed: int) -> Objective:
        """The dense objective on the calibration set of a seed."""
        calibration_set = self.calibration_set(seed)
        likelihood = self.loss.likelihood
        objective = Objective.from_model(self.model, calibration_set, likelihood, self.space)
        if not self.options.parameters.keep_zeros:
            return objective
        nonzero = objective.weights != 0
        return objective.at(objective.weights[nonzero], self.space.restrict(nonzero))

    def dense(self) -> Objective:
        """The dense objective on the calibration set of the seed that was asked for."""
        return self.objective(self.options.inputs.seed)

    def calibration_set(self, seed: int) -> Iterable[Batch]:
        """The calibration set drawn by a seed."""
        return batches(draw(self.calibration, self.samples, seed))

    def beside_calibration(self, seed: int) -> Iterable[Batch] | None:
        """Training data beside a seed's calibration set, to check predictions on; None for none."""
        drawn = draw(self.calibration, self.samples + HELD_BACK_SAMPLES, seed)
        others = drawn.indices[self.samples :]
        if len(others) < LEAST_HELD_BACK:
            return None
        return batches(Subset(self.calibration, others))

    def holding_out(self) -> Problem:
        """The same with a part of the training data held out, to choose a damping on."""
        seed = self.options.inputs.seed
        calibration, aside = hold_out(self.calibration, HELD_OUT_FRACTION, seed)
        drawn = draw(aside, MAX_HELD_OUT_SAMPLES + HELD_BACK_SAMPLES, seed).indices
        held_out = batches(Subset(aside, drawn[:MAX_HELD_OUT_SAMPLES]))
        others = drawn[MAX_HELD_OUT_SAMPLES:]
        unchosen = batches(Subset(aside, others)) if len(others) >= LEAST_HELD_BACK else None
        count = _count(calibration, self.options, self.usual)
        return replace(
            self, calibration=calibration, held_out=held_out, count=count, unchosen=unchosen
        )

    def tell_count(self) -> None:
        """Say it where the data gives fewer gradients than are usual."""
        if self.options.curvature.count is None and self.count < self.usual:
            beside = " beside what is held out" if self.held_out is not None else ""
            print_note(
                f"The Fisher is made of {self.count} gradients: that is all the training data "
                f"gives{beside}."
            )

    def tokens_per_sample(self, seed: int) -> float | None:
        """Tokens that a sample of a calibration set predicts; None for no language model."""
        if not self.source.predicts_next_tokens:
            return None
        return tokens_per_sample(self.calibration_set(seed))

    @property
    def samples(self) -> int:
        """Samples in a calibration set."""
        return self.count * self.options.curvature.batch

    def score(self, objective: Objective) -> float:
        """The metric on the test data, with BatchNorm recalibrated where that was asked for."""
        return self.loss.metric(self.recalibrated(objective), WithProgress(TEST_DATA, self.test))

    def score_error(self, score: float) -> float | None:
        """The standard error of a score, from the draw of the test data; None for no share."""
        return score_error(score, self.measure, self.test_samples)

    def held_out_score(self, objective: Objective) -> float:
        """The metric on the held-out training data."""
        return self.loss.metric(self.recalibrated(objective), self.held_out or [])

    def validate(self, objective: Objective) -> float:
        """Minus the loss on the held-out training data, by which dampings are chosen."""
        return -self.recalibrated(objective).loss(self.held_out)

    def recalibrated(self, objective: Objective) -> Objective:
        """The objective as it will be used: on a copy of the model with new BatchNorm statistics.

        Without --recalibrate it is the objective itself.
        """
        if not self.options.stage.recalibrate:
            return objective
        recalibrated = replace(objective, model=copy_of(self.model))
        recalibrated.write()
        recalibrate(recalibrated.model, objective.batches)
        return recalibrated

    def dense_score(self) -> float:
        """The metric of the dense model on the test data, as it is."""
        as_it_is = Objective.from_model(self.model, [], self.loss.likelihood, self.space)
        return self.loss.metric(as_it_is, WithProgress(TEST_DATA, self.test))

    def sampling(self) -> Sampling:
        """What the Fishers are estimated from."""
        curvature = self.options.curvature
        return Sampling(
            count=self.count,
            batch=curvature.batch,
            mc_samples=curvature.mc_samples,
            block=curvature.block,
            seed=self.options.inputs.seed,
            labels=LABELS[curvature.labels],
        )

    def refit(self, steps: int, sparsity: Targets, required: bool = True) -> Refit | None:
        """The refit that suits the model best.

        Args:
            steps: Its steps; 0 for none.
            sparsity: The sparsity that it follows.
            required: Whether it is wanted also where it takes long.

        Returns:
            None for no steps, or where it has no room and is not wanted at any price.
        """
        if not steps:
            return None
        seed = self.options.inputs.seed
        asked = Refit(
            steps, damping=standard.dampings[0], reconstruction=Reconstruction(), seed=seed
        )
        return choose_refit(asked, self.objective(seed), self.samples, sparsity, required)

    def flops(self) -> Flops:
        """What each weight costs, on the first batch of the test data."""
        inputs, _ = next(iter(self.test))
        return flops(self.model, inputs)

    @cached_property
    def cost(self) -> Cost:
        """What each weight costs for the selection: its seconds where asked for, else its FLOPs."""
        if not self.options.selection.latency:
            return self.flops()
        inputs, _ = next(iter(self.test))
        return latency(self.model, inputs)

    @cached_property
    def coupled(self) -> CoupledChannels | None:
        """The channels that can only be removed together, where they are the unit."""
        if self.options.selection.unit != COUPLED:
            return None
        inputs, _ = next(iter(self.test))
        return coupled_channels(self.model, inputs)

    def decided(self) -> dict[str, Any]:
        """What was decided for the user: the count, the parameters, the memory."""
        decided: dict[str, Any] = {
            "count": self.count,
            "parameters": list(self.space.shapes),
            "weights": self.space.n,
            "memory": self.options.resources.memory,
        }
        if self.space.left_out:
            decided["left out"] = left_out_in_words(self.space.left_out)
        return decided

    def settings(self) -> dict[str, Any]:
        """What was asked for and what was decided, for the report."""
        decided = self.decided()
        if words := undivided_in_words(self.space):
            decided["undivided"] = words
        return settings_of(self.options) | decided


def score_error(score: float, measure: str, samples: int) -> float | None:
    """The standard error of a score on test data.

    Args:
        score: The score.
        measure: What it is.
        samples: Of the test data.

    Returns:
        None for a score that is no share of the samples, such as R².
    """
    return standard_error(score, samples) if measure in SHARES else None


def load_problem(
    model: str,
    data: str,
    options: PruningOptions,
    *,
    choosing: bool,
    usual: int = standard.samples,
) -> Problem:
    """Load model and data, see that they fit, and split off what is needed.

    What is decided for the user is said on stderr.

    Args:
        model: MODEL as the user wrote it.
        data: DATA as the user wrote it.
        options: What was asked for.
        choosing: Whether to hold training data out to choose a damping on.
        usual: Gradients where none are asked for and the data gives as many.

    Raises:
        WoodburyError: For whatever is wrong with them.
    """
    inputs = options.inputs
    loss = LOSSES[inputs.loss]
    torch.manual_seed(inputs.seed)
    check_data_exists(data)
    source = source_of(model, data, inputs)
    network = source.model()
    trainable = tuple(
        name for name, parameter in network.named_parameters() if parameter.requires_grad
    )
    network.requires_grad_(False)  # gradients are taken of copies
    _check_float32(network)
    parameters = options.parameters
    space = ParameterSpace.for_pruning(network, parameters.include or None, parameters.exclude)
    if options.selection.pattern:
        space = divided(space, consecutive(parse_pattern(options.selection.pattern)[1]))
        if words := undivided_in_words(space):
            print_note(words)
    check_prunable(network, space.shapes)
    check_holds(options.resources.memory, space.n)
    if space.left_out:
        print_note(f"Not pruned: {left_out_in_words(space.left_out)}; --include '*' takes them in.")
    splits = _load_splits(network, source, data, loss, options)
    agree_on(network, len(splits.train))  # type: ignore[arg-type]
    test = batches(splits.test)
    probe(network, test, loss.likelihood)
    first_batch = batches(draw(splits.train, at_once(splits.train), inputs.seed))
    probe(network, first_batch, loss.likelihood, labels_of(splits.train))
    problem = Problem(
        source=source,
        model=network,
        trainable=trainable,
        loss=loss,
        space=space,
        calibration=splits.train,
        held_out=None,
        test=test,
        test_samples=len(splits.test),  # type: ignore[arg-type]
        measure=loss.measure_without_labels if splits.without_labels else loss.measure,
        count=_count(splits.train, options, usual),
        options=options,
        usual=usual,
    )
    if choosing:
        problem = problem.holding_out()
    problem.tell_count()
    return problem


def _check_float32(network: nn.Module) -> None:
    dtypes = {each.dtype for each in network.parameters() if each.is_floating_point()}
    if others := dtypes - {torch.float32}:
        raise WoodburyError(
            f"The model's weights are {str(others.pop())[6:]} and DATA comes as float32: return "
            "model.float()."
        )


def _load_splits(
    network: nn.Module, source: Source, data: str, loss: Loss, options: PruningOptions
) -> Splits:
    def labels_from(inputs: Any) -> Tensor:
        return loss.labels_from(predict(network, inputs, loss.likelihood))

    splits = source.splits(labels_from if options.curvature.labels == "sampled" else None)
    for note in splits.notes:
        print_note(note)
    if splits.without_labels:
        print_note(
            f"{data} has no labels: what the dense network says stands for them, and the score is "
            "agreement with it."
        )
    return splits


def _count(calibration: Dataset, options: PruningOptions, usual: int) -> int:
    """How many gradients: as many as asked for, else the usual number, else all there are."""
    asked, batch = options.curvature.count, options.curvature.batch
    available = len(calibration) // batch  # type: ignore[arg-type]
    wanted = asked or usual
    if available >= wanted:
        return wanted
    if asked or not available:
        remedy = "--count" if batch == 1 else "--count or --batch"
        raise WoodburyError(
            f"The training data gives {available} of the {wanted} gradients of {batch} sample(s): "
            f"lower {remedy}."
        )
    return available
