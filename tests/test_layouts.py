"""Axes, strides, byte orders, outputs, overlaps and buffer exporters: the same bits as from a contiguous array."""

from __future__ import annotations

import array
import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
import softlane
from softlane import _core
from support import (
    BFLOAT16,
    FLOATS,
    FUSED,
    INTEGERS,
    LAYOUTS,
    Array,
    DType,
    assert_same_bits,
    dtype_id,
    elementwise_dtype,
    exported,
    rng_for,
    strided,
    swapped,
    to_dtype,
    unaligned,
    using,
)

every_float = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
every_layout = pytest.mark.parametrize("layout", list(LAYOUTS))

Call = Callable[..., Any]


def loss_and_grad(x: Any, axis: Any = -1, **options: Any) -> tuple[Any, Any]:
    """Cross-entropy of integer targets that depend on the shape alone."""
    shape = tuple(np.delete(np.shape(x), axis))
    targets = np.arange(int(np.prod(shape))).reshape(shape) % max(1, np.shape(x)[axis])
    result: tuple[Any, Any] = softlane.cross_entropy_with_grad(
        x, targets, axis, reduction="none", **options
    )
    return result


def softmax_backward(x: Any, axis: Any = -1, **options: Any) -> Any:
    return softlane.softmax_backward(x, x, axis, **options)


def log_softmax_backward(x: Any, axis: Any = -1, **options: Any) -> Any:
    return softlane.log_softmax_backward(x, x, axis, **options)


CALLS: dict[str, Call] = {
    "softmax": softlane.softmax,
    "log_softmax": softlane.log_softmax,
    "logsumexp": softlane.logsumexp,
    "cross_entropy": loss_and_grad,
    "softmax_backward": softmax_backward,
    "log_softmax_backward": log_softmax_backward,
}
ELEMENTWISE = {name: CALLS[name] for name in CALLS if name not in ("logsumexp", "cross_entropy")}
FLOAT_ONLY = ("softmax_backward", "log_softmax_backward")


def assert_same(got: Any, expected: Any, label: str = "") -> None:
    """The same bits; from the generic set, which promises accuracy alone, up to 4 ulp of the largest."""
    if not isinstance(expected, tuple):
        got, expected = (got,), (expected,)
    for a, b in zip(got, expected, strict=True):
        if _core.get_isa() in FUSED:
            assert_same_bits(a, b, label)
        else:
            assert_close(np.asarray(a), np.asarray(b), label)


def assert_close(a: Array, b: Array, label: str) -> None:
    a, b = (v if v.dtype == BFLOAT16 else v.astype(v.dtype.newbyteorder("=")) for v in (a, b))
    assert a.shape == b.shape and a.dtype == b.dtype, f"{label}: {a.shape} {a.dtype}"
    if a.size:
        size = np.abs(oracle.wide(b))
        largest = np.max(size, where=np.isfinite(size), initial=0)
        error = oracle.ulp_error(a, oracle.wide(b), np.full(b.shape, largest))
        assert error.max() <= 4, f"{label}: {float(error.max())} ulp of the largest element apart"


def sample(dtype: DType, shape: tuple[int, ...]) -> Array:
    rng = rng_for("layout", shape)
    if dtype.kind == "b":
        result: Array = rng.random(shape) < 0.5
        return result
    if dtype.kind in "iu":
        return rng.integers(0, 60, shape).astype(dtype)
    return to_dtype(3 * rng.standard_normal(shape), dtype)


# Strides and axes


@every_layout
@every_float
@pytest.mark.parametrize("name", list(CALLS))
def test_layouts_and_axes(isa: str, name: str, dtype: DType, layout: str) -> None:
    call = CALLS[name]
    for shape in ((5, 7), (3, 4, 37), (2, 33, 5), (70, 3)):
        x = sample(dtype, shape)
        view = LAYOUTS[layout](x)
        kept = view.copy()
        for axis in range(len(shape)):
            assert_same(call(view, axis), call(x, axis), f"shape {shape}, axis {axis}")
        assert_same_bits(view, kept, "the input")


@every_layout
@pytest.mark.parametrize("name", [n for n in CALLS if n != "cross_entropy"])
def test_layouts_and_tuples_of_axes(isa: str, name: str, layout: str) -> None:
    call = CALLS[name]
    for dtype in FLOATS:
        x = sample(dtype, (3, 4, 5, 6))
        view = LAYOUTS[layout](x)
        for axis in (
            (0, 1),
            (1, 2),
            (2, 3),
            (0, 2),
            (3, 0),
            (1, 3),
            (0, 1, 2),
            (-1, 0, -2),
            None,
            (),
        ):
            assert_same(call(view, axis), call(x, axis), f"axis {axis}")


@pytest.mark.parametrize("name", [n for n in CALLS if n not in FLOAT_ONLY])
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: d.char)
def test_layouts_of_integers(isa: str, name: str, dtype: DType) -> None:
    call = CALLS[name]
    x = sample(dtype, (4, 37))
    for layout, view_of in LAYOUTS.items():
        for axis in (0, 1):
            assert_same(call(view_of(x), axis), call(x, axis), f"{layout}, axis {axis}")
    assert_same(call(x), call(x.astype(np.float64)), "as float64")


@every_float
@pytest.mark.parametrize("name", list(CALLS))
def test_zero_strides(isa: str, name: str, dtype: DType) -> None:
    call = CALLS[name]
    row = sample(dtype, (37,))
    for view in (
        np.broadcast_to(row, (5, 37)),
        np.broadcast_to(row[:, None], (37, 5)),
        np.broadcast_to(row[3], (4, 6)),
        np.broadcast_to(row[:, None], (2, 37, 3)),
    ):
        assert not view.flags.writeable
        for axis in range(view.ndim):
            assert_same(call(view, axis), call(view.copy(), axis), f"strides {view.strides}")


@every_float
@pytest.mark.parametrize("name", list(CALLS))
def test_overlapping_windows(isa: str, name: str, dtype: DType) -> None:
    view = np.lib.stride_tricks.sliding_window_view(sample(dtype, (60,)), 20)
    for axis in (0, 1):
        assert_same(CALLS[name](view, axis), CALLS[name](view.copy(), axis))


@pytest.mark.parametrize("name", list(CALLS))
def test_many_dimensions(isa: str, name: str) -> None:
    x = sample(np.dtype(np.float32), (2,) * 12)
    for axis in (0, 5, 11):
        assert_same(CALLS[name](x.T, axis), CALLS[name](x.T.copy(), axis))
    y = sample(np.dtype(np.float64), (1,) * 20 + (3, 1, 4) + (1,) * 9)
    for axis in (20, 22, 31, 0):
        got, expected = CALLS[name](y, axis), CALLS[name](np.asfortranarray(y), axis)
        assert_same(got, expected)


@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_axes_of_length_one(isa: str, name: str) -> None:
    """Strides of an axis of length one mean nothing, whatever they are."""
    x = sample(np.dtype(np.float32), (5, 16))
    odd = np.lib.stride_tricks.as_strided(x, (5, 1, 16, 1), (x.strides[0], 12345677, 4, -999))
    for axis in range(4):
        assert_same(CALLS[name](odd, axis), CALLS[name](odd.copy(), axis))


# Long rows: packed in chunks

LONG = 2**17 + 1000


@pytest.mark.parametrize("name", list(CALLS))
@every_float
def test_long_rows_in_every_layout(isa: str, name: str, dtype: DType) -> None:
    call = CALLS[name]
    x = sample(dtype, (2, LONG))
    x[0, -1] = 30
    x[1, LONG // 2] = 25
    expected = call(x)
    for layout in (
        "fortran",
        "reversed last",
        "step two",
        "unaligned",
        "byte-swapped",
        "record field",
    ):
        assert_same(call(LAYOUTS[layout](x)), expected, layout)
    columns = call(np.ascontiguousarray(x.T), 0)
    if isinstance(expected, tuple):
        assert_same(columns, (expected[0], expected[1].T))
    else:
        assert_same(columns, expected.T)


@pytest.mark.parametrize("name", [n for n in CALLS if n != "cross_entropy"])
def test_long_rows_over_several_axes(isa: str, name: str) -> None:
    x = sample(np.dtype(np.float32), (400, 3, 450))
    flat = CALLS[name](np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(3, -1))
    got = CALLS[name](x, (0, 2))
    if name != "logsumexp":
        got = got.transpose(1, 0, 2).reshape(3, -1)
    assert_same(got, flat)
    assert_same(np.ravel(CALLS[name](x, None)), np.ravel(CALLS[name](x.ravel())))


def test_wide_panels_of_long_columns(isa: str) -> None:
    x = sample(np.dtype(np.float32), (70_001, 5))
    assert_same(softlane.softmax(x, 0), softlane.softmax(np.asfortranarray(x), 0))
    assert_same(softlane.logsumexp(x[::-1], 0), softlane.logsumexp(x[::-1].copy(), 0))


# Outputs


@every_layout
@every_float
@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_out_of_every_layout(isa: str, name: str, dtype: DType, layout: str) -> None:
    for shape, axis in (((5, 37), -1), ((37, 5), 0), ((3, 17, 4), 1), ((3, 4, 5), (0, 2))):
        x = sample(dtype, shape)
        out = LAYOUTS[layout](np.full(shape, 7, dtype))
        assert CALLS[name](x, axis, out=out) is out
        assert_same(out, CALLS[name](x, axis), f"shape {shape}")


@every_layout
@every_float
@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_in_place(isa: str, name: str, dtype: DType, layout: str) -> None:
    for shape, axis in (((5, 37), -1), ((37, 5), 0), ((3, 17, 4), 1), ((3, 4, 5), (0, 2))):
        x = sample(dtype, shape)
        expected = CALLS[name](x, axis)
        view = LAYOUTS[layout](x)
        assert CALLS[name](view, axis, out=view) is view
        assert_same(view, expected, f"shape {shape}")


@every_float
def test_writes_stay_inside_out(isa: str, dtype: DType) -> None:
    for n in (1, 3, 15, 16, 17, 33, 65):
        for step in (1, 2, -1, -3):
            room = np.full((7, 4 * n + 20), 77, dtype)
            columns = slice(10, 10 + n * step, step) if step > 0 else slice(9 + 3 * n, None, step)
            view = room[1:6, columns][:, :n]
            outside = np.ones(room.shape, bool)
            outside[1:6, columns][:, :n] = False
            x = sample(dtype, view.shape)
            for axis in (0, 1):
                softlane.softmax(x, axis, out=view)
                assert (room[outside] == 77).all(), f"n {n}, step {step}, axis {axis}"
                assert_same(view, softlane.softmax(x, axis))


@every_float
@pytest.mark.parametrize("to", FLOATS, ids=dtype_id)
def test_out_with_dtype(isa: str, dtype: DType, to: DType) -> None:
    x = sample(dtype, (5, 37))
    out = np.empty(x.shape, to)
    assert softlane.softmax(x, dtype=to, out=out) is out
    assert_same(out, softlane.softmax(x, dtype=to))
    reduced = np.empty(5, to)
    assert softlane.logsumexp(x, dtype=to, out=reduced) is reduced
    assert_same(reduced, softlane.logsumexp(x, dtype=to))


def test_out_for_zero_dimensional_and_empty_results(isa: str) -> None:
    out: Array = np.array(7.0)
    assert softlane.softmax(2.0, out=out) is out and out == 1
    assert softlane.logsumexp([0.0, 0.0], out=out) is out and out == np.log(2)
    assert softlane.cross_entropy(np.zeros((3, 4)), [0, 1, 2], out=out) is out
    assert abs(out - np.log(4)) < 1e-15
    empty = np.empty((0, 3))
    assert softlane.softmax(empty.copy(), out=empty) is empty


BUFFERS: dict[str, Callable[[int], Any]] = {
    "array.array": lambda n: array.array("d", [7.0] * n),
    "memoryview": lambda n: exported(np.full(n, 7.0)),
    "strided memoryview": lambda n: exported(np.full(2 * n, 7.0))[::2],
    "ctypes": lambda n: (ctypes.c_double * n)(*([7.0] * n)),
    "cast memoryview of a bytearray": lambda n: memoryview(bytearray(8 * n)).cast("d"),
}


@pytest.mark.parametrize("kind", list(BUFFERS))
def test_out_may_be_any_writable_buffer(isa: str, kind: str) -> None:
    x = sample(np.dtype(np.float64), (19,))
    for name in ELEMENTWISE:
        out = BUFFERS[kind](19)
        assert CALLS[name](x, out=out) is out
        assert_same(np.asarray(out), CALLS[name](x), name)


# Overlap: as if there were none

OVERLAPS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "shifted forward": lambda a: (a[:, :-3], a[:, 3:]),
    "shifted back": lambda a: (a[:, 3:], a[:, :-3]),
    "next row": lambda a: (a[:-1], a[1:]),
    "row before": lambda a: (a[1:], a[:-1]),
    "reversed rows": lambda a: (a, a[::-1]),
    "reversed columns": lambda a: (a, a[:, ::-1]),
    "transposed": lambda a: (a[:12, :12], a[:12, :12].T),
    "interleaved": lambda a: (a[:, 0:30:2], a[:, 1:31:2]),
    "same": lambda a: (a, a),
    "halves": lambda a: (a[:, :20], a[:, 20:40]),
}


@pytest.mark.parametrize("overlap", list(OVERLAPS))
@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_output_overlapping_the_input(isa: str, name: str, overlap: str) -> None:
    for dtype in FLOATS:
        for axis in (0, 1):
            room = sample(dtype, (12, 40))
            x, out = OVERLAPS[overlap](room)
            expected = CALLS[name](x.copy(), axis)
            assert CALLS[name](x, axis, out=out) is out
            assert_same(out, expected, f"axis {axis}")


def test_overlap_of_different_dtypes_in_the_same_memory(isa: str) -> None:
    room = np.zeros(64, np.float64)
    x = room.view(np.float32)[:40]
    x[:] = sample(np.dtype(np.float32), (40,))
    expected = softlane.softmax(x.copy(), dtype=np.float64)
    assert_same(softlane.softmax(x, dtype=np.float64, out=room[:40]), expected)
    targets = np.arange(8) % 5
    room_2 = np.zeros(8 * 5 * 8, np.uint8)
    y = room_2[: 8 * 8].view(np.int64)
    y[:] = targets
    logits = sample(np.dtype(np.float64), (8, 5))
    loss, grad = softlane.cross_entropy_with_grad(logits, targets)
    loss_2, grad_2 = softlane.cross_entropy_with_grad(
        logits, y, grad_out=room_2.view(np.float64).reshape(8, 5)
    )
    assert_same(loss_2, loss)
    assert_same(grad_2, grad)


def test_every_output_may_overlap_every_input(isa: str) -> None:
    """Outputs over where, weight, sample_weight, b, targets and grad_output."""
    x = sample(np.dtype(np.float64), (4, 8))
    rng = rng_for("overlap")

    room = np.zeros((4, 8))
    mask = room.view(np.bool_)[:, :8]
    mask[...] = rng.random((4, 8)) < 0.7
    expected = softlane.softmax(x, where=mask.copy())
    assert_same(softlane.softmax(x, where=mask, out=room), expected, "where")

    options: dict[str, Any]
    for name in ("weight", "sample_weight"):
        for turn in (False, True):
            room = rng.uniform(1, 2, (4, 8))
            options = {name: (room[2] if name == "weight" else room[:, 3]).copy()}
            expected_loss, expected_grad = softlane.cross_entropy_with_grad(
                x, [0, 1, 2, 3], **options
            )
            options = {name: room[2] if name == "weight" else room[:, 3]}
            out = room[::-1] if turn else room
            loss, grad = softlane.cross_entropy_with_grad(x, [0, 1, 2, 3], grad_out=out, **options)
            assert_same(loss, expected_loss, name)
            assert_same(grad, expected_grad, name)

    room = rng.uniform(1, 2, (4, 8))
    expected = softlane.logsumexp(x, b=room.copy())
    assert_same(softlane.logsumexp(x, b=room, out=room[:, 0]), expected, "b")
    room = x.copy()
    expected = softlane.logsumexp(room.copy())
    assert_same(softlane.logsumexp(room, out=room[:, 7]), expected, "logsumexp over x")
    room = x.copy()
    expected = softlane.cross_entropy(room.copy(), [0, 1, 2, 3], reduction="none")
    got = softlane.cross_entropy(room, [0, 1, 2, 3], reduction="none", out=room[:, 1])
    assert_same(got, expected, "loss over the logits")
    y = np.array([0, 1, 2, 3])
    got = softlane.cross_entropy(x, y, reduction="none", out=y.view(np.float64))
    assert_same(got, expected, "loss over the targets")


# Exporters


def exporters(tmp_path: Path) -> dict[str, tuple[Any, Array]]:
    """Objects of one or two dimensions with the array that each stands for."""
    row = sample(np.dtype(np.float64), (24,))
    raw = row.tobytes()
    single = row.astype(np.float32)
    path = tmp_path / "row"
    path.write_bytes(raw)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    matrix = ((ctypes.c_float * 6) * 4)()
    np.asarray(matrix)[...] = single.reshape(4, 6)

    class WithArray:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            return row.reshape(4, 6) if dtype is None else row.reshape(4, 6).astype(dtype)

    class WithDlpack:
        def __dlpack__(self, **options: Any) -> Any:
            return row.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return row.__dlpack_device__()

    class Matrix(np.ndarray[Any, Any]):
        pass

    memory = np.memmap(path, np.float64, "r", shape=(4, 6))
    return {
        "memoryview": (exported(row.reshape(4, 6)), row.reshape(4, 6)),
        "memoryview of float32": (exported(single)[::-2], single[::-2]),
        "array of double": (array.array("d", row), row),
        "array of float": (array.array("f", single), single),
        "array of short": (array.array("h", [1, -2, 3]), np.array([1, -2, 3])),
        "array of unsigned char": (array.array("B", [1, 2, 255]), np.array([1, 2, 255])),
        "bytearray": (bytearray([1, 2, 255]), np.array([1, 2, 255])),
        "bytes": (b"\x01\x02\xff", np.array([1, 2, 255])),
        "mmap": (mapped, np.frombuffer(raw, np.uint8)),
        "memmap": (memory, row.reshape(4, 6)),
        "ctypes array": (matrix, single.reshape(4, 6)),
        "cast bytes": (memoryview(raw).cast("d", (2, 12)), row.reshape(2, 12)),
        "__array__": (WithArray(), row.reshape(4, 6)),
        "__dlpack__": (WithDlpack(), row),
        "subclass": (row.reshape(4, 6).view(Matrix), row.reshape(4, 6)),
        "nested list": (row.reshape(4, 6).tolist(), row.reshape(4, 6)),
        "tuple of lists": (tuple(row.reshape(4, 6).tolist()), row.reshape(4, 6)),
        "list of arrays": (list(row.reshape(4, 6)), row.reshape(4, 6)),
        "list of ints": ([3, 1, 2], np.array([3, 1, 2])),
        "list of bools": ([True, False], np.array([True, False])),
        "range": (range(5), np.arange(5)),
    }


def test_exporters(isa: str, tmp_path: Path) -> None:
    for kind, (source, values) in exporters(tmp_path).items():
        for name, call in CALLS.items():
            if name in FLOAT_ONLY and values.dtype.kind != "f":
                continue
            if name == "cross_entropy":
                targets = np.zeros(values.shape[:-1], int)
                got = softlane.cross_entropy(source, targets, reduction="none")
                expected = softlane.cross_entropy(values, targets, reduction="none")
            else:
                got, expected = call(source), call(values)
            assert_same(got, expected, f"{name} of {kind}")
            assert type(got) in (np.ndarray, np.float64, np.float32), kind


def test_read_only_input(isa: str) -> None:
    for dtype in FLOATS:
        x = sample(dtype, (5, 37))
        frozen = x.copy()
        frozen.flags.writeable = False
        for name, call in CALLS.items():
            assert_same(call(frozen), call(x), name)


def test_input_flags_do_not_leak_into_results(isa: str) -> None:
    frozen = np.broadcast_to(sample(np.dtype(np.float32), (37,)), (5, 37))
    got = softlane.softmax(frozen)
    got[...] = 1
    assert not np.shares_memory(got[0], got[1])


@pytest.mark.skipif(BFLOAT16 is None, reason="ml_dtypes is not installed")
def test_bfloat16_layouts(isa: str) -> None:
    x = sample(BFLOAT16, (6, 40))
    wide = x.astype(np.float32)
    for axis in (0, 1):
        expected = softlane.softmax(wide, axis, dtype=BFLOAT16)
        for layout, view_of in LAYOUTS.items():
            assert_same(softlane.softmax(view_of(x), axis), expected, layout)


# where


@every_layout
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy"])
def test_where_of_every_layout(isa: str, name: str, layout: str) -> None:
    mask = rng_for("where").random((6, 37)) < 0.7
    mask[np.arange(6), np.arange(6)] = True
    mask[:, 0] = True
    mask[np.arange(37) % 6, np.arange(37)] = True
    for dtype in FLOATS:
        x = sample(dtype, (6, 37))
        for axis in (0, 1):
            expected = CALLS[name](x, axis, where=mask)
            view = LAYOUTS[layout](x)
            assert_same(CALLS[name](view, axis, where=mask), expected, "x")
            if layout not in ("byte-swapped", "swapped, reversed"):
                assert_same(CALLS[name](view, axis, where=LAYOUTS[layout](mask)), expected, "both")


def test_long_rows_with_where(isa: str) -> None:
    x = sample(np.dtype(np.float32), (2, LONG))
    mask = rng_for("where").random(LONG) < 0.5
    for call in (softlane.softmax, softlane.log_softmax, softlane.logsumexp):
        expected = call(x, where=np.broadcast_to(mask, x.shape).copy())
        assert_same(call(x, where=mask), expected)
        assert_same(call(np.asfortranarray(x), where=mask), expected)
        columns = call(x.T.copy(), 0, where=mask[:, None])
        assert_same(columns.T, expected)


# Shapes, strides and dtypes by hypothesis


@st.composite
def views(draw: st.DrawFn) -> tuple[Array, Any]:
    """A view of any strides over random values, and an axis argument for it."""
    dtype = draw(st.sampled_from(FLOATS + INTEGERS))
    ndim = draw(st.integers(0, 4))
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=ndim, max_size=ndim)))
    if ndim and draw(st.booleans()):
        shape = (*shape[:-1], draw(st.sampled_from([15, 16, 17, 31, 33, 64, 100])))
    x = sample(dtype, shape)
    steps = draw(st.lists(st.sampled_from([1, 1, 2, 3, -1, -2]), min_size=ndim, max_size=ndim))
    view = strided(x, steps) if ndim else x
    order = draw(st.permutations(range(ndim)))
    view = view.transpose(order)
    if ndim and draw(st.booleans()):
        repeat = draw(st.integers(0, ndim - 1))
        if view.shape[repeat]:
            first = view[(slice(None),) * repeat + (slice(0, 1),)]
            view = np.broadcast_to(first, view.shape)
    view = draw(st.sampled_from([lambda a: a, unaligned, swapped]))(view)
    axes = st.integers(-ndim, ndim - 1) if ndim else st.sampled_from([-1, 0])
    some = st.sets(st.integers(0, max(ndim - 1, 0)), max_size=ndim).map(tuple)
    axis = draw(st.one_of(axes, some, st.none()) if ndim else st.one_of(axes, st.none()))
    return view, axis


sets = st.sampled_from(_core.isas_usable())


@given(views(), sets, st.booleans(), st.integers(0, 3))
def test_any_view_gives_the_bits_of_its_copy(
    case: tuple[Array, Any], isa: str, masked: bool, seed: int
) -> None:
    view, axis = case
    x = np.array(view, dtype=view.dtype.newbyteorder("="), order="C", copy=True)
    where = np.asarray(np.random.default_rng(seed).random(x.shape) < 0.7) if masked else None
    with using(isa):
        for call in (softlane.softmax, softlane.log_softmax, softlane.logsumexp):
            got = call(view, axis, where=where)
            assert_same(got, call(x, axis, where=where))
        got = softlane.softmax(view, axis)
    assert got.shape == view.shape and got.dtype == elementwise_dtype(x.dtype)
    if x.size and axis != ():
        np.testing.assert_allclose(
            got.astype(float).sum(axis), 1, rtol=0.02 if x.dtype.itemsize < 4 else 1e-5
        )


@given(views(), sets, st.booleans())
def test_any_output_gives_the_bits_of_a_new_one(
    case: tuple[Array, Any], isa: str, in_place: bool
) -> None:
    view, axis = case
    dtype = elementwise_dtype(view.dtype.newbyteorder("="))
    with using(isa):
        expected = softlane.softmax(view, axis)
        if in_place and view.flags.writeable and view.dtype.newbyteorder("=") == dtype:
            out = view
        else:
            out = np.full(view.shape[::-1], 7, dtype).T
        assert softlane.softmax(view, axis, out=out) is out
    assert_same(out, expected)


@given(
    st.integers(0, 5),
    st.integers(1, 70),
    st.sampled_from(FLOATS),
    st.sampled_from(list(LAYOUTS)),
    sets,
)
def test_any_cross_entropy_layout(
    count: int, classes: int, dtype: DType, layout: str, isa: str
) -> None:
    x = sample(dtype, (count, classes))
    with using(isa):
        for axis, values in ((1, x), (0, x.T)):
            got = loss_and_grad(LAYOUTS[layout](values), axis)
            assert_same(got, loss_and_grad(values.copy(), axis))
