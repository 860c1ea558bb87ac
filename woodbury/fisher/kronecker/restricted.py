"""Restricted: the Fisher of the kept weights of a damped Kronecker product."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher, compensate_by_restriction
from woodbury.fisher.checks import check_groups, check_held, check_keep, check_vector
from woodbury.fisher.kronecker.elements import Elements, exact
from woodbury.fisher.kronecker.submatrix import Submatrix
from woodbury.limits import Limits
from woodbury.linalg.iterative_solvers import conjugate_gradients


@dataclass(frozen=True, eq=False, repr=False)
class Restricted(Fisher):
    """F_KK of F = left ⊗ right + damping·I, K the kept and R the removed weights  (eq. 25).

    A product costs one of the whole F. `solve` factors a dense matrix of n = min(|K|, |R|) rows
    while n ≤ `Limits.direct_size`. Above, it runs conjugate gradients preconditioned by [F⁻¹]_KK,
    which leaves at most n eigenvalues that are not 1. `logdet` needs the dense factor, O(n³) once.
    `Kronecker.restrict` makes these.

    Attributes:
        submatrix: F_KK in float64.
        result: The dtype of what the operations return.
        elements: Where inverse elements come from, `exact` or `upper_bound`.

    Example:
        >>> import torch
        >>> import woodbury
        >>> left, right = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.eye(1)
        >>> fisher = woodbury.fisher.Kronecker(left, right, damping=1.0)
        >>> fisher.restrict(torch.tensor([True, False])).solve(torch.ones(1))
        tensor([0.3333])
    """

    submatrix: Submatrix
    result: torch.dtype
    elements: Elements = field(default=exact, repr=False)

    @property
    def damping(self) -> float:  # type: ignore[override]
        """λ of the whole product."""
        return self.submatrix.damping

    @property
    def keep(self) -> Tensor:
        """(d of the whole product,) bool, True = kept."""
        return self.submatrix.keep

    @property
    def d(self) -> int:
        """The number of kept weights."""
        return len(self.submatrix.kept)

    @property
    def dtype(self) -> torch.dtype:
        """`result`."""
        return self.result

    @property
    def device(self) -> torch.device:
        """That of the factors."""
        return self.submatrix.basis.values.device

    def __matmul__(self, v: Tensor) -> Tensor:
        """F_KK v, at the price of a product with F."""
        v = check_vector(v, self.d)
        return self._restore(self.submatrix.product(self._columns(v), self.submatrix.spectrum), v)

    def solve(self, v: Tensor) -> Tensor:
        """F_KK⁻¹ v, directly where n is small, else by conjugate gradients.

        Args:
            v: (|K|,) or (|K|, k).

        Returns:
            The same shape.

        Raises:
            WoodburyError: If conjugate gradients do not converge: more damping helps.
        """
        v = check_vector(v, self.d)
        columns = self._columns(v)
        if self.submatrix.n <= Limits.current().direct_size or self.submatrix.is_factored:
            return self._restore(self.submatrix.solve_directly(columns), v)
        spectrum = self.submatrix.spectrum
        inverse_spectrum = self.submatrix.inverse_spectrum
        steps, residual = Limits.current().cg_steps, Limits.current().cg_residual
        solution = conjugate_gradients(
            lambda x: self.submatrix.product(x, spectrum),
            columns,
            steps,
            residual,
            lambda x: self.submatrix.product(x, inverse_spectrum),
        )
        if not solution.residual <= 1.01 * residual:  # rounding included, NaN not
            raise WoodburyError(
                "Conjugate gradients on the kept weights of a Kronecker Fisher stand at a relative "
                f"residual of {solution.residual:.1e} after {steps} steps: "
                "raise the damping."
            )
        return self._restore(solution.x, v)

    def diagonal(self) -> Tensor:
        """The kept entries of diag(F)."""
        return self.submatrix.basis.diagonal(self.submatrix.spectrum).to(self.dtype)[self.keep]

    def inverse_diagonal(self) -> Tensor:
        """diag(F_KK⁻¹), by `elements`."""
        diagonal = self.elements(self.submatrix, None).to(self.dtype)
        return check_held(diagonal, "The inverse diagonal", positive=True)

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F_KK⁻¹]_QQ, by `elements`."""
        index = check_groups(groups, self.d).to(self.device)
        return self.elements(self.submatrix, index).to(self.dtype)

    def restrict(self, keep: Tensor) -> Restricted:
        """Fewer weights of the same product."""
        both = self.keep.clone()
        both[self.keep] = check_keep(keep, self.d).to(both.device)
        return replace(self, submatrix=replace(self.submatrix, keep=both))

    def with_damping(self, damping: float) -> Restricted:
        """The same eigenvectors and kept weights under another damping."""
        return replace(self, submatrix=replace(self.submatrix, damping=damping))

    def logdet(self) -> float:
        """The log det of F_KK, by the dense factor."""
        return self.submatrix.logdet()

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """The OBS update of the kept weights."""
        return compensate_by_restriction(self, keep, removed, gradient)

    def _columns(self, v: Tensor) -> Tensor:
        """(|K|,) or (|K|, k) -> (|K|, 1) or (|K|, k) float64."""
        return v.double().reshape(self.d, -1)

    def _restore(self, columns: Tensor, v: Tensor) -> Tensor:
        return check_held(columns.reshape(v.shape).to(self.dtype), "The product")
