"""softmax and log_softmax: every row of the semantics, every dtype, tails of rows and columns, on each set."""

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
    INTEGERS,
    TAILS,
    Array,
    DType,
    assert_same_bits,
    dtype_id,
    elementwise_dtype,
    make_rows,
    rng_for,
    to_dtype,
)

FUNCTIONS: dict[str, Any] = {"softmax": softlane.softmax, "log_softmax": softlane.log_softmax}
ORACLES: dict[str, Any] = {"softmax": oracle.softmax, "log_softmax": oracle.log_softmax}
MASKED = {"softmax": 0.0, "log_softmax": -np.inf}
ALONE = {"softmax": 1.0, "log_softmax": 0.0}

both = pytest.mark.parametrize("name", list(FUNCTIONS))
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
every_integer = pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: d.char)

nan, inf = math.nan, math.inf
# log_softmax of 1, 2, 3 to more digits than float64 has.
LOG_P = [-2.40760596444438030, -1.40760596444438030, -0.40760596444438030448]


@functools.cache
def case(
    name: str, dtype: DType, n: int, temperature: float = 1.0
) -> tuple[list[str], Array, Exact]:
    names, rows = make_rows(dtype, n)
    return names, rows, ORACLES[name](rows, temperature=temperature)


# Accuracy


@both
@every_float
def test_rows_of_every_length(isa: str, name: str, dtype: DType) -> None:
    for n in TAILS:
        names, rows, exact = case(name, dtype, n)
        got = FUNCTIONS[name](rows)
        assert got.dtype == dtype and got.flags.c_contiguous
        check_ulp(got, exact, label=lambda at: f"length {n}, {names[at[0]]}")


@both
@every_float
def test_columns_of_every_length(isa: str, name: str, dtype: DType) -> None:
    for n in TAILS:
        names, rows, exact = case(name, dtype, n)
        got = FUNCTIONS[name](np.ascontiguousarray(rows.T), axis=0)
        check_ulp(got.T, exact, label=lambda at: f"columns of length {n}, {names[at[0]]}")


@both
@pytest.mark.parametrize("columns", [1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 64, 65, 127])
def test_panels_of_every_width(isa: str, name: str, columns: int) -> None:
    for dtype in FLOATS:
        x = to_dtype(4 * rng_for("panel", dtype, columns).standard_normal((2, 7, columns)), dtype)
        check_ulp(FUNCTIONS[name](x, axis=1), ORACLES[name](x, 1), label=f"{columns} columns")


@both
@every_float
@pytest.mark.parametrize(
    "temperature", [0.1, 0.7, 1.0, 3, 1e-3, 1000.0, 1e30, 1e-30, 5e-324, 1.7e308]
)
def test_temperature(isa: str, name: str, dtype: DType, temperature: float) -> None:
    for n in (1, 2, 7, 33, 257):
        names, rows, exact = case(name, dtype, n, temperature)
        got = FUNCTIONS[name](rows, temperature=temperature)
        check_ulp(got, exact, label=lambda at: f"T {temperature}, length {n}, {names[at[0]]}")


@both
@every_float
def test_temperature_one_changes_nothing(isa: str, name: str, dtype: DType) -> None:
    _, rows = make_rows(dtype, 37)
    expected = FUNCTIONS[name](rows)
    for one in (1, 1.0, np.float32(1), np.float64(1), np.int64(1)):
        assert_same_bits(FUNCTIONS[name](rows, temperature=one), expected)


@both
@every_integer
def test_integers_and_bool_are_computed_as_float64(isa: str, name: str, dtype: DType) -> None:
    rng = rng_for("integers", dtype)
    for n in FEW_TAILS:
        if dtype.kind == "b":
            x: Array = rng.random((6, n)) < 0.5
        else:
            info = np.iinfo(dtype)
            low, high = max(info.min, -40), min(info.max, 40)
            x = rng.integers(low, high, (6, n), dtype, endpoint=True)
            x[1] = rng.integers(info.min, info.max, n, dtype, endpoint=True)
            x[2], x[3] = info.max, info.min
        got = FUNCTIONS[name](x)
        assert got.dtype == np.float64
        check_ulp(got, ORACLES[name](x), label=f"{dtype} length {n}")
        check_ulp(
            FUNCTIONS[name](x.T, axis=0).T, ORACLES[name](x), label=f"{dtype} columns, length {n}"
        )


def test_small_unsigned_integers_do_not_wrap_around(isa: str) -> None:
    np.testing.assert_allclose(
        softlane.softmax(np.array([1, 2], np.uint8)), [0.26894142136999512, 0.731058578630005]
    )
    np.testing.assert_allclose(
        softlane.softmax([False, True]), [0.26894142136999512, 0.731058578630005]
    )
    np.testing.assert_allclose(
        softlane.softmax(np.array([-128, 127], np.int8)), [math.exp(-255), 1], rtol=1e-12
    )


@both
@every_float
@pytest.mark.parametrize("to", FLOATS, ids=dtype_id)
def test_dtype_is_computed_in_and_returned(isa: str, name: str, dtype: DType, to: DType) -> None:
    """Wider: computed wider. Narrower: from the input's own values, rounded once at the end."""
    wider = np.promote_types(
        np.float32 if dtype in HALVES else dtype, np.float32 if to in HALVES else to
    )
    bar = None if wider == to else 0.51
    for n in (1, 3, 16, 37, 257):
        names, rows, exact = case(name, dtype, n)
        for spelled in (to, to.type):
            got = FUNCTIONS[name](rows, dtype=spelled)
            assert got.dtype == to
        check_ulp(got, exact, bar, label=lambda at: f"length {n}, {names[at[0]]}")
        got = FUNCTIONS[name](np.ascontiguousarray(rows.T), axis=0, dtype=to)
        check_ulp(got.T, exact, bar, label=lambda at: f"columns of length {n}, {names[at[0]]}")


@both
@pytest.mark.parametrize("to", FLOATS, ids=dtype_id)
def test_dtype_for_integers(isa: str, name: str, to: DType) -> None:
    x = rng_for("dtype for integers").integers(-300, 300, (5, 19))
    got = FUNCTIONS[name](x, dtype=to)
    assert got.dtype == to
    check_ulp(got, ORACLES[name](x), None if to == np.float64 else 0.51)


@both
@pytest.mark.parametrize("spelled", ["float64", "d", "<f8", ">f8", float])
def test_dtype_spelled_differently(name: str, spelled: Any) -> None:
    assert FUNCTIONS[name](np.ones(3, np.float32), dtype=spelled).dtype == np.float64


# Textbook values


def test_textbook_values(isa: str) -> None:
    p = [0.090030573170380462, 0.24472847105479764, 0.66524095577482178]
    np.testing.assert_allclose(softlane.softmax([1.0, 2.0, 3.0]), p, rtol=4e-16)
    np.testing.assert_allclose(softlane.softmax([1001.0, 1002.0, 1003.0]), p, rtol=4e-16)
    np.testing.assert_allclose(softlane.log_softmax([1.0, 2.0, 3.0]), LOG_P, rtol=4e-16)


def test_log_softmax_keeps_every_digit_of_a_confident_row(isa: str) -> None:
    for dtype in (np.float32, np.float64):
        got = softlane.log_softmax(np.array([30, 0], dtype))
        assert abs(got[0] / -9.3576229688397e-14 - 1) < (1e-6 if dtype == np.float32 else 1e-12)
    assert (
        abs(softlane.log_softmax(np.array([700.0, 0.0]))[0] / -9.8596765437597708567e-305 - 1)
        < 1e-15
    )


@every_float
def test_log_softmax_a_common_offset_cancels_exactly(isa: str, dtype: DType) -> None:
    """Offsets that the dtype adds exactly leave the exact result as it was: within the bar of the shifted row's."""
    step = 0.25 if dtype.itemsize == 2 else 2.0**-10
    limit = 16 if dtype.name == "bfloat16" else 128
    x = step * rng_for("offset").integers(0, int(limit / step / 8), (7, 41))
    exact = oracle.log_softmax(to_dtype(x, dtype))
    for offset in (limit / 2, -limit / 2):
        check_ulp(
            softlane.log_softmax(to_dtype(x + offset, dtype)), exact, label=f"offset {offset}"
        )


@every_float
def test_zeros_have_equal_shares_rounded_once(isa: str, dtype: DType) -> None:
    """exp(0) loses nothing, nor do sums of it; nor with any maximum that is subtracted first."""
    for n in (1, 2, 3, 4, 7, 10, 16, 33, 100, 128, 1000, 1024, 4097):
        share = np.asarray(1 / n).astype(dtype)
        for value in (0, -10_000, 20_000):
            x = np.full((3, n), value, dtype)
            assert (softlane.softmax(x) == share).all(), (n, value)
            assert (softlane.softmax(np.ascontiguousarray(x.T), 0) == share).all(), (n, value)


# Rows whose sums round one way: in each lane of a block an exp whose z is largest comes first, and to its z all others
# add half a unit. And a target whose exp and probability are rounded badly. Found by a search.
ROUNDED_ONE_WAY = [
    (np.float32, 256, 16, "0x1.017c5ep-5", "-0x1.09ae74p+4", 143, "-0x1.0a2b1ap+2"),
    (np.float64, 512, 8, "0x1.076d5ab408510p-5", "-0x1.25a908a465e4fp+5", 391, "-0x1.62def5205c8dfp+2"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "n", "lanes", "large", "small", "at", "target"), ROUNDED_ONE_WAY)
def test_sums_whose_roundings_add_up(
    isa: str, dtype: Any, n: int, lanes: int, large: str, small: str, at: int, target: str
) -> None:
    x = np.full(n, float.fromhex(small), dtype)
    x[np.arange(n) % 128 < lanes] = float.fromhex(large)
    x[at] = float.fromhex(target)
    check_ulp(softlane.softmax(x), oracle.softmax(x))
    check_ulp(softlane.softmax(np.tile(x, (20, 1)).T, 0)[:, 3], oracle.softmax(x))


@pytest.mark.parametrize("n", [7, 12, 16, 31, 40, 64, 100, 128, 300, 512])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_few_large_and_many_small_exps(isa: str, dtype: Any, n: int) -> None:
    """As above, for any number of large exps, wherever they lie, and 200 targets."""
    digits = 24 if dtype is np.float32 else 53
    rng = rng_for(n, digits)
    for _ in range(30):
        count = int(rng.integers(1, min(n - 1, 32)))
        half_units = rng.choice([0.495, 0.505, 0.99, 1.01]) * 2.0**-4
        x = np.full((200, n), np.log((1 + half_units) * 32 / 33) - digits * np.log(2), dtype)
        where = rng.choice(n - 1, count, replace=False)
        if rng.random() < 0.7:
            where = np.arange(count) * rng.choice([1, 64, 128]) % (n - 1)
        x[:, where] = rng.uniform(0.03, 0.043)
        x[:, -1] = rng.uniform(0, 0.014, 200) - rng.integers(6, 12) * np.log(2)
        check_ulp(softlane.softmax(x), oracle.softmax(x))


def test_float16_seventy_thousand_zeros(isa: str) -> None:
    got = softlane.softmax(np.zeros(70_000, np.float16))
    assert (got == np.float16(1 / 70_000)).all()
    assert (
        softlane.log_softmax(np.zeros(70_000, np.float16)) == np.float16(-math.log(70_000))
    ).all()


# Specials

SPECIALS: dict[str, tuple[list[float], list[float], list[float]]] = {
    "a NaN": ([1, nan, 2], [nan] * 3, [nan] * 3),
    "only NaN": ([nan, nan], [nan] * 2, [nan] * 2),
    "one NaN alone": ([nan], [nan], [nan]),
    "+inf": ([1, inf, 2], [nan] * 3, [nan] * 3),
    "two +inf": ([inf, 0, inf], [nan] * 3, [nan] * 3),
    "only +inf": ([inf, inf], [nan] * 2, [nan] * 2),
    "+inf alone": ([inf], [nan], [nan]),
    "+inf and -inf": ([inf, -inf, 0], [nan] * 3, [nan] * 3),
    "NaN and +inf": ([nan, inf, 0], [nan] * 3, [nan] * 3),
    "NaN and -inf": ([nan, -inf, -inf], [nan] * 3, [nan] * 3),
    "-inf among finite": ([0, -inf, 0], [0.5, 0, 0.5], [-math.log(2), -inf, -math.log(2)]),
    "all -inf but one": ([-inf, 3, -inf], [0, 1, 0], [-inf, 0, -inf]),
    "all -inf": ([-inf] * 3, [nan] * 3, [nan] * 3),
    "-inf alone": ([-inf], [nan], [nan]),
    "one element": ([5], [1], [0]),
    "zeros of both signs": ([0.0, -0.0], [0.5, 0.5], [-math.log(2)] * 2),
}


@both
@every_float
@pytest.mark.parametrize("special", list(SPECIALS))
def test_special_rows(isa: str, name: str, dtype: DType, special: str) -> None:
    row, *expected = SPECIALS[special]
    wanted = np.array(expected[list(FUNCTIONS).index(name)]).astype(dtype)
    x = np.array(row, dtype)
    assert_same_bits(FUNCTIONS[name](x) + 0, wanted, special)
    batch = np.stack([np.zeros_like(x), x, np.zeros_like(x)])
    for got in (FUNCTIONS[name](batch), FUNCTIONS[name](batch.T.copy(), axis=0).T):
        assert_same_bits(got[1] + 0, wanted, special)
        assert np.isfinite(got[::2]).all(), "a special row spoils its neighbours"


@both
@every_float
@pytest.mark.parametrize("value", [nan, inf])
def test_a_nan_or_infinity_at_any_place_makes_the_whole_row_nan(
    isa: str, name: str, dtype: DType, value: float
) -> None:
    for n in (2, 5, 16, 33, 70, 300):
        x = np.zeros((n, n), dtype)
        np.fill_diagonal(x, value)
        assert np.isnan(FUNCTIONS[name](x)).all()
        assert np.isnan(FUNCTIONS[name](x, axis=0)).all()
        x = np.full((n, n), -inf, dtype)
        np.fill_diagonal(x, value)
        assert np.isnan(FUNCTIONS[name](x)).all()


@both
@every_float
def test_one_finite_element_at_any_place(isa: str, name: str, dtype: DType) -> None:
    for n in (1, 2, 5, 16, 33, 70, 300):
        for value in (-300.25, 0.0, 4096.0):
            x = np.full((n, n), -inf, dtype)
            np.fill_diagonal(x, value)
            expected = np.full((n, n), MASKED[name], dtype)
            np.fill_diagonal(expected, ALONE[name])
            assert_same_bits(FUNCTIONS[name](x) + 0, expected)
            assert_same_bits(FUNCTIONS[name](x, axis=0) + 0, expected)


@every_float
def test_minus_infinity_gives_exactly_zero(isa: str, dtype: DType) -> None:
    x = np.array([-inf, 1, -inf, 2, 3] * 20, dtype)
    p, lp = softlane.softmax(x), softlane.log_softmax(x)
    assert (p[x == -inf] == 0).all() and not np.signbit(p).any() and (p[x != -inf] > 0).all()
    assert (lp[x == -inf] == -inf).all() and np.isfinite(lp[x != -inf]).all()


# where


@functools.cache
def masked_case(name: str, dtype: DType, n: int) -> tuple[list[str], Array, Array, Exact]:
    """Rows with junk outside a mask that keeps their maximum, and the exact result."""
    names, rows = make_rows(dtype, n)
    mask = rng_for("where", n).random(rows.shape) < 0.6
    mask |= rows == rows.max(axis=-1, keepdims=True)
    junk = to_dtype(rng_for(n).choice([nan, inf, -inf, 1e4], rows.shape), dtype)
    return names, mask, np.where(mask, rows, junk), ORACLES[name](rows, where=mask)


@both
@every_float
def test_where_is_the_softmax_of_the_elements_inside(isa: str, name: str, dtype: DType) -> None:
    for n in TAILS:
        names, mask, dirty, exact = masked_case(name, dtype, n)
        rows = FUNCTIONS[name](dirty, where=mask)
        columns = FUNCTIONS[name](dirty.T.copy(), axis=0, where=mask.T)
        for got in (rows, columns.T):
            check_ulp(got, exact, label=lambda at: f"length {n}, {names[at[0]]}")
            assert (got[~mask] == MASKED[name]).all()


@both
@every_float
def test_where_false_never_leaks(isa: str, name: str, dtype: DType) -> None:
    for n in (2, 5, 16, 33, 70, 300):
        mask = ~np.eye(n, dtype=bool)
        clean = FUNCTIONS[name](np.where(mask, np.ones((n, n)), 0).astype(dtype), where=mask)
        for value in (nan, inf, -inf, 30000.0):
            x = np.ones((n, n), dtype)
            x[~mask] = value
            assert_same_bits(FUNCTIONS[name](x, where=mask), clean)
            assert_same_bits(FUNCTIONS[name](x, axis=0, where=mask), clean)


@both
@every_float
def test_where_false_in_the_whole_row(isa: str, name: str, dtype: DType) -> None:
    x = np.array([[1, 2, 3], [nan, inf, 1], [-inf, -inf, -inf], [4, 5, 6]] * 3, dtype)
    mask = np.array([[True] * 3, [False] * 3, [False] * 3, [False, True, False]] * 3)
    for got in (
        FUNCTIONS[name](x, where=mask),
        FUNCTIONS[name](x.T.copy(), axis=0, where=mask.T).T,
    ):
        assert (got[1::4] == MASKED[name]).all() and (got[2::4] == MASKED[name]).all()
        assert (got[3::4, 1] == ALONE[name]).all() and np.isfinite(got[0::4]).all()
    assert (FUNCTIONS[name](x, where=False) == MASKED[name]).all()
    assert (FUNCTIONS[name](x[0, 0], where=False) == MASKED[name]).all()


@both
def test_where_a_nan_inside_leaves_the_outside_masked(isa: str, name: str) -> None:
    got = FUNCTIONS[name](np.array([nan, 1.0, 2.0, 3.0]), where=np.array([True, True, False, True]))
    assert np.isnan(got[[0, 1, 3]]).all() and got[2] == MASKED[name]


@both
@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (4, 1), (1, 5), (1, 1), (4, 5), (3, 1, 1), (1, 4, 1), (3, 4, 5)]
)
def test_where_broadcasts_to_x(isa: str, name: str, shape: tuple[int, ...]) -> None:
    rng = rng_for("where", shape)
    x = rng.standard_normal((3, 4, 5))
    mask = np.asarray(rng.random(shape) < 0.7)
    full = np.broadcast_to(mask, x.shape)
    for axis in (-1, 0, 1, (0, 2), None):
        got = FUNCTIONS[name](x, axis, where=mask)
        check_ulp(got, ORACLES[name](x, axis, where=full), label=f"axis {axis}")
        assert_same_bits(got, FUNCTIONS[name](x, axis, where=full.copy()))
        assert_same_bits(got, FUNCTIONS[name](x, axis, where=mask.tolist()))


# Shapes and axes


@both
@every_float
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 0)])
def test_empty_input_gives_an_empty_result(
    isa: str, name: str, dtype: DType, shape: tuple[int, ...]
) -> None:
    x = np.empty(shape, dtype)
    for axis in [*range(-len(shape), len(shape)), None, ()]:
        got = FUNCTIONS[name](x, axis)
        assert got.shape == shape and got.dtype == dtype
    assert FUNCTIONS[name](x, where=np.ones(shape, bool)).shape == shape


@both
@every_float
@pytest.mark.parametrize("axis", [-1, 0, None, ()])
def test_zero_dimensional_input(isa: str, name: str, dtype: DType, axis: Any) -> None:
    for value in (3.0, -1000.0, 0.0):
        got = FUNCTIONS[name](np.array(value, dtype), axis)
        assert got == ALONE[name] and got.dtype == dtype and got.shape == ()
        assert isinstance(got, dtype.type), "a scalar, as np.exp would return"
        assert isinstance(FUNCTIONS[name](dtype.type(value), axis), dtype.type)
    for value in (nan, inf, -inf):
        assert np.isnan(FUNCTIONS[name](np.array(value, dtype), axis))


@both
@every_float
def test_one_element_is_one_exactly(isa: str, name: str, dtype: DType) -> None:
    """Alone in its row, whatever its value: through axis -1, 0 and (), and among -inf."""
    for value in (1.0, 0.1, -2.0, 30.0, 88.0, 255.75, 256.0, -1e3, 1e-5, 6e4):
        x = np.full((3, 1), value, dtype)
        for got in (
            FUNCTIONS[name](x),
            FUNCTIONS[name](x.T, 0),
            FUNCTIONS[name](x, ()),
            FUNCTIONS[name](x[0, 0]),
            FUNCTIONS[name](x, temperature=0.3),
            FUNCTIONS[name](np.where(np.eye(5) == 1, x[0, 0], np.array(-inf, dtype))).max(axis=-1),
        ):
            assert (got == ALONE[name]).all(), f"{value}: {got}"


@both
@pytest.mark.parametrize("axis", [-1, 0, None])
def test_python_scalars(name: str, axis: Any) -> None:
    for value in (2, 2.5, True):
        got = FUNCTIONS[name](value, axis)
        assert isinstance(got, np.float64) and got == ALONE[name]


@both
@every_float
def test_empty_axis_tuple_takes_each_element_alone(isa: str, name: str, dtype: DType) -> None:
    x = np.array([[1, -2, 30], [nan, inf, -inf]], dtype)
    got = FUNCTIONS[name](x, ())
    assert_same_bits(got + 0, np.array([[ALONE[name]] * 3, [nan] * 3], dtype))
    mask = np.array([[True, False, True], [False, False, False]])
    assert_same_bits(
        FUNCTIONS[name](x, (), where=mask) + 0,
        np.where(mask, ALONE[name], MASKED[name]).astype(dtype),
    )


@both
@every_float
@pytest.mark.parametrize(
    "axis", [-1, 0, 1, 2, 3, -4, (0, 1), (1, 0), (2, 3), (0, 3), (-1, 1), (0, 1, 2), None]
)
def test_every_axis(isa: str, name: str, dtype: DType, axis: Any) -> None:
    x = to_dtype(3 * rng_for("axes").standard_normal((3, 4, 5, 6)), dtype)
    got = FUNCTIONS[name](x, axis)
    assert got.shape == x.shape and got.dtype == dtype
    check_ulp(got, ORACLES[name](x, axis))


@both
def test_axis_of_numpy_integer_type(name: str) -> None:
    x = rng_for("axis").standard_normal((3, 4))
    assert_same_bits(FUNCTIONS[name](x, np.int8(0)), FUNCTIONS[name](x, 0))
    assert_same_bits(FUNCTIONS[name](x, (np.int64(-1), np.uint8(0))), FUNCTIONS[name](x, None))


@both
def test_axis_may_be_given_by_keyword(name: str) -> None:
    x = rng_for("axis").standard_normal((3, 4))
    assert_same_bits(FUNCTIONS[name](x, axis=0), FUNCTIONS[name](x, 0))


@every_float
def test_input_is_left_alone_and_result_is_new(isa: str, dtype: DType) -> None:
    _, x = make_rows(dtype, 33)
    kept = x.copy()
    p = softlane.softmax(x)
    assert_same_bits(x, kept)
    assert not np.shares_memory(p, x) and p.flags.writeable and p.flags.owndata


def test_result_types_of_the_elementwise_functions() -> None:
    for dtype in FLOATS + INTEGERS:
        assert softlane.softmax(np.ones(3, dtype)).dtype == elementwise_dtype(dtype)
        assert softlane.log_softmax(np.ones((2, 3), dtype), axis=0).dtype == elementwise_dtype(
            dtype
        )


def test_probabilities_that_numpy_draws_from() -> None:
    """NumPy refuses float32 probabilities of a large vocabulary, whose sum is off by more than it allows."""
    x = (5 * rng_for("choice").standard_normal(50_000)).astype(np.float32)
    p = softlane.softmax(x, dtype=np.float64)
    assert abs(p.sum() - 1) < 1e-12
    drawn = np.random.default_rng(0).choice(len(p), 1000, p=p)
    assert np.mean(p[drawn]) > 10 * np.mean(p)
