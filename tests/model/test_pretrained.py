"""Models of transformers: their heads, their outputs without a likelihood, and their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import woodbury
from woodbury import Objective, ParameterSpace, WoodburyError, cross_entropy
from woodbury.evaluation.metrics import accuracy
from woodbury.model.left_out import embeddings_and_heads
from woodbury.model.pretrained import scores_of

pytest.importorskip("transformers", reason="needs transformers, of the extra models")

from support.pretrained import VOCABULARY, saved

HEADS = {
    "text": {"classifier.weight"},
    "tokens": {"classifier.weight"},
    "image": {"classifier.weight"},
    "masked": {"cls.predictions.transform.dense.weight"},
    "causal": set(),  # tied to the embedding
    "causal classifier": {"score.weight"},
    "bare": set(),
}


def made(kind: str, tmp_path: Path) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(saved(kind, tmp_path / "model"))
    return getattr(transformers, config.architectures[0]).from_pretrained(tmp_path / "model").eval()


@pytest.mark.parametrize("kind", HEADS)
def test_heads_are_what_is_outside_the_base_model(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path)
    found = embeddings_and_heads(model)
    assert {name for name, what in found.items() if what == "head"} == HEADS[kind]
    embeddings = {name for name, what in found.items() if what == "embedding"}
    assert all("embeddings" in name or name.startswith("transformer.w") for name in embeddings)
    assert len(embeddings) == (2 if kind in ("image", "causal", "causal classifier") else 3)
    assert not any("head" in name or "decoder" in name for name in found)


def test_an_untied_head_and_one_inside_another_module(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=9, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=False, n_positions=8
    )
    model = transformers.GPT2LMHeadModel(config)
    assert embeddings_and_heads(model)["lm_head.weight"] == "head"
    around = nn.ModuleDict({"net": model, "more": nn.Linear(8, 2)})
    found = embeddings_and_heads(around)
    assert found["net.lm_head.weight"] == "head" and "more.weight" not in found
    assert "more.weight" in ParameterSpace.for_pruning(around).shapes


def tokens(samples: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(6, VOCABULARY, (samples, 7), generator=generator)


def test_outputs_are_read_without_a_likelihood(tmp_path: Path) -> None:
    model, words = made("text", tmp_path), tokens()
    batches = [({"input_ids": words}, torch.arange(24) % 2)]
    by_hand = cross_entropy.with_output(lambda output: output.logits)
    plain, read = (Objective.from_model(model, batches, each) for each in (cross_entropy, by_hand))
    assert plain.loss() == read.loss()
    assert accuracy(plain, batches) == accuracy(read, batches)
    pruned = woodbury.prune(model, batches, 0.5)
    assert pruned.settings["left out"].endswith(
        'head (classifier.weight); include="*" takes them in'
    )


def test_scores_of_tokens_have_their_classes_along_dimension_1(tmp_path: Path) -> None:
    model, words = made("causal", tmp_path), tokens()
    following = words.roll(-1, 1)
    following[:, -1] = -100
    objective = Objective.from_model(model, [({"input_ids": words}, following)])
    own = model(input_ids=words, labels=words).loss
    assert objective.loss() == pytest.approx(6 * float(own.detach()))  # six of seven have a next
    output = model(input_ids=words)
    assert torch.equal(scores_of(output), output.logits.mT)
    unlabelled = woodbury.prune(model, [({"input_ids": words}, None)], 0.5)
    assert unlabelled.sparsity == pytest.approx(0.5)


def test_labels_of_a_causal_model_that_are_not_shifted_are_refused(tmp_path: Path) -> None:
    words = tokens()
    masked = words.clone()
    masked[:, :3] = -100  # a prompt
    sentence = r"each token is to predict the next: give labels\[:, 1:\]"
    model = made("causal", tmp_path)
    for labels in (words, masked):
        with pytest.raises(WoodburyError, match=sentence):
            woodbury.prune(model, [({"input_ids": words}, labels)], 0.5)
    autoencoder = made("masked", tmp_path)
    Objective.from_model(autoencoder, [({"input_ids": words}, words)]).probe()


def test_an_output_without_logits_says_how_to_read_it(tmp_path: Path) -> None:
    model = made("bare", tmp_path)
    with pytest.raises(WoodburyError, match=r"got a BaseModelOutput.* say where the tensor is"):
        woodbury.prune(model, [({"input_ids": tokens()}, torch.zeros(24).long())], 0.5)
