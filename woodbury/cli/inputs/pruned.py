"""A pruned network, from the folder that `prune` wrote or from a function, and its inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from woodbury.cli.inputs.data import load_data
from woodbury.cli.inputs.model import load_model
from woodbury.errors import WoodburyError
from woodbury.io.checkpoints import load_state_dict_checked
from woodbury.io.run_folder import REPORT_FILE
from woodbury.io.sparse_files import load_sparse
from woodbury.io.zeros import with_plain_zeros

WEIGHTS_FILE = "weights.safetensors"


class Network(NamedTuple):
    """A network with its pruned weights.

    Attributes:
        model: The network, in eval mode.
        data: Where its inputs are, as DATA is written.
    """

    model: nn.Module
    data: str


def load_network(where: str, data: str | None) -> Network:
    """Load a pruned network.

    Args:
        where: A folder that `prune` wrote, or `FILE.py:FUNCTION` that returns a network.
        data: Where its inputs are; None for what the folder was pruned on.

    Raises:
        WoodburyError: If there is no such network, or no data.
    """
    folder = run_folder_of(where)
    if folder is None:
        if data is None:
            raise WoodburyError(
                f"{where} is no folder that prune wrote: give one, or a network and its data."
            )
        return Network(load_model(where), data)
    settings = _settings(folder)
    model = load_model(settings["model"])
    load_state_dict_checked(model, load_sparse(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    return Network(model, data or settings["data"])


def load_weights(where: str) -> dict[str, Any]:
    """Load the weights of a pruned network alone.

    Args:
        where: As for `load_network`.

    Returns:
        Name -> tensor; of a folder that `prune` wrote without the network's own code.

    Raises:
        WoodburyError: If there are none.
    """
    folder = run_folder_of(where)
    if folder is None:
        state = load_model(where).state_dict()
        return {name: with_plain_zeros(tensor) for name, tensor in state.items()}
    _settings(folder)
    return load_sparse(folder / WEIGHTS_FILE)


def run_folder_of(where: str) -> Path | None:
    """The folder of a run that the user names; None where it is no folder."""
    folder = Path(where).expanduser()
    return folder if folder.is_dir() else None


def first_inputs(data: str, size: int) -> Tensor | Any:
    """The first inputs of the test data, over again where there are fewer.

    Args:
        data: DATA as the user wrote it.
        size: How many.
    """
    test = load_data(data, labels_from=lambda inputs: torch.zeros(len(inputs))).test
    count = len(test)  # type: ignore[arg-type]
    return default_collate([test[number % count][0] for number in range(size)])


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / REPORT_FILE).read_text("utf-8"))["settings"]
        if {"model", "data"} <= set(settings) and (folder / WEIGHTS_FILE).is_file():
            return settings
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise WoodburyError(
        f"{folder} does not hold what prune writes, {REPORT_FILE} and {WEIGHTS_FILE}: give such a "
        "folder."
    )
