"""Shared by the tests: dtypes, rows of awkward values, memory layouts, comparison of bits, subprocesses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from softlane import _core

try:
    import ml_dtypes

    BFLOAT16: Any = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = None

Array = npt.NDArray[Any]
DType = np.dtype[Any]

HALVES: list[DType] = [np.dtype(np.float16)] + ([BFLOAT16] if BFLOAT16 is not None else [])
WIDE: list[DType] = [np.dtype(np.float32), np.dtype(np.float64)]
FLOATS: list[DType] = HALVES + WIDE
INTEGERS: list[DType] = [np.dtype(c) for c in "?bBhHiIlLqQ"]

# Tails: 1 to 3 tiles of every lane count plus and minus one, and lengths past the first thresholds.
TAILS: list[int] = [*range(1, 71), 127, 128, 129, 255, 256, 257, 1000, 4097]
FEW_TAILS: list[int] = [
    1,
    2,
    3,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    65,
    127,
    128,
    129,
    257,
    1000,
]


def dtype_id(dtype: DType) -> str:
    return dtype.name


def result_dtype(dtype: DType) -> DType:
    """The dtype of a reduction (logsumexp, losses)."""
    if dtype in HALVES:
        return np.dtype(np.float32)
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def elementwise_dtype(dtype: DType) -> DType:
    return dtype if dtype in FLOATS else np.dtype(np.float64)


def largest(dtype: DType) -> float:
    if dtype == BFLOAT16:
        return float.fromhex("0x1.fep127")
    return float(np.finfo(dtype).max)


def to_dtype(values: Any, dtype: DType) -> Array:
    """Float64 values in the dtype, kept finite where they were."""
    wide = np.asarray(values, np.float64)
    top = largest(dtype)
    with np.errstate(all="ignore"):
        return np.where(np.isfinite(wide), np.clip(wide, -top, top), wide).astype(dtype)


def rng_for(*key: Any) -> np.random.Generator:
    """A generator that depends on the key alone, not on hash randomisation."""
    return np.random.default_rng([int.from_bytes(repr(key).encode(), "little") % (1 << 63)])


def make_rows(
    dtype: DType,
    n: int,
    seed: int = 0,
    infinities: bool = True,
    only: Sequence[str] | None = None,
) -> tuple[list[str], Array]:
    """One row of n logits for each kind of input that has hurt an implementation somewhere, or for `only` these kinds;
    names and array.
    """
    rng = rng_for(dtype.name, n, seed)
    kinds: dict[str, Array] = {}

    def noise() -> Array:
        return rng.standard_normal(n)

    for scale in (1e-2, 1.0, 10.0, 100.0, 1000.0):
        kinds[f"scale {scale:g}"] = scale * noise()
    for offset in (1.0, 100.0, 255.5, 1e4, 1e6, 1e30):
        kinds[f"offset {offset:g}"] = noise() * 3 + offset
        kinds[f"offset {-offset:g}"] = noise() * 3 - offset
    for constant in (0.1, 1 / 3, -0.7, 88.3762, -104.3, 333.3, 1e4 / 3, -1e30 / 7):
        kinds[f"constant {constant:.4g}"] = np.full(n, constant)
    spike = 1e-3 * noise()
    spike[n // 2] = 20.0
    kinds["one huge among tiny"] = spike
    gaps = [5.0, 10.0, 17.0, 25.0, 50.0, 87.0, 100.0]
    for gap in gaps + ([300.0, 708.0, 740.0] if dtype == np.float64 else []):
        row = 0.5 * noise() - gap
        row[(n * 2) // 3] = 0.0
        kinds[f"confident {gap:g}"] = row
        kinds[f"confident {gap:g} shifted"] = row + 7.25
    kinds["ascending"] = np.linspace(-30, 30, n)
    kinds["descending"] = np.linspace(30, -30, n)
    last = noise()
    last[-1] = 60.0
    kinds["maximum at the end"] = last
    late = noise() - 400.0
    late[-1] = 300.0
    kinds["maximum at the end, far"] = late
    tie = noise()
    tie[0] = tie[-1] = 9.0
    kinds["two maxima"] = tie
    deep = {
        "float16": (9.0, 18.0),
        "float32": (86.0, 104.0),
        "bfloat16": (86.0, 93.0),
        "float64": (707.0, 746.0),
    }
    low, high = deep[dtype.name]
    row = -rng.uniform(low, high, n)
    row[0] = 0.0
    kinds["subnormal results"] = row
    top = largest(dtype)
    kinds["near the largest"] = top * rng.uniform(0.5, 1.0, n)
    kinds["near the smallest"] = -top * rng.uniform(0.5, 1.0, n)
    both = top * rng.uniform(-1.0, 1.0, n)
    both[n // 2] = top
    kinds["both ends"] = both
    kinds["subnormal logits"] = noise() * 1e-310 if dtype == np.float64 else noise() * 1e-40
    if infinities:
        holes = 2 * noise()
        holes[rng.random(n) < 0.3] = -np.inf
        holes[n - 1] = 1.0
        kinds["-inf entries"] = holes
        alone = np.full(n, -np.inf)
        alone[n // 3] = -3.5
        kinds["all but one -inf"] = alone
    chosen = list(kinds if only is None else only)
    return chosen, to_dtype(np.stack([kinds[kind] for kind in chosen]), dtype)


# Layouts


def exported(x: Any) -> memoryview:
    """The array as a bare buffer."""
    return memoryview(x)


def strided(x: Array, steps: Sequence[int]) -> Array:
    """The values of x behind strides of `steps` elements per axis (0 is not for this; negative runs backwards)."""
    big = np.zeros([max(1, n * abs(s)) for n, s in zip(x.shape, steps, strict=True)], x.dtype)
    view = big[tuple(slice(None, None, s) for s in steps)]
    view = view[tuple(slice(0, n) for n in x.shape)]
    view[...] = x
    return view


def unaligned(x: Array) -> Array:
    """The values of x one byte past an aligned address."""
    room = np.zeros(x.nbytes + 1, np.uint8)
    view: Array = np.ndarray(x.shape, x.dtype, buffer=room.data, offset=1)
    view[...] = x
    return view


def swapped(x: Array) -> Array:
    """The values of x in the other byte order (bfloat16 has only one)."""
    return x if x.dtype == BFLOAT16 else x.astype(x.dtype.newbyteorder())


def record_field(x: Array) -> Array:
    """The values of x as the second field of packed records: every stride odd in bytes."""
    records = np.zeros(
        x.shape, np.dtype([("tag", np.uint8), ("value", x.dtype), ("more", np.uint16)])
    )
    records["value"] = x
    view: Array = records["value"]
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": lambda x: np.ascontiguousarray(x),
    "fortran": lambda x: np.array(x, order="F"),
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "reversed rows": lambda x: strided(x, (-1,) + (1,) * (x.ndim - 1)),
    "reversed last": lambda x: strided(x, (1,) * (x.ndim - 1) + (-1,)),
    "all reversed": lambda x: strided(x, (-1,) * x.ndim),
    "step two": lambda x: strided(x, (2,) * x.ndim),
    "step three, backwards": lambda x: strided(x, (3,) + (-3,) * (x.ndim - 1)),
    "unaligned": unaligned,
    "byte-swapped": swapped,
    "swapped, reversed": lambda x: swapped(x)[..., ::-1].copy()[..., ::-1],
    "record field": record_field,
}


def bits(x: Any) -> Array:
    """The bit patterns in native order; every NaN the same (payloads are not part of the contract)."""
    x = np.asarray(x)
    native = (
        np.ascontiguousarray(x.astype(x.dtype.newbyteorder("="), copy=False))
        if x.dtype != BFLOAT16
        else x
    )
    native = np.array(native, order="C", copy=True)
    if native.dtype.kind in "fV":
        native[np.isnan(native)] = np.nan
    out: Array = native.reshape(-1).view(np.uint8).reshape((*native.shape, native.dtype.itemsize))
    return out


def assert_same_bits(got: Any, expected: Any, label: str = "") -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{label}: shape {got.shape}, expected {expected.shape}"
    assert got.dtype.newbyteorder("=") == expected.dtype.newbyteorder("="), (
        f"{label}: {got.dtype}, {expected.dtype}"
    )
    differ = (bits(got) != bits(expected)).any(axis=-1)
    if differ.any():
        at = tuple(int(i[0]) for i in np.nonzero(differ)) if got.ndim else ()
        raise AssertionError(
            f"{label}: {int(differ.sum())} of {got.size} elements differ, first at {at}: {got[at]!r}, {expected[at]!r}"
        )


def snapshot(*arrays: Any) -> Callable[[], bool]:
    """A function that says whether every array still holds the bytes that it holds now."""
    kept = [(a, a.tobytes()) for a in arrays if isinstance(a, np.ndarray)]
    return lambda: all(a.tobytes() == before for a, before in kept)


# Instruction sets

# Those with fused multiply-add, which promise the same bits.
FUSED = ("avx512", "avx2", "neon")


@contextmanager
def using(name: str) -> Iterator[None]:
    """Compute with this instruction set inside the block."""
    before = _core.get_isa()
    _core.set_isa(name)
    try:
        assert _core.get_isa() == name
        yield
    finally:
        _core.set_isa(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with this many threads inside the block."""
    before = _core.get_num_threads()
    _core.set_num_threads(count)
    try:
        yield
    finally:
        _core.set_num_threads(before)


# Subprocesses


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without the variables that softlane reads, with the changes."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in ("SOFTLANE_ISA", "SOFTLANE_NUM_THREADS", "OMP_NUM_THREADS")
    }
    return kept | changes


def run_python(
    code: str, *arguments: str, timeout: float = 60.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the code in a fresh interpreter; a hang is a failure after `timeout` seconds."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def output_of(code: str, *arguments: str, timeout: float = 60.0, **environment: str) -> str:
    done = run_python(code, *arguments, timeout=timeout, **environment)
    assert done.returncode == 0, f"exit status {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
