"""LLVM code for vectors: what the emitters of kernels share."""

from __future__ import annotations

# Numba's decorators and LLVM's builders say nothing of types, and need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()
LONG = ir.IntType(64)
WORD = ir.IntType(32)
HALF = ir.IntType(16)
ZERO, ONE = ir.Constant(LONG, 0), ir.Constant(LONG, 1)


def vector_width() -> int:
    """Floats in a vector register of this machine: 16 of AVX-512, 8 of AVX, 4 of NEON and SSE."""
    has = binding.get_host_cpu_features()
    if has.get("avx512f"):
        return 16
    return 8 if has.get("avx") else 4


WIDTH = vector_width()


def pointer_to(builder: ir.IRBuilder, address: Any, kind: Any, *offsets: Any) -> Any:
    """A pointer to a kind of value at an address and offsets in bytes."""
    for offset in offsets:
        address = builder.add(address, offset)
    return builder.inttoptr(address, kind.as_pointer())


def load(builder: ir.IRBuilder, address: Any, kind: Any, *offsets: Any) -> Any:
    """Load a value that is aligned as its elements are."""
    align = 2 if kind == HALF else 4
    return builder.load(pointer_to(builder, address, kind, *offsets), align=align)


def store(builder: ir.IRBuilder, value: Any, address: Any, *offsets: Any) -> None:
    """Store a value that is aligned as its elements are."""
    builder.store(value, pointer_to(builder, address, value.type, *offsets), align=4)


def splat(builder: ir.IRBuilder, value: Any, width: int) -> Any:
    """A vector whose elements are all one value."""
    vector = ir.VectorType(FLOAT, width)
    lane = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(WORD, 0))
    zeros = ir.Constant(ir.VectorType(WORD, width), [0] * width)
    return builder.shuffle_vector(lane, ir.Constant(vector, ir.Undefined), zeros)


def multiply_add(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """A·b + c, in one instruction where the machine has it."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def bytes_of(vectors: int, width: int) -> Any:
    """The bytes that some vectors of floats take, as a constant."""
    return ir.Constant(LONG, 4 * width * vectors)


def looped(
    builder: ir.IRBuilder,
    values: list[Any],
    bounds: tuple[Any, Any],
    step: Callable[[Any, list[Any]], list[Any]],
    by: int = 1,
) -> tuple[Any, list[Any]]:
    """Emit a loop that keeps values in registers.

    Args:
        builder: Where.
        values: What they are before it.
        bounds: The first number, and the one that the loop ends before.
        step: (number, values) -> the values after this turn.
        by: What is added to the number after each turn.

    Returns:
        The number that the loop ended with, and the values after it.
    """
    start, end = bounds
    before = builder.block
    head = builder.append_basic_block("head")
    body = builder.append_basic_block("body")
    after = builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    number = builder.phi(LONG)
    number.add_incoming(start, before)
    phis = [builder.phi(value.type) for value in values]
    for phi, value in zip(phis, values, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", number, end), body, after)
    builder.position_at_end(body)
    for phi, result in zip(phis, step(number, phis), strict=True):
        phi.add_incoming(result, builder.block)
    number.add_incoming(builder.add(number, ir.Constant(LONG, by)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return number, phis


def emitted(arguments: int) -> Callable[[Callable[..., None]], Any]:
    """A decorator that makes an intrinsic of what emits code.

    Args:
        arguments: How many whole numbers the code takes.

    Returns:
        emit(builder, *numbers) -> an intrinsic f(numbers), which takes them as one tuple.
    """

    def of(emit: Callable[..., None]) -> Any:
        def intrinsic_of(typingcontext, numbers):
            signature = types.void(types.UniTuple(types.int64, arguments))

            def generate(context, builder, signature, values):
                emit(builder, *cgutils.unpack_tuple(builder, values[0], arguments))
                return context.get_dummy_value()

            return signature, generate

        return intrinsic(intrinsic_of)

    return of


def _pointer(number: Any, kind: Any) -> Any:
    """An intrinsic: a pointer to numbers of a kind at an address."""

    def pointer_of(typingcontext, address):
        signature = types.CPointer(number)(types.int64)

        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], kind.as_pointer())

        return signature, generate

    return intrinsic(pointer_of)


as_floats = _pointer(types.float32, FLOAT)
as_doubles = _pointer(types.float64, DOUBLE)
as_longs = _pointer(types.int64, LONG)
as_bytes = _pointer(types.uint8, ir.IntType(8))
