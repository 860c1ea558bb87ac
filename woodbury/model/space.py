"""ParameterSpace: named weights <-> one vector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, reduce
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType, check_whole_number
from woodbury.linalg.precision import dtype_name
from woodbury.linalg.reused_memory import ReusedMemory
from woodbury.model.channels import Channels, channels_of
from woodbury.model.layers import memory_of
from woodbury.model.left_out import HOW_TO_TAKE_IN, embeddings_and_heads, left_out_in_words
from woodbury.model.wrappers import checked_model, quantized_layers

Patterns = str | Sequence[str]
"""One shell pattern, such as "*.weight", or several."""

NAMES_SHOWN = 8
"""In a sentence, at most."""


@dataclass(frozen=True, eq=False)
class ParameterSpace:
    """Chosen weights of a model as one vector.

    The tensors follow each other in the order of `shapes`, each row-major, without the removed
    weights.

    Attributes:
        shapes: Name -> shape of every tensor: n weights in all.
        kept: (n,) bool, True for each of the d weights that are kept; None if all are.
        channels: Name -> along which dimensions its layer has outputs and inputs. Tensors that are
            not named have outputs along dimension 0, and inputs along dimension 1.
        left_out: Name -> "embedding" or "head" of each tensor that `for_pruning` left out by
            itself.
        undivided: Name -> why the groups of an n:m pattern do not divide it, of each tensor that
            was left out for that.

    Raises:
        WoodburyError: If there is no tensor, or `kept` is no bool mask over all n weights.

    Example:
        >>> space = ParameterSpace.from_model(nn.Linear(2, 1))
        >>> smaller = space.restrict(torch.tensor([True, False, True]))
        >>> smaller.n, smaller.d
        (3, 2)
        >>> smaller.unflatten(torch.tensor([5.0, 7.0]))
        {'weight': tensor([[5., 0.]]), 'bias': tensor([7.])}
    """

    shapes: Mapping[str, torch.Size]
    kept: Tensor | None = None
    channels: Mapping[str, Channels] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    undivided: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.shapes, Mapping) or not all(
            isinstance(shape, torch.Size) for shape in self.shapes.values()
        ):
            raise WrongType("shapes maps names to shapes: give {'weight': torch.Size((2, 3))}.")
        if not self.shapes:
            raise WoodburyError("The space is empty: choose at least one parameter.")
        if self.kept is not None:
            _check_mask(self.kept, self.n, "kept", f"all {self.n} weights")

    @classmethod
    def from_model(
        cls, model: nn.Module, include: Patterns = "*", exclude: Patterns = (), *, min_ndim: int = 1
    ) -> ParameterSpace:
        """The parameters of a model that are chosen by name.

        Args:
            model: The model, whose wrappers are seen through. Its tied parameters are taken once;
                those without elements, and whole numbers and other parameters that have no gradient
                by their type, never.
            include: Names to take, or shell patterns of them; all by default.
            exclude: Names or patterns to leave out of these.
            min_ndim: Dimensions that a tensor must have: 2 leaves out biases and norms.

        Returns:
            The space, in the order of the model's parameters.

        Raises:
            WrongType: If the model is no module.
            WoodburyError: If a pattern matches no parameter, a layer is lazy or quantized, the
                model is scripted or exported, or nothing is chosen.

        Example:
            >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
            >>> list(ParameterSpace.from_model(model, exclude="1.*", min_ndim=2).shapes)
            ['0.weight']
        """
        model = checked_model(model)
        check_whole_number(min_ndim, "min_ndim", "dimensions at least", least=0)
        parameters = dict(model.named_parameters())
        if not parameters:
            raise WoodburyError(
                "The model has no parameters: one that is quantized holds its weights elsewhere, "
                "so prune it before."
            )
        if lazy := [name for name, parameter in parameters.items() if is_lazy(parameter)]:
            raise WoodburyError(
                f"{lazy[0]!r} has no shape yet: "
                "show the model some data once, as its layers are lazy."
            )
        if isinstance(include, str) and include == "*" and (quantized := quantized_layers(model)):
            raise WoodburyError(
                f"{quantized[0]!r} is quantized, and its weights are no parameters: prune the "
                "model before it is quantized, or name the parameters that are left with include=…."
            )
        tied = _tied_names(model, parameters)
        included = _matches(parameters, include, "include", tied)
        included -= _matches(parameters, exclude, "exclude", tied)
        chosen = {
            name: parameter
            for name, parameter in _first_of_tied(parameters).items()
            if name in included and parameter.ndim >= min_ndim and _has_gradient(parameter)
        }
        if not chosen:
            raise WoodburyError(
                f"No parameter is left: include={include!r}, exclude={exclude!r}, at least "
                f"{min_ndim} dimension(s). The model has {_listed(parameters)}."
            )
        shapes = {name: parameter.shape for name, parameter in chosen.items()}
        return cls(shapes, channels=channels_of(model, shapes))

    @classmethod
    def for_pruning(
        cls, model: nn.Module, include: Patterns | None = None, exclude: Patterns = ()
    ) -> ParameterSpace:
        """The weight matrices and kernels of a model that `prune` prunes.

        Args:
            model: The model, whose wrappers are seen through.
            include: Names to take, or patterns of them, whatever they are. None for all but
                embeddings, what is tied to them, and the heads of models of transformers; "*"
                takes these in.
            exclude: Names or patterns to leave out of these.

        Returns:
            The space; `left_out` names what it leaves out by itself.

        Raises:
            WrongType: As `from_model`.
            WoodburyError: As `from_model`; also if nothing but embeddings and heads is chosen.

        Example:
            >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
            >>> space = ParameterSpace.for_pruning(model)
            >>> list(space.shapes), dict(space.left_out)
            (['1.weight'], {'0.weight': 'embedding'})
            >>> list(ParameterSpace.for_pruning(model, include="*").shapes)
            ['0.weight', '1.weight']
        """
        space = cls.from_model(model, "*" if include is None else include, exclude, min_ndim=2)
        if include is not None:
            return space
        found = embeddings_and_heads(checked_model(model))
        left_out = {name: found[name] for name in space.shapes if name in found}
        shapes = {name: shape for name, shape in space.shapes.items() if name not in found}
        if not shapes:
            raise WoodburyError(
                f"No matrix or kernel is left without {left_out_in_words(left_out)}: "
                f"{HOW_TO_TAKE_IN}."
            )
        channels = {name: each for name, each in space.channels.items() if name in shapes}
        return cls(shapes, channels=channels, left_out=left_out)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Name -> where its tensor lies among all n weights."""
        ends = list(accumulate(shape.numel() for shape in self.shapes.values()))
        starts = [0, *ends[:-1]]
        return {
            name: slice(start, end)
            for name, start, end in zip(self.shapes, starts, ends, strict=True)
        }

    @cached_property
    def n(self) -> int:
        """Weights of all tensors, kept or removed."""
        return sum(shape.numel() for shape in self.shapes.values())

    @cached_property
    def d(self) -> int:
        """Weights that are kept."""
        return self.n if self.kept is None else int(self.kept.count_nonzero())

    @cached_property
    def kept_sizes(self) -> tuple[int, ...]:
        """How many weights of each tensor are kept."""
        if self.kept is None:
            return tuple(shape.numel() for shape in self.shapes.values())
        return tuple(int(self.kept[where].count_nonzero()) for where in self.slices.values())

    @property
    def keep(self) -> Tensor:
        """(n,) bool, True = kept."""
        return torch.ones(self.n, dtype=torch.bool) if self.kept is None else self.kept

    @property
    def sparsity(self) -> float:
        """Removed ÷ all n weights."""
        return 1 - self.d / self.n

    def flatten(self, tensors: Mapping[str, Tensor], memory: ReusedMemory | None = None) -> Tensor:
        """Named tensors as one vector, without the removed weights.

        Args:
            tensors: Name -> (…, *shape) for every tensor of the space. Leading dimensions, such as
                samples, are equal for all.
            memory: Where the vector is made, if all are on the CPU and without leading dimensions;
                None for new memory.

        Returns:
            (…, d).

        Raises:
            WoodburyError: If a tensor is missing or of another shape.
        """
        lead = self._leading_dimensions(tensors)
        flat = [tensors[name].reshape(*lead, -1) for name in self.shapes]
        if memory is None:
            vector = torch.cat(flat, dim=-1)
            return vector if self.kept is None else vector[..., self.kept.to(vector.device)]
        dtype = reduce(torch.promote_types, (part.dtype for part in flat))
        vector = torch.cat(flat, out=memory.empty(self.n, dtype))
        if self.kept is None:
            return vector
        return torch.masked_select(vector, self.kept, out=memory.empty(self.d, dtype))

    def expand(self, vector: Tensor) -> Tensor:
        """A vector of the kept weights as one of all weights.

        Args:
            vector: (d,).

        Returns:
            (n,), 0 for the removed weights.

        Raises:
            WoodburyError: If the vector has another shape.
        """
        self.check_vector(vector)
        if self.kept is None:
            return vector
        # An index by the mask would take two vectors more.
        return vector.new_zeros(self.n).masked_scatter_(self.kept.to(vector.device), vector)

    def by_tensor(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        """A vector of the kept weights as named tensors, one at a time.

        Args:
            vector: (d,).

        Yields:
            Name and tensor, 0 for the removed weights.

        Raises:
            WoodburyError: If the vector has another shape.
        """
        self.check_vector(vector)
        parts = vector.split(self.kept_sizes)
        for (name, where), part in zip(self.slices.items(), parts, strict=True):
            if self.kept is not None:
                mask = self.kept[where].to(vector.device)
                part = vector.new_zeros(len(mask)).masked_scatter_(mask, part)
            yield name, part.view(self.shapes[name])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector of the kept weights as named tensors.

        Args:
            vector: (d,).

        Returns:
            Name -> tensor, 0 for the removed weights.

        Raises:
            WoodburyError: If the vector has another shape.
        """
        full = self.expand(vector)
        return {name: full[where].view(self.shapes[name]) for name, where in self.slices.items()}

    def check_vector(self, vector: Tensor) -> None:
        """Raise unless a vector has one number per kept weight.

        Args:
            vector: Any tensor.

        Raises:
            WoodburyError: If its shape is not (d,).
        """
        if not isinstance(vector, Tensor):
            raise WrongType(f"The vector is a {type(vector).__name__}: give a tensor ({self.d},).")
        if vector.layout != torch.strided:
            raise WrongType("The vector is sparse: give a dense tensor.")
        if vector.shape != (self.d,):
            raise WoodburyError(
                f"A space of {self.d} kept weights got a vector of shape {tuple(vector.shape)}: "
                f"give ({self.d},)."
            )

    def tensor_index(self) -> Tensor:
        """(n,) int64: the index of the tensor that each weight belongs to."""
        sizes = torch.tensor([shape.numel() for shape in self.shapes.values()])
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    @checks_types
    def channels_of(self, name: str) -> Channels:
        """Along which dimensions the layer of a tensor has its outputs and inputs.

        Args:
            name: Of a tensor of the space.

        Returns:
            Those of `channels`, or outputs along dimension 0 and inputs along dimension 1.
        """
        return self.channels.get(name, Channels())

    def name_of(self, index: int) -> str:
        """The name of the parameter that a kept weight belongs to.

        Args:
            index: One of the d kept weights.

        Example:
            >>> space = ParameterSpace.from_model(nn.Linear(2, 1))
            >>> space.restrict(torch.arange(3) > 0).name_of(1)
            'bias'
        """
        check_whole_number(index, "index", "that of a kept weight", least=0, most=self.d - 1)
        return self.name_at(int(self.keep.nonzero()[index]))

    def name_at(self, position: int) -> str:
        """The name of the parameter that a weight belongs to, kept or removed.

        Args:
            position: One of all n weights.
        """
        check_whole_number(position, "position", "that of a weight", least=0, most=self.n - 1)
        return next(
            name for name, where in self.slices.items() if where.start <= position < where.stop
        )

    def block_sizes(self, size: int | None = None) -> tuple[int, ...]:
        """The sizes of blocks that tile the kept weights, each block inside one tensor.

        Args:
            size: The largest; None for one block per tensor.

        Returns:
            Sizes that add up to d.

        Raises:
            WoodburyError: If `size` is below 1.

        Example:
            >>> ParameterSpace.from_model(nn.Linear(5, 1)).block_sizes(3)
            (3, 2, 1)
        """
        if size is not None:
            check_block_size(size)
        return tuple(
            min(size or kept, kept - start)
            for kept in self.kept_sizes
            for start in range(0, kept, size or kept or 1)
        )

    def restrict(self, keep: Tensor) -> ParameterSpace:
        """The space without some more weights.

        Args:
            keep: (d,) bool, True = kept.

        Returns:
            The space of the weights that are kept.

        Raises:
            WoodburyError: If `keep` is no bool mask over the d weights.
        """
        _check_mask(keep, self.d, "keep", f"the {self.d} kept weights")
        if self.kept is None:
            return replace(self, kept=keep.clone())
        keep = keep.to(self.kept.device)
        return replace(self, kept=torch.zeros_like(self.kept).masked_scatter_(self.kept, keep))

    def _leading_dimensions(self, tensors: Mapping[str, Tensor]) -> torch.Size:
        """The dimensions before the parameters' own in all tensors; raises if they differ."""
        if not isinstance(tensors, Mapping):
            raise WrongType(f"tensors is a {type(tensors).__name__}: give name -> tensor.")
        lead: torch.Size | None = None
        for name, shape in self.shapes.items():
            if name not in tensors:
                raise WoodburyError(
                    f"Parameter {name!r} is missing: the space needs {_listed(self.shapes)}."
                )
            if not isinstance(tensors[name], Tensor):
                given_type = type(tensors[name]).__name__
                raise WrongType(f"Parameter {name!r} is a {given_type}: give a tensor.")
            given = tensors[name].shape
            if lead is None:
                lead = given[: max(0, len(given) - len(shape))]
            expected = (*lead, *shape)
            if given != expected:
                raise WoodburyError(
                    f"Parameter {name!r} has shape {tuple(given)}, not {expected}: "
                    "is this the model?"
                )
        return lead or torch.Size()


def check_block_size(size: int) -> None:
    """Raise unless blocks have a weight.

    Args:
        size: Weights per block.

    Raises:
        WoodburyError: If it is below 1.
    """
    check_whole_number(size, "block", "the number of weights of a block")


def _check_mask(mask: Tensor, length: int, name: str, over: str) -> None:
    if not isinstance(mask, Tensor):
        raise WrongType(f"{name} is a {type(mask).__name__}: give a bool mask over {over}.")
    if mask.dtype != torch.bool or mask.shape != (length,):
        kind = WoodburyError if mask.dtype == torch.bool else WrongType
        raise kind(
            f"{name} is {dtype_name(mask.dtype)} of shape {tuple(mask.shape)}: "
            f"give a bool mask over {over}."
        )


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter's name is a name, or matches a shell pattern.

    Args:
        name: Such as "heads.[CLS].weight".
        pattern: The same name, or a pattern such as "heads.*".

    Returns:
        True for both.

    Example:
        >>> matches("heads.[CLS].weight", "heads.[CLS].weight")
        True
    """
    return name == pattern or fnmatchcase(name, pattern)


def _first_of_tied(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters without those that are the memory of one before."""
    first: dict[tuple[object, ...], str] = {}
    for name, parameter in parameters.items():
        first.setdefault(memory_of(parameter), name)
    return {name: parameters[name] for name in first.values()}


def _has_gradient(parameter: nn.Parameter) -> bool:
    """Whether its type can have a gradient, and it has an element."""
    return bool(parameter.numel()) and (parameter.is_floating_point() or parameter.is_complex())


def _tied_names(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """The further names of tied parameters -> the name that each has here."""
    first = {id(parameter): name for name, parameter in parameters.items()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every if first.get(id(p), name) != name}


def _matches(
    names: Iterable[str], patterns: Patterns, which: str, tied: Mapping[str, str]
) -> set[str]:
    """The names that match any of the patterns; raises for a pattern that matches none."""
    result: set[str] = set()
    iterable = isinstance(patterns, Iterable) and not isinstance(patterns, Tensor)
    several = [patterns] if isinstance(patterns, str) else list(patterns) if iterable else []
    if not iterable or not all(isinstance(pattern, str) for pattern in several):
        raise WrongType(f"{which} is {str(patterns)[:60]}: give a pattern of names, or several.")
    for pattern in several:
        matched = {name for name in names if matches(name, pattern)}
        also = [name for name in tied if matches(name, pattern)]
        if not matched and also:
            raise WoodburyError(
                f"{which} pattern {pattern!r} matches {also[0]!r}, which is tied to "
                f"{tied[also[0]]!r}: give that name."
            )
        if not matched:
            raise WoodburyError(
                f"{which} pattern {pattern!r} matches no parameter: the model has {_listed(names)}."
            )
        result |= matched
    return result


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
