"""A pruned network, from the folder that `prune` wrote or from a function, and its inputs."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from woodbury.cli.inputs.model import load_model
from woodbury.cli.inputs.sources import LIBRARIES, Source, source_of
from woodbury.cli.options import InputOptions
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
        test: Pairs of inputs and anything.
    """

    model: nn.Module
    data: str
    test: Dataset


class _Place(NamedTuple):
    """Where a pruned network is from.

    Attributes:
        source: What makes the network.
        data: Where its inputs are.
        weights: What holds its weights; None where they are its own.
    """

    source: Source
    data: str
    weights: Path | None


def load_network(where: str, data: str | None) -> Network:
    """Load a pruned network.

    Args:
        where: A folder that `prune` wrote, or MODEL as `prune` takes it.
        data: Where its inputs are; None for what the folder was pruned on.

    Raises:
        WoodburyError: If there is no such network, or no data.
    """
    place = _place(where, data)
    model = place.source.model()
    if place.weights is not None:
        load_state_dict_checked(model, load_sparse(place.weights), place.weights)
    return Network(model, place.data, place.source.inputs())


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


def first_inputs(network: Network, size: int) -> Tensor | Any:
    """The first inputs of the test data, over again where there are fewer.

    Args:
        network: With its data.
        size: How many.
    """
    count = len(network.test)  # type: ignore[arg-type]
    return default_collate([network.test[number % count][0] for number in range(size)])


def _place(where: str, data: str | None) -> _Place:
    folder = run_folder_of(where)
    if folder is None:
        if data is None:
            raise WoodburyError(
                f"{where} is no folder that prune wrote: give one, or a network and its data."
            )
        return _Place(source_of(where, data, InputOptions()), data, None)
    settings = _settings(folder)
    data = data or settings["data"]
    assert data is not None
    known = {each.name for each in fields(InputOptions)} - {"checkpoint", "loss"}
    options = InputOptions(**{name: settings[name] for name in known & set(settings)})
    library, _, name = settings["model"].partition(":")
    if library in LIBRARIES and library != "torchvision":  # the folder is one of the library's too
        return _Place(source_of(f"{library}:{folder}", data, options), data, None)
    if library == "torchvision":
        options = replace(options, checkpoint=folder / WEIGHTS_FILE)
        model = f"{library}:{name.partition(':')[0]}"
        return _Place(source_of(model, data, options), data, None)
    return _Place(source_of(settings["model"], data, options), data, folder / WEIGHTS_FILE)


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
