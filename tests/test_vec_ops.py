"""Each instruction set's vector operations have the generic ones' bits (tests/cpp/vec_ops.cpp)."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from softlane import _core

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "kernels"
FLAGS: dict[str, list[str]] = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
    "neon": [],
}
# What the headers all have is the vocabulary; what only some have is their own business.
OPERATION = re.compile(
    r"^(?:SOFTLANE_INLINE|  SOFTLANE_INLINE static) (?!constexpr)[^=;{(]*?\b([A-Z]\w*)\(",
    re.MULTILINE,
)

Lines = Callable[[str], dict[str, str]]


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not command or shutil.which(command[0]) is None:
        pytest.skip(f"no C++ compiler: {command or 'CXX is empty'}")
    return command


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    """For an instruction set's name: its operations and the hashes of their results."""
    folder = tmp_path_factory.mktemp("vec_ops")

    @functools.cache
    def of(isa: str) -> dict[str, str]:
        compiler = _compiler()
        flags = ["-std=c++17", "-O2", "-ffp-contract=off", *FLAGS[isa]]
        empty = folder / "empty.cpp"
        empty.write_text("int main() { return 0; }\n")
        tried = _run(*compiler, *flags, empty, "-o", folder / "empty")
        if tried.returncode != 0:
            pytest.skip(f"{compiler} does not take {flags}: {tried.stderr}")
        program = folder / f"vec_ops_{isa}"
        source = ROOT / "tests" / "cpp" / "vec_ops.cpp"
        define = f"-DSOFTLANE_ISA={isa}"
        built = _run(*compiler, *flags, define, "-I", ROOT / "csrc", source, "-o", program)
        assert built.returncode == 0, built.stderr
        ran = _run(program)
        assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}\nended with {ran.returncode} here"
        printed = ran.stdout.splitlines()
        result = {name: digest for name, _, digest in (line.rpartition(" ") for line in printed)}
        assert len(result) == len(printed), "a name stands on two lines"
        return result

    return of


@pytest.mark.parametrize("name", [name for name in FLAGS if name != "generic"])
def test_operations_have_the_generic_bits(name: str, lines: Lines) -> None:
    usable = _core.isas_usable()
    if name not in usable:
        pytest.skip(f"{name} is not usable on this machine (usable: {', '.join(usable)})")
    expected, got = lines("generic"), lines(name)
    assert list(got) == list(expected)
    assert [op for op in got if got[op] != expected[op]] == []


def test_every_operation_is_run(lines: Lines) -> None:
    headers = set(KERNELS.glob("vec_*.h")) - {KERNELS / "vec_generic.h"}  # where macros make them
    vocabulary = set.intersection(*(set(OPERATION.findall(h.read_text())) for h in headers))
    vocabulary -= {"ToHalf", "Widen"}  # conversions that the headers themselves use
    assert {"Add", "LoadN", "Lookup8", "StoreN"} <= vocabulary
    assert vocabulary - {line.split("<")[0] for line in lines("generic")} == set()
