"""The softmax family for Dask arrays: lazy, chunked along the batch, the classes or both.

Each chunk is reduced to a state of a few numbers a row by softlane's kernels, the states are
merged by a tree reduction of Dask's, and the chunks are then finished one by one: the class axis
is never gathered. Importing softlane does not import this module; importing this one imports dask.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

import softlane
from softlane import _arrays, _core

try:
    import dask.array as da
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "dask":
        raise
    raise ImportError("softlane.dask needs dask: pip install 'softlane[dask]'") from None

if TYPE_CHECKING:
    from softlane import Axis
    from softlane._arrays import Array, DType, Shape

    Pair = tuple[Array, Array]

__all__ = ["cross_entropy", "log_softmax", "logsumexp", "softmax"]

# Of some of the elements of a row: the largest, and the sum of exp((x - max) / T) over all others,
# in two doubles, so that merging loses nothing: in units of 2^-600, or sums near the smallest numbers
# would be rounded by each. The sum over all elements is 2^600 + rest + more units, and its logarithm
# keeps its digits where it is near 0. Where there is nothing but -inf, the sum is 0 and rest is -2^600.
_UNIT_BITS = 600
_ONE = 2.0**_UNIT_BITS
_STATE: DType = np.dtype([("max", "f8"), ("rest", "f8"), ("more", "f8")])
# And of a sample with a target: the target's logit and weight (0 where the target is in another
# chunk), and for label smoothing the sum of weight * (max - x), and that of the weights, in `_unit`s.
_LOSS_STATE: DType = np.dtype(
    [*_STATE.descr, ("logit", "f8"), ("weight", "f8"), ("below", "f8"), ("weights", "f8")]
)


# ---- functions ----------------------------------------------------------------------------------


def softmax(
    x: Any, axis: Axis = -1, *, where: Any = None, temperature: float = 1.0, dtype: Any = None
) -> Any:
    """Probabilities proportional to ``exp(x / temperature)``, as `softlane.softmax`.

    Parameters
    ----------
    x : dask.array.Array
        Logits of any shape and chunks, of a dtype that `softlane.softmax` takes.
    axis : int, tuple of int or None, default: -1
        The axis or axes whose elements compete; None for all.
    where : dask.array.Array or array_like of bool, optional
        Broadcasts to the shape of `x`. Elements where it is false take no part: their
        probability is 0.
    temperature : float, default: 1.0
        Finite and above 0; divides the logits.
    dtype : dtype_like, optional
        float16, bfloat16, float32 or float64: the dtype to compute in and to return.

    Returns
    -------
    dask.array.Array
        The probabilities, in the shape and chunks of `x`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softlane.softmax` does, at once or, for what the chunks hold, when computed.

    See Also
    --------
    softlane.softmax : The same for arrays in memory.

    Notes
    -----
    Where `axis` has a single chunk, the results are those of `softlane.softmax`, bit by bit.
    Otherwise they are as accurate, while their last bits depend on the chunks.

    Examples
    --------
    >>> import dask.array as da
    >>> import softlane.dask
    >>> x = da.from_array([[1.0, 2.0, 3.0], [1000.0, 1001.0, 1002.0]], chunks=(1, 2))
    >>> print(softlane.dask.softmax(x).compute().round(8))
    [[0.09003057 0.24472847 0.66524096]
     [0.09003057 0.24472847 0.66524096]]
    """
    return _softmax(x, axis, where, temperature, dtype, log=False)


def log_softmax(
    x: Any, axis: Axis = -1, *, where: Any = None, temperature: float = 1.0, dtype: Any = None
) -> Any:
    """Logarithms of the probabilities that `softmax` gives, as `softlane.log_softmax`.

    Parameters
    ----------
    x, axis, where, temperature, dtype
        As in `softmax`; where the mask is false the logarithm is -inf.

    Returns
    -------
    dask.array.Array
        The log-probabilities in nats, in the shape and chunks of `x`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does.

    See Also
    --------
    softlane.log_softmax : The same for arrays in memory.

    Examples
    --------
    >>> import dask.array as da
    >>> import softlane.dask
    >>> x = da.from_array([30.0, 0.0], chunks=1)
    >>> print(softlane.dask.log_softmax(x).compute())
    [-9.35762297e-14 -3.00000000e+01]
    """
    return _softmax(x, axis, where, temperature, dtype, log=True)


def logsumexp(
    x: Any, axis: Axis = -1, *, where: Any = None, keepdims: bool = False, dtype: Any = None
) -> Any:
    """Logarithm of a sum of exponentials, as `softlane.logsumexp`.

    Parameters
    ----------
    x : dask.array.Array
        Real exponents of any shape and chunks.
    axis : int, tuple of int or None, default: -1
        The axis or axes to sum over; None for all.
    where : dask.array.Array or array_like of bool, optional
        Broadcasts to the shape of `x`. Elements where it is false take no part.
    keepdims : bool, default: False
        Whether the axes that are summed over stay, with length 1.
    dtype : dtype_like, optional
        float16, bfloat16, float32 or float64: the dtype to return. By default that of `x`, but
        float32 for half types and float64 for integers.

    Returns
    -------
    dask.array.Array
        The logarithm.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does.

    See Also
    --------
    softlane.logsumexp : The same for arrays in memory, with factors and signs.

    Examples
    --------
    >>> import dask.array as da
    >>> import softlane.dask
    >>> x = da.full((2, 1_000_000), 1000.0, chunks=(1, 250_000))
    >>> print(softlane.dask.logsumexp(x).compute().round(8))
    [1013.81551056 1013.81551056]
    """
    logits = da.asanyarray(x)
    result = _arrays.reduced_dtype(_arrays.float_dtype(logits.dtype, "x"))
    if dtype is not None:
        result = _arrays.requested_dtype(dtype)
    axes = _arrays.normalize_axes(axis, logits.ndim)
    if where is not None:
        logits = _where(_as_mask(where, logits), logits)
    merged = _merged(_states(logits, axes, 1.0), axes, 1.0, keepdims=keepdims)
    return merged.map_blocks(_log_sum, result, **_described(merged.ndim, result))


def cross_entropy(
    logits: Any,
    targets: Any,
    axis: int = -1,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    dtype: Any = None,
) -> Any:
    """Cross-entropy of logits against target classes, as `softlane.cross_entropy`.

    Parameters
    ----------
    logits : dask.array.Array
        Logits of at least one dimension and any chunks; `axis` is that of the C classes.
    targets : dask.array.Array or array_like of int
        The class of each sample, 0 to C - 1, in the shape of `logits` without `axis`.
    axis : int, default: -1
        The axis of the classes.
    weight : array_like, optional
        A factor for each class, of shape (C,).
    sample_weight : dask.array.Array or array_like, optional
        A factor for each sample; broadcasts to the shape of `targets`.
    ignore_index : int, default: -100
        Samples with this target have loss 0 and do not count in the mean.
    label_smoothing : float, default: 0.0
        The share, 0 to 1, of the target distribution that is spread over all classes.
    temperature : float, default: 1.0
        Finite and above 0; divides the logits.
    reduction : {"mean", "sum", "none"}, default: "mean"
        "mean" is the weighted one, as in `softlane.cross_entropy`.
    dtype : dtype_like, optional
        float16, bfloat16, float32 or float64: the dtype to return. By default that of `logits`,
        but float32 for half types and float64 for integers.

    Returns
    -------
    dask.array.Array
        The loss in nats, of shape () or, for ``reduction="none"``, that of `targets`.

    Raises
    ------
    IndexError
        When computed, for a target that is not a class; the text names it and its position.
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softlane.cross_entropy` does.

    See Also
    --------
    softlane.cross_entropy : The same for arrays in memory.

    Examples
    --------
    >>> import dask.array as da
    >>> import softlane.dask
    >>> logits = da.from_array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], chunks=(2, 1))
    >>> print(softlane.dask.cross_entropy(logits, [0, 2]).compute().round(8))
    1.41853977
    """
    z, y = da.asanyarray(logits), da.asanyarray(targets)
    result = _arrays.reduced_dtype(_arrays.float_dtype(z.dtype, "logits"))
    if dtype is not None:
        result = _arrays.requested_dtype(dtype)
    class_axis = _arrays.normalize_axis(axis, z.ndim)
    samples = _arrays.without_axes(z.shape, (class_axis,))
    if y.dtype.kind not in "iu":
        raise TypeError(f"targets has dtype {y.dtype}, expected an integer type")
    if any(n != n for n in (*samples, *y.shape)):
        raise ValueError(
            "logits and targets have chunks of unknown lengths, which might differ: "
            "call compute_chunk_sizes() on both"
        )
    if y.shape != samples:
        raise ValueError(
            f"targets has shape {y.shape}, expected {samples}: "
            f"logits {z.shape} without axis {class_axis}"
        )
    class_weight = _arrays.as_class_weight(weight, z.shape, class_axis)
    ignored = _arrays.as_int64(ignore_index, "ignore_index")
    smoothing = _arrays.as_share(label_smoothing, "label_smoothing")
    divisor = _arrays.as_positive(temperature, "temperature")
    _arrays.as_reduction(reduction)

    sample_chunks = _arrays.without_axes(z.chunks, (class_axis,))
    y = y.rechunk(sample_chunks)
    s = 1.0
    if sample_weight is not None:
        s = da.broadcast_to(da.asanyarray(sample_weight), samples).rechunk(sample_chunks)
    classes, class_chunks = z.shape[class_axis], (z.chunks[class_axis],)
    ones = da.ones(classes, chunks=class_chunks)
    w = ones if class_weight is None else da.from_array(class_weight, class_chunks)

    dims = tuple(range(z.ndim))
    states = da.blockwise(
        _loss_state,
        dims,
        *(z, dims),
        *(y, _arrays.without_axes(dims, (class_axis,))),
        *(da.arange(classes, chunks=class_chunks), (class_axis,)),
        *(w, (class_axis,)),
        class_axis=class_axis,
        total_classes=classes,
        smoothing=smoothing,
        temperature=divisor,
        **_described(z.ndim, _LOSS_STATE),
        adjust_chunks={class_axis: 1},
    )
    merged = _merged(states, (class_axis,), divisor, keepdims=False)
    losses = da.map_blocks(
        _losses,
        *(merged, y, s),
        classes=classes,
        ignore_index=ignored,
        smoothing=smoothing,
        temperature=divisor,
        **_described(y.ndim, _arrays.F64),
    )
    if reduction == "none":
        return losses.map_blocks(_rounded, result, **_described(y.ndim, result))
    total, count = losses.sum(), 1.0
    if reduction == "mean":
        shares = da.map_blocks(
            _shares, *(merged, y, s), ignore_index=ignored, **_described(y.ndim, _arrays.F64)
        )
        count = shares.sum()
    return da.map_blocks(_quotient, total, count, result, **_described(0, result))


# ---- graphs -------------------------------------------------------------------------------------


def _described(ndim: int, dtype: DType) -> dict[str, Any]:
    """What Dask would otherwise find out by calling functions on empty arrays."""
    return {"dtype": dtype, "meta": np.empty((0,) * ndim, dtype)}


def _as_mask(where: Any, x: Any) -> Any:
    mask = da.asanyarray(where)
    if mask.dtype.char != "?":
        raise TypeError(f"where has dtype {mask.dtype}, expected bool")
    return da.broadcast_to(mask, x.shape).rechunk(x.chunks)


def _where(mask: Any, x: Any) -> Any:
    """The array with -inf where the mask is false, which no sum of exponentials sees."""
    dtype = _arrays.float_dtype(x.dtype, "x")
    return da.map_blocks(_masked, x, mask, dtype, **_described(x.ndim, dtype))


def _softmax(x: Any, axis: Any, where: Any, temperature: Any, dtype: Any, *, log: bool) -> Any:
    logits = da.asanyarray(x)
    result = _arrays.float_dtype(logits.dtype, "x")
    if dtype is not None:
        result = _arrays.requested_dtype(dtype)
    axes = _arrays.normalize_axes(axis, logits.ndim)
    divisor = _arrays.as_positive(temperature, "temperature")
    mask = None if where is None else _as_mask(where, logits)
    options = {"axes": axes, "temperature": divisor, "result": result, "log": log}
    described = _described(logits.ndim, result)
    if all(logits.numblocks[a] == 1 for a in axes):
        return da.map_blocks(_whole_rows, logits, mask, **options, **described)

    if mask is not None:
        logits = _where(mask, logits)
    states = _states(logits, axes, divisor)
    merged = _merged(states, axes, divisor, keepdims=True)
    dims = tuple(range(logits.ndim))
    return da.blockwise(
        _parts_of_rows,
        dims,
        *(logits, dims),
        *(states, dims),
        *(merged, dims),  # a single block along the axes, which each block there is given
        *(mask, None if mask is None else dims),
        align_arrays=False,
        **options,
        **described,
    )


def _states(x: Any, axes: Shape, temperature: float) -> Any:
    """The state of each row of each chunk: an array with one element a chunk along the axes."""
    dims = tuple(range(x.ndim))
    return da.blockwise(
        _state,
        dims,
        *(x, dims),
        axes=axes,
        temperature=temperature,
        adjust_chunks=dict.fromkeys(axes, 1),
        **_described(x.ndim, _STATE),
    )


def _merged(states: Any, axes: Shape, temperature: float, *, keepdims: bool) -> Any:
    if not axes:
        return states
    merge = partial(_merge, temperature=temperature)
    return da.reduction(
        states,
        chunk=merge,
        combine=merge,
        aggregate=merge,
        axis=axes,
        keepdims=keepdims,
        **_described(states.ndim - (0 if keepdims else len(axes)), states.dtype),
    )


# ---- sums in two doubles ------------------------------------------------------------------------
# Dekker, "A floating-point technique for extending the available precision", 1971. The second double
# is what the first was rounded by. Not meant for more than some states a row.


def _elementary(name: str, x: Array) -> Array:
    y: Array = _core.elementary(name, x).reshape(x.shape)
    return y


def _two_sum(a: Array, b: Array) -> Pair:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: Array, b: Array) -> Pair:
    product = a * b
    a_high, b_high = (c * 134217729.0 - (c * 134217729.0 - c) for c in (a, b))  # 2^27 + 1
    a_low, b_low = a - a_high, b - b_high
    return product, a_low * b_low - (
        ((product - a_high * b_high) - a_low * b_high) - a_high * b_low
    )


def _ones(like: Array) -> Pair:
    return np.full(like.shape, _ONE), np.zeros(like.shape)


def _without_units(sums: Array) -> Array:
    return np.asarray(np.ldexp(sums, -_UNIT_BITS))


def _sum(a: Pair, b: Pair) -> Pair:
    high, low = _two_sum(a[0], b[0])
    return _finite_pair(high, low + (a[1] + b[1]))


def _product(a: Pair, b: Pair) -> Pair:
    high, low = _two_product(a[0], b[0])
    return _finite_pair(high, low + (a[0] * b[1] + a[1] * b[0]))


def _finite_pair(high: Array, low: Array) -> Pair:
    total = high + low
    return np.where(np.isfinite(low), total, high), np.where(
        np.isfinite(low), low - (total - high), 0
    )


def _distance(a: Array, b: Array, temperature: float) -> Pair:
    """(a - b) / T, where a <= b."""
    half = 0.5 if temperature > 1 else 1.0  # or the difference could overflow
    divisor = np.asarray(temperature * half)
    high, low = _two_sum(a * half, -b * half)
    low = np.where(np.isfinite(low), low, 0)
    high = np.where(a == b, 0, high)  # two infinities
    quotient = high / divisor
    product, error = _two_product(quotient, divisor)
    rest = ((high - product) - error + low) / divisor
    return quotient, np.where(np.isfinite(rest), rest, 0)


# ln 2 in two parts, of which the first has 37 bits, and exp(i / 256) in two doubles.
_LN2_HI = float.fromhex("0x1.62e42fefap-1")
_LN2_LO = float.fromhex("0x1.cf79abc9e3b3ap-40")


@cache
def _exp_table() -> Array:
    with localcontext() as context:
        context.prec = 40
        exact = [(Decimal(i) / 256).exp() for i in range(-90, 91)]
        return np.array([[float(y), float(y - Decimal(float(y)))] for y in exact])


def _times_exp(a: Pair, x: Pair, power: Any = 0) -> Pair:
    """The product a * exp(x) * 2**power, with some bits more than a double has: states are merged many times."""
    high = x[0].clip(-6000, 6000)
    n = np.rint(high / math.log(2))
    r = high - n * _LN2_HI
    i = np.rint(r * 256)
    r -= i / 256
    low = x[1] - n * _LN2_LO
    s = r + low
    tail = low + s * s * (1 / 2 + s * (1 / 6 + s * (1 / 24 + s / 120)))
    y, more = np.moveaxis(_exp_table()[np.nan_to_num(i).astype(int) + 90], -1, 0)
    exponent = np.nan_to_num(n + power).clip(-20000, 20000).astype(int)
    scaled, own = np.frexp(a[0])  # or an intermediate result could overflow
    high, low = _product((scaled, np.ldexp(a[1], -own)), (y, more + y * (r + tail)))
    return np.ldexp(high, exponent + own), np.ldexp(low, exponent + own)


# ---- what is computed of chunks -----------------------------------------------------------------


def _rows(x: Array, axes: Shape) -> Array:
    """The elements of each row along the last axis: a view, but for several axes."""
    kept = _arrays.without_axes(x.shape, axes)
    length = math.prod(x.shape[a] for a in axes)
    return np.moveaxis(x, axes, range(-len(axes), 0)).reshape(*kept, length)


def _not_rows(rows: Array, shape: Shape, axes: Shape) -> Array:
    """The inverse of that."""
    lengths = tuple(shape[a] for a in axes)
    return np.moveaxis(rows.reshape(*rows.shape[:-1], *lengths), range(-len(axes), 0), axes)


def _pick(rows: Array, at: Array) -> Array:
    """One element of each row."""
    picked: Array = np.take_along_axis(rows, at[..., None], -1)[..., 0]
    return picked


def _masked(x: Array, mask: Array, dtype: DType) -> Array:
    masked = x.astype(dtype)
    masked[~mask] = -np.inf
    return masked


def _state(x: Array, *, axes: Shape, temperature: float) -> Array:
    rows = _rows(x, axes)
    state = np.zeros(rows.shape[:-1], _STATE)
    state["max"], state["rest"] = -np.inf, -_ONE
    if rows.size:
        best = np.asarray(rows.argmax(-1))
        top = state["max"] = _pick(rows, best)
        others = rows.astype(_arrays.reduced_dtype(_arrays.float_dtype(x.dtype, "x")))
        np.put_along_axis(others, best[..., None], -np.inf, -1)
        with np.errstate(all="ignore"):
            rest, more = _exp_sum(others, top, temperature)
        state["rest"] = np.where(np.isinf(top), np.where(top > 0, np.nan, -_ONE), rest)
        state["more"] = np.where(np.isinf(top), 0.0, more)
    return np.expand_dims(state, axes)


def _exp_sum(x: Array, top: Array, temperature: float) -> Pair:
    """The sum of exp((x - top) / T) along the last axis, in units."""
    correction: Any = 0.0
    if temperature != 1:
        x, low = _distance(x.astype(_arrays.F64), top[..., None], temperature)
        correction = (_elementary("exp", x) * low).sum(-1) * _ONE
    sums = np.empty((*top.shape, 4))
    _core.exp_sums(x, sums, (x.ndim - 1,), 0)
    shift, exponent, high, low = np.moveaxis(sums, -1, 0)
    distance = _distance(shift, top, 1.0) if temperature == 1 else (shift, np.zeros(top.shape))
    high, low = _times_exp((high, low), distance, exponent + _UNIT_BITS)
    return _sum((high, low), (correction, np.zeros(top.shape)))


def _merge(states: Array, axis: Shape, keepdims: bool, *, temperature: float) -> Array:
    rows = _rows(states, axis)
    best = np.asarray(rows["max"].argmax(-1))
    merged = _pick(rows, best)
    top = merged["max"]
    with np.errstate(all="ignore"):
        rest = merged["rest"], merged["more"]
        for i in range(rows.shape[-1]):
            part = rows[..., i]
            whole = _whole(part)
            high, low = _times_exp(whole, _distance(part["max"], top, temperature))
            is_counted = (best == i) | (whole[0] == 0)
            rest = _sum(rest, (np.where(is_counted, 0, high), np.where(is_counted, 0, low)))
        merged["rest"], merged["more"] = rest
        if states.dtype == _LOSS_STATE:
            half_distance = top[..., None] / 2 - rows["max"] / 2
            lower = np.where(rows["max"] == top[..., None], 0, 2 * rows["weights"] * half_distance)
            merged["below"] = (rows["below"] + lower).sum(-1)
            for name in ("logit", "weight", "weights"):
                merged[name] = rows[name].sum(-1)
    return np.expand_dims(merged, axis) if keepdims else merged


def _whole(state: Array) -> Pair:
    """The sum over all elements, the largest too, in units."""
    return _sum(_ones(state), (state["rest"], state["more"]))


def _log_of_whole(state: Array) -> Array:
    """Its logarithm."""
    return _elementary("log1p", _without_units(state["rest"]))


def _log_sum(state: Array, result: DType) -> Array:
    top = state["max"]
    with np.errstate(all="ignore"):
        log_sum = np.where(np.isinf(top), top, top + _log_of_whole(state))
        return _rounded(log_sum, result)


def _whole_rows(
    x: Array, mask: Array | None, *, axes: Shape, temperature: float, result: DType, log: bool
) -> Any:
    function = softlane.log_softmax if log else softlane.softmax
    return function(x, axes, where=mask, temperature=temperature, dtype=result)


def _parts_of_rows(
    x: Array,
    part: Array,
    whole: Array,
    mask: Array | None,
    *,
    axes: Shape,
    temperature: float,
    result: DType,
    log: bool,
) -> Array:
    """Softmax or log-softmax of a chunk, of which the rows are parts of the whole ones."""
    computed = _arrays.float_dtype(x.dtype, "x")
    wide = _arrays.F64 if _arrays.F64 in (result, computed) else _arrays.F32
    rows = _rows(x, axes)
    part, whole = part.reshape(rows.shape[:-1]), whole.reshape(rows.shape[:-1])
    top = whole["max"]
    with np.errstate(all="ignore"):
        # All that is elsewhere goes in as two more logits: the second has what the first rounds off.
        # They have no room beside large logits, from which the largest can be subtracted exactly.
        half = 0.5 if temperature > 1 else 1.0  # or a difference could overflow
        is_far = np.isfinite(top) & (
            abs(top) > temperature * (1500 if wide == _arrays.F64 else 210)
        )
        base = np.where(is_far, top * half, 0)
        near = np.where(is_far, 0, top * half)
        scale = temperature * half
        here = _times_exp(_whole(part), _distance(part["max"], top, temperature))
        there = _sum(_whole(whole), (-here[0], -here[1]))
        elsewhere = _without_units(there[0].clip(0))
        height = scale * _elementary("log", elsewhere)
        rounding = np.spacing(np.maximum(np.maximum(abs(near), abs(height)), scale).astype(wide))
        first = np.where(elsewhere > 0, near + height - 2 * rounding, height).astype(wide)
        covered = _times_exp(_ones(top), _distance(first.astype(_arrays.F64), near, scale))
        left = _sum(there, (-covered[0], -covered[1]))[0]
        z = np.empty((*rows.shape[:-1], rows.shape[-1] + 2), wide)
        z[..., -2] = first
        z[..., -1] = near + scale * _elementary("log", _without_units(left.clip(0)))
        np.multiply(rows, half, out=z[..., :-2], dtype=wide, casting="same_kind")
        if is_far.any():
            z[..., :-2] -= base[..., None].astype(wide)
        function = softlane.log_softmax if log else softlane.softmax
        y = function(z, temperature=scale, out=z)[..., :-2]
        y = _not_rows(y, x.shape, axes)
        if mask is not None:  # also of rows that it empties, which are NaN so far
            y[~mask] = -np.inf if log else 0
        parts: Array = y.astype(result)
        return parts


def _loss_state(
    z: Array,
    y: Array,
    classes: Array,
    w: Array,
    *,
    class_axis: int,
    total_classes: int,
    smoothing: float,
    temperature: float,
) -> Array:
    rows = _rows(z, (class_axis,))
    state = np.zeros(y.shape, _LOSS_STATE)
    parts = _state(z, axes=(class_axis,), temperature=temperature).squeeze(class_axis)
    for name in _STATE.names or ():
        state[name] = parts[name]
    if len(classes) > 0:
        is_here = (y >= classes[0]) & (y <= classes[-1])
        at = np.where(is_here, y, classes[0]).astype(np.int64) - classes[0]
        state["logit"] = np.where(is_here, _pick(rows, at), 0)
        state["weight"] = np.where(is_here, w[at], 0)
        if smoothing > 0:
            unit = _unit(total_classes)
            state["weights"] = (w * unit).sum(dtype=_arrays.F64)
            with np.errstate(all="ignore"):
                below = parts["max"][..., None] / 2 - np.divide(rows, 2, dtype=_arrays.F64)
                below[rows == -np.inf] = np.inf
                state["below"] = np.where(w == 0, 0, 2 * unit * w * below).sum(-1)
    return np.expand_dims(state, class_axis)


def _unit(classes: int) -> float:
    """A power of two by which a sum over the classes is multiplied, so that it does not overflow."""
    return float(0.5 ** (classes.bit_length() + 1))


def _losses(
    state: Array,
    y: Array,
    s: Any,
    *,
    classes: int,
    ignore_index: int,
    smoothing: float,
    temperature: float,
    block_info: Any = None,
) -> Array:
    used = y != ignore_index
    _check_targets(y, used, classes, ignore_index, block_info)
    with np.errstate(all="ignore"):
        log_sum = _log_of_whole(state)
        at_target = (state["max"] - state["logit"]) / temperature + log_sum
        loss = (1 - smoothing) * np.where(state["weight"] == 0, 0, state["weight"] * at_target)
        if smoothing > 0:
            everywhere = state["below"] / temperature + state["weights"] * log_sum
            loss += smoothing / (classes * _unit(classes)) * everywhere
        return np.where(used, s * loss, 0)


def _check_targets(y: Array, used: Array, classes: int, ignore_index: int, block_info: Any) -> None:
    bad = used & ((y < 0) | (y >= classes))
    if bad.any():
        first = np.unravel_index(bad.argmax(), bad.shape)
        value = y[first]
        where = "targets"
        if block_info:
            starts = [start for start, _ in block_info[1]["array-location"]]
            where += str([start + int(i) for start, i in zip(starts, first, strict=True)])
        raise IndexError(
            f"{where} is {value}, expected 0 <= target < {classes} or ignore_index {ignore_index}"
        )


def _shares(state: Array, y: Array, s: Any, *, ignore_index: int) -> Array:
    """What each sample counts in the mean."""
    return np.where(y != ignore_index, s * state["weight"], 0.0)


def _rounded(x: Any, result: DType) -> Array:
    with np.errstate(all="ignore"):
        rounded: Array = np.asarray(x).astype(result)
        return rounded


def _quotient(total: Array, count: Any, result: DType) -> Array:
    with np.errstate(all="ignore"):
        return _rounded(total / count, result)
