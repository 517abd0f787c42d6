"""cross_entropy and cross_entropy_with_grad with integer targets: every sentence of the semantics, on each set."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

import oracle
import softlane
from oracle import CrossEntropy, check_ulp
from support import (
    FEW_TAILS,
    FLOATS,
    FUSED,
    HALVES,
    INTEGERS,
    TAILS,
    DType,
    assert_same_bits,
    dtype_id,
    elementwise_dtype,
    exported,
    make_rows,
    result_dtype,
    rng_for,
    to_dtype,
)

every_float = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
REDUCTIONS = ("none", "mean", "sum")
SIGNED = [d for d in INTEGERS if d.kind == "i"]
UNSIGNED = [d for d in INTEGERS if d.kind == "u"]

nan, inf = math.nan, math.inf

VARIANTS = (
    "plain",
    "weight",
    "sample_weight",
    "smoothing",
    "smoothing of one",
    "weight and smoothing",
    "temperature",
    "where",
    "where and smoothing",
    "everything",
)


class Case:
    """Logits of every kind, targets, the options of a variant, and the exact results."""

    def __init__(self, variant: str, dtype: DType, n: int) -> None:
        rng = rng_for("cross entropy", variant, n)
        self.names, self.logits = make_rows(
            dtype, n, infinities=variant in ("plain", "weight", "temperature")
        )
        count = len(self.names)
        self.targets = rng.integers(0, n, count)
        self.targets[::2] = np.argmax(self.logits[::2], axis=-1)
        self.options: dict[str, Any] = {}
        if variant in ("weight", "weight and smoothing", "everything"):
            self.options["weight"] = rng.uniform(0.1, 3.0, n)
        if variant in ("sample_weight", "everything"):
            self.options["sample_weight"] = rng.uniform(0.1, 3.0, count)
        if variant in ("smoothing", "weight and smoothing", "where and smoothing", "everything"):
            self.options["label_smoothing"] = 0.1
        if variant == "smoothing of one":
            self.options["label_smoothing"] = 1.0
        if variant in ("temperature", "everything"):
            self.options["temperature"] = 0.7
        if variant in ("where", "where and smoothing", "everything"):
            mask = rng.random(self.logits.shape) < 0.7
            mask[np.arange(count), self.targets] = True
            self.options["where"] = mask
        if variant == "everything":
            self.targets[5::7] = -100
        self.exact: CrossEntropy = oracle.cross_entropy(self.logits, self.targets, **self.options)

    def columns(self) -> dict[str, Any]:
        turned = dict(self.options)
        if "where" in turned:
            turned["where"] = turned["where"].T
        return turned


@functools.cache
def case(variant: str, dtype: DType, n: int) -> Case:
    return Case(variant, dtype, n)


# Accuracy


@every_float
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradient_in_rows_and_columns_of_every_length(
    isa: str, dtype: DType, variant: str
) -> None:
    for n in TAILS if variant == "plain" else FEW_TAILS:
        c = case(variant, dtype, n)
        turned = np.ascontiguousarray(c.logits.T)
        for layout, logits, axis, options in (
            ("rows", c.logits, -1, c.options),
            ("columns", turned, 0, c.columns()),
        ):

            def label(at: Any, layout: str = layout, n: int = n, c: Case = c) -> str:
                return f"{layout} of length {n}, {c.names[at[0]]}"

            loss = softlane.cross_entropy(logits, c.targets, axis, reduction="none", **options)
            assert loss.dtype == result_dtype(dtype) and loss.shape == (len(c.names),)
            check_ulp(loss, c.exact.loss, label=label)
            both, grad = softlane.cross_entropy_with_grad(
                logits, c.targets, axis, reduction="none", **options
            )
            check_ulp(both, c.exact.loss, label=label)
            if isa in FUSED:
                assert_same_bits(both, loss, "the loss with and without the gradient")
            assert grad.dtype == dtype and grad.shape == logits.shape
            check_ulp(grad if axis == -1 else grad.T, c.exact.grad, label=label)


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 64, 65, 127])
def test_panels_of_every_width(isa: str, columns: int) -> None:
    for dtype in FLOATS:
        rng = rng_for("panel", dtype, columns)
        x = to_dtype(4 * rng.standard_normal((2, 7, columns)), dtype)
        targets = rng.integers(0, 7, (2, columns))
        exact = oracle.cross_entropy(x, targets, 1)
        loss, grad = softlane.cross_entropy_with_grad(x, targets, 1, reduction="none")
        check_ulp(loss, exact.loss, label=f"{columns} columns")
        check_ulp(grad, exact.grad, label=f"{columns} columns")


@every_float
@pytest.mark.parametrize("variant", ["plain", "weight", "sample_weight", "everything"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(isa: str, dtype: DType, variant: str, reduction: str) -> None:
    """Sums accumulate in float64; the gradient of the mean is divided by the same divisor."""
    for n in (1, 2, 7, 33, 129):
        c = case(variant, dtype, n)
        finite = np.isfinite(c.exact.loss.value)
        logits, targets = c.logits[finite], c.targets[finite]
        options = {
            k: v[finite] if k in ("sample_weight", "where") else v for k, v in c.options.items()
        }
        exact = oracle.cross_entropy(logits, targets, reduction=reduction, **options)
        loss, grad = softlane.cross_entropy_with_grad(
            logits, targets, reduction=reduction, **options
        )
        assert isinstance(loss, result_dtype(dtype).type)
        alone = softlane.cross_entropy(logits, targets, reduction=reduction, **options)
        if isa in FUSED:
            assert_same_bits(alone, loss)
        for value in (alone, loss):
            check_ulp(
                np.asarray(value),
                exact.reduced(reduction),
                3.0 if dtype != np.float64 else 6.0,
                label=f"length {n}",
            )
        bar = 3.0 if dtype == np.float64 and variant != "plain" and reduction == "mean" else None
        check_ulp(grad, exact.grad, bar, label=lambda at: f"length {n}, {c.names[at[0]]}")


def test_mean_is_the_default(isa: str) -> None:
    x, y = rng_for("mean").standard_normal((9, 5)), np.arange(9) % 5
    assert_same_bits(softlane.cross_entropy(x, y), softlane.cross_entropy(x, y, reduction="mean"))
    for got, expected in zip(
        softlane.cross_entropy_with_grad(x, y),
        softlane.cross_entropy_with_grad(x, y, reduction="mean"),
        strict=True,
    ):
        assert_same_bits(got, expected)


def test_sums_accumulate_in_float64(isa: str) -> None:
    """A float32 running sum over this many samples is off by hundreds of ulp."""
    count = 300_000
    x = np.zeros((count, 2), np.float32)
    y = np.zeros(count, np.int64)
    single = float(softlane.cross_entropy(x[:1], y[:1], reduction="none")[0])
    total = softlane.cross_entropy(x, y, reduction="sum")
    assert total.dtype == np.float32 and total == np.float32(single * count)
    assert softlane.cross_entropy(x, y) == np.float32(single)


def test_textbook_values(isa: str) -> None:
    logits, labels = np.array([[2, 1, 0.1], [0.5, 2.5, 0.3]]), np.array([0, 2])
    assert abs(softlane.cross_entropy(logits, labels) - 1.4185397696491856) < 1e-14
    assert abs(softlane.cross_entropy(np.zeros((4, 10)), np.arange(4)) - math.log(10)) < 1e-15
    loss, grad = softlane.cross_entropy_with_grad(np.zeros((1, 4)), [2])
    assert abs(loss - math.log(4)) < 1e-15
    np.testing.assert_allclose(grad, [[0.25, 0.25, -0.75, 0.25]], rtol=1e-15)


@every_float
def test_confident_rows_keep_every_digit(isa: str, dtype: DType) -> None:
    """The loss is log1p of the rest and the gradient at the target expm1(-loss), not p - 1."""
    gaps = [5.0, 16.0, 40.0, 80.0] + ([300.0, 700.0, 740.0] if dtype == np.float64 else [])
    for gap in gaps:
        x = to_dtype([[gap, 0.0], [0.0, -gap]], dtype)
        loss, grad = softlane.cross_entropy_with_grad(x, np.array([0, 0]), reduction="none")
        expected = math.log1p(math.exp(-gap))
        assert (loss > 0).all()
        np.testing.assert_allclose(
            loss.astype(float), expected, rtol=1e-6 if expected > 1e-37 else 0.01
        )
        check_ulp(grad, oracle.cross_entropy(x, [0, 0]).grad)


@every_float
def test_loss_is_never_negative(isa: str, dtype: DType) -> None:
    for n in FEW_TAILS:
        _, rows = make_rows(dtype, n, infinities=False)
        assert (softlane.cross_entropy(rows, np.argmax(rows, axis=-1), reduction="none") >= 0).all()


@every_float
def test_a_common_offset_cancels_in_the_loss(isa: str, dtype: DType) -> None:
    """(max - z_y) + log(sum), never logsumexp - z_y, which has no digits left beside the offset."""
    for n in (2, 9, 33):
        steps = rng_for("offset", n).integers(0, 8, (5, n)) / 8.0
        y = np.arange(5) % n
        for offset in (64.0, -100.0) if dtype in HALVES else (1e5, -1e5):
            x = to_dtype(steps * (8 if dtype in HALVES else 1) + offset, dtype)
            exact = oracle.cross_entropy(x.astype(np.float64) - offset, y)
            loss, grad = softlane.cross_entropy_with_grad(x, y, reduction="none")
            check_ulp(loss, exact.loss)
            check_ulp(grad, exact.grad)


# Integer logits, dtype


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: d.char)
def test_integer_logits_are_computed_as_float64(isa: str, dtype: DType) -> None:
    rng = rng_for("integers", dtype)
    x = (rng.integers(0, 2, (6, 19)) if dtype.kind == "b" else rng.integers(0, 60, (6, 19))).astype(
        dtype
    )
    y = rng.integers(0, 19, 6)
    exact = oracle.cross_entropy(x, y)
    loss, grad = softlane.cross_entropy_with_grad(x, y, reduction="none")
    assert loss.dtype == grad.dtype == np.float64
    check_ulp(loss, exact.loss)
    check_ulp(grad, exact.grad)


@every_float
@pytest.mark.parametrize("to", FLOATS, ids=dtype_id)
def test_dtype_is_computed_in_and_returned(isa: str, dtype: DType, to: DType) -> None:
    wider = np.promote_types(
        np.float32 if dtype in HALVES else dtype, np.float32 if to in HALVES else to
    )
    bar = None if wider == to else 0.51
    for n in (2, 7, 37):
        c = case("plain", dtype, n)
        loss, grad = softlane.cross_entropy_with_grad(
            c.logits, c.targets, reduction="none", dtype=to
        )
        assert loss.dtype == to and grad.dtype == to
        check_ulp(loss, c.exact.loss, bar, label=lambda at: c.names[at[0]])
        check_ulp(grad, c.exact.grad, bar, label=lambda at: c.names[at[0]])
        alone = softlane.cross_entropy(c.logits, c.targets, reduction="none", dtype=to)
        check_ulp(alone, c.exact.loss, bar, label=lambda at: c.names[at[0]])


def test_result_types() -> None:
    for dtype in FLOATS + INTEGERS:
        x = np.ones((4, 3), dtype)
        loss, grad = softlane.cross_entropy_with_grad(x, [0, 1, 2, 0])
        assert isinstance(loss, result_dtype(dtype).type)
        assert grad.dtype == elementwise_dtype(dtype)
        assert isinstance(
            softlane.cross_entropy(x[0], 1, reduction="none"), result_dtype(dtype).type
        )
        assert softlane.cross_entropy(x, [0, 1, 2, 0], reduction="none").dtype == result_dtype(
            dtype
        )


# Targets


@pytest.mark.parametrize("dtype", SIGNED + UNSIGNED, ids=lambda d: d.char)
def test_targets_of_any_integer_type(isa: str, dtype: DType) -> None:
    x = rng_for("targets").standard_normal((40, 37))
    y = np.arange(40) % 37
    expected = softlane.cross_entropy_with_grad(x, y, reduction="none")
    for targets in (
        y.astype(dtype),
        y.astype(dtype.newbyteorder()),
        np.repeat(y, 2).astype(dtype)[::2],
    ):
        for got, want in zip(
            softlane.cross_entropy_with_grad(x, targets, reduction="none"), expected, strict=True
        ):
            assert_same_bits(got, want)


def test_targets_as_a_list_a_memoryview_or_a_scalar(isa: str) -> None:
    x = rng_for("targets").standard_normal((3, 5))
    expected = softlane.cross_entropy(x, np.array([1, 4, 0]), reduction="none")
    assert_same_bits(softlane.cross_entropy(x, [1, 4, 0], reduction="none"), expected)
    assert_same_bits(softlane.cross_entropy(x, (1, 4, 0), reduction="none"), expected)
    assert_same_bits(
        softlane.cross_entropy(x, exported(np.array([1, 4, 0])), reduction="none"), expected
    )
    assert softlane.cross_entropy(x[1], 4, reduction="none") == expected[1]
    assert softlane.cross_entropy(x[1], np.uint8(4)) == expected[1]


@pytest.mark.parametrize("dtype", SIGNED + UNSIGNED, ids=lambda d: d.char)
@pytest.mark.parametrize("ignore", [-100, -1, 0, 3, 5, 120])
def test_ignored_whatever_its_value(isa: str, dtype: DType, ignore: int) -> None:
    """Also at and beyond C, and also where an unsigned target cannot hold the value."""
    if not np.iinfo(dtype).min <= ignore <= np.iinfo(dtype).max:
        x, y = rng_for("ignore").standard_normal((4, 5)), np.array([0, 4, 2, 1], dtype)
        expected = softlane.cross_entropy(x, y.astype(np.int64), reduction="none")
        assert_same_bits(
            softlane.cross_entropy(x, y, ignore_index=ignore, reduction="none"), expected
        )
        return
    x, y = rng_for("ignore").standard_normal((4, 5)), np.array([1, ignore, 2, 4], dtype)
    loss, grad = softlane.cross_entropy_with_grad(x, y, ignore_index=ignore, reduction="none")
    exact = oracle.cross_entropy(x, y, ignore_index=ignore)
    check_ulp(loss, exact.loss)
    check_ulp(grad, exact.grad)
    assert loss[1] == 0 and (grad[1] == 0).all()


@pytest.mark.parametrize("ignore", [2**63 - 1, -(2**63), 2**31, -(2**40)])
def test_ignore_index_of_any_size(isa: str, ignore: int) -> None:
    x = rng_for("ignore").standard_normal((3, 5))
    loss = softlane.cross_entropy(
        x, np.array([1, ignore, 2]), ignore_index=ignore, reduction="none"
    )
    assert loss[1] == 0 and (loss[::2] > 0).all()
    plain = softlane.cross_entropy(
        x.astype(np.float32), np.array([1, 4, 2], np.uint64), ignore_index=ignore
    )
    assert np.isfinite(plain)


def test_a_large_unsigned_target_is_not_taken_for_a_negative_one(isa: str) -> None:
    x = np.zeros((2, 5))
    with pytest.raises(IndexError, match="18446744073709551516"):
        softlane.cross_entropy(x, np.array([1, 2**64 - 100], np.uint64))
    loss = softlane.cross_entropy(
        x, np.array([1, 156], np.uint8), ignore_index=156, reduction="none"
    )
    assert loss[1] == 0
    with pytest.raises(IndexError, match="156"):
        softlane.cross_entropy(x, np.array([1, 156], np.uint8), ignore_index=-100)


@every_float
@pytest.mark.parametrize("variant", ["plain", "smoothing", "weight", "where"])
def test_ignored_rows_have_no_part_even_where_their_logits_are_not_finite(
    isa: str, dtype: DType, variant: str
) -> None:
    rng = rng_for("ignored", variant)
    for n in (2, 7, 16, 33, 129):
        x = to_dtype(rng.standard_normal((9, n)), dtype)
        y = rng.integers(0, n, 9)
        variants: dict[str, dict[str, Any]] = {
            "plain": {},
            "smoothing": {"label_smoothing": 0.1},
            "weight": {"weight": rng.uniform(0.5, 2, n)},
            "where": {"where": np.ones((9, n), bool)},
        }
        options = variants[variant]
        x[2], x[4], x[6], x[7] = nan, inf, -inf, nan
        y[[2, 4, 6, 7]] = -100
        kept = np.array([0, 1, 3, 5, 8])
        for reduction in REDUCTIONS:
            for axis, logits in ((-1, x), (0, x.T.copy())):
                spare = options | (
                    {"where": np.ones(logits.shape, bool)} if variant == "where" else {}
                )
                loss, grad = softlane.cross_entropy_with_grad(
                    logits, y, axis, reduction=reduction, **spare
                )
                grad = grad if axis == -1 else grad.T
                clean = options | ({"where": True} if variant == "where" else {})
                want, want_grad = softlane.cross_entropy_with_grad(
                    x[kept], y[kept], reduction=reduction, **clean
                )
                assert (grad[[2, 4, 6, 7]] == 0).all()
                if reduction == "none":
                    assert (loss[[2, 4, 6, 7]] == 0).all()
                    assert_same_bits(loss[kept], want)
                    assert_same_bits(grad[kept], want_grad)
                else:
                    np.testing.assert_allclose(float(loss), float(want), rtol=3e-7)
                    assert np.isfinite(grad).all()


# Reductions over nothing


@every_float
def test_mean_over_nothing_is_nan_and_sum_is_zero(isa: str, dtype: DType) -> None:
    for x, y in (
        (np.ones((3, 5), dtype), np.full(3, -100)),
        (np.ones((0, 5), dtype), np.empty(0, np.int64)),
        (np.ones((2, 0, 5), dtype), np.empty((2, 0), np.int64)),
    ):
        for function in (
            softlane.cross_entropy,
            lambda *a, **k: softlane.cross_entropy_with_grad(*a, **k)[0],
        ):
            assert np.isnan(function(x, y))
            assert function(x, y, reduction="sum") == 0
            assert_same_bits(
                function(x, y, reduction="none"), np.zeros(y.shape, result_dtype(dtype))
            )
        for reduction in REDUCTIONS:
            _, grad = softlane.cross_entropy_with_grad(x, y, reduction=reduction)
            assert grad.shape == x.shape and (grad == 0).all()


def test_weights_that_add_up_to_zero_give_a_nan_mean(isa: str) -> None:
    x = rng_for("zero weights").standard_normal((2, 2))
    assert np.isnan(softlane.cross_entropy(x, [0, 0], sample_weight=[0.0, 0.0]))
    assert softlane.cross_entropy(x, [0, 0], sample_weight=[0.0, 0.0], reduction="sum") == 0
    assert np.isnan(softlane.cross_entropy(x[:, :2] * 0, [0, 1], weight=[1.0, -1.0]))
    for dtype in FLOATS:
        for classes in (2, 200):  # a panel, and rows
            loss, grad = softlane.cross_entropy_with_grad(
                np.zeros((2, classes), dtype), [0, 1], weight=[1.0, -1.0] * (classes // 2)
            )
            assert np.isnan(loss)
            assert np.isnan(grad.astype(float)).all(), dtype


@every_float
def test_certain_rows_have_a_gradient_of_plus_zero(isa: str, dtype: DType) -> None:
    for x in ([[3.0]], [[3.0]] * 20, [[2000.0, 0.0]], [[2000.0, 0.0]] * 20):
        _, grad = softlane.cross_entropy_with_grad(np.array(x, dtype), [0] * len(x))
        assert_same_bits(grad, np.zeros(grad.shape, dtype))


# Specials


@every_float
def test_minus_infinity_at_the_target_is_an_infinite_loss(isa: str, dtype: DType) -> None:
    for n in (2, 5, 16, 33, 70):
        x = np.ones((n, n), dtype)
        np.fill_diagonal(x, -inf)
        loss, grad = softlane.cross_entropy_with_grad(x, np.arange(n), reduction="none")
        assert (loss == inf).all()
        assert (np.diagonal(grad) == -1).all()
        check_ulp(grad, oracle.cross_entropy(x, np.arange(n)).grad)
        other = softlane.cross_entropy(x, (np.arange(n) + 1) % n, reduction="none")
        assert np.isfinite(other).all()


@every_float
def test_with_smoothing_any_minus_infinity_is_an_infinite_loss(isa: str, dtype: DType) -> None:
    for n in (2, 5, 16, 33, 70):
        x = np.ones((n, n), dtype)
        np.fill_diagonal(x, -inf)
        targets = (np.arange(n) + 1) % n
        assert (
            softlane.cross_entropy(x, targets, label_smoothing=0.1, reduction="none") == inf
        ).all()
        mask = ~np.eye(n, dtype=bool)
        loss, grad = softlane.cross_entropy_with_grad(
            x, targets, label_smoothing=0.1, where=mask, reduction="none"
        )
        assert np.isfinite(loss).all() and np.isfinite(grad).all()
        assert (np.diagonal(grad) == 0).all()


@every_float
@pytest.mark.parametrize("value", [nan, inf])
def test_a_nan_or_infinity_gives_a_nan_loss_and_gradient_of_that_row_alone(
    isa: str, dtype: DType, value: float
) -> None:
    for n in (2, 5, 16, 33, 70):
        x = np.ones((2 * n, n), dtype)
        x[np.arange(n) * 2, np.arange(n)] = value
        for axis, logits in ((-1, x), (0, x.T.copy())):
            loss, grad = softlane.cross_entropy_with_grad(
                logits, np.zeros(2 * n, int), axis, reduction="none"
            )
            grad = grad if axis == -1 else grad.T
            assert np.isnan(loss[::2]).all() and np.isfinite(loss[1::2]).all()
            assert np.isnan(grad[::2]).all() and np.isfinite(grad[1::2]).all()


# where


@every_float
def test_where_masks_classes(isa: str, dtype: DType) -> None:
    """p = 0 and gradient 0 outside; what is there never leaks; C counts the classes inside."""
    rng = rng_for("where")
    for n in (2, 7, 16, 33, 129):
        x = to_dtype(rng.standard_normal((6, n)), dtype)
        y = rng.integers(0, n, 6)
        mask = rng.random((6, n)) < 0.5
        mask[np.arange(6), y] = True
        exact = oracle.cross_entropy(x, y, where=mask, label_smoothing=0.2)
        for junk in (nan, inf, -inf, 30000.0):
            dirty = np.where(mask, x, to_dtype(junk, dtype))
            loss, grad = softlane.cross_entropy_with_grad(
                dirty, y, where=mask, label_smoothing=0.2, reduction="none"
            )
            check_ulp(loss, exact.loss)
            check_ulp(grad, exact.grad)
            assert (grad[~mask] == 0).all()


def test_where_weights_outside_have_no_part(isa: str) -> None:
    x, mask = rng_for("weights").standard_normal((2, 5)), np.array([True, True, False, True, False])
    clean = softlane.cross_entropy_with_grad(
        x, [0, 1], weight=[1, 2, 3, 4, 5], where=mask, label_smoothing=0.3, reduction="none"
    )
    dirty = softlane.cross_entropy_with_grad(
        x, [0, 1], weight=[1, 2, nan, 4, inf], where=mask, label_smoothing=0.3, reduction="none"
    )
    assert_same_bits(dirty[0], clean[0])
    assert_same_bits(dirty[1], clean[1])


def test_where_broadcasts(isa: str) -> None:
    x, y = rng_for("where").standard_normal((3, 4, 5)), np.zeros((3, 4), int)
    for shape in ((5,), (1, 5), (4, 1), (3, 4, 5), (), (1, 1, 1)):
        mask = np.asarray(rng_for(shape).random(shape) < 0.8)
        mask = mask | (np.arange(5) == 0) if shape and shape[-1] == 5 else np.ones(shape, bool)
        full = np.broadcast_to(mask, x.shape)
        exact = oracle.cross_entropy(x, y, where=full)
        loss, grad = softlane.cross_entropy_with_grad(x, y, where=mask, reduction="none")
        check_ulp(loss, exact.loss)
        check_ulp(grad, exact.grad)


# weight and sample_weight


WEIGHT_DTYPES = list(FLOATS + INTEGERS)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=lambda d: d.name + d.char)
def test_weights_of_any_real_dtype(isa: str, dtype: DType) -> None:
    rng = rng_for("weights", dtype)
    for logits_dtype in (np.float32, np.float64):
        x, y = rng.standard_normal((7, 19)).astype(logits_dtype), rng.integers(0, 19, 7)
        weight = (
            to_dtype(rng.integers(0, 2 if dtype.kind == "b" else 5, 19), dtype)
            if dtype in FLOATS
            else None
        )
        if weight is None:
            weight = rng.integers(0, 2 if dtype.kind == "b" else 5, 19).astype(dtype)
        sample_weight = (np.arange(7) % (2 if dtype.kind == "b" else 4)).astype(dtype)
        exact = oracle.cross_entropy(x, y, weight=weight, sample_weight=sample_weight)
        loss, grad = softlane.cross_entropy_with_grad(
            x, y, weight=weight, sample_weight=sample_weight, reduction="none"
        )
        assert loss.dtype == grad.dtype == logits_dtype
        check_ulp(loss, exact.loss)
        check_ulp(grad, exact.grad)


def test_weights_as_lists_and_strided(isa: str) -> None:
    x, y = rng_for("weights").standard_normal((4, 5)), [0, 1, 2, 3]
    w = np.array([1.0, 2.0, 0.5, 3.0, 4.0])
    expected = softlane.cross_entropy(x, y, weight=w, sample_weight=w[:4])
    assert softlane.cross_entropy(x, y, weight=w.tolist(), sample_weight=w[:4].tolist()) == expected
    assert (
        softlane.cross_entropy(x, y, weight=np.repeat(w, 3)[::3], sample_weight=w[3::-1][::-1])
        == expected
    )
    assert (
        softlane.cross_entropy(x, y, weight=w.astype(">f8"), sample_weight=w[:4].astype(">f4"))
        == expected
    )


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 4), (3, 4)])
def test_sample_weight_broadcasts_to_the_targets(isa: str, shape: tuple[int, ...]) -> None:
    rng = rng_for("sample weight", shape)
    x, y, w = rng.standard_normal((3, 4, 5)), rng.integers(0, 5, (3, 4)), rng.uniform(0.5, 2, shape)
    full = np.broadcast_to(w, (3, 4))
    for reduction in REDUCTIONS:
        got = softlane.cross_entropy_with_grad(x, y, sample_weight=w, reduction=reduction)
        want = softlane.cross_entropy_with_grad(
            x, y, sample_weight=full.copy(), reduction=reduction
        )
        assert_same_bits(got[0], want[0])
        assert_same_bits(got[1], want[1])
    check_ulp(
        softlane.cross_entropy(x, y, sample_weight=w, reduction="none"),
        oracle.cross_entropy(x, y, sample_weight=full).loss,
    )


@pytest.mark.parametrize("temperature", [1e-2, 1e-4, 1e-8, 1e-12, 1e-20])
def test_a_vanished_probability_stays_zero_under_large_factors(
    isa: str, temperature: float
) -> None:
    """Its gradient and its part of the loss are 0 after division by the temperature and weights too."""
    for dtype in (np.float32, np.float64):
        x = np.array([[0.0, -200.0, -3000.0], [1e4, 2e4, -3e4]], dtype)
        for weight in ([1.0] * 3, [1e6, 1e6, 1e6], [1e12, 1e3, 1e12]):
            for y in ([0, 1], [2, 0]):
                exact = oracle.cross_entropy(x, y, weight=weight, temperature=temperature)
                loss, grad = softlane.cross_entropy_with_grad(
                    x, y, weight=weight, temperature=temperature, reduction="none"
                )
                check_ulp(loss, exact.loss, label=f"{np.dtype(dtype)}, weight {weight}")
                check_ulp(grad, exact.grad, label=f"{np.dtype(dtype)}, weight {weight}")


@every_float
def test_a_class_of_weight_zero_counts_nothing(isa: str, dtype: DType) -> None:
    """Whatever its logit: 0 times an infinite loss is 0."""
    x = np.array([[1, -inf, 2], [1, 2, 3]], dtype)
    loss, grad = softlane.cross_entropy_with_grad(x, [1, 1], weight=[1, 0, 1], reduction="none")
    assert (loss == 0).all() and (grad == 0).all()


@every_float
def test_negative_class_weights_are_accepted(isa: str, dtype: DType) -> None:
    rng = rng_for("negative weights")
    x, y = to_dtype(rng.standard_normal((9, 17)), dtype), rng.integers(0, 17, 9)
    weight = rng.standard_normal(17)
    for smoothing in (0.0, 0.3):
        exact = oracle.cross_entropy(x, y, weight=weight, label_smoothing=smoothing)
        loss, grad = softlane.cross_entropy_with_grad(
            x, y, weight=weight, label_smoothing=smoothing, reduction="none"
        )
        check_ulp(loss, exact.loss)
        check_ulp(grad, exact.grad)


def test_weights_at_the_ends_of_the_range(isa: str) -> None:
    """Products are scaled so that nothing overflows or vanishes that the result does not."""
    x, y = np.array([[0.0, 90.0], [90.0, 0.0], [1.0, 1.0]], np.float32), [1, 1, 0]
    for weight in ([1e38, 1e38], [1e-30, 1e-40], [1e300, 1e-300], [1e-300, 1e-300]):
        exact = oracle.cross_entropy(x, y, weight=weight)
        loss, grad = softlane.cross_entropy_with_grad(x, y, weight=weight, reduction="none")
        check_ulp(loss, exact.loss, label=f"weight {weight}")
        check_ulp(grad, exact.grad, label=f"weight {weight}")
    # A factor beyond float32's range, and probabilities that are 0.
    for rows in (1, 20):
        x = np.tile(np.array([[0, -100, -1000, -np.inf]], np.float32), (rows, 1))
        y, weight = [0] * rows, [1e60, 1, 1, 1]
        exact = oracle.cross_entropy(x, y, weight=weight)
        _, grad = softlane.cross_entropy_with_grad(x, y, weight=weight, reduction="none")
        check_ulp(grad[:, :2], oracle.Exact(*(part[:, :2] for part in exact.grad)))
        assert not grad[:, 2:].any()


# Shapes and axes


@every_float
@pytest.mark.parametrize("axis", [-1, 0, 1, 2, 3, -2, -4])
def test_every_class_axis(isa: str, dtype: DType, axis: int) -> None:
    rng = rng_for("class axis", axis)
    x = to_dtype(2 * rng.standard_normal((3, 4, 5, 6)), dtype)
    shape = tuple(np.delete(x.shape, axis))
    y = rng.integers(0, x.shape[axis], shape)
    exact = oracle.cross_entropy(x, y, axis)
    loss, grad = softlane.cross_entropy_with_grad(x, y, axis, reduction="none")
    assert loss.shape == shape and grad.shape == x.shape
    check_ulp(loss, exact.loss)
    check_ulp(grad, exact.grad)


@every_float
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_sample_gives_a_scalar(isa: str, dtype: DType, reduction: str) -> None:
    x = to_dtype([1, 2, 3, 4], dtype)
    loss, grad = softlane.cross_entropy_with_grad(x, 2, reduction=reduction)
    assert isinstance(loss, result_dtype(dtype).type)
    exact = oracle.cross_entropy(x, 2)
    check_ulp(np.asarray(loss), exact.loss)
    check_ulp(grad, exact.grad)


def test_no_classes(isa: str) -> None:
    assert softlane.cross_entropy(np.empty((0, 0)), np.empty(0, int), reduction="none").shape == (
        0,
    )
    with pytest.raises(IndexError):
        softlane.cross_entropy(np.empty((2, 0)), [0, 0])
    # Slices keep their strides: columns of nothing.
    for dtype in FLOATS:
        x, grad = np.zeros((4, 16), dtype)[:0], np.zeros((4, 16), dtype)[:0]
        for y in (np.full(16, -100), x):
            found = softlane.cross_entropy_with_grad(x, y, axis=0, grad_out=grad, reduction="none")
            assert (found[0] == 0).all() and found[1] is grad
            loss, stats = softlane.cross_entropy(x, y, 0, reduction="none", return_stats=True)
            assert (loss == 0).all() and not any(np.any(values) for values in stats)
    loss = softlane.cross_entropy(np.empty((2, 0)), [-100, -100], reduction="none")
    assert (loss == 0).all()


def test_one_class(isa: str) -> None:
    loss, grad = softlane.cross_entropy_with_grad(
        np.array([[5.0], [-700.0]]), [0, 0], reduction="none"
    )
    assert (loss == 0).all() and (grad == 0).all()


# Outputs


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_out_and_grad_out(isa: str, reduction: str) -> None:
    x, y = rng_for("out").standard_normal((3, 4, 5)), np.ones((3, 4), int)
    loss, grad = softlane.cross_entropy_with_grad(x, y, reduction=reduction)
    buffer = np.full(x.shape, 7.0)
    loss_2, grad_2 = softlane.cross_entropy_with_grad(x, y, reduction=reduction, grad_out=buffer)
    assert grad_2 is buffer
    assert_same_bits(loss_2, loss)
    assert_same_bits(buffer, grad)
    out = np.full(np.shape(loss), 7.0)
    assert softlane.cross_entropy(x, y, reduction=reduction, out=out) is out
    assert_same_bits(out, loss)


def test_grad_out_over_the_logits(isa: str) -> None:
    for dtype in FLOATS:
        x, y = to_dtype(rng_for("in place").standard_normal((5, 70)), dtype), np.arange(5)
        loss, grad = softlane.cross_entropy_with_grad(x, y, reduction="none")
        loss_2, grad_2 = softlane.cross_entropy_with_grad(x, y, reduction="none", grad_out=x)
        assert grad_2 is x
        assert_same_bits(loss_2, loss)
        assert_same_bits(x, grad)


@pytest.mark.parametrize("temperature", [5e-324, 1e-305, 1e-250, 1e250, 1e305, 1.7e308])
def test_gradients_at_extreme_temperatures(isa: str, temperature: float) -> None:
    rng = rng_for("extreme", temperature)
    x, y = rng.standard_normal((6, 9)) * min(temperature, 1.0), rng.integers(0, 9, 6)
    w = rng.integers(0, 3, 9)
    for options in ({}, {"weight": w}, {"label_smoothing": 0.1}, {"weight": w, "softcap": 50.0}):
        more: dict[str, Any] = {"temperature": temperature, **options}
        _, grad = softlane.cross_entropy_with_grad(x, y, reduction="none", **more)
        check_ulp(grad, oracle.cross_entropy(x, y, **more).grad)
    shares = rng.integers(0, 128, (6, 9)).astype(np.float64)
    _, grad = softlane.cross_entropy_with_grad(x, shares, temperature=temperature)
    exact = oracle.cross_entropy(x, shares, temperature=temperature, reduction="mean").grad
    check_ulp(grad, exact)


def test_mean_with_weights_keeps_the_digits_of_its_divisor(isa: str) -> None:
    for seed in range(40):
        rng = rng_for("divisor", seed)
        x, w, s = rng.standard_normal((9, 5)), rng.random(5) + 0.1, rng.random(9) + 0.1
        y = rng.integers(0, 5, 9)
        _, grad = softlane.cross_entropy_with_grad(x, y, weight=w, sample_weight=s)
        exact = oracle.cross_entropy(x, y, weight=w, sample_weight=s, reduction="mean").grad
        check_ulp(grad, exact, 1.6)


@every_float
def test_tiny_temperatures_give_no_nan(isa: str, dtype: DType) -> None:
    """Beyond the largest float64 1/T is infinite, but 0 times that is 0."""
    x = to_dtype([[0, 1, 3]], dtype)
    for temperature in (5e-324, 1e-320, 1e-308):
        loss, grad = softlane.cross_entropy_with_grad(x, [2], temperature=temperature)
        assert loss == 0
        assert_same_bits(grad, to_dtype([[0, 0, 0]], dtype))
        loss, grad = softlane.cross_entropy_with_grad(x, [0], temperature=temperature)
        assert loss == inf
        far = grad.astype(np.float64)
        assert far[0, 0] < -1e307 or far[0, 0] == -inf
        assert far[0, 1] == 0
        assert far[0, 2] == -far[0, 0]
