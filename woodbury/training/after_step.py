"""What runs after the steps of a wrapper of an optimizer that has no hooks of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from woodbury.errors import WoodburyError


class AfterStep:
    """A function that is called after every `step` of an object.

    The object gets a `step` of its own, as torch's learning rate schedules give to optimizers.

    Args:
        owner: Anything with a method `step`.
        function: What is called.

    Raises:
        WoodburyError: If nothing can be set on the object.

    Example:
        >>> class Wrapper:
        ...     def step(self):
        ...         print("stepped")
        >>> wrapper = Wrapper()
        >>> after = AfterStep(wrapper, lambda: print("after it"))
        >>> wrapper.step()
        stepped
        after it
        >>> after.remove()
        >>> wrapper.step()
        stepped
    """

    def __init__(self, owner: Any, function: Callable[[], object]) -> None:
        before = owner.step

        @wraps(before)
        def step(*arguments: Any, **named: Any) -> Any:
            result = before(*arguments, **named)
            function()
            return result

        self._owner = owner
        self._own = getattr(owner, "__dict__", {}).get("step")  # of a schedule, if one came first
        self._step = step
        try:
            owner.step = step
        except AttributeError as error:
            kind = type(owner).__name__
            raise WoodburyError(
                f"A {kind} around an optimizer may move weights after its step, and takes no hook: "
                f"give {kind} no __slots__, or train with the optimizer inside."
            ) from error

    def remove(self) -> None:
        """Give the object its own `step` back, unless something else has replaced it since."""
        if self._owner.__dict__.get("step") is not self._step:
            return
        if self._own is None:
            del self._owner.step
        else:
            self._owner.step = self._own
