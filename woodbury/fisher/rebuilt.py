"""Rebuilt: a Fisher that is estimated each time it is asked, and forgotten after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_damping, check_keep, check_vector

NO_DAMPING = 1e-30
"""A damping that leaves the diagonal to the curvature."""


@dataclass(frozen=True, eq=False, repr=False)
class Rebuilt(Fisher):
    """F as a function that makes it: for curvature that has no room beside that of other weights.

    What has the size of a vector is remembered: both diagonals are of one build, and the product
    with a joint update is taken in the build that the update is made in. To prune in one step thus
    takes two builds; each further operation takes one.

    Attributes:
        build: () -> F, the same at each call.
        weights: d.
        damping: λ > 0; where the build has another, it is set.
        result: The dtype of what the operations return.
        place: The device.

    Example:
        >>> import torch, woodbury
        >>> def build():
        ...     print("built")
        ...     return woodbury.fisher.Diagonal(torch.tensor([1.0, 3.0]), damping=1.0)
        >>> fisher = Rebuilt(build, 2, 1.0, torch.float32, torch.device("cpu"))
        >>> fisher.inverse_diagonal()
        built
        tensor([0.5000, 0.2500])
        >>> fisher.diagonal()
        tensor([2., 4.])
    """

    build: Callable[[], Fisher]
    weights: int
    damping: float
    result: torch.dtype
    place: torch.device
    _known: _Known = field(default_factory=lambda: _Known(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "damping", check_damping(self.damping))

    @property
    def d(self) -> int:
        """The number of weights."""
        return self.weights

    @property
    def dtype(self) -> torch.dtype:
        """As given."""
        return self.result

    @property
    def device(self) -> torch.device:
        """As given."""
        return self.place

    def _built(self) -> Fisher:
        fisher = self.build()
        return fisher if fisher.damping == self.damping else fisher.with_damping(self.damping)

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v."""
        v = check_vector(v, self.d)
        known = self._known.product
        if known is not None and known.damping == self.damping and torch.equal(known.v, v):
            return known.product.clone()
        return self._built() @ v

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v."""
        return self._built().solve(v)

    def diagonal(self) -> Tensor:
        """diag(F)."""
        if self._known.curvature is None:
            self._remember_diagonals()
        assert self._known.curvature is not None
        return self._known.curvature + self.damping

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹)."""
        if self.damping not in self._known.inverse:
            self._remember_diagonals()
        if self.damping not in self._known.inverse:  # the build's damping is another
            self._known.inverse[self.damping] = self._built().inverse_diagonal()
        return self._known.inverse[self.damping]

    def _remember_diagonals(self) -> None:
        fisher = self.build()
        self._known.curvature = fisher.with_damping(NO_DAMPING).diagonal()
        self._known.inverse[fisher.damping] = fisher.inverse_diagonal()

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ."""
        return self._built().inverse_blocks(groups)

    def restrict(self, keep: Tensor) -> Rebuilt:
        """F_KK, which is restricted each time it is built."""
        keep = check_keep(keep, self.d)
        kept = int(keep.sum())
        return Rebuilt(
            lambda: self._built().restrict(keep), kept, self.damping, self.result, self.place
        )

    def conditional_curvature(self, keep: Tensor) -> Tensor:
        """As that of what is built."""
        return self._built().conditional_curvature(keep)

    def with_damping(self, damping: float) -> Rebuilt:
        """The same builds under another damping; the diagonal of the curvature is shared."""
        return replace(self, damping=check_damping(damping))

    def logdet(self) -> float:
        """Log det F."""
        return self._built().logdet()

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """F_KK⁻¹ (F_KQ w_Q − g_K); the product of F with the whole step is remembered."""
        keep = check_keep(keep, self.d)
        removed = check_vector(removed, self.d, columns=False)
        fisher = self._built()
        step = fisher.compensate(keep, removed, gradient)
        whole = -removed.to(self.dtype)
        whole[keep] = step
        self._known.product = _Product(self.damping, whole, fisher @ whole)
        return step


@dataclass
class _Product:
    """v (d,) and F v at a damping."""

    damping: float
    v: Tensor
    product: Tensor


@dataclass
class _Known:
    """What is remembered: the diagonal of the curvature, and of inverses by damping."""

    curvature: Tensor | None = None
    inverse: dict[float, Tensor] = field(default_factory=dict)
    product: _Product | None = None
