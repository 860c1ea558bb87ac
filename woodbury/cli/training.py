"""The options of `prune` that only count with --epochs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

import torch
import typer

from woodbury.cli.choices import OPTIMIZERS
from woodbury.cli.problem import Problem
from woodbury.cli.rules import pick
from woodbury.errors import WoodburyError


@dataclass(frozen=True)
class Training:
    """The options of `prune` that only count with --epochs."""

    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Prune in steps and fine-tune for N epochs meanwhile; the options below go with it.",
        ),
    ] = None
    steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Pruning steps, on a cubic schedule.")
    ] = 10
    prune_until: Annotated[
        float,
        typer.Option(
            metavar="FRACTION", help="The part of the training after which the last step comes."
        ),
    ] = 0.6
    optimizer: Annotated[str, typer.Option(metavar="NAME", help=", ".join(OPTIMIZERS) + ".")] = (
        "sgd"
    )
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Learning rate right after each pruning step, from which a cosine takes it to 0 at the next.  "
            "[default: sgd 0.01, adam and adamw 0.001, mfac 0.003]",
        ),
    ] = None
    momentum: Annotated[
        float, typer.Option(metavar="NUMBER", help="The momentum; Adam's first beta.")
    ] = 0.9
    weight_decay: Annotated[
        float, typer.Option(metavar="NUMBER", help="The optimizer's weight decay.")
    ] = 1e-4
    decay_off: Annotated[
        bool, typer.Option("--decay-off", help="No weight decay after the last pruning step.")
    ] = False
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples in a batch of training.")
    ] = 64
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="The same command again, with this: go on where the run in DIR was stopped, or begin.",
        ),
    ] = False

    def check(self) -> None:
        """Raise WoodburyError for what cannot be, and for options that would count for nothing."""
        idle = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if self.epochs is None and idle:
            raise WoodburyError(
                f"--{idle[0].replace('_', '-')} is for fine-tuning: give --epochs too."
            )
        pick(OPTIMIZERS, self.optimizer, "optimizer")
        if not 0 < self.prune_until <= 1:
            raise WoodburyError(
                f"--prune-until is {self.prune_until}: it is a fraction of the training, over 0, up to 1."
            )
        if not 0 < self.rate < float("inf"):
            raise WoodburyError(f"--lr is {self.lr}: give a positive number.")
        if not 0 <= self.momentum < 1:
            raise WoodburyError(f"--momentum is {self.momentum}: it must lie in [0, 1).")
        if not 0 <= self.weight_decay < float("inf"):
            raise WoodburyError(
                f"--weight-decay is {self.weight_decay}: it must be at least 0 and finite."
            )

    def optimizer_of(self, problem: Problem) -> torch.optim.Optimizer:
        """The optimizer of what is trainable, which requires a gradient from now on."""
        parameters = dict(problem.model.named_parameters())
        moving = [parameters[name].requires_grad_() for name in problem.trainable]
        if not moving:
            raise WoodburyError(
                "None of the model's parameters requires a gradient: return it with some that do."
            )
        trainer = OPTIMIZERS[self.optimizer]
        return trainer.make(moving, self.rate, self.momentum, self.weight_decay, **trainer.own)

    @property
    def rate(self) -> float:
        """The learning rate asked for, or the optimizer's usual one."""
        return OPTIMIZERS[self.optimizer].lr if self.lr is None else self.lr
