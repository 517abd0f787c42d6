"""softlane: the softmax family on CPU arrays, accurate to 2 ulp, with the same bits everywhere.

The public functions stand here: they validate, convert and allocate. `softlane._core` computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from softlane import _arrays, _core, _threadpoolctl
from softlane._streaming import LogSumExp

if TYPE_CHECKING:
    from typing import SupportsIndex, TypeAlias, TypedDict, TypeVar

    from numpy.typing import NDArray
    from typing_extensions import Unpack  # which type checkers have, installed or not

    from softlane import reference as reference

    Axis: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...] | None
    _Scalar: TypeAlias = bool | float | np.bool_ | np.integer[Any] | np.floating[Any]
    _Class: TypeAlias = int | np.integer[Any]
    _Reduced: TypeAlias = Literal["mean", "sum"]
    _Out = TypeVar("_Out")

    class _LossOptions(TypedDict, total=False):
        weight: Any
        sample_weight: Any
        ignore_index: SupportsIndex
        label_smoothing: float
        z_loss: float
        softcap: float | None
        temperature: float
        where: Any
        dtype: Any


__all__ = [
    "CrossEntropyStats",
    "LogSumExp",
    "cross_entropy",
    "cross_entropy_with_grad",
    "get_num_threads",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "num_threads",
    "reference",
    "segment_log_softmax",
    "segment_logsumexp",
    "segment_softmax",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_backward",
]

__version__ = _core.__version__

_threadpoolctl.register()

# What most calls are: an ndarray of a plain floating dtype, and every option left at its default. The
# extension module takes these at once; for anything else it gives None, and the general path follows,
# to the same result.
_plain_softmax = _core.plain_softmax
_plain_logsumexp = _core.plain_logsumexp
_plain_cross_entropy = _core.plain_cross_entropy
_plain_backward = _core.plain_backward
# Defaults, recognised by being these very objects.
_ZERO, _IGNORED = 0.0, -100

_X86_ISAS = ("avx512", "avx2", "generic")
_ARM_ISAS = ("neon", "generic")
_ISAS = {"x86_64": _X86_ISAS, "amd64": _X86_ISAS, "aarch64": _ARM_ISAS, "arm64": _ARM_ISAS}


# ---- softmax, log_softmax, logsumexp ------------------------------------------------------------


@overload
def softmax(
    x: _Scalar, axis: Axis = ..., *, where: None = ..., temperature: float = ..., dtype: Any = ...
) -> np.floating[Any]: ...
@overload
def softmax(
    x: Any,
    axis: Axis = ...,
    *,
    where: Any = ...,
    temperature: float = ...,
    dtype: Any = ...,
    out: None = ...,
) -> NDArray[Any]: ...
@overload
def softmax(
    x: Any,
    axis: Axis = ...,
    *,
    where: Any = ...,
    temperature: float = ...,
    dtype: Any = ...,
    out: _Out,
) -> _Out: ...
def softmax(
    x: Any,
    axis: Axis = -1,
    *,
    where: Any = None,
    temperature: float = 1.0,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    r"""Probabilities proportional to ``exp(x / temperature)`` along an axis.

    .. math:: \mathrm{softmax}(x)_i = \frac{e^{x_i / T}}{\sum_k e^{x_k / T}}

    Parameters
    ----------
    x : array_like
        Logits of any shape: an array, a buffer, a CPU tensor, a nested sequence or a number.
        float16, bfloat16, float32 or float64; integers and bool are taken as float64.
    axis : int, tuple of int or None, default: -1
        The axis or axes whose elements compete; None for all.
    where : array_like of bool, optional
        Broadcasts to the shape of `x`. Elements where it is false take no part, whatever they
        hold: their probability is 0.
    temperature : float, default: 1.0
        Finite and above 0. Above 1 it evens the probabilities out, below 1 it sharpens them.
    dtype : dtype_like, optional
        float16, bfloat16, float32 or float64: the dtype to compute in and to return. A wider
        one than that of `x` gives its accuracy; by default that of `x`.
    out : writable buffer, optional
        Where the result goes, of its shape and dtype. It may overlap `x`, or be it.

    Returns
    -------
    ndarray or scalar
        The probabilities, in the shape of `x`; `out` itself if it was given. A row of `x` with a
        NaN or +inf, or of nothing but -inf, gives NaN; one that `where` empties, 0.

    Raises
    ------
    TypeError
        For a dtype or an argument of another kind, and for masked arrays.
    ValueError
        For a `where` or `out` of another shape, a read-only `out`, a bad temperature.
    numpy.exceptions.AxisError
        For an axis that `x` does not have.

    See Also
    --------
    log_softmax : Its logarithm, accurate where probabilities are close to 0 or 1.
    softmax_backward : The gradient.

    Notes
    -----
    Each element lies within 2 ulp of the exact result (half types: is the exact result, rounded),
    and depends on nothing but its own row: see Blanchard, Higham and Higham [1]_ for the formula,
    and Hinton, Vinyals and Dean [2]_ for the temperature.

    References
    ----------
    .. [1] "Accurately computing the log-sum-exp and softmax functions", IMA Journal of Numerical
       Analysis 41(4), 2021, :doi:`10.1093/imanum/draa038`.
    .. [2] "Distilling the knowledge in a neural network", 2015, :arxiv:`1503.02531`.

    Examples
    --------
    >>> import softlane
    >>> print(softlane.softmax([1.0, 2.0, 3.0]).round(8))
    [0.09003057 0.24472847 0.66524096]
    >>> print(softlane.softmax([[1.0, 2.0], [3.0, 3.0]], axis=0).round(8))
    [[0.11920292 0.26894142]
     [0.88079708 0.73105858]]
    >>> print(softlane.softmax([1.0, 2.0, 3.0], where=[True, True, False], temperature=0.5).round(8))
    [0.11920292 0.88079708 0.        ]
    """
    if where is None and dtype is None:
        result = _plain_softmax(x, axis, False, temperature, out)
        if result is not None:
            return result
    return _softmax(x, axis, where, temperature, dtype, out, log=False)


@overload
def log_softmax(
    x: _Scalar, axis: Axis = ..., *, where: None = ..., temperature: float = ..., dtype: Any = ...
) -> np.floating[Any]: ...
@overload
def log_softmax(
    x: Any,
    axis: Axis = ...,
    *,
    where: Any = ...,
    temperature: float = ...,
    dtype: Any = ...,
    out: None = ...,
) -> NDArray[Any]: ...
@overload
def log_softmax(
    x: Any,
    axis: Axis = ...,
    *,
    where: Any = ...,
    temperature: float = ...,
    dtype: Any = ...,
    out: _Out,
) -> _Out: ...
def log_softmax(
    x: Any,
    axis: Axis = -1,
    *,
    where: Any = None,
    temperature: float = 1.0,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    r"""Logarithms of the probabilities that `softmax` gives.

    .. math:: \mathrm{log\_softmax}(x)_i = x_i / T - \log \sum_k e^{x_k / T}

    Parameters
    ----------
    x : array_like
        Logits of any shape, as `softmax` takes them.
    axis : int, tuple of int or None, default: -1
        The axis or axes whose elements compete; None for all.
    where : array_like of bool, optional
        Broadcasts to the shape of `x`. Elements where it is false take no part, whatever they
        hold: their logarithm is -inf.
    temperature : float, default: 1.0
        Finite and above 0; divides the logits.
    dtype : dtype_like, optional
        float16, bfloat16, float32 or float64: the dtype to compute in and to return.
    out : writable buffer, optional
        Where the result goes, of its shape and dtype. It may overlap `x`, or be it.

    Returns
    -------
    ndarray or scalar
        The log-probabilities, in nats and in the shape of `x`; `out` itself if it was given.
        A row of `x` with a NaN or +inf, or of nothing but -inf, gives NaN.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does.

    See Also
    --------
    softmax : The probabilities.
    log_softmax_backward : The gradient.

    Notes
    -----
    Each element lies within 2 ulp of the exact result, in confident rows too: ``-log(p)`` of a
    probability p close to 1 is computed from what p lacks to 1. The formula is that of
    Blanchard, Higham and Higham [1]_.

    References
    ----------
    .. [1] "Accurately computing the log-sum-exp and softmax functions", IMA Journal of Numerical
       Analysis 41(4), 2021, :doi:`10.1093/imanum/draa038`.

    Examples
    --------
    >>> import softlane
    >>> print(softlane.log_softmax([1000.0, 1001.0, 1002.0]).round(8))
    [-2.40760596 -1.40760596 -0.40760596]
    >>> print(softlane.log_softmax([30.0, 0.0]))
    [-9.35762297e-14 -3.00000000e+01]
    """
    if where is None and dtype is None:
        result = _plain_softmax(x, axis, True, temperature, out)
        if result is not None:
            return result
    return _softmax(x, axis, where, temperature, dtype, out, log=True)


def _softmax(
    x: Any, axis: Any, where: Any, temperature: Any, dtype: Any, out: Any, *, log: bool
) -> Any:
    logits = _arrays.as_array(x, "x")
    computed = _arrays.float_dtype(logits.dtype, "x")
    if dtype is not None:
        computed = _arrays.requested_dtype(dtype)
    axes = _arrays.normalize_axes(axis, logits.ndim)
    mask = _arrays.as_mask(where, logits.shape, "x")
    divisor = _arrays.as_positive(temperature, "temperature")
    result = _arrays.Result(logits, logits.shape, computed, out, "out", (mask,), (logits,))
    given, target, bf16 = _arrays.operands(logits, result.array)
    _core.softmax(given, target, axes, mask, divisor, log, bf16)
    return result.value()


# fmt: off
@overload
def logsumexp(
    x: Any, axis: None, *, b: Any = ..., where: Any = ..., keepdims: Literal[False] = ...,
    return_sign: Literal[False] = ..., dtype: Any = ..., out: None = ...,
) -> np.inexact[Any]: ...
@overload
def logsumexp(
    x: Any, axis: Axis = ..., *, b: Any = ..., where: Any = ..., keepdims: Literal[True],
    return_sign: Literal[False] = ..., dtype: Any = ..., out: None = ...,
) -> NDArray[Any]: ...
@overload
def logsumexp(
    x: Any, axis: None, *, b: Any = ..., where: Any = ..., keepdims: Literal[False] = ...,
    return_sign: Literal[True], dtype: Any = ..., out: None = ...,
) -> tuple[np.inexact[Any], np.inexact[Any]]: ...
@overload
def logsumexp(
    x: Any, axis: Axis = ..., *, b: Any = ..., where: Any = ..., keepdims: Literal[True],
    return_sign: Literal[True], dtype: Any = ..., out: None = ...,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def logsumexp(
    x: Any, axis: Axis = ..., *, b: Any = ..., where: Any = ..., keepdims: bool = ...,
    return_sign: Literal[False] = ..., dtype: Any = ..., out: _Out,
) -> _Out: ...
@overload
def logsumexp(
    x: Any, axis: Axis = ..., *, b: Any = ..., where: Any = ..., keepdims: bool = ...,
    return_sign: Literal[True], dtype: Any = ..., out: _Out,
) -> tuple[_Out, Any]: ...
@overload
def logsumexp(
    x: Any, axis: Axis = ..., *, b: Any = ..., where: Any = ..., keepdims: bool = ...,
    return_sign: bool = ..., dtype: Any = ..., out: Any = ...,
) -> Any: ...
# fmt: on
def logsumexp(
    x: Any,
    axis: Axis = -1,
    *,
    b: Any = None,
    where: Any = None,
    keepdims: bool = False,
    return_sign: bool = False,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    r"""Logarithm of a sum of exponentials, optionally weighted.

    .. math:: \mathrm{logsumexp}(x, b) = \log \sum_k b_k e^{x_k}

    Parameters
    ----------
    x : array_like
        Exponents of any shape, real as `softmax` takes them, or complex64 or complex128.
    axis : int, tuple of int or None, default: -1
        The axis or axes to sum over; None for all.
    b : array_like, optional
        Factors, broadcast against `x`, and `x` against them. They may be negative; an element
        with factor 0 takes no part, whatever it holds.
    where : array_like of bool, optional
        Broadcasts to the shape of `x` (and `b`). Elements where it is false take no part.
    keepdims : bool, default: False
        Whether the axes that are summed over stay, with length 1.
    return_sign : bool, default: False
        Whether to return ``log(abs(sum))`` and the sign of the sum instead.
    dtype : dtype_like, optional
        float16, bfloat16, float32 or float64: the dtype to compute in and to return. By default
        NumPy's promotion of `x` and `b`, but float32 for half types and float64 for integers.
    out : writable buffer, optional
        Where the result goes, of its shape and dtype. It may overlap `x` and `b`.

    Returns
    -------
    result : ndarray or scalar
        The logarithm; `out` itself if it was given. -inf where there is nothing to sum, and NaN
        where the sum is negative and `return_sign` false. Complex input gives a complex
        logarithm with its imaginary part in (-pi, pi].
    sign : ndarray or scalar
        Only with `return_sign`: 1, -1, 0 for a sum of 0, or the phase of a complex sum.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does; ValueError also for `x` and `b` that do not broadcast.

    See Also
    --------
    log_softmax : ``x`` minus this.

    Notes
    -----
    The result lies within 2 ulp of the larger of ``max(x)`` and the result; with `b`, times
    ``sum(abs(b) * exp(x)) / abs(sum(b * exp(x)))``. The formula is that of Blanchard, Higham and
    Higham [1]_. Complex input is computed with NumPy.

    References
    ----------
    .. [1] "Accurately computing the log-sum-exp and softmax functions", IMA Journal of Numerical
       Analysis 41(4), 2021, :doi:`10.1093/imanum/draa038`.

    Examples
    --------
    >>> import softlane
    >>> print(softlane.logsumexp([1000.0, 1000.0]).round(12))
    1000.69314718056
    >>> log_abs, sign = softlane.logsumexp([1.0, 2.0], b=[1, -1], return_sign=True)
    >>> print(log_abs.round(12), sign)
    1.541324854613 -1.0
    """
    if (
        b is None
        and where is None
        and keepdims is False
        and return_sign is False
        and dtype is None
        and out is None
    ):
        result = _plain_logsumexp(x, axis)
        if result is not None:
            return result
    return _logsumexp(x, axis, b, where, keepdims, return_sign, dtype, out)


def _logsumexp(
    x: Any,
    axis: Any,
    b: Any,
    where: Any,
    keepdims: bool,
    return_sign: bool,
    dtype: Any,
    out: Any,
) -> Any:
    exponents, factors = _arrays.as_array(x, "x"), None
    computed = _arrays.sum_dtype(exponents.dtype, "x")
    if b is not None:
        factors = _arrays.as_array(b, "b")
        computed = _arrays.common_dtype(("x", x, exponents), ("b", b, factors))
        exponents, factors = _arrays.broadcast_together(exponents, factors)
    is_complex = computed.kind == "c"
    if dtype is not None:
        requested = _arrays.requested_complex_dtype if is_complex else _arrays.requested_dtype
        computed = requested(dtype)
    axes = _arrays.normalize_axes(axis, exponents.ndim)
    mask = _arrays.as_mask(where, exponents.shape, "x" if b is None else "x and b")
    shape = _arrays.without_axes(exponents.shape, axes, keepdims)

    log_dtype = computed.type(0).real.dtype if is_complex and return_sign else computed
    log_sum = _arrays.Result(exponents, shape, log_dtype, out, "out", (exponents, factors, mask))
    sign = None
    if return_sign:
        sign = np.empty(shape, computed if is_complex else _arrays.reduced_dtype(computed))
    if is_complex:
        from softlane import reference

        found = reference.logsumexp(
            exponents, axes, b=factors, where=mask, keepdims=keepdims, return_sign=return_sign
        )
        if sign is None:
            log_sum.array[...] = found
        else:
            log_sum.array[...], sign[...] = found
    else:
        kept = axes if keepdims else ()  # the kernels know nothing of axes of length 1
        target = log_sum.array.squeeze(kept)
        signs = None if sign is None else sign.squeeze(kept)
        exponents, factors, target, bf16 = _arrays.operands(exponents, factors, target)
        _core.logsumexp(exponents, target, signs, axes, factors, mask, bf16)
    if sign is None:
        return log_sum.value()
    return log_sum.value(), sign.astype(computed)[()]


# ---- cross-entropy ------------------------------------------------------------------------------


class CrossEntropyStats(NamedTuple):
    """What `cross_entropy` knows of each sample beside its loss, with ``return_stats=True``.

    The arrays have the shape of `logits` without `axis`; they are scalars where that is (). All are
    0, or False, for a sample that is ignored. Where targets are probabilities, the target of a
    sample is the likeliest of them, the first if there are several.

    Examples
    --------
    >>> import softlane
    >>> _, stats = softlane.cross_entropy([1.0, 3.0], 1, return_stats=True)
    >>> print(stats.logsumexp.round(4), stats.log_prob.round(4), stats.correct)
    3.1269 -0.1269 True
    """

    logsumexp: Any
    """The normaliser, ``logsumexp(logits / temperature)``: float64, or float32 for float32 losses."""
    log_prob: Any
    """The log-probability of the target."""
    correct: Any
    """Whether the target is the largest logit, the first if there are several; bool."""
    entropy: Any
    """The entropy of the prediction, ``-sum(p * log(p))`` in nats."""


# fmt: off
@overload
def cross_entropy(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: _Reduced = ...,
    out: None = ..., return_stats: Literal[False] = ..., **options: Unpack[_LossOptions],
) -> np.floating[Any]: ...
@overload
def cross_entropy(
    logits: Any, targets: _Class, axis: SupportsIndex = ..., *, reduction: Literal["none"],
    out: None = ..., return_stats: Literal[False] = ..., **options: Unpack[_LossOptions],
) -> np.floating[Any]: ...
@overload
def cross_entropy(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: Literal["none"],
    out: None = ..., return_stats: Literal[False] = ..., **options: Unpack[_LossOptions],
) -> NDArray[Any]: ...
@overload
def cross_entropy(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: _Reduced = ...,
    out: None = ..., return_stats: Literal[True], **options: Unpack[_LossOptions],
) -> tuple[np.floating[Any], CrossEntropyStats]: ...
@overload
def cross_entropy(
    logits: Any, targets: _Class, axis: SupportsIndex = ..., *, reduction: Literal["none"],
    out: None = ..., return_stats: Literal[True], **options: Unpack[_LossOptions],
) -> tuple[np.floating[Any], CrossEntropyStats]: ...
@overload
def cross_entropy(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: Literal["none"],
    out: None = ..., return_stats: Literal[True], **options: Unpack[_LossOptions],
) -> tuple[NDArray[Any], CrossEntropyStats]: ...
@overload
def cross_entropy(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: str = ...,
    out: _Out, return_stats: Literal[False] = ..., **options: Unpack[_LossOptions],
) -> _Out: ...
@overload
def cross_entropy(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: str = ...,
    out: _Out, return_stats: Literal[True], **options: Unpack[_LossOptions],
) -> tuple[_Out, CrossEntropyStats]: ...
@overload
def cross_entropy(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: str = ...,
    out: Any = ..., return_stats: bool = ..., **options: Unpack[_LossOptions],
) -> Any: ...
# fmt: on
def cross_entropy(
    logits: Any,
    targets: Any,
    axis: SupportsIndex = -1,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: SupportsIndex = _IGNORED,
    label_smoothing: float = 0.0,
    z_loss: float = _ZERO,
    softcap: float | None = None,
    temperature: float = 1.0,
    where: Any = None,
    reduction: str = "mean",
    dtype: Any = None,
    out: Any = None,
    return_stats: bool = False,
) -> Any:
    r"""Cross-entropy of predictions, given as logits, against target classes or probabilities.

    With :math:`p = \mathrm{softmax}(logits / T)` over C classes, target y, class weights w and
    label smoothing :math:`\varepsilon`, the loss of a sample is

    .. math:: (1 - \varepsilon) \, w_y \, (-\log p_y)
              + \frac{\varepsilon}{C} \sum_c w_c \, (-\log p_c)

    and for targets that are probabilities t

    .. math:: \sum_c w_c \, \Bigl((1 - \varepsilon) \, t_c + \frac{\varepsilon}{C}\Bigr) \, (-\log p_c)

    Parameters
    ----------
    logits : array_like
        Logits of at least one dimension, as `softmax` takes them; `axis` is that of the C classes.
    targets : array_like
        The class of each sample, 0 to C - 1, in the shape of `logits` without `axis`; any integer
        dtype. (torch's shape (N, C, d1, ...) is ``axis=1``.) Or, of a floating dtype and in the
        shape of `logits`, a probability for each class; they need not add up to 1.
    axis : int, default: -1
        The axis of the classes.
    weight : array_like, optional
        A factor for each class, of shape (C,).
    sample_weight : array_like, optional
        A factor for each sample; broadcasts to the shape of `targets`.
    ignore_index : int, default: -100
        Samples with this target have loss and gradient 0, whatever their logits hold, and do not
        count in the mean. Without meaning for probabilities.
    label_smoothing : float, default: 0.0
        The share, 0 to 1, of the target distribution that is spread over all classes.
    z_loss : float, default: 0.0
        The factor of ``logsumexp(logits)**2``, which is added to the loss of each sample.
    softcap : float, optional
        Finite and above 0: before anything else the logits become
        ``softcap * tanh(logits / softcap)``.
    temperature : float, default: 1.0
        Finite and above 0; divides the logits.
    where : array_like of bool, optional
        Broadcasts to the shape of `logits`. Classes where it is false take no part, and C counts
        the others.
    reduction : {"mean", "sum", "none"}, default: "mean"
        "mean" is the weighted one: the sum of the losses over the sum of the factors
        ``weight[y] * sample_weight`` of the samples that are not ignored; NaN if there are none.
        With probabilities the factors are `sample_weight` alone.
    dtype : dtype_like, optional
        float16, bfloat16, float32 or float64: the dtype to compute in and to return. By default
        that of `logits`, but float32 for half types and float64 for integers.
    out : writable buffer, optional
        Where the losses go, of their shape (() for a sum or mean) and dtype.
    return_stats : bool, default: False
        Whether to return what else the pass over the logits gives.

    Returns
    -------
    loss : ndarray or scalar
        The loss in nats, a scalar or, for ``reduction="none"``, in the shape of `logits` without
        `axis`; `out` itself if it was given. Perplexity is ``exp`` of the mean.
    stats : CrossEntropyStats
        Only with `return_stats`: logsumexp, log_prob, correct and entropy of each sample.

    Raises
    ------
    IndexError
        For a target that is not a class; the text names it and its position.
    TypeError
        For a dtype or an argument of another kind, and for masked arrays.
    ValueError
        For an argument of another shape or out of its range, and a target outside `where`.
    numpy.exceptions.AxisError
        For an axis that `logits` does not have.

    See Also
    --------
    cross_entropy_with_grad : The loss and its gradient, from the same pass.

    Notes
    -----
    The loss of each sample lies within 2 ulp of the exact one, in confident rows too; sums over
    samples are taken in float64. Label smoothing is that of Szegedy et al. [1]_, the z-loss that of
    Chowdhery et al. [2]_, the soft cap that of Gemma 2 [3]_. With a soft cap the error is that of a
    float64 computation, rounded to the result.

    References
    ----------
    .. [1] "Rethinking the Inception architecture for computer vision", 2015,
       :arxiv:`1512.00567`.
    .. [2] "PaLM: scaling language modeling with pathways", 2022, :arxiv:`2204.02311`.
    .. [3] "Gemma 2: improving open language models at a practical size", 2024,
       :arxiv:`2408.00118`.

    Examples
    --------
    >>> import softlane
    >>> logits = [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]]
    >>> print(softlane.cross_entropy(logits, [0, 2]).round(8))
    1.41853977
    >>> print(softlane.cross_entropy(logits, [0, 2], reduction="none").round(8))
    [0.41703002 2.42004952]
    >>> loss, stats = softlane.cross_entropy(logits, [0, 2], return_stats=True)
    >>> print(stats.correct, stats.entropy.round(4))
    [ True False] [0.8467 0.6329]
    >>> print(softlane.cross_entropy(logits, [[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]]).round(8))
    1.24853977
    """
    return _cross_entropy(
        logits,
        targets,
        axis,
        weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        z_loss,
        softcap,
        temperature,
        where,
        reduction,
        dtype,
        out,
        return_stats=return_stats,
    )


# fmt: off
@overload
def cross_entropy_with_grad(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: _Reduced = ...,
    grad_out: NDArray[Any] | None = ..., return_stats: Literal[False] = ..., **options: Unpack[_LossOptions],
) -> tuple[np.floating[Any], NDArray[Any]]: ...
@overload
def cross_entropy_with_grad(
    logits: Any, targets: _Class, axis: SupportsIndex = ..., *, reduction: Literal["none"],
    grad_out: NDArray[Any] | None = ..., return_stats: Literal[False] = ..., **options: Unpack[_LossOptions],
) -> tuple[np.floating[Any], NDArray[Any]]: ...
@overload
def cross_entropy_with_grad(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: Literal["none"],
    grad_out: NDArray[Any] | None = ..., return_stats: Literal[False] = ..., **options: Unpack[_LossOptions],
) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def cross_entropy_with_grad(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: _Reduced = ...,
    grad_out: NDArray[Any] | None = ..., return_stats: Literal[True], **options: Unpack[_LossOptions],
) -> tuple[np.floating[Any], NDArray[Any], CrossEntropyStats]: ...
@overload
def cross_entropy_with_grad(
    logits: Any, targets: _Class, axis: SupportsIndex = ..., *, reduction: Literal["none"],
    grad_out: NDArray[Any] | None = ..., return_stats: Literal[True], **options: Unpack[_LossOptions],
) -> tuple[np.floating[Any], NDArray[Any], CrossEntropyStats]: ...
@overload
def cross_entropy_with_grad(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: Literal["none"],
    grad_out: NDArray[Any] | None = ..., return_stats: Literal[True], **options: Unpack[_LossOptions],
) -> tuple[NDArray[Any], NDArray[Any], CrossEntropyStats]: ...
@overload
def cross_entropy_with_grad(
    logits: Any, targets: Any, axis: SupportsIndex = ..., *, reduction: str = ...,
    grad_out: Any = ..., return_stats: bool = ..., **options: Unpack[_LossOptions],
) -> Any: ...
# fmt: on
def cross_entropy_with_grad(
    logits: Any,
    targets: Any,
    axis: SupportsIndex = -1,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: SupportsIndex = _IGNORED,
    label_smoothing: float = 0.0,
    z_loss: float = _ZERO,
    softcap: float | None = None,
    temperature: float = 1.0,
    where: Any = None,
    reduction: str = "mean",
    dtype: Any = None,
    grad_out: Any = None,
    return_stats: bool = False,
) -> Any:
    r"""Cross-entropy and its gradient with respect to the logits, from one pass.

    The gradient of a sample, before it is divided as the mean is, and by the temperature, is

    .. math:: (1 - \varepsilon) \, w_y \, (p - \delta_y)
              + \frac{\varepsilon}{C} \Bigl(p \sum_c w_c - w\Bigr)

    Parameters
    ----------
    logits, targets, axis
        As in `cross_entropy`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, temperature, where
        As in `cross_entropy`.
    reduction : {"mean", "sum", "none"}, default: "mean"
        As in `cross_entropy`. The gradient is that of the mean or the sum; with "none" it is that
        of each sample's own loss.
    dtype : dtype_like, optional
        float16, bfloat16, float32 or float64: the dtype to compute in and to return. By default
        the loss has the dtype that `cross_entropy` gives it and the gradient that of `logits`.
    grad_out : writable buffer, optional
        Where the gradient goes, of its shape and dtype. It may overlap any input, or be `logits`.
    return_stats : bool, default: False
        As in `cross_entropy`.

    Returns
    -------
    loss : ndarray or scalar
        As `cross_entropy` gives it.
    grad : ndarray
        The gradient in the shape of `logits`; `grad_out` itself if it was given.
    stats : CrossEntropyStats
        Only with `return_stats`.

    Raises
    ------
    IndexError, TypeError, ValueError, numpy.exceptions.AxisError
        As `cross_entropy` does.

    See Also
    --------
    cross_entropy : The loss alone.

    Notes
    -----
    Each element of the gradient lies within 2 ulp of the exact one. At the target it is
    ``expm1(-loss)`` and not ``p - 1``, which would lose the digits of a confident prediction.

    Examples
    --------
    >>> import softlane
    >>> logits = [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]]
    >>> loss, grad = softlane.cross_entropy_with_grad(logits, [0, 2])
    >>> print(loss.round(8))
    1.41853977
    >>> print(grad.round(4))
    [[-0.1705  0.1212  0.0493]
     [ 0.0543  0.4012 -0.4555]]
    """
    return _cross_entropy(
        logits,
        targets,
        axis,
        weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        z_loss,
        softcap,
        temperature,
        where,
        reduction,
        dtype,
        None,
        return_stats=return_stats,
        with_grad=True,
        grad_out=grad_out,
    )


def _cross_entropy(
    logits: Any,
    targets: Any,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
    temperature: Any,
    where: Any,
    reduction: Any,
    dtype: Any,
    out: Any,
    *,
    return_stats: bool,
    with_grad: bool = False,
    grad_out: Any = None,
) -> Any:
    if (
        weight is None
        and sample_weight is None
        and ignore_index is _IGNORED
        and z_loss is _ZERO
        and softcap is None
        and where is None
        and dtype is None
        and out is None
        and grad_out is None
        and return_stats is False
    ):
        result = _plain_cross_entropy(
            logits, targets, axis, label_smoothing, temperature, reduction, with_grad
        )
        if result is not None:
            return result
    z = _arrays.as_array(logits, "logits")
    grad_dtype = _arrays.float_dtype(z.dtype, "logits")
    loss_dtype = _arrays.reduced_dtype(grad_dtype)
    if dtype is not None:
        grad_dtype = loss_dtype = _arrays.requested_dtype(dtype)
    class_axis = _arrays.normalize_axis(axis, z.ndim)
    samples = _arrays.without_axes(z.shape, (class_axis,))
    y = _arrays.as_targets(targets, z.shape, class_axis, samples)
    w = _arrays.as_class_weight(weight, z.shape, class_axis)
    s = _arrays.as_sample_weight(sample_weight, samples)
    mask = _arrays.as_mask(where, z.shape, "logits")
    ignored = _arrays.as_int64(ignore_index, "ignore_index")
    smoothing = _arrays.as_share(label_smoothing, "label_smoothing")
    z_factor = _arrays.as_finite(z_loss, "z_loss")
    cap = 0.0 if softcap is None else _arrays.as_positive(softcap, "softcap")
    divisor = _arrays.as_positive(temperature, "temperature")
    reduce = _arrays.as_reduction(reduction)
    inputs = (y, w, s, mask)
    loss = _arrays.Result(y, () if reduce else samples, loss_dtype, out, "out", (z, *inputs))
    losses = loss.array
    grad = gradients = None
    if with_grad:
        grad = _arrays.Result(z, z.shape, grad_dtype, grad_out, "grad_out", inputs, (z,))
        gradients = grad.array
    z, gradients, w, s, losses, y, bf16 = _arrays.operands(z, gradients, w, s, losses, y)
    stats = None
    if return_stats:
        kind = _arrays.reduced_dtype(loss_dtype)
        correct = np.empty(samples, np.bool_)
        stats = (np.empty(samples, kind), np.empty(samples, kind), np.empty(samples, kind), correct)
    _core.cross_entropy(
        z, y, class_axis, w, s, ignored, smoothing, divisor, mask, reduce,
        losses, gradients, bf16, z_factor, cap, stats,
    )  # fmt: skip
    results = [loss.value()]
    if grad is not None:
        results.append(grad.value())
    if stats is not None:
        lse, log_prob, entropy, correct = (array[()] for array in stats)
        results.append(CrossEntropyStats(lse, log_prob, correct, entropy))
    return results[0] if len(results) == 1 else tuple(results)


# ---- ragged rows --------------------------------------------------------------------------------


@overload
def segment_softmax(x: Any, indptr: Any, *, out: None = ...) -> NDArray[Any]: ...
@overload
def segment_softmax(x: Any, indptr: Any, *, out: _Out) -> _Out: ...
def segment_softmax(x: Any, indptr: Any, *, out: Any = None) -> Any:
    r"""Softmax over each segment of a one-dimensional array.

    Segment i is ``x[indptr[i]:indptr[i + 1]]``, as rows are in SciPy's CSR format: the edges of a
    graph by their node, or attention over sequences of different lengths.

    Parameters
    ----------
    x : array_like
        Logits of one dimension, as `softmax` takes them.
    indptr : array_like of int
        One more than there are segments: ascending from 0 to the length of `x`. Equal neighbours
        are an empty segment.
    out : writable buffer, optional
        Where the result goes, of its shape and dtype. It may overlap `x`, or be it.

    Returns
    -------
    ndarray
        The probabilities, in the shape of `x`; `out` itself if it was given. Each segment is, to
        the bit, what `softmax` makes of it.

    Raises
    ------
    TypeError, ValueError
        As `softmax` does; ValueError also for an `x` of more dimensions, and for an `indptr` that
        does not start with 0, descends, or does not end in the length of `x`.

    See Also
    --------
    segment_log_softmax, segment_logsumexp

    Examples
    --------
    >>> import softlane
    >>> print(softlane.segment_softmax([1.0, 2.0, 3.0, 0.0, 0.0], [0, 3, 3, 5]).round(8))
    [0.09003057 0.24472847 0.66524096 0.5        0.5       ]
    """
    return _segments(x, indptr, out, log=False)


@overload
def segment_log_softmax(x: Any, indptr: Any, *, out: None = ...) -> NDArray[Any]: ...
@overload
def segment_log_softmax(x: Any, indptr: Any, *, out: _Out) -> _Out: ...
def segment_log_softmax(x: Any, indptr: Any, *, out: Any = None) -> Any:
    r"""Log-softmax over each segment of a one-dimensional array.

    Parameters
    ----------
    x, indptr, out
        As in `segment_softmax`.

    Returns
    -------
    ndarray
        The log-probabilities, in the shape of `x`; `out` itself if it was given.

    Raises
    ------
    TypeError, ValueError
        As `segment_softmax` does.

    See Also
    --------
    segment_softmax, segment_logsumexp

    Examples
    --------
    >>> import softlane
    >>> print(softlane.segment_log_softmax([0.0, 0.0, 7.0], [0, 2, 3]).round(8))
    [-0.69314718 -0.69314718  0.        ]
    """
    return _segments(x, indptr, out, log=True)


@overload
def segment_logsumexp(x: Any, indptr: Any, *, out: None = ...) -> NDArray[Any]: ...
@overload
def segment_logsumexp(x: Any, indptr: Any, *, out: _Out) -> _Out: ...
def segment_logsumexp(x: Any, indptr: Any, *, out: Any = None) -> Any:
    r"""Logarithm of the sum of exponentials of each segment of a one-dimensional array.

    Parameters
    ----------
    x, indptr
        As in `segment_softmax`.
    out : writable buffer, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    ndarray
        One logarithm for each segment, -inf for an empty one; float32 for half types, as
        `logsumexp` gives it. `out` itself if it was given.

    Raises
    ------
    TypeError, ValueError
        As `segment_softmax` does.

    See Also
    --------
    segment_softmax, segment_log_softmax

    Examples
    --------
    >>> import softlane
    >>> print(softlane.segment_logsumexp([0.0, 0.0, 7.0], [0, 2, 2, 3]).round(8))
    [0.69314718       -inf 7.        ]
    """
    return _segments(x, indptr, out, log=None)


def _segments(x: Any, indptr: Any, out: Any, *, log: bool | None) -> Any:
    logits = _arrays.as_array(x, "x")
    computed = _arrays.float_dtype(logits.dtype, "x")
    pointers = _arrays.as_pointers(indptr)
    if logits.ndim != 1:
        raise ValueError(f"x has shape {logits.shape}, expected one dimension")
    if log is None:
        shape = (pointers.size - 1,)
        reduced = _arrays.reduced_dtype(computed)
        result = _arrays.Result(logits, shape, reduced, out, "out", (logits, pointers))
    else:
        result = _arrays.Result(logits, logits.shape, computed, out, "out", (pointers,), (logits,))
    given, target, bf16 = _arrays.operands(logits, result.array)
    _core.segments(given, pointers, target, log, bf16)
    return result.value()


# ---- backward functions -------------------------------------------------------------------------


@overload
def softmax_backward(
    grad_output: Any, output: Any, axis: Axis = ..., *, temperature: float = ..., out: None = ...
) -> NDArray[Any]: ...
@overload
def softmax_backward(
    grad_output: Any, output: Any, axis: Axis = ..., *, temperature: float = ..., out: _Out
) -> _Out: ...
def softmax_backward(
    grad_output: Any,
    output: Any,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    out: Any = None,
) -> Any:
    r"""Gradient through `softmax`, from that of its output.

    With ``y = softmax(x)`` and g the gradient with respect to y, the gradient with respect to x is

    .. math:: \frac{1}{T} \, y_i \, \Bigl(g_i - \sum_k g_k y_k\Bigr)

    Parameters
    ----------
    grad_output : array_like
        The gradient with respect to the output, real as the input of `softmax`.
    output : array_like
        What `softmax` returned, of the same shape.
    axis : int, tuple of int or None, default: -1
        The `axis` that `softmax` was called with.
    temperature : float, default: 1.0
        The `temperature` that `softmax` was called with.
    out : writable buffer, optional
        Where the result goes, of its shape and dtype. It may overlap an input, or be it.

    Returns
    -------
    ndarray or scalar
        The gradient with respect to the input of `softmax`; `out` itself if it was given. Its
        dtype is that of the two inputs, or what NumPy promotes them to. Where y is 0, as it is
        where a mask was, it is 0 whatever g holds there.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does; ValueError also for inputs of different shapes.

    See Also
    --------
    log_softmax_backward : The same through `log_softmax`.
    cross_entropy_with_grad : The gradient of a loss, without the cancellation of this chain.

    Examples
    --------
    >>> import softlane
    >>> y = softlane.softmax([1.0, 2.0, 3.0])
    >>> print(softlane.softmax_backward([1.0, 0.0, 0.0], y).round(8))
    [ 0.08192507 -0.02203304 -0.05989202]
    """
    return _backward(grad_output, output, axis, temperature, out, log=False)


@overload
def log_softmax_backward(
    grad_output: Any, output: Any, axis: Axis = ..., *, temperature: float = ..., out: None = ...
) -> NDArray[Any]: ...
@overload
def log_softmax_backward(
    grad_output: Any, output: Any, axis: Axis = ..., *, temperature: float = ..., out: _Out
) -> _Out: ...
def log_softmax_backward(
    grad_output: Any,
    output: Any,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    out: Any = None,
) -> Any:
    r"""Gradient through `log_softmax`, from that of its output.

    With ``y = log_softmax(x)`` and g the gradient with respect to y, the gradient with respect to
    x is

    .. math:: \frac{1}{T} \, \Bigl(g_i - e^{y_i} \sum_k g_k\Bigr)

    Parameters
    ----------
    grad_output : array_like
        The gradient with respect to the output, real as the input of `log_softmax`.
    output : array_like
        What `log_softmax` returned, of the same shape.
    axis : int, tuple of int or None, default: -1
        The `axis` that `log_softmax` was called with.
    temperature : float, default: 1.0
        The `temperature` that `log_softmax` was called with.
    out : writable buffer, optional
        Where the result goes, of its shape and dtype. It may overlap an input, or be it.

    Returns
    -------
    ndarray or scalar
        The gradient with respect to the input of `log_softmax`; `out` itself if it was given. Its
        dtype is that of the two inputs, or what NumPy promotes them to. Where y is -inf it is
        ``g / T``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does; ValueError also for inputs of different shapes.

    See Also
    --------
    softmax_backward : The same through `softmax`.
    cross_entropy_with_grad : The gradient of a loss, without the cancellation of this chain.

    Examples
    --------
    >>> import softlane
    >>> y = softlane.log_softmax([1.0, 2.0, 3.0])
    >>> print(softlane.log_softmax_backward([1.0, 0.0, 0.0], y).round(8))
    [ 0.90996943 -0.24472847 -0.66524096]
    """
    return _backward(grad_output, output, axis, temperature, out, log=True)


def _backward(
    grad_output: Any, output: Any, axis: Any, temperature: Any, out: Any, *, log: bool
) -> Any:
    if out is None:
        plain = _plain_backward(grad_output, output, axis, log, temperature)
        if plain is not None:
            return plain
    g = _arrays.as_array(grad_output, "grad_output")
    y = _arrays.as_array(output, "output")
    computed = _arrays.float_dtype(g.dtype, "grad_output")
    if _arrays.float_dtype(y.dtype, "output") != computed:
        computed = _arrays.common_dtype(("grad_output", grad_output, g), ("output", output, y))
    if y.shape != g.shape:
        raise ValueError(f"output has shape {y.shape}, expected that of grad_output, {g.shape}")
    axes = _arrays.normalize_axes(axis, g.ndim)
    divisor = _arrays.as_positive(temperature, "temperature")
    result = _arrays.Result(g, g.shape, computed, out, "out", (), (g, y))
    given_g, given_y, target, bf16 = _arrays.operands(g, y, result.array)
    _core.softmax_backward(given_g, given_y, target, axes, divisor, log, bf16)
    return result.value()


# ---- threads and configuration ------------------------------------------------------------------


def get_num_threads() -> int:
    """Number of threads that a call from this thread may use.

    Returns
    -------
    int

    See Also
    --------
    set_num_threads : Sets it for the process.
    num_threads : Limits it for the calling thread.

    Examples
    --------
    >>> import softlane
    >>> softlane.get_num_threads() >= 1
    True
    """
    return _core.get_num_threads()


def set_num_threads(n: SupportsIndex) -> None:
    """Set the number of threads that calls may use, in the whole process.

    By default it is what the environment says, ``SOFTLANE_NUM_THREADS`` or else
    ``OMP_NUM_THREADS``, or else the number of CPUs that the process may use. Results do not
    depend on it.

    Parameters
    ----------
    n : int
        1 or more; 1 computes in the calling thread alone.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer, or below 1.

    See Also
    --------
    num_threads : The same for the calling thread, and for a while.

    Examples
    --------
    >>> import softlane
    >>> before = softlane.get_num_threads()
    >>> softlane.set_num_threads(1)
    >>> softlane.get_num_threads()
    1
    >>> softlane.set_num_threads(before)
    """
    _core.set_num_threads(_arrays.as_thread_count(n))


def num_threads(n: SupportsIndex) -> AbstractContextManager[None]:
    """Limit the threads that calls from the calling thread may use, within a ``with`` block.

    Parameters
    ----------
    n : int
        1 or more.

    Returns
    -------
    context manager

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer, or below 1.

    See Also
    --------
    set_num_threads : For the whole process.

    Examples
    --------
    >>> import softlane
    >>> with softlane.num_threads(1):
    ...     print(softlane.get_num_threads())
    1
    """
    return _thread_limit(_arrays.as_thread_count(n))


@contextmanager
def _thread_limit(n: int) -> Iterator[None]:
    previous = _core.set_thread_limit(n)
    try:
        yield
    finally:
        _core.set_thread_limit(previous)


@overload
def show_config(mode: Literal["print"] = "print") -> None: ...
@overload
def show_config(mode: Literal["dict"]) -> dict[str, Any]: ...
def show_config(mode: str = "print") -> dict[str, Any] | None:
    """Version, instruction sets, threads and compiler of this installation.

    Parameters
    ----------
    mode : {"print", "dict"}, default: "print"
        Whether to print the configuration or to return it.

    Returns
    -------
    dict or None
        With ``mode="dict"`` the keys ``version``, ``isa`` (the active instruction set),
        ``isas_usable`` (on this machine, best first), ``isas_compiled``, ``isas_left_out`` (which
        the compiler could not build, or was told not to), ``threads`` and ``compiler``.
        ``SOFTLANE_ISA`` in the environment chooses among the usable ones.

    Raises
    ------
    ValueError
        For another mode.

    Examples
    --------
    >>> import softlane
    >>> config = softlane.show_config("dict")
    >>> config["isa"] in config["isas_usable"]
    True
    """
    from platform import machine

    compiled = _core.isas_compiled()
    config = {
        "version": _core.__version__,
        "isa": _core.get_isa(),
        "isas_usable": _core.isas_usable(),
        "isas_compiled": compiled,
        "isas_left_out": [i for i in _ISAS.get(machine().lower(), ()) if i not in compiled],
        "threads": _core.get_num_threads(),
        "compiler": _core.compiler(),
    }
    if mode == "dict":
        return config
    if mode != "print":
        raise ValueError(f"mode is {mode!r}, expected 'print' or 'dict'")
    for key, value in config.items():
        text = (" ".join(value) or "none") if isinstance(value, list) else value
        print(f"{key:<14} {text}")
    return None


def __getattr__(name: str) -> Any:
    if name in ("reference", "torch", "dask"):
        return import_module(f"softlane.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
