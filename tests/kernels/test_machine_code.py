"""The code of the tiles, on machines that need not be this one."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

pytest.importorskip("numba", reason="the kernels need Numba")

from woodbury.kernels import tiles, vector_products

MACHINES = [
    ("x86_64-linux-gnu", "skylake-avx512", 16, "%zmm"),
    ("x86_64-linux-gnu", "znver3", 8, "%ymm"),
    ("aarch64-linux-gnu", "neoverse-n1", 4, "fmla"),
]
TILES = {
    "squares": (4, lambda builder, *rest: tiles.emit_squares(builder, 6, 2, *rest), 2 * 6 * 2),
    "dots": (6, lambda builder, *rest: tiles.emit_dots(builder, 4, 3, *rest), 4 * 3),
    "times": (5, lambda builder, *rest: vector_products.emit_dots(builder, 4, *rest), 4 * 2),
    "combine": (5, lambda builder, *rest: vector_products.emit_combination(builder, 4, *rest), 8),
}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("machine", "cpu", "width", "register"), MACHINES)
def test_the_code_is_that_of_the_machine(
    tile: str, machine: str, cpu: str, width: int, register: str
) -> None:
    """One multiply-add for each register of a tile, whatever the CPU; none is run here."""
    arguments, emit, products = TILES[tile]
    code = assembly(machine, cpu, width, arguments, emit)
    found = re.findall(r"^\s(?:vfm|fmla).*", code, re.MULTILINE)
    assert len(found) == products
    assert all(register in line for line in found)
    assert not re.search(r"vmovaps.*%zmm.*\(%rsp\)", code)  # no accumulator left its register


def assembly(machine: str, cpu: str, width: int, arguments: int, emit: Callable[..., None]) -> str:
    from llvmlite import binding, ir

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    made = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * arguments)
    function = ir.Function(made, kind, "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    emit(builder, width, function.args)
    builder.ret_void()
    try:
        target = binding.Target.from_triple(machine)
    except RuntimeError:
        pytest.skip(f"this LLVM makes no code for {machine}")
    parsed = binding.parse_assembly(str(made))
    return target.create_target_machine(cpu=cpu, opt=3).emit_assembly(parsed)
