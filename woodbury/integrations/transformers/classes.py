"""Labels as the numbers of a model's classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from woodbury.errors import WoodburyError
from woodbury.integrations.naming import nearest
from woodbury.integrations.transformers.data import Table
from woodbury.model.likelihood import IGNORED

UNNAMED = re.compile(r"LABEL_\d+")
"""How transformers calls classes that have no names."""


def class_numbers(
    table: Table, name: str, values: Sequence[Any], known: Mapping[str, int], count: int
) -> list[int]:
    """Labels as the numbers of a model's classes.

    Args:
        table: Where they are from.
        name: Of their column.
        values: Numbers, or names.
        known: The model's names of its classes -> their numbers.
        count: How many classes the model has.

    Returns:
        A number below `count` for each, or −100 where there was that.

    Raises:
        WoodburyError: For a label that is none of the model's classes.
    """
    if any(isinstance(value, (list, dict)) for value in values):
        raise WoodburyError(
            f"The column {name!r} of {table.where} has several labels in a row: give one."
        )
    by_name = {key.casefold(): number for key, number in known.items()} | dict(known)
    names = table.class_names(name)
    numbers: dict[Any, int] = {}
    if names is not None:
        matched = [_named(each, by_name) for each in names]
        known_all = [number for number in matched if number is not None]
        if len(known_all) == len(names):
            numbers = dict(enumerate(known_all))
        elif len(names) != count:
            lost = names[matched.index(None)]
            raise WoodburyError(
                f"The column {name!r} of {table.where} has a class {lost!r}, which the model does "
                f"not know: {nearest(lost, known)}"
            )
    for value in set(values):
        numbers.setdefault(value, _number(table, name, value, by_name, known))
    used = {numbers[value] for value in set(values)} - {IGNORED}
    if out := sorted(number for number in used if not 0 <= number < count):
        raise WoodburyError(
            f"The column {name!r} of {table.where} has a label {out[0]}, and the model knows "
            f"{count} classes, numbered from 0: is it another model's data?"
        )
    return [numbers[value] for value in values]


def order_of_classes(table: Table, name: str, known: Mapping[str, int]) -> str | None:
    """A remark where classes are matched by their numbers alone.

    Args:
        table: A split.
        name: Of the column of labels.
        known: The model's names of its classes -> their numbers.

    Returns:
        One sentence; None where the names agree, or the data has none.
    """
    names = table.class_names(name)
    if names is None or all(UNNAMED.fullmatch(key) for key in known):
        return None
    if {each.casefold() for each in names} <= {key.casefold() for key in known}:
        return None
    ordered = sorted(known, key=lambda each: known[each])
    return (
        f"The classes {', '.join(names[:4])}, … of {table.where} are taken as the model's "
        f"{', '.join(ordered[:4])}, … in this order."
    )


def _named(name: str, by_name: Mapping[str, int]) -> int | None:
    """The number of a class by its name, in any case where that is unequivocal."""
    name = name.strip()
    return by_name.get(name, by_name.get(name.casefold()))


def _number(
    table: Table, name: str, value: Any, by_name: Mapping[str, int], known: Mapping[str, int]
) -> int:
    if isinstance(value, str):
        found = _named(value, by_name)
        if found is not None:
            return found
        if value.strip().removeprefix("-").isdecimal():
            return int(value)
        raise WoodburyError(
            f"The column {name!r} of {table.where} has a label {value!r}, which the model does not "
            f"know: {nearest(value, known)}"
        )
    if isinstance(value, (bool, int, float)) and float(value).is_integer():
        return int(value)
    raise WoodburyError(
        f"The column {name!r} of {table.where} has a label {value}: give the number or the name of "
        "a class in each row."
    )
