"""A running log Σ exp, for exponents that come in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from softlane import _arrays, _core

if TYPE_CHECKING:
    from typing import SupportsIndex

    from softlane._arrays import Array, DType

# The distance of two shifts is reduced by multiples of ln 2 as a sum; n * _LN2_HI is exact for
# |n| < 2^20, and sums further apart do not meet.
_LN2_HI = float.fromhex("0x1.62e42fep-1")
_LN2_LO = float.fromhex("0x1.f473de6af278fp-30")
_EMPTY = (0.0, -1e300, 0.0, 0.0)


class LogSumExp:
    """The logarithm of a sum of exponentials that arrive in chunks, or from several places.

    It keeps, for each result, the sum in two doubles beside a power of two, by which it is rescaled
    exactly when a larger exponent arrives. States can be merged and pickled, so that parts of an
    axis can be summed by different threads, processes or machines.

    Attributes
    ----------
    shape : tuple of int or None
        The shape of the result; None before the first chunk.

    See Also
    --------
    logsumexp : The same for exponents that are at hand.

    Notes
    -----
    The result lies within 2 ulp of the larger of the largest exponent and the exact result, in
    whatever chunks and order the exponents came. The online algorithm is that of Milakov and
    Gimelshein [1]_.

    References
    ----------
    .. [1] "Online normalizer calculation for softmax", 2018, :arxiv:`1805.02867`.

    Examples
    --------
    >>> import softlane
    >>> state = softlane.LogSumExp()
    >>> print(state.update([1000.0, 1001.0]).update([1002.0]).result().round(8))
    1002.40760596
    >>> other = softlane.LogSumExp().update([1003.0])
    >>> print(state.merge(other).result().round(8))
    1003.4401897
    """

    __slots__ = ("_dtype", "_sums")

    def __init__(self) -> None:
        self._sums: Array | None = None  # (..., 4), as csrc/kernels/table.h describes ExpSumState
        self._dtype: DType = _arrays.F32

    @property
    def shape(self) -> tuple[int, ...] | None:
        return None if self._sums is None else self._sums.shape[:-1]

    def update(
        self, chunk: Any, axis: SupportsIndex | tuple[SupportsIndex, ...] | None = -1
    ) -> LogSumExp:
        """Add the exponentials of a chunk.

        Parameters
        ----------
        chunk : array_like
            Exponents, real as `logsumexp` takes them. Without `axis` its shape is that of every
            other chunk.
        axis : int, tuple of int or None, default: -1
            The axis or axes to sum over; None for all.

        Returns
        -------
        LogSumExp
            The state itself.

        Raises
        ------
        TypeError, ValueError, numpy.exceptions.AxisError
            As `logsumexp` does; ValueError also for a chunk of another shape. The state is then
            what it was.
        """
        x = _arrays.as_array(chunk, "chunk")
        dtype = _arrays.reduced_dtype(_arrays.float_dtype(x.dtype, "chunk"))
        axes = _arrays.normalize_axes(axis, x.ndim)
        shape = _arrays.without_axes(x.shape, axes)
        self._check_shape(shape, f"chunk has shape {x.shape}, without axis {axis} {shape}")
        sums = np.empty((*shape, 4))
        sums[...] = _EMPTY
        if x.size:
            given, bf16 = _arrays.operands(x)
            _core.exp_sums(given, sums, axes, bf16)
        self._add(sums, dtype)
        return self

    def merge(self, other: LogSumExp) -> LogSumExp:
        """Add what another state has summed.

        Parameters
        ----------
        other : LogSumExp
            A state of the same shape. It is not changed.

        Returns
        -------
        LogSumExp
            The state itself.

        Raises
        ------
        TypeError, ValueError
            For another object, and for a state of another shape.
        """
        if not isinstance(other, LogSumExp):
            raise TypeError(f"other is of type {type(other).__name__}, expected a LogSumExp")
        if other._sums is not None:
            shape = other._sums.shape[:-1]
            self._check_shape(shape, f"other has shape {shape}")
            self._add(other._sums, other._dtype)
        return self

    def result(self) -> Any:
        """The logarithm of the sum so far.

        Returns
        -------
        ndarray or scalar
            float64, or float32 where all chunks were of that or of a half type; -inf before the
            first chunk.
        """
        if self._sums is None:
            return np.float64(-np.inf)
        with np.errstate(over="ignore"):
            return _core.log_of_sums(self._sums).astype(self._dtype)[()]

    def __repr__(self) -> str:
        return f"LogSumExp(shape={self.shape}, result={self.result()})"

    def _check_shape(self, shape: tuple[int, ...], text: str) -> None:
        if self._sums is not None and shape != self._sums.shape[:-1]:
            raise ValueError(f"{text}, expected {self._sums.shape[:-1]}, that of the chunks before")

    def _add(self, sums: Array, dtype: DType) -> None:
        if self._sums is None:
            self._sums, self._dtype = sums.copy(), dtype
        else:
            self._sums = _merged(self._sums, sums)
            self._dtype = np.promote_types(self._dtype, dtype)


def _size(sums: Array) -> Array:
    """Roughly the logarithms of the sums; inf for those that are not finite."""
    logarithm = sums[..., 0] + sums[..., 1] * np.log(2.0)
    size: Array = np.where(np.isfinite(sums[..., 2]), logarithm, np.inf)
    return np.where(sums[..., 2] == 0, -np.inf, size)


def _merged(a: Array, b: Array) -> Array:
    """The sums of two states: the lower one is brought to the scale of the other."""
    swap = (_size(a) < _size(b))[..., None]
    top, low = np.where(swap, b, a), np.where(swap, a, b)
    with np.errstate(all="ignore"):
        # exp(distance) * 2^power, where the distance is 0 but far from 0; below -1e5 nothing is left
        distance = np.clip(low[..., 0] - top[..., 0], -1e5, 1e5)
        binades = np.rint(distance / np.log(2.0))
        factor = np.exp((distance - binades * _LN2_HI) - binades * _LN2_LO)
        factor = np.where(distance == 0, 1.0, factor)
        power = np.nan_to_num(low[..., 1] - top[..., 1] + binades)
        power = np.clip(power, -5000, 5000).astype(np.int64)
        hi, lo = (np.ldexp(low[..., i] * factor, power) for i in (2, 3))
        # the sum of the high parts and its rounding error (Knuth), then everything else
        total = top[..., 2] + hi
        part = total - top[..., 2]
        rest = (top[..., 2] - (total - part)) + (hi - part) + (top[..., 3] + lo)
        rest = np.where(np.isfinite(total), rest, 0.0)
        high = total + rest
        rest = np.where(np.isfinite(total), rest - (high - total), 0.0)
    merged: Array = np.stack([top[..., 0], top[..., 1], high, rest], axis=-1)
    return merged
