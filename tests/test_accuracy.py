"""The accuracy contract on long rows and under a search for bad cases; tails and options are elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import oracle
import softlane
from oracle import Exact, check_ulp, ulp_error
from support import FLOATS, WIDE, Array, DType, dtype_id, make_rows, rng_for, to_dtype

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


@functools.lru_cache(maxsize=2)
def rows_of(dtype: DType, n: int) -> tuple[list[str], Array]:
    names, rows = make_rows(dtype, n)
    kinds = KINDS if n < 10_000 else KINDS[::2]
    return list(kinds), rows[[names.index(kind) for kind in kinds]]


def targets_of(x: Array) -> Array:
    """The largest class, the last and the first in turn."""
    y = np.asarray(np.argmax(x, axis=-1))
    y[1::3], y[2::3] = x.shape[1] - 1, 0
    return y


def incoming(x: Array) -> Array:
    return to_dtype(rng_for("incoming", x.shape).standard_normal(x.shape), x.dtype)


def weights(n: int) -> dict[str, Any]:
    return {"weight": 0.5 + np.arange(n) % 7, "label_smoothing": 0.1}


def _finite(x: Array) -> Array:
    return np.where(x == -np.inf, to_dtype(-3.0, x.dtype), x)


# Name: the function over rows, its oracle.
CALLS: dict[str, tuple[Callable[[Array], Any], Callable[[Array], Exact]]] = {
    "softmax": (softlane.softmax, oracle.softmax),
    "log_softmax": (softlane.log_softmax, oracle.log_softmax),
    "softmax at temperature 0.3": (
        lambda x: softlane.softmax(x, temperature=0.3),
        lambda x: oracle.softmax(x, temperature=0.3),
    ),
    "logsumexp": (softlane.logsumexp, lambda x: oracle.logsumexp(x)[0]),
    "loss": (
        lambda x: softlane.cross_entropy(x, targets_of(x), reduction="none"),
        lambda x: oracle.cross_entropy(x, targets_of(x)).loss,
    ),
    "gradient": (
        lambda x: softlane.cross_entropy_with_grad(x, targets_of(x), reduction="none")[1],
        lambda x: oracle.cross_entropy(x, targets_of(x)).grad,
    ),
    "weighted smoothed loss": (
        lambda x: softlane.cross_entropy(
            _finite(x), targets_of(x), reduction="none", **weights(x.shape[1])
        ),
        lambda x: oracle.cross_entropy(_finite(x), targets_of(x), **weights(x.shape[1])).loss,
    ),
    "weighted smoothed gradient": (
        lambda x: softlane.cross_entropy_with_grad(
            _finite(x), targets_of(x), reduction="none", **weights(x.shape[1])
        )[1],
        lambda x: oracle.cross_entropy(_finite(x), targets_of(x), **weights(x.shape[1])).grad,
    ),
    "softmax_backward": (
        lambda x: softlane.softmax_backward(incoming(x), probabilities(x)),
        lambda x: oracle.softmax_backward(incoming(x), probabilities(x)),
    ),
    "log_softmax_backward": (
        lambda x: softlane.log_softmax_backward(incoming(x), -np.abs(x)),
        lambda x: oracle.log_softmax_backward(incoming(x), -np.abs(x)),
    ),
}


def probabilities(x: Array) -> Array:
    """Softmax rounded to the dtype, from the oracle: the backward's input is the same on every set."""
    with np.errstate(all="ignore"):
        return oracle.softmax(x).value.astype(x.dtype)


@functools.cache
def exact_of(name: str, dtype: DType, n: int) -> Exact:
    return CALLS[name][1](rows_of(dtype, n)[1])


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_long_rows(isa: str, dtype: DType, n: int) -> None:
    names, x = rows_of(dtype, n)
    for name, (call, _) in CALLS.items():
        check_ulp(call(x), exact_of(name, dtype, n), label=lambda at: f"{name}, {names[at[0]]}")


@pytest.mark.parametrize("dtype", WIDE, ids=dtype_id)
def test_a_million_elements(isa: str, dtype: DType) -> None:
    """A float32 running sum is a thousand ulp off here; the maximum stands at the very end."""
    for name in ("softmax", "log_softmax", "logsumexp", "loss"):
        check_ulp(CALLS[name][0](million(dtype)), exact_million(name, dtype), label=name)


@functools.cache
def million(dtype: DType) -> Array:
    x = to_dtype(rng_for("million").standard_normal((1, 1_000_000)), dtype)
    x[0, -1] = 12
    return x


@functools.cache
def exact_million(name: str, dtype: DType) -> Exact:
    return CALLS[name][1](million(dtype))


@pytest.mark.parametrize("n", [2, 3, 10, 100, 1000, 10_000])
def test_constant_rows_at_awkward_values(isa: str, n: int) -> None:
    """Equal elements round alike, so errors add up instead of averaging out."""
    rng = rng_for("constant", n)
    for dtype in FLOATS:
        values = np.concatenate([rng.uniform(-110, 110, 20), 10.0 ** rng.uniform(-3, 4, 10)])
        x = np.repeat(to_dtype(values, dtype)[:, None], n, axis=1)
        for name in ("softmax", "log_softmax", "logsumexp", "loss", "gradient"):
            call, exact = CALLS[name]
            check_ulp(call(x), exact(x), label=lambda at: f"{name} of {values[at[0]]!r}")


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
            want = exact(x)
            got = call(x)
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
        y = targets_of(x)
        options: dict[str, Any] = {"temperature": temperature}
        check_ulp(softlane.softmax(x, **options), oracle.softmax(x, **options), label=label)
        check_ulp(softlane.log_softmax(x, **options), oracle.log_softmax(x, **options), label=label)
        options["label_smoothing"] = float(rng.choice([0.0, 0.05, 0.9]))
        want = oracle.cross_entropy(x, y, **options)
        loss, grad = softlane.cross_entropy_with_grad(x, y, reduction="none", **options)
        check_ulp(loss, want.loss, label=label)
        check_ulp(grad, want.grad, label=label)
