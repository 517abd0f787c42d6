"""The accuracy contract on long rows and under a search for bad cases; tails and options are elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import oracle
import softlane
from oracle import Exact, check_ulp, ulp_error
from softlane import _core
from support import (
    FLOATS,
    WIDE,
    Array,
    DType,
    dtype_id,
    make_rows,
    rng_for,
    to_dtype,
    using,
)

LENGTHS = (127, 128, 129, 1000, 4096, 50_257, 128_256)
KINDS = (
    "scale 0.01",
    "scale 1",
    "scale 10",
    "scale 100",
    "offset 1e+06",
    "offset -10000",
    "constant 0.1",
    "constant -104.3",
    "one huge among tiny",
    "confident 17 shifted",
    "confident 100",
    "ascending",
    "descending",
    "maximum at the end",
    "maximum at the end, far",
    "subnormal results",
    "near the largest",
    "-inf entries",
)


class Case:
    """Rows of logits with targets, incoming gradients and probabilities, all in the dtype."""

    def __init__(self, x: Array) -> None:
        self.x = x
        n = x.shape[1]
        self.y = np.asarray(
            np.argmax(x, axis=-1)
        )  # the largest class, the last and the first in turn
        self.y[1::3], self.y[2::3] = n - 1, 0
        self.finite = np.where(x == -np.inf, to_dtype(-3.0, x.dtype), x)
        self.g = to_dtype(rng_for("incoming", x.shape).standard_normal(x.shape), x.dtype)
        with np.errstate(all="ignore"):
            self.p = oracle.softmax(x).value.astype(x.dtype)
        self.lp = -np.abs(x)
        self.options: dict[str, Any] = {"weight": 0.5 + np.arange(n) % 7, "label_smoothing": 0.1}


def rows_of(dtype: DType, n: int) -> tuple[list[str], Array]:
    names, rows = make_rows(dtype, n)
    kinds = list(KINDS if n < 10_000 else KINDS[::2])
    return kinds, rows[[names.index(kind) for kind in kinds]]


# Name: the function, its oracle.
CALLS: dict[str, tuple[Callable[[Case], Any], Callable[[Case], Exact]]] = {
    "softmax": (lambda c: softlane.softmax(c.x), lambda c: oracle.softmax(c.x)),
    "log_softmax": (lambda c: softlane.log_softmax(c.x), lambda c: oracle.log_softmax(c.x)),
    "softmax at temperature 0.3": (
        lambda c: softlane.softmax(c.x, temperature=0.3),
        lambda c: oracle.softmax(c.x, temperature=0.3),
    ),
    "logsumexp": (lambda c: softlane.logsumexp(c.x), lambda c: oracle.logsumexp(c.x)[0]),
    "loss": (
        lambda c: softlane.cross_entropy(c.x, c.y, reduction="none"),
        lambda c: oracle.cross_entropy(c.x, c.y).loss,
    ),
    "gradient": (
        lambda c: softlane.cross_entropy_with_grad(c.x, c.y, reduction="none")[1],
        lambda c: oracle.cross_entropy(c.x, c.y).grad,
    ),
    "weighted smoothed loss": (
        lambda c: softlane.cross_entropy(c.finite, c.y, reduction="none", **c.options),
        lambda c: oracle.cross_entropy(c.finite, c.y, **c.options).loss,
    ),
    "weighted smoothed gradient": (
        lambda c: softlane.cross_entropy_with_grad(c.finite, c.y, reduction="none", **c.options)[1],
        lambda c: oracle.cross_entropy(c.finite, c.y, **c.options).grad,
    ),
    "softmax_backward": (
        lambda c: softlane.softmax_backward(c.g, c.p),
        lambda c: oracle.softmax_backward(c.g, c.p),
    ),
    "log_softmax_backward": (
        lambda c: softlane.log_softmax_backward(c.g, c.lp),
        lambda c: oracle.log_softmax_backward(c.g, c.lp),
    ),
}


def check_every_set(case: Case, names: list[str], kinds: list[str]) -> None:
    """The oracle once, then each usable instruction set."""
    for name in names:
        call, exact = CALLS[name]
        wanted = exact(case)
        for isa in _core.isas_usable():
            with using(isa):
                check_ulp(call(case), wanted, label=lambda at: f"{name} on {isa}, {kinds[at[0]]}")


# Half types differ from float32 in their conversions only: shorter rows do.
LONG = [(d, n) for d in FLOATS for n in LENGTHS if d in WIDE or n < 100_000]


@pytest.mark.parametrize(("dtype", "n"), LONG, ids=[f"{d.name}-{n}" for d, n in LONG])
def test_long_rows(dtype: DType, n: int) -> None:
    kinds, x = rows_of(dtype, n)
    check_every_set(Case(x), list(CALLS), kinds)


@pytest.mark.parametrize("dtype", WIDE, ids=dtype_id)
def test_a_million_elements(dtype: DType) -> None:
    """A float32 running sum is a thousand ulp off here; the maximum stands at the very end."""
    x = to_dtype(rng_for("million").standard_normal((1, 1_000_000)), dtype)
    x[0, -1] = 12
    check_every_set(Case(x), ["softmax", "log_softmax", "logsumexp", "loss"], ["normal"])


@pytest.mark.parametrize("n", [2, 3, 10, 100, 1000, 10_000])
def test_constant_rows_at_awkward_values(n: int) -> None:
    """Equal elements round alike, so errors add up instead of averaging out."""
    rng = rng_for("constant", n)
    for dtype in FLOATS:
        values = np.concatenate([rng.uniform(-110, 110, 20), 10.0 ** rng.uniform(-3, 4, 10)])
        x = np.repeat(to_dtype(values, dtype)[:, None], n, axis=1)
        names = ["softmax", "log_softmax", "logsumexp", "loss", "gradient"]
        check_every_set(Case(x), names, [repr(float(value)) for value in values])


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "loss", "gradient"])
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_hill_climb(isa: str, dtype: DType, name: str) -> None:
    """Rows whose errors are largest are varied again and again: the bar holds for what they lead to."""
    rng = rng_for("climb", dtype, name)
    call, exact = CALLS[name]
    population = 96
    for n in (2, 5, 17, 40):
        scale = 10.0 ** rng.uniform(-2, 2.5, (population, 1))
        x = to_dtype(scale * rng.standard_normal((population, n)) + scale * rng.normal(), dtype)
        for _ in range(8):
            case = Case(x)
            want = exact(case)
            got = call(case)
            check_ulp(got, want, label=lambda at: f"{name} of {x[at[0]].tolist()}")
            error = np.asarray(ulp_error(got, want.value, want.scale))
            worst = np.argsort(error.reshape(population, -1).max(axis=-1))[-population // 4 :]
            parents = x[worst].astype(np.float64)
            step = 10.0 ** rng.uniform(-7, 0, (3, len(worst), 1))
            change = 1 + step * rng.standard_normal((3, *parents.shape)) * (
                rng.random((3, *parents.shape)) < 0.5
            )
            x = to_dtype(np.concatenate([parents[None], parents * change]).reshape(-1, n), dtype)


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
        y = Case(x).y
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
