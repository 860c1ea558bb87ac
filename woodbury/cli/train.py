"""woodbury train: a network from scratch or from a checkpoint, by MFAC or by what it is compared with; resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from woodbury.cli.choices import LOSSES, TRAINERS
from woodbury.cli.common import (
    Labelled,
    Model,
    note,
    one_sentence,
    progress_bars,
    resumable,
    say,
    with_options,
)
from woodbury.cli.data import (
    HELD_OUT,
    Batches,
    batches,
    labels_of,
    load_data,
    probe,
    sample,
    split_off,
    stream,
)
from woodbury.cli.load import load_model
from woodbury.cli.problem import SCORES
from woodbury.cli.rules import pick
from woodbury.errors import WoodburyError
from woodbury.estimation.kfac_factors import factored
from woodbury.estimation.recipes import kfac
from woodbury.io.fingerprint import check_same, facts_of
from woodbury.io.run_folder import RunFolder
from woodbury.io.sparse_files import save_sparse
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood
from woodbury.model.objective import Objective
from woodbury.model.peeking import PeekingLoader
from woodbury.optim.preconditioner import Preconditioner
from woodbury.reporting.files import versions, write_json
from woodbury.reporting.tables import Grid, facts, write_page
from woodbury.training.finetuning import batches_in, finetune, shuffled

AHEAD = 1024
"""Samples that kfac is taken on, those next in line."""


@dataclass(frozen=True)
class Recipe:
    """How to train; a line here is an option, and a line in the report."""

    epochs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Times through the training data.")
    ] = 5
    optimizer: Annotated[str, typer.Option(metavar="NAME", help=", ".join(TRAINERS) + ".")] = "mfac"
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Learning rate at first, from which half a cosine takes it to 0.  "
            f"[default: {', '.join(f'{name} {trainer.lr:g}' for name, trainer in TRAINERS.items())}]",
        ),
    ] = None
    momentum: Annotated[
        float, typer.Option(metavar="NUMBER", help="The momentum; Adam's first beta.")
    ] = 0.9
    weight_decay: Annotated[
        float, typer.Option(metavar="NUMBER", help="The optimizer's weight decay.")
    ] = 0.0
    window: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Gradients that mfac remembers.  [default: 128]"),
    ] = None
    damping: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER", help="The damping of the Fisher.  [default: mfac 0.01, kfac 0.03]"
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Samples in a batch.")] = 64
    loss: Annotated[
        str,
        typer.Option(metavar="NAME", help="cross_entropy (classes) or squared_error (regression)."),
    ] = "cross_entropy"
    size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Resize images to SIZE × SIZE.")
    ] = None
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seeds the network, the order and the splits.")
    ] = 0

    def check(self) -> None:
        """Raise WoodburyError for what cannot be: the optimizers say themselves which numbers they refuse."""
        pick(LOSSES, self.loss, "loss")
        pick(TRAINERS, self.optimizer, "optimizer")
        for name, value in {"window": self.window, "damping": self.damping}.items():
            if value is not None and name not in TRAINERS[self.optimizer].own:
                having = " and ".join(
                    each for each, trainer in TRAINERS.items() if name in trainer.own
                )
                raise WoodburyError(f"--{name} is for {having}: {self.optimizer} has none.")
        try:
            self.optimizer_of(nn.Linear(1, 1))
        except WoodburyError:
            raise
        except ValueError as error:
            raise WoodburyError(
                f"{self.optimizer} refuses its options ({error}): choose others."
            ) from error

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of what is trainable."""
        moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not moving:
            raise WoodburyError(
                "None of the model's parameters requires a gradient: return it with some that do."
            )
        settings, trainer = self.settings(), TRAINERS[self.optimizer]
        own = {name: settings[name] for name in trainer.own}
        return trainer.make(moving, settings["lr"], self.momentum, self.weight_decay, **own)

    def settings(self) -> dict[str, Any]:
        """What was asked for, and the optimizer's usual numbers where nothing was."""
        trainer = TRAINERS[self.optimizer]
        usual = {"lr": trainer.lr, **trainer.own}
        return {
            name: usual.get(name) if value is None else value
            for name, value in asdict(self).items()
        }


@one_sentence
@with_options
def train(
    model: Model,
    data: Labelled,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write: new or empty.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Weights to begin with: .pt, or .safetensors, dense or sparse."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="The same command again, with this: go on where the run in DIR was stopped, or begin.",
        ),
    ] = False,
    *,
    recipe: Recipe,
) -> None:
    """Train a network; write its weights and a report.

    Example:  woodbury train net.py:fresh data.npz --epochs 5 --out trained
    """
    recipe.check()
    settings = {"model": model, "data": data, "checkpoint": checkpoint and str(checkpoint)}
    settings |= recipe.settings()
    with resumable(out, resume) as folder:
        if folder.saved:
            check_same(folder.saved["settings"], settings, f"The run in {out}")
        torch.manual_seed(recipe.seed)
        network = load_model(model, checkpoint)
        with progress_bars():
            record = _trained(network, data, recipe, folder, settings)
        table, line = _table(record), _line(recipe, record)
        with folder.finishing() as results:
            save_sparse(results / "weights.safetensors", network.state_dict(), {})
            made = {"command": "train", "settings": settings, "versions": versions(), **record}
            write_json(results / "report.json", made)
            folded = (facts("Settings", settings), facts("Versions", versions()))
            parts = [table.html(), *(grid.html(folded=True) for grid in folded)]
            write_page(
                results / "report.html", f"{Path(model).name} by {recipe.optimizer}", line, parts
            )
    say(table.rich())
    say(line)
    say(
        f'Load it with  model.load_state_dict(woodbury.load_sparse("{out / "weights.safetensors"}"))',
        plain=True,
    )


def _trained(
    network: nn.Module,
    data: str,
    recipe: Recipe,
    folder: RunFolder,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Train to the end, from wherever the run is; what happened, epoch by epoch, and the score on the test data."""
    likelihood, found = LOSSES[recipe.loss], load_data(data, seed=recipe.seed, size=recipe.size)
    for remark in found.notes:
        note(remark)
    train, aside = split_off(found.train, HELD_OUT, recipe.seed)
    held_out, test = batches(aside), batches(found.test)
    for part, labels in (
        (held_out, None),
        (test, None),
        (Batches(sample(train, 250, recipe.seed)), labels_of(train)),
    ):
        probe(network, part, likelihood, labels)
    measure = "accuracy" if recipe.loss == "cross_entropy" else "R²"
    optimizer, samples = recipe.optimizer_of(network), len(train)
    epoch = batches_in(samples, recipe.batch_size)
    total, began = recipe.epochs * epoch, time.monotonic()
    known = facts_of(network, samples)
    parts: dict[str, Any] = {"model": network, "optimizer": optimizer}
    parts["scheduler"] = LambdaLR(optimizer, partial(half_cosine, total=total))
    saved = folder.saved or {
        "record": {"measure": measure, "epochs": [], "seconds": 0.0},
        "done": 0,
    }
    record, done = saved["record"], saved["done"]
    of: Iterable[Batch] = stream(train, shuffled(samples, recipe.batch_size, recipe.seed, done))
    before = None
    if recipe.optimizer == "kfac":
        count, damping = min(AHEAD, samples), recipe.settings()["damping"]
        of, space = PeekingLoader(of, count), factored(network)
        before = Preconditioner(
            optimizer, network, kfac(count, damping), of, space=space, likelihood=likelihood
        )
        parts["preconditioner"] = before
    if folder.saved:
        check_same(saved.get("facts", {}), known, "The unfinished run")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])

    def after(step: int) -> None:
        if step % epoch:
            return
        number, loss, score = step // epoch, *_judged(network, likelihood, held_out, measure)
        record["epochs"] = [
            *record["epochs"],
            {"epoch": number, "held-out loss": loss, f"held-out {measure}": score},
        ]
        now = record | {"seconds": record["seconds"] + time.monotonic() - began}
        state = {name: part.state_dict() for name, part in parts.items()}
        folder.save(
            {
                "settings": settings,
                "facts": known,
                "record": now,
                "done": step,
                "rng": torch.get_rng_state(),
                **state,
            }
        )
        if before:
            before.renew()

    steps = range(done + 1, total + 1)
    finetune(
        network,
        optimizer,
        of,
        steps,
        likelihood=likelihood,
        scheduler=parts["scheduler"],
        after=after,
    )
    record["seconds"] += time.monotonic() - began
    return record | {measure: _judged(network, likelihood, test, measure)[1]}


def half_cosine(step: int, total: int) -> float:
    """1 at step 0, 0 at `total`."""
    return (1 + math.cos(math.pi * step / total)) / 2


def _judged(
    network: nn.Module, likelihood: Likelihood, data: Any, measure: str
) -> tuple[float, float]:
    objective = Objective.from_model(network, [], likelihood)
    return objective.loss(data), SCORES[measure](objective, data)


def _table(record: dict[str, Any]) -> Grid:
    measure = record["measure"]
    cells = tuple(
        (
            str(each["epoch"]),
            f"{each['held-out loss']:.4g}",
            f"{100 * each[f'held-out {measure}']:.2f} %",
        )
        for each in record["epochs"]
    )
    return Grid("Held-out training data", ("epoch", "loss", measure), cells)


def _line(recipe: Recipe, record: dict[str, Any]) -> str:
    """The result in one line."""
    measure, count = record["measure"], f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''}"
    return f"{count} of {recipe.optimizer}: {measure} {100 * record[measure]:.2f} % on the test data ({record['seconds']:.1f} s)."
