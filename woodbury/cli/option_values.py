"""The options of a command as plain values: for reports, saved runs and run.toml."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any


def settings_of(*groups: Any) -> dict[str, Any]:
    """The options of groups as settings that JSON and a saved run hold.

    Args:
        groups: Instances of the dataclasses of `woodbury.cli.options`.

    Returns:
        Option -> number, text or list of texts. `resume`, `memory` and `scratch` are left out: a
        run that was resumed, perhaps with more memory, has the settings of one that was not.

    Example:
        >>> from woodbury.cli.options import InputOptions
        >>> settings_of(InputOptions(checkpoint=Path("a.pt")))["checkpoint"]
        'a.pt'
    """
    settings: dict[str, Any] = {}
    for group in groups:
        for name, value in ((each.name, getattr(group, each.name)) for each in fields(group)):
            if is_dataclass(value):
                settings |= settings_of(value)
            elif name not in ("resume", "memory", "scratch"):
                settings[name] = _plain(value)
    return settings


def given(*groups: Any) -> list[str]:
    """The options that differ from their defaults, as they are written: `--batch-size`.

    Args:
        groups: Instances of the dataclasses of `woodbury.cli.options` without groups in them.

    Example:
        >>> from woodbury.cli.options import OptimizerOptions
        >>> given(OptimizerOptions(batch_size=32))
        ['--batch-size']
    """
    return [
        f"--{each.name.replace('_', '-')}"
        for group in groups
        for each in fields(group)
        if getattr(group, each.name) != each.default
    ]


def as_asked(*groups: Any) -> dict[str, Any]:
    """The options that differ from their defaults, and the seed, by their keys in run.toml.

    Args:
        groups: Instances of the dataclasses of `woodbury.cli.options`.

    Returns:
        Key -> number, text or list of texts. `resume` and `scratch` are left out: the same comes of
        a run without them.

    Example:
        >>> from woodbury.cli.options import CurvatureOptions, InputOptions, MethodOptions
        >>> as_asked(MethodOptions("0.9"), CurvatureOptions(mc_samples=2), InputOptions())
        {'sparsity': 0.9, 'mc-samples': 2, 'seed': 0}
    """
    asked: dict[str, Any] = {}
    for group in groups:
        for each in fields(group):
            value = getattr(group, each.name)
            if is_dataclass(value):
                asked |= as_asked(value)
            elif each.name == "seed" or (
                value != each.default and each.name not in ("resume", "scratch")
            ):
                asked[each.name.replace("_", "-")] = _number_or_text(_plain(value))
    return asked


def _number_or_text(value: Any) -> Any:
    """The text of a number as a number that is written in the same way, such as 0.9."""
    if isinstance(value, str):
        with suppress(ValueError):
            if str(float(value)) == value and isfinite(float(value)):
                return float(value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
