"""The softmax family in plain NumPy: what softlane computes, written to be read.

Each function has the name, the parameters (but ``out``) and the meaning of its compiled
counterpart in `softlane`. It computes in the input's own precision (half types in float32,
integers in float64), or in ``dtype`` where that is wider; ``numpy.longdouble`` serves too, as a
yardstick. Memory, speed and most checks of arguments are left to the compiled functions.

One idea runs through all of them: ``exp`` overflows early, so exponentials are taken of the
distance to the largest element, which is never positive [1]_.

References
----------
.. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax
   functions", IMA Journal of Numerical Analysis 41(4), 2021.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing import TypeAlias

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
    Axis: TypeAlias = int | tuple[int, ...] | None
    DType: TypeAlias = np.dtype[Any]

__all__ = [
    "cross_entropy",
    "cross_entropy_with_grad",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "segment_log_softmax",
    "segment_logsumexp",
    "segment_softmax",
    "softmax",
    "softmax_backward",
    "softmax_naive",
]


# ---- softmax, log_softmax, logsumexp ------------------------------------------------------------


def softmax_naive(x: Any, axis: Axis = -1) -> Any:
    """The definition as it stands, ``exp(x) / sum(exp(x))``: right until ``exp`` overflows.

    Examples
    --------
    >>> from softlane.reference import softmax, softmax_naive
    >>> print(softmax_naive([1.0, 2.0, 3.0]).round(8))
    [0.09003057 0.24472847 0.66524096]

    A common offset changes nothing in the quotient, but exp(1000) is infinite already, and
    infinity divided by infinity is not a number:

    >>> print(softmax_naive([1000.0, 1001.0, 1002.0]))
    [nan nan nan]
    >>> print(softmax([1000.0, 1001.0, 1002.0]).round(8))
    [0.09003057 0.24472847 0.66524096]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        exponentials = np.exp(np.asarray(x))
        return exponentials / exponentials.sum(axis=axis, keepdims=True)


def softmax(
    x: Any, axis: Axis = -1, *, where: Any = None, temperature: float = 1.0, dtype: Any = None
) -> Any:
    """``exp(x / T) / sum(exp(x / T))`` over the elements inside `where`; 0 outside.

    Examples
    --------
    >>> from softlane import reference
    >>> print(reference.softmax([1.0, 2.0, 3.0]).round(8))
    [0.09003057 0.24472847 0.66524096]
    >>> print(reference.softmax([1.0, 2.0, 3.0], where=[True, True, False]).round(8))
    [0.26894142 0.73105858 0.        ]
    """
    x, inside, result = _prepare(x, where, dtype)
    with np.errstate(all="ignore"):
        exponentials = np.exp(_below_largest(x, axis) / temperature)
        y = exponentials / np.sum(exponentials, axis=axis, keepdims=True)
    return _finish(np.where(inside, y, 0), result)


def log_softmax(
    x: Any, axis: Axis = -1, *, where: Any = None, temperature: float = 1.0, dtype: Any = None
) -> Any:
    """``x / T - log(sum(exp(x / T)))``, the logarithm of `softmax`; -inf outside `where`.

    Examples
    --------
    The logarithm of the sum is taken from the distance to the largest element: a common offset
    cancels exactly, and a confident prediction keeps its digits.

    >>> from softlane import reference
    >>> print(reference.log_softmax([30.0, 0.0]))
    [-9.35762297e-14 -3.00000000e+01]
    """
    x, inside, result = _prepare(x, where, dtype)
    with np.errstate(all="ignore"):
        distance = _below_largest(x, axis) / temperature
        top, rest = _split_sum(np.exp(distance), distance == 0, axis)
        y = distance - _log_abs(top, rest)
    return _finish(np.where(inside, y, -np.inf), result)


def logsumexp(
    x: Any,
    axis: Axis = -1,
    *,
    b: Any = None,
    where: Any = None,
    keepdims: bool = False,
    return_sign: bool = False,
    dtype: Any = None,
) -> Any:
    """``log(sum(b * exp(x)))`` over the elements inside `where` whose `b` is not 0.

    With `return_sign` it is the pair of ``log(abs(sum))`` and the sign of the sum: -1, 0, 1, or
    the phase of a complex sum. Without it a negative sum gives NaN, and a complex one the
    principal branch of the logarithm. A sum of nothing is 0, so its logarithm -inf.

    Examples
    --------
    >>> from softlane import reference
    >>> print(reference.logsumexp([1000.0, 1000.0]).round(12))
    1000.69314718056
    >>> log_abs, sign = reference.logsumexp([1.0, 2.0], b=[1, -1], return_sign=True)
    >>> print(log_abs.round(12), sign)
    1.541324854613 -1.0
    """
    common = _common_dtype(x) if b is None else _common_dtype(x, b)
    result = common if dtype is None else np.dtype(dtype)
    wide = np.result_type(common, _single(result))
    x, factors = np.asarray(x), np.asarray(1 if b is None else b)
    inside = (factors != 0) & (True if where is None else np.asarray(where))
    inside = np.broadcast_to(inside, np.broadcast_shapes(x.shape, factors.shape))
    x = np.where(inside, x.astype(wide), -np.inf)

    with np.errstate(all="ignore"):
        largest = np.max(x.real, axis=axis, keepdims=True, initial=-np.inf)
        shift = np.where(np.isfinite(largest), largest, 0)  # exp is right for infinities as it is
        terms = np.exp(x - shift)
        if b is not None:
            terms = np.where(inside, factors.astype(wide) * terms, 0)
        top, rest = _split_sum(terms, x.real == largest, axis)
        log_abs = shift + _log_abs(top, rest)
        total = top + rest
        if not keepdims:
            log_abs, total = np.squeeze(log_abs, axis), np.squeeze(total, axis)
        if return_sign:
            return _finish(log_abs, result), _finish(_sign(total), result)
        if np.iscomplexobj(total):
            return _finish(log_abs + 1j * np.angle(total), result)
        return _finish(np.where(total < 0, np.nan, log_abs), result)


# ---- cross-entropy ------------------------------------------------------------------------------


def cross_entropy(logits: Any, targets: Any, axis: int = -1, **parameters: Any) -> Any:
    """The loss of `cross_entropy_with_grad`, which explains it and its parameters.

    Examples
    --------
    >>> from softlane import reference
    >>> logits = [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]]
    >>> print(reference.cross_entropy(logits, [0, 2]).round(8))
    1.41853977
    """
    return cross_entropy_with_grad(logits, targets, axis, **parameters)[0]


def cross_entropy_with_grad(
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
    reduction: str = "mean",
    dtype: Any = None,
) -> tuple[Any, Any]:
    """How far the predictions ``p = softmax(logits)`` are from the targets, and the gradient.

    Every sample has a distribution t over the C classes that p should meet: 1 at the target and 0
    elsewhere, or what `targets` holds if that are probabilities in the shape of the logits.
    Label smoothing ε makes it ``(1 - ε) * t + ε / C``; class weights w are multiplied on. With
    ``q = w * t`` the loss of the sample, and its gradient with respect to the logits, are ::

        loss = -sum(q * log(p))        grad = sum(q) * p - q

    Before that, `softcap` κ makes the logits ``κ * tanh(logits / κ)`` and the temperature divides
    them; after it, `z_loss` λ adds ``λ * logsumexp(logits)**2``, and `sample_weight` is
    multiplied on. A sample whose target is `ignore_index` has loss 0 and gradient 0. The mean is
    weighted: by w at the target and `sample_weight` (with probabilities, by the latter alone).

    Examples
    --------
    >>> from softlane import reference
    >>> loss, grad = reference.cross_entropy_with_grad([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], [0, 2])
    >>> print(loss.round(8))
    1.41853977
    >>> print(grad.round(4))
    [[-0.1705  0.1212  0.0493]
     [ 0.0543  0.4012 -0.4555]]
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    grad_dtype = _floating(logits.dtype) if dtype is None else np.dtype(dtype)
    loss_dtype = _single(grad_dtype) if dtype is None else grad_dtype
    wide = np.result_type(_single(_floating(logits.dtype)), _single(grad_dtype))

    # The classes go last: z is (..., C), and what belongs to a sample is (...).
    z = np.moveaxis(logits, axis, -1).astype(wide)
    inside = np.broadcast_to(True if where is None else where, logits.shape)
    inside = np.moveaxis(inside, axis, -1)
    class_weight = np.broadcast_to(1 if weight is None else weight, z.shape[-1:]).astype(wide)
    samples = np.broadcast_to(1 if sample_weight is None else sample_weight, z.shape[:-1])
    samples = samples.astype(wide)

    if targets.dtype.kind in "iu":
        used = targets != ignore_index
        target = np.where(used, targets, 0)
        t = (np.arange(z.shape[-1]) == target[..., None]).astype(wide)
        _check_targets(target, used, t, inside)
        share = samples * np.sum(np.where(t, class_weight, 0), axis=-1)  # in the mean
    else:
        used = np.ones(z.shape[:-1], bool)
        t = np.moveaxis(targets, axis, -1).astype(wide)
        share = samples

    with np.errstate(all="ignore"):
        classes = np.sum(inside, axis=-1, keepdims=True)
        t = (1 - label_smoothing) * t + label_smoothing / classes.astype(wide)
        q = np.where(inside, t * class_weight, 0)

        z = np.where(used[..., None], z, 0)  # ignored rows may hold anything
        capped = z if softcap is None else softcap * np.tanh(z / softcap)
        log_p = log_softmax(capped, where=inside, temperature=temperature)
        p = np.exp(log_p)
        products = np.where((q == 0) & (log_p == -np.inf), 0, q * log_p)
        loss = 0 - np.sum(products, axis=-1)  # 0 - and not only -: no negative zero
        total = np.sum(q, axis=-1, keepdims=True)
        # total * p - q, where p is near 1 as total * (p - 1) + (total - q)
        grad = np.where(p > 0.5, total * np.expm1(log_p) + (total - q), total * p - q)

        if z_loss != 0:
            lse = logsumexp(capped / temperature, where=inside, keepdims=True)
            loss = loss + z_loss * lse[..., 0] ** 2
            grad = grad + 2 * z_loss * lse * p
        grad = grad / temperature
        if softcap is not None:
            grad = grad / np.cosh(z / softcap) ** 2  # tanh' = 1 - tanh^2 = 1 / cosh^2

        loss = np.where(used, samples * loss, 0)
        grad = samples[..., None] * grad
        if reduction != "none":
            double = np.result_type(wide, np.float64)
            divisor = 1 if reduction == "sum" else np.sum(share, where=used, dtype=double)
            loss = np.sum(loss, dtype=double) / divisor
            grad = grad / divisor
        grad = np.where(used[..., None] & inside, grad, 0)
    return _finish(loss, loss_dtype), _finish(np.moveaxis(grad, -1, axis), grad_dtype)


# ---- ragged rows --------------------------------------------------------------------------------


def segment_softmax(x: Any, indptr: Any) -> Any:
    """The `softmax` of each segment ``x[indptr[i]:indptr[i + 1]]``, end to end.

    Examples
    --------
    >>> from softlane import reference
    >>> print(reference.segment_softmax([1.0, 2.0, 3.0, 0.0, 0.0], [0, 3, 3, 5]).round(8))
    [0.09003057 0.24472847 0.66524096 0.5        0.5       ]
    """
    return np.concatenate([softmax(row) for row in _segments(x, indptr)])


def segment_log_softmax(x: Any, indptr: Any) -> Any:
    """The `log_softmax` of each segment, end to end.

    Examples
    --------
    >>> from softlane import reference
    >>> print(reference.segment_log_softmax([0.0, 0.0, 7.0], [0, 2, 3]).round(8))
    [-0.69314718 -0.69314718  0.        ]
    """
    return np.concatenate([log_softmax(row) for row in _segments(x, indptr)])


def segment_logsumexp(x: Any, indptr: Any) -> Any:
    """The `logsumexp` of each segment, -inf of an empty one.

    Examples
    --------
    >>> from softlane import reference
    >>> print(reference.segment_logsumexp([0.0, 0.0, 7.0], [0, 2, 2, 3]).round(8))
    [0.69314718       -inf 7.        ]
    """
    return np.array([logsumexp(row) for row in _segments(x, indptr)])


def _segments(x: Any, indptr: Any) -> list[Array]:
    x = np.asarray(x)
    return [x[start:stop] for start, stop in pairwise(indptr)]


# ---- backward functions -------------------------------------------------------------------------


def softmax_backward(
    grad_output: Any, output: Any, axis: Axis = -1, *, temperature: float = 1.0
) -> Any:
    """``y * (g - sum(g * y)) / T`` for the gradient g with respect to ``y = softmax(x)``.

    An element with y = 0 takes no part, whatever its g.

    Examples
    --------
    >>> from softlane import reference
    >>> y = reference.softmax([1.0, 2.0, 3.0])
    >>> print(reference.softmax_backward([1.0, 0.0, 0.0], y).round(8))
    [ 0.08192507 -0.02203304 -0.05989202]
    """
    g, y, result = _prepare_backward(grad_output, output)
    with np.errstate(all="ignore"):
        inner = np.sum(np.where(y == 0, 0, g * y), axis=axis, keepdims=True)
        return _finish(np.where(y == 0, 0, y * (g - inner) / temperature), result)


def log_softmax_backward(
    grad_output: Any, output: Any, axis: Axis = -1, *, temperature: float = 1.0
) -> Any:
    """``(g - exp(y) * sum(g)) / T`` for the gradient g with respect to ``y = log_softmax(x)``.

    Examples
    --------
    >>> from softlane import reference
    >>> y = reference.log_softmax([1.0, 2.0, 3.0])
    >>> print(reference.log_softmax_backward([1.0, 0.0, 0.0], y).round(8))
    [ 0.90996943 -0.24472847 -0.66524096]
    """
    g, y, result = _prepare_backward(grad_output, output)
    with np.errstate(all="ignore"):
        share = np.where(y == -np.inf, 0, np.exp(y) * np.sum(g, axis=axis, keepdims=True))
        return _finish((g - share) / temperature, result)


# ---- what they share ----------------------------------------------------------------------------


def _below_largest(x: Array, axis: Axis) -> Array:
    """The distance to the largest element, 0 or less; not finite where that is not."""
    distance: Array = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    return distance


def _split_sum(terms: Array, is_top: Array, axis: Axis) -> tuple[Array, Array]:
    """The sum of the terms that belong to the largest exponent, and the sum of all others."""
    top = np.sum(np.where(is_top, terms, 0), axis=axis, keepdims=True)
    rest = np.sum(np.where(is_top, 0, terms), axis=axis, keepdims=True)
    return top, rest


def _log_abs(top: Array, rest: Array) -> Array:
    """``log(abs(top + rest))``, with all digits where the rest is small beside a top of 1."""
    ratio = rest / top
    excess = 2 * ratio.real + np.abs(ratio) ** 2  # |1 + ratio|^2 - 1
    by_ratio: Array = np.log(np.abs(top)) + np.log1p(excess) / 2
    return np.where(np.abs(ratio) < 0.5, by_ratio, np.log(np.abs(top + rest)))


def _sign(total: Array) -> Array:
    if not np.iscomplexobj(total):
        sign: Array = np.sign(total)
        return sign
    phase = np.where(np.isfinite(total), total / np.abs(total), np.exp(1j * np.angle(total)))
    return np.where(total == 0, 0, phase)


def _check_targets(target: Array, used: Array, t: Array, inside: Array) -> None:
    """Targets in use must be classes, and these inside `where`; names the first that is not."""
    classes = t.shape[-1]
    for bad, error, expected in (
        ((target < 0) | (target >= classes), IndexError, f"0 <= target < {classes}"),
        (~np.any((t != 0) & inside, axis=-1), ValueError, "a class inside where"),
    ):
        if np.any(used & bad):
            position = tuple(map(int, np.argwhere(used & bad)[0]))
            raise error(f"target {target[position]} at {position}, expected {expected}")


def _prepare(x: Any, where: Any, dtype: Any) -> tuple[Array, Array, DType]:
    """-inf outside `where` and else x, in the dtype to compute in; the inside; the result's dtype."""
    x = np.asarray(x)
    result = _floating(x.dtype) if dtype is None else np.dtype(dtype)
    wide = np.result_type(_single(_floating(x.dtype)), _single(result))
    inside = np.broadcast_to(True if where is None else where, x.shape)
    return np.where(inside, x.astype(wide), -np.inf), inside, result


def _prepare_backward(grad_output: Any, output: Any) -> tuple[Array, Array, DType]:
    g, y = np.asarray(grad_output), np.asarray(output)
    wide = _common_dtype(g, y)
    result = _floating(g.dtype) if g.dtype == y.dtype else wide
    return g.astype(wide), y.astype(wide), result


def _finish(values: Array, dtype: DType) -> Any:
    """The values rounded to the result's dtype, a scalar where they are 0-d."""
    if dtype.kind == "c" and not np.iscomplexobj(values):
        dtype = np.empty(0, dtype).real.dtype
    with np.errstate(over="ignore"):
        return values.astype(dtype)[()]


def _floating(dtype: DType) -> DType:
    """A floating dtype itself, float64 for integers and bool."""
    return np.dtype(np.float64) if dtype.kind in "biu" else dtype.newbyteorder("=")


def _single(dtype: DType) -> DType:
    """float32 for the half types, which have too few digits to compute in; else the dtype."""
    is_half = dtype.itemsize == 2 and dtype.kind not in "biu"
    return np.dtype(np.float32) if is_half else dtype


def _common_dtype(*operands: Any) -> DType:
    """What NumPy's promotion gives, where a Python number does not count, but float32 at least."""
    numbers = (bool, int, float, complex)
    counted = [x if type(x) in numbers else _single(np.asarray(x).dtype) for x in operands]
    return _floating(np.result_type(*counted))
