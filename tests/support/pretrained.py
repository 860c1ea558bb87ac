"""Small models of transformers with their tokenizers, saved as `save_pretrained` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "the",
    "a",
    "film",
    "was",
    "good",
    "bad",
    "very",
    "not",
    "-",
    "i",
    "saw",
    "it",
    "really",
    "great",
    "awful",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<eos>"]
VOCABULARY = len(SPECIAL) + len(WORDS)
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
NAMES = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}


def tokenizer(*, causal: bool = False) -> Any:
    """One word, one token; without padding where it is causal, as GPT-2's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if causal:
        return PreTrainedTokenizerFast(
            tokenizer_object=words,
            unk_token="[UNK]",
            eos_token="<eos>",
            model_input_names=["input_ids", "attention_mask"],
        )
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=16,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in special.items()},
    )


def saved(kind: str, folder: Path) -> Path:
    """A model of a kind in a folder, with what makes its inputs."""
    import transformers as library

    torch.manual_seed(0)
    makers = {
        "text": lambda: library.BertForSequenceClassification(library.BertConfig(**BERT, **NAMES)),
        "tokens": lambda: library.BertForTokenClassification(library.BertConfig(**BERT, **NAMES)),
        "masked": lambda: library.BertForMaskedLM(library.BertConfig(**BERT)),
        "bare": lambda: library.BertModel(library.BertConfig(**BERT)),
        "causal": lambda: library.GPT2LMHeadModel(
            library.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=16,
                n_layer=1,
                n_head=2,
                n_positions=12,
                bos_token_id=None,
                eos_token_id=5,
            )
        ),
        "causal classifier": lambda: library.GPT2ForSequenceClassification(
            library.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=16,
                n_layer=1,
                n_head=2,
                n_positions=12,
                bos_token_id=None,
                eos_token_id=5,
                **NAMES,
            )
        ),
        "image": lambda: library.ViTForImageClassification(
            library.ViTConfig(
                image_size=8,
                patch_size=4,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=24,
                num_labels=2,
            )
        ),
    }
    library.utils.logging.disable_progress_bar()
    makers[kind]().save_pretrained(folder)
    if kind == "image":
        (folder / "preprocessor_config.json").write_text(
            json.dumps(
                {
                    "image_processor_type": "ViTImageProcessor",
                    "size": {"height": 8, "width": 8},
                    "image_mean": [0.5] * 3,
                    "image_std": [0.5] * 3,
                }
            )
        )
    else:
        tokenizer(causal=kind.startswith("causal")).save_pretrained(folder)
    return folder


def reviews(count: int = 40) -> list[tuple[str, str]]:
    """Sentences of unequal lengths, and what they say."""
    rows = []
    for number in range(count):
        good = number % 2 == 1
        very = "very " * (number % 4)
        rows.append((f"the film was {very}{'good' if good else 'bad'}", "pos" if good else "neg"))
    return rows


def write_csv(path: Path, rows: Sequence[Sequence[Any]], header: str = "text,label") -> None:
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n")
