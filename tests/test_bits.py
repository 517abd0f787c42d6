"""The same bits: whatever the batch, the place in it, axis, strides, alignment, threads, size and instruction set."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import softlane
from softlane import _core
from support import (
    FEW_TAILS,
    FLOATS,
    FUSED,
    INTEGERS,
    Array,
    DType,
    assert_same_bits,
    bits,
    dtype_id,
    make_rows,
    rng_for,
    strided,
    threads,
    to_dtype,
    using,
)

every_float = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
# Lengths at which something changes: lanes of a panel, rows that make a panel, a block of a sum, samples at a time;
# rows of which 16, fewer or only one make a block (256 to 12288); columns whose exps fit the scratch; one chunk of a
# packed row and two, the work that is worth a thread; half types' rows whose exps fit the scratch.
THRESHOLDS = (
    16,
    64,
    128,
    256,
    384,
    768,
    1024,
    2048,
    3072,
    6144,
    8192,
    12288,
    16384,
    30720,
    32768,
    61440,
    65536,
    131072,
)
AROUND = [n + d for n in THRESHOLDS for d in (-1, 0, 1)]

# Each call takes rows (count, n) with targets and an incoming gradient, and gives arrays whose first axis is the row.


class Rows:
    """Rows of logits with everything that goes with a row."""

    def __init__(self, x: Array, seed: int = 0) -> None:
        count, n = x.shape
        rng = rng_for("bits", count, n, seed)
        self.x = x
        self.targets = np.asarray(rng.integers(0, n, count))
        self.g = to_dtype(rng.standard_normal((count, n)), x.dtype)
        self.b = to_dtype(rng.standard_normal((count, n)), x.dtype)
        self.weight = rng.uniform(0.5, 2, n)
        self.sample_weight = rng.uniform(0.5, 2, count)
        self.where = rng.random((count, n)) < 0.8
        self.where[np.arange(count), self.targets] = True
        self.y = np.empty_like(x)

    def pick(self, chosen: Any) -> Rows:
        """Some of the rows, as a batch of their own."""
        other = object.__new__(Rows)
        for name, value in vars(self).items():
            setattr(other, name, value if name == "weight" else np.ascontiguousarray(value[chosen]))
        return other


def _loss(
    r: Rows, axis: int, turn: Callable[[Array], Array], targets: Any = None, **options: Any
) -> list[Array]:
    loss, grad = softlane.cross_entropy_with_grad(
        turn(r.x), r.targets if targets is None else targets, axis, reduction="none", **options
    )
    return [loss, turn(grad)]


CALLS: dict[str, Callable[[Rows, int, Callable[[Array], Array]], list[Array]]] = {
    "softmax": lambda r, axis, turn: [turn(softlane.softmax(turn(r.x), axis))],
    "log_softmax": lambda r, axis, turn: [turn(softlane.log_softmax(turn(r.x), axis))],
    "softmax with temperature": lambda r, axis, turn: [
        turn(softlane.softmax(turn(r.x), axis, temperature=0.7))
    ],
    "softmax with where": lambda r, axis, turn: [
        turn(softlane.softmax(turn(r.x), axis, where=turn(r.where)))
    ],
    "log_softmax to float64": lambda r, axis, turn: [
        turn(softlane.log_softmax(turn(r.x), axis, dtype=np.float64))
    ],
    "logsumexp": lambda r, axis, turn: [softlane.logsumexp(turn(r.x), axis)],
    "logsumexp with b": lambda r, axis, turn: list(
        softlane.logsumexp(turn(r.x), axis, b=turn(r.b), return_sign=True)
    ),
    "logsumexp with where": lambda r, axis, turn: [
        softlane.logsumexp(turn(r.x), axis, where=turn(r.where))
    ],
    "cross_entropy": lambda r, axis, turn: _loss(r, axis, turn),
    "cross_entropy with everything": lambda r, axis, turn: _loss(
        r,
        axis,
        turn,
        weight=r.weight,
        sample_weight=r.sample_weight,
        label_smoothing=0.1,
        temperature=1.3,
        where=turn(r.where),
    ),
    "cross_entropy with z_loss and softcap": lambda r, axis, turn: _loss(
        r, axis, turn, z_loss=1e-2, softcap=20.0
    ),
    "cross_entropy of probabilities": lambda r, axis, turn: _loss(
        r, axis, turn, targets=turn(r.y), weight=r.weight, label_smoothing=0.1
    ),
    "softmax_backward": lambda r, axis, turn: [
        turn(softlane.softmax_backward(turn(r.g), turn(r.y), axis))
    ],
    "log_softmax_backward": lambda r, axis, turn: [
        turn(softlane.log_softmax_backward(turn(r.g), turn(-np.abs(r.x)), axis))
    ],
    "both backward with temperature": lambda r, axis, turn: [
        turn(softlane.softmax_backward(turn(r.g), turn(r.y), axis, temperature=0.7)),
        turn(softlane.log_softmax_backward(turn(r.g), turn(-np.abs(r.x)), axis, temperature=0.7)),
    ],
}
every_call = pytest.mark.parametrize("name", list(CALLS))


def identity(x: Array) -> Array:
    return x


def transpose(x: Array) -> Array:
    return x.T


def packed_transpose(x: Array) -> Array:
    return np.ascontiguousarray(x.T)


def finite_rows(x: Array) -> Array:
    return np.asarray(np.isfinite(x).all(axis=-1))


def rows_of(dtype: DType, n: int, count: int | None = None) -> Rows:
    """Rows of every kind, or `count` plain ones where a row is long."""
    if count is None:
        _, x = make_rows(dtype, n)
    else:
        x = to_dtype(3 * rng_for("rows", n).standard_normal((count, n)), dtype)
        x[0, -1] = 40
    result = Rows(x)
    result.y = softlane.softmax(result.x)
    return result


def assert_rows(got: list[Array], expected: list[Array], label: str, chosen: Any = None) -> None:
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(a, b if chosen is None else b[chosen], label)


# A row and its surroundings


@every_call
@every_float
def test_a_batch_of_one_against_any_place_in_any_batch(
    fused_isa: str, name: str, dtype: DType
) -> None:
    for n in FEW_TAILS:
        rows = rows_of(dtype, n)
        expected = CALLS[name](rows, -1, identity)
        count = len(rows.x)
        for i in range(0, count, 1 if n < 70 else 5):
            got = CALLS[name](rows.pick([i]), -1, identity)
            assert_rows(got, expected, f"row {i} of length {n} alone", [i])
        for chosen in (slice(1, None), slice(None, None, 3), slice(None, None, -1), slice(0, 2)):
            got = CALLS[name](rows.pick(chosen), -1, identity)
            assert_rows(got, expected, f"rows {chosen} of length {n}", chosen)


@every_call
@every_float
def test_rows_against_columns(fused_isa: str, name: str, dtype: DType) -> None:
    """The last axis against the first, contiguous columns against strided rows, panels of any width."""
    for n in FEW_TAILS:
        rows = rows_of(dtype, n)
        expected = CALLS[name](rows, -1, identity)
        assert_rows(CALLS[name](rows, 0, packed_transpose), expected, f"columns of length {n}")
        assert_rows(CALLS[name](rows, 0, transpose), expected, f"rows of length {n} as axis 0")
        for width in (1, 2, 3, 5, 7, 9, 15, 17):
            chosen = slice(4, 4 + width)
            got = CALLS[name](rows.pick(chosen), 0, packed_transpose)
            assert_rows(got, expected, f"{width} columns of length {n}", chosen)


# Lengths of columns with the bytes from row to row: in one set of a cache's lines or two (copied if short enough, or
# worked on in groups of panels), nearly so, in all of them, and far apart.
COLUMNS = [
    *((n, distance) for n in (7, 8, 9, 33, 200, 257, 600) for distance in (4096, 2048, 4112, 4064)),
    *((n, 2048) for n in (1500, 4096, 4097, 8192, 8193)),
    *((n, 400_000) for n in (8, 9, 20, 21)),
]


@every_call
@every_float
def test_columns_at_any_distance(fused_isa: str, name: str, dtype: DType) -> None:
    for n, distance in COLUMNS:
        rows = rows_of(dtype, n) if n < 1000 else rows_of(dtype, n, 4)
        count = min(90, distance // (2 * dtype.itemsize))
        chosen = np.arange(count) % len(rows.x)
        expected = CALLS[name](rows, -1, identity)
        several = rows.pick(chosen)
        for start in (0, 3):

            def place(x: Array, at: slice = slice(start, start + count)) -> Array:
                if x.shape == (n, count):  # a result
                    return x.T
                room = np.zeros((n, distance // x.itemsize), x.dtype)
                room[:, at] = x.T
                return room[:, at]

            got = CALLS[name](several, 0, place)
            assert_rows(got, expected, f"{n} rows {distance} bytes apart", chosen)


# More than a panel, less than a group, whose panels then overlap, whole groups and what is left of several.
WIDTHS = (17, 31, 32, 33, 47, 48, 63, 64, 65, 79, 80, 81, 100, 112, 127, 128, 129)


def far_apart(x: Array, first: int = 0) -> Array:
    """The rows of x as columns, from `first` on of an array that is larger than an L2 cache."""
    count, n = x.shape
    distance = max((600 << 10) // n // x.itemsize, count + first)
    room = np.zeros((n, distance), x.dtype)
    room[:, first : first + count] = x.T
    return room[:, first : first + count]


@every_call
@every_float
@pytest.mark.parametrize("n", [1, 3, 16, 20, 300, 2100, 8200])
def test_groups_of_columns(fused_isa: str, name: str, dtype: DType, n: int) -> None:
    """Any number of columns of a large array; the last three are not ordinary, and come elsewhere at last."""
    count = 131 if n < 8000 else 41
    x = to_dtype(3 * rng_for("groups", n).standard_normal((count, n)), dtype)
    x[-3], x[-2, n // 2], x[-1, 0] = 0, -np.inf, np.nan
    rows = Rows(x)
    rows.targets[::7] = -100
    rows.y = softlane.softmax(rows.x)
    expected = CALLS[name](rows, -1, identity)
    for width in (*(WIDTHS if n < 1000 else (16, 17, 64, 100)), count):
        if width > count:
            continue
        chosen = np.arange(width) if width < count else (np.arange(count) + 20) % count
        several = rows.pick(chosen)
        for first in (0, 5):

            def turn(a: Array, first: int = first) -> Array:
                return far_apart(a, first) if a.shape[1] == n else a.T

            got = CALLS[name](several, 0, turn)
            assert_rows(got, expected, f"{width} columns from {first}", chosen)


@every_float
def test_options_of_losses_of_long_columns(fused_isa: str, dtype: DType) -> None:
    """Longer than copies of half types may be."""
    n = 8200
    rng = rng_for("long columns", n)
    rows = Rows(to_dtype(3 * rng.standard_normal((20, n)), dtype))
    rows.x[7, 5], rows.x[9, 3] = -np.inf, np.nan
    rows.targets[::6] = -100
    columns = np.ascontiguousarray(rows.x.T)
    losses: Callable[..., Any] = softlane.cross_entropy_with_grad
    for options in (
        {"label_smoothing": 0.1, "weight": rows.weight, "sample_weight": rows.sample_weight},
        {"weight": rows.weight, "sample_weight": rows.sample_weight, "temperature": 0.7},
        {"z_loss": 1e-2, "temperature": 2.0},
        {"sample_weight": np.where(np.arange(20) % 3 == 0, 0.0, -rows.sample_weight)},
        {"weight": np.where(np.arange(n) % 2 == 0, 0.0, rows.weight)},
        {"sample_weight": np.where(np.arange(20) % 4 == 0, -0.0, 1.0)},
    ):
        loss, grad, stats = losses(
            rows.x, rows.targets, reduction="none", return_stats=True, **options
        )
        got_loss, got_grad, got_stats = losses(
            columns, rows.targets, 0, reduction="none", return_stats=True, **options
        )
        assert_same_bits(got_loss, loss, f"{options.keys()}")
        assert_same_bits(got_grad.T, grad, f"{options.keys()}")
        for field in stats._fields:
            assert_same_bits(getattr(got_stats, field), getattr(stats, field), field)
        plain_loss, plain_grad = losses(columns, rows.targets, 0, reduction="none", **options)
        assert_same_bits(plain_loss, loss, f"{options.keys()}, without statistics")
        assert_same_bits(plain_grad.T, grad, f"{options.keys()}, without statistics")


@every_float
@pytest.mark.parametrize("n", [20, 300, 2100, 8200])
def test_groups_of_columns_in_place(fused_isa: str, dtype: DType, n: int) -> None:
    rng = rng_for("groups in place", n)
    x, g = (to_dtype(3 * rng.standard_normal((129, n)), dtype) for _ in range(2))
    x[70, 1], g[75] = -np.inf, 0  # both are refused
    y, log_y = softlane.softmax(x), softlane.log_softmax(x)
    targets = rng.integers(2, n, 129)

    def loss(x: Array, y: Array, axis: int, out: Array | None) -> Array:
        count = len(y) if axis == -1 else y.shape[1]
        options: Any = {"reduction": "none", "grad_out": out}
        return np.asarray(softlane.cross_entropy_with_grad(x, targets[:count], axis, **options)[1])

    calls: dict[str, tuple[Array, Array, Callable[[Array, Array, int, Any], Array]]] = {
        "softmax": (x, y, lambda x, y, axis, out: softlane.softmax(x, axis, out=out)),
        "log_softmax": (x, y, lambda x, y, axis, out: softlane.log_softmax(x, axis, out=out)),
        "cross_entropy": (x, y, loss),
        "softmax_backward": (
            g,
            y,
            lambda g, y, axis, out: softlane.softmax_backward(g, y, axis, out=out),
        ),
        "log_softmax_backward": (
            g,
            log_y,
            lambda g, y, axis, out: softlane.log_softmax_backward(g, y, axis, out=out),
        ),
    }
    for name, (given, other, call) in calls.items():
        expected = call(given, other, -1, None)
        for width in WIDTHS if n < 1000 else (17, 64, 80):
            columns = far_apart(given[:width], 5)
            call(columns, far_apart(other[:width], 3), 0, columns)
            assert_same_bits(columns.T, expected[:width], f"{name} of {width} columns")


@pytest.mark.parametrize("call", [softlane.softmax, softlane.log_softmax])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("n", [5, 40, 300, 600, 2048, 2049])
def test_columns_of_large_arrays(
    fused_isa: str, call: Callable[..., Array], temperature: float, n: int
) -> None:
    """Several panels are worked on row by row; those that are not ordinary, among them, alone."""
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        special = rows_of(dtype, n).x
        ordinary = rng_for("large", n).standard_normal(((600 << 10) // n // dtype.itemsize, n))
        x = np.concatenate([ordinary.astype(dtype), special, ordinary[:200].astype(dtype)])
        columns = np.ascontiguousarray(x.T)
        expected = call(x, temperature=temperature)
        for first in (0, 3):
            part = columns[:, first:].copy()
            got = call(part, axis=0, temperature=temperature)
            assert_same_bits(got.T, expected[first:], f"{dtype}, from {first}")
            call(part, axis=0, temperature=temperature, out=part)
            assert_same_bits(part.T, expected[first:], f"{dtype}, from {first}, in place")


@every_float
def test_the_last_axis_against_a_middle_one_and_several(fused_isa: str, dtype: DType) -> None:
    for n in FEW_TAILS:
        rows = rows_of(dtype, n, 12)
        x, g, y = (np.reshape(a, (3, 4, n)) for a in (rows.x, rows.g, rows.y))
        middle, g_middle, y_middle = (np.ascontiguousarray(a.swapaxes(1, 2)) for a in (x, g, y))
        targets = rows.targets.reshape(3, 4)
        for function in (softlane.softmax, softlane.log_softmax):
            assert_same_bits(function(middle, 1).swapaxes(1, 2), function(x), f"length {n}")
            several = function(x, (0, 2)).swapaxes(0, 1).reshape(4, 3 * n)
            flat = x.swapaxes(0, 1).reshape(4, 3 * n)
            assert_same_bits(several, function(flat), f"two axes, length 3 x {n}")
        assert_same_bits(softlane.logsumexp(middle, 1), softlane.logsumexp(x), f"length {n}")
        for backward in (softlane.softmax_backward, softlane.log_softmax_backward):
            got = backward(g_middle, y_middle, 1).swapaxes(1, 2)
            assert_same_bits(got, backward(g, y), f"length {n}")
        loss, grad = softlane.cross_entropy_with_grad(x, targets)
        loss_middle, grad_middle = softlane.cross_entropy_with_grad(middle, targets, 1)
        assert_same_bits(loss_middle, loss, f"length {n}")
        assert_same_bits(grad_middle.swapaxes(1, 2), grad, f"length {n}")


@every_call
@every_float
def test_strides_and_alignment(fused_isa: str, name: str, dtype: DType) -> None:
    for n in (1, 3, 8, 17, 33, 64, 129, 1000):
        rows = rows_of(dtype, n)
        expected = CALLS[name](rows, -1, identity)
        for steps in ((1, 2), (1, -1), (-1, 3), (2, 1)):
            got = CALLS[name](rows, -1, lambda x: strided(x, steps) if x is rows.x else x)
            assert_rows(got, expected, f"steps {steps}, length {n}")
        room = np.zeros(rows.x.nbytes + 64, np.uint8)
        for offset in (1, 2, 4, 8, 16, 32, 60):
            view: Array = np.ndarray(rows.x.shape, dtype, buffer=room.data, offset=offset)
            view[...] = rows.x
            got = CALLS[name](rows, -1, lambda x: view if x is rows.x else x)
            assert_rows(got, expected, f"offset {offset}, length {n}")


@every_float
def test_results_at_any_alignment(fused_isa: str, dtype: DType) -> None:
    """Results that begin anywhere in a cache line, in new memory and in place of what they are made of."""
    for n in (63, 64, 66, 129, 200, 1000):
        rows = rows_of(dtype, n)
        log_p = softlane.log_softmax(rows.x)
        calls: dict[str, tuple[Array, Callable[[Array, Array], object]]] = {
            "softmax": (rows.x, lambda x, out: softlane.softmax(x, out=out)),
            "log_softmax": (rows.x, lambda x, out: softlane.log_softmax(x, out=out)),
            "cross_entropy": (
                rows.x,
                lambda x, out: softlane.cross_entropy_with_grad(x, rows.targets, grad_out=out),
            ),
            "softmax_backward": (
                rows.g,
                lambda g, out: softlane.softmax_backward(g, rows.y, out=out),
            ),
            "log_softmax_backward": (
                rows.g,
                lambda g, out: softlane.log_softmax_backward(g, log_p, out=out),
            ),
        }
        room = np.zeros(rows.x.nbytes + 64, np.uint8)
        for name, (x, call) in calls.items():
            expected = np.empty_like(x)
            call(x, expected)
            for offset in range(0, 64, dtype.itemsize):
                out: Array = np.ndarray(x.shape, dtype, buffer=room.data, offset=offset)
                out[...] = 0
                call(x, out)
                assert_same_bits(out, expected, f"{name}, length {n}, offset {offset}")
                out[...] = x
                call(out, out)
                assert_same_bits(out, expected, f"{name}, length {n}, offset {offset}, in place")


@every_float
@pytest.mark.parametrize("n", AROUND)
def test_lengths_around_thresholds(fused_isa: str, dtype: DType, n: int) -> None:
    """Rows, columns, strides, one thread and many, one row and several: of lengths around block sizes."""
    rows = rows_of(dtype, n, 40 if n < 2000 else 17 if n < 20_000 else 2)
    reversed_x = strided(rows.x, (1, -2))
    for name, call in CALLS.items():
        with threads(1):
            expected = call(rows, -1, identity)
        with threads(4):
            assert_rows(call(rows, -1, identity), expected, f"{name}, threads")
            assert_rows(call(rows, 0, packed_transpose), expected, f"{name}, columns")
        assert_rows(call(rows.pick([1]), -1, identity), expected, f"{name}, alone", [1])
        got = call(rows, -1, lambda x: reversed_x if x is rows.x else x)
        assert_rows(got, expected, f"{name}, strided")


@every_call
def test_batches_around_thresholds(fused_isa: str, name: str) -> None:
    """Array sizes on both sides of any threshold on the number of elements, in rows and in columns."""
    rows = rows_of(np.dtype(np.float32), 7, 20_001)
    expected = CALLS[name](rows, -1, identity)
    for count in (
        1,
        2,
        3,
        18,
        19,
        146,
        147,
        255,
        256,
        257,
        585,
        586,
        1170,
        1171,
        2340,
        2341,
        4681,
        4682,
        9363,
        18725,
        20_000,
    ):
        got = CALLS[name](rows.pick(slice(1, 1 + count)), -1, identity)
        assert_rows(got, expected, f"{count} rows", slice(1, 1 + count))
        got = CALLS[name](rows.pick(slice(1, 1 + count)), 0, packed_transpose)
        assert_rows(got, expected, f"{count} columns", slice(1, 1 + count))


@every_call
@every_float
def test_blocks_of_rows(fused_isa: str, name: str, dtype: DType) -> None:
    """Any number of rows, of kinds that take different ways through a block."""
    for n in (65, 129, 500):
        rows = rows_of(dtype, n)
        expected = CALLS[name](rows, -1, identity)
        for start in (0, 13, 29):
            for count in range(2, 18):
                chosen = slice(start, start + count)
                got = CALLS[name](rows.pick(chosen), -1, identity)
                assert_rows(got, expected, f"rows {chosen} of length {n}", chosen)


@every_call
@every_float
def test_logits_of_any_spread(fused_isa: str, name: str, dtype: DType) -> None:
    """Narrow rows are summed in another way, short ones in a third: in each lane of a block almost all are near
    the maximum, and an inexact sum would lose digits of one."""
    rng = rng_for("spread", name)
    low, high = (39, 48) if dtype.itemsize == 8 else (10, 20)
    binades = np.linspace(low, high, 33)
    for n in (20, 40, 100, 128, 300):
        x = rng.uniform(-0.4, 0, (33, n)) + rng.uniform(-9, 9, (33, 1))
        x[:, np.arange(n) % 128 >= 112] -= np.log(2) * binades[:, None]
        x[:, :2] -= np.log(2) * binades[:, None]
        rows = Rows(to_dtype(x, dtype))
        rows.y = softlane.softmax(rows.x)
        alone = [CALLS[name](rows.pick([i]), -1, identity) for i in range(33)]
        expected = [np.concatenate(parts) for parts in zip(*alone, strict=True)]
        assert_rows(CALLS[name](rows, -1, identity), expected, f"rows of length {n}")
        assert_rows(CALLS[name](rows, 0, packed_transpose), expected, f"columns of length {n}")


# Parameters that change nothing


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy"])
@every_float
def test_where_all_true_against_none(fused_isa: str, name: str, dtype: DType) -> None:
    for n in [*FEW_TAILS, 4097]:
        rows = rows_of(dtype, n)
        mask = np.ones(rows.x.shape, bool)
        got: list[Any]
        expected: list[Any]
        for axis, turn in ((-1, identity), (0, packed_transpose)):
            x, full = turn(rows.x), turn(mask)
            for where in (full, np.broadcast_to(True, x.shape), np.True_):
                if name == "cross_entropy":
                    call = functools.partial(
                        softlane.cross_entropy_with_grad, x, rows.targets, axis, reduction="none"
                    )
                    got, expected = list(call(where=where)), list(call())
                else:
                    function = getattr(softlane, name)
                    got, expected = [function(x, axis, where=where)], [function(x, axis)]
                assert_rows(got, expected, f"length {n}, axis {axis}")


@every_float
def test_in_place_against_a_new_array(fused_isa: str, dtype: DType) -> None:
    for n in [*FEW_TAILS, 4097]:
        rows = rows_of(dtype, n)
        for axis, turn in ((-1, identity), (0, packed_transpose)):
            for function in (softlane.softmax, softlane.log_softmax):
                x = turn(rows.x).copy()
                expected = function(x, axis)
                assert_same_bits(function(x, axis, out=x), expected, f"length {n}, axis {axis}")
            for backward in (softlane.softmax_backward, softlane.log_softmax_backward):
                g, y = turn(rows.g).copy(), turn(rows.y)
                expected = backward(g, y, axis)
                assert_same_bits(backward(g, y, axis, out=g), expected, f"length {n}, axis {axis}")
            x = turn(rows.x).copy()
            loss, grad = softlane.cross_entropy_with_grad(x, rows.targets, axis)
            loss_2, grad_2 = softlane.cross_entropy_with_grad(x, rows.targets, axis, grad_out=x)
            assert_same_bits(loss_2, loss)
            assert_same_bits(grad_2, grad)


@every_float
def test_a_parameter_spelled_out_as_its_default(fused_isa: str, dtype: DType) -> None:
    rows = rows_of(dtype, 37)
    x, y = rows.x, rows.targets
    expected = softlane.cross_entropy_with_grad(x, y, reduction="none")
    for options in (
        {"weight": np.ones(37)},
        {"sample_weight": 1.0},
        {"label_smoothing": 0.0},
        {"temperature": 1},
        {"ignore_index": -5},
        {"dtype": None},
        {"where": None},
    ):
        got = softlane.cross_entropy_with_grad(x, y, reduction="none", **options)
        assert_rows(list(got), list(expected), str(options))


def test_the_loss_with_and_without_the_gradient(fused_isa: str) -> None:
    for dtype in FLOATS:
        rows = rows_of(dtype, 129)
        variants: list[dict[str, Any]] = [{}, {"weight": rows.weight, "label_smoothing": 0.1}]
        for reduction in ("none", "mean", "sum"):
            for options in variants:
                finite = finite_rows(rows.x)
                x, y = rows.x[finite], rows.targets[finite]
                loss, _ = softlane.cross_entropy_with_grad(x, y, reduction=reduction, **options)
                assert_same_bits(softlane.cross_entropy(x, y, reduction=reduction, **options), loss)


# Threads


@every_call
def test_one_thread_against_many(fused_isa: str, name: str) -> None:
    for dtype, shape in zip(
        FLOATS, ((499, 1031), (2, 300_007), (997, 1031), (11, 50_257)), strict=False
    ):
        rows = Rows(to_dtype(3 * rng_for("threads", shape).standard_normal(shape), dtype))
        with threads(1):
            rows.y = softlane.softmax(rows.x)
            expected = CALLS[name](rows, -1, identity)
            columns = CALLS[name](rows, 0, transpose)
        for count in (2, 3, 7):
            with threads(count):
                assert_rows(CALLS[name](rows, -1, identity), expected, f"{count} threads")
                assert_rows(CALLS[name](rows, 0, transpose), columns, f"{count} threads, axis 0")


@every_float
@pytest.mark.parametrize(
    "shape",
    [(1, 3000, 100), (1, 1100, 257), (3, 3000, 64), (1, 300, 901), (1, 700, 701), (2, 9000, 129)],
)
def test_columns_divided_among_threads(
    fused_isa: str, dtype: DType, shape: tuple[int, int, int]
) -> None:
    """Runs of columns that are divided and runs that are not, against rows and one thread."""
    rng = rng_for("divided", shape)
    x = to_dtype(3 * rng.standard_normal(shape), dtype)
    y = rng.integers(0, shape[1], (shape[0], shape[2]))

    def results(x: Array, axis: int) -> list[Array]:
        # Where cache lines begin in the results is not where they begin in arrays of NumPy's.
        out = np.empty(x.size + 5, dtype)[5:].reshape(x.shape)
        probs = softlane.softmax(x, axis, out=out)
        loss, grad = softlane.cross_entropy_with_grad(x, y, axis)
        arrays = [
            probs,
            softlane.log_softmax(x, axis),
            softlane.softmax_backward(x, probs, axis),
            grad,
        ]
        arrays = [np.moveaxis(a, axis, -1) for a in arrays]
        losses = softlane.cross_entropy(x, y, axis, reduction="none")
        return [*arrays, softlane.logsumexp(x, axis), losses, loss]

    with threads(1):
        expected = results(np.moveaxis(x, 1, -1).copy(), -1)
    for count in (2, 7):
        with threads(count):
            for got, wanted in zip(results(x, 1), expected, strict=True):
                assert_same_bits(got, wanted, f"{count} threads")


LONG_CALLS: dict[str, Callable[[Array, int], list[Array]]] = {
    "softmax": lambda x, axis: [softlane.softmax(x, axis)],
    "softmax with temperature": lambda x, axis: [softlane.softmax(x, axis, temperature=0.7)],
    "log_softmax": lambda x, axis: [softlane.log_softmax(x, axis)],
    "log_softmax with temperature": lambda x, axis: [
        softlane.log_softmax(x, axis, temperature=0.7)
    ],
    "cross_entropy": lambda x, axis: [
        softlane.cross_entropy_with_grad(x, np.full(x.shape[1 - axis], 7), axis, reduction="sum")[1]
    ],
    "cross_entropy with smoothing": lambda x, axis: [
        softlane.cross_entropy_with_grad(
            x, np.full(x.shape[1 - axis], 7), axis, reduction="sum", label_smoothing=0.1
        )[1]
    ],
    "cross_entropy in place": lambda x, axis: [
        softlane.cross_entropy_with_grad(
            c := x.copy(),
            np.where(np.take(x, 0, axis) < 0, -100, 7),
            axis,
            reduction="sum",
            weight=np.arange(x.shape[axis]) % 5 + 0.5,
            z_loss=1e-3,
            grad_out=c,
        )[1]
    ],
    "cross_entropy of probabilities": lambda x, axis: [
        softlane.cross_entropy_with_grad(x, np.abs(x) / 1e6, axis, reduction="sum")[1]
    ],
    "logsumexp": lambda x, axis: [softlane.logsumexp(x, axis)],
    "loss": lambda x, axis: [
        softlane.cross_entropy(x, np.full(x.shape[1 - axis], 7), axis, reduction="none")
    ],
}


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=dtype_id)
@pytest.mark.parametrize("n", [245_760, 245_761, 330_007, 1_966_081])
def test_threads_that_share_a_row(fused_isa: str, dtype: DType, n: int) -> None:
    """Rows of one stripe and of several against one thread, columns and steps of 2."""
    rng = rng_for("stripes", n)
    x = to_dtype(np.array([[0.01], [3], [80]]) * rng.standard_normal((3, n)), dtype)
    x[:, [7, n // 2, n - 1]] = x.max(axis=1)[:, np.newaxis]  # a maximum in several stripes
    x[1, n // 3] = -np.inf
    names = list(LONG_CALLS)[:: 1 if n == 330_007 else 2]
    apart = np.zeros((3, 2 * n), dtype)[:, ::2]
    apart[...] = x
    for name in names:
        call = LONG_CALLS[name]
        with threads(1):
            expected = call(x, 1)
            assert_rows(call(apart, 1), expected, f"{name}, steps of 2")
        with threads(2):
            assert_rows(call(x, 1), expected, f"{name}, three rows")
            for r in range(3):
                one = slice(r, r + 1)
                assert_rows(call(x[one], 1), expected, f"{name}, row {r}", one)
        if n != 245_761:
            continue
        for columns in (9, 36):  # a panel, and a group of them
            wide = np.ascontiguousarray(np.resize(x, (columns, n)).T)
            turned = [a if a.ndim == 1 else a.T for a in call(wide, 0)]
            assert_rows([a[:3] for a in turned], expected, f"{name}, {columns} columns")
    with threads(2):
        for function in (softlane.softmax, softlane.log_softmax):
            expected = [function(x[:1])]
            same = x[:1].copy()
            assert_rows([function(same, out=same)], expected, "in place")


@pytest.mark.large
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "cross_entropy", "softmax_backward"])
def test_arrays_beyond_the_caches_against_parts(fused_isa: str, name: str) -> None:
    """256 MB at once, with several threads, against a few rows at a time."""
    rows = rows_of(np.dtype(np.float32), 4099, 16_384)
    with threads(4):
        expected = CALLS[name](rows, -1, identity)
    for start in range(0, 16_384, 1024):
        chosen = slice(start, start + 7)
        assert_rows(CALLS[name](rows.pick(chosen), -1, identity), expected, name, chosen)


@every_float
@pytest.mark.parametrize("samples", [1, 2, 31, 1024, 4097, 65_537, 300_001])
def test_sum_and_mean_over_samples(fused_isa: str, dtype: DType, samples: int) -> None:
    """The same bits for any number of threads, any strides, axis and memory order."""
    rng = rng_for("samples", samples)
    x = to_dtype(rng.standard_normal((samples, 3)), dtype)
    y = rng.integers(0, 3, samples)
    variants: list[dict[str, Any]] = [{}, {"sample_weight": rng.uniform(0.1, 1, samples)}]
    for reduction in ("mean", "sum"):
        for options in variants:
            with threads(1):
                expected = softlane.cross_entropy(x, y, reduction=reduction, **options)
            for count in (2, 5):
                with threads(count):
                    for logits, axis in ((x, -1), (x.T.copy(), 0), (np.asfortranarray(x), -1)):
                        got = softlane.cross_entropy(
                            logits, y, axis, reduction=reduction, **options
                        )
                        assert_same_bits(
                            got, expected, f"{reduction}, {count} threads, axis {axis}"
                        )


def test_mean_and_sum_over_several_axes_of_samples(fused_isa: str) -> None:
    rng = rng_for("sample axes")
    x, y = rng.standard_normal((7, 5, 11, 13)), rng.integers(0, 5, (7, 11, 13))
    expected: Any
    for reduction in ("mean", "sum"):
        expected = softlane.cross_entropy_with_grad(x, y, 1, reduction=reduction)
        for other in (
            np.asfortranarray(x),
            np.ascontiguousarray(np.moveaxis(x, 1, -1)).swapaxes(1, 3),
        ):
            if other.shape != x.shape:
                other = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
            got: Any = softlane.cross_entropy_with_grad(other, y, 1, reduction=reduction)
            assert_rows(list(got), list(expected), reduction)


# Instruction sets


def data_set(dtype: DType) -> Iterator[tuple[str, list[Array]]]:
    """Every call over a deterministic set of rows, with a label for each."""
    for n in (*range(1, 36), 63, 64, 65, 127, 128, 129, 255, 257, 1000, 4097):
        rows = rows_of(dtype, n)
        for name, call in CALLS.items():
            yield f"{name}, rows of {n}", call(rows, -1, identity)
            yield f"{name}, columns of {n}", call(rows, 0, packed_transpose)
        for reduction in ("mean", "sum"):
            finite = finite_rows(rows.x)
            loss, grad = softlane.cross_entropy_with_grad(
                rows.x[finite], rows.targets[finite], weight=rows.weight, reduction=reduction
            )
            yield f"{reduction} over rows of {n}", [np.asarray(loss), grad]
    for n in (65_535, 65_537, 131_073):
        rows = rows_of(dtype, n, 2)
        for name, call in CALLS.items():
            yield f"{name}, rows of {n}", call(rows, -1, identity)


def digests(name: str, dtype: DType) -> dict[str, str]:
    with using(name):
        return {
            label: hashlib.sha256(b"".join(bits(a).tobytes() for a in arrays)).hexdigest()
            for label, arrays in data_set(dtype)
        }


@every_float
def test_instruction_sets_agree(dtype: DType) -> None:
    usable = [name for name in _core.isas_usable() if name in FUSED]
    if len(usable) < 2:
        pytest.skip(f"one instruction set with fused multiply-add is usable here: {usable}")
    expected = digests(usable[0], dtype)
    for other in usable[1:]:
        got = digests(other, dtype)
        differ = [label for label, digest in got.items() if digest != expected[label]]
        assert not differ, (
            f"{other} and {usable[0]} differ in {len(differ)} cases, first: {differ[:5]}"
        )


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: d.char)
def test_instruction_sets_agree_on_integers(dtype: DType) -> None:
    usable = [name for name in _core.isas_usable() if name in FUSED]
    top = 2 if dtype.kind == "b" else 100
    x = rng_for("integers").integers(0, top, (9, 77)).astype(dtype)
    results = []
    for name in usable:
        with using(name):
            results.append([softlane.softmax(x), softlane.log_softmax(x, 0), softlane.logsumexp(x)])
    for other in results[1:]:
        assert_rows(other, results[0], str(dtype))


@pytest.mark.parametrize("name", ["exp", "log", "expm1", "log1p"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_instruction_sets_agree_on_elementary_functions(name: str, dtype: Any) -> None:
    usable = [isa for isa in _core.isas_usable() if isa in FUSED]
    unsigned: Any = np.uint32 if dtype == np.float32 else np.uint64
    patterns = rng_for("patterns").integers(
        0, np.iinfo(unsigned).max, 500_000, unsigned, endpoint=True
    )
    near = np.concatenate([np.linspace(-2, 3, 200_000), np.linspace(-800, 800, 200_000)]).astype(
        dtype
    )
    for x in (patterns.view(dtype), near):
        results = []
        for isa in usable:
            with using(isa):
                results.append(_core.elementary(name, x))
        for other in results[1:]:
            assert_same_bits(other, results[0], name)
