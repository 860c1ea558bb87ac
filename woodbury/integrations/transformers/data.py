"""Tables of rows by datasets: from a name to a training and a test split, and their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from woodbury.errors import WoodburyError
from woodbury.integrations.naming import nearest
from woodbury.integrations.transformers.library import (
    datasets,
    explained,
    is_local,
    neighbours,
)

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
    ".parquet": "parquet",
}
"""How datasets calls the files that it reads."""

TEST_SPLITS = ("test", "val", "dev", "eval")
"""How the names of test splits begin."""

Asked = Mapping[str, Sequence[str]]
"""What a column is, such as "text" or "label" -> its name; two names for a pair of texts."""


class Columns(NamedTuple):
    """Which columns of a table hold what.

    Attributes:
        inputs: One, or two for pairs of texts.
        label: None where there is none.
    """

    inputs: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
        where: What the data was called, for sentences.
        rows: A `datasets.Dataset`.
    """

    where: str
    rows: Any

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return list(self.rows.column_names)

    def column(self, name: str, kind: type) -> list[Any]:
        """The values of a column.

        Args:
            name: Of the column.
            kind: Of its values.

        Raises:
            WoodburyError: For a row without a value, or one of another kind.
        """
        values = list(self.rows[name])
        for row, value in enumerate(values):
            if not isinstance(value, kind):
                what = "no value" if value is None else f"a {type(value).__name__}"
                raise WoodburyError(
                    f"Row {row} of {self.where} has {what} in the column {name!r}: "
                    f"give a {kind.__name__} in each row, or name another column."
                )
        return values

    def values(self, name: str) -> list[Any]:
        """The values of a column, whatever they are."""
        return list(self.rows[name])

    def class_names(self, name: str) -> list[str] | None:
        """The names of the classes in a column of numbers; None where it has no such names."""
        feature = self.rows.features[name]
        feature = getattr(feature, "feature", feature)  # of a list
        return list(feature.names) if type(feature).__name__ == "ClassLabel" else None

    def texts(self) -> list[str]:
        """The names of the columns of texts."""
        return [
            name
            for name, feature in self.rows.features.items()
            if getattr(feature, "dtype", None) in ("string", "large_string")
        ]


class Splits(NamedTuple):
    """A training split, and a test split where the data has one."""

    train: Table
    test: Table | None


def check_place(where: str) -> None:
    """Raise for a path where there is no data; cheap.

    Args:
        where: A file, a folder, or a name on the hub.

    Raises:
        MissingDependency: If datasets is not installed.
        WoodburyError: If it is a path that is not there, or of a kind that is not known.
    """
    datasets()
    path = Path(where).expanduser()
    if path.is_dir() or (not path.exists() and not is_local(where) and path.suffix not in KINDS):
        return
    if not path.exists():
        raise WoodburyError(f"There is no data at {where}: {nearest(where, neighbours(where))}")
    if path.suffix not in KINDS:
        raise WoodburyError(f"{where} is no table: give a {', '.join(KINDS)} file, or a folder.")


def read(where: str, *, documents: bool = False) -> Splits:
    """Read a table.

    Args:
        where: A csv, tsv, json, jsonl, txt or parquet file; a folder of such files, of class
            folders of images, or one that `save_to_disk` wrote; or a name on the hub, with
            `:CONFIGURATION` behind it where it has several.
        documents: Whether a text file is one row, and not each of its lines.

    Returns:
        The splits.

    Raises:
        MissingDependency: If datasets is not installed.
        WoodburyError: If there is no such data, it cannot be read, or it has no rows.
    """
    check_place(where)
    sentence = f"{where} cannot be read as a table ({{reason}}): look at it."
    if not Path(where).expanduser().exists():
        sentence = (
            f"There is no data {where} here, nor on the hub ({{reason}}): "
            f"{nearest(where, neighbours(where))}"
        )
    with explained(sentence):
        found = _loaded(where, documents)
    splits = {name: Table(where, rows) for name, rows in found.items() if len(rows)}
    if not splits:
        raise WoodburyError(f"{where} has no rows: give some.")
    train = next((name for name in splits if name.startswith("train")), next(iter(splits)))
    tests = [name for begin in TEST_SPLITS for name in splits if name.startswith(begin)]
    others = [name for name in tests if name != train]
    return Splits(splits[train], splits[others[0]] if others else None)


def _loaded(where: str, documents: bool) -> Mapping[str, Any]:
    library = datasets()
    path = Path(where).expanduser()
    more: dict[str, Any] = {"sample_by": "document"} if documents else {}
    if path.is_file():
        kind = KINDS[path.suffix]
        options = more if kind == "text" else {"sep": "\t"} if path.suffix == ".tsv" else {}
        found = library.load_dataset(kind, data_files=str(path), **options)
    elif not path.is_dir():
        name, _, configuration = where.partition(":")
        found = library.load_dataset(name, configuration or None)
    elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found = library.load_from_disk(str(path))
    elif documents and {each.suffix for each in path.rglob("*.*") if each.is_file()} == {".txt"}:
        found = library.load_dataset("text", data_dir=str(path), **more)
    else:
        found = library.load_dataset(str(path))
    return found if isinstance(found, Mapping) else {"train": found}


def find_columns(
    table: Table,
    asked: Asked,
    role: str,
    usual: Sequence[tuple[str, ...]],
    labels: Sequence[str] = (),
) -> Columns:
    """The columns of a table that a task reads.

    Args:
        table: The table.
        asked: The columns that the user named.
        role: What the inputs are: "text", "tokens" or "image".
        usual: The names that they usually have, one or two each.
        labels: The names that labels usually have; none for a task without labels.

    Raises:
        WoodburyError: If a column that was named is not there, or none is found.
    """
    roles = [role, "label"] if labels else [role]
    for given, names in asked.items():
        if given not in roles:
            raise WoodburyError(f"columns names {given!r}: {nearest(given, roles)}")
        if len(names) > 1 and given != "text":
            raise WoodburyError(
                f"columns names {len(names)} columns of {given}, {' and '.join(names)}: give one, "
                "as pairs are for texts alone."
            )
        for name in names:
            if name not in table.names:
                raise WoodburyError(
                    f"{table.where} has no column {name!r}: {nearest(name, table.names)}"
                )
    label = next((name for name in labels if name in table.names), None)
    if "label" in asked:
        label = asked["label"][0]
    if role in asked:
        return Columns(tuple(asked[role]), label)
    found = next((each for each in usual if set(each) <= set(table.names)), None)
    texts = [name for name in table.texts() if name != label]
    if found is None and role == "text" and len(texts) == 1:
        found = (texts[0],)
    if found is None:
        raise WoodburyError(
            f"{table.where} has the columns {', '.join(table.names)}, none with a usual name of "
            f"{role}: name it with --columns {role}=COLUMN."
        )
    return Columns(found, label)
