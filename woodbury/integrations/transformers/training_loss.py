"""The loss that the Trainer trains a model by, as a likelihood and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto
from transformers.utils.generic import find_labels

from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch
from woodbury.model.likelihood import IGNORED, Likelihood, binary, classes, normal, several
from woodbury.model.wrappers import bare

POSITIONS = ("start", "end")
"""Of an answer in a text."""


@dataclass(frozen=True)
class TrainingLoss:
    """What a model is trained by.

    Attributes:
        likelihood: The loss, on the model's whole output.
        split: A batch of the trainer -> (inputs, target).
    """

    likelihood: Likelihood
    split: Callable[[Mapping[str, Any]], Batch]


def training_loss(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    likelihood: Likelihood | None = None,
    label_smoothing: float = 0.0,
) -> TrainingLoss:
    """The loss of a model of transformers, by its class and its labels.

    A sample of several tokens has the sum of their losses, where the Trainer has the mean over all
    tokens of a batch, which is no mean over samples.

    Args:
        model: The model.
        batch: One of the trainer's, with labels.
        likelihood: The user's own, of the model's whole output and the labels as they are.
        label_smoothing: Of the Trainer.

    Returns:
        The likelihood, and how batches are split.

    Raises:
        WoodburyError: If the batch has no labels, or the model is of another kind.
    """
    model = bare(model)
    if not isinstance(batch, Mapping):
        raise WoodburyError(
            f"The training data are a {type(batch).__name__}, not a dict: give batches=… as pairs "
            "(inputs, target), and likelihood=…."
        )
    names = tuple(name for name in find_labels(type(model)) if name in batch) or tuple(
        name for name in ("labels",) if name in batch
    )
    if not names:
        raise WoodburyError(
            f"The training data have no labels of {type(model).__name__}, only "
            f"{', '.join(map(repr, batch))}: give batches=… as pairs (inputs, target)."
        )
    if likelihood is not None:
        return TrainingLoss(likelihood, _Split(names))
    for mappings, loss_of in KINDS:
        if _is_in(model, mappings):
            return loss_of(model, batch, names, label_smoothing)
    raise WoodburyError(
        f"The loss of {type(model).__name__} is not known: give likelihood=…, on the model's whole "
        "output and its labels."
    )


@dataclass(frozen=True)
class _Split:
    """(inputs, target): labels out of a batch.

    Attributes:
        names: Of the labels; several become a dict.
        change: (labels, inputs) -> the target.
        keeps: Whether the model makes inputs of its labels, and needs them.
    """

    names: tuple[str, ...]
    change: Callable[[Any, Mapping[str, Any]], Any] | None = None
    keeps: bool = False

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        inputs = {key: value for key, value in batch.items() if key not in self.names}
        target: Any = {name: batch[name] for name in self.names}
        if len(self.names) == 1:
            target = batch[self.names[0]]
        changed = target if self.change is None else self.change(target, inputs)
        return (dict(batch) if self.keeps else inputs), changed


def _of_samples(model: Any, batch: Any, names: tuple[str, ...], smoothing: float) -> TrainingLoss:
    """One class, several labels, or values for each sample."""
    config = model.config
    labels = batch[names[0]]
    kind = config.problem_type
    if kind is None:  # as transformers decides it, at the first loss
        is_class = config.num_labels > 1 and not labels.is_floating_point()
        kind = "single_label_classification" if is_class else "multi_label_classification"
        kind = "regression" if config.num_labels == 1 else kind
    if kind == "single_label_classification":
        loss = classes(label_smoothing=smoothing).with_output(_logits)
        return TrainingLoss(loss, _Split(names, _flat))
    if kind == "multi_label_classification":
        return TrainingLoss(binary().with_output(_logits), _Split(names))
    # torch's mean over k values is the squared error of noise of variance k/2.
    values = normal((config.num_labels / 2) ** 0.5).with_output(_logits)
    return TrainingLoss(values, _Split(names, _columns if config.num_labels == 1 else None))


def _of_tokens(model: Any, batch: Any, names: tuple[str, ...], smoothing: float) -> TrainingLoss:
    loss = classes(label_smoothing=smoothing).with_output(_logits_of_tokens)
    return TrainingLoss(loss, _Split(names))


def _of_next_tokens(
    model: Any, batch: Any, names: tuple[str, ...], smoothing: float
) -> TrainingLoss:
    loss = classes(label_smoothing=smoothing).with_output(_logits_of_tokens)
    return TrainingLoss(loss, _Split(names, _shifted))


def _of_sequences(model: Any, batch: Any, names: tuple[str, ...], smoothing: float) -> TrainingLoss:
    """Of an encoder and a decoder, whose inputs are made of the labels."""
    loss = classes(label_smoothing=smoothing).with_output(_logits_of_tokens)
    return TrainingLoss(loss, _Split(names, keeps=True))


def _of_answers(model: Any, batch: Any, names: tuple[str, ...], smoothing: float) -> TrainingLoss:
    """Where an answer begins and ends: the mean of two losses."""
    heads = {f"{end}_logits": classes(label_smoothing=smoothing) for end in POSITIONS}
    weights = dict.fromkeys(heads, 0.5)
    return TrainingLoss(several(heads, weights), _Split(names, _within_the_text))


KINDS = (
    (
        (
            "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
            "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
            "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
            "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
        ),
        _of_samples,
    ),
    (("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",), _of_sequences),
    (("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",), _of_next_tokens),
    (
        ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
        _of_tokens,
    ),
    (("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",), _of_answers),
)
"""Where transformers lists classes of models -> what such a model is trained by."""


def _is_in(model: nn.Module, mappings: tuple[str, ...]) -> bool:
    """Whether a model's class, or one that it is made of, is listed."""
    listed: set[str] = set()
    for mapping in mappings:
        for names in getattr(modeling_auto, mapping).values():
            listed.update((names,) if isinstance(names, str) else names)
    return any(parent.__name__ in listed for parent in type(model).__mro__)


def _logits(output: Any) -> Tensor:
    return output.logits


def _logits_of_tokens(output: Any) -> Tensor:
    """The classes along dimension 1."""
    return output.logits.mT


def _flat(labels: Tensor, inputs: Any) -> Tensor:
    return labels.view(-1)


def _columns(labels: Tensor, inputs: Any) -> Tensor:
    return labels.view(-1, 1).float()


def _shifted(labels: Tensor, inputs: Any) -> Tensor:
    """At each token the label of the next one; none at the last."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _within_the_text(labels: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Any:
    """Positions as targets of their heads; those that were cut off count for nothing."""
    length = inputs["input_ids"].shape[1]
    targets = {}
    for end in POSITIONS:
        position = labels[f"{end}_positions"].view(-1).clamp(min=0)
        targets[f"{end}_logits"] = torch.where(position < length, position, IGNORED)
    return targets
