"""How near one symmetric matrix is to another: by products with the same vectors, and entrywise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from woodbury.linalg.lanczos import lanczos


@dataclass(frozen=True)
class Match:
    """How near an estimate C is to the Hessian H, in Frobenius norms  (eq. 77).

    Attributes:
        scale: s = ⟨C, H⟩ / ⟨C, C⟩, which brings s·C nearest to H.
        cosine: ⟨C, H⟩ / (‖C‖ ‖H‖).
        error: ‖C − H‖ / ‖H‖.
        error_scaled: ‖s·C − H‖ / ‖H‖ = √(1 − cosine²).
        cosine_error: The standard error of the cosine, over the random vectors; 0 where the
            matrices are known.
        eigenvalues: Of C, the largest first; empty where only products are known.
    """

    scale: float
    cosine: float
    error: float
    error_scaled: float
    cosine_error: float = 0.0
    eigenvalues: tuple[float, ...] = ()


@dataclass(frozen=True)
class BlockMatch:
    """A part of one tensor, whose Hessian is exact.

    Attributes:
        tensor: The parameter's name.
        weights: How many of its weights.
        hessian: The eigenvalues of the Hessian by them, the largest first.
        matches: Name -> how near each estimate is.
    """

    tensor: str
    weights: int
    hessian: tuple[float, ...]
    matches: Mapping[str, Match]


@dataclass(frozen=True)
class Spectrum:
    """The trace and the ends of the spectrum of a matrix that is known by its products  (eq. 79).

    Attributes:
        trace: Hutchinson's estimate.
        trace_error: Its standard error, over the random vectors; 0 for one of them.
        top: The largest eigenvalues, by Lanczos.
        top_error: For each, a bound of its distance to an eigenvalue.
        least: The least eigenvalue that Lanczos has seen, which the true one is no larger than.
        overlap: The share of the leading eigenspace that lies in the Hessian's of the same
            dimension; None for the Hessian itself.
        vectors: (d, k), the leading eigenvectors; None where they are not kept.
    """

    trace: float
    trace_error: float
    top: tuple[float, ...]
    top_error: tuple[float, ...]
    least: float
    overlap: float | None = None
    vectors: Tensor | None = field(default=None, repr=False, compare=False)

    def beside(self, other: Spectrum) -> Spectrum:
        """The same, with the overlap of both leading eigenspaces.

        Args:
            other: With vectors.
        """
        if self.vectors is None or other.vectors is None:
            return self
        size = min(self.vectors.shape[1], other.vectors.shape[1])
        products = self.vectors[:, :size].double().mT @ other.vectors[:, :size].double()
        return replace(self, overlap=min(1.0, float(products.square().sum()) / size))

    def without_vectors(self) -> Spectrum:
        """The numbers alone."""
        return replace(self, vectors=None)


def compared(found: Tensor, exact: Tensor) -> Match:
    """A match from products with the same random vectors  (eq. 77).

    Args:
        found: C Z (d, k).
        exact: H Z (d, k).

    Example:
        >>> match = compared(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]]))
        >>> match.scale, round(match.cosine, 6), match.error
        (2.0, 1.0, 0.5)
    """
    sums = [
        torch.stack([(a.double() * b.double()).sum() for a, b in zip(x.mT, y.mT, strict=True)])
        for x, y in ((found, exact), (found, found), (exact, exact))
    ]
    both, own, other = (float(each.sum()) for each in sums)
    cosines = [
        _cosine(*(float(each.sum() - each[left_out]) for each in sums))
        for left_out in range(found.shape[1])
    ]
    return _match(both, own, other, cosine_error=_jackknife(cosines))


def match_of_matrices(found: Tensor, exact: Tensor) -> Match:
    """A match of two known matrices.

    Args:
        found: C (s, s).
        exact: H (s, s).
    """
    both, own, other = (
        float((a.double() * b.double()).sum())
        for a, b in ((found, exact), (found, found), (exact, exact))
    )
    symmetric = (found + found.mT) / 2
    values = torch.linalg.eigvalsh(symmetric).flip(0)
    return replace(_match(both, own, other), eigenvalues=tuple(values.tolist()))


def _match(both: float, own: float, other: float, cosine_error: float = 0.0) -> Match:
    """From ⟨C, H⟩, ⟨C, C⟩ and ⟨H, H⟩. A matrix of zeros is as far from others as can be."""
    cosine = _cosine(both, own, other)
    apart = max(own - 2 * both + other, 0.0)
    return Match(
        scale=both / own if own else 0.0,
        cosine=cosine,
        error=math.sqrt(apart / other) if other else 0.0 if not own else math.inf,
        error_scaled=math.sqrt(1 - cosine**2),
        cosine_error=cosine_error,
    )


def _cosine(both: float, own: float, other: float) -> float:
    scale = math.sqrt(own) * math.sqrt(other)
    return min(1.0, max(-1.0, both / scale)) if scale else 0.0


def _jackknife(values: list[float]) -> float:
    """The standard error of a statistic, from its values with each sample left out in turn."""
    count = len(values)
    if count < 2:
        return 0.0
    mean = sum(values) / count
    return math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in values))


def spectrum_of(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    largest: int,
    vectors: Tensor,
    products: Tensor,
) -> Spectrum:
    """The trace by Hutchinson's estimate and the top of the spectrum by Lanczos  (eq. 79).

    Args:
        product: v -> A v.
        start: (d,), where Lanczos begins.
        steps: Of Lanczos.
        largest: Eigenvalues that are asked for.
        vectors: Z (d, k) of ±1.
        products: A Z (d, k).

    Returns:
        The spectrum, with its vectors.
    """
    forms = (vectors.double() * products.double()).sum(0)
    ritz = lanczos(product, start, steps, largest)
    count = len(forms)
    return Spectrum(
        trace=float(forms.mean()),
        trace_error=float(forms.std() / count**0.5) if count > 1 else 0.0,
        top=tuple(ritz.values.tolist()),
        top_error=tuple(ritz.residuals.tolist()),
        least=ritz.least,
        vectors=ritz.vectors,
    )
