"""The NumPy reference against textbook numbers and the oracle: it is what the README and the demo compare with."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest

import oracle
import softlane
from oracle import check_ulp
from softlane import reference
from support import (
    FLOATS,
    INTEGERS,
    Array,
    DType,
    dtype_id,
    elementwise_dtype,
    make_rows,
    result_dtype,
    rng_for,
)

every_float = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
nan, inf = math.nan, math.inf
# log_softmax of 1, 2, 3 to more digits than float64 has.
LOG_P = [-2.40760596444438030, -1.40760596444438030, -0.40760596444438030448]
NAMES = [
    "softmax",
    "log_softmax",
    "logsumexp",
    "cross_entropy",
    "cross_entropy_with_grad",
    "segment_softmax",
    "segment_log_softmax",
    "segment_logsumexp",
    "softmax_backward",
    "log_softmax_backward",
]
# Plain NumPy: the rounding of x - max and of a naive sum, not the 2 ulp of the compiled functions.
LOOSE = {"float16": 1.0, "bfloat16": 1.0, "float32": 60.0, "float64": 400.0}


@pytest.mark.parametrize("name", NAMES)
def test_every_function_has_the_parameters_of_its_compiled_counterpart(name: str) -> None:
    compiled = inspect.signature(getattr(softlane, name)).parameters
    plain = inspect.signature(getattr(reference, name)).parameters
    if name == "cross_entropy":
        plain = inspect.signature(reference.cross_entropy_with_grad).parameters
    kept = [p for p in compiled if p not in ("out", "grad_out", "return_stats")]
    assert list(plain) == kept
    for parameter in kept:
        if compiled[parameter].default is not inspect.Parameter.empty:
            assert plain[parameter].default == compiled[parameter].default


def test_textbook_numbers() -> None:
    p = [0.09003057317038046, 0.24472847105479764, 0.6652409557748219]
    np.testing.assert_allclose(reference.softmax([1.0, 2.0, 3.0]), p, rtol=1e-15)
    np.testing.assert_allclose(reference.softmax([1000.0, 1001.0, 1002.0]), p, rtol=1e-15)
    np.testing.assert_allclose(reference.log_softmax([1.0, 2.0, 3.0]), LOG_P, rtol=4e-16)
    assert abs(reference.logsumexp(np.arange(10)) - 9.4586297444267107) < 1e-14
    assert abs(reference.logsumexp([1000.0, 1000.0]) - 1000.6931471805599) < 1e-12
    logits, labels = np.array([[2, 1, 0.1], [0.5, 2.5, 0.3]]), [0, 2]
    assert abs(reference.cross_entropy(logits, labels) - 1.4185397696491856) < 1e-14
    loss, grad = reference.cross_entropy_with_grad(np.zeros((1, 4)), [2])
    assert abs(loss - math.log(4)) < 1e-15
    np.testing.assert_allclose(grad, [[0.25, 0.25, -0.75, 0.25]], rtol=1e-15)


def test_the_naive_softmax_overflows() -> None:
    np.testing.assert_allclose(
        reference.softmax_naive([1.0, 2.0, 3.0]), reference.softmax([1.0, 2.0, 3.0]), rtol=1e-15
    )
    assert np.isnan(reference.softmax_naive([1000.0, 1001.0, 1002.0])).all()
    assert "nan" in str(reference.softmax_naive.__doc__)


def ordinary(dtype: DType, n: int) -> tuple[list[str], Array]:
    """The kinds of rows that plain NumPy computes well."""
    kinds = ["scale 1", "scale 10", "offset 100", "confident 10", "ascending", "two maxima"]
    names, rows = make_rows(dtype, n)
    return kinds, rows[[names.index(kind) for kind in kinds]]


@every_float
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_values(name: str, dtype: DType) -> None:
    for n in (1, 2, 7, 64, 257):
        kinds, rows = ordinary(dtype, n)
        got = getattr(reference, name)(rows)
        exact: Any = getattr(oracle, name)(rows)
        exact = exact[0] if name == "logsumexp" else exact
        assert got.dtype == (result_dtype(dtype) if name == "logsumexp" else dtype)
        loose = LOOSE[dtype.name] if name != "logsumexp" else 4.0
        check_ulp(got, exact, loose, label=lambda at: f"length {n}, {kinds[at[0]]}")


@every_float
def test_losses_and_gradients(dtype: DType) -> None:
    rng = rng_for("reference")
    for n in (2, 7, 64):
        _, x = ordinary(dtype, n)
        y = rng.integers(0, n, len(x))
        y[3] = -100
        options: dict[str, Any] = {
            "weight": rng.uniform(0.5, 2, n),
            "sample_weight": rng.uniform(0.5, 2, len(x)),
            "label_smoothing": 0.1,
            "temperature": 1.5,
        }
        for reduction in ("none", "sum", "mean"):
            exact = oracle.cross_entropy(x, y, reduction=reduction, **options)
            loss, grad = reference.cross_entropy_with_grad(x, y, reduction=reduction, **options)
            wanted = exact.loss if reduction == "none" else exact.reduced(reduction)
            check_ulp(np.asarray(loss), wanted, LOOSE[np.asarray(loss).dtype.name])
            check_ulp(grad, exact.grad, LOOSE[dtype.name])


@every_float
def test_backward(dtype: DType) -> None:
    rng = rng_for("reference")
    g = rng.standard_normal((5, 9)).astype(dtype)
    y = reference.softmax(rng.standard_normal((5, 9)).astype(dtype))
    bar = LOOSE[dtype.name]
    check_ulp(reference.softmax_backward(g, y), oracle.softmax_backward(g, y), bar)
    lp = reference.log_softmax(rng.standard_normal((5, 9)).astype(dtype))
    check_ulp(reference.log_softmax_backward(g, lp), oracle.log_softmax_backward(g, lp), bar)


@every_float
def test_specials(dtype: DType) -> None:
    rows = np.array(
        [[1, nan, 2], [1, inf, 2], [-inf, -inf, -inf], [0, -inf, 0]],
        dtype,
    )
    p, lp = reference.softmax(rows), reference.log_softmax(rows)
    assert np.isnan(p[:3]).all() and np.isnan(lp[:3]).all()
    assert (p[3] == [0.5, 0, 0.5]).all() and lp[3, 1] == -inf
    lse = reference.logsumexp(rows)
    assert np.isnan(lse[0]) and lse[1] == inf and lse[2] == -inf
    assert reference.logsumexp(inf, return_sign=True) == (inf, 1)
    assert reference.logsumexp([5.0, 5.0], b=[1, -1], return_sign=True) == (-inf, 0)
    assert np.isnan(reference.logsumexp([0.0, 0.0], b=[1, -3]))
    mask = np.array([True, False, True])
    assert (reference.softmax(rows[:2], where=mask)[:, 1] == 0).all()
    assert (reference.softmax(rows, where=False) == 0).all()
    assert (reference.log_softmax(rows, where=False) == -inf).all()


def test_dtypes_and_scalars() -> None:
    for dtype in FLOATS + INTEGERS:
        x = np.ones((2, 3), dtype)
        assert reference.softmax(x).dtype == elementwise_dtype(dtype)
        assert reference.logsumexp(x).dtype == result_dtype(dtype)
    assert isinstance(reference.softmax(3.0), np.float64)
    assert isinstance(reference.logsumexp([1.0, 2.0]), np.float64)
    assert reference.softmax(np.ones(3, np.float32), dtype=np.float64).dtype == np.float64


def test_bad_targets() -> None:
    with pytest.raises(IndexError, match="4"):
        reference.cross_entropy(np.zeros((2, 4)), [0, 4])
    with pytest.raises(ValueError, match="where"):
        reference.cross_entropy(np.zeros((2, 4)), [0, 3], where=[True, True, True, False])


def test_compiled_and_reference_agree(isa: str) -> None:
    rng = rng_for("agree")
    x, y = 5 * rng.standard_normal((6, 11)), rng.integers(0, 11, 6)
    mask = rng.random((6, 11)) < 0.8
    mask[np.arange(6), y] = True
    g = rng.standard_normal((6, 11))
    p, lp = softlane.softmax(x), softlane.log_softmax(x)
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("softmax", (x, 0), {"where": mask, "temperature": 0.5}),
        ("log_softmax", (x, None), {"where": mask}),
        ("logsumexp", (x, 0), {"b": g, "return_sign": True, "keepdims": True}),
        ("logsumexp", (x,), {"where": mask}),
        ("cross_entropy", (x, y), {"where": mask, "label_smoothing": 0.2, "weight": mask[0] + 0.5}),
        ("cross_entropy_with_grad", (x, y), {"where": mask, "sample_weight": np.arange(6.0)}),
        ("softmax_backward", (g, p, -1), {"temperature": 2.0}),
        ("log_softmax_backward", (g, lp, -1), {}),
    ]
    for name, positional, named in calls:
        got = getattr(softlane, name)(*positional, **named)
        want = getattr(reference, name)(*positional, **named)
        if not isinstance(got, tuple):
            got, want = (got,), (want,)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15, err_msg=name)
            assert np.shape(a) == np.shape(b) and np.asarray(a).dtype == np.asarray(b).dtype


@every_float
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_segments(name: str, dtype: DType) -> None:
    _, rows = make_rows(dtype, 9)
    x, indptr = rows.ravel(), [0, 4, 4, *range(9, rows.size + 1, 9)]
    got = getattr(reference, f"segment_{name}")(x, indptr)
    wanted = getattr(softlane, f"segment_{name}")(x, indptr)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    loose = LOOSE[got.dtype.name]
    finite = np.isfinite(wanted.astype(np.float64))
    exact = wanted.astype(oracle.LD)
    error = np.asarray(oracle.ulp_error(got, exact))
    assert (error[finite] <= loose).all(), float(error[finite].max())
    assert np.array_equal(got[~finite], wanted[~finite], equal_nan=True)
