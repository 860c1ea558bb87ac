"""How near each estimate of the curvature is to the exact Hessian, by parts and as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import check_whole_number
from woodbury.estimation.hessian_products import held_hessian, hessian_block
from woodbury.fisher.base import Fisher
from woodbury.inspection.agreement import in_digits, in_percent
from woodbury.inspection.curvatures import (
    WORDS,
    Curvatures,
    in_the_wrong_order,
    products_of,
    without_damping,
)
from woodbury.inspection.matches import (
    BlockMatch,
    Match,
    Spectrum,
    compared,
    match_of_matrices,
    spectrum_of,
)
from woodbury.linalg.conversion import seeded
from woodbury.linalg.precision import wide_dtype
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace

PROBES = 8
"""Random vectors that a whole Hessian is compared on."""
BLOCK = 16
"""Weights of a part whose Hessian is computed."""
PARTS = 3
"""Tensors with such a part: the first, the last, and those evenly between."""
TOP = 5
"""Eigenvalues of a whole network."""
STEPS = 20
"""Of Lanczos; each is a product with the Hessian."""
SAMPLES = 64
"""That the Hessian of a large network averages over."""
MOST_WORK = 2**24
"""Samples × weights up to which all samples are taken."""


@dataclass(frozen=True)
class HessianComparison:
    """The exact Hessian beside the estimates of the curvature.

    Attributes:
        samples: That the Hessian averages over: the first of those that the estimates are from.
        probes: Random vectors that `matches` are from.
        hessian: The trace and the ends of the Hessian's spectrum.
        spectra: Name -> the same of each estimate.
        matches: Name -> how near the whole estimate is.
        blocks: The same for parts of some tensors, exactly.
    """

    samples: int
    probes: int
    hessian: Spectrum
    spectra: Mapping[str, Spectrum]
    matches: Mapping[str, Match]
    blocks: tuple[BlockMatch, ...]

    @property
    def scales(self) -> dict[str, float]:
        """Name -> the factor s that brings s·C nearest to the Hessian."""
        return {name: match.scale for name, match in self.matches.items()}

    @property
    def nearest(self) -> str:
        """The name of the estimate of largest cosine."""
        return max(self.matches, key=lambda name: self.matches[name].cosine)

    @property
    def verdict(self) -> str:
        """What it says, in one or two sentences."""
        best = self.nearest
        match, said = self.matches[best], WORDS.get(best, best)
        text = (
            f"{said[:1].upper()}{said[1:]} is nearest to the Hessian: cosine "
            f"{in_digits(match.cosine, '.2f')} ± {match.cosine_error:.2f}, and times "
            f"{in_digits(match.scale)} it is off by {in_percent(match.error_scaled)}."
        )
        if "empirical" in self.matches and best != "empirical":
            other = self.matches["empirical"]
            text += (
                f" The empirical Fisher has cosine {in_digits(other.cosine, '.2f')} and is the "
                f"Hessian only times {in_digits(other.scale)}."
            )
        if "kfac_swapped" in self.matches and "kfac" in self.matches:
            right, wrong = (
                in_digits(self.matches[name].cosine, ".2f") for name in ("kfac", "kfac_swapped")
            )
            text += f" K-FAC has {right}, with its factors swapped {wrong}."
        if self.hessian.least < -0.1 * abs(self.hessian.top[0]):
            text += (
                f" The Hessian's least eigenvalue is {in_digits(self.hessian.least)}: the network "
                "is far from a minimum, where no Fisher is the Hessian."
            )
        return text


@checks_types
def compare_with_hessian(
    objective: Objective,
    curvatures: Curvatures,
    *,
    samples: int | None = None,
    probes: int = PROBES,
    block: int = BLOCK,
    parts: int = PARTS,
    steps: int = STEPS,
    seed: int = 0,
) -> HessianComparison:
    """Compare estimates of the curvature with the exact Hessian  (eq. 77, 79).

    As a whole by random vectors and by Lanczos, and entry by entry on parts of some tensors. K-FAC
    is compared in the wrong order of its factors too.

    Args:
        objective: The network on the samples that the curvatures were estimated from.
        curvatures: What `estimate_curvatures` gave.
        samples: That the Hessian averages over, from the first; None for all that the curvatures
            are from, and 64 of them for large networks.
        probes: Random vectors; each costs a product with the Hessian.
        block: Weights of a part, drawn from its tensor; each costs a product through the layers
            from there on.
        parts: Tensors that have one; 0 for none.
        steps: Of Lanczos, each a product with the Hessian.
        seed: Of the vectors and the weights that are drawn.

    Returns:
        The numbers and a verdict.

    Raises:
        WoodburyError: If the model cannot be differentiated twice, the data gives fewer samples, or
            the random vectors have no room.

    Example:
        >>> batches = [(torch.randn(16, 4), torch.arange(16) % 3)]
        >>> objective = Objective.from_model(torch.nn.Linear(4, 3), batches)
        >>> from woodbury.inspection import estimate_curvatures
        >>> compared = compare_with_hessian(
        ...     objective, estimate_curvatures(objective, 16), samples=16, block=4
        ... )
        >>> 0 < compared.matches["gauss_newton"].cosine <= 1
        True
    """
    if samples is None:
        most = max(SAMPLES, MOST_WORK // objective.space.d)
        samples = min(curvatures.count or SAMPLES, most)
    for name, value, least in (
        ("samples", samples, 1),
        ("probes", probes, 1),
        ("block", block, 2),
        ("parts", parts, 0),
        ("steps", steps, 1),
    ):
        check_whole_number(value, name, MEANINGS[name], least=least)
    fishers = dict(curvatures.fishers)
    swapped = in_the_wrong_order(fishers["kfac"]) if "kfac" in fishers else None
    if swapped is not None:
        fishers["kfac_swapped"] = swapped
    products = {name: products_of(fisher) for name, fisher in fishers.items()}
    generator = seeded(seed, torch.device("cpu"))
    with if_memory_runs_out("give fewer probes"):
        vectors = _signs(objective, probes, generator)
    start = torch.randn(objective.space.d, generator=generator).to(vectors)
    with held_hessian(objective, samples) as hessian:
        exact = hessian(vectors)
        of_hessian = spectrum_of(hessian, start, steps, TOP, vectors, exact)
    spectra, matches = {}, {}
    for name, product in products.items():
        found = product(vectors).to(exact)
        spectra[name] = spectrum_of(product, start, steps, TOP, vectors, found).beside(of_hessian)
        matches[name] = compared(found, exact)
    return HessianComparison(
        samples=samples,
        probes=probes,
        hessian=of_hessian.without_vectors(),
        spectra={name: each.without_vectors() for name, each in spectra.items()},
        matches=matches,
        blocks=_blocks(objective, fishers, samples, block, parts, generator),
    )


MEANINGS = {
    "samples": "the number of samples that the Hessian averages over",
    "probes": "the number of random vectors",
    "block": "the number of weights of a part",
    "parts": "the number of tensors with a part",
    "steps": "the number of steps of Lanczos",
}
"""What the arguments count."""


def _signs(objective: Objective, count: int, generator: torch.Generator) -> Tensor:
    """Random vectors (d, count) of ±1: the mean of zᵀAz is the trace of A (Hutchinson 1990)."""
    shape = objective.space.d, count
    drawn = 2 * torch.randint(0, 2, shape, generator=generator) - 1
    weights = objective.weights
    return drawn.to(weights.device, wide_dtype(weights.dtype))


def _blocks(
    objective: Objective,
    fishers: Mapping[str, Fisher],
    samples: int,
    block: int,
    parts: int,
    generator: torch.Generator,
) -> tuple[BlockMatch, ...]:
    """Some weights of some tensors, with the Hessian by them."""
    found = []
    for name, index in _chosen(objective.space, block, parts, generator).items():
        exact = hessian_block(objective, index, samples)
        matches = {
            each: match_of_matrices(_part(fisher, index), exact) for each, fisher in fishers.items()
        }
        values = torch.linalg.eigvalsh(exact).flip(0)
        found.append(BlockMatch(name, len(index), tuple(values.tolist()), matches))
    return tuple(found)


def _chosen(
    space: ParameterSpace, block: int, parts: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Tensor -> some of its kept weights, as indices of the d: the first, last and evenly between.

    Tensors with fewer than two kept weights have no part.
    """
    places = space.keep.cpu().cumsum(0) - 1
    kept = {name: places[where][space.keep.cpu()[where]] for name, where in space.slices.items()}
    names = [name for name, index in kept.items() if len(index) > 1]
    count = min(parts, len(names))
    if not count:
        return {}
    at = [0] if count == 1 else [round(i * (len(names) - 1) / (count - 1)) for i in range(count)]
    chosen = {}
    for name in (names[place] for place in at):
        order = torch.randperm(len(kept[name]), generator=generator)[:block]
        chosen[name] = kept[name][order.sort().values]
    return chosen


def _part(fisher: Fisher, index: Tensor) -> Tensor:
    """The entries of a curvature by some weights, without damping: (s, s) float64."""
    keep = torch.zeros(fisher.d, dtype=torch.bool)
    keep[index] = True
    part = without_damping(fisher.restrict(keep.to(fisher.device)))
    return (part @ torch.eye(part.d, dtype=part.dtype, device=part.device)).double().cpu()
