"""A user's file: models in wrappers, and data sets that fail while they are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def parallel() -> nn.Module:
    return nn.DataParallel(plain())


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that scripting will go
        return torch.jit.trace(plain(), torch.zeros(2, 6))


class Scaled(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"scale": 1.0}

    def set_extra_state(self, state: Any) -> None:
        pass


def with_extra_state() -> nn.Module:
    return nn.Sequential(Scaled(6, 3))


def leaves() -> Any:
    raise SystemExit("bye")


def interrupted() -> Any:
    raise KeyboardInterrupt


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(200, 6, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 3


class Made(Dataset):
    def __init__(self, make: Callable[[Tensor, int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        x, y = data()
        return self.make(x[index], int(y[index]))


class WithoutLength(Dataset):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(6), 0


def without_length() -> Dataset:
    return WithoutLength()


def unequal() -> Dataset:
    return Made(lambda x, y: (x[: 3 + y], y))


def unlabelled() -> Dataset:
    return Made(lambda x, y: (x, None))


def broken() -> Dataset:
    return Made(fails)


class Strange(BaseException):
    """Neither an Exception nor an end that Python knows."""


def strange() -> Any:
    raise Strange("of its own kind")


def strange_data() -> Dataset:
    return Made(lambda x, y: strange())


def stops() -> Dataset:
    return Made(stop_late)


def stop_late(x: Tensor, y: int) -> Any:
    if y == 2:
        raise StopIteration
    return x, y


instance = plain()


def fails(x: Tensor, y: int) -> Any:
    raise OSError("record is truncated")
