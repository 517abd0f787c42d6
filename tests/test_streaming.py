"""LogSumExp: the contract in any grouping and order of chunks, far offsets, specials, shapes, errors, pickling."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
import softlane
from oracle import Exact, check_ulp
from softlane import LogSumExp, _core
from support import (
    FLOATS,
    FUSED,
    HALVES,
    INTEGERS,
    LAYOUTS,
    WIDE,
    Array,
    DType,
    assert_same_bits,
    dtype_id,
    make_rows,
    result_dtype,
    rng_for,
    to_dtype,
    using,
)

every_float = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
AxisError: Any = getattr(np, "exceptions", np).AxisError
nan, inf = math.nan, math.inf


def exact_of(*chunks: Any) -> Exact:
    """Of all chunks together, whose shapes end in the axis that is summed."""
    return oracle.logsumexp(np.concatenate([np.asarray(c) for c in chunks], axis=-1))[0]


def check(state: LogSumExp, *chunks: Any, label: str = "") -> None:
    check_ulp(np.asarray(state.result()), exact_of(*chunks), label=label)


def summed(*chunks: Any) -> LogSumExp:
    state = LogSumExp()
    for chunk in chunks:
        state.update(chunk)
    return state


def split(x: Array, cuts: Any) -> list[Array]:
    return np.split(x, sorted(int(c) for c in cuts), axis=-1)


# Accuracy in any grouping


FAR_KINDS = (
    "offset 1e+30",
    "offset -1e+30",
    "constant -1.429e+29",
    "near the largest",
    "near the smallest",
    "both ends",
)


def check_rows(dtype: DType, n: int, left_out: Any = (), only: Any = None) -> None:
    """Rows of all kinds in 1 to 9 chunks, forwards and backwards."""
    kinds = [kind for kind in only or make_rows(dtype, n)[0] if kind not in left_out]
    names, x = make_rows(dtype, n, only=kinds)
    rng = rng_for("chunks", n)
    exact = exact_of(x)
    for pieces in (1, 2, 3, min(n, 9)):
        chunks = split(x, rng.integers(0, n + 1, pieces - 1))

        def label(at: Any, k: int = pieces) -> str:
            return f"{n} in {k} chunks, {names[at[0]]}"

        for order in (chunks, chunks[::-1]):
            got = summed(*order).result()
            assert got.dtype == result_dtype(dtype)
            check_ulp(got, exact, label=label)


@every_float
def test_rows_of_every_kind_in_chunks(isa: str, dtype: DType) -> None:
    for n in (1, 2, 7, 33, 129, 1000):
        check_rows(dtype, n, (*FAR_KINDS, "subnormal logits") if n == 1 else FAR_KINDS)


def test_rows_of_far_offsets_in_chunks(isa: str) -> None:
    """An empty chunk before them is one such chunk."""
    for n in (1, 2, 7, 33, 129):
        check_rows(np.dtype(np.float64), n, only=FAR_KINDS)


@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.float64,
    ],
)
def test_exponents_near_zero(isa: str, dtype: Any) -> None:
    """The result of one exponent is that exponent, whatever its size."""
    for value in (1e-12, 1e-20, -1e-20, 1e-30, 1e-37):
        x = np.array([value], dtype)
        check(summed(x), x, label=f"{value}")


BASES = [0.0, 1.5, -3.0, 255.9, -256.0, 700.0, 1e5, -1e5, 1e15]
DISTANCES = [0.0, -0.6931471805599453, -745.0, 745.0, -1e3, 1e4, -1e5, 1e15, -1e12]


@st.composite
def exponents(draw: Any, bases: Any = BASES, distances: Any = DISTANCES) -> list[float]:
    """Near one or more bases near or far from 0, at distances small, moderate or out of reach."""
    bases, far = st.sampled_from(bases), st.sampled_from(distances)
    near = st.floats(-30, 30, allow_nan=False).map(lambda v: round(v, 9))
    base = draw(bases)
    values = draw(st.lists(st.one_of(near, near, far), min_size=1, max_size=40))
    return [(draw(bases) if draw(st.integers(0, 9)) == 0 else base) + v for v in values]


def grouped(draw: Callable[[Any], Any], chunks: list[Array]) -> LogSumExp:
    """The chunks as leaves of some binary tree of merges and updates."""
    states = [LogSumExp() for _ in range(draw(st.integers(1, 4)))]
    for chunk in chunks:
        states[draw(st.integers(0, len(states) - 1))].update(chunk)
    while len(states) > 1:
        i = draw(st.integers(1, len(states) - 1))
        other = states.pop(i)
        j = draw(st.integers(0, len(states) - 1))
        states[j] = states[j].merge(other) if draw(st.booleans()) else other.merge(states[j])
    return states[0]


def check_grouping(values: list[float], dtype: Any, data: st.DataObject) -> None:
    x = to_dtype(values, np.dtype(dtype))
    order = data.draw(st.permutations(range(len(x))))
    cuts = data.draw(st.lists(st.integers(0, len(x)), max_size=6))
    for isa in _core.isas_usable():
        with using(isa):
            state = grouped(data.draw, split(x[list(order)], cuts))
            check(state, x, label=f"{isa}: {x.tolist()}")
            check(summed(*split(x, cuts)), x, label=f"{isa}: {x.tolist()}")


WIDE_DTYPES = st.sampled_from([np.float64, np.float32])


@given(exponents(), WIDE_DTYPES, st.data())
@settings(derandomize=True, max_examples=100)
def test_any_grouping_and_order(values: list[float], dtype: Any, data: st.DataObject) -> None:
    check_grouping(values, dtype, data)


@given(exponents([-1e30, 1e30, 0.0, 1e300], [1e300, 0.0, -1e300, 1e30]), WIDE_DTYPES, st.data())
@settings(derandomize=True, max_examples=50, report_multiple_bugs=False)
def test_any_grouping_of_far_exponents(
    values: list[float], dtype: Any, data: st.DataObject
) -> None:
    check_grouping(values, dtype, data)


@pytest.mark.parametrize("offset", [0.0, 1e5, -1e5, -1e30, 1e30, 1e300, -1e300, 255.0, -256.0])
def test_far_offsets(isa: str, offset: float) -> None:
    """In one dtype, against all of them at once."""
    for dtype in WIDE:
        if abs(offset) > 1e38 and dtype == np.float32:
            continue
        rng = rng_for("offset", offset)
        chunks = [to_dtype(offset + 20 * rng.standard_normal((3, 11)), dtype) for _ in range(7)]
        check(summed(*chunks), *chunks, label=f"{dtype} {offset}")
        check(summed(*chunks[::-1]), *chunks, label=f"{dtype} {offset}")


@pytest.mark.parametrize(
    "far",
    [745.0, 1e3, 1e4, 1e5, 1e6, 2.0**20, 1e7, 1e15, 1e17, 1e30, 1e100, 1e300, 1.7e308],
)
def test_chunks_out_of_each_others_reach(isa: str, far: float) -> None:
    """The larger one is the result, whatever comes first; nothing overflows."""
    for chunks in (
        [[0.0], [-far]], [[far], [0.0]], [[far], [-far]], [[far, 1.0], [-far, 2.0], [far]],
        [[-far], [-far]], [[far], [far]], [[far / 2], [-far / 2]],
    ):  # fmt: skip
        for order in (chunks, chunks[::-1]):
            check(summed(*order), *chunks, label=f"{order}")
            merged = LogSumExp()
            for chunk in order:
                merged = summed(chunk).merge(merged)
            check(merged, *chunks, label=f"merged {order}")


@pytest.mark.parametrize(
    "step",
    [
        *(1e-3, 0.5, 2.0**-13, 1.0, 300.0, 1e4),
        1e300 / 400,
    ],
)
@pytest.mark.parametrize("base", [0.0, 256.0, -300.0, 1e5])
def test_ascending_and_descending_chunks(step: float, base: float) -> None:
    """Every chunk brings a new maximum, or none does."""
    x = base + step * np.arange(400.0).reshape(200, 2)
    check(summed(*x), *x, label="ascending")
    check(summed(*x[::-1]), *x, label="descending")


@pytest.mark.parametrize("kind", ["ascending", "constant", "random", "ascending far", "descending"])
def test_many_tiny_updates(kind: str) -> None:
    """The errors of thousands of merges do not add up."""
    count = 5_000
    rows = {
        "ascending": 256 + 2.0**-13 * np.arange(count),
        "constant": np.full(count, 0.1),
        "random": 3 * rng_for("tiny").standard_normal(count),
        "ascending far": 1e5 + 2.0**-12 * np.arange(count),
        "descending": 300 - 2.0**-13 * np.arange(count),
    }
    x = rows[kind]
    check(summed(*x[:, None]), x, label=kind)


@every_float
def test_updates_of_many_results_at_once(isa: str, dtype: DType) -> None:
    """Shape (4, 5), the axis before, between and after."""
    rng = rng_for("axes")
    x = to_dtype(20 * rng.standard_normal((4, 5, 12)), dtype)
    exact = oracle.logsumexp(x)[0]
    for axis in (0, 1, 2, -1, -3):
        state = LogSumExp()
        for start in (0, 3, 8):
            chunk = x[..., start : (0, 3, 8, 12)[(0, 3, 8).index(start) + 1]]
            state.update(np.moveaxis(chunk, -1, axis), axis)
        assert state.shape == (4, 5)
        check_ulp(state.result(), exact, label=f"axis {axis}")
    everything = LogSumExp().update(x[0], None).update(x[1:], (0, 1, 2)).update([-3.0])
    assert everything.shape == ()
    check_ulp(
        np.asarray(everything.result()), exact_of(x.ravel(), np.array([-3.0], dtype))
    ) if dtype == np.float64 else None


@every_float
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts(fused_isa: str, dtype: DType, layout: str) -> None:
    """The same bits in any layout, also of rows longer than a packed chunk."""
    for shape in ((3, 33), (2, 31000)):
        x = to_dtype(5 * rng_for("layouts").standard_normal(shape), dtype)
        put = LAYOUTS[layout](x)
        assert_same_bits(summed(put, put).result(), summed(x, x).result())


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=lambda d: d.name + d.char)
def test_a_single_chunk_is_logsumexp(isa: str, dtype: DType) -> None:
    for n in (1, 5, 33, 300):
        values = rng_for("single", n).integers(0, 2 if dtype.kind == "b" else 90, (4, n))
        x = values.astype(dtype)
        got = LogSumExp().update(x).result()
        assert got.dtype == result_dtype(dtype)
        check_ulp(got, oracle.logsumexp(x)[0])
        if isa in FUSED:
            assert_same_bits(got, softlane.logsumexp(x))


@pytest.mark.parametrize("ordered", [True, False])
def test_every_fused_set_gives_the_same_bits(ordered: bool) -> None:
    chunks = [10 * rng_for("bits", i).standard_normal((5, 7)) for i in range(9)]
    found = []
    for name in (n for n in _core.isas_usable() if n in FUSED):
        with using(name):
            found.append(summed(*(chunks if ordered else chunks[::-1])).result())
    for other in found[1:]:
        assert_same_bits(other, found[0])


# Empty chunks and specials


@every_float
def test_empty_chunks_add_nothing(isa: str, dtype: DType) -> None:
    empty, x = np.empty((3, 0), dtype), to_dtype(rng_for("empty").standard_normal((3, 5)), dtype)
    got = summed(empty, x, empty, empty).result()
    assert_same_bits(got, summed(x).result())
    assert_same_bits(summed(empty).result(), np.full(3, -inf, result_dtype(dtype)))
    assert_same_bits(summed(empty, empty).result(), np.full(3, -inf, result_dtype(dtype)))
    nothing = summed(np.empty((0, 4), dtype), np.empty((0, 4), dtype))
    assert nothing.shape == (0,) and nothing.result().shape == (0,)


def test_before_the_first_chunk() -> None:
    state = LogSumExp()
    assert state.shape is None
    assert_same_bits(state.result(), np.float64(-inf))
    assert state.merge(LogSumExp()).shape is None
    assert repr(state) == "LogSumExp(shape=None, result=-inf)"
    assert repr(state.update([0.0])) == "LogSumExp(shape=(), result=0.0)"


SPECIALS: dict[str, tuple[list[list[float]], float]] = {
    "-inf first": ([[-inf], [1.0]], 1.0),
    "-inf last": ([[1.0], [-inf]], 1.0),
    "-inf alone": ([[-inf], [-inf, -inf]], -inf),
    "-inf among": ([[-inf, 2.0], [-inf], [-inf, -inf]], 2.0),
    "-inf, then far below": ([[-inf], [-1e300]], -1e300),
    "+inf first": ([[inf], [1.0], [2.0]], inf),
    "+inf last": ([[1.0], [2.0], [inf]], inf),
    "+inf twice": ([[inf], [inf]], inf),
    "+inf and -inf": ([[-inf], [inf], [-inf]], inf),
    "+inf and far": ([[1e300], [inf], [-1e300], [1e308]], inf),
    "a NaN first": ([[nan], [1.0], [2.0]], nan),
    "a NaN last": ([[1.0], [2.0], [nan]], nan),
    "NaN and +inf": ([[nan], [inf]], nan),
    "+inf and NaN": ([[inf], [nan], [1.0]], nan),
    "NaN and -inf": ([[-inf], [nan], [-inf]], nan),
    "NaN and far": ([[1e300], [nan], [1e308]], nan),
    "one element": ([[-7.5]], -7.5),
}


@pytest.mark.parametrize(
    "special",
    list(SPECIALS),
)
def test_specials_in_any_order(isa: str, special: str) -> None:
    """NaN wins over +inf, +inf over all numbers; -inf adds nothing. Neighbours are not spoilt."""
    chunks, expected = SPECIALS[special]
    for order in (chunks, chunks[::-1], chunks[1:] + chunks[:1]):
        rows = [np.stack([np.zeros(len(c)), c]) for c in order]
        state = summed(*rows)
        assert_same_bits(state.result()[1], np.float64(expected), special)
        merged = summed(rows[0])
        for row in rows[1:]:
            merged = summed(row).merge(merged)
        assert_same_bits(merged.result()[1], np.float64(expected), special)
        for got in (state.result(), merged.result()):
            assert abs(got[0] - math.log(sum(map(len, chunks)))) < 1e-15


# Merges


def test_merges_of_merges() -> None:
    chunks = [30 * rng_for("tree", i).standard_normal((4, 9)) for i in range(16)]
    level = [summed(c) for c in chunks]
    while len(level) > 1:
        level = [a.merge(b) for a, b in zip(level[::2], level[1::2], strict=True)]
    check(level[0], *chunks)


def test_a_merge_leaves_the_other_state_alone() -> None:
    a, b = summed([1.0, 2.0]), summed([3.0])
    before = b.result()
    a.merge(b).update([100.0])
    assert_same_bits(b.result(), before)
    empty = LogSumExp().merge(b)
    empty.update([50.0])
    assert_same_bits(b.result(), before)
    assert LogSumExp().merge(b) is not b
    assert_same_bits(b.merge(LogSumExp()).result(), before)


def test_a_state_merged_with_itself_is_doubled() -> None:
    x = [1000.0, 1001.0]
    state = summed(x)
    check(state.merge(state), x, x)


def test_update_and_merge_return_the_state() -> None:
    state = LogSumExp()
    assert state.update([1.0]) is state and state.merge(summed([2.0])) is state


def test_the_result_can_be_asked_for_at_any_time() -> None:
    """And is the caller's own: writing to it changes nothing."""
    x = rng_for("often").standard_normal((5, 3))
    state, quiet = LogSumExp(), LogSumExp()
    for i in range(3):
        state.update(x[:, i : i + 1])
        state.result()[...] = 7
        quiet.update(x[:, i : i + 1])
    assert_same_bits(state.result(), quiet.result())


def test_the_chunk_is_read_once_and_not_kept() -> None:
    x = np.array([[1.0, 2.0]])
    state = LogSumExp().update(x)
    before = state.result().copy()
    assert (x == [[1.0, 2.0]]).all()
    x[...] = 99
    assert_same_bits(state.result(), before)


def test_parts_in_threads() -> None:
    x = 50 * rng_for("threads").standard_normal((8, 3, 1000))
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda part: LogSumExp().update(part), x))
    total = LogSumExp()
    for state in states:
        total.merge(state)
    check(total, *x)


# Pickling


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickling(protocol: int) -> None:
    for state in (
        LogSumExp(),
        summed([1.0, 2.0]),
        summed(np.ones((3, 4), np.float32)),
        summed([1e300], [-inf]),
        summed([[nan], [inf]]),
    ):
        again = pickle.loads(pickle.dumps(state, protocol))
        assert isinstance(again, LogSumExp) and again.shape == state.shape
        assert_same_bits(again.result(), state.result())
        more = np.ones((*(state.shape or ()), 2), np.float32)
        before = state.result()
        again.update(more)
        assert_same_bits(state.result(), before)
        assert_same_bits(again.result(), state.update(more).result())


def test_copies() -> None:
    state = summed(np.ones((2, 3)))
    before = state.result()
    for copied in (copy.deepcopy(state), copy.copy(state)):
        copied.update(np.full((2, 1), 9.0))
        assert_same_bits(state.result(), before)


# dtypes


def test_the_dtype_of_the_result() -> None:
    """float64, or float32 where all chunks were of that or of a half type."""
    one = {d.name: np.ones(3, d) for d in FLOATS}
    for half in (d.name for d in HALVES):
        assert summed(one[half]).result().dtype == np.float32
        assert summed(one[half], one["float32"]).result().dtype == np.float32
        assert summed(one[half], one["float64"]).result().dtype == np.float64
    assert summed(one["float32"]).result().dtype == np.float32
    assert summed(one["float32"], one["float64"]).result().dtype == np.float64
    assert summed(one["float64"], one["float32"]).result().dtype == np.float64
    assert summed(np.ones(3, np.int8)).result().dtype == np.float64
    assert summed([1, 2]).result().dtype == np.float64
    assert summed(one["float32"]).merge(summed(one["float64"])).result().dtype == np.float64
    assert summed(one["float32"]).merge(LogSumExp()).result().dtype == np.float32
    assert LogSumExp().merge(summed(one["float32"])).result().dtype == np.float32
    assert isinstance(summed(one["float32"]).result(), np.float32)
    assert isinstance(summed([1.0]).result(), np.float64)


def test_the_sum_is_kept_wider_than_float32() -> None:
    """No rounding to float32 between chunks."""
    chunks = [np.array([v], np.float32) for v in (0.0, *[-17.0] * 1000)]
    check(summed(*chunks), *chunks)


# Errors

WRONG: dict[str, tuple[Callable[[Any], Any], Any, tuple[str, ...]]] = {
    "another shape": (
        lambda s: s.update(np.ones((4, 2))),
        ValueError,
        ("chunk", "(4, 2)", "axis -1", "(4,)", "(3,)", "chunks before"),
    ),
    "another axis": (
        lambda s: s.update(np.ones((2, 3)), 1),
        ValueError,
        ("chunk", "(2, 3)", "axis 1", "(2,)", "(3,)"),
    ),
    "a shape that would broadcast": (lambda s: s.update(np.ones((1, 3))), ValueError, ("(1,)",)),
    "all axes": (lambda s: s.update(np.ones((3, 2)), None), ValueError, ("axis None", "()", "(3,)")),
    "a number": (lambda s: s.update(1.0), ValueError, ("()", "(3,)")),
    "axis too large": (
        lambda s: s.update(np.ones((3, 2)), 2), AxisError, ("axis 2", "dimension 2"),
    ),
    "axis a float": (lambda s: s.update(np.ones((3, 2)), 1.0), TypeError, ("axis", "float")),
    "axis twice": (lambda s: s.update(np.ones((3, 2)), (1, -1)), ValueError, ("axis",)),
    "complex": (
        lambda s: s.update(np.ones((3, 2), complex)), TypeError, ("chunk", "complex128", "float64"),
    ),
    "longdouble": (
        lambda s: s.update(np.ones((3, 2), np.longdouble)),
        TypeError,
        ("chunk", np.dtype(np.longdouble).name),
    ),
    "strings": (lambda s: s.update(["a"] * 3), TypeError, ("chunk", "U1")),
    "None": (lambda s: s.update(None), TypeError, ("chunk", "object")),
    "ragged": (lambda s: s.update([[1], [2, 3], [4]]), ValueError, ("chunk",)),
    "masked": (
        lambda s: s.update(np.ma.masked_array(np.ones((3, 2)))), TypeError, ("chunk", "masked"),
    ),
    "no chunk": (lambda s: s.update(), TypeError, ("chunk",)),
    "merge of an array": (
        lambda s: s.merge(np.ones(3)), TypeError, ("other", "ndarray", "LogSumExp"),
    ),
    "merge of None": (lambda s: s.merge(None), TypeError, ("other", "NoneType", "LogSumExp")),
    "merge of a number": (lambda s: s.merge(0.0), TypeError, ("other", "float")),
    "merge of the class": (lambda s: s.merge(LogSumExp), TypeError, ("other", "type")),
    "merge of another shape": (
        lambda s: s.merge(LogSumExp().update(np.ones((5, 2)))),
        ValueError,
        ("other", "(5,)", "(3,)"),
    ),
    "merge of a scalar": (lambda s: s.merge(summed([1.0])), ValueError, ("other", "()", "(3,)")),
    "merge without other": (lambda s: s.merge(), TypeError, ("other",)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_arguments_leave_the_state_as_it_was(name: str) -> None:
    call, error, parts = WRONG[name]
    state = LogSumExp().update(np.arange(6.0).reshape(3, 2).astype(np.float32))
    before, shape = state.result(), state.shape
    with pytest.raises(error) as caught:
        call(state)
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"the message lacks {missing}: {caught.value}"
    assert state.shape == shape
    assert_same_bits(state.result(), before)
    assert_same_bits(
        state.update(np.ones((3, 1), np.float32)).result(),
        summed(
            np.arange(6.0).reshape(3, 2).astype(np.float32), np.ones((3, 1), np.float32)
        ).result(),
    )


def test_an_error_before_the_first_chunk_leaves_the_state_empty() -> None:
    state = LogSumExp()
    for bad in (np.ones(3, complex), np.float64(1.0)):
        with pytest.raises((TypeError, ValueError, IndexError)):
            state.update(bad, 3)
    assert state.shape is None
    assert state.update(np.ones((2, 2))).shape == (2,)


def test_it_takes_no_arguments_and_no_other_attributes() -> None:
    make: Any = LogSumExp
    with pytest.raises(TypeError):
        make([1.0])
    state: Any = LogSumExp()
    with pytest.raises(AttributeError):
        state.anything = 1
    with pytest.raises(AttributeError):
        state.shape = ()
