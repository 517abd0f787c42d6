"""segment_softmax, segment_log_softmax, segment_logsumexp: the bits of one row at a time, pointers, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
import softlane
from oracle import check_ulp
from softlane import _core
from support import (
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
    make_rows,
    result_dtype,
    rng_for,
    snapshot,
    strided,
    swapped,
    threads,
    to_dtype,
    using,
)

nan, inf = math.nan, math.inf
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
NAMES = ("softmax", "log_softmax", "logsumexp")
every_function = pytest.mark.parametrize("name", NAMES)
INDEXES: list[DType] = [d for d in INTEGERS if d.kind in "iu"]


def of_segments(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(softlane, f"segment_{name}")
    return function


def one_by_one(name: str, x: Array, indptr: Any) -> Array:
    """Every segment through the function of rows."""
    function = getattr(softlane, name)
    rows = [function(x[a:b]) for a, b in pairwise(indptr)]
    if name == "logsumexp":
        return np.array(rows, result_dtype(x.dtype))
    return np.concatenate([np.empty(0, elementwise_dtype(x.dtype)), *rows])


def pointers(lengths: Any) -> Array:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)


def case(dtype: DType, key: str = "") -> tuple[Array, Array]:
    """Logits of every scale in segments of lengths round the tiles, some of them empty."""
    rng = rng_for("segments", key)
    lengths = [*range(40), 0, 0, 63, 64, 65, 127, 128, 129, 257, 1000, 1, 0]
    rng.shuffle(lengths)
    indptr = pointers(lengths)
    scale = np.repeat(10.0 ** rng.uniform(-1, 2, len(lengths)), lengths)
    offset = np.repeat(rng.choice([0.0, 100.0, -1e4], len(lengths)), lengths)
    return to_dtype(scale * rng.standard_normal(indptr[-1]) + offset, dtype), indptr


@every_function
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=lambda d: d.name + d.char)
def test_segments_are_rows_to_the_bit(isa: str, dtype: DType, name: str) -> None:
    x, indptr = case(FLOATS[-1]) if dtype in INTEGERS else case(dtype)
    if dtype in INTEGERS:
        x = (np.abs(x) % (2 if dtype.kind == "b" else 100)).astype(dtype)
    got = of_segments(name)(x, indptr)
    wanted = one_by_one(name, x, indptr)
    assert isinstance(got, np.ndarray)
    assert_same_bits(got, wanted, f"{name} of {dtype}")


@every_float
def test_accuracy(isa: str, dtype: DType) -> None:
    """Rows of every kind, end to end in one array."""
    for n in (1, 2, 7, 33, 129):
        names, rows = make_rows(dtype, n)
        indptr = np.arange(len(rows) + 1) * n
        for name in NAMES:
            exact = getattr(oracle, name)(rows)
            exact = exact[0] if name == "logsumexp" else exact
            got = of_segments(name)(rows.ravel(), indptr)
            assert got.dtype == (result_dtype(dtype) if name == "logsumexp" else dtype)
            shaped = got if name == "logsumexp" else got.reshape(rows.shape)

            def label(at: Any, n: int = n, kinds: Any = names) -> str:
                return f"length {n}, {kinds[at[0]]}"

            check_ulp(shaped, exact, label=label)


@every_function
def test_empty_segments(isa: str, name: str) -> None:
    """Nothing in the output of the element-wise ones, -inf in that of logsumexp."""
    x = np.array([1.0, 2.0, 3.0])
    got = of_segments(name)(x, [0, 0, 0, 2, 2, 3, 3])
    if name == "logsumexp":
        pair = softlane.logsumexp(x[:2])
        assert_same_bits(got, np.array([-inf, -inf, pair, -inf, 3.0, -inf]))
        assert_same_bits(of_segments(name)(np.empty(0), [0, 0, 0]), np.full(2, -inf))
        assert_same_bits(of_segments(name)(np.empty(0, np.float16), [0]), np.empty(0, np.float32))
    else:
        assert_same_bits(got, one_by_one(name, x, [0, 2, 3]))
        assert_same_bits(of_segments(name)(np.empty(0), [0, 0, 0]), np.empty(0))
        assert_same_bits(of_segments(name)(np.empty(0, np.float16), [0]), np.empty(0, np.float16))


@every_function
@every_float
def test_specials_stay_in_their_segment(isa: str, dtype: DType, name: str) -> None:
    x = np.array([1, nan, 2, inf, 1, -inf, -inf, -inf, 3, 4, 5], dtype)
    indptr = [0, 3, 5, 7, 9, 11]
    got = of_segments(name)(x, indptr)
    assert_same_bits(got, one_by_one(name, x, indptr))
    if name == "logsumexp":
        assert np.isnan(got[0]) and got[1] == inf and got[2] == -inf and got[3] == 3
    else:
        assert np.isnan(got[:7]).all() and np.isfinite(got[8:]).all()
        assert got[7] == (0 if name == "softmax" else -inf)


@every_function
@pytest.mark.parametrize("dtype", INDEXES, ids=lambda d: d.char)
def test_pointers_of_every_integer_dtype(isa: str, dtype: DType, name: str) -> None:
    x = rng_for("indptr").standard_normal(100)
    wanted = of_segments(name)(x, [0, 7, 7, 40, 100])
    indptr = np.array([0, 7, 7, 40, 100], dtype)
    for given_as in (
        indptr,
        swapped(indptr),
        strided(indptr, (-2,)),
        exported(indptr),
        indptr.tolist(),
        tuple(indptr.tolist()),
    ):
        assert_same_bits(of_segments(name)(x, given_as), wanted)


def test_pointers_of_scipy() -> None:
    """The indptr of a CSR matrix, and its data."""
    sparse: Any = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    dense = rng_for("csr").standard_normal((20, 30)) * (rng_for("csr 2").random((20, 30)) < 0.2)
    matrix = sparse.csr_matrix(dense)
    got = softlane.segment_softmax(matrix.data, matrix.indptr)
    sums = np.asarray(sparse.csr_matrix((got, matrix.indices, matrix.indptr), (20, 30)).sum(axis=1))
    filled = np.diff(matrix.indptr) > 0
    np.testing.assert_allclose(sums[filled, 0], 1, rtol=1e-14)
    assert (sums[~filled] == 0).all()


@every_function
@every_float
@pytest.mark.parametrize("layout", [k for k in LAYOUTS if k != "fortran"])
def test_layouts_of_x_and_out(fused_isa: str, dtype: DType, name: str, layout: str) -> None:
    x, indptr = case(dtype)
    wanted = of_segments(name)(x, indptr)
    put = LAYOUTS[layout]
    assert_same_bits(of_segments(name)(put(x), indptr), wanted, layout)
    for given_x in (x, put(x)):
        out = put(np.zeros_like(wanted))
        assert of_segments(name)(given_x, indptr, out=out) is out
        assert_same_bits(out, wanted, layout)


@every_function
@every_float
def test_long_segments_in_any_layout(isa: str, dtype: DType, name: str) -> None:
    """Longer than what is packed at once."""
    x = to_dtype(5 * rng_for("long").standard_normal(100_000), dtype)
    indptr = [0, 30719, 30719, 61440, 100_000]
    wanted = one_by_one(name, x, indptr)
    got = of_segments(name)(x, indptr)
    assert_same_bits(got, wanted)
    apart = of_segments(name)(strided(x, (-2,)), indptr)
    if isa in FUSED:
        assert_same_bits(apart, wanted)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(apart.astype(float), wanted.astype(float), rtol=0.01)


@every_float
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_out_in_place_and_overlapping(fused_isa: str, dtype: DType, name: str) -> None:
    """As if it did not: the same memory, shifted either way, reversed, and over the pointers."""
    x, indptr = case(dtype)
    n = len(x)
    wanted = of_segments(name)(x, indptr)
    same = x.copy()
    assert of_segments(name)(same, indptr, out=same) is same
    assert_same_bits(same, wanted)
    for shift in (1, 3, 64, n // 2):
        for forward in (True, False):
            room = np.zeros(n + shift, dtype)
            low, high = room[:n], room[shift:]
            source, out = (low, high) if forward else (high, low)
            source[...] = x
            of_segments(name)(source, indptr, out=out)
            assert_same_bits(out, wanted, f"shift {shift}")
    turned = x[::-1].copy()
    of_segments(name)(turned[::-1], indptr, out=turned)
    assert_same_bits(turned, wanted)
    every_other = np.zeros(2 * n, dtype)
    every_other[::2] = x
    of_segments(name)(every_other[::2], indptr, out=every_other[1::2])
    assert_same_bits(every_other[1::2], wanted)
    assert_same_bits(every_other[::2], x)


def test_out_over_the_pointers(isa: str) -> None:
    indptr = np.array([0, 2, 3, 5, 9])
    x = np.arange(9.0)
    for name in NAMES:
        wanted = of_segments(name)(x, indptr)
        room = np.zeros(9, np.int64)
        room[:5] = indptr
        out = room.view(np.float64)[: len(wanted)]
        of_segments(name)(x, room[:5], out=out)
        assert_same_bits(out, wanted)


def test_out_of_logsumexp_over_x(isa: str) -> None:
    for dtype in (np.float32, np.float64):
        x = rng_for("out").standard_normal(12).astype(dtype)
        indptr = [0, 1, 5, 5, 12]
        wanted = softlane.segment_logsumexp(x, indptr)
        for start in (0, 3, 8):
            room = x.copy()
            softlane.segment_logsumexp(room, indptr, out=room[start : start + 4])
            assert_same_bits(room[start : start + 4], wanted)


@every_function
def test_many_segments_and_threads(fused_isa: str, name: str) -> None:
    """The same bits with 1, 2 and 5 threads."""
    rng = rng_for("many")
    lengths = rng.integers(0, 12, 60_000)
    lengths[1234] = 200_000
    indptr = pointers(lengths)
    x = (3 * rng.standard_normal(indptr[-1])).astype(np.float32)
    with threads(1):
        wanted = of_segments(name)(x, indptr)
    for count in (2, 5):
        with threads(count):
            assert_same_bits(of_segments(name)(x, indptr), wanted)
    some = rng.integers(0, len(lengths), 300)
    function = getattr(softlane, name)
    for i in some:
        row = function(x[indptr[i] : indptr[i + 1]])
        got = wanted[i] if name == "logsumexp" else wanted[indptr[i] : indptr[i + 1]]
        assert_same_bits(got, row)


@every_function
def test_every_fused_set_gives_the_same_bits(name: str) -> None:
    for dtype in FLOATS:
        x, indptr = case(dtype)
        found = []
        for isa in (n for n in _core.isas_usable() if n in FUSED):
            with using(isa):
                found.append(of_segments(name)(x, indptr))
        for other in found[1:]:
            assert_same_bits(other, found[0])


@given(st.lists(st.integers(0, 50), max_size=12), st.sampled_from(NAMES), st.sampled_from(FLOATS))
@settings(derandomize=True, max_examples=100)
def test_any_lengths(lengths: list[int], name: str, dtype: DType) -> None:
    indptr = pointers(lengths)
    x = to_dtype(rng_for(lengths).standard_normal(indptr[-1]), dtype)
    for isa in _core.isas_usable():
        with using(isa):
            assert_same_bits(of_segments(name)(x, indptr), one_by_one(name, x, indptr), isa)


def test_lists_and_buffers() -> None:
    wanted = softlane.segment_softmax(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 3]))
    for x in ([1, 2, 3], (1.0, 2.0, 3.0), exported(np.array([1.0, 2.0, 3.0]))):
        assert_same_bits(softlane.segment_softmax(x, [0, 1, 3]), wanted)
    read_only = np.array([1.0, 2.0, 3.0])
    read_only.flags.writeable = False
    assert_same_bits(softlane.segment_softmax(read_only, [0, 1, 3]), wanted)


def test_inputs_are_not_changed() -> None:
    x, indptr = np.arange(5.0), np.array([0, 2, 5])
    untouched = snapshot(x, indptr)
    for name in NAMES:
        of_segments(name)(x, indptr)
    assert untouched()


# Errors

X = np.arange(5.0)
WRONG_POINTERS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "start": ([1, 5], ValueError, ("indptr[0] is 1", "expected 0")),
    "negative start": ([-1, 5], ValueError, ("indptr[0] is -1", "expected 0")),
    "end too small": ([0, 2, 4], ValueError, ("indptr", "4", "5")),
    "end too large": ([0, 2, 6], ValueError, ("indptr", "6", "5")),
    "end far too large": ([0, 2**62], ValueError, ("indptr", str(2**62), "5")),
    "descending": ([0, 3, 2, 5], ValueError, ("indptr[2] is 2", "3")),
    "descending below zero": ([0, -2, 5], ValueError, ("indptr[1] is -2", "0")),
    "above the end, then back": ([0, 9, 5], ValueError, ("indptr[2] is 5", "9")),
    "only zero": ([0], ValueError, ("indptr", "0", "5")),
    "none": (np.empty(0, int), ValueError, ("indptr", "(0,)")),
    "an empty list": ([], ValueError, ("indptr", "(0,)")),
    "a number": (5, ValueError, ("indptr", "()")),
    "two dimensions": ([[0, 5]], ValueError, ("indptr", "(1, 2)")),
    "floats": ([0.0, 5.0], TypeError, ("indptr", "float64", "integer")),
    "bool": ([False, True], TypeError, ("indptr", "bool", "integer")),
    "complex": (np.array([0j, 5]), TypeError, ("indptr", "complex128")),
    "strings": (["0", "5"], TypeError, ("indptr", "U1")),
    "objects": (np.array([0, 5], object), TypeError, ("indptr", "object")),
    "None": (None, (TypeError, ValueError), ("indptr",)),
    "ragged": ([[0], [1, 2]], ValueError, ("indptr",)),
    "masked": (np.ma.array([0, 5]), TypeError, ("indptr", "masked")),
    "unsigned and huge": (np.array([0, 2**64 - 1], np.uint64), ValueError, ("indptr", "5")),
    "unsigned and huge between": (
        np.array([0, 2**64 - 1, 5], np.uint64), ValueError, ("indptr[2] is 5",),
    ),
    "int8 that wrapped": (np.array([0, -128, 5], np.int8), ValueError, ("indptr[1] is -128",)),
}  # fmt: skip


@every_function
@pytest.mark.parametrize("wrong", list(WRONG_POINTERS))
def test_wrong_pointers(name: str, wrong: str) -> None:
    """Named with their position; x, indptr and out are as they were."""
    indptr, error, parts = WRONG_POINTERS[wrong]
    segments = len(indptr) - 1 if isinstance(indptr, (list, np.ndarray)) and len(indptr) else 0
    for length in (5, segments) if name == "logsumexp" else (5,):
        x, out = X.copy(), np.full(length, 7.0)
        untouched = snapshot(x, indptr, out)
        with pytest.raises(error) as caught:
            of_segments(name)(x, indptr)
        missing = [part for part in parts if part not in str(caught.value)]
        assert not missing, f"the message lacks {missing}: {caught.value}"
        with pytest.raises((TypeError, ValueError)):
            of_segments(name)(x, indptr, out=out)
        if name != "logsumexp":
            with pytest.raises(error):
                of_segments(name)(x, indptr, out=x)
        assert untouched()


@every_function
def test_the_value_of_a_huge_pointer_is_named(name: str) -> None:
    """Not that of the largest signed one."""
    with pytest.raises(ValueError, match=str(2**64 - 1)):
        of_segments(name)(X, np.array([0, 2**64 - 1], np.uint64))
