"""What a model and its data are, so that a test can see that nothing else has changed."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def unchanged(model: nn.Module, batches: Any, *, but: Container[str] = ()) -> Iterator[None]:
    """Fail unless a model, its data and torch's random state are as before, errors included.

    Args:
        model: The model.
        batches: Its data.
        but: Names of parameters and buffers whose values may differ.
    """
    before = _facts(model, but)
    values = {name: tensor.clone() for name, tensor in _tensors(model).items() if name not in but}
    data = [(leaf, leaf._version, leaf.clone()) for leaf in _leaves(batches)]
    random = torch.get_rng_state()
    copied = _can_be_copied(model)
    try:
        yield
    finally:
        assert torch.equal(random, torch.get_rng_state()), "the random state"
        now = _facts(model, but)
        for key in before.keys() | now.keys():
            assert before.get(key) == now.get(key), key
        for name, tensor in _tensors(model).items():
            if name in values and not tensor.is_meta:
                assert torch.equal(values[name], tensor), name
        for leaf, version, value in data:
            assert leaf._version == version and torch.equal(leaf, value), "the data"
        assert _can_be_copied(model) == copied, "a tensor of torch.func is left on the model"


def _can_be_copied(model: nn.Module) -> bool:
    try:
        copy.deepcopy(model)
    except Exception:  # also of models that nobody has touched
        return False
    return True


def _leaves(batches: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(batches) if isinstance(leaf, Tensor)]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if not nn.parameter.is_lazy(tensor)}


def _facts(model: nn.Module, but: Container[str]) -> dict[Any, Any]:
    """Everything about a model but the values of its tensors, by where it is."""
    facts: dict[Any, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        facts[path, "training"] = module.training
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None:
                given = (parameter.requires_grad, id(parameter.grad))
                facts[path, name] = (id(parameter), *given)
        facts[path, "buffers"] = set(module._buffers)
        for name, value in vars(module).items():
            if name in HOOKS:
                facts[path, name] = list(value)
            elif not name.startswith("_"):
                facts[path, "attribute", name] = (id(value), _content(value))
    return facts


def _content(value: Any) -> Any:
    """What a container holds, and the numbers of a tensor that is no parameter and no buffer."""
    if isinstance(value, Tensor):
        return None if value.is_meta else value.detach().double().flatten().tolist()
    if isinstance(value, dict):
        return {key: (id(part), _content(part)) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [(id(part), _content(part)) for part in value]
    return len(value) if isinstance(value, set) else None
