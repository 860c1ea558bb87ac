"""Image classifiers of timm and torchvision by name, with the images as they were trained on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import MissingDependency, WoodburyError, reason
from woodbury.integrations.naming import nearest
from woodbury.io.checkpoints import load_state_dict_checked, read_checkpoint

TORCHVISION_FILE = "model.pth"
"""What holds the dense weights of a model of torchvision."""


@dataclass(frozen=True)
class ImageModel:
    """An image classifier and what makes its inputs.

    Attributes:
        model: The model, in eval mode.
        transform: From an image of Pillow to its input.
        save: Writes a model in a folder, as its library reads it.
        how_to_load: From a folder to the line of Python that reads it.
    """

    model: nn.Module
    transform: Callable[[Any], Tensor]
    save: Callable[[nn.Module, Path], None]
    how_to_load: Callable[[Path], str]


def from_timm(name: str, checkpoint: Path | None = None, size: int | None = None) -> ImageModel:
    """A model of timm.

    Args:
        name: Of the model, or a folder that `timm.models.save_for_hf` or `prune` wrote.
        checkpoint: Its weights; None for those that timm downloads.
        size: Width and height of its images; None for the usual ones.

    Returns:
        The model.

    Raises:
        MissingDependency: If timm is not installed.
        WoodburyError: If there is no such model, or its weights cannot be had.
    """
    library = _library("timm")
    folder = Path(name).expanduser()
    is_folder = (folder / "config.json").is_file()
    if not is_folder:
        _check_name("timm", name.split(".")[0], library.list_models())

    def made(classes: int | None) -> nn.Module:
        return library.create_model(
            f"local-dir:{folder}" if is_folder else name,
            pretrained=checkpoint is None,
            **({} if classes is None else {"num_classes": classes}),
        )

    model = _filled("timm", name, made, checkpoint)
    given = {} if size is None else {"input_size": (3, size, size)}
    transform = library.data.create_transform(
        **library.data.resolve_data_config(given, model=model)
    )

    def save(pruned: nn.Module, to: Path) -> None:
        library.models.save_for_hf(pruned, to, safe_serialization=True)

    return ImageModel(
        model.eval(),
        transform,
        save,
        lambda at: f'timm.create_model("local-dir:{at}", pretrained=True)',
    )


def from_torchvision(
    name: str, weights: str = "", checkpoint: Path | None = None, size: int | None = None
) -> ImageModel:
    """A classifier of torchvision.

    Args:
        name: Of the model.
        weights: The name of its weights, such as IMAGENET1K_V1, or a checkpoint; empty for the
            default ones.
        checkpoint: Its weights, in place of these.
        size: Width and height of its images; None for the usual ones.

    Returns:
        The model.

    Raises:
        MissingDependency: If torchvision is not installed.
        WoodburyError: If there is no such model or weights, or they cannot be had.
    """
    library = _library("torchvision")
    _check_name("torchvision", name, library.models.list_models(module=library.models))
    known = library.models.get_model_weights(name)
    if weights and weights not in known.__members__:
        if checkpoint is None and Path(weights).suffix:
            checkpoint, weights = Path(weights), ""
        else:
            _check_name(f"weights of {name}", weights, known.__members__)
    chosen = known[weights] if weights else known.DEFAULT

    def made(classes: int | None) -> nn.Module:
        options = {} if classes is None else {"num_classes": classes}
        given = chosen if checkpoint is None else None
        return library.models.get_model(name, weights=given, **options)

    model = _filled("torchvision", name, made, checkpoint)
    transform = chosen.transforms(
        **({} if size is None else {"crop_size": size, "resize_size": size})
    )

    def save(pruned: nn.Module, to: Path) -> None:
        torch.save(pruned.state_dict(), to / TORCHVISION_FILE)

    return ImageModel(
        model.eval(),
        transform,
        save,
        lambda at: f'model.load_state_dict(torch.load("{at / TORCHVISION_FILE}"))',
    )


def _filled(
    library: str, name: str, made: Callable[[int | None], nn.Module], checkpoint: Path | None
) -> nn.Module:
    """A model with the weights of a checkpoint, which may be of another number of classes."""
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    try:
        model = made(None)
        classes = None if state is None else _classes_of(state, model)
        if classes is not None:
            model = made(classes)
    except WoodburyError:
        raise
    except Exception as error:
        raise WoodburyError(
            f"{library} does not give the model {name} ({reason(error)}): name its weights with "
            "--checkpoint, or look at the connection."
        ) from error
    if state is not None and checkpoint is not None:
        load_state_dict_checked(model, state, checkpoint)
    return model


def _classes_of(state: Mapping[str, Any], model: nn.Module) -> int | None:
    """How many classes a checkpoint has, where the model has another number of them."""
    heads = [
        len(state[name])
        for name, own in model.state_dict().items()
        if name in state and own.ndim > 1 and state[name].shape[1:] == own.shape[1:]
        if state[name].shape != own.shape
    ]
    return heads[-1] if heads else None


def _check_name(library: str, name: str, names: Iterable[str]) -> None:
    known = list(names)
    if name in known:
        return
    raise WoodburyError(f"{library} has no {name!r}: {nearest(name, known)}")


def _library(name: str) -> Any:
    """A package that need not be there, imported."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise MissingDependency(
            f"{name}:NAME needs the package {missing}: pip install {missing}."
        ) from error
    except Exception as error:  # such as operators that were built for another release of torch
        raise MissingDependency(
            f"{name} cannot be imported ({reason(error)}): install the release of torchvision that "
            f"goes with torch {torch.__version__}."
        ) from error
