"""The caller's floating-point environment: left as it was found, and without influence on the results."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import softlane
from support import FLOATS, Array, assert_same_bits, make_rows, threads

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the layout of fenv_t is known here for Linux on x86-64 and AArch64",
)
X86 = platform.machine() == "x86_64"
# Where the control bits stand in fenv_t, which of them flush subnormals, and fesetround's values.
CONTROL = 28 if X86 else 0
FLUSH = 0x8040 if X86 else 1 << 24
ROUNDING = {
    "down": 0x400 if X86 else 0x800000,
    "up": 0x800 if X86 else 0x400000,
    "to zero": 0xC00 if X86 else 0xC00000,
}
INEXACT, INVALID, ALL = (0x20, 0x01, 0x3D) if X86 else (0x10, 0x01, 0x1F)


def libm() -> Any:
    return ctypes.CDLL("libm.so.6")


def control() -> int:
    room = ctypes.create_string_buffer(64)
    assert libm().fegetenv(room) == 0
    word = int.from_bytes(room.raw[CONTROL : CONTROL + 4], "little")
    return word & ~0x3F if X86 else word


@contextmanager
def environment(setting: str) -> Iterator[None]:
    """Round in another direction, or flush subnormal operands and results to zero."""
    kept = ctypes.create_string_buffer(64)
    assert libm().fegetenv(kept) == 0
    try:
        if setting == "flush":
            raw = bytearray(kept.raw)
            word = int.from_bytes(raw[CONTROL : CONTROL + 4], "little") | FLUSH
            raw[CONTROL : CONTROL + 4] = word.to_bytes(4, "little")
            assert libm().fesetenv(ctypes.create_string_buffer(bytes(raw), 64)) == 0
        else:
            assert libm().fesetround(ROUNDING[setting]) == 0
        yield
    finally:
        libm().fesetenv(kept)


def calls(x: Array) -> dict[str, Callable[[], Any]]:
    y = np.argmax(x, axis=-1)
    confident, zero = np.array([100, 0, 0], x.dtype), np.array(0)
    return {
        "softmax": lambda: softlane.softmax(x),
        "softmax of columns": lambda: softlane.softmax(x, 0),
        "log_softmax": lambda: softlane.log_softmax(x),
        "logsumexp": lambda: softlane.logsumexp(x),
        "softmax_backward": lambda: softlane.softmax_backward(x, x),
        "cross_entropy": lambda: softlane.cross_entropy(x, y),
        "loss": lambda: softlane.cross_entropy_with_grad(x, y, reduction="none")[0],
        "gradient": lambda: softlane.cross_entropy_with_grad(x, y)[1],
        "subnormal loss": lambda: softlane.cross_entropy(confident, zero),
        "subnormal losses": lambda: softlane.cross_entropy(confident[None], [0], reduction="none"),
        "subnormal loss by itself": lambda: softlane.cross_entropy(
            confident, zero, reduction="none"
        ),
        "subnormal loss, masked": lambda: softlane.cross_entropy(
            confident, zero, where=[True, True, True]
        ),
        "float64 result": lambda: softlane.softmax(x, dtype=np.float64),
        "float16 result": lambda: softlane.softmax(x, dtype=np.float16),
    }


@pytest.fixture
def no_collection() -> Iterator[None]:
    """No garbage collection: hypothesis measures its time, in floating point."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("before", [0, INEXACT, INVALID], ids=["none", "inexact", "invalid"])
def test_exception_flags_stay_as_they_were(isa: str, before: int) -> None:
    m = libm()
    for dtype in FLOATS:
        _, x = make_rows(dtype, 129)
        x[0, 0], x[1, 1] = np.nan, np.inf
        for count in (1, 3):
            with threads(count):
                for name, call in calls(x).items():
                    m.feclearexcept(ALL)
                    m.feraiseexcept(before)
                    raised = m.fetestexcept(ALL)
                    call()
                    after = m.fetestexcept(ALL)
                    m.feclearexcept(ALL)
                    assert after == raised, f"{name} of {dtype}: {after:#x}, {raised:#x} before"


@pytest.mark.parametrize("setting", ["flush", *ROUNDING])
def test_control_bits_stay_as_they_were_and_change_no_result(isa: str, setting: str) -> None:
    for dtype in FLOATS:
        _, x = make_rows(dtype, 129, infinities=False)
        big = np.tile(x, (40, 1))
        for array, count in ((x, 1), (big, 2)):
            with threads(count):
                for name, call in calls(array).items():
                    expected = call()
                    with environment(setting):
                        before = control()
                        got = call()
                        after = control()
                    assert before == after, name
                    assert_same_bits(got, expected, f"{name} of {dtype}, {setting}")
