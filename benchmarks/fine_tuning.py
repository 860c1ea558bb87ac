"""Fine-tuning a small BERT: python benchmarks/fine_tuning.py [--steps 100] [--seeds 0 1 2 3 4]

M-FAC's own claim at a size of minutes: `MFAC` beside AdamW at equal steps. A BERT of two layers,
128 wide, is pretrained on masked words of the docstrings of Python's standard library and of the
training part of the task; it is kept in runs/. The task is to tell from which of fifteen topics of
Python's language reference (`pydoc_data`) 32 words are. Passages do not overlap; of five in a row
three are to train on, one to choose settings on, one to test.

Each method has the same number of settings, chosen by the held-out loss on seed 100; the learning
rate is on half a cosine. A seed draws the classifier's head, dropout and batches. Seconds are the
process's own CPU time of the training steps by the threads. Needs transformers.
"""

from __future__ import annotations

import argparse
import ast
import math
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean
from typing import Any, NamedTuple

import torch
from measured import finished, keep, spread
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import woodbury

WORD = re.compile(r"[A-Za-z_]+|[^\sA-Za-z_]")
LENGTH, WORDS, TOPICS, LARGEST, DOUBLE = 32, 2000, 15, 200, 0.1
PAD, UNKNOWN, MASK, START = range(4)
BATCH, PRETRAINING_BATCH, PRETRAINING_STEPS, TUNING_SEED = 16, 32, 600, 100
MASKED = 0.15


class Part(NamedTuple):
    """Passages (n, LENGTH + 1) as numbers of words, and their topics (n,)."""

    x: Tensor
    y: Tensor


class Data(NamedTuple):
    """The task, and passages for the pretraining (n, LENGTH + 1)."""

    train: Part
    held_out: Part
    test: Part
    unlabelled: Tensor


def chosen_topics() -> list[str]:
    """The largest topics, none of which repeats the lines of a larger one."""
    seen: set[str] = set()
    chosen = []
    for name in sorted(topics, key=lambda name: -len(topics[name])):
        lines = {line.strip() for line in topics[name].splitlines() if len(line.strip()) > 20}
        if lines and len(lines & seen) < DOUBLE * len(lines):
            chosen.append(name)
            seen |= lines
    return chosen[:TOPICS]


def docstrings() -> Iterator[str]:
    """Of all modules, classes and functions of the standard library's packages and files."""
    library = Path(sysconfig.get_path("stdlib"))
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    for path in sorted([*library.glob("*.py"), *library.glob("[a-z]*/*.py")]):
        if path.parent.name in ("site-packages", "test", "idlelib", "pydoc_data", "lib2to3"):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            written = ast.get_docstring(node) if isinstance(node, kinds) else None
            if written:
                yield written


def data() -> Data:
    """Numbers of words, by the words of what is trained on."""
    by_part: dict[int, list[tuple[list[str], int]]] = {0: [], 1: [], 2: []}
    for number, name in enumerate(chosen_topics()):
        words = WORD.findall(topics[name])
        starts = range(0, len(words) - LENGTH + 1, LENGTH)[:LARGEST]
        for place, start in enumerate(starts):
            by_part[max(place % 5 - 2, 0)].append((words[start : start + LENGTH], number))
    text = [word for written in docstrings() for word in WORD.findall(written)]
    counts = Counter(text + [word for words, _ in by_part[0] for word in words])
    place = {word: n + START + 1 for n, (word, _) in enumerate(counts.most_common(WORDS))}

    def numbers(words: list[str]) -> list[int]:
        return [START, *(place.get(word, UNKNOWN) for word in words)]

    def part(number: int) -> Part:
        pairs = by_part[number]
        x = torch.tensor([numbers(words) for words, _ in pairs])
        return Part(x, torch.tensor([topic for _, topic in pairs]))

    train = part(0)
    pieces = [text[s : s + LENGTH] for s in range(0, len(text) - LENGTH + 1, LENGTH)]
    unlabelled = torch.cat([torch.tensor([numbers(words) for words in pieces]), train.x])
    return Data(train, part(1), part(2), unlabelled)


def config() -> Any:
    """Of a BERT of two layers, 128 wide."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=WORDS + START + 1,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=LENGTH + 1,
        pad_token_id=PAD,
    )


def half_cosine(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """The learning rate's factor falls from 1 to 0."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )


def pretrained(unlabelled: Tensor, path: Path) -> dict[str, Tensor]:
    """The encoder's weights, by masked words; kept in the file."""
    if path.exists():
        return torch.load(path, weights_only=True)
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    model: Any = BertForMaskedLM(config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    schedule = half_cosine(optimizer, PRETRAINING_STEPS)
    last = []
    for step in range(PRETRAINING_STEPS):
        x = unlabelled[torch.randint(len(unlabelled), (PRETRAINING_BATCH,))]
        masked = (torch.rand(x.shape) < MASKED) & (x != START)
        hidden = model.bert(x.where(~masked, torch.tensor(MASK)))[0]
        loss = cross_entropy(model.cls(hidden[masked]), x[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        last = [*last[-99:], float(loss.detach())]
        if step % 100 == 99:
            print(f"pretraining, step {step + 1}: {fmean(last):.3f} nats", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.bert.state_dict(), path)
    return model.bert.state_dict()


class Classifier(nn.Module):
    """The encoder, and a head on the mean of its outputs."""

    def __init__(self, weights: dict[str, Tensor], seed: int) -> None:
        super().__init__()
        from transformers import BertModel

        torch.manual_seed(seed)
        self.encoder: Any = BertModel(config(), add_pooling_layer=False)
        self.encoder.load_state_dict(weights)
        self.head = nn.Linear(128, TOPICS)

    def forward(self, x: Tensor) -> Tensor:
        """Words (n, LENGTH + 1) -> logits (n, TOPICS)."""
        return self.head(self.encoder(x)[0].mean(1))


@dataclass(frozen=True)
class Method:
    """(model, setting) -> its optimizer, and the settings that it is tuned over."""

    make: Callable[[nn.Module, Any], torch.optim.Optimizer]
    settings: tuple[Any, ...]


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)


def mfac(model: nn.Module, setting: tuple[float, float]) -> torch.optim.Optimizer:
    """A window of 64 gradients, the momentum of AdamW's first moment."""
    lr, damping = setting
    return woodbury.MFAC(model.parameters(), lr, window=64, damping=damping, momentum=0.9)


METHODS = {
    "AdamW": Method(adamw, (3e-4, 1e-3, 3e-3, 1e-2)),
    "MFAC, window 64": Method(mfac, ((1e-3, 1e-3), (3e-3, 1e-3), (3e-3, 1e-2), (1e-2, 1e-2))),
}


@torch.no_grad()
def judged(model: nn.Module, part: Part) -> tuple[float, float]:
    """Mean loss and accuracy in percent."""
    model.eval()
    outputs = torch.cat([model(some) for some in part.x.split(256)])
    model.train()
    right = (outputs.argmax(1) == part.y).double().mean()
    return float(cross_entropy(outputs, part.y)), 100 * float(right)


def tuned(
    found: Data, weights: dict[str, Tensor], method: Method, setting: Any, seed: int, steps: int
) -> dict[str, float]:
    """Losses and accuracy after the steps, and after half of them."""
    model = Classifier(weights, seed).train()
    optimizer = method.make(model, setting)
    schedule = half_cosine(optimizer, steps)
    draw = torch.Generator().manual_seed(seed)
    reached: dict[str, float] = {}
    spent = 0.0
    for step in range(steps):
        begun = time.process_time()
        places = torch.randint(len(found.train.y), (BATCH,), generator=draw)
        optimizer.zero_grad()
        cross_entropy(model(found.train.x[places]), found.train.y[places]).backward()
        optimizer.step()
        schedule.step()
        spent += (time.process_time() - begun) / torch.get_num_threads()
        if step + 1 == steps // 2:
            reached["half"] = judged(model, found.test)[1]
    held_out, _ = judged(model, found.held_out)
    loss, accuracy = judged(model, found.test)
    train, _ = judged(model, found.train)
    facts = {"held_out": held_out, "loss": loss, "accuracy": accuracy, "train": train}
    return reached | facts | {"seconds": spent}


def main() -> None:
    """Measure what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = data()
    sizes = ", ".join(str(len(part.y)) for part in found[:3])
    print(f"passages: {sizes}; {len(found.unlabelled)} for the pretraining", flush=True)
    weights = pretrained(found.unlabelled, asked.out.with_name("fine_tuning_bert.pt"))

    def cell(method: str, setting: Any, seed: int) -> dict[str, float]:
        name = f"{method}, {setting}, seed {seed}, {asked.steps} steps"
        cells = finished(asked.out)
        if name not in cells:
            cells[name] = tuned(found, weights, METHODS[method], setting, seed, asked.steps)
            print(name, cells[name], flush=True)
            keep(cells, asked.out)
        return cells[name]

    print("| method | setting | after half, % | accuracy, % | test loss | training loss | s |")
    lines = ["|---|---|---|---|---|---|---|"]
    for method, each in METHODS.items():
        losses = {
            setting: cell(method, setting, TUNING_SEED)["held_out"] for setting in each.settings
        }
        setting = min(losses, key=losses.__getitem__)
        runs = [cell(method, setting, seed) for seed in asked.seeds]
        columns = [[run[name] for run in runs] for name in ("half", "accuracy")]
        shown = [spread(column) for column in columns]
        shown += [spread([run[name] for run in runs], 3) for name in ("loss", "train")]
        shown.append(f"{fmean(run['seconds'] for run in runs):.1f}")
        lines.append(f"| {method} (n = {len(runs)}) | {setting} | {' | '.join(shown)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
