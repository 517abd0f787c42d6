"""The accuracy contract: every function over every kind of input and length, and under a search for bad cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import oracle
import softlane
from functions import (
    FUNCTIONS,
    HUGE,
    LONG,
    LONG_KINDS,
    MEDIUM,
    SHORT,
    Errors,
    Rows,
    batches,
    climb,
    distinct,
)
from oracle import check_ulp, checked
from support import FLOATS, WIDE, DType, dtype_id, rng_for, to_dtype

# Of the 99.9th percentile of the errors, by the dtype of the result.
P999 = {"float16": 0.505, "bfloat16": 0.505, "float32": 1.4, "float64": 1.4}

every_float = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
every_name = pytest.mark.parametrize("name", list(FUNCTIONS))


def check(inputs: Iterable[tuple[list[str], Rows]], names: Iterable[str] = FUNCTIONS) -> None:
    """Each function on each usable instruction set: every error within the bar, and the 99.9th percentile."""
    found: dict[tuple[str, str, str], Errors] = defaultdict(Errors)
    for kinds, rows in inputs:
        for name in names:
            exact = FUNCTIONS[name].exact(rows)
            for isas, got in distinct(FUNCTIONS[name], rows):

                def label(row: int) -> str:
                    return f"{name} on {isas}, {kinds[row]}, length {rows.x.shape[1]}"

                error = checked(got, exact, label=lambda at: label(at[0]))
                for isa in isas:
                    found[name, isa, got.dtype.name].add(error, label)
    for (name, isa, dtype), errors in found.items():
        p999 = errors.percentile(99.9)
        print(f"{dtype} {name} on {isa}: {errors.worst:.3f} ulp, p99.9 {p999:.3f} ({errors.where})")
        assert p999 <= P999[dtype], f"{dtype} {name} on {isa}: 99.9th percentile {p999}"


@every_float
@pytest.mark.parametrize("lengths", [SHORT, MEDIUM], ids=["short", "medium"])
def test_every_kind(dtype: DType, lengths: tuple[int, ...]) -> None:
    check(batch for n in lengths for batch in batches(dtype, n))


@every_float
@pytest.mark.parametrize("n", LONG)
def test_long_rows(dtype: DType, n: int) -> None:
    check(batches(dtype, n, LONG_KINDS if n < 100_000 else LONG_KINDS[::2]))


@pytest.mark.large
@pytest.mark.timeout(7200)
@every_float
@pytest.mark.parametrize("n", LONG)
def test_every_kind_of_long_rows(dtype: DType, n: int) -> None:
    check(batches(dtype, n))


@pytest.mark.large
@pytest.mark.timeout(7200)
@every_float
@pytest.mark.parametrize("n", HUGE)
def test_huge_rows(dtype: DType, n: int) -> None:
    """A running sum in float32 is a thousand ulp off here."""
    names = FUNCTIONS if n < 10_000_000 else ["softmax", "log_softmax", "logsumexp", "its gradient"]
    check(batches(dtype, n, LONG_KINDS), names)


@pytest.mark.parametrize("dtype", WIDE, ids=dtype_id)
def test_a_million_elements(dtype: DType) -> None:
    """The maximum stands at the very end."""
    names = ["softmax", "log_softmax", "logsumexp", "cross-entropy"]
    check(batches(dtype, 1_000_000, ["maximum at the end"]), names)


@pytest.mark.parametrize("n", [2, 3, 10, 100, 1000, 10_000])
def test_constant_rows_at_awkward_values(n: int) -> None:
    """Equal elements round alike, so errors add up instead of averaging out."""
    rng = rng_for("constant", n)
    for dtype in FLOATS:
        values = np.concatenate([rng.uniform(-110, 110, 20), 10.0 ** rng.uniform(-3, 4, 10)])
        x = np.repeat(to_dtype(values, dtype)[:, None], n, axis=1)
        names = ["softmax", "log_softmax", "logsumexp", "cross-entropy", "its gradient"]
        check([([repr(float(value)) for value in values], Rows(x))], names)


@every_name
@every_float
def test_hill_climb(isa: str, dtype: DType, name: str) -> None:
    """Rows whose errors are largest are varied again and again: the bar holds for what they lead to."""
    function = FUNCTIONS[name]
    for n in (2, 5, 17, 40):
        for rows in climb(function, dtype, n, 8, name):
            x = rows.x
            got, exact = function.compute(rows), function.exact(rows)
            check_ulp(got, exact, label=lambda at: f"{name} of {x[at[0]].tolist()}")


@pytest.mark.parametrize("dtype", WIDE, ids=dtype_id)
def test_batches_of_random_parameters(isa: str, dtype: DType) -> None:
    """Any scale, offset, temperature and length together."""
    rng = rng_for("random", dtype)
    for _ in range(40):
        n = int(10 ** rng.uniform(0, 3))
        scale, offset = 10.0 ** rng.uniform(-2, 3), rng.choice([-1, 1]) * 10.0 ** rng.uniform(-2, 6)
        temperature = float(10.0 ** rng.uniform(-2, 2))
        x = to_dtype(scale * rng.standard_normal((5, n)) + offset, dtype)
        label = f"n {n}, scale {scale}, offset {offset}, T {temperature}"
        y = Rows(x).targets
        options: dict[str, Any] = {"temperature": temperature}
        check_ulp(softlane.softmax(x, **options), oracle.softmax(x, **options), label=label)
        check_ulp(softlane.log_softmax(x, **options), oracle.log_softmax(x, **options), label=label)
        options["label_smoothing"] = float(rng.choice([0.0, 0.05, 0.9]))
        want = oracle.cross_entropy(x, y, **options)
        loss, grad = softlane.cross_entropy_with_grad(x, y, reduction="none", **options)
        check_ulp(loss, want.loss, label=label)
        check_ulp(grad, want.grad, label=label)


@pytest.mark.parametrize("dtype", WIDE, ids=dtype_id)
def test_many_gradients_with_weights_and_smoothing(isa: str, dtype: DType) -> None:
    """Three roundings of cancelling terms come near the bar: enough samples find those that pass it."""
    rng = rng_for("gradients", dtype)
    for _ in range(40):
        n = int(rng.integers(2, 80))
        x = to_dtype(rng.standard_normal((64, n)) * 10.0 ** rng.uniform(-2, 1), dtype)
        y = rng.integers(0, n, 64)
        variants: list[dict[str, Any]] = [
            {"label_smoothing": 0.1},
            {"label_smoothing": 0.5, "weight": rng.uniform(0.1, 3, n)},
            {
                "label_smoothing": 0.1,
                "weight": 10.0 ** rng.uniform(-3, 3, n),
                "sample_weight": rng.uniform(0.1, 5, 64),
            },
        ]
        for options in variants:
            want = oracle.cross_entropy(x, y, **options)
            loss, grad = softlane.cross_entropy_with_grad(x, y, reduction="none", **options)
            check_ulp(loss, want.loss, label=f"{n} classes, {list(options)}")
            check_ulp(grad, want.grad, label=f"{n} classes, {list(options)}")


@pytest.mark.parametrize("dtype", WIDE, ids=dtype_id)
def test_many_backward_passes(isa: str, dtype: DType) -> None:
    rng = rng_for("backward", dtype)
    for _ in range(60):
        n = int(rng.integers(2, 100))
        temperature = float(rng.choice([1.0, 0.7, 2.3]))
        g = to_dtype(rng.standard_normal((64, n)), dtype)
        logits = rng.standard_normal((64, n)) * 10.0 ** rng.uniform(-2, 1)
        y = to_dtype(oracle.softmax(logits).value, dtype)
        got = softlane.softmax_backward(g, y, temperature=temperature)
        check_ulp(
            got, oracle.softmax_backward(g, y, temperature=temperature), label=f"{n} of softmax"
        )
        lp = to_dtype(oracle.log_softmax(logits).value, dtype)
        got = softlane.log_softmax_backward(g, lp, temperature=temperature)
        exact = oracle.log_softmax_backward(g, lp, temperature=temperature)
        check_ulp(got, exact, label=f"{n} of log_softmax")
