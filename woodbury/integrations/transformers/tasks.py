"""What a model of transformers does: which class it is, and what its samples are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from woodbury.errors import WoodburyError
from woodbury.integrations.transformers.classes import class_numbers
from woodbury.integrations.transformers.data import Asked, Columns, Table, find_columns
from woodbury.integrations.transformers.encoding import (
    ROWS_AT_ONCE,
    Encoded,
    Reader,
    at_first_tokens,
    check_fast,
    chunks,
    longest,
)
from woodbury.integrations.transformers.library import transformers
from woodbury.integrations.transformers.samples import Pictures, Samples, Tokens
from woodbury.model.likelihood import IGNORED

MASKED_SHARE = 0.15
"""Of the tokens of a masked language model, as in BERT (Devlin et al. 2019)."""

TEXTS = (
    ("text",),
    ("sentence",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
"""What columns of texts, and of pairs of them, are usually called."""


@dataclass(frozen=True)
class Task(ABC):
    """What a model of transformers does.

    Attributes:
        name: As transformers calls it.
        model_class: The Auto class of its models.
        mapping: Where transformers lists the classes of its models by their types.
        processor_class: The Auto class of what makes inputs.
        processor_name: What that is called.
        reads_text: Whether it is a tokenizer.
        needs_padding_token: Whether the model looks for padding by its number.
        documents: Whether a text file is one row.
    """

    name: ClassVar[str]
    model_class: ClassVar[str]
    mapping: ClassVar[str]
    processor_class: ClassVar[str] = "AutoTokenizer"
    processor_name: ClassVar[str] = "tokenizer"
    reads_text: ClassVar[bool] = True
    needs_padding_token: ClassVar[bool] = False
    documents: ClassVar[bool] = False

    def __repr__(self) -> str:
        """Its name in Python."""
        return self.name.replace("-", "_")

    def other_kind(self, config: Any) -> str | None:
        """The kind of a model whose labels are none of this task's.

        Args:
            config: Of the model.

        Returns:
            Such as "regression"; None for a model that is right.
        """
        return None

    @abstractmethod
    def columns(self, table: Table, asked: Asked) -> Columns:
        """Which columns hold what.

        Args:
            table: The training split.
            asked: The columns that the user named.

        Raises:
            WoodburyError: If one is not there.
        """

    @abstractmethod
    def samples(self, table: Table, columns: Columns, reader: Reader) -> Samples:
        """The samples of a table.

        Args:
            table: A split.
            columns: Of it.
            reader: What it is read with.

        Raises:
            WoodburyError: For rows that will not do.
        """

    def padding_token(self, tokenizer: Any) -> int:
        """The number of the token that stands at padded places.

        Args:
            tokenizer: Of the model. One without padding ends a text, which the mask hides.

        Raises:
            WoodburyError: If the model must find it, and it has neither.
        """
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        found = [number for number in candidates if number is not None]
        if not found and self.needs_padding_token:
            raise WoodburyError(
                "The tokenizer has neither a padding nor an end token: set tokenizer.pad_token, "
                "and save it."
            )
        return found[0] if found else 0

    def _padding(self, reader: Reader) -> dict[str, int]:
        return {"input_ids": self.padding_token(reader.processor)}


class TextClassification(Task):
    """A class for each text, or pair of texts."""

    name = "text-classification"
    model_class = "AutoModelForSequenceClassification"
    mapping = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    needs_padding_token = True

    def other_kind(self, config: Any) -> str | None:
        """A model of values, or of several labels to a text, is of another kind."""
        kind = config.problem_type or ("regression" if config.num_labels == 1 else None)
        return None if kind in (None, "single_label_classification") else kind.replace("_", "-")

    def columns(self, table: Table, asked: Asked) -> Columns:
        """A column of texts, or two, and one of labels."""
        return find_columns(table, asked, "text", TEXTS, ("label", "labels"))

    def samples(self, table: Table, columns: Columns, reader: Reader) -> Tokens:
        """One for each row; texts are cut at the length."""
        labels, labelled = _classes(table, columns, reader.config)
        inputs = reader.encoded(table, *(table.column(name, str) for name in columns.inputs))
        scores = reader.config.num_labels
        padding = self._padding(reader)
        return Tokens(inputs, labels, longest(inputs), padding, scores, labelled)


class TokenClassification(Task):
    """A class for each word."""

    name = "token-classification"
    model_class = "AutoModelForTokenClassification"
    mapping = "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"

    def columns(self, table: Table, asked: Asked) -> Columns:
        """A column of lists of words, and one of lists of labels."""
        labels = ("labels", "label", "ner_tags", "tags")
        return find_columns(table, asked, "tokens", (("tokens",), ("words",)), labels)

    def samples(self, table: Table, columns: Columns, reader: Reader) -> Tokens:
        """One for each row; the first token of a word has its label, and all others −100."""
        check_fast(self.name, reader.processor)
        words = table.column(columns.inputs[0], list)
        tags = [[0] * len(row) for row in words]
        if columns.label is not None:
            tags = _tags(table, columns.label, reader.config)
        for row, (each, tag) in enumerate(zip(words, tags, strict=True)):
            if len(each) != len(tag):
                raise WoodburyError(
                    f"Row {row} of {table.where} has {len(each)} words and {len(tag)} labels: "
                    "give one label for each word."
                )
        inputs: Encoded = []
        labels: list[list[int]] = []
        for start in chunks(len(words)):
            chunk = words[start : start + ROWS_AT_ONCE]
            encoding = reader.encoding(table, chunk, is_split_into_words=True)
            inputs += reader.arguments_of(encoding)
            labels += [
                at_first_tokens(encoding.word_ids(row), tags[start + row])
                for row in range(len(chunk))
            ]
        length = longest(inputs)
        scores = length * reader.config.num_labels
        labelled = columns.label is not None
        return Tokens(inputs, labels, length, self._padding(reader), scores, labelled)


class OfDocuments(Task):
    """A language model: its labels are tokens of the text itself."""

    documents = True

    def columns(self, table: Table, asked: Asked) -> Columns:
        """A column of texts."""
        return find_columns(table, asked, "text", TEXTS[:1])


class CausalLM(OfDocuments):
    """The next token, at each token."""

    name = "causal-lm"
    model_class = "AutoModelForCausalLM"
    mapping = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"

    def samples(self, table: Table, columns: Columns, reader: Reader) -> Tokens:
        """The pieces of each row's text; the label of each token is the next one."""
        check_fast(self.name, reader.processor)
        pieces = reader.pieces(table, table.column(columns.inputs[0], str), least=2)
        labels = [[*piece["input_ids"][1:], IGNORED] for piece in pieces]
        length = longest(pieces)
        scores = length * reader.config.vocab_size
        return Tokens(pieces, labels, length, self._padding(reader), scores)


class MaskedLM(OfDocuments):
    """The tokens that are hidden, about a seventh of all, drawn once."""

    name = "masked-lm"
    model_class = "AutoModelForMaskedLM"
    mapping = "MODEL_FOR_MASKED_LM_MAPPING_NAMES"

    def samples(self, table: Table, columns: Columns, reader: Reader) -> Tokens:
        """The pieces of each row's text, some tokens of which are hidden."""
        tokenizer = reader.processor
        check_fast(self.name, tokenizer)
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise WoodburyError(
                "The tokenizer has no mask token, or no padding token: set tokenizer.mask_token "
                "and tokenizer.pad_token, and save it."
            )
        least = 1 + tokenizer.num_special_tokens_to_add()
        pieces = reader.pieces(table, table.column(columns.inputs[0], str), least)
        collator = transformers().DataCollatorForLanguageModeling(
            tokenizer, mlm=True, mlm_probability=MASKED_SHARE, seed=reader.seed
        )
        labels = []
        for start in chunks(len(pieces)):
            chunk = pieces[start : start + ROWS_AT_ONCE]
            hidden = collator([{"input_ids": piece["input_ids"]} for piece in chunk])
            for row, piece in enumerate(chunk):
                tokens = len(piece["input_ids"])
                piece["input_ids"] = hidden["input_ids"][row, :tokens].tolist()
                labels.append(hidden["labels"][row, :tokens].tolist())
        length = longest(pieces)
        scores = length * reader.config.vocab_size
        return Tokens(pieces, labels, length, self._padding(reader), scores)


class ImageClassification(Task):
    """A class for each image."""

    name = "image-classification"
    model_class = "AutoModelForImageClassification"
    mapping = "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"
    processor_class = "AutoImageProcessor"
    processor_name = "image processor"
    reads_text = False

    def columns(self, table: Table, asked: Asked) -> Columns:
        """A column of images, and one of labels."""
        return find_columns(table, asked, "image", (("image",), ("img",)), ("label", "labels"))

    def samples(self, table: Table, columns: Columns, reader: Reader) -> Pictures:
        """One for each row; an image is read when it is needed."""
        labels, labelled = _classes(table, columns, reader.config)
        mode = "L" if getattr(reader.config, "num_channels", 3) == 1 else "RGB"
        column = columns.inputs[0]
        return Pictures(table, column, reader.processor, mode, labels, labelled)


text_classification = TextClassification()
token_classification = TokenClassification()
causal_lm = CausalLM()
masked_lm = MaskedLM()
image_classification = ImageClassification()

TASKS: tuple[Task, ...] = (
    text_classification,
    token_classification,
    causal_lm,
    masked_lm,
    image_classification,
)


def _classes(table: Table, columns: Columns, config: Any) -> tuple[list[int], bool]:
    """The classes of all rows, and whether the table has them."""
    if columns.label is None:
        return [0] * len(table), False
    values = table.values(columns.label)
    return class_numbers(table, columns.label, values, config.label2id, config.num_labels), True


def _tags(table: Table, column: str, config: Any) -> list[list[int]]:
    """The classes of the words of all rows."""
    rows = table.column(column, list)
    flat = [tag for row in rows for tag in row]
    numbers = iter(class_numbers(table, column, flat, config.label2id, config.num_labels))
    return [[next(numbers) for _ in row] for row in rows]
