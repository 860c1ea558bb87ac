"""The memory budget: sizes as text, and the least of what the process may still have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from woodbury.errors import WoodburyError
from woodbury.memory import available_bytes, budget, budget_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GiB", 6 * 2**30),
        ("1.5 gb", 1_500_000_000),
        ("512 MiB", 2**29),
        ("10", 10),
        (4096, 4096),
        (1e6, 1_000_000),
    ],
)
def test_sizes(text: str | int | float, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "six", "0", -1, "1.2.3GB", "6 PiB", "nan", float("inf")])
def test_what_is_no_size_is_refused(text: str | float) -> None:
    with pytest.raises(WoodburyError, match="give bytes or a size such as 6GiB"):
        parse_bytes(text)


def test_the_default_is_a_share_of_what_is_available() -> None:
    assert budget_bytes("1GiB") == 2**30
    assert 0.3 < budget_bytes() / available_bytes() < 0.9


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_leaves_its_limit_less_its_usage(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path if version == 2 else tmp_path / "memory"
    names = [("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")]
    limit, usage = names[version - 1]
    folder.mkdir(exist_ok=True)
    (folder / limit).write_text("1000000\n")
    (folder / usage).write_text("400000\n")
    monkeypatch.setattr(budget, "_system", lambda: iter([2**40]))
    assert list(budget._control_groups(tmp_path)) == [600_000]
    (folder / limit).write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    assert list(budget._control_groups(tmp_path)) == []


def test_the_process_own_limit_counts() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, -1));"
        "from woodbury.memory import available_bytes; print(available_bytes())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert 0 < int(found.stdout) < 6 * 2**30


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_device_has_its_own() -> None:
    assert available_bytes("cuda") <= torch.cuda.get_device_properties(0).total_memory
