"""Gradual pruning as a callback of Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader

from woodbury.argument_types import checks_types
from woodbury.errors import MissingDependency, WoodburyError, check_whole_number
from woodbury.integrations.in_trainers import (
    Moment,
    Schedule,
    TrainingSamples,
    calibration_samples,
    check_options,
    last_step_in_numbers,
)
from woodbury.model.batches import Batch
from woodbury.model.peeking import Calibration
from woodbury.model.random_numbers import random_state, set_random_state
from woodbury.pruning.schedule import Targets, check_targets
from woodbury.training.gradual import Gradual

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingDependency(
        "Pruning in Lightning's Trainer needs lightning: pip install 'woodbury[lightning]'."
    ) from error

BATCH_SIZE = 8
"""Of calibration samples, where the trainer's loader has a sampler of batches."""


class PruningCallback(Callback):
    """Gradual pruning in Lightning's Trainer  (eq. 30, 32).

    When the training begins it makes a `Gradual` on the module, its optimizer and the trainer's
    data. From then on:

    1. The module logs `sparsity` and `predicted_loss`, those of the last pruning step, as anything
       else that it logs: to TensorBoard, into the progress bar's metrics, and for other callbacks.
    2. Each checkpoint holds the state, and that of the random numbers, which Lightning forgets. A
       run that is resumed from the end of an epoch goes on bit for bit, if the pruner's engine is
       pinned or a pruning step has been made.

    The module's `forward` must take a batch's inputs and return what `likelihood` reads. A
    `ModelCheckpoint` that watches the validation loss prefers the checkpoints before pruning:
    evaluate the last one, or watch from there on.

    Args:
        sparsity: Removed ÷ all weights at the end, or one for each pattern of names.
        start: The first optimizer step after which to prune, or a fraction of the training.
        end: The last one, likewise.
        steps: How many pruning steps there are in all.
        batches: The calibration set as for `Gradual`; by default samples of the training data,
            others for each pruning step.
        samples: How many of the training data; None for what the pruner takes.
        split: A batch of the training data -> (inputs, target); None where it is such a pair.
        optimizer: Which of the module's optimizers, where it has several.
        **options: As for `Gradual`, such as `likelihood`, `pruner` or `exclude`.

    Attributes:
        gradual: The `Gradual` of the training that goes on or ended last; None before.

    Raises:
        WoodburyError: When it is made, for numbers out of range and unknown options. When the
            training begins, as `Gradual`.

    Example:
        >>> from lightning.pytorch import Trainer  # doctest: +SKIP
        >>> trainer = Trainer(max_epochs=3, callbacks=[PruningCallback(0.9)])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
    """

    @checks_types
    def __init__(
        self,
        sparsity: Targets,
        *,
        start: Moment = 0.1,
        end: Moment = 0.7,
        steps: int = 10,
        batches: Calibration | None = None,
        samples: int | None = None,
        split: Callable[[Any], Batch] | None = None,
        optimizer: int | None = None,
        **options: Any,
    ) -> None:
        check_targets(sparsity)
        check_options(options, "PruningCallback")
        if samples is not None:
            check_whole_number(samples, "samples", "the number of calibration samples")
        self.gradual: Gradual | None = None
        self._sparsity = sparsity
        self._schedule = Schedule(start, end, steps)
        self._batches = batches
        self._samples = samples or calibration_samples(options.get("pruner"))
        self._split = split or _as_pair
        self._optimizer = optimizer
        self._options = options
        self._saved: Mapping[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget a state that another run was evaluated with."""
        self._saved = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until the training begins."""
        self._saved = state_dict

    def state_dict(self) -> dict[str, Any]:
        """The state of the pruning and of the random numbers, for the trainer's checkpoints."""
        if self.gradual is None:
            return {}
        return {"gradual": self.gradual.state_dict(), "random": random_state()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on drawing where the checkpoint was made, before Lightning begins an epoch."""
        if self._saved:
            set_random_state(self._saved["random"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the `Gradual`, and resume it where the trainer resumes."""
        if self.gradual is not None:  # of a training before
            self.gradual.remove()
        batches = self._batches
        if batches is None:
            loader = _loader(trainer)
            size = loader.batch_size or BATCH_SIZE
            batches = TrainingSamples(loader, size, self._samples, self._split, pl_module)
        gradual = Gradual(
            pl_module,
            self._chosen(trainer),
            batches,
            self._sparsity,
            **self._schedule.within(trainer.estimated_stepping_batches),
            **self._options,
        )
        if self._saved:
            gradual.load_state_dict(self._saved["gradual"])
        elif trainer.global_step:
            raise WoodburyError(
                f"The training goes on after step {trainer.global_step}, and its checkpoint has no "
                "state of this callback: resume from one that was made with it."
            )
        self._saved = None
        self.gradual = gradual

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Log what the last pruning step did."""
        if self.gradual is not None and self.gradual.history:
            pl_module.log_dict(last_step_in_numbers(self.gradual))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the hooks; the zeros are in the weights."""
        if self.gradual is not None:
            self.gradual.remove()

    def _chosen(self, trainer: Trainer) -> Any:
        """The optimizer that is counted."""
        optimizers = trainer.optimizers
        if self._optimizer is None and len(optimizers) == 1:
            return optimizers[0]
        if self._optimizer is None or not 0 <= self._optimizer < len(optimizers):
            raise WoodburyError(
                f"optimizer is {self._optimizer} and the module has {len(optimizers)}: give a "
                f"number from 0 to {len(optimizers) - 1}."
            )
        return optimizers[self._optimizer]


def _as_pair(batch: Any) -> Batch:
    return batch


def _loader(trainer: Trainer) -> DataLoader:
    """The trainer's one loader of training data."""
    loader: Any = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise WoodburyError(
            f"The training data are a {type(loader).__name__}, not a DataLoader: give batches=… as "
            "pairs (inputs, target)."
        )
    return loader
