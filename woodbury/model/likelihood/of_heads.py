"""Several heads: a sum of likelihoods, each on a part of the model's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType
from woodbury.model.likelihood.base import Likelihood, check_likelihood
from woodbury.model.likelihood.numbers import checked_numbers

Key = str | int
"""Of a part: a name in a dict or an attribute, or a place in a tuple."""


@checks_types
def several(
    heads: Mapping[Any, Likelihood], weights: Mapping[Any, float] | None = None
) -> Likelihood:
    """The sum of likelihoods on named parts of the model's output: Σ_k c_k L_k(output_k, target_k).

    Outputs are dicts, such as those of `transformers`, objects with attributes, or tuples; targets
    are dicts or tuples. The GGN is the sum of those of the heads, times c  (eq. 76); rows by labels
    are scaled by c themselves, so that their Fisher has c². Where a head is a regression,
    `normal(scale)` says its weight without that difference.

    Args:
        heads: Key -> the likelihood of that part. Keys are names, or places in a tuple.
        weights: c, for each key that has one other than 1.

    Returns:
        The likelihood. It draws labels, and has directions, where every head does.

    Raises:
        WrongType: If a head is no likelihood.
        WoodburyError: If there are no heads, or a weight is not positive or of no head.

    Example:
        >>> from woodbury import cross_entropy, squared_error
        >>> both = several({"kind": cross_entropy, "size": squared_error}, weights={"size": 0.1})
        >>> output = {"kind": torch.zeros(2, 4), "size": torch.zeros(2, 1)}
        >>> both.loss(output, {"kind": torch.tensor([0, 3]), "size": torch.ones(2, 1)})
        tensor(1.4363)
    """
    if not isinstance(heads, Mapping) or not heads:
        raise WoodburyError("several() has no heads: give a likelihood for each part by its name.")
    for head in heads.values():
        check_likelihood(head)
    weights = weights or {}
    for key, weight in weights.items():
        if key not in heads:
            raise WoodburyError(f"There is a weight for {key!r}: give one of {_listed(heads)}.")
        if len(checked_numbers(weight, f"The weight of {key!r}", least=0.0, above=True)) > 1:
            raise WrongType(f"The weight of {key!r} is several numbers: give one.")
    parts = tuple(_Head(key, head, float(weights.get(key, 1.0))) for key, head in heads.items())
    of_heads = heads.values()
    ignored = {head.ignored for head in of_heads}
    return Likelihood(
        _Loss(parts),
        None if any(head.sample is None for head in of_heads) else _Draw(parts),
        ignored.pop() if len(ignored) == 1 else None,
        None if any(head.directions is None for head in of_heads) else _Directions(parts),
        _Outputs(parts),
    )


@dataclass(frozen=True)
class _Head:
    key: Key
    likelihood: Likelihood
    weight: float

    def part_of(self, tree: Any, what: str) -> Any:
        """The head's own part of an output or a target."""
        has_parts = not isinstance(tree, Tensor)
        has_names = has_parts and type(tree) not in (tuple, list)  # but for those of methods
        try:
            if isinstance(self.key, str) and not isinstance(tree, Mapping):
                if has_names:
                    return getattr(tree, self.key)
            elif has_parts:
                return tree[self.key]
        except (AttributeError, KeyError, IndexError, TypeError):
            pass
        raise WrongType(
            f"The {what} is {_described(tree)}, without a part {self.key!r}: give each head the "
            "name of its part, or its place in a tuple."
        )


@dataclass(frozen=True)
class _Loss:
    heads: tuple[_Head, ...]

    def __call__(self, output: Any, target: Any) -> Tensor:
        losses = []
        for head in self.heads:
            own = head.part_of(output, "output"), head.part_of(target, "target")
            losses.append(head.weight * head.likelihood.checked_loss(*own))
        return torch.stack(losses).sum()


@dataclass(frozen=True)
class _Draw:
    heads: tuple[_Head, ...]

    def __call__(
        self, output: Any, target: Any, generator: torch.Generator | None
    ) -> dict[Key, Any]:
        drawn = {}
        for head in self.heads:
            sample = head.likelihood.sample
            assert sample is not None
            own = None if target is None else head.part_of(target, "target")
            drawn[head.key] = sample(head.part_of(output, "output"), own, generator)
        return drawn


@dataclass(frozen=True)
class _Directions:
    """Those of the heads side by side. Their signs have mean zero, so that no two heads mix."""

    heads: tuple[_Head, ...]

    def __call__(
        self, output: Any, target: Any, mc_samples: int, generator: torch.Generator | None
    ) -> Tensor:
        found = []
        for head in self.heads:
            directions = head.likelihood.directions
            assert directions is not None
            own = None if target is None else head.part_of(target, "target")
            one = directions(head.part_of(output, "output"), own, mc_samples, generator)
            found.append(head.weight**0.5 * one.reshape(*one.shape[:2], -1))
        return torch.cat(found, dim=2)


@dataclass(frozen=True)
class _Outputs:
    """The heads' outputs side by side, (b, k)."""

    heads: tuple[_Head, ...]

    def __call__(self, output: Any) -> Tensor:
        own = [head.likelihood.output_of(head.part_of(output, "output")) for head in self.heads]
        return torch.cat([part.reshape(len(part), -1) for part in own], dim=1)


def _described(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return f"a {type(tree).__name__} of {_listed(tree)}"
    if isinstance(tree, (tuple, list)):
        return f"a {type(tree).__name__} of {len(tree)}"
    return f"a {type(tree).__name__}"


def _listed(keys: Any) -> str:
    return ", ".join(map(repr, keys))
