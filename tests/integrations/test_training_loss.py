"""The likelihoods of transformers' models against the losses that the models compute themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import woodbury
from woodbury import Objective, WoodburyError

pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.trainer_pt_utils import LabelSmoother

from woodbury.integrations.transformers.training_loss import training_loss

SIZE: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 8,
}


def bert(kind: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    return kind(BertConfig(**SIZE, **config)).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))


def t5() -> Any:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 20, shape, generator=torch.Generator().manual_seed(seed))


def some(labels: Tensor) -> Tensor:
    labels = labels.clone()
    labels[:, 1] = -100
    labels[0, 2:] = -100
    return labels


WORDS = tokens(3, 6)
INPUTS = {"input_ids": WORDS, "attention_mask": torch.ones_like(WORDS)}


@dataclass(frozen=True)
class Case:
    """A model, its labels, and in how many parts its own loss of one sample divides ours."""

    build: Callable[[], Any]
    labels: dict[str, Tensor]
    parts: Callable[[dict[str, Tensor]], float] = lambda labels: 1.0


def observed(labels: dict[str, Tensor]) -> float:
    return float((labels["labels"] != -100).sum())


CASES = {
    "classes": Case(
        lambda: bert(BertForSequenceClassification, num_labels=3),
        {"labels": torch.tensor([0, 2, 1])},
    ),
    "several labels": Case(
        lambda: bert(BertForSequenceClassification, num_labels=3),
        {"labels": torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])},
        lambda labels: 3.0,
    ),
    "a value": Case(
        lambda: bert(BertForSequenceClassification, num_labels=1),
        {"labels": torch.tensor([0.5, -1.0, 2.0])},
    ),
    "values": Case(
        lambda: bert(BertForSequenceClassification, num_labels=2, problem_type="regression"),
        {"labels": torch.tensor([[0.5, 1], [-1.0, 0], [2.0, 3]])},
    ),
    "tokens": Case(
        lambda: bert(BertForTokenClassification, num_labels=5),
        {"labels": some(WORDS % 5)},
        observed,
    ),
    "hidden tokens": Case(lambda: bert(BertForMaskedLM), {"labels": some(WORDS)}, observed),
    "next tokens": Case(
        gpt2,
        {"labels": WORDS.index_fill(1, torch.tensor([5]), -100)},
        lambda labels: observed({"labels": labels["labels"][:, 1:]}),
    ),
    "sequences": Case(t5, {"labels": some(tokens(3, 4, seed=1))}, observed),
    "answers": Case(
        lambda: bert(BertForQuestionAnswering),
        {"start_positions": torch.tensor([1, 2, 0]), "end_positions": torch.tensor([3, 9, 5])},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_samples_loss_is_that_of_the_model_itself(name: str) -> None:
    case = CASES[name]
    model = case.build().eval()
    batch = {**INPUTS, **case.labels}
    known = training_loss(model, batch)
    inputs, target = known.split(batch)
    for i in range(3):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        if name == "answers" and i == 1:
            continue  # an end beyond the text counts for nothing, for the model is NaN
        with torch.no_grad():
            expected = model(**one).loss * case.parts({k: one[k] for k in case.labels})
        found = Objective.from_model(model, [known.split(one)], known.likelihood).loss()
        assert found == pytest.approx(float(expected), rel=1e-5)
    pruned = woodbury.prune(
        model,
        [(inputs, target)],
        0.5,
        likelihood=known.likelihood,
        pruner=woodbury.Pruner(woodbury.gauss_newton(woodbury.mfac(3, 0.1), 1)),
        include="*.0.*",
    )
    assert pruned.sparsity == pytest.approx(0.5, abs=0.01)


def test_smoothed_labels_are_those_of_the_trainer() -> None:
    model = CASES["hidden tokens"].build()
    batch = {**INPUTS, **CASES["hidden tokens"].labels}
    one = {key: value[:1] for key, value in batch.items()}
    known = training_loss(model, batch, label_smoothing=0.2)
    with torch.no_grad():
        expected = LabelSmoother(epsilon=0.2)(model(**one), one["labels"])
    found = Objective.from_model(model, [known.split(one)], known.likelihood).loss()
    assert found == pytest.approx(float(expected) * observed(one), rel=1e-5)


def test_a_likelihood_of_ones_own_has_the_labels_as_they_are() -> None:
    model = CASES["answers"].build()
    own = woodbury.Likelihood(lambda output, target: output.start_logits.mean())
    known = training_loss(model, {**INPUTS, **CASES["answers"].labels}, likelihood=own)
    inputs, target = known.split({**INPUTS, **CASES["answers"].labels})
    assert known.likelihood is own and set(inputs) == set(INPUTS)
    assert set(target) == {"start_positions", "end_positions"}


def test_what_is_not_known_is_one_sentence() -> None:
    model = CASES["classes"].build()
    with pytest.raises(WoodburyError, match="no labels of BertForSequenceClassification, only"):
        training_loss(model, INPUTS)
    with pytest.raises(WoodburyError, match="are a list, not a dict"):
        training_loss(model, [WORDS])  # type: ignore[arg-type]
    with pytest.raises(WoodburyError, match="loss of Linear is not known: give likelihood"):
        training_loss(nn.Linear(2, 2), {"labels": WORDS})
    with pytest.raises(WoodburyError, match="BertForNextSentencePrediction is not known"):
        training_loss(bert(BertForNextSentencePrediction), {**INPUTS, "labels": WORDS[:, 0]})
