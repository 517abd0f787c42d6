"""Higher-precision oracles for every function, and errors in ulp. Uses nothing of the package.

Values are np.longdouble, with the rounding of subtractions, products and long sums carried along (pairs). That
measures float64 results to better than 0.01 ulp where longdouble has 64 bits; test_oracle.py checks it with mpmath.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]
Axis = int | tuple[int, ...] | None
Pair = tuple[Array, Array]

LD = np.longdouble
PRECISION = np.finfo(LD).nmant + 1
_SPLIT = LD(2.0 ** ((PRECISION + 1) // 2) + 1)


class Exact(NamedTuple):
    """An exact result, and the magnitude whose ulp counts (where terms cancel it is the largest of them)."""

    value: Array
    scale: Array


class Format(NamedTuple):
    """Binary format: bits of precision, exponent of the smallest normal number, largest finite number."""

    precision: int
    min_exponent: int
    largest: float


FORMATS = {
    "float16": Format(11, -14, 65504.0),
    "bfloat16": Format(8, -126, float.fromhex("0x1.fep127")),
    "float32": Format(24, -126, float.fromhex("0x1.fffffep127")),
    "float64": Format(53, -1022, float.fromhex("0x1.fffffffffffffp1023")),
}
BARS = {"float16": 0.51, "bfloat16": 0.51, "float32": 2.0, "float64": 2.0}


# Errors


def ulp_error(got: Any, exact: Any, scale: Any = None) -> Array:
    """|got - exact| in units of the last place of got's dtype, taken at `exact`, or at `scale` where terms cancel.

    Below the smallest normal number the unit is the spacing of the subnormals. A NaN or an infinity on one side
    only counts as infinite, but for a finite `exact` that rounds to infinity.
    """
    got = np.asarray(got)
    form = FORMATS[got.dtype.name]
    with np.errstate(all="ignore"):
        found, exact = np.broadcast_arrays(got.astype(LD), np.asarray(exact, LD))
        size = (
            np.abs(exact) if scale is None else np.broadcast_to(np.asarray(scale, LD), exact.shape)
        )
        regular = np.where(np.isfinite(size) & (size > 0), size, LD(0))
        exponent = np.where(regular > 0, np.frexp(regular)[1] - 1, form.min_exponent)
        unit = np.ldexp(LD(1), np.maximum(exponent, form.min_exponent) - (form.precision - 1))
        error = np.abs(found - exact) / unit
        ceiling = LD(form.largest) + np.ldexp(
            LD(1), int(np.frexp(form.largest)[1]) - form.precision - 1
        )
        same = (found == exact) | (np.isnan(found) & np.isnan(exact))
        same |= np.isinf(found) & (np.sign(found) == np.sign(exact)) & (np.abs(exact) >= ceiling)
        error = np.where(np.isnan(error), np.inf, error)
    return np.where(same, LD(0), error)


def checked(
    got: Any, exact: Exact, bar: float | None = None, label: Callable[[Any], str] | str = ""
) -> Array:
    """Errors in ulp, asserted to be within the bar (default: the dtype's); subnormal results within one spacing.

    `label` names the case: a text, or a function from the worst element's index to a text.
    """
    got = np.asarray(got)
    name = got.dtype.name
    if name == "float64" and PRECISION < 64:
        pytest.skip("this platform's longdouble is too short to measure float64 results")
    assert got.shape == exact.value.shape, f"shape {got.shape}, expected {exact.value.shape}"
    error = ulp_error(got, exact.value, exact.scale)
    if got.size == 0:
        return error
    limit = BARS[name] if bar is None else bar
    tiny = np.ldexp(LD(1), FORMATS[name].min_exponent)
    excess = error / np.where(exact.scale < tiny, min(limit, 1.0), limit)
    worst: Any = np.unravel_index(int(np.argmax(excess)), excess.shape)
    where = label(worst) if callable(label) else label
    assert excess[worst] <= 1, (
        f"{where}: {name} error {float(error[worst]):.3f} ulp (bar {limit}) at {tuple(map(int, worst))}: "
        f"got {got[worst]!r}, exact {exact.value[worst]!r}; {int(np.sum(excess > 1))} of {excess.size} beyond the bar"
    )
    return error


def check_ulp(
    got: Any, exact: Exact, bar: float | None = None, label: Callable[[Any], str] | str = ""
) -> float:
    """The worst of the errors that `checked` asserts."""
    return float(np.max(checked(got, exact, bar, label), initial=0))


# Pairs


def two_sum(a: Array, b: Array) -> Pair:
    """The sum and its rounding error (which is 0 where the sum is not finite)."""
    with np.errstate(all="ignore"):
        s = a + b
        t = s - a
        e = (a - (s - t)) + (b - t)
    return s, np.where(np.isfinite(s), e, LD(0))


def two_prod(a: Array, b: Array) -> Pair:
    """The product and its rounding error (which is 0 where the product is not finite)."""
    with np.errstate(all="ignore"):
        p = a * b
        t = _SPLIT * a
        a_hi = t - (t - a)
        a_lo = a - a_hi
        t = _SPLIT * b
        b_hi = t - (t - b)
        b_lo = b - b_hi
        e = ((a_hi * b_hi - p) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo
    return p, np.where(np.isfinite(p), e, LD(0))


def _divide(a: Pair, divisor: Array) -> Pair:
    with np.errstate(all="ignore"):
        q = a[0] / divisor
        p, e = two_prod(q, divisor)
        lo = ((a[0] - p) - e + a[1]) / divisor
    return q, np.where(np.isfinite(q), lo, LD(0))


def _sum(a: Pair) -> Pair:
    """Sum over the last axis by a tree of two_sums."""
    hi, lo = a
    if hi.shape[-1] == 0:
        zero = np.zeros(hi.shape[:-1], LD)
        return zero, zero
    while hi.shape[-1] > 1:
        if hi.shape[-1] % 2:
            pad = [(0, 0)] * (hi.ndim - 1) + [(0, 1)]
            hi, lo = np.pad(hi, pad), np.pad(lo, pad)
        with np.errstate(all="ignore"):
            s, e = two_sum(hi[..., 0::2], hi[..., 1::2])
            hi, lo = s, e + lo[..., 0::2] + lo[..., 1::2]
    with np.errstate(all="ignore"):
        return two_sum(hi[..., 0], lo[..., 0])


def any_of(mask: Array) -> Array:
    """Whether any element of each row is true, as a column."""
    return np.asarray(np.any(mask, axis=-1))[:, None]


def wide(x: Any) -> Array:
    """The values as longdouble; integers and bool through float64, as the package computes them."""
    values: Array = np.asarray(x)
    if values.dtype.kind in "iub":
        values = values.astype(np.float64)
    return values.astype(LD)


# Rows


def axes_of(axis: Axis, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    given = (axis,) if isinstance(axis, int) else axis
    return tuple(a % ndim for a in given) if ndim else ()


class _Rows:
    """The split of an array into rows along `axes`, and the way back."""

    def __init__(self, shape: tuple[int, ...], axis: Axis) -> None:
        self.axes = axes_of(axis, len(shape))
        self.keep = tuple(a for a in range(len(shape)) if a not in self.axes)
        self.outer = tuple(shape[a] for a in self.keep)
        self.inner = tuple(shape[a] for a in self.axes)
        self.count = int(np.prod(self.outer, dtype=np.int64))
        self.length = int(np.prod(self.inner, dtype=np.int64))

    def split(self, x: Array) -> Array:
        return x.transpose(self.keep + self.axes).reshape(self.count, self.length)

    def join(self, rows: Array) -> Array:
        back = np.argsort(np.array(self.keep + self.axes, dtype=np.intp))
        return rows.reshape(self.outer + self.inner).transpose(tuple(int(i) for i in back))

    def reduced(self, rows: Array) -> Array:
        return rows.reshape(self.outer)


class _Shifted(NamedTuple):
    """Rows relative to their maximum: (z - max)/T as a pair, exponentials, their sum but for one maximum."""

    top: Array
    deviation: Pair
    powers: Array
    rest: Array
    mask: Array
    bad: Array


def _shift(z: Array, mask: Array, temperature: float) -> _Shifted:
    z = np.where(mask, z, LD(-np.inf))
    top = np.max(z, axis=-1, initial=LD(-np.inf))[:, None]
    with np.errstate(all="ignore"):
        hi, lo = _divide(two_sum(z, -top), np.asarray(temperature, LD))
        powers = np.where(mask, np.exp(hi) * (1 + lo), LD(0))
        others = powers.copy()
        if z.shape[-1]:
            np.put_along_axis(others, np.argmax(z, axis=-1)[:, None], LD(0), axis=-1)
        rest = np.sum(others, axis=-1)[:, None]
    bad = ~np.isfinite(top) & any_of(mask)
    return _Shifted(top, (hi, lo), powers, rest, mask, bad)


def _masked(where: Any, shape: tuple[int, ...]) -> Array:
    mask: Array = np.broadcast_to(np.asarray(True if where is None else where), shape)
    return mask


def softmax(x: Any, axis: Axis = -1, *, where: Any = None, temperature: float = 1.0) -> Exact:
    z = wide(x)
    rows = _Rows(z.shape, axis)
    s = _shift(rows.split(z), rows.split(_masked(where, z.shape)), temperature)
    with np.errstate(all="ignore"):
        value = np.where(s.bad, LD(np.nan), s.powers / (1 + s.rest))
    value = rows.join(np.where(s.mask, value, LD(0)))
    return Exact(value, np.abs(value))


def _log_softmax(s: _Shifted) -> Array:
    with np.errstate(all="ignore"):
        value = (s.deviation[0] - np.log1p(s.rest)) + s.deviation[1]
    value = np.where(s.bad, LD(np.nan), value)
    return np.where(s.mask, value, LD(-np.inf))


def log_softmax(x: Any, axis: Axis = -1, *, where: Any = None, temperature: float = 1.0) -> Exact:
    z = wide(x)
    rows = _Rows(z.shape, axis)
    s = _shift(rows.split(z), rows.split(_masked(where, z.shape)), temperature)
    value = rows.join(_log_softmax(s))
    return Exact(value, np.abs(value))


def logsumexp(x: Any, axis: Axis = -1, *, b: Any = None, where: Any = None) -> tuple[Exact, Array]:
    """log|sum| with its scale, and the sign of the sum (the caller makes NaN of a negative one)."""
    z = wide(x)
    factor = wide(1.0 if b is None else b)
    z, factor = np.broadcast_arrays(z, factor)
    rows = _Rows(z.shape, axis)
    mask = _masked(where, z.shape) & (factor != 0)
    s = _shift(rows.split(z), rows.split(mask), 1.0)
    w = np.where(s.mask, rows.split(factor), LD(0))
    hi, lo = s.deviation
    with np.errstate(all="ignore"):
        if b is None:
            log, sign, condition = np.log1p(s.rest), np.ones_like(s.rest), np.ones_like(s.rest)
            empty = ~any_of(s.mask)
            log, sign = np.where(empty, LD(-np.inf), log), np.where(empty, LD(0), sign)
        else:
            total, below = (part[:, None] for part in _sum(two_prod(w, s.powers)))
            near = s.mask & (hi > -1)
            change = np.where(near, np.expm1(hi) + lo * np.exp(hi), s.powers)
            terms = two_prod(w, np.where(s.mask, change, LD(0)))
            plain = np.where(near, w, LD(0))
            one = np.full((*w.shape[:-1], 1), LD(-1))
            away, away_lo = (
                part[:, None]
                for part in _sum(
                    (
                        np.concatenate([terms[0], plain, one], axis=-1),
                        np.concatenate([terms[1], 0 * plain, 0 * one], axis=-1),
                    )
                )
            )
            log = np.where(
                np.abs(total - 1) < 0.5, np.log1p(away + away_lo), np.log(np.abs(total + below))
            )
            sign = np.sign(total + below)
            condition = np.sum(np.abs(w) * s.powers, axis=-1)[:, None] / np.abs(total)
        value = np.where(log == -np.inf, log, s.top + log)
        wrong = np.isnan(s.top) | any_of(np.isnan(w))
        infinite = s.top == np.inf
        at_top = np.where(s.mask & (rows.split(z) == np.inf), np.sign(w), LD(0))
        up, down = any_of(at_top > 0), any_of(at_top < 0)
        value = np.where(infinite, np.where(up & down, LD(np.nan), LD(np.inf)), value)
        sign = np.where(
            infinite, np.where(up & down, LD(np.nan), np.where(down, LD(-1), LD(1))), sign
        )
        nothing = s.top == -np.inf
        value, sign = np.where(nothing, LD(-np.inf), value), np.where(nothing, LD(0), sign)
        value, sign = np.where(wrong, LD(np.nan), value), np.where(wrong, LD(np.nan), sign)
        scale = np.maximum(np.abs(s.top), np.abs(value)) * condition
        scale = np.where(np.isfinite(value), scale, np.abs(value))
    return Exact(rows.reduced(value), rows.reduced(scale)), rows.reduced(sign)


class CrossEntropy(NamedTuple):
    """Per-sample losses (with sample_weight, not divided), the divisor of "mean", and the gradient of one reduction."""

    loss: Exact
    divisor: LD
    grad: Exact

    def reduced(self, reduction: str) -> Exact:
        total, below = _sum((self.loss.value.ravel(), np.zeros(self.loss.value.size, LD)))
        with np.errstate(all="ignore"):
            divisor = self.divisor if reduction == "mean" else LD(1)
            value = (total + below) / divisor
            scale = np.sum(self.loss.scale) / np.abs(divisor)
        return Exact(np.asarray(value), np.asarray(scale))


class _Targets(NamedTuple):
    """The samples as rows: which count, the target class of each (None: probabilities), target distributions."""

    counted: Array
    classes: Array | None
    share: Array


def _targets(
    targets: Any, axis: int, rows: _Rows, mask: Array, ignore_index: int, smoothing: LD
) -> _Targets:
    per_class = smoothing / np.maximum(mask.sum(axis=-1), 1).astype(LD)[:, None]
    given: Array = np.asarray(targets)
    if given.dtype.kind not in "iu":
        t = np.where(mask, rows.split(wide(given)), LD(0))
        share = np.where(mask, (1 - smoothing) * t + per_class, LD(0))
        return _Targets(np.ones(rows.count, bool), None, share)
    counted = given.reshape(rows.count) != ignore_index
    y = np.where(counted, given.reshape(rows.count), 0).astype(np.int64)
    hot = np.arange(rows.length)[None, :] == y[:, None]
    share = np.where(mask, np.where(hot, 1 - smoothing, LD(0)) + per_class, LD(0))
    return _Targets(counted, y, share)


def cross_entropy(
    logits: Any,
    targets: Any,
    axis: int = -1,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    where: Any = None,
    reduction: str = "none",
) -> CrossEntropy:
    """Cross-entropy with classes or probabilities; `reduction` decides what the gradient is divided by.

    A class whose weight times target is 0 counts 0, whatever its logit.
    """
    z = wide(logits)
    slope = LD(1)
    if softcap is not None:
        with np.errstate(all="ignore"):
            slope = 1 / np.cosh(z / LD(softcap)) ** 2
            z = np.where(np.isnan(z), z, LD(softcap) * np.tanh(z / LD(softcap)))
    rows = _Rows(z.shape, axis)
    s = _shift(rows.split(z), rows.split(_masked(where, z.shape)), temperature)
    y = _targets(targets, axis, rows, s.mask, ignore_index, LD(label_smoothing))
    per_class = wide(np.ones(rows.length) if weight is None else weight)
    per_sample = np.broadcast_to(wide(1.0 if sample_weight is None else sample_weight), rows.outer)
    per_sample = per_sample.reshape(rows.count)
    lp = _log_softmax(s)
    with np.errstate(all="ignore"):
        q = np.where(s.mask & (y.share != 0), per_class[None, :] * y.share, LD(0))
        terms = np.where(q == 0, LD(0), q * -lp)
        loss, scale = np.sum(terms, axis=-1), np.sum(np.abs(terms), axis=-1)
        w_y = np.ones(rows.count, LD)
        if y.classes is not None:
            w_y = per_class[y.classes] if rows.length else 0 * w_y
        divisor = LD(np.sum(np.where(y.counted, w_y * per_sample, LD(0))))

        p = np.where(s.mask, s.powers / (1 + s.rest), LD(0))
        total = np.sum(q, axis=-1)[:, None]
        grad, terms_scale = total * p - q, np.maximum(np.abs(p * total), np.abs(q))
        grad_scale = np.maximum(terms_scale, np.abs(grad))
        if y.classes is not None:
            # Of one class: p - 1 at the target is expm1(lp), and nothing else cancels.
            hot = np.arange(rows.length)[None, :] == y.classes[:, None]
            sharp = np.where(hot, np.expm1(lp), p)
            if label_smoothing:
                smooth = LD(label_smoothing) / np.maximum(s.mask.sum(axis=-1), 1).astype(LD)
                inside = np.where(s.mask, per_class[None, :], LD(0))
                away = p * np.sum(inside, axis=-1)[:, None] - inside
                grad = (1 - LD(label_smoothing)) * w_y[:, None] * sharp + smooth[:, None] * away
                grad_scale = np.maximum(terms_scale, np.abs(grad))
            else:
                grad = w_y[:, None] * sharp
                grad_scale = np.abs(grad)
        if z_loss:
            lse = _log_sum_exp(s, temperature)
            penalty = LD(z_loss) * lse**2
            loss, scale = loss + penalty, scale + np.abs(penalty)
            pull = 2 * LD(z_loss) * lse[:, None] * p
            grad = grad + pull
            grad_scale = np.maximum(np.maximum(terms_scale, np.abs(pull)), np.abs(grad))
        loss, scale = loss * per_sample, scale * np.abs(per_sample)
        loss, scale = np.where(y.counted, loss, LD(0)), np.where(y.counted, scale, LD(0))
        factor = per_sample[:, None] / LD(temperature) / (divisor if reduction == "mean" else 1)
        factor = factor * rows.split(np.broadcast_to(slope, z.shape))
        grad, grad_scale = grad * factor, grad_scale * np.abs(factor)
        grad = np.where(s.bad, LD(np.nan), grad)
        live = s.mask & y.counted[:, None]
        grad, grad_scale = np.where(live, grad, LD(0)), np.where(live, grad_scale, LD(0))
    return CrossEntropy(
        Exact(rows.reduced(loss), rows.reduced(scale)),
        divisor,
        Exact(rows.join(grad), rows.join(grad_scale)),
    )


def _log_sum_exp(s: _Shifted, temperature: float) -> Array:
    """Of each row, with the rounding errors of its two terms, which may cancel."""
    with np.errstate(all="ignore"):
        hi, lo = _divide((s.top[:, 0], np.zeros(len(s.top), LD)), np.asarray(temperature, LD))
        total, error = two_sum(hi, np.log1p(s.rest[:, 0]))
        value = np.where(np.isfinite(total), total + (error + lo), total)
    return np.where(any_of(s.mask)[:, 0], value, LD(-np.inf))


class Stats(NamedTuple):
    """What cross_entropy tells of each sample beside its loss."""

    logsumexp: Exact
    log_prob: Exact
    correct: Array
    entropy: Exact


def cross_entropy_stats(
    logits: Any,
    targets: Any,
    axis: int = -1,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    where: Any = None,
) -> Stats:
    """The statistics of samples with finite maxima; with probabilities, the target is the first of the likeliest."""
    z = wide(logits)
    rows = _Rows(z.shape, axis)
    s = _shift(rows.split(z), rows.split(_masked(where, z.shape)), temperature)
    y = _targets(targets, axis, rows, s.mask, ignore_index, LD(0))
    classes = y.classes
    if classes is None:
        classes = np.argmax(np.where(s.mask, y.share, LD(-np.inf)), axis=-1)
    lp = _log_softmax(s)
    lse = _log_sum_exp(s, temperature)
    with np.errstate(all="ignore"):
        entropy = np.sum(np.where(s.powers == 0, LD(0), s.powers / (1 + s.rest) * -lp), axis=-1)
        size = np.maximum(np.abs(s.top[:, 0] / LD(temperature)), np.abs(lse))
    size = np.where(np.isfinite(lse), size, np.abs(lse))
    at_target = np.take_along_axis(lp, classes[:, None], axis=-1)[:, 0]
    first = np.argmax(np.where(s.mask, rows.split(z), LD(-np.inf)), axis=-1)

    def exact(value: Array, scale: Array) -> Exact:
        live, of_live = np.where(y.counted, value, LD(0)), np.where(y.counted, scale, LD(0))
        return Exact(rows.reduced(live), rows.reduced(of_live))

    return Stats(
        exact(lse, size),
        exact(at_target, np.abs(at_target)),
        rows.reduced(y.counted & (first == classes)),
        exact(entropy, np.abs(entropy)),
    )


def softmax_backward(
    grad_output: Any, output: Any, axis: Axis = -1, *, temperature: float = 1.0
) -> Exact:
    """y (g - sum g y) / T; an element whose y is 0 counts 0 whatever its g."""
    g, y = wide(grad_output), wide(output)
    rows = _Rows(y.shape, axis)
    g, y = rows.split(g), rows.split(y)
    with np.errstate(all="ignore"):
        product = two_prod(np.where(y == 0, LD(0), g), y)
        hi, lo = (part[:, None] for part in _sum(product))
        near, error = two_sum(g, -hi)
        value = np.where(y == 0, LD(0), y * (near + (error - lo)) / LD(temperature))
        scale = (
            np.abs(y) * (np.abs(g) + np.sum(np.abs(product[0]), axis=-1)[:, None]) / LD(temperature)
        )
        scale = np.where(y == 0, LD(0), scale)
    return Exact(rows.join(value), rows.join(scale))


def log_softmax_backward(
    grad_output: Any, output: Any, axis: Axis = -1, *, temperature: float = 1.0
) -> Exact:
    """(g - exp(y) sum g) / T; an element whose y is -inf is g / T."""
    g, y = wide(grad_output), wide(output)
    rows = _Rows(y.shape, axis)
    g, y = rows.split(g), rows.split(y)
    with np.errstate(all="ignore"):
        hi, lo = (part[:, None] for part in _sum((g, np.zeros_like(g))))
        p = np.exp(y)
        product, error = two_prod(p, hi)
        near, away = two_sum(g, -product)
        value = np.where(y == -np.inf, g, near + (away - error - p * lo)) / LD(temperature)
        scale = np.where(y == -np.inf, np.abs(g), np.abs(g) + p * np.abs(hi)) / LD(temperature)
    return Exact(rows.join(value), rows.join(scale))


ELEMENTARY: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "log": np.log,
    "expm1": np.expm1,
    "log1p": np.log1p,
}


def elementary(name: str, x: Any) -> Exact:
    with np.errstate(all="ignore"):
        value = ELEMENTARY[name](wide(x))
    return Exact(value, np.abs(value))
