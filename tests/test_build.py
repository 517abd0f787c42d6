"""The build: symbols of the kernel objects, sets left out, one version, the dependency rule of the sources."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import softlane
from softlane import _core

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SKIPPABLE = ("avx512", "avx2", "neon")

# What a compiler may call on its own account, in code that calls nothing.
COMPILER_SYMBOLS = {
    "memcpy",
    "memmove",
    "memset",
    "__stack_chk_fail",
    "__stack_chk_guard",
    "_GLOBAL_OFFSET_TABLE_",
}
KERNEL_HEADERS = {"cstddef", "cstdint", "limits"}
INTRINSICS_HEADERS = {"immintrin.h", "arm_neon.h", "intrin.h"}


def find_tool(name: str) -> str | None:
    """The path of a program: beside this interpreter (where pip puts cmake and ninja), or on PATH."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))


def need_tool(*names: str) -> str:
    for name in names:
        path = find_tool(name)
        if path:
            return path
    pytest.skip(f"needs {' or '.join(names)}, which is not installed")


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}"
    )
    return done.stdout


def configure(build: Path, *definitions: str) -> str:
    """Run CMake on the source tree, without Python; what it printed."""
    if sys.platform == "win32":
        pytest.skip("reads symbols with nm, which Windows compilers do not come with")
    cmake = need_tool("cmake")
    need_tool("c++", "g++", "clang++", os.environ.get("CXX", "c++"))
    maker = Path(need_tool("ninja", "make"))
    generator = "Ninja" if maker.stem == "ninja" else "Unix Makefiles"
    return run(
        cmake,
        *("-S", ROOT, "-B", build, "-G", generator, f"-DCMAKE_MAKE_PROGRAM={maker}"),
        *("-DSOFTLANE_PYTHON=OFF", "-DSOFTLANE_TESTS=ON", *definitions),
    )


def build_target(build: Path, target: str) -> None:
    run(need_tool("cmake"), "--build", build, "--target", target, "--parallel", "2")


def sets_of(printed: str) -> set[str]:
    """The instruction sets that CMake said it would build."""
    (line,) = re.findall(r"^-- softlane: instruction sets: (\S+)$", printed, re.MULTILINE)
    return set(line.split(";"))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The kernel objects of every instruction set that this compiler builds, by name."""
    build = tmp_path_factory.mktemp("kernels")
    names = sets_of(configure(build))
    build_target(build, "softlane_kernels")
    objects = {}
    for name in names:
        (objects[name],) = (build / "CMakeFiles" / f"softlane_kernels_{name}.dir").rglob("*.o")
    return objects


def symbols(path: Path) -> list[tuple[str, str]]:
    """Type and name of each symbol, as nm gives them, without the leading underscore of macOS."""
    found = []
    for line in run(need_tool("nm", "llvm-nm"), path).splitlines():
        *_, kind, name = line.split()
        found.append((kind, name.removeprefix("_") if sys.platform == "darwin" else name))
    return found


@pytest.mark.slow
def test_every_set_of_this_architecture_is_built(kernels: dict[str, Path]) -> None:
    machine = platform.machine().lower()
    expected = {
        "x86_64": {"generic", "avx2", "avx512"},
        "amd64": {"generic", "avx2", "avx512"},
        "aarch64": {"generic", "neon"},
        "arm64": {"generic", "neon"},
    }.get(machine, {"generic"})
    assert set(kernels) == expected
    assert set(_core.isas_compiled()) == expected


@pytest.mark.slow
def test_kernel_objects_have_one_global_symbol(kernels: dict[str, Path]) -> None:
    """An inline function compiled for AVX-512 that the linker keeps for everyone crashes older CPUs."""
    for name, path in kernels.items():
        table = symbols(path)
        defined = [symbol for kind, symbol in table if kind.isupper() and kind not in "UVW"]
        weak = [symbol for kind, symbol in table if kind in "vVwWu"]
        undefined = {symbol for kind, symbol in table if kind == "U"}
        assert defined == [f"softlane_table_{name}"], name
        assert not weak, name
        assert undefined <= COMPILER_SYMBOLS, name


@pytest.mark.slow
def test_a_set_is_left_out_on_request(tmp_path: Path) -> None:
    printed = configure(tmp_path, f"-DSOFTLANE_SKIP_ISAS={';'.join(SKIPPABLE)}")
    assert sets_of(printed) == {"generic"}
    build_target(tmp_path, "kernel_bits")  # dispatch links without the other tables
    program = tmp_path / "tests" / "cpp" / "kernel_bits"
    assert run(program).split() == ["generic"]
    for name in SKIPPABLE:
        done = subprocess.run([program, name], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"{name} is not usable, expected one of: generic" in done.stderr


def test_a_set_that_the_compiler_cannot_build_is_left_out(tmp_path: Path) -> None:
    failed = [f"-DSOFTLANE_CAN_BUILD_{name.upper()}=OFF" for name in SKIPPABLE]
    printed = configure(tmp_path, *failed)
    assert sets_of(printed) == {"generic"}
    if platform.machine() in ("x86_64", "AMD64"):
        assert "-- softlane: avx512 left out: the compiler does not build it with '-m" in printed


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("-DSOFTLANE_SKIP_ISAS=avx2;sse9", "has 'sse9', expected some of avx2 avx512 neon"),
        ("-DSOFTLANE_SKIP_ISAS=generic", "has 'generic', expected some of avx2 avx512 neon"),
        ("-DCMAKE_CXX_FLAGS=-Ofast", "fast-math, under which no result would be right"),
    ],
)
def test_a_wrong_configuration_is_an_error(tmp_path: Path, definition: str, message: str) -> None:
    with pytest.raises(AssertionError) as caught:
        configure(tmp_path, definition)
    assert message in " ".join(str(caught.value).split())


def test_versions_agree() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "([^"]+)"$', text, re.MULTILINE)
    assert softlane.__version__ == version
    assert _core.__version__ == version
    assert softlane.show_config(mode="dict")["version"] == version
    assert importlib.metadata.version("softlane") == version
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# The dependency rule

# Rank of each unit of csrc/; an include must point to a lower rank, or within the unit.
LAYERS = {
    "bindings": 5,
    "ops": 4,
    "dispatch": 3,
    "strided": 3,
    "parallel": 3,
    "fpenv": 2,
    "scale": 2,
    "kernels": 1,
}


def sources(*folders: Path) -> list[Path]:
    found = [
        path for folder in folders for path in folder.iterdir() if path.suffix in (".h", ".cpp")
    ]
    assert found
    return sorted(found)


def includes(path: Path) -> list[tuple[str, str]]:
    """The bracket (< or a quote) and the name of every #include of the file."""
    text = path.read_text(encoding="utf-8")
    found: list[tuple[str, str]] = re.findall(
        r'^\s*#\s*include\s*([<"])([^>"]+)', text, re.MULTILINE
    )
    # an include by macro would escape
    assert len(found) == len(re.findall(r"^\s*#\s*include\b", text, re.MULTILINE)), path
    return found


def test_only_the_bindings_know_python() -> None:
    for path in sources(CSRC, CSRC / "kernels"):
        if path.stem != "bindings":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"Python\.h|pybind11|\bPy_|\bPyObject\b", text), path.name


def test_includes_never_point_up() -> None:
    for path in sources(CSRC):
        for bracket, name in includes(path):
            if bracket == "<":
                continue
            included = Path(name)
            unit = included.parts[0] if len(included.parts) > 1 else included.stem
            assert unit in LAYERS, f"{path.name} includes {name}, expected one of {list(LAYERS)}"
            assert unit == path.stem or LAYERS[unit] < LAYERS[path.stem], (
                f"{path.name} includes {name}"
            )
            if unit == "kernels":
                assert included.name == "table.h", f"{path.name} includes {name}"


def test_kernels_use_no_library_code() -> None:
    """Only headers without code of external linkage, and only files of their own folder."""
    for path in sources(CSRC / "kernels"):
        for bracket, name in includes(path):
            if bracket == "<":
                allowed = KERNEL_HEADERS | (
                    set() if path.name.endswith("-inl.h") else INTRINSICS_HEADERS
                )
                assert name in allowed, f"{path.name} includes <{name}>"
            else:
                own = Path(name).name
                assert name in (own, f"kernels/{own}"), f"{path.name} includes {name}"
                assert (CSRC / "kernels" / own).exists(), f"{path.name} includes {name}"
