"""A user's file: networks and data for `prune` and `compare`, and functions that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

number = 3


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)
    ).eval()


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 2))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3))


def data(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(count, 16))
    return x, build()(torch.tensor(5 * x).float()).argmax(1).numpy()


def answers(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32)
    with torch.no_grad():
        return x, (linear()(torch.tensor(x)) > 0).float().numpy()


def both() -> tuple[np.ndarray, ...]:
    return *data(), *data(100, 1)


def datasets() -> list[TensorDataset]:
    return [TensorDataset(torch.tensor(x), torch.tensor(y)) for x, y in (data(), data(100, 1))]


def few() -> tuple[np.ndarray, ...]:
    return tuple(part[:10] for part in data())


def regression() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(200, 16))
    return x, linear()(torch.tensor(x).float()).detach().numpy() + 0.1


def counts() -> tuple[np.ndarray, np.ndarray]:
    x, y = regression()
    return x, (100 * y).round().astype(int)


def without_labels() -> tuple[np.ndarray, None]:
    return data()[0], None


def only_test_labels() -> tuple[np.ndarray | None, ...]:
    return data()[0], None, *data(100, 1)


def regression_without_labels() -> tuple[np.ndarray, None]:
    return regression()[0], None


def one_part() -> tuple[np.ndarray]:
    return (data()[0],)


def items_without_labels() -> TensorDataset:
    return TensorDataset(torch.zeros(20, 16))


def too_wide() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((30, 17)), np.zeros(30, dtype=int)


def too_many_classes() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((30, 16)), np.arange(30)


def one_class_too_many() -> tuple[np.ndarray, np.ndarray]:
    x, y = data(400)
    return np.concatenate([x, x[:1]]), np.append(y, 7)


def float_labels() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((30, 16)), np.zeros(30)


def uneven() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((30, 16)), np.zeros(20, dtype=int)


def empty() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((0, 16)), np.zeros(0, dtype=int)


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield torch.zeros(16), 0


def endless() -> Endless:
    return Endless()


def broken() -> Any:
    return 1 / 0


def interrupted() -> Any:
    raise KeyboardInterrupt
