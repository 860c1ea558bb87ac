"""`woodbury train`: a network from scratch or from a checkpoint, by MFAC or others; resumable."""

# ruff: noqa: B008 (the options are frozen, so that one default serves all calls)

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from woodbury.cli.console import (
    memory_for,
    notes_after_checks,
    print_note,
    print_place,
    print_result,
    progress_bars,
)
from woodbury.cli.inputs.data import check_data_exists
from woodbury.cli.inputs.fit import probe
from woodbury.cli.inputs.sources import Source, source_of
from woodbury.cli.inputs.splits import (
    Batches,
    at_once,
    batches,
    labels_of,
    stream,
    tokens_per_sample,
)
from woodbury.cli.launched import agree_on
from woodbury.cli.names import LOSSES, Loss
from woodbury.cli.optimizers import OptimizerSettings, make_optimizer, optimizer_settings
from woodbury.cli.option_values import as_asked, settings_of
from woodbury.cli.options import (
    ConfigFile,
    InputOptions,
    LabelledData,
    MemoryOptions,
    Model,
    OptimizerOptions,
    TrainingOptions,
    out_option,
)
from woodbury.cli.output import (
    WEIGHTS_FILE,
    default_folder,
    if_there_is_room,
    needed,
    print_how_to_load,
    used_again,
    write_report,
)
from woodbury.cli.problem import score_error
from woodbury.cli.run_file import print_how_to_repeat, write_run_file
from woodbury.cli.session import Parts, Session, already_finished, resumable
from woodbury.estimation.kfac_factors import factored
from woodbury.estimation.recipes import kfac
from woodbury.io.sparse_files import save_sparse
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.model.peeking import PeekingLoader
from woodbury.optim.preconditioner import Preconditioner
from woodbury.reporting import run_tables
from woodbury.reporting.grid import percent
from woodbury.reporting.pages import train_page
from woodbury.reporting.records import EpochNumbers, TrainNumbers, perplexity, score_label
from woodbury.training.drawing import HELD_OUT_FRACTION, draw, hold_out
from woodbury.training.finetuning import batches_in, shuffled
from woodbury.training.learning_rate import cosine_restarts

KFAC_SAMPLES = 1024
"""Samples that kfac is estimated on: those next in line."""


def train(
    model: Model,
    data: LabelledData,
    /,
    *,
    training: TrainingOptions = TrainingOptions(),
    optimizer: OptimizerOptions = OptimizerOptions(),
    inputs: InputOptions = InputOptions(),
    resources: MemoryOptions = MemoryOptions(),
    out: Annotated[Path | None, out_option("MODEL-OPTIMIZER")] = None,
    config: ConfigFile = None,
) -> None:
    """Train a network; write its weights and a report.

    Example:  `woodbury train net.py:fresh data.npz --epochs 5 --out trained`
    """
    made_with = optimizer_settings(
        training.optimizer,
        lr=optimizer.lr,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay or 0.0,
        window=training.window,
        damping=training.damping,
        memory=resources.memory,
    )
    facts = asdict(made_with)
    del facts["memory"]  # a run may go on with more
    settings = {
        "model": model,
        "data": data,
        **settings_of(training, optimizer, inputs),
        **facts,
    }
    if already_finished(out, optimizer.resume, settings):
        return
    default = default_folder(model, training.optimizer)
    run = resumable(out, default, optimizer.resume, settings)
    with memory_for(resources.memory), run as (folder, place):
        torch.manual_seed(inputs.seed)
        check_data_exists(data)
        source = source_of(model, data, inputs)
        network = source.model()
        with progress_bars():
            with notes_after_checks():
                loaded = _load_data(network, source, inputs)
                agree_on(network, loaded.samples)
                if out is None:
                    print_place(place)
            session = Session(folder, settings, network, loaded.samples)
            numbers = _train(network, loaded, training, optimizer, made_with, inputs.seed, session)
        line = _line(training, numbers)
        with folder.finishing() as results:
            with needed(results):
                save_sparse(results / WEIGHTS_FILE, network.state_dict(), {})
                write_report(results, "train", settings, asdict(numbers), asked=settings)
                source.write(network, results)
                groups = (training, optimizer, inputs, resources)
                asked = {"model": model, "data": data, **as_asked(*groups)}
                write_run_file(results, "train", asked)
            title = f"{Path(model).name} by {training.optimizer}"
            with if_there_is_room(results / "report.html") as page:
                codes = used_again(model, place, source.how_to_load(place))
                train_page(title, line, numbers, settings, codes).write(page)
    print_result(run_tables.epochs(numbers.epochs, numbers.measure).rich())
    print_result(line)
    print_how_to_load(place, source.how_to_load(place))
    print_how_to_repeat(place)


class TrainingData(NamedTuple):
    """What a network is trained and judged on.

    Attributes:
        loss: The loss and its metric.
        train: What it is trained on.
        held_out: Training data that it is judged on after every epoch.
        test: What it is judged on at the end.
        test_samples: How many samples that are.
        predicts_next_tokens: Whether the network is a causal language model.
    """

    loss: Loss
    train: Dataset
    held_out: Iterable[Batch]
    test: Iterable[Batch]
    test_samples: int
    predicts_next_tokens: bool

    @property
    def samples(self) -> int:
        """How many samples it is trained on."""
        return len(self.train)  # type: ignore[arg-type]


def _load_data(network: nn.Module, source: Source, inputs: InputOptions) -> TrainingData:
    """The data, seen to fit the network; what is decided for the user is said."""
    loss = LOSSES[inputs.loss]
    splits = source.splits(None)
    for note in splits.notes:
        print_note(note)
    train, aside = hold_out(splits.train, HELD_OUT_FRACTION, inputs.seed)
    held_out = batches(aside)
    test = batches(splits.test)
    probe(network, held_out, loss.likelihood)
    probe(network, test, loss.likelihood)
    first_batch = Batches(draw(train, at_once(train), inputs.seed), at_once(train))
    probe(network, first_batch, loss.likelihood, labels_of(train))
    test_samples = len(splits.test)  # type: ignore[arg-type]
    return TrainingData(loss, train, held_out, test, test_samples, source.predicts_next_tokens)


def _train(
    network: nn.Module,
    data: TrainingData,
    training: TrainingOptions,
    options: OptimizerOptions,
    made_with: OptimizerSettings,
    seed: int,
    session: Session,
) -> TrainNumbers:
    """Train to the end, from wherever the run is."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(training.optimizer, trainable, made_with)
    epoch = batches_in(data.samples, options.batch_size)
    total = training.epochs * epoch
    scheduler = LambdaLR(optimizer, cosine_restarts((), total))
    order = shuffled(data.samples, options.batch_size, seed, session.done)
    upcoming: Iterable[Batch] = stream(data.train, order)
    preconditioner = None
    if training.optimizer == "kfac":
        count = min(KFAC_SAMPLES, data.samples)
        upcoming = PeekingLoader(upcoming, count)
        preconditioner = Preconditioner(
            optimizer,
            network,
            kfac(count, made_with.damping or 0.0),  # OPTIMIZERS has one
            upcoming,
            space=factored(network),
            likelihood=data.loss.likelihood,
            memory=made_with.memory,
        )
    others = {"preconditioner": preconditioner} if preconditioner else {}
    session.restore(Parts(network, optimizer, scheduler, others))
    epochs = [EpochNumbers(**saved) for saved in session.record.get("epochs", [])]

    def after(step: int) -> None:
        if step % epoch:
            return
        epochs.append(EpochNumbers(step // epoch, *_evaluate(network, data, data.held_out)))
        session.record["epochs"] = [asdict(each) for each in epochs]
        session.save(step)
        if preconditioner:  # now, so that a run that was stopped here goes on to the same bits
            preconditioner.renew()

    session.train(upcoming, total, data.loss.likelihood, after)
    at_the_end = _evaluate(network, data, data.test)
    return TrainNumbers(
        measure=data.loss.measure,
        score=at_the_end.score,
        test_samples=data.test_samples,
        standard_error=score_error(at_the_end.score, data.loss.measure, data.test_samples),
        seconds=session.seconds,
        epochs=tuple(epochs),
        perplexity=at_the_end.perplexity,
    )


class Measured(NamedTuple):
    """What a network is on some data.

    Attributes:
        loss: The mean over samples.
        score: The metric.
        perplexity: Of a causal language model; None for others.
    """

    loss: float
    score: float
    perplexity: float | None


def _evaluate(network: nn.Module, data: TrainingData, batches: Iterable[Batch]) -> Measured:
    """What a network is on batches."""
    objective = Objective.from_model(network, [], data.loss.likelihood)
    loss = objective.loss(batches)
    tokens = tokens_per_sample(batches) if data.predicts_next_tokens else None
    return Measured(loss, data.loss.metric(objective, batches), perplexity(loss, tokens))


def _line(training: TrainingOptions, numbers: TrainNumbers) -> str:
    """The result in one line."""
    epochs = f"{training.epochs} epoch{'s' if training.epochs > 1 else ''}"
    of_tokens = numbers.perplexity
    beside = "" if of_tokens is None else f", perplexity {of_tokens:.4g}"
    return (
        f"{epochs} of {training.optimizer}: {score_label(numbers.measure)} "
        f"{percent(numbers.score, 2)}{beside} on the test data ({numbers.seconds:.1f} s)."
    )
