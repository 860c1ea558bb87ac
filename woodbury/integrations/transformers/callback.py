"""Gradual pruning as a callback of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

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
from woodbury.io.checkpoints import check_zip
from woodbury.io.folders import write_atomically
from woodbury.model.likelihood import Likelihood
from woodbury.model.peeking import Calibration
from woodbury.pruning.schedule import Targets, check_targets
from woodbury.training.gradual import Gradual

try:
    from transformers import Trainer, TrainerCallback

    from woodbury.integrations.transformers.training_loss import TrainingLoss, training_loss
except ImportError as error:
    raise MissingDependency(
        "Pruning in a Trainer needs transformers and accelerate: pip install 'woodbury[models]'."
    ) from error

STATE_FILE = "woodbury_gradual.pt"
"""In each checkpoint of the Trainer."""


class PruningCallback(TrainerCallback):
    """Gradual pruning in transformers' Trainer  (eq. 30, 32).

    When the training begins it makes a `Gradual` on the trainer's own optimizer and data. From
    then on:

    1. After each pruning step, `sparsity` and `predicted_loss` are logged. With `trainer`, they go
       where the trainer logs to, such as TensorBoard. Without it they are in the next entry of its
       log history and in its printed line: the loggers have been called by then.
    2. Each checkpoint holds the state in `woodbury_gradual.pt`. A run that is resumed from it goes
       on bit for bit, if the pruner's engine is pinned or a pruning step has been made.
    3. `load_best_model_at_end` takes the best of the checkpoints since the last pruning step:
       earlier ones are less sparse.

    The loss is that of the model's class: classes, several labels or values for each sample, tokens
    with −100, the next token, or the two ends of an answer. For other models give `likelihood`.

    Args:
        sparsity: Removed ÷ all weights at the end, or one for each pattern of names.
        trainer: The Trainer, for its logging.
        start: The first optimizer step after which to prune, or a fraction of the training.
        end: The last one, likewise.
        steps: How many pruning steps there are in all.
        batches: The calibration set as for `Gradual`; by default samples of the training data,
            others for each pruning step.
        samples: How many of the training data; None for what the pruner takes.
        likelihood: The loss, on the model's whole output and its labels; None for what is known.
        resume_from: The checkpoint that is resumed from, where it is not the one of that step in
            the trainer's output folder.
        **options: As for `Gradual`, such as `pruner`, `exclude` or `schedule`.

    Attributes:
        gradual: The `Gradual` of the training that goes on or ended last; None before.

    Raises:
        WoodburyError: When it is made, for numbers out of range and unknown options. When the
            training begins, as `Gradual`, or if the checkpoint has no state of this callback.

    Example:
        >>> from transformers import Trainer  # doctest: +SKIP
        >>> trainer = Trainer(model, args, train_dataset=data)  # doctest: +SKIP
        >>> trainer.add_callback(PruningCallback(0.9, trainer))  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    @checks_types
    def __init__(
        self,
        sparsity: Targets,
        trainer: Trainer | None = None,
        *,
        start: Moment = 0.1,
        end: Moment = 0.7,
        steps: int = 10,
        batches: Calibration | None = None,
        samples: int | None = None,
        likelihood: Likelihood | None = None,
        resume_from: str | Path | None = None,
        **options: Any,
    ) -> None:
        check_targets(sparsity)
        check_options(options, "PruningCallback")
        if samples is not None:
            check_whole_number(samples, "samples", "the number of calibration samples")
        self.gradual: Gradual | None = None
        self._sparsity = sparsity
        self._trainer = trainer
        self._schedule = Schedule(start, end, steps)
        self._batches = batches
        self._samples = samples or calibration_samples(options.get("pruner"))
        self._likelihood = likelihood
        self._resume_from = resume_from
        self._options = options
        self._logged = 0
        self._waiting: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the `Gradual`, and resume it where the trainer resumes."""
        if self.gradual is not None:  # of a training before
            self.gradual.remove()
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        loss = self._loss_of(model, loader, args.label_smoothing_factor)
        batches = self._batches
        if batches is None:
            batches = TrainingSamples(
                loader, args.train_batch_size, self._samples, loss.split, model
            )
        gradual = Gradual(
            model,
            kwargs["optimizer"],
            batches,
            self._sparsity,
            likelihood=loss.likelihood,
            **self._schedule.within(state.max_steps),
            **self._options,
        )
        if state.global_step:
            gradual.load_state_dict(self._saved_state(args, state.global_step))
        self.gradual = gradual
        self._logged = len(gradual.history)
        self._waiting = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a pruning step: log it, and begin the search for the best checkpoint again."""
        if self.gradual is None or len(self.gradual.history) == self._logged:
            return
        self._logged = len(self.gradual.history)
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        numbers = last_step_in_numbers(self.gradual)
        if self._trainer is not None:
            self._trainer.log(numbers)
        else:
            self._waiting = numbers
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the numbers of the last pruning step to an entry of the log."""
        if self._waiting and logs is not None:
            logs.update(self._waiting)
            state.log_history[-1].update(self._waiting)
            self._waiting = {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state into the checkpoint that was made."""
        if self.gradual is None or not args.should_save or args.save_only_model:
            return
        content = {"global_step": state.global_step, "gradual": self.gradual.state_dict()}
        file = _checkpoint(args, state.global_step) / STATE_FILE
        write_atomically(file, lambda place: torch.save(content, place))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the hooks; the zeros are in the weights."""
        if self.gradual is not None:
            self.gradual.remove()

    def _loss_of(self, model: Any, loader: Any, label_smoothing: float) -> TrainingLoss:
        """The likelihood, and how batches are split."""
        if self._batches is not None and self._likelihood is not None:
            return TrainingLoss(self._likelihood, _unchanged)
        one = TrainingSamples(loader, 1, 1, lambda batch: (batch, None), model)
        batch, _ = one(0).batches[0]
        return training_loss(
            model, batch, likelihood=self._likelihood, label_smoothing=label_smoothing
        )

    def _saved_state(self, args: Any, step: int) -> Any:
        """The state in the checkpoint that the trainer resumes from."""
        folder = Path(self._resume_from or _checkpoint(args, step))
        file = folder / STATE_FILE
        if not file.is_file():
            raise WoodburyError(
                f"The training goes on after step {step}, and {folder} has no {STATE_FILE}: resume "
                "from a checkpoint that was made with this callback, and say where it is by "
                "resume_from=… if it was moved."
            )
        check_zip(file)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            saved, gradual = content["global_step"], content["gradual"]
        except Exception as error:  # a damaged file shows itself as one of half a dozen types
            raise WoodburyError(f"{file} is damaged: resume from another checkpoint.") from error
        if saved != step:
            raise WoodburyError(
                f"{file} is of step {saved} and the training goes on after step {step}: give the "
                "checkpoint that the trainer resumes from by resume_from=…."
            )
        return gradual


def _unchanged(batch: Any) -> Any:
    return batch


def _checkpoint(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"
