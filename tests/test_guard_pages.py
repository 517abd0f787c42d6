"""Arrays between inaccessible pages: a read or write past either end would end the process.

Run as a program (which the tests do, once for each dtype), this file makes the calls and notes each in a file
before it is made, so that a crash is reported with what was called.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softlane
from softlane import _core
from support import FLOATS, INTEGERS, Array, DType, clean_environment, dtype_id, using

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect"),
    pytest.mark.timeout(300),
]

NOTE_BYTES = 400
CANARY = b"\xa5" * 64
ROWS = 3
LENGTHS = range(1, 301)
# Around multiples of every lane count; for all widths, and for all lengths.
SOME_LENGTHS = [1, 3, 8, 17, 33, 64, 129]
SOME_WIDTHS = [8, 17]
WIDTHS = range(1, 41)
PLACES = ("before the upper page", "after the lower page")


class Region:
    """Memory between two pages that may not be touched; arrays lie against one or the other."""

    def __init__(self, least: int) -> None:
        page = mmap.PAGESIZE
        self.size = -(-(least + len(CANARY)) // page) * page
        self.memory = mmap.mmap(-1, self.size + 2 * page)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for guard in (self.address, self.address + page + self.size):
            protect(guard, page, 0)
        self.start = page

    def array(self, shape: Sequence[int], dtype: DType, place: str) -> Array:
        size = int(np.prod(shape)) * dtype.itemsize
        offset = self.start + (self.size - size if place == PLACES[0] else 0)
        array: Array = np.ndarray(tuple(shape), dtype, buffer=self.memory, offset=offset)
        return array

    def beside(self, array: Array, place: str) -> memoryview:
        """The 64 bytes at that end of the array which no page guards."""
        first = array.__array_interface__["data"][0] - self.address
        begin = first - len(CANARY) if place == PLACES[0] else first + array.nbytes
        return memoryview(self.memory)[begin : begin + len(CANARY)]


def protect(address: int, size: int, access: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_int(access)) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


# ---- the program ----------------------------------------------------------------------------------------------------


class Program:
    """All calls on one dtype. Every operand has a region of its own."""

    def __init__(self, dtype: DType, note: Path) -> None:
        self.dtype = dtype
        self.loss_dtype = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        with note.open("r+b") as file:
            self.note = mmap.mmap(file.fileno(), NOTE_BYTES)
        self.regions: dict[str, Region] = {}
        self.calls = 0
        self.isa = self.place = self.shape = ""
        rng = np.random.default_rng(5)
        self.values = (3 * rng.standard_normal(ROWS * 300 * 40)).astype(dtype)
        self.others = rng.random(ROWS * 300 * 40).astype(dtype)
        self.mask = rng.random(ROWS * 300 * 40) < 0.7
        self.classes = rng.integers(0, 1 << 30, 300)
        self.weights = rng.random(300)

    def placed(self, role: str, source: Array) -> Array:
        """A copy of the array in the region of that role."""
        if role not in self.regions:
            self.regions[role] = Region(ROWS * 300 * 40 * 8)
        array = self.regions[role].array(source.shape, source.dtype, self.place)
        array[...] = source
        return array

    def output(self, role: str, shape: Sequence[int], dtype: DType) -> Array:
        if role not in self.regions:
            self.regions[role] = Region(ROWS * 300 * 40 * 8)
        array = self.regions[role].array(shape, dtype, self.place)
        self.regions[role].beside(array, self.place)[:] = CANARY
        return array

    def check(
        self,
        name: str,
        inputs: dict[str, Array],
        output: str,
        call: Callable[..., Any],
        views: Callable[[Array], Array] = lambda a: a,
    ) -> None:
        """The call on ordinary arrays and on guarded ones gives the same bytes."""
        expected = np.asarray(call(**inputs))
        for self.place in PLACES:
            text = f"{self.isa} {self.dtype} {name} {self.shape} {self.place}".encode()
            self.note[: len(text) + 1] = text + b"\0"
            guarded = {role: self.placed(role, array) for role, array in inputs.items()}
            out = self.output(output, expected.shape, expected.dtype)
            call(**guarded, **{output: out})
            self.calls += 1
            assert out.tobytes() == expected.tobytes(), text
            assert self.regions[output].beside(out, self.place) == CANARY, text

    def run(self) -> None:
        for self.isa in _core.isas_usable():
            with using(self.isa):
                for n in LENGTHS:
                    self.shape = f"{ROWS} rows of {n}"
                    self.rows(n)
                for n in LENGTHS:
                    for width in SOME_WIDTHS:
                        self.shape = f"{width} columns of {n}"
                        self.columns(n, width)
                for n in SOME_LENGTHS:
                    for width in WIDTHS:
                        self.shape = f"{width} columns of {n}"
                        self.columns(n, width)

    def rows(self, n: int) -> None:
        x = self.values[: ROWS * n].reshape(ROWS, n)
        y = self.others[: ROWS * n].reshape(ROWS, n)
        # One row, whose two ends are the array's; and packed rows, through a mask or a reversal.
        self.check("softmax, one row", {"x": x[0]}, "out", softlane.softmax)
        self.elementwise(x, y, -1)
        for name, call in (("softmax", softlane.softmax), ("log_softmax", softlane.log_softmax)):
            self.check(
                f"{name}, backwards",
                {"x": x},
                "out",
                lambda x, out=None, f=call: f(x[:, ::-1], out=out),
            )
            self.check(
                f"{name} over both axes",
                {"x": x},
                "out",
                lambda x, out=None, f=call: f(x, None, out=out),
            )
        wider = np.dtype(np.float64)
        self.check(
            "softmax to float64",
            {"x": x},
            "out",
            lambda x, out=None: softlane.softmax(x, dtype=wider, out=out),
        )
        whole = np.resize(np.arange(-60, 60), x.shape).astype(INTEGERS[n % len(INTEGERS)])
        self.check("softmax of integers", {"x": whole}, "out", softlane.softmax)
        self.check(
            "logsumexp with b",
            {"x": x, "b": y},
            "out",
            lambda x, b, out=None: softlane.logsumexp(x, b=b, out=out),
        )
        self.losses(x, -1)

    def columns(self, n: int, width: int) -> None:
        x = self.values[: n * width].reshape(n, width)
        y = self.others[: n * width].reshape(n, width)
        self.elementwise(x, y, 0)
        self.losses(x, 0)
        # A panel at an edge of a wider array.
        if n in SOME_LENGTHS:
            wide = self.values[: n * 40].reshape(n, 40)

            def panel(x: Array, out: Array | None = None) -> Any:
                part = slice(40 - width, None) if self.place == PLACES[0] else slice(0, width)
                return softlane.softmax(x[:, part], 0, out=out)

            for self.place in PLACES:
                expected = np.ascontiguousarray(panel(wide))
                guarded = self.placed("x", wide)
                out = self.output("out", expected.shape, expected.dtype)
                panel(guarded, out)
                self.calls += 1
                assert out.tobytes() == expected.tobytes()

    def elementwise(self, x: Array, y: Array, axis: int) -> None:
        for name, call in (("softmax", softlane.softmax), ("log_softmax", softlane.log_softmax)):
            self.check(name, {"x": x}, "out", lambda x, out=None, f=call: f(x, axis, out=out))
        mask = self.mask[: x.size].reshape(x.shape)
        self.check(
            "softmax with where",
            {"x": x, "where": mask},
            "out",
            lambda x, where, out=None: softlane.softmax(x, axis, where=where, out=out),
        )
        self.check(
            "logsumexp", {"x": x}, "out", lambda x, out=None: softlane.logsumexp(x, axis, out=out)
        )
        for name, back in (
            ("softmax_backward", softlane.softmax_backward),
            ("log_softmax_backward", softlane.log_softmax_backward),
        ):
            self.check(
                name,
                {"g": x, "y": y},
                "out",
                lambda g, y, out=None, f=back: f(g, y, axis, out=out),
            )

    def losses(self, x: Array, axis: int) -> None:
        n, samples = x.shape[axis], x.shape[1 + axis if axis else 1]
        kinds = [d for d in INTEGERS if d.kind in "iu" and np.iinfo(d).max >= n - 1]
        y = (self.classes[:samples] % n).astype(kinds[(n + samples) % len(kinds)])
        weight = self.weights[:n]
        sample_weight = self.others[:samples]
        mask = self.mask[: x.size].reshape(x.shape).copy()
        at = (np.arange(samples), y) if axis else (y, np.arange(samples))
        mask[at] = True
        self.check(
            "cross_entropy",
            {"x": x, "y": y},
            "out",
            lambda x, y, out=None: softlane.cross_entropy(x, y, axis, reduction="none", out=out),
        )

        def gradient(grad_out: Array | None = None, **given: Any) -> Any:
            logits, targets = given.pop("x"), given.pop("y")
            smoothing = 0.1 if "weight" in given else 0.0
            return softlane.cross_entropy_with_grad(
                logits, targets, axis, label_smoothing=smoothing, grad_out=grad_out, **given
            )[1]

        inputs = {"x": x, "y": y}
        self.check("cross_entropy_with_grad", inputs, "grad_out", gradient)
        weights = {"weight": weight, "sample_weight": sample_weight}
        self.check("cross_entropy_with_grad, weights", inputs | weights, "grad_out", gradient)
        self.check("cross_entropy_with_grad, where", inputs | {"where": mask}, "grad_out", gradient)


def main(name: str, note: str) -> None:
    dtype = next(d for d in FLOATS if d.name == name)
    softlane.set_num_threads(1)
    if os.environ.get("SOFTLANE_TEST_OVERREAD"):  # does the method see one byte too many?
        region = Region(100)
        array = region.array((100,), np.dtype(np.uint8), PLACES[0])
        end = array.__array_interface__["data"][0] + 100
        Path(note).write_bytes(b"the intended crash".ljust(NOTE_BYTES, b"\0"))
        ctypes.string_at(end, 1)
        return
    program = Program(dtype, Path(note))
    program.run()
    print(program.calls)


# ---- the tests ------------------------------------------------------------------------------------------------------


def run_program(name: str, folder: Path, **environment: str) -> tuple[int, str, str]:
    """Exit status, output, and the call that was under way."""
    note = folder / "note"
    note.write_bytes(bytes(NOTE_BYTES))
    done = subprocess.run(
        [sys.executable, __file__, name, str(note)],
        env=clean_environment(PYTHONPATH=os.pathsep.join(sys.path), **environment),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    call = note.read_bytes().split(b"\0")[0].decode()
    return done.returncode, done.stdout + done.stderr, call


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_nothing_is_touched_beyond_either_end(dtype: DType, tmp_path: Path) -> None:
    status, printed, call = run_program(dtype.name, tmp_path)
    assert status == 0, f"exit status {status} in: {call}\n{printed}"
    assert int(printed) > 50000


def test_one_byte_too_many_is_a_crash(tmp_path: Path) -> None:
    status, printed, call = run_program("float32", tmp_path, SOFTLANE_TEST_OVERREAD="1")
    assert status < 0, f"exit status {status}: {printed}"
    assert call == "the intended crash"


if __name__ == "__main__":
    main(*sys.argv[1:])
