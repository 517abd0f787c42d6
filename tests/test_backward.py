"""softmax_backward and log_softmax_backward: values, masked entries, cancellation, layouts of tails."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

import oracle
import softlane
from oracle import Exact, check_ulp
from support import (
    FEW_TAILS,
    FLOATS,
    HALVES,
    TAILS,
    Array,
    DType,
    assert_same_bits,
    dtype_id,
    make_rows,
    rng_for,
    to_dtype,
)

BACKWARD: dict[str, Any] = {
    "softmax": softlane.softmax_backward,
    "log_softmax": softlane.log_softmax_backward,
}
ORACLES: dict[str, Any] = {
    "softmax": oracle.softmax_backward,
    "log_softmax": oracle.log_softmax_backward,
}

both = pytest.mark.parametrize("name", list(BACKWARD))
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)

nan, inf = math.nan, math.inf


@functools.cache
def case(
    name: str, dtype: DType, n: int, temperature: float
) -> tuple[list[str], Array, Array, Exact]:
    """Incoming gradients of many scales, the rounded forward results, and the exact backward."""
    names, x = make_rows(dtype, n)
    forward = oracle.softmax(x) if name == "softmax" else oracle.log_softmax(x)
    with np.errstate(all="ignore"):
        y = forward.value.astype(dtype)
    rng = rng_for("backward", dtype, n)
    g = rng.standard_normal(y.shape) * 10.0 ** rng.integers(-2, 3, (len(y), 1))
    g[::5] = 1.0
    g[1::5] = 0.0
    g[1::5, n // 2] = -1.0
    g[2::5] = rng.standard_normal((len(g[2::5]), n)) + 50
    g = to_dtype(g, dtype)
    return names, g, y, ORACLES[name](g, y, temperature=temperature)


@both
@every_float
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rows_and_columns_of_every_length(
    isa: str, name: str, dtype: DType, temperature: float
) -> None:
    for n in TAILS if temperature == 1 else FEW_TAILS:
        names, g, y, exact = case(name, dtype, n, temperature)
        got = BACKWARD[name](g, y, temperature=temperature)
        assert got.dtype == dtype and got.shape == y.shape
        check_ulp(got, exact, label=lambda at: f"length {n}, {names[at[0]]}")
        got = BACKWARD[name](g.T.copy(), y.T.copy(), axis=0, temperature=temperature)
        check_ulp(got.T, exact, label=lambda at: f"columns of length {n}, {names[at[0]]}")


@both
@pytest.mark.parametrize("columns", [1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 64, 65, 127])
def test_panels_of_every_width(isa: str, name: str, columns: int) -> None:
    for dtype in FLOATS:
        rng = rng_for("panel", dtype, columns)
        y = to_dtype(oracle.softmax(rng.standard_normal((2, 7, columns)), 1).value, dtype)
        y = y if name == "softmax" else to_dtype(np.log(y.astype(float)), dtype)
        g = to_dtype(rng.standard_normal(y.shape), dtype)
        check_ulp(BACKWARD[name](g, y, 1), ORACLES[name](g, y, 1), label=f"{columns} columns")


@both
@every_float
@pytest.mark.parametrize("axis", [-1, 0, 1, 2, -3, (0, 1), (2, 0), (1, 2), (0, 1, 2), None, ()])
def test_every_axis(isa: str, name: str, dtype: DType, axis: Any) -> None:
    rng = rng_for("axes")
    y = to_dtype(ORACLES_FORWARD[name](rng.standard_normal((3, 4, 5)), axis).value, dtype)
    g = to_dtype(rng.standard_normal(y.shape), dtype)
    check_ulp(BACKWARD[name](g, y, axis), ORACLES[name](g, y, axis))


ORACLES_FORWARD: dict[str, Any] = {"softmax": oracle.softmax, "log_softmax": oracle.log_softmax}


@every_float
def test_gradients_of_every_size(isa: str, dtype: DType) -> None:
    """Products that overflow or vanish in the dtype, though the result does not."""
    if dtype.itemsize == 2:
        return
    top = float(np.finfo(dtype).max)
    tiny = float(np.finfo(dtype).tiny)
    y = np.array([[0.5, 0.25, 0.25]] * 6, dtype)
    g = np.array(
        [
            [top / 4, -top / 4, top / 8],
            [tiny, 2 * tiny, -tiny],
            [tiny / 8, tiny / 16, 0],
            [top / 3, top / 3, top / 3],
            [1, -1, tiny],
            [top / 4, tiny, 0],
        ],
        dtype,
    )
    check_ulp(softlane.softmax_backward(g, y), oracle.softmax_backward(g, y))
    lp = np.log(y)
    check_ulp(softlane.log_softmax_backward(g, lp), oracle.log_softmax_backward(g, lp))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [5, 16, 100, 1000])
def test_results_around_the_smallest_numbers(isa: str, dtype: Any, n: int) -> None:
    """Outputs from 1 to nothing, in rows that have tiny ones and rows that have none, each as if it were alone."""
    rng = rng_for("smallest results", dtype, n)
    least = np.finfo(dtype).minexp
    y = rng.uniform(1, 2, (200, n)) * 2.0 ** rng.integers(least - 3, least + 3, (200, n))
    y[:, ::3] *= 2.0 ** -rng.integers(least, 0, (200, 1))  # ordinary ones beside them
    y[::4] = rng.uniform(size=y[::4].shape) / n
    y[5] = 0
    y[:, n // 2] = 1
    g = to_dtype(rng.standard_normal((200, n)) + rng.choice([0, 1], (200, 1)), np.dtype(dtype))
    g[7] = 0
    output = to_dtype(y, np.dtype(dtype))
    got = softlane.softmax_backward(g, output)
    check_ulp(got, oracle.softmax_backward(g, output))
    columns = softlane.softmax_backward(g.T.copy(), output.T.copy(), axis=0)
    assert_same_bits(columns.T, got, "columns")
    for i in range(len(g)):
        alone = softlane.softmax_backward(g[i], output[i])
        assert_same_bits(alone, got[i], f"row {i}")


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), *HALVES[1:]], ids=dtype_id)
@pytest.mark.parametrize("n", [2, 16, 17, 32, 1000])
def test_sums_of_products_too_small_for_a_float(isa: str, dtype: DType, n: int) -> None:
    y = np.full((20, n), 2.0**-75, dtype)
    g = y.copy()
    y[:, 0], g[:, 0] = 2.0**60, 0
    for axis in (0, 1):
        sizes = [g[:1], g] if axis else [g[:1].T, g.T]  # a row, a panel
        for gradient, result in zip(sizes, [y[:1], y] if axis else [y[:1].T, y.T], strict=True):
            gradient, result = np.ascontiguousarray(gradient), np.ascontiguousarray(result)
            check_ulp(
                softlane.softmax_backward(gradient, result, axis=axis),
                oracle.softmax_backward(gradient, result, axis=axis),
            )
    zero = np.zeros_like(g)
    assert (softlane.softmax_backward(zero, y) == 0).all()


@pytest.mark.parametrize("dtype", HALVES, ids=dtype_id)
def test_long_sums_of_equal_products(isa: str, dtype: DType) -> None:
    """A sum in float goes wrong the same way at every addition."""
    y = to_dtype(np.full((400_000, 40), 3e-5 * (1 + 54 / 97)), dtype)
    g = to_dtype(np.full(y.shape, 1.7), dtype)
    row = softlane.softmax_backward(g[:, 0], y[:, 0])
    check_ulp(row, oracle.softmax_backward(g[:, 0], y[:, 0]))
    for width in (1, 40):  # a column, a group
        got = softlane.softmax_backward(g[:, :width], y[:, :width], axis=0)
        assert (got == row[0]).all(), width


@every_float
def test_gradients_of_one_class_in_long_rows(isa: str, dtype: DType) -> None:
    """What a loss gives, and gradients that nearly cancel: float32 sums are not exact enough there at first."""
    n = 51_000
    rng = rng_for("one class")
    y = softlane.log_softmax(to_dtype(3 * rng.standard_normal((4, n)), dtype))
    g = np.zeros((4, n))
    g[:, 7] = -1, 1 / 3, -(2.0**-12), 1
    g[1, 20_000:20_006] = -1 / 18 + 2.0**-9
    g[3, ::2], g[3, 1::2] = 1 / 64, -1 / 64 - 2.0**-22
    g = to_dtype(g, dtype)
    expected = oracle.log_softmax_backward(g, y)
    got = softlane.log_softmax_backward(g, y)
    check_ulp(got, expected)
    columns = softlane.log_softmax_backward(
        np.repeat(g, 9, 0).T.copy(), np.repeat(y, 9, 0).T.copy(), 0
    )
    for r in range(4):
        assert_same_bits(columns[:, 9 * r], got[r], f"row {r}")


def test_unequal_sizes(isa: str) -> None:
    """What is far larger, or far smaller, than the rest of its row takes nothing from it."""
    for g, y in [
        ([2e-289, 0, -5.5e306], [0.5, 0.5, 0]),
        ([1.4e-309, -1.3e-309, 1e-309], [0.3, 0.3, 0.4]),
        ([1e-200, 1e305, 1], [1, 0, 1e-300]),
    ]:
        g64, y64 = np.array(g), np.array(y)
        check_ulp(softlane.softmax_backward(g64, y64), oracle.softmax_backward(g64, y64))
    for log_y in (-1e128, -3000.0, -1500.0, -1060.0, -1054.0, -700.0):
        g64, y64 = np.array([1e-200, 1e304]), np.array([log_y, 0])
        check_ulp(softlane.log_softmax_backward(g64, y64), oracle.log_softmax_backward(g64, y64))
    # exp(y)·Σ overflows, and the difference does not.
    g64, y64 = np.full(5, -1.77e308), np.log([0.25, 0.25, 0.25, 0.25, 1e-30])
    for temperature in (1.0, 3.0):
        got = softlane.log_softmax_backward(g64, y64, temperature=temperature)
        check_ulp(got, oracle.log_softmax_backward(g64, y64, temperature=temperature))
        assert np.isfinite(got).all()
    # An infinite sum times the square of exp(y/2), or times an exp that is less than any number.
    for log_y in (-1000.0, -2200.0, -1e30):
        for dtype in FLOATS:
            log_p = to_dtype([0.0, max(log_y, -6e4)], dtype)
            got = softlane.log_softmax_backward(to_dtype([inf, 1.0], dtype), log_p)
            assert np.array_equal(got, to_dtype([nan, -inf], dtype), equal_nan=True)
            got = softlane.log_softmax_backward(to_dtype([nan, 1.0], dtype), log_p)
            assert np.isnan(got).all()
    for log_y in (-1e30, -200.0, -135.0, -131.0, -90.0):
        g32, y32 = np.array([0, 1e20], np.float32), np.array([log_y, 0], np.float32)
        check_ulp(softlane.log_softmax_backward(g32, y32), oracle.log_softmax_backward(g32, y32))


@both
@pytest.mark.parametrize("temperature", [5e-324, 1e-305, 1e-250, 1e250, 1e308])
def test_extreme_temperatures(isa: str, name: str, temperature: float) -> None:
    rng = rng_for("temperature", temperature)
    g = rng.standard_normal((20, 9))
    y = ORACLES_FORWARD[name](10 * rng.standard_normal((20, 9))).value.astype(np.float64)
    got = BACKWARD[name](g, y, temperature=temperature)
    check_ulp(got, ORACLES[name](g, y, temperature=temperature))


@both
@every_float
@pytest.mark.parametrize("temperature", [1.0, 0.3, 5e-324, 1e308])
def test_infinite_gradients_give_what_the_formula_gives(
    isa: str, name: str, dtype: DType, temperature: float
) -> None:
    """NaN where inf - inf is met, infinite elsewhere; an output of 0 keeps its part out."""
    for g, y, soft, log in (
        ([inf, 100, 1], [0.5, 0.5, 0], [nan, -inf, 0], [nan, -inf, 1 / temperature]),
        ([-inf, 100, 1], [0.5, 0.25, 0.25], [nan, inf, inf], [nan, inf, inf]),
        ([inf, inf, 1], [0.5, 0.25, 0.25], [nan, nan, -inf], [nan, nan, -inf]),
        ([inf, -inf, 1], [0.5, 0.25, 0.25], [nan] * 3, [nan] * 3),
        ([1, 2, inf], [1, 0, 0], [0, 0, 0], [-inf, 2 / temperature, inf]),
    ):
        for more in (0, 40, 200):
            zeros = [0.0] * more
            incoming = to_dtype([g + zeros], dtype)
            with np.errstate(divide="ignore", over="ignore"):
                output = [y + zeros] if name == "softmax" else np.log([y + zeros])
                expected = to_dtype([(soft if name == "softmax" else log) + zeros], dtype)
            output = to_dtype(output, dtype)
            got = BACKWARD[name](incoming, output, temperature=temperature)
            assert np.allclose(got, expected, rtol=2e-3, atol=0, equal_nan=True), (g, y, got)
            columns = BACKWARD[name](
                incoming.T.copy(), output.T.copy(), axis=0, temperature=temperature
            )
            assert_same_bits(columns.T, got)


@both
@every_float
def test_short_rows_and_columns_that_are_not_ordinary(isa: str, name: str, dtype: DType) -> None:
    """One such row leaves the bits of those that share its vectors alone, wherever it lies."""
    for n in (1, 2, 7, 16, 23, 40):
        _, g, y, _ = case(name, dtype, n, 1.0)
        g[2] = {4: 3e33, 8: 1e200}.get(dtype.itemsize, nan)
        g[5] = 0
        expected = np.stack([BACKWARD[name](g[r], y[r]) for r in range(len(g))])
        assert_same_bits(BACKWARD[name](g, y), expected, f"rows of {n}")
        g, y = np.ascontiguousarray(g.T), np.ascontiguousarray(y.T)
        assert_same_bits(BACKWARD[name](g, y, axis=0).T, expected, f"columns of {n}")
        BACKWARD[name](g, y, axis=0, out=g)
        assert_same_bits(g.T, expected, f"columns of {n} in place")


@both
@every_float
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_long_columns_of_wide_arrays(isa: str, name: str, dtype: DType, temperature: float) -> None:
    """Several panels are worked on row by row, all ordinary or not; rows lie a page apart."""
    backward = functools.partial(BACKWARD[name], temperature=temperature)
    width = 4096 // dtype.itemsize
    forward = softlane.softmax if name == "softmax" else softlane.log_softmax
    for n in (16, 17, 65, 300):
        _, g, y, _ = case(name, dtype, n, 1.0)
        rng = rng_for("wide", dtype, n)
        ordinary = to_dtype(rng.standard_normal((width - len(g), n)), dtype)
        g, y = np.concatenate([ordinary, g]), np.concatenate([forward(np.roll(ordinary, 5)), y])
        g[100] *= {4: 3e33, 8: 1e200}.get(dtype.itemsize, 1)
        for first in (0, 3):  # the second begins between lines
            expected = backward(g[first:], y[first:])
            columns, outputs = np.ascontiguousarray(g.T), np.ascontiguousarray(y.T)
            got = backward(columns[:, first:], outputs[:, first:], axis=0)
            assert_same_bits(got.T, expected, f"columns of {n} from {first}")
            part = columns[:, first:]
            backward(part, outputs[:, first:], axis=0, out=part)
            assert_same_bits(part.T, expected, f"columns of {n} from {first} in place")


@both
def test_sums_that_cancel(isa: str, name: str) -> None:
    """The ulp is that of the largest term: |y| (|g| + sum |g y|), and |g| + exp(y) |sum g|."""
    rng = rng_for("cancel")
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        for n in (2, 9, 64, 1000):
            g = rng.standard_normal((4, n)) * 1e3
            g[:, n // 2 :] -= g.mean(axis=-1, keepdims=True) * n / (n - n // 2)
            y = ORACLES_FORWARD[name](rng.standard_normal((4, n))).value.astype(dtype)
            g = g.astype(dtype)
            check_ulp(BACKWARD[name](g, y), ORACLES[name](g, y), label=f"{dtype} length {n}")


@every_float
def test_softmax_where_the_output_is_zero_the_gradient_is_zero(isa: str, dtype: DType) -> None:
    for n in (2, 5, 16, 33, 70):
        y = np.full((n, n), 0.5, dtype)
        np.fill_diagonal(y, 0)
        clean = np.full((n, n), 2, dtype)
        np.fill_diagonal(clean, 0)
        expected = softlane.softmax_backward(clean, y)
        for value in (inf, -inf, nan, 100.0):
            g = clean.copy()
            np.fill_diagonal(g, value)
            for got in (softlane.softmax_backward(g, y), softlane.softmax_backward(g, y, axis=0)):
                assert (np.diagonal(got) == 0).all()
                assert_same_bits(got + 0, expected + 0, f"{value} behind a zero")


@every_float
def test_log_softmax_where_the_output_is_minus_infinity_g_passes(isa: str, dtype: DType) -> None:
    for n in (2, 5, 16, 33, 70):
        y = np.full((n, n), -1, dtype)
        np.fill_diagonal(y, -inf)
        g = np.full((n, n), 2, dtype)
        np.fill_diagonal(g, 0.75)
        for got in (softlane.log_softmax_backward(g, y), softlane.log_softmax_backward(g, y, 0)):
            assert (np.diagonal(got) == 0.75).all()
            check_ulp(got, oracle.log_softmax_backward(g, y))
    y, g = np.array([-inf, 0], dtype), np.array([3, inf], dtype)
    assert softlane.log_softmax_backward(g, y)[0] == 3, "0 times an infinite sum"


@both
@every_float
def test_nan_stays_in_its_row(isa: str, name: str, dtype: DType) -> None:
    y = np.full((3, 7), 0.125 if name == "softmax" else -2, dtype)
    for broken in ("g", "y"):
        g, z = np.ones((3, 7), dtype), y.copy()
        (g if broken == "g" else z)[1, 4] = nan
        got = BACKWARD[name](g, z)
        assert np.isnan(got[1]).all() if broken == "g" else np.isnan(got[1, 4])
        assert np.isfinite(got[[0, 2]]).all()


@both
@every_float
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_empty(isa: str, name: str, dtype: DType, shape: tuple[int, ...]) -> None:
    x = np.empty(shape, dtype)
    for axis in (-1, 0, None):
        got = BACKWARD[name](x, x, axis)
        assert got.shape == shape and got.dtype == dtype


@both
@every_float
def test_scalars(isa: str, name: str, dtype: DType) -> None:
    y = np.array(1 if name == "softmax" else 0, dtype)
    got = BACKWARD[name](np.array(3, dtype), y)
    assert isinstance(got, dtype.type) and got == 0


@both
@every_float
def test_out_and_in_place(isa: str, name: str, dtype: DType) -> None:
    _, g, y, _ = case(name, dtype, 33, 1.0)
    expected = BACKWARD[name](g, y)
    out = np.empty_like(expected)
    assert BACKWARD[name](g, y, out=out) is out
    assert_same_bits(out, expected)
    for which in (0, 1):
        arrays = [g.copy(), y.copy()]
        assert BACKWARD[name](*arrays, out=arrays[which]) is arrays[which]
        assert_same_bits(arrays[which], expected, f"over argument {which}")
    shared = y.copy()
    expected = BACKWARD[name](shared.copy(), shared.copy())
    BACKWARD[name](shared, shared, out=shared)
    assert_same_bits(shared, expected, "both inputs and the output in one array")


@both
def test_gradient_of_the_loss_by_the_chain_rule(isa: str, name: str) -> None:
    """Backward through the forward agrees with a central difference in float64."""
    rng = rng_for("difference")
    x, g, t = rng.standard_normal((2, 6)), rng.standard_normal((2, 6)), 1.7
    forward: Any = softlane.softmax if name == "softmax" else softlane.log_softmax
    got = BACKWARD[name](g, forward(x, temperature=t), temperature=t)
    h = 1e-6
    for i in range(2):
        for j in range(6):
            step = np.zeros_like(x)
            step[i, j] = h
            high, low = forward(x + step, temperature=t), forward(x - step, temperature=t)
            assert abs(got[i, j] - np.sum(g * (high - low)) / (2 * h)) < 1e-8
