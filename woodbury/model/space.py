"""ParameterSpace: named weights <-> one vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from woodbury.errors import WoodburyError

Patterns = str | Sequence[str]


@dataclass(frozen=True, eq=False)
class ParameterSpace:
    """The weights under study, as one vector: tensors in the order of `shapes`, each row-major, removed weights left out.

    shapes: name -> shape of every tensor, n weights in all. kept: (n,) bool, the d weights that are left; None = all.
    """

    shapes: Mapping[str, torch.Size]
    kept: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.shapes:
            raise WoodburyError("The space is empty: no parameter was chosen.")
        if self.kept is not None and (
            self.kept.dtype != torch.bool or self.kept.shape != (self.n,)
        ):
            raise WoodburyError(
                f"kept has shape {tuple(self.kept.shape)}: give a bool mask over all {self.n} weights."
            )

    @classmethod
    def from_model(
        cls, model: nn.Module, include: Patterns = "*", exclude: Patterns = (), *, min_ndim: int = 1
    ) -> ParameterSpace:
        """The parameters of `model` whose names match `include` and not `exclude` (shell patterns); tied ones once.

        min_ndim: leave out tensors with fewer dimensions (2 leaves out biases and norms). Raises WoodburyError for a
        pattern that matches no parameter, for lazy layers, or when nothing is left.
        """
        if not isinstance(model, nn.Module):
            raise WoodburyError(f"The model is a {type(model).__name__}: give a torch.nn.Module.")
        parameters = dict(model.named_parameters())
        if lazy := [name for name, parameter in parameters.items() if is_lazy(parameter)]:
            raise WoodburyError(
                f"{lazy[0]!r} has no shape yet: show the model some data once, as its layers are lazy."
            )
        included, excluded = (
            _matches(parameters, include, "include"),
            _matches(parameters, exclude, "exclude"),
        )
        chosen = {
            name: parameter.shape
            for name, parameter in parameters.items()
            if name in included
            and name not in excluded
            and parameter.ndim >= min_ndim
            and parameter.numel()
        }
        if not chosen:
            raise WoodburyError(
                f"No parameter is left: include={include!r}, exclude={exclude!r}, at least {min_ndim} dimension(s). "
                f"The model has {_some(parameters)}."
            )
        return cls(chosen)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each tensor lies among all n weights."""
        ends = list(accumulate(shape.numel() for shape in self.shapes.values()))
        return {
            name: slice(start, end)
            for name, start, end in zip(self.shapes, [0, *ends], ends, strict=False)
        }

    @cached_property
    def n(self) -> int:
        """How many weights the space began with."""
        return sum(shape.numel() for shape in self.shapes.values())

    @cached_property
    def d(self) -> int:
        """How many weights are left."""
        return self.n if self.kept is None else int(self.kept.sum())

    @property
    def keep(self) -> Tensor:
        """(n,) bool, True = stays."""
        return torch.ones(self.n, dtype=torch.bool) if self.kept is None else self.kept

    @property
    def sparsity(self) -> float:
        """Removed ÷ all weights of the original space."""
        return 1 - self.d / self.n

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """name -> (…, *shape) to (…, d); leading dimensions (samples) are carried along."""
        lead = None
        for name, shape in self.shapes.items():
            if name not in tensors:
                raise WoodburyError(
                    f"Parameter {name!r} is missing: the space needs {_some(self.shapes)}."
                )
            found = tensors[name].shape
            lead = found[: max(0, len(found) - len(shape))] if lead is None else lead
            if found != (*lead, *shape):
                wanted = (*lead, *shape)
                raise WoodburyError(
                    f"Parameter {name!r} has shape {tuple(found)}, not {wanted}: is this the model?"
                )
        vector = torch.cat(
            [tensors[name].reshape(*(lead or ()), -1) for name in self.shapes], dim=-1
        )
        return vector if self.kept is None else vector[..., self.kept.to(vector.device)]

    def expand(self, vector: Tensor) -> Tensor:
        """(d,) to (n,): removed weights come back as 0."""
        if vector.shape != (self.d,):
            raise WoodburyError(
                f"A vector of shape {tuple(vector.shape)} met a space of {self.d} weights."
            )
        if self.kept is None:
            return vector
        full = vector.new_zeros(self.n)
        full[self.kept.to(vector.device)] = vector
        return full

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """(d,) to name -> tensor: removed weights come back as 0."""
        full = self.expand(vector)
        return {name: full[part].view(self.shapes[name]) for name, part in self.slices.items()}

    def tensor_index(self) -> Tensor:
        """(n,) int64: the index of the tensor that each weight belongs to."""
        sizes = torch.tensor([shape.numel() for shape in self.shapes.values()])
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def block_sizes(self, size: int | None = None) -> tuple[int, ...]:
        """Lengths of the runs that tile the d weights left, each inside one tensor and, if given, at most `size` long."""
        if size is not None and size < 1:
            raise WoodburyError(f"A block of {size} weights is empty: give a size of at least 1.")
        lengths = torch.bincount(
            self.tensor_index()[self.keep.cpu()], minlength=len(self.shapes)
        ).tolist()
        return tuple(
            min(size or length, length - start)
            for length in lengths
            for start in range(0, length, size or length or 1)
        )

    def restrict(self, keep: Tensor) -> ParameterSpace:
        """The space of the weights that stay: keep (d,) bool."""
        if keep.dtype != torch.bool or keep.shape != (self.d,):
            raise WoodburyError(
                f"keep has shape {tuple(keep.shape)}: give a bool mask over the {self.d} weights left."
            )
        kept = self.keep.clone()
        kept[self.keep] = keep.to(kept.device)
        return replace(self, kept=kept)


def _matches(names: Iterable[str], patterns: Patterns, which: str) -> set[str]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    found = {
        pattern: {name for name in names if fnmatchcase(name, pattern)} for pattern in patterns
    }
    for pattern, matched in found.items():
        if not matched:
            raise WoodburyError(
                f"{which} pattern {pattern!r} matches no parameter: the model has {_some(names)}."
            )
    return set().union(*found.values())


def _some(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
