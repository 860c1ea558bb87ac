"""Two language models on a text that every Python has: python benchmarks/language_models.py
[characters|words ...] [--seconds 420]

The text is the source of Python's standard library, without its tests and tables: whole files to
train on, to tune on and to test. `characters`: a GPT of four layers, 128 wide. `words`: one of six
layers, 384 wide, on frequent words and single characters. A trained network is kept in runs/ with
its seed and losses; training is stopped after `--seconds` and goes on with the next call.
"""

from __future__ import annotations

import argparse
import math
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tasks import GPT
from torch import Tensor, nn

from woodbury.model.likelihood import cross_entropy

RUNS = Path("runs")
LENGTH, SEED, TESTED = 128, 0, 512
OTHERS = 0.3
"""The rate of AdamW, for all but the layers' matrices, as a share of Muon's."""

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
OTHER = len(CHARACTERS)
"""What all other characters are read as."""

PIECE = re.compile(r"\n *| +|[A-Za-z]+|.", re.DOTALL)
"""A line's beginning with its indentation, other blanks, a word, or any one character."""


class Split(NamedTuple):
    """Token numbers (n,) of the files to train on, to tune on and to test."""

    train: Tensor
    held_out: Tensor
    test: Tensor


@dataclass(frozen=True)
class Language:
    """A text in tokens, a GPT for it and how it is trained.

    codes: How many tokens there are. lr: The peak of Muon's rate. shallow, shallow_steps: How many
    layers the first steps have, and how many these are; the network is then grown to its depth
    (Gong et al. 2019), which saves a third of the time.
    """

    name: str
    codes: int
    width: int
    heads: int
    depth: int
    batch: int
    steps: int
    lr: float = 0.01
    shallow: int = 0
    shallow_steps: int = 0

    @property
    def path(self) -> Path:
        return RUNS / f"gpt_{self.name}.pt"

    def model(self, depth: int | None = None) -> GPT:
        torch.manual_seed(SEED)
        return GPT(self.codes, LENGTH, self.width, self.heads, depth or self.depth)

    def depth_at(self, step: int) -> int:
        return self.shallow if step < self.shallow_steps else self.depth

    def text(self) -> Split:
        return tokens(self.codes)


LANGUAGES = {
    "characters": Language("characters", OTHER + 1, 128, 4, 4, 16, 650),
    "words": Language("words", 1024, 384, 6, 6, 16, 150, shallow=2, shallow_steps=80),
}


@cache
def tokens(codes: int) -> Split:
    """The text in so many tokens, which are kept in runs/."""
    path = RUNS / f"tokens_{codes}_python{sysconfig.get_python_version()}.pt"
    if not path.exists():
        keep(path, [part.short() for part in numbered(codes)])
    return Split(*(part.long() for part in torch.load(path, weights_only=True)))


def numbered(codes: int) -> Split:
    """The text in tokens: single characters, and the most frequent pieces of PIECE."""
    parts = written()
    place = {character: number for number, character in enumerate(CHARACTERS)}
    if codes > len(place) + 1:
        counts = Counter(piece for piece in PIECE.findall(parts[0]) if len(piece) > 1)
        for piece, _ in counts.most_common(codes - len(place) - 1):
            place[piece] = len(place) + 1  # after OTHER

    def numbers(text: str) -> Iterator[int]:
        for piece in PIECE.findall(text) if len(place) > OTHER else text:
            if piece in place:
                yield place[piece]
            else:
                yield from (place.get(character, OTHER) for character in piece)

    return Split(*(torch.tensor(list(numbers(part))) for part in parts))


def written() -> tuple[str, str, str]:
    """The standard library's files in a fixed random order: nine tenths, a twentieth, a
    twentieth."""
    library = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages"}
    paths = sorted(
        path
        for path in library.rglob("*.py")
        if not skipped.intersection(path.relative_to(library).parts)
    )
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(2020)).tolist()
    texts = [paths[place].read_text("utf-8", "replace") for place in order]
    first, second = len(texts) * 90 // 100, len(texts) * 95 // 100
    return "".join(texts[:first]), "".join(texts[first:second]), "".join(texts[second:])


def windows(of: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences of LENGTH tokens that begin there, and the tokens that follow each."""
    chosen = of[starts[:, None] + torch.arange(LENGTH + 1)]
    return chosen[:, :-1], chosen[:, 1:]


def calibration(of: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` sequences from random places."""
    draw = torch.Generator().manual_seed(seed)
    return windows(of, torch.randint(len(of) - LENGTH, (count,), generator=draw))


def classes_first(logits: Tensor) -> Tensor:
    """(b, T, codes) as torch's cross-entropy wants it, (b, codes, T)."""
    return logits.transpose(1, 2)


LIKELIHOOD = cross_entropy.with_output(classes_first)


@torch.no_grad()
def nats(model: nn.Module, of: Tensor, count: int = TESTED) -> float:
    """The mean negative log-likelihood of a token, on sequences spread evenly over a text."""
    starts = torch.linspace(0, len(of) - LENGTH - 1, count).long()
    total = 0.0
    for part in starts.split(32):
        x, y = windows(of, part)
        logits = model(x).flatten(0, 1)
        total += float(nn.functional.cross_entropy(logits, y.flatten(), reduction="sum"))
    return total / (count * LENGTH)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal (Jordan et al. 2024), in float32.

    torch's own computes in bfloat16, which takes many times as long on a CPU without it.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(mean, group["momentum"])
                # Queries, keys and values are three matrices in one.
                parts = ahead.chunk(3) if len(p) == 3 * p.shape[1] else (ahead,)
                update = torch.cat([0.2 * max(part.shape) ** 0.5 * near(part) for part in parts])
                p.mul_(1 - group["lr"] * group["decay"]).sub_(update, alpha=group["lr"])


def near(matrix: Tensor, steps: int = 4) -> Tensor:
    """The nearest matrix with orthogonal rows or columns, nearly: four Newton–Schulz steps."""
    tall = len(matrix) > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-12)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def optimizers(language: Language, model: GPT) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for all else."""
    inner = [p for p in model.layers.parameters() if p.ndim == 2]
    own = {id(p) for p in inner}
    others = [p for p in model.parameters() if id(p) not in own]
    return [
        Muon(inner, language.lr, decay=0.1),
        torch.optim.AdamW(others, OTHERS * language.lr, (0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, steps: int) -> float:
    """The share of the peak rate: up over a twentieth of the steps, then down to nothing."""
    return min(1.0, (step + 1) / (0.05 * steps)) * min(1.0, (1 - step / steps) / 0.6)


def train(language: Language, seconds: float = math.inf) -> dict[str, Any]:
    """Train on, at most so many seconds; what was reached is kept at `language.path`."""
    kept: dict[str, Any] = {"step": 0, "seconds": 0.0, "seed": SEED}
    if language.path.exists():
        kept = torch.load(language.path, weights_only=True)
    if kept["step"] == language.steps:
        return kept
    text, draw = language.text(), torch.Generator().manual_seed(SEED)
    shape = language.steps, language.batch
    starts = torch.randint(len(text.train) - LENGTH, shape, generator=draw)
    model = language.model(language.depth_at(kept["step"] - 1))
    made = optimizers(language, model)
    if kept["step"]:
        model.load_state_dict(kept["model"])
        for optimizer, state in zip(made, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    since, before = time.perf_counter(), kept["seconds"]
    while kept["step"] < language.steps and time.perf_counter() - since < seconds:
        step = kept["step"]
        if language.depth_at(step) > len(model.layers):
            model = grown(language, model)
            made = optimizers(language, model)
        share = rate(step, language.steps)
        loss = one_step(model, made, windows(text.train, starts[step]), language.lr * share)
        kept |= {"step": step + 1, "seconds": before + time.perf_counter() - since}
        if step % 20 == 0:
            print(f"{language.name}: step {step}, {loss:.3f} nats, {kept['seconds']:.0f} s")
    kept |= {"model": model.state_dict(), "optimizers": [each.state_dict() for each in made]}
    if kept["step"] == language.steps:
        kept["nats"] = {name: nats(model, getattr(text, name)) for name in text._fields}
        del kept["optimizers"]
    keep(language.path, kept)
    return kept


def one_step(
    model: GPT, made: list[torch.optim.Optimizer], batch: tuple[Tensor, Tensor], lr: float
) -> float:
    """The loss before the step."""
    matrices, others = made
    matrices.param_groups[0]["lr"], others.param_groups[0]["lr"] = lr, OTHERS * lr
    x, y = batch
    loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in made:
        optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def grown(language: Language, shallow: GPT) -> GPT:
    """The network of full depth, its layers those of the shallow one in turn, whose outputs are
    divided among the copies."""
    model, depth = language.model(), len(shallow.layers)
    model.load_state_dict(shallow.state_dict(), strict=False)
    for place, layer in enumerate(model.layers):
        layer.load_state_dict(shallow.layers[place % depth].state_dict())
        for name in ("mix.weight", "back.weight", "back.bias"):
            layer.get_parameter(name).mul_(depth / len(model.layers))
    return model


def keep(path: Path, kept: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(kept, partial)
    partial.replace(path)


def trained(name: str) -> GPT:
    """The trained network, trained now if it is not there."""
    language = LANGUAGES[name]
    model = language.model()
    model.load_state_dict(train(language)["model"])
    return model.eval()


def counted(text: Split, codes: int) -> tuple[float, float]:
    """Nats a token of the test by counts of single tokens and of pairs, which a network must
    beat."""
    single = torch.bincount(text.train, minlength=codes).double() + 1
    single /= single.sum()
    pairs = torch.bincount(text.train[:-1] * codes + text.train[1:], minlength=codes**2)
    pairs = pairs.view(codes, codes).double()
    after = (pairs + 5 * single) / (pairs.sum(1, keepdim=True) + 5)
    before, following = text.test[:-1], text.test[1:]
    return -float(single[text.test].log().mean()), -float(after[before, following].log().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="characters|words")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of training, at most")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    for name in asked.names or LANGUAGES:
        language = LANGUAGES[name]
        kept = train(language, asked.seconds)
        text, layers = language.text(), language.model().layers
        weights = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
        print(
            f"{name}: {weights:,} weights in matrices of layers, {language.codes} tokens, "
            f"{len(text.train):,} to train on, by counts {counted(text, language.codes)}"
        )
        print(f"step {kept['step']} of {language.steps}, {kept['seconds']:.0f} s", kept.get("nats"))


if __name__ == "__main__":
    main()
