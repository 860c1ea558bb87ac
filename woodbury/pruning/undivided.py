"""The tensors that an n:m pattern leaves out, as its groups do not divide them."""

from __future__ import annotations

from dataclasses import replace

from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace
from woodbury.pruning.scopes import Scope, consecutive


def divided(space: ParameterSpace, scope: Scope) -> ParameterSpace:
    """A space without the tensors that the pools of a scope do not divide.

    Args:
        space: Of whole tensors, none of whose weights is removed yet.
        scope: Any scope; `consecutive` alone leaves tensors out.

    Returns:
        The space of the others; its `undivided` says why each of these is left out.

    Raises:
        WoodburyError: If no tensor can be divided.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
        >>> space = divided(ParameterSpace.from_model(net, min_ndim=2), consecutive(4))
        >>> list(space.shapes), list(space.undivided)
        (['1.weight'], ['0.weight'])
    """
    if not isinstance(scope, consecutive):
        return space
    obstacles = {name: scope.obstacle(space, name) for name in space.shapes}
    undivided = {name: why for name, why in obstacles.items() if why}
    if not undivided:
        return space
    shapes = {name: shape for name, shape in space.shapes.items() if name not in undivided}
    if not shapes:
        first = next(iter(undivided.values()))
        raise WoodburyError(f"{first}, and nothing else is left to prune: choose another pattern.")
    return replace(space, shapes=shapes, undivided=undivided)


def undivided_in_words(space: ParameterSpace) -> str:
    """What `divided` has left out of a space, for people.

    Args:
        space: What it gave.

    Returns:
        One sentence; empty if nothing was left out.
    """
    if not space.undivided:
        return ""
    return f"Left out, and dense as before: {'; '.join(space.undivided.values())}."
