"""Variational Monte Carlo: python benchmarks/ising.py [--spins 10] [--seconds 20] [--seeds 0 1 2]

The ground state of the transverse-field Ising chain with periodic ends at its critical point,
H = −Σ σᶻᵢσᶻᵢ₊₁ − Σ σˣᵢ, as log ψ(s) of a perceptron of tanh. A step sees 300 configurations drawn
from |ψ|². The chain is short, so that these are drawn without a Markov chain, and the exact energy
is known by diagonalisation; the error is that of the mean over all configurations.

Methods: Adam on the energy's gradient, stochastic reconfiguration (the natural gradient: rows are
the centred derivatives of log ψ), and the same with the momentum of SPRING (Goldshlager, Abrahamsen
& Lin 2024), both by `woodbury.fisher.LowRank`. Settings are chosen on seed 100 after a quarter of
the seconds. Seconds are the process's own CPU time by the threads. No data is needed.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, pstdev

import torch
from measured import finished, keep
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import woodbury

SAMPLES, WIDTH = 300, 32
SHARES = 0.1, 0.25, 0.5, 1.0
TUNING_SEED = 100
LARGEST_STEP = 0.1
"""Of all weights together, as SPRING bounds it."""


class Chain:
    """All configurations of a chain, and its exact energy.

    Args:
        spins: How many.
    """

    def __init__(self, spins: int) -> None:
        self.states = torch.tensor(list(itertools.product((1.0, -1.0), repeat=spins)))
        self.bonds = -(self.states * self.states.roll(1, 1)).sum(1)
        places = torch.arange(len(self.states))
        self.flipped = torch.stack([places ^ (1 << bit) for bit in range(spins)], 1)
        rows = places[:, None].expand_as(self.flipped).flatten()
        columns = self.flipped.flatten()
        size = len(places)
        matrix = coo_matrix((-torch.ones(len(rows)).numpy(), (rows, columns)), shape=(size, size))
        matrix.setdiag(self.bonds.numpy())
        self.exact = float(eigsh(matrix.tocsr(), k=1, which="SA")[0][0])

    def local_energies(self, logarithms: Tensor) -> Tensor:
        """(Hψ)(s)/ψ(s) of every configuration, from log ψ of all."""
        ratios = (logarithms[self.flipped] - logarithms[:, None]).exp()
        return self.bonds - ratios.sum(1)

    def energy(self, logarithms: Tensor) -> float:
        """The mean over |ψ|²."""
        return float((2 * logarithms).softmax(0) @ self.local_energies(logarithms))


class Wave:
    """The network and what a step sees of it.

    Args:
        chain: What it is of.
        seed: Of its weights and samples.
    """

    def __init__(self, chain: Chain, seed: int) -> None:
        torch.manual_seed(seed)
        spins = chain.states.shape[1]
        self.chain = chain
        self.model = nn.Sequential(
            nn.Linear(spins, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh()
        ).append(nn.Linear(WIDTH, 1, bias=False))
        self.space = woodbury.ParameterSpace.from_model(self.model)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def logarithms(self) -> Tensor:
        """Log ψ of all configurations."""
        return self.model(self.chain.states)[:, 0]

    def drawn(self) -> tuple[Tensor, Tensor]:
        """Centred derivatives of log ψ (m, d) and local energies (m,) of a sample from |ψ|²."""
        logarithms = self.logarithms()
        chance = (2 * logarithms).softmax(0)
        places = torch.multinomial(chance, SAMPLES, replacement=True, generator=self.generator)
        energies = self.chain.local_energies(logarithms)[places]
        weights: dict[str, Tensor] = dict(self.model.named_parameters())

        def single(weights: dict[str, Tensor], state: Tensor) -> Tensor:
            return functional_call(self.model, weights, (state[None],))[0, 0]

        rows = vmap(grad(single), (None, 0))(weights, self.chain.states[places])
        flat = torch.cat([rows[name].flatten(1) for name in self.space.shapes], 1).detach()
        return flat - flat.mean(0), energies - energies.mean()

    @torch.no_grad()
    def move(self, step: Tensor) -> None:
        """Add a step (d,) to the weights."""
        for name, part in self.space.unflatten(step).items():
            self.model.get_parameter(name).add_(part)

    def error(self) -> float:
        """The energy's relative distance to the exact one."""
        return (self.chain.energy(self.logarithms()) - self.chain.exact) / abs(self.chain.exact)


Step = Callable[[], None]


def adam(wave: Wave, lr: float) -> Step:
    """Adam on the gradient of the energy."""
    optimizer = torch.optim.Adam(wave.model.parameters(), lr)

    def step() -> None:
        rows, energies = wave.drawn()
        slopes = wave.space.unflatten(2 * rows.mT @ energies / SAMPLES)
        for name, slope in slopes.items():
            wave.model.get_parameter(name).grad = slope
        optimizer.step()

    return step


def reconfiguration(momentum: float) -> Callable[[Wave, tuple[float, float]], Step]:
    """Stochastic reconfiguration; with momentum μ it is damped towards μ times the last step."""

    def of(wave: Wave, setting: tuple[float, float]) -> Step:
        lr, damping = setting
        last = torch.zeros(wave.space.d)

        def step() -> None:
            nonlocal last
            rows, energies = wave.drawn()
            start = momentum * last
            left = (energies - rows @ start) / SAMPLES
            last = start + woodbury.fisher.LowRank(rows, damping).solve_range(left)
            wave.move(-last * min(lr, LARGEST_STEP / float(last.norm())))

        return step

    return of


PAIRS = [(lr, damping) for lr in (0.1, 0.03, 0.01) for damping in (1e-3, 1e-4)]
METHODS = {
    "Adam": (adam, [0.03, 0.01, 0.003, 0.001]),
    "stochastic reconfiguration": (reconfiguration(0.0), PAIRS),
    "the same, SPRING momentum 0.9": (reconfiguration(0.9), PAIRS),
}


def curve(chain: Chain, method: str, setting: object, seed: int, seconds: float) -> dict:
    """Errors at shares of the seconds."""
    wave = Wave(chain, seed)
    make: Callable = METHODS[method][0]
    step = make(wave, setting)
    spent, taken = 0.0, 0
    errors: list[float] = []
    last = wave.error()
    while spent < seconds:
        begun = time.process_time()
        step()
        spent += (time.process_time() - begun) / torch.get_num_threads()
        taken += 1
        while len(errors) < len(SHARES) and spent > SHARES[len(errors)] * seconds:
            errors.append(last)
        last = wave.error()
    return {"errors": errors, "steps": taken}


def main() -> None:
    """Measure what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spins", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/ising.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.set_default_dtype(torch.float64)
    chain = Chain(asked.spins)
    print(f"exact energy per spin {chain.exact / asked.spins:.6f}", flush=True)

    def measured(method: str, setting: object, seed: int, seconds: float) -> dict:
        name = f"{asked.spins} spins, {method}, {setting}, seed {seed}, {seconds:g} s"
        cells = finished(asked.out)
        if name not in cells:
            cells[name] = curve(chain, method, setting, seed, seconds)
            keep(cells, asked.out)
        return cells[name]

    heads = "".join(f" after {share * asked.seconds:g} s |" for share in SHARES)
    lines = [f"| method | setting | steps |{heads}", "|---|---|---|" + "---|" * len(SHARES)]
    for method, (_, settings) in METHODS.items():
        tried = [measured(method, s, TUNING_SEED, asked.seconds / 4) for s in settings]
        last = [run["errors"][-1] if run["errors"][-1] > 0 else float("inf") for run in tried]
        setting = settings[last.index(min(last))]
        runs = [measured(method, setting, seed, asked.seconds) for seed in asked.seeds]
        columns = zip(*(run["errors"] for run in runs), strict=True)
        shown = "".join(f" {fmean(each):.1e} ± {pstdev(each):.1e} |" for each in columns)
        steps = fmean(run["steps"] for run in runs)
        lines.append(f"| {method} (n = {len(runs)}) | {setting} | {steps:.0f} |{shown}")
        print(lines[-1], flush=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
