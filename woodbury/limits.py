"""Limits: the sizes at which work is cut into pieces, or done in another way."""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass, fields
from types import TracebackType

from woodbury.errors import WoodburyError, WrongType


@dataclass(frozen=True)
class Limits:
    """How much may be held or tried at once.

    It is a context: inside `with Limits(...)` these numbers hold. All are positive.

    Attributes:
        memory: Bytes that the gradient rows may take; None for half of the default budget, 60 % of
            what the process may still have (`woodbury.memory`).
        gradient_chunk: Bytes of one chunk of gradient rows while they are computed, both copies.
        temporary: float64 elements of one temporary of the linear algebra.
        activations: Elements (inputs, activations or output projections) that pass through the
            network at once in products with its Jacobian; a token counts for a thousand.
        patches: Elements of the unfolded inputs of a convolution.
        kfac_samples: Samples in one pass that collects K-FAC's factors.
        layer_samples: Samples in one pass that compares the outputs of layers.
        ggn_samples: Samples for which directions of the output are drawn at once.
        hessian_samples: Samples in one pass of second derivatives.
        hessian_columns: Second derivatives that are computed at once.
        page: Bytes of one page of rows that lie on a disk; two are in memory.
        row_columns: Columns of the rows in one chunk on a CPU.
        inverse_columns: Columns of an inverse triangle that are made at once.
        thread_elements: Elements from which on a product with one vector is shared among threads.
        whole_matrix: Weights up to which `prune` takes the whole matrix and not blocks.
        equations_per_weight: Output equations per kept weight from which on `prune` leaves the
            outputs of layers out of a refit.
        direct_size: Rows up to which a restricted Kronecker product is solved by a dense factor.
        dense_factor: Rows of the largest dense factor of a restricted Kronecker product.
        cg_steps: Steps of conjugate gradients on a restricted Kronecker product.
        cg_residual: The relative residual at which they end.
        subsets: Subsets that the exhaustive selection tries in one group at most.

    Example:
        >>> with Limits(memory=2**30):
        ...     Limits.current().memory
        1073741824
        >>> Limits.current() == Limits()
        True
    """

    memory: int | None = None
    gradient_chunk: int = 512 * 2**20
    temporary: int = 2**24
    activations: int = 2**22
    patches: int = 2**25
    kfac_samples: int = 32
    layer_samples: int = 64
    ggn_samples: int = 64
    hessian_samples: int = 128
    hessian_columns: int = 32
    page: int = 2**27
    row_columns: int = 4096
    inverse_columns: int = 512
    thread_elements: int = 2**23
    whole_matrix: int = 50_000
    equations_per_weight: float = 2.0
    direct_size: int = 2048
    dense_factor: int = 20_000
    cg_steps: int = 2000
    cg_residual: float = 1e-12
    subsets: int = 20_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name == "memory":
                continue
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if 0 < value < math.inf or (value > 0 and field.type == "float"):
                    continue
                kind = WoodburyError
            else:
                kind = WrongType
            raise kind(f"Limits got {field.name}={value!r}: give a positive number.")

    @staticmethod
    def current() -> Limits:
        """The limits that hold here: of the innermost `with`, else the defaults."""
        return _stack.get()[-1]

    def __enter__(self) -> Limits:
        """From here on these limits hold."""
        _stack.set((*_stack.get(), self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """From here on those before hold again."""
        _stack.set(_stack.get()[:-1])


_stack: ContextVar[tuple[Limits, ...]] = ContextVar("limits", default=(Limits(),))
