"""Every function with its oracle over rows of logits, the errors collected, and a search for bad rows.

What test_accuracy.py asserts and bench/accuracy.py publishes. The kinds of input are those of support.make_rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

import oracle
import softlane
from oracle import Exact, ulp_error
from softlane import _core
from support import Array, DType, make_rows, rng_for, to_dtype, using

# Lengths of the contract: every one up to the widest tile, then around blocks, then of vocabularies.
SHORT = (*range(1, 71), 127, 128, 129)
MEDIUM = (1000, 4096)
LONG = (50_257, 128_256)
HUGE = (1_000_000, 10_000_000)
# Kinds to which the length matters: systematic rounding, long sums, guesses from the first block.
LONG_KINDS = (
    "scale 1",
    "constant 0.3333",
    "constant -104.3",
    "one huge among tiny",
    "ascending",
    "maximum at the end",
    "maximum at the end, far",
    "subnormal results",
    "offset 1e+06",
    "offset -1e+30",
)

Z_LOSS: dict[str, Any] = {"z_loss": 0.01}


class Rows:
    """Rows of logits and what else a function takes, in the dtype of the logits."""

    def __init__(self, x: Array) -> None:
        self.x = x
        n = x.shape[1]
        self.targets = np.asarray(np.argmax(x, axis=-1))  # the largest class, the last, the first
        self.targets[1::3], self.targets[2::3] = n - 1, 0
        self.finite = np.where(x == -np.inf, to_dtype(-3.0, x.dtype), x)
        self.options: dict[str, Any] = {
            "weight": to_dtype(0.5 + np.arange(n) % 7, x.dtype),
            "label_smoothing": 0.1,
        }
        self.t = to_dtype(rng_for("targets", x.shape).random(x.shape), x.dtype)
        self.g = to_dtype(rng_for("incoming", x.shape).standard_normal(x.shape), x.dtype)
        self.lp = -np.abs(x)

    @cached_property
    def p(self) -> Array:
        with np.errstate(all="ignore"):
            found: Array = oracle.softmax(self.x).value.astype(self.x.dtype)
        return found

    @cached_property
    def plain(self) -> oracle.CrossEntropy:
        return oracle.cross_entropy(self.x, self.targets)

    @cached_property
    def probable(self) -> oracle.CrossEntropy:
        return oracle.cross_entropy(self.finite, self.t)

    @cached_property
    def penalised(self) -> oracle.CrossEntropy:
        return oracle.cross_entropy(self.x, self.targets, **Z_LOSS)

    @cached_property
    def weighted(self) -> oracle.CrossEntropy:
        return oracle.cross_entropy(self.finite, self.targets, **self.options)


def batches(
    dtype: DType, n: int, only: Sequence[str] | None = None
) -> Iterator[tuple[list[str], Rows]]:
    """The kinds of make_rows with their names, a few million elements at a time."""
    kinds, x = make_rows(dtype, n, only=only)
    step = max(3, (1 << 22) // n)
    for start in range(0, len(kinds), step):
        yield kinds[start : start + step], Rows(x[start : start + step])


class Function(NamedTuple):
    """A function of the package and its exact result."""

    compute: Callable[[Rows], Any]
    exact: Callable[[Rows], Exact]


FUNCTIONS = {
    "softmax": Function(lambda r: softlane.softmax(r.x), lambda r: oracle.softmax(r.x)),
    "softmax, temperature 0.3": Function(
        lambda r: softlane.softmax(r.x, temperature=0.3),
        lambda r: oracle.softmax(r.x, temperature=0.3),
    ),
    "log_softmax": Function(lambda r: softlane.log_softmax(r.x), lambda r: oracle.log_softmax(r.x)),
    "logsumexp": Function(lambda r: softlane.logsumexp(r.x), lambda r: oracle.logsumexp(r.x)[0]),
    "cross-entropy": Function(
        lambda r: softlane.cross_entropy(r.x, r.targets, reduction="none"), lambda r: r.plain.loss
    ),
    "its gradient": Function(
        lambda r: softlane.cross_entropy_with_grad(r.x, r.targets, reduction="sum")[1],
        lambda r: r.plain.grad,
    ),
    "weighted, smoothed": Function(
        lambda r: softlane.cross_entropy(r.finite, r.targets, reduction="none", **r.options),
        lambda r: r.weighted.loss,
    ),
    "its gradient, weighted": Function(
        lambda r: softlane.cross_entropy_with_grad(
            r.finite, r.targets, reduction="sum", **r.options
        )[1],
        lambda r: r.weighted.grad,
    ),
    "probability targets": Function(
        lambda r: softlane.cross_entropy(r.finite, r.t, reduction="none"),
        lambda r: r.probable.loss,
    ),
    "their gradient": Function(
        lambda r: softlane.cross_entropy_with_grad(r.finite, r.t, reduction="sum")[1],
        lambda r: r.probable.grad,
    ),
    "z_loss": Function(
        lambda r: softlane.cross_entropy(r.x, r.targets, reduction="none", **Z_LOSS),
        lambda r: r.penalised.loss,
    ),
    "its gradient, z_loss": Function(
        lambda r: softlane.cross_entropy_with_grad(r.x, r.targets, reduction="sum", **Z_LOSS)[1],
        lambda r: r.penalised.grad,
    ),
    "softmax_backward": Function(
        lambda r: softlane.softmax_backward(r.g, r.p), lambda r: oracle.softmax_backward(r.g, r.p)
    ),
    "log_softmax_backward": Function(
        lambda r: softlane.log_softmax_backward(r.g, r.lp),
        lambda r: oracle.log_softmax_backward(r.g, r.lp),
    ),
}


# Errors

_FINE, _LOW, _BINS = 64, -8, 64 * 72  # of a histogram: bins for each octave from 2**_LOW ulp on


class Errors:
    """All errors of one function: the worst and where it was, and a histogram for percentiles (to 1 %)."""

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.worst, self.where = 0.0, ""

    def add(self, error: Array, label: Callable[[int], str]) -> None:
        """Errors of a batch; `label` names a row."""
        rows = error.reshape(len(error), -1).astype(np.float64)
        with np.errstate(all="ignore"):
            bins = np.floor(_FINE * (np.log2(rows) - _LOW))
        self.counts += np.bincount(
            np.clip(bins, 0, _BINS - 1).astype(np.intp).ravel(), minlength=_BINS
        )
        worst = rows.max(axis=1)
        row = int(np.argmax(worst))
        if worst[row] > self.worst:
            self.worst, self.where = float(worst[row]), label(row)

    def percentile(self, q: float) -> float:
        share = np.cumsum(self.counts) / self.counts.sum()
        at = int(np.searchsorted(share, q / 100))
        return min(self.worst, 2.0 ** (_LOW + (at + 1) / _FINE)) if at < _BINS - 1 else self.worst


def distinct(function: Function, rows: Rows) -> Iterator[tuple[list[str], Array]]:
    """The results of the usable instruction sets: sets that agree in every bit come together."""
    found: dict[bytes, tuple[list[str], Array]] = {}
    for isa in _core.isas_usable():
        with using(isa):
            got = np.asarray(function.compute(rows))
        found.setdefault(got.tobytes(), ([], got))[0].append(isa)
    yield from found.values()


def climb(function: Function, dtype: DType, n: int, rounds: int, *key: Any) -> Iterator[Rows]:
    """Random rows; then again and again variations of those whose errors were the largest."""
    rng = rng_for("climb", dtype, n, *key)
    population = 96
    scale = 10.0 ** rng.uniform(-2, 2.5, (population, 1))
    x = to_dtype(scale * rng.standard_normal((population, n)) + scale * rng.normal(), dtype)
    for _ in range(rounds):
        rows = Rows(x)
        yield rows
        exact = function.exact(rows)
        error = np.asarray(ulp_error(function.compute(rows), exact.value, exact.scale))
        worst = np.argsort(error.reshape(population, -1).max(axis=-1))[-population // 4 :]
        parents = x[worst].astype(np.float64)
        step = 10.0 ** rng.uniform(-7, 0, (3, len(worst), 1))
        chosen = rng.random((3, *parents.shape)) < 0.5
        change = 1 + step * rng.standard_normal((3, *parents.shape)) * chosen
        x = to_dtype(np.concatenate([parents[None], parents * change]).reshape(-1, n), dtype)
