"""Texts as tokens: encoded, cut into pieces, with labels at the first token of each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from woodbury.errors import WoodburyError
from woodbury.integrations.transformers.data import Table
from woodbury.integrations.transformers.library import explained
from woodbury.model.likelihood import IGNORED
from woodbury.monitor import report

DEFAULT_LENGTH = 512
"""Tokens of a sample at most, where nothing else is asked for and the model takes so many."""

ROWS_AT_ONCE = 500
"""Rows of a table that are made into tokens at once."""

Encoded = list[dict[str, list[int]]]
"""Of each sample, argument of the model -> its numbers for each token."""


class Reader(NamedTuple):
    """What tables are read with.

    Attributes:
        config: Of the model.
        processor: The tokenizer or image processor.
        arguments: Of the model's forward pass.
        length: Tokens of a sample at most; None for as many as the model takes, 512 at most.
        seed: Of what is drawn.
    """

    config: Any
    processor: Any
    arguments: frozenset[str]
    length: int | None = None
    seed: int = 0

    @property
    def longest(self) -> int:
        """How many tokens a sample may have.

        Raises:
            WoodburyError: If more are asked for than the model takes.
        """
        limits = (
            getattr(self.config, "max_position_embeddings", None),
            self.processor.model_max_length,
        )
        most = min([limit for limit in limits if limit is not None], default=DEFAULT_LENGTH)
        if self.length is not None and self.length > most:
            raise WoodburyError(
                f"The length is {self.length}: the model takes {most} tokens at most."
            )
        return self.length or min(most, DEFAULT_LENGTH)

    def encoded(self, table: Table, *texts: list[Any]) -> Encoded:
        """Each text, or pair of texts, as the arguments of the model; long ones are cut."""
        return [
            sample
            for start in chunks(len(table))
            for sample in self.arguments_of(
                self.encoding(table, *(part[start : start + ROWS_AT_ONCE] for part in texts))
            )
        ]

    def pieces(self, table: Table, texts: list[str], least: int) -> Encoded:
        """Each text in pieces of `least` to `longest` tokens."""
        pieces = [
            piece
            for start in chunks(len(table))
            for piece in self.arguments_of(
                self.encoding(
                    table, texts[start : start + ROWS_AT_ONCE], return_overflowing_tokens=True
                )
            )
        ]
        pieces = [piece for piece in pieces if len(piece["input_ids"]) >= least]
        if not pieces:
            raise WoodburyError(f"{table.where} has no text of {least} tokens: give longer ones.")
        return pieces

    def encoding(self, table: Table, *texts: list[Any], **options: Any) -> Any:
        """What the tokenizer makes of texts.

        Args:
            table: Where they are from.
            *texts: Some texts, and perhaps their second parts.
            **options: Of the tokenizer.

        Raises:
            WoodburyError: If it refuses them, or is not the model's.
        """
        refusal = f"The tokenizer refuses the texts of {table.where} ({{reason}}): look at them."
        with explained(refusal):
            encoding = self.processor(*texts, truncation=True, max_length=self.longest, **options)
        vocabulary = getattr(self.config, "vocab_size", None)
        highest = max((max(row, default=0) for row in encoding["input_ids"]), default=0)
        if vocabulary is not None and highest >= vocabulary:
            raise WoodburyError(
                f"The tokenizer gives the token {highest} and the model knows {vocabulary}: save "
                "the model's own tokenizer beside it."
            )
        return encoding

    def arguments_of(self, encoding: Mapping[str, Any]) -> Encoded:
        """Of each sample of an encoding what the model takes."""
        taken = [name for name in encoding if name in self.arguments]
        columns = [encoding[name] for name in taken]
        return [dict(zip(taken, row, strict=True)) for row in zip(*columns, strict=True)]


def at_first_tokens(words: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """The label of each word at its first token, −100 elsewhere.

    Args:
        words: The number of the word that each token is of; None for none.
        tags: The label of each word.

    Example:
        >>> at_first_tokens([None, 0, 0, 1, None], [7, 8])
        [-100, 7, -100, 8, -100]
    """
    before = [None, *words[:-1]]
    return [
        IGNORED if word is None or word == last else tags[word]
        for word, last in zip(words, before, strict=True)
    ]


def check_fast(task: str, tokenizer: Any) -> None:
    """Raise unless a tokenizer says where words and pieces begin.

    Args:
        task: That needs it.
        tokenizer: Of the model.

    Raises:
        WoodburyError: If it is a slow one.
    """
    if not tokenizer.is_fast:
        raise WoodburyError(
            f"The tokenizer is a slow one, which does not say where words begin: {task} needs "
            "a fast one, with a tokenizer.json."
        )


def longest(inputs: Encoded) -> int:
    """The tokens of the longest sample."""
    return max(len(each["input_ids"]) for each in inputs)


def chunks(rows: int) -> range:
    """Where chunks of rows begin; whoever listens hears how many there are."""
    if rows > ROWS_AT_ONCE:
        report("reading the data", 0, rows)
    return range(0, rows, ROWS_AT_ONCE)
