"""From what callers pass to what the kernels take: conversion, validation, output buffers.

Nothing is computed here. What is checked here is not checked again below.
"""

from __future__ import annotations

import math
import struct
import sys
from importlib import import_module
from numbers import Real
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing import TypeAlias

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
    DType: TypeAlias = np.dtype[Any]
    Shape: TypeAlias = tuple[int, ...]

F16: DType = np.dtype(np.float16)
F32: DType = np.dtype(np.float32)
F64: DType = np.dtype(np.float64)

AxisError: type[Exception] = getattr(np, "exceptions", np).AxisError  # np itself before NumPy 1.25

_U16: DType = np.dtype(np.uint16)
_FLOATING = {"e": F16, "f": F32, "d": F64}
_COMPUTED = {**_FLOATING, **dict.fromkeys("?bBhHiIlLqQ", F64)}
_COMPLEX = "FD"
_INFINITY = float("inf")
_OVERLAP_WORK: Any = 1  # enough for NumPy to tell interleaved arrays apart, not only distant ones
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_UNMASK = {
    "x": "pass x.data and where=~x.mask",
    "logits": "pass logits.data and where=~logits.mask",
    "targets": "pass targets.filled(ignore_index)",
    "out": "pass out.data",
    "grad_out": "pass grad_out.data",
}


# ---- dtypes -------------------------------------------------------------------------------------


def is_bfloat16(dtype: DType) -> bool:
    """Whether it is the dtype that ml_dtypes gives NumPy; told without importing ml_dtypes."""
    return dtype.type.__name__ == "bfloat16"


def _native(dtype: DType) -> DType:
    native: DType = dtype.newbyteorder("=")
    return native


def _bfloat16(what: str) -> DType:
    try:
        ml_dtypes = import_module("ml_dtypes")
    except ImportError:
        raise TypeError(f"{what} is bfloat16, which needs the package ml_dtypes") from None
    dtype: DType = np.dtype(ml_dtypes.bfloat16)
    return dtype


def float_dtype(dtype: DType, name: str, or_else: str = "an integer type or bool") -> DType:
    """The dtype of an element-wise result: a floating one stays, integers and bool give float64."""
    computed = _COMPUTED.get(dtype.char)
    if computed is None:
        if not is_bfloat16(dtype):
            raise TypeError(
                f"{name} has dtype {dtype}, expected float16, bfloat16, float32, float64, {or_else}"
            )
        computed = _native(dtype)
    return computed


def reduced_dtype(floating: DType) -> DType:
    """The dtype of a reduction over elements of a floating dtype: half types give float32."""
    return F64 if floating is F64 else F32


def sum_dtype(dtype: DType, name: str) -> DType:
    """The dtype of a sum over elements, which may be complex."""
    if dtype.char in _COMPLEX:
        return _native(dtype)
    others = "complex64, complex128, an integer type or bool"
    return reduced_dtype(float_dtype(dtype, name, others))


def common_dtype(*operands: tuple[str, Any, Array]) -> DType:
    """The dtype of a sum over elements of several operands: what NumPy promotes them to.

    An operand is its name, the object that was passed and the array made of it. Python numbers
    among the objects do not count, as in NumPy.
    """
    promoted: list[Any] = []
    for name, source, array in operands:
        is_half = sum_dtype(array.dtype, name) is F32 and array.dtype.itemsize == 2
        is_number = type(source) in (bool, int, float, complex)
        promoted.append(source if is_number else F32 if is_half else array.dtype)
    return sum_dtype(np.result_type(*promoted), "the result")


def requested_dtype(dtype: Any) -> DType:
    """The dtype= argument: one of the four floating types, in native byte order."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        return _bfloat16("dtype")  # NumPy knows this name only once ml_dtypes has been imported
    requested = np.dtype(dtype)
    native = _FLOATING.get(requested.char)
    if native is None:
        if not is_bfloat16(requested):
            raise TypeError(f"dtype is {requested}, expected float16, bfloat16, float32 or float64")
        native = _native(requested)
    return native


def requested_complex_dtype(dtype: Any) -> DType:
    requested = np.dtype(dtype)
    if requested.char not in _COMPLEX:
        raise TypeError(f"dtype is {requested}, expected complex64 or complex128 for complex input")
    return _native(requested)


# ---- arrays -------------------------------------------------------------------------------------


def _loaded(module: str, name: str) -> Any:
    """A class of a module that has been imported, else (), of which nothing is an instance."""
    return getattr(sys.modules.get(module), name, ())


_NATIVE_SIZES = {code: struct.calcsize(code) for code in "?bBhHiIlLqQnNefd"}
_STANDARD_SIZES = {code: struct.calcsize("=" + code) for code in "?bBhHiIlLqQefd"}


def _is_sound(view: memoryview) -> bool:
    """Whether an exporter's format, item size, shape and length agree, as far as can be told."""
    order, code = view.format[:-1], view.format[-1:]
    sizes = _NATIVE_SIZES if order in ("", "@") else _STANDARD_SIZES
    known = sizes.get(code) if len(order) <= 1 else None
    items = math.prod(view.shape or ())
    return (
        0
        < len(view.format)
        < 1000  # in a time quadratic in it NumPy would find that it is no number
        and known in (None, view.itemsize)
        and items * view.itemsize == view.nbytes
    )


def as_array(source: Any, name: str) -> Array:
    """Any array-like as a plain ndarray of whatever dtype, of the same memory where it has any."""
    if type(source) is np.ndarray:
        return source
    if isinstance(source, _loaded("numpy.ma", "MaskedArray")):
        advice = _UNMASK.get(name, f"pass {name}.filled(value)")
        raise TypeError(f"{name} is a masked array, whose mask would be ignored: {advice}")
    if isinstance(source, _loaded("torch", "Tensor")):
        return _from_tensor(source, name)
    if hasattr(type(source), "__array__"):
        return np.asarray(source)
    try:
        view = memoryview(source)
    except (TypeError, BufferError):
        return _from_dlpack_or_sequence(source, name)
    if not _is_sound(view):  # NumPy would read past the end
        raise TypeError(
            f"{name} is a buffer whose shape {view.shape} and item size {view.itemsize} do not agree "
            f"with its format {view.format!r} and its {view.nbytes} bytes"
        )
    try:
        return np.asarray(view)  # of the view: NumPy takes bytes themselves for a string
    except (ValueError, BufferError, RuntimeError) as error:
        raise TypeError(f"{name} is a buffer that NumPy cannot read: {error}") from None


def _from_tensor(tensor: Any, name: str) -> Array:
    if tensor.requires_grad:
        raise TypeError(f"{name} is a tensor that requires grad: pass {name}.detach()")
    torch = sys.modules["torch"]
    if tensor.dtype is torch.bfloat16:  # which torch does not export
        return np.asarray(tensor.view(torch.int16)).view(_bfloat16(name))
    return np.asarray(tensor)


def _from_dlpack_or_sequence(source: Any, name: str) -> Array:
    if hasattr(type(source), "__dlpack__"):
        try:
            return np.from_dlpack(source)
        except (BufferError, RuntimeError) as error:
            raise TypeError(f"{name} cannot be read through DLPack: {error}") from None
    try:
        return np.asarray(source)
    except ValueError as error:
        raise ValueError(f"{name} is not a regular nested sequence: {error}") from None


def broadcast(array: Array, shape: Shape, name: str, like: str) -> Array:
    """The array in another shape, its elements repeated by strides of zero."""
    if array.shape == shape:
        return array
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {array.shape}, which does not broadcast to that of {like}, {shape}"
        ) from None


def broadcast_together(x: Array, b: Array) -> tuple[Array, Array]:
    if x.shape == b.shape:
        return x, b
    try:
        shape = np.broadcast(x, b).shape
    except ValueError:
        raise ValueError(
            f"b has shape {b.shape}, which does not broadcast with that of x, {x.shape}"
        ) from None
    return np.broadcast_to(x, shape), np.broadcast_to(b, shape)


def as_mask(where: Any, shape: Shape, like: str) -> Array | None:
    """The where= argument in the shape of the array that it masks; None if it masks nothing."""
    if where is None or where is True:
        return None
    mask = as_array(where, "where")
    if mask.dtype.char != "?":
        raise TypeError(f"where has dtype {mask.dtype}, expected bool")
    return broadcast(mask, shape, "where", like)


def as_targets(targets: Any, logits: Shape, axis: int, samples: Shape) -> Array:
    """Class indices in the shape of the samples, or probabilities in that of the logits."""
    array = as_array(targets, "targets")
    if array.size == 0 and isinstance(targets, (list, tuple)):
        array = array.astype(np.int64)  # an empty list is float64 to NumPy
    dtype = array.dtype
    if dtype.kind in "iu":
        if array.shape != samples:
            raise ValueError(
                f"targets has shape {array.shape}, expected {samples}: "
                f"logits {logits} without axis {axis}"
            )
    elif array.shape != logits or not (dtype.char in _FLOATING or is_bfloat16(dtype)):
        raise TypeError(
            f"targets has dtype {dtype} and shape {array.shape}, expected an integer type, "
            f"or probabilities in the shape of logits, {logits}"
        )
    return array


def _as_factors(source: Any, name: str) -> Array:
    """Weights of any real dtype."""
    array = as_array(source, name)
    float_dtype(array.dtype, name)
    return array


def as_class_weight(weight: Any, logits: Shape, axis: int) -> Array | None:
    if weight is None:
        return None
    array = _as_factors(weight, "weight")
    if array.shape != (logits[axis],):
        raise ValueError(
            f"weight has shape {array.shape}, expected ({logits[axis]},): "
            f"logits {logits} along axis {axis}"
        )
    return array


def as_sample_weight(sample_weight: Any, samples: Shape) -> Array | None:
    if sample_weight is None:
        return None
    array = _as_factors(sample_weight, "sample_weight")
    return broadcast(array, samples, "sample_weight", "targets")


def as_pointers(indptr: Any) -> Array:
    """The bounds of segments; that they ascend is checked where they are copied."""
    array = as_array(indptr, "indptr")
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"indptr has shape {array.shape}, expected (segments + 1,)")
    if array.dtype.kind not in "iu":
        raise TypeError(f"indptr has dtype {array.dtype}, expected an integer type")
    return array


def operands(*arrays: Array | None) -> tuple[Any, ...]:
    """The arrays as the extension module takes them, and last the bits that mark bfloat16.

    The buffer protocol has no format for bfloat16: such an array goes as uint16, and bit i says
    that array i is one.
    """
    bits = 0
    for i, array in enumerate(arrays):
        if array is not None and array.dtype.kind == "V":  # of what is let through only bfloat16
            bits |= 1 << i
    if bits:
        arrays = tuple(_as_bits(a) if bits >> i & 1 else a for i, a in enumerate(arrays))
    return (*arrays, bits)


def _as_bits(array: Any) -> Any:
    return array.view(_U16 if array.dtype.isnative else _U16.newbyteorder())


# ---- axes and shapes ----------------------------------------------------------------------------


def normalize_axis(axis: Any, ndim: int) -> int:
    position = as_integer(axis, "axis")
    if not -ndim <= position < ndim:
        raise AxisError(position, ndim)
    return position % ndim


def normalize_axes(axis: Any, ndim: int) -> Shape:
    """The axis= argument, an integer, a tuple of them or None for all, as ascending axes."""
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    if axis is None:
        return tuple(range(ndim))
    if isinstance(axis, tuple):
        axes = sorted(normalize_axis(item, ndim) for item in axis)
        if len(set(axes)) < len(axes):
            raise ValueError("duplicate value in 'axis'")
        return tuple(axes)
    if ndim == 0 and as_integer(axis, "axis") in (-1, 0):  # NumPy's reductions let these pass
        return ()
    return (normalize_axis(axis, ndim),)


def without_axes(shape: Shape, axes: Shape, keepdims: bool = False) -> Shape:
    left = list(shape)
    for axis in reversed(axes):
        left[axis : axis + 1] = (1,) if keepdims else ()
    return tuple(left)


# ---- numbers and choices ------------------------------------------------------------------------


def as_integer(value: Any, name: str) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} is of type {type(value).__name__}, expected an integer")
    return index(value)


def as_int64(value: Any, name: str) -> int:
    number = as_integer(value, name)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} is {number}, expected a 64-bit integer")
    return number


def as_thread_count(n: Any) -> int:
    count = as_integer(n, "n")
    if count < 1:
        raise ValueError(f"n is {count}, expected at least 1")
    return min(count, 2**31 - 1)  # a C int; no machine has as many


def as_real(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is of type {type(value).__name__}, expected a real number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is an integer beyond the range of float64") from None


def as_finite(value: Any, name: str) -> float:
    number = value if type(value) is float else as_real(value, name)
    if not -_INFINITY < number < _INFINITY:
        raise ValueError(f"{name} is {number}, expected a finite number")
    return number


def as_positive(value: Any, name: str) -> float:
    number = value if type(value) is float else as_real(value, name)
    if not 0.0 < number < _INFINITY:
        raise ValueError(f"{name} is {number}, expected a finite number above 0")
    return number


def as_share(value: Any, name: str) -> float:
    number = value if type(value) is float else as_real(value, name)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} is {number}, expected a number from 0 to 1")
    return number


def as_reduction(reduction: Any) -> int:
    if not isinstance(reduction, str):
        raise TypeError(f"reduction is of type {type(reduction).__name__}, expected a string")
    try:
        return _REDUCTIONS[reduction]
    except KeyError:
        raise ValueError(f"reduction is {reduction!r}, expected 'none', 'mean' or 'sum'") from None


# ---- results ------------------------------------------------------------------------------------


def _as_output(out: Any, name: str, shape: Shape, dtype: DType) -> Array:
    if not isinstance(out, np.ndarray):
        try:
            out = memoryview(out)
        except (TypeError, BufferError):
            raise TypeError(
                f"{name} is of type {type(out).__name__}, expected a writable buffer "
                "(an ndarray, a memoryview, an array.array)"
            ) from None
    array = as_array(out, name)
    if _native(array.dtype) != dtype:
        raise TypeError(f"{name} has dtype {array.dtype}, expected {dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only, expected a writable buffer")
    return array


def _overlap(a: Array, b: Array) -> bool:
    return np.may_share_memory(a, b, max_work=_OVERLAP_WORK)


def _coincide(a: Array, b: Array) -> bool:
    """Whether every element of one lies exactly where the other has it."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.strides == b.strides
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


class Result:
    """Where a result goes: a new array laid out like another, or the buffer that the caller passed.

    The kernels write to `array`, and `value()` is what the caller gets. If the caller's buffer
    overlaps an input, `array` is a new one and copied over when the inputs have been read; but an
    input in `in_place` may coincide with the buffer.
    """

    __slots__ = ("_buffer", "_out", "array")

    def __init__(
        self,
        like: Array,
        shape: Shape,
        dtype: DType,
        out: Any = None,
        name: str = "out",
        inputs: tuple[Array | None, ...] = (),
        in_place: tuple[Array, ...] = (),
    ) -> None:
        self._out = out
        if out is None:
            self._buffer = self.array = np.empty_like(like, dtype, shape=shape)
            return
        self._buffer = self.array = buffer = _as_output(out, name, shape, dtype)
        if any(x is not None and _overlap(buffer, x) for x in inputs) or any(
            x is not buffer and _overlap(buffer, x) and not _coincide(buffer, x) for x in in_place
        ):
            self.array = np.empty_like(buffer)

    def value(self) -> Any:
        """The object that was passed for the output; else the array, as a scalar where it is 0-d."""
        array = self.array
        if self._out is None:
            return array if array.ndim else array[()]
        if array is not self._buffer:
            self._buffer[...] = array
        return self._out
