"""SNOWS by its authors' own code, beside which nothing of it is copied here: a checkout of
mazumder-lab/SNOWS (Lucas and Mazumder, ICLR 2025), MIT licence.

As published the code runs nowhere. To run it on any machine:

- `prune/SNOWS.py` ends in a function whose body is commented out: it is read up to there;
- `helpers` is meant to be `prune/helpers.py`, and `CNN_pruning/helpers.py` is found first: the
  folder `prune` comes first in the path;
- torchvision, timm and detectors, which only its own loading of models and data needs, are replaced
  by empty modules;
- the device is given wherever it has a default of `cuda`;
- its loader of single images takes ten processes: one here.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from woodbury.model.objective import Objective

NOT_NEEDED = ("timm", "detectors", "torchvision", "torchvision.datasets", "torchvision.transforms")
UNFINISHED = "def prune_and_update("


class TheirCode(NamedTuple):
    """The two modules that are used."""

    pruners: Any
    networks: Any


@dataclass(frozen=True)
class Snows:
    """One run of it, whose budget is that of its command line.

    Attributes:
        folder: The checkout.
        steps_ahead: K, the operations after a layer whose outputs are compared.
        images_per_batch: Of one Newton step.
        products: Products with the Hessian for each Newton step, at most.
        batches: Newton steps of a layer, at most; None for three passes over the images.
        room: What a layer may lose beyond the sparsity of the whole.
    """

    folder: Path
    steps_ahead: int = 20
    images_per_batch: int = 512
    products: int = 500
    batches: int | None = None
    room: float = 0.1

    def __call__(self, objective: Objective, sparsity: float) -> Objective:
        images = torch.cat([inputs for inputs, _ in objective.batches]).contiguous()
        space = objective.space
        with their_code(self.folder) as code, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = self._network(code, objective)
            pruner = self._pruner(code, network, images)
            every = sum(weight.numel() for weight in network.parameters())
            with contextlib.redirect_stdout(io.StringIO()):
                pruned, *_ = pruner.prune_unstructured_global(
                    # In % of all parameters, those of BatchNorm and of the classifier included.
                    target_sparsity=100 * round(sparsity * space.n) / every,
                    max_layer_sparsity=100 * min(1.0, sparsity + self.room),
                    device="cpu",
                    k_step=self.steps_ahead,
                    w_warm=True,
                    batching=True,
                    batch_size=min(self.images_per_batch, len(images)),
                    max_CG_iterations=self.products,
                    mask_alg="MP",
                    max_steps=self.batches or float("inf"),
                )
        found = {name: weight.detach() for name, weight in pruned.named_parameters()}
        weights = space.flatten(found)
        return objective.at(weights[weights != 0], space.restrict(weights != 0))

    def _network(self, code: TheirCode, objective: Objective) -> nn.Module:
        network = code.networks.resnet20()
        network.load_state_dict(objective.model.state_dict())
        network.name = "resnet20_cifar10"
        return network.eval()

    def _pruner(self, code: TheirCode, network: nn.Module, images: Tensor) -> Any:
        data = TensorDataset(images, torch.zeros(len(images), dtype=torch.int64))
        code.pruners.DataLoader = lambda data, **_: DataLoader(data, batch_size=1, shuffle=True)
        names = [name for name, _ in network.named_parameters() if "conv" in name or "fc." in name]
        pruner = code.pruners.LayerPruner(
            model=copy.deepcopy(network),
            params=[name for name in names if name.endswith("weight")],
            train_dataset=data,
            train_dataloader=None,
            # It judges itself after every block: by a few images here, as we judge it afterwards.
            test_dataloader=DataLoader(TensorDataset(*data[:8]), batch_size=8),
            nsamples=len(images),
            criterion=None,
            lambda_inv=1e-4,
            gradseed=0,
            device="cpu",
            algo="SNOWS",
        )
        pruner.scaled = True
        return pruner


@contextlib.contextmanager
def their_code(folder: Path) -> Iterator[TheirCode]:
    """The modules of a checkout; path and modules of this process are as before afterwards."""
    root = folder / "CNN_pruning"
    source = root / "prune" / "SNOWS.py"
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not there: give a checkout of mazumder-lab/SNOWS.")
    path, modules = list(sys.path), dict(sys.modules)
    sys.path[:0] = [str(root / "prune"), str(root)]
    try:
        for name in NOT_NEEDED:
            sys.modules[name] = types.ModuleType(name)
        for name in NOT_NEEDED[3:]:
            parent, child = name.split(".")
            setattr(sys.modules[parent], child, sys.modules[name])
        import prune  # type: ignore[import-not-found]  # theirs

        module = types.ModuleType("prune.SNOWS")
        module.__package__ = prune.__name__
        sys.modules[module.__name__] = module
        text = source.read_text("utf-8")
        finished = text[: text.rindex(UNFINISHED)]
        exec(compile(finished, str(source), "exec"), module.__dict__)
        from model import resnet_cifar10_manual  # type: ignore[import-not-found]
        from prune import Layer_pruner_new  # type: ignore[import-not-found]

        yield TheirCode(Layer_pruner_new, resnet_cifar10_manual)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - set(modules):
            if name.split(".")[0] in {"prune", "model", "helpers", "timm", "detectors"}:
                del sys.modules[name]
        for name in NOT_NEEDED:
            sys.modules.pop(name, None)
            if name in modules:
                sys.modules[name] = modules[name]
