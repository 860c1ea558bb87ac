"""LLVM code for vectors: what the emitters of kernels share."""

from __future__ import annotations

# Numba's decorators and LLVM's builders say nothing of types, and need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

FLOAT = ir.FloatType()
LONG = ir.IntType(64)
WORD = ir.IntType(32)
HALF = ir.IntType(16)


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


@intrinsic
def as_floats(typingcontext, address):
    """A pointer to floats at an address."""
    signature = types.CPointer(types.float32)(types.int64)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], FLOAT.as_pointer())

    return signature, generate


@intrinsic
def as_longs(typingcontext, address):
    """A pointer to 64-bit whole numbers at an address."""
    signature = types.CPointer(types.int64)(types.int64)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], LONG.as_pointer())

    return signature, generate


@intrinsic
def as_doubles(typingcontext, address):
    """A pointer to doubles at an address."""
    signature = types.CPointer(types.float64)(types.int64)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.DoubleType().as_pointer())

    return signature, generate


@intrinsic
def as_bytes(typingcontext, address):
    """A pointer to bytes at an address."""
    signature = types.CPointer(types.uint8)(types.int64)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return signature, generate
