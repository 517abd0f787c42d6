"""Wrong arguments of every parameter: the type of the error, what its message names, and that nothing is touched."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import softlane
from support import BFLOAT16, assert_same_bits, snapshot

AxisError: Any = getattr(np, "exceptions", np).AxisError
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Wrong:
    """A call that must fail: a function of nothing that builds the arguments anew, error, parts of the message."""

    def __init__(self, make: Callable[[], Arguments], error: Any, *parts: str) -> None:
        self.make, self.error, self.parts = make, error, parts


def call(*positional: Any, **named: Any) -> Callable[[], Arguments]:
    """The arguments, with arrays copied at every use."""

    def fresh(value: Any) -> Any:
        if type(value) is np.ndarray and value.flags.writeable and value.base is None:
            return value.copy()
        return value

    return lambda: (tuple(map(fresh, positional)), {k: fresh(v) for k, v in named.items()})


X = np.arange(12.0).reshape(3, 4)
X32 = X.astype(np.float32)
Y = np.array([1, 0, 3])
P = np.full((3, 4), 0.25)


def frozen(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


def read_only(shape: Any = (3, 4)) -> Any:
    return frozen(np.zeros(shape))


class NotAnArray:
    """Neither a buffer nor a sequence nor a number."""


class Exploding:
    """Something whose conversion fails with an error of its own."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("conversion failed on purpose")


DTYPES: dict[str, Wrong] = {
    f"x of dtype {name}": Wrong(call(np.zeros((3, 4), name)), TypeError, part, "float64")
    for name, part in (
        ("longdouble", np.dtype(np.longdouble).name),
        ("clongdouble", np.dtype(np.clongdouble).name),
        ("datetime64[s]", "datetime64"),
        ("timedelta64[s]", "timedelta64"),
        ("U3", "<U3"),
        ("S3", "S3"),
        ("V4", "V4"),
        ("i4,f4", "f0"),
    )
}
X_CASES: dict[str, Wrong] = DTYPES | {
    "x of dtype object": Wrong(call(np.array([[1, None]])), TypeError, "object", "float64"),
    "x None": Wrong(call(None), TypeError, "object"),
    "x a string": Wrong(call("abc"), TypeError, "U3"),
    "x a list of strings": Wrong(call(["a", "b"]), TypeError, "U1"),
    "x a dict": Wrong(call({1: 2}), TypeError, "object"),
    "x any object": Wrong(call(NotAnArray()), TypeError, "object"),
    "x ragged": Wrong(call([[1, 2], [3]]), ValueError, "x"),
    "x with an error of its own": Wrong(call(Exploding()), RuntimeError, "on purpose"),
    "x masked": Wrong(
        call(np.ma.masked_array(X, mask=X > 3)), TypeError, "masked", "where=~x.mask"
    ),
}
COMPLEX: dict[str, Wrong] = {
    f"x of dtype {name}": Wrong(call(np.zeros((3, 4), name)), TypeError, name, "float64")
    for name in ("complex64", "complex128")
}
AXIS_CASES: dict[str, Wrong] = {
    "axis too large": Wrong(call(X, 2), AxisError, "axis 2", "dimension 2"),
    "axis too small": Wrong(call(X, -3), AxisError, "axis -3", "dimension 2"),
    "axis huge": Wrong(call(X, 2**70), IndexError, str(2**70)),
    "axis in a tuple too large": Wrong(call(X, (0, 5)), AxisError, "axis 5"),
    "axis twice": Wrong(call(X, (0, 0)), ValueError, "axis"),
    "axis twice, counted from both ends": Wrong(call(X, (1, -1)), ValueError, "axis"),
    "axis a float": Wrong(call(X, 1.0), TypeError, "axis", "float"),
    "axis a string": Wrong(call(X, "0"), TypeError, "axis", "str"),
    "axis a tuple with a float": Wrong(call(X, (0, 1.0)), TypeError, "axis", "float"),
    "axis 1 of a scalar": Wrong(call(3.0, 1), AxisError, "axis 1", "dimension 0"),
    "axis -2 of a scalar": Wrong(call(3.0, -2), AxisError, "axis -2", "dimension 0"),
}
WHERE_CASES: dict[str, Wrong] = {
    "where of integers": Wrong(
        call(X, where=np.ones((3, 4), int)), TypeError, "where", "int64", "bool"
    ),
    "where of floats": Wrong(call(X, where=X), TypeError, "where", "float64", "bool"),
    "where a number": Wrong(call(X, where=1), TypeError, "where", "bool"),
    "where a string": Wrong(call(X, where="yes"), TypeError, "where", "bool"),
    "where too short": Wrong(
        call(X, where=np.ones(3, bool)), ValueError, "where", "(3,)", "(3, 4)"
    ),
    "where with more dimensions": Wrong(
        call(X, where=np.ones((2, 3, 4), bool)), ValueError, "where", "(2, 3, 4)", "(3, 4)"
    ),
}
TEMPERATURE_CASES: dict[str, Wrong] = {
    f"temperature {value}": Wrong(call(X, temperature=value), ValueError, "temperature", "finite")
    for value in (0, 0.0, -0.0, -1.0, float("nan"), float("inf"), float("-inf"), np.float32(-2))
} | {
    f"temperature {value!r}": Wrong(call(X, temperature=value), TypeError, "temperature")
    for value in (None, "1", 1j, [1.0], NotAnArray)
}
DTYPE_CASES: dict[str, Wrong] = {
    f"dtype {name}": Wrong(call(X, dtype=name), TypeError, "dtype", part)
    for name, part in (
        ("int32", "int32"),
        ("bool", "bool"),
        ("longdouble", np.dtype(np.longdouble).name),
        ("object", "object"),
        ("U4", "<U4"),
    )
} | {"dtype unknown": Wrong(call(X, dtype="no such dtype"), TypeError, "no such dtype")}
OUT_CASES: dict[str, Wrong] = {
    "out of another shape": Wrong(
        call(X, out=np.zeros((4, 3))), ValueError, "out", "(4, 3)", "(3, 4)"
    ),
    "out with one dimension less": Wrong(call(X, out=np.zeros(12)), ValueError, "(12,)", "(3, 4)"),
    "out that would broadcast": Wrong(call(X, out=np.zeros((1, 3, 4))), ValueError, "(1, 3, 4)"),
    "out of another dtype": Wrong(
        call(X, out=np.zeros((3, 4), np.float32)), TypeError, "out", "float32", "float64"
    ),
    "out of the input's dtype, not dtype's": Wrong(
        call(X32, dtype=np.float64, out=np.zeros((3, 4), np.float32)),
        TypeError,
        "float32",
        "float64",
    ),
    "out of integers": Wrong(call(X, out=np.zeros((3, 4), int)), TypeError, "out", "int64"),
    "out read-only": Wrong(call(X, out=read_only()), ValueError, "out", "read-only"),
    "out a bytes object": Wrong(call(X, out=b"x" * 96), TypeError, "out"),
    "out a list": Wrong(call(X, out=[0.0] * 4), TypeError, "out", "list"),
    "out a tuple": Wrong(call(X, out=(np.zeros((3, 4)),)), TypeError, "out", "tuple"),
    "out a number": Wrong(call(X, out=1.0), TypeError, "out", "float"),
    "out a string": Wrong(call(X, out="out"), TypeError, "out", "str"),
    "out masked": Wrong(call(X, out=np.ma.zeros((3, 4))), TypeError, "out", "masked"),
}
KEYWORD_CASES: dict[str, Wrong] = {
    "a third positional argument": Wrong(call(X, 0, True), TypeError, "positional"),
    "an unknown parameter": Wrong(call(X, tmperature=1.0), TypeError, "tmperature"),
    "no argument": Wrong(call(), TypeError, "missing"),
}

SOFTMAX_CASES = (
    X_CASES
    | COMPLEX
    | AXIS_CASES
    | WHERE_CASES
    | TEMPERATURE_CASES
    | DTYPE_CASES
    | {"dtype complex": Wrong(call(X, dtype=complex), TypeError, "dtype", "complex128")}
    | OUT_CASES
    | KEYWORD_CASES
)

LOGSUMEXP_CASES = (
    dict(X_CASES.items())
    | AXIS_CASES
    | WHERE_CASES
    | DTYPE_CASES
    | KEYWORD_CASES
    | {
        "b that does not broadcast": Wrong(
            call(X, b=np.ones(3)), ValueError, "b", "(3,)", "(3, 4)"
        ),
        "b of strings": Wrong(call(X, b=["a"] * 4), TypeError, "b", "U1"),
        "b of dtype longdouble": Wrong(
            call(X, b=np.ones(4, np.longdouble)), TypeError, "b", np.dtype(np.longdouble).name
        ),
        "b of objects": Wrong(call(X, b=[None] * 4), TypeError, "b", "object"),
        "b masked": Wrong(call(X, b=np.ma.ones(4)), TypeError, "b", "masked"),
        "x of dtype complex256 with b": Wrong(
            call(np.zeros(4, np.clongdouble), b=np.ones(4)),
            TypeError,
            np.dtype(np.clongdouble).name,
        ),
        "out of another shape": Wrong(call(X, out=np.zeros(4)), ValueError, "out", "(4,)", "(3,)"),
        "out without keepdims": Wrong(
            call(X, keepdims=True, out=np.zeros(3)), ValueError, "out", "(3,)", "(3, 1)"
        ),
        "out of another dtype": Wrong(
            call(X32, out=np.zeros(3)), TypeError, "out", "float64", "float32"
        ),
        "out of half": Wrong(
            call(X.astype(np.float16), out=np.zeros(3, np.float16)), TypeError, "float16", "float32"
        ),
        "out read-only": Wrong(call(X, out=read_only(3)), ValueError, "out", "read-only"),
        "out a list": Wrong(call(X, out=[0.0] * 3), TypeError, "out", "list"),
        "temperature, which it does not have": Wrong(
            call(X, temperature=1.0), TypeError, "temperature"
        ),
    }
)


def logits_and(cases: dict[str, Wrong]) -> dict[str, Wrong]:
    """The same wrong x or parameter, as logits with valid targets."""

    def with_targets(wrong: Wrong) -> Callable[[], Arguments]:
        def make() -> Arguments:
            (x, *rest), named = wrong.make()
            return (x, Y.copy(), *rest), named

        return make

    named = {k: Wrong(with_targets(w), w.error, *w.parts) for k, w in cases.items()}
    for wrong in named.values():
        wrong.parts = tuple(p.replace("where=~x.mask", "where=~logits.mask") for p in wrong.parts)
        wrong.parts = tuple("logits" if p == "x" else p for p in wrong.parts)
    return named


AXIS_OF_CROSS_ENTROPY = {
    k: w
    for k, w in AXIS_CASES.items()
    if "tuple" not in k and "twice" not in k and "scalar" not in k
}
CROSS_ENTROPY_CASES = logits_and(
    X_CASES | COMPLEX | AXIS_OF_CROSS_ENTROPY | WHERE_CASES | TEMPERATURE_CASES | DTYPE_CASES
) | {
    "axis a tuple": Wrong(call(X, Y, (0, 1)), TypeError, "axis", "tuple"),
    "axis None": Wrong(call(X, Y, None), TypeError, "axis", "NoneType"),
    "logits a scalar": Wrong(call(1.0, 0), AxisError, "dimension 0"),
    "targets missing": Wrong(call(X), TypeError, "targets"),
    "targets of another shape": Wrong(
        call(X, np.zeros(4, int)), ValueError, "targets", "(4,)", "(3,)", "(3, 4)", "axis 1"
    ),
    "targets of the logits' shape": Wrong(
        call(X, np.zeros((3, 4), int)), ValueError, "targets", "(3, 4)", "(3,)"
    ),
    "targets of another shape, axis 0": Wrong(
        call(X, Y, 0), ValueError, "targets", "(3,)", "(4,)", "axis 0"
    ),
    "targets a scalar": Wrong(call(X, 1), ValueError, "targets", "()", "(3,)"),
    "targets bool": Wrong(call(X, np.ones(3, bool)), TypeError, "targets", "bool", "integer"),
    "targets complex": Wrong(call(X, np.ones(3, complex)), TypeError, "targets", "complex128"),
    "targets strings": Wrong(call(X, ["a", "b", "c"]), TypeError, "targets", "U1"),
    "targets objects": Wrong(call(X, [None] * 3), TypeError, "targets", "object"),
    "targets floats of the targets' shape": Wrong(
        call(X, np.ones(3)),
        (TypeError, ValueError),
        "targets",
        "float64",
    ),
    "targets masked": Wrong(
        call(X, np.ma.masked_array(Y, mask=Y == 0)), TypeError, "targets", "masked"
    ),
    "target too large": Wrong(call(X, [1, 0, 4]), IndexError, "targets[2] is 4"),
    "target negative": Wrong(call(X, [1, -1, -2]), IndexError, "-1", "4", "1"),
    "target -100 where another is ignored": Wrong(
        call(X, [1, -100, 2], ignore_index=0), IndexError, "-100", "4", "1"
    ),
    "target far too large": Wrong(call(X, [2**40, 0, 0]), IndexError, str(2**40), "4", "0"),
    "target unsigned and huge": Wrong(
        call(X, np.array([0, 2**64 - 1, 0], np.uint64)), IndexError, str(2**64 - 1), "4", "1"
    ),
    "target int8 and negative": Wrong(
        call(X, np.array([0, 0, -128], np.int8)), IndexError, "-128", "4", "2"
    ),
    "target in a batch of several axes": Wrong(
        call(np.zeros((2, 3, 5)), np.array([[0, 1, 2], [3, 7, 9]])),
        IndexError,
        "7",
        "5",
        "targets[1, 1]",
    ),
    "target along another axis": Wrong(
        call(np.zeros((5, 2, 3)), np.array([[0, 1, 2], [3, 7, 9]]), 0),
        IndexError,
        "7",
        "targets[1, 1]",
    ),
    "target outside where": Wrong(
        call(X, Y, where=np.array([True, True, True, False])), ValueError, "where", "3", "2"
    ),
    "weight of another length": Wrong(
        call(X, Y, weight=np.ones(3)), ValueError, "weight", "(3,)", "(4,)"
    ),
    "weight of the logits' shape": Wrong(
        call(X, Y, weight=np.ones((3, 4))), ValueError, "weight", "(3, 4)", "(4,)"
    ),
    "weight a scalar": Wrong(call(X, Y, weight=2.0), ValueError, "weight", "()", "(4,)"),
    "weight complex": Wrong(
        call(X, Y, weight=np.ones(4, complex)), TypeError, "weight", "complex128"
    ),
    "weight longdouble": Wrong(
        call(X, Y, weight=np.ones(4, np.longdouble)),
        TypeError,
        "weight",
        np.dtype(np.longdouble).name,
    ),
    "weight strings": Wrong(call(X, Y, weight=["a"] * 4), TypeError, "weight", "U1"),
    "weight masked": Wrong(call(X, Y, weight=np.ma.ones(4)), TypeError, "weight", "masked"),
    "sample_weight of another shape": Wrong(
        call(X, Y, sample_weight=np.ones(4)), ValueError, "sample_weight", "(4,)", "(3,)"
    ),
    "sample_weight with more dimensions": Wrong(
        call(X, Y, sample_weight=np.ones((2, 3))), ValueError, "sample_weight", "(2, 3)", "(3,)"
    ),
    "sample_weight complex": Wrong(
        call(X, Y, sample_weight=np.ones(3, complex)), TypeError, "sample_weight", "complex128"
    ),
    "sample_weight masked": Wrong(
        call(X, Y, sample_weight=np.ma.ones(3)), TypeError, "sample_weight", "masked"
    ),
    "ignore_index a float": Wrong(call(X, Y, ignore_index=1.0), TypeError, "ignore_index", "float"),
    "ignore_index None": Wrong(call(X, Y, ignore_index=None), TypeError, "ignore_index"),
    "ignore_index a string": Wrong(call(X, Y, ignore_index="0"), TypeError, "ignore_index", "str"),
    "label_smoothing negative": Wrong(
        call(X, Y, label_smoothing=-0.1), ValueError, "label_smoothing", "-0.1"
    ),
    "label_smoothing above one": Wrong(
        call(X, Y, label_smoothing=1.5), ValueError, "label_smoothing", "1.5"
    ),
    "label_smoothing NaN": Wrong(
        call(X, Y, label_smoothing=float("nan")), ValueError, "label_smoothing", "nan"
    ),
    "label_smoothing a string": Wrong(
        call(X, Y, label_smoothing="0"), TypeError, "label_smoothing", "str"
    ),
    "label_smoothing None": Wrong(call(X, Y, label_smoothing=None), TypeError, "label_smoothing"),
    "label_smoothing infinite": Wrong(
        call(X, Y, label_smoothing=float("inf")), ValueError, "label_smoothing", "inf"
    ),
    "z_loss a string": Wrong(call(X, Y, z_loss="0"), TypeError, "z_loss", "str"),
    "z_loss None": Wrong(call(X, Y, z_loss=None), TypeError, "z_loss", "NoneType"),
    "z_loss complex": Wrong(call(X, Y, z_loss=1j), TypeError, "z_loss", "complex"),
    "z_loss NaN": Wrong(call(X, Y, z_loss=float("nan")), ValueError, "z_loss", "nan", "finite"),
    "z_loss infinite": Wrong(call(X, Y, z_loss=float("-inf")), ValueError, "z_loss", "-inf"),
    "z_loss an array": Wrong(call(X, Y, z_loss=np.ones(3)), TypeError, "z_loss", "ndarray"),
    "softcap NaN": Wrong(call(X, Y, softcap=float("nan")), ValueError, "softcap", "nan"),
    "softcap bool": Wrong(call(X, Y, softcap=True), TypeError, "softcap", "bool"),
    "softcap a list": Wrong(call(X, Y, softcap=[30.0]), TypeError, "softcap", "list"),
    "ignore_index beyond 64 bits": Wrong(
        call(X, Y, ignore_index=2**63), ValueError, "ignore_index", str(2**63)
    ),
    "ignore_index bool": Wrong(call(X, Y, ignore_index=True), TypeError, "ignore_index", "bool"),
    "sample_weight strings": Wrong(
        call(X, Y, sample_weight=["a"] * 3), TypeError, "sample_weight", "U1"
    ),
    "sample_weight longdouble": Wrong(
        call(X, Y, sample_weight=np.ones(3, np.longdouble)),
        TypeError,
        "sample_weight",
        np.dtype(np.longdouble).name,
    ),
    "probabilities of another shape": Wrong(
        call(X, P[:, :3]), TypeError, "targets", "float64", "(3, 3)", "(3, 4)"
    ),
    "probabilities that would broadcast": Wrong(call(X, P[0]), TypeError, "targets", "(4,)"),
    "probabilities with more dimensions": Wrong(call(X, P[None]), TypeError, "(1, 3, 4)", "(3, 4)"),
    "probabilities complex": Wrong(call(X, P * 1j), TypeError, "targets", "complex128"),
    "probabilities longdouble": Wrong(
        call(X, P.astype(np.longdouble)), TypeError, "targets", np.dtype(np.longdouble).name
    ),
    "probabilities bool": Wrong(call(X, P > 1), TypeError, "targets", "bool"),
    "probabilities strings": Wrong(call(X, [["a"] * 4] * 3), TypeError, "targets", "U1"),
    "probabilities masked": Wrong(
        call(X, np.ma.masked_array(P, mask=P > 1)), TypeError, "targets", "masked"
    ),
    "probabilities and a weight of another length": Wrong(
        call(X, P, weight=np.ones(3)), ValueError, "weight", "(3,)", "(4,)"
    ),
    "probabilities and a sample_weight for each class": Wrong(
        call(X, P, sample_weight=np.ones((3, 4))), ValueError, "sample_weight", "(3, 4)", "(3,)"
    ),
    "probabilities and a where of floats": Wrong(
        call(X, P, where=P), TypeError, "where", "float64", "bool"
    ),
    "targets None": Wrong(call(X, None), TypeError, "targets", "object"),
    "targets ragged": Wrong(call(X, [[0], [1, 2], 3]), ValueError, "targets"),
    "stats as a positional argument": Wrong(call(X, Y, -1, True), TypeError, "positional"),
    "stats by another name": Wrong(call(X, Y, stats=True), TypeError, "stats"),
    "softcap zero": Wrong(call(X, Y, softcap=0.0), ValueError, "softcap", "0.0"),
    "softcap negative": Wrong(call(X, Y, softcap=-1.0), ValueError, "softcap", "-1.0"),
    "softcap infinite": Wrong(call(X, Y, softcap=float("inf")), ValueError, "softcap", "inf"),
    "softcap a string": Wrong(call(X, Y, softcap="30"), TypeError, "softcap", "str"),
    "reduction unknown": Wrong(
        call(X, Y, reduction="avg"), ValueError, "reduction", "avg", "mean", "none", "sum"
    ),
    "reduction in capitals": Wrong(call(X, Y, reduction="Mean"), ValueError, "reduction", "Mean"),
    "reduction None": Wrong(
        call(X, Y, reduction=None),
        (TypeError, ValueError),
        "reduction",
        "None",
    ),
    "a fourth positional argument": Wrong(call(X, Y, 1, None), TypeError, "positional"),
    "an unknown parameter": Wrong(call(X, Y, weights=None), TypeError, "weights"),
}
LOSS_OUT_CASES: dict[str, Wrong] = {
    "out of another shape": Wrong(
        call(X, Y, reduction="none", out=np.zeros(4)), ValueError, "out", "(4,)", "(3,)"
    ),
    "out with dimensions for a scalar": Wrong(
        call(X, Y, out=np.zeros(3)), ValueError, "(3,)", "()"
    ),
    "out of another dtype": Wrong(
        call(X, Y, reduction="none", out=np.zeros(3, np.float32)), TypeError, "float32", "float64"
    ),
    "out read-only": Wrong(
        call(X, Y, reduction="none", out=read_only(3)), ValueError, "out", "read-only"
    ),
    "out a list": Wrong(call(X, Y, reduction="none", out=[0.0] * 3), TypeError, "out", "list"),
    "grad_out, which it does not have": Wrong(
        call(X, Y, grad_out=np.zeros((3, 4))), TypeError, "grad_out"
    ),
}
GRAD_OUT_CASES: dict[str, Wrong] = {
    "grad_out of another shape": Wrong(
        call(X, Y, grad_out=np.zeros((4, 3))), ValueError, "grad_out", "(4, 3)", "(3, 4)"
    ),
    "grad_out of another dtype": Wrong(
        call(X, Y, grad_out=np.zeros((3, 4), np.float32)),
        TypeError,
        "grad_out",
        "float32",
        "float64",
    ),
    "grad_out read-only": Wrong(
        call(X, Y, grad_out=read_only()), ValueError, "grad_out", "read-only"
    ),
    "grad_out a list": Wrong(call(X, Y, grad_out=[[0.0] * 4] * 3), TypeError, "grad_out", "list"),
    "grad_out filled when a target is bad": Wrong(
        call(X, [0, 1, 9], grad_out=np.full((3, 4), 7.0)), IndexError, "9"
    ),
    "logits as grad_out when a target is outside where": Wrong(
        lambda: (
            (lambda a: (a, Y.copy(), -1))(X.copy()),
            {"where": np.array([True, False, True, True])},
        ),
        ValueError,
        "where",
    ),
    "out, which it does not have": Wrong(call(X, Y, out=np.zeros(())), TypeError, "out"),
}
BACKWARD_CASES: dict[str, Wrong] = {
    "shapes that differ": Wrong(
        call(np.ones((3, 4)), np.ones((4, 3))), ValueError, "grad_output", "(3, 4)", "(4, 3)"
    ),
    "shapes that would broadcast": Wrong(
        call(np.ones((3, 4)), np.ones(4)), ValueError, "(3, 4)", "(4,)"
    ),
    "grad_output complex": Wrong(call(P * 1j, P), TypeError, "grad_output", "complex128"),
    "output complex": Wrong(call(P, P * 1j), TypeError, "output", "complex128"),
    "output longdouble": Wrong(
        call(P, P.astype(np.longdouble)), TypeError, "output", np.dtype(np.longdouble).name
    ),
    "output of strings": Wrong(call(P, [["a"] * 4] * 3), TypeError, "output", "U1"),
    "grad_output masked": Wrong(call(np.ma.masked_array(P), P), TypeError, "grad_output", "masked"),
    "axis too large": Wrong(call(P, P, 2), AxisError, "axis 2"),
    "axis twice": Wrong(call(P, P, (0, -2)), ValueError, "axis"),
    "axis a float": Wrong(call(P, P, 0.0), TypeError, "axis", "float"),
    "temperature zero": Wrong(call(P, P, temperature=0), ValueError, "temperature"),
    "temperature NaN": Wrong(call(P, P, temperature=float("nan")), ValueError, "temperature"),
    "temperature a string": Wrong(call(P, P, temperature="1"), TypeError, "temperature"),
    "out of another shape": Wrong(call(P, P, out=np.ones((4, 3))), ValueError, "out", "(4, 3)"),
    "out of another dtype": Wrong(
        call(P, P, out=np.ones((3, 4), np.float16)), TypeError, "out", "float16", "float64"
    ),
    "out read-only": Wrong(call(P, P, out=read_only()), ValueError, "out", "read-only"),
    "out a list": Wrong(call(P, P, out=[1.0]), TypeError, "out", "list"),
    "output missing": Wrong(call(P), TypeError, "output"),
}
INDPTR = np.array([0, 2, 2, 5])
ROW = np.arange(5.0)


def in_segments(wrong: Wrong) -> Wrong:
    """The same wrong x, with valid pointers."""

    def make() -> Arguments:
        positional, named = wrong.make()
        return (*positional, INDPTR.copy()), named

    return Wrong(make, wrong.error, *wrong.parts)


SEGMENT_CASES: dict[str, Wrong] = {
    name: in_segments(wrong)
    for name, wrong in (X_CASES | COMPLEX).items()
    if name not in ("x masked", "x with an error of its own", "x of dtype object")
} | {
    "x of two dimensions": Wrong(call(X, INDPTR), ValueError, "x", "(3, 4)", "one dimension"),
    "x a number": Wrong(call(1.0, [0, 1]), ValueError, "x", "()", "one dimension"),
    "x masked": Wrong(call(np.ma.masked_array(ROW), INDPTR), TypeError, "x", "masked"),
    "indptr missing": Wrong(call(ROW), TypeError, "indptr"),
    "indptr of floats": Wrong(call(ROW, INDPTR * 1.0), TypeError, "indptr", "float64", "integer"),
    "indptr of bool": Wrong(call(ROW[:1], [False, True]), TypeError, "indptr", "bool"),
    "indptr of two dimensions": Wrong(call(ROW, INDPTR[None]), ValueError, "indptr", "(1, 4)"),
    "indptr empty": Wrong(call(ROW, INDPTR[:0]), ValueError, "indptr", "(0,)"),
    "indptr masked": Wrong(call(ROW, np.ma.array(INDPTR)), TypeError, "indptr", "masked"),
    "indptr with a start above 0": Wrong(call(ROW, [1, 5]), ValueError, "indptr[0] is 1", "0"),
    "indptr descending": Wrong(call(ROW, [0, 4, 3, 5]), ValueError, "indptr[2] is 3", "4"),
    "indptr with another end": Wrong(call(ROW, [0, 2, 4]), ValueError, "indptr", "4", "5"),
    "a third positional argument": Wrong(call(ROW, INDPTR, ROW), TypeError, "positional"),
    "axis, which it does not have": Wrong(call(ROW, INDPTR, axis=0), TypeError, "axis"),
    "temperature, which it does not have": Wrong(
        call(ROW, INDPTR, temperature=2.0), TypeError, "temperature"
    ),
    "out of another dtype": Wrong(
        call(ROW.astype(np.float32), INDPTR, out=np.zeros(5)),
        TypeError,
        "out",
        "float64",
        "float32",
    ),
    "out of another shape": Wrong(call(ROW, INDPTR, out=np.zeros(7)), ValueError, "out", "(7,)"),
    "out a list": Wrong(call(ROW, INDPTR, out=[0.0] * 5), TypeError, "out", "list"),
    "out masked": Wrong(call(ROW, INDPTR, out=np.ma.zeros(5)), TypeError, "out", "masked"),
}
SEGMENT_OUT_CASES: dict[str, Wrong] = {
    "out read-only": Wrong(call(ROW, INDPTR, out=read_only(5)), ValueError, "out", "read-only"),
    "out for each segment": Wrong(
        call(ROW, INDPTR, out=np.zeros(3)), ValueError, "out", "(3,)", "(5,)"
    ),
    "out filled when the pointers are bad": Wrong(
        call(ROW, [0, 3, 2, 5], out=np.full(5, 7.0)), ValueError, "indptr[2] is 2"
    ),
}
SEGMENT_SUM_OUT_CASES: dict[str, Wrong] = {
    "out read-only": Wrong(call(ROW, INDPTR, out=read_only(3)), ValueError, "out", "read-only"),
    "out for each element": Wrong(
        call(ROW, INDPTR, out=np.zeros(5)), ValueError, "out", "(5,)", "(3,)"
    ),
    "out of half": Wrong(
        call(ROW.astype(np.float16), INDPTR, out=np.zeros(3, np.float16)),
        TypeError,
        "out",
        "float16",
        "float32",
    ),
    "out filled when the pointers are bad": Wrong(
        call(ROW, [0, 3, 2, 5], out=np.full(3, 7.0)), ValueError, "indptr[2] is 2"
    ),
}


def as_chunk(wrong: Wrong) -> Wrong:
    parts = (p.replace("where=~x.mask", "filled(value)") for p in wrong.parts)
    return Wrong(wrong.make, wrong.error, *("chunk" if p == "x" else p for p in parts))


UPDATE_CASES: dict[str, Wrong] = {
    name.replace("x ", "chunk ", 1): as_chunk(wrong)
    for name, wrong in (X_CASES | COMPLEX | AXIS_CASES).items()
} | {
    "chunk missing": Wrong(call(), TypeError, "chunk"),
    "out, which it does not have": Wrong(call(X, out=np.zeros(3)), TypeError, "out"),
    "where, which it does not have": Wrong(call(X, where=X > 1), TypeError, "where"),
}
MERGE_CASES: dict[str, Wrong] = {
    "other an array": Wrong(call(X), TypeError, "other", "ndarray", "LogSumExp"),
    "other None": Wrong(call(None), TypeError, "other", "NoneType", "LogSumExp"),
    "other a number": Wrong(call(1.0), TypeError, "other", "float", "LogSumExp"),
    "other missing": Wrong(call(), TypeError, "other"),
}

THREAD_CASES: dict[str, Wrong] = {
    "zero": Wrong(call(0), ValueError, "0"),
    "negative": Wrong(call(-1), ValueError, "-1"),
    "a float": Wrong(call(1.0), TypeError, "float"),
    "a string": Wrong(call("2"), TypeError, "str"),
    "None": Wrong(call(None), TypeError, "None"),
}
CONFIG_CASES: dict[str, Wrong] = {
    "an unknown mode": Wrong(call("json"), ValueError, "mode", "json", "dict", "print"),
    "a number": Wrong(call(3), (TypeError, ValueError), "mode"),
}

TABLE: dict[str, dict[str, Wrong]] = {
    "softmax": SOFTMAX_CASES,
    "log_softmax": SOFTMAX_CASES,
    "logsumexp": LOGSUMEXP_CASES,
    "cross_entropy": CROSS_ENTROPY_CASES | LOSS_OUT_CASES,
    "cross_entropy_with_grad": CROSS_ENTROPY_CASES | GRAD_OUT_CASES,
    "softmax_backward": BACKWARD_CASES,
    "log_softmax_backward": BACKWARD_CASES,
    "segment_softmax": SEGMENT_CASES | SEGMENT_OUT_CASES,
    "segment_log_softmax": SEGMENT_CASES | SEGMENT_OUT_CASES,
    "segment_logsumexp": SEGMENT_CASES | SEGMENT_SUM_OUT_CASES,
    "LogSumExp.update": UPDATE_CASES,
    "LogSumExp.merge": MERGE_CASES,
    "LogSumExp": {"an argument": Wrong(call(X), TypeError, "argument")},
    "set_num_threads": THREAD_CASES,
    "num_threads": THREAD_CASES,
    "show_config": CONFIG_CASES,
}


def public(name: str) -> Any:
    """A function by its name; a method is that of a new object."""
    owner, _, method = name.partition(".")
    found = getattr(softlane, owner)
    return getattr(found(), method) if method else found


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        pytest.param(function, wrong, id=f"{function}: {name}")
        for function, cases in TABLE.items()
        for name, wrong in cases.items()
    ],
)
def test_wrong_argument(function: str, wrong: Wrong) -> None:
    positional, named = wrong.make()
    untouched = snapshot(*positional, *named.values())
    with pytest.raises(wrong.error) as caught:
        public(function)(*positional, **named)
    missing = [part for part in wrong.parts if part not in str(caught.value)]
    assert not missing, f"the message lacks {missing}: {caught.value}"
    assert untouched(), "an argument was written to"


# Any object serves as one of these: only whether it is true counts.
TRUTHS = ("keepdims", "return_sign", "return_stats")


@pytest.mark.parametrize("function", [name for name in TABLE if name != "LogSumExp"])
def test_the_table_has_every_parameter(function: str) -> None:
    parameters = set(inspect.signature(public(function)).parameters) - set(TRUTHS)
    if function.endswith("num_threads"):
        return
    words = {word.strip(",") for name in TABLE[function] for word in name.split()}
    if "logits" in parameters:
        parameters.remove("logits")
        parameters.add("x")
    assert parameters <= words


def test_the_table_has_every_function() -> None:
    without_arguments = {"get_num_threads", "CrossEntropyStats", "reference"}
    assert set(softlane.__all__) - without_arguments <= {name.partition(".")[0] for name in TABLE}


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_nothing_is_written_to_out_before_an_error(function: str) -> None:
    out = np.full((3, 4), 7.0)
    for named in (
        {"temperature": 0.0},
        {"where": np.ones(3, bool)},
        {"where": X},
        {"dtype": np.float32},
        {"axis": 7},
    ):
        with pytest.raises((TypeError, ValueError)):
            getattr(softlane, function)(X, out=out, **named)
        assert (out == 7).all()


def test_a_bad_target_leaves_logits_in_place_untouched(isa: str) -> None:
    for bad, where in (([0, 1, 4], None), ([0, 1, -3], None), ([0, 1, 2], np.arange(4) != 2)):
        x = X.copy()
        with pytest.raises((IndexError, ValueError)):
            softlane.cross_entropy_with_grad(x, bad, where=where, grad_out=x)
        assert_same_bits(x, X)


def test_the_first_bad_target_is_named_in_a_large_batch(isa: str) -> None:
    """Whatever the number of threads: first in C order of the targets."""
    x = np.zeros((50_000, 3), np.float32)
    y = np.zeros(50_000, np.int64)
    y[[49_000, 31_415, 40_000]] = [7, 5, -9]
    for targets, logits, axis in ((y, x, -1), (y, np.ascontiguousarray(x.T), 0)):
        with pytest.raises(IndexError) as caught:
            softlane.cross_entropy(logits, targets, axis)
        assert "5" in str(caught.value) and "31415" in str(caught.value)


def test_target_messages_name_value_classes_and_position(isa: str) -> None:
    with pytest.raises(IndexError, match=r"(?s)(?=.*\b12\b)(?=.*\b10\b)(?=.*\b2\b)"):
        softlane.cross_entropy(np.zeros((4, 10)), [0, 9, 12, 13])


def test_the_message_of_targets_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"targets has shape \(4, 5\), expected \(4,\)"):
        softlane.cross_entropy(np.zeros((4, 10)), np.zeros((4, 5), int))


@pytest.mark.skipif(BFLOAT16 is None, reason="ml_dtypes is not installed")
def test_other_types_of_ml_dtypes_are_refused() -> None:
    import ml_dtypes

    for name in ("float8_e4m3fn", "float8_e5m2", "int4"):
        x = np.ones(4).astype(getattr(ml_dtypes, name))
        with pytest.raises(TypeError, match=name):
            softlane.softmax(x)
        with pytest.raises(TypeError, match=name):
            softlane.softmax(np.ones(4), dtype=x.dtype)


class Structure(ctypes.Structure):
    """A record, which no function takes."""

    _fields_ = (("a", ctypes.c_double), ("b", ctypes.c_double))


def released() -> memoryview:
    view = memoryview(bytearray(8))
    view.release()
    return view


class Shapeless:
    """Says that it is an array, and gives none."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return "not an array"


class Lying:
    """A sequence that is shorter than it says."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> float:
        if i > 2:
            raise IndexError
        return 1.0


HOSTILE: dict[str, Callable[[], Any]] = {
    "a released memoryview": released,
    "ctypes records": lambda: (Structure * 3)(),
    "one ctypes record": Structure,
    "ctypes long doubles": lambda: (ctypes.c_longdouble * 3)(),
    "ctypes characters": lambda: (ctypes.c_char * 3)(),
    "ctypes pointers": lambda: (ctypes.c_void_p * 3)(),
    "ctypes objects": lambda: (ctypes.py_object * 3)(),
    "a memoryview of characters": lambda: memoryview(b"abc").cast("c"),
    "an __array__ that is none": Shapeless,
    "a generator": lambda: (float(i) for i in range(3)),
    "a set": lambda: {1.0, 2.0},
    "a type": lambda: float,
    "a module": lambda: np,
    "a complex number": lambda: 1j,
}


@pytest.mark.parametrize("kind", list(HOSTILE))
@pytest.mark.parametrize("function", ["softmax", "logsumexp", "cross_entropy", "softmax_backward"])
def test_hostile_objects_are_refused(function: str, kind: str) -> None:
    """As an input, a mask and an output: an error of Python, never a crash."""
    if (function, kind) == ("logsumexp", "a complex number"):
        return
    call = getattr(softlane, function)
    second = {"cross_entropy": (0,), "softmax_backward": (np.ones(3),)}.get(function, ())
    with pytest.raises((TypeError, ValueError)):
        call(HOSTILE[kind](), *second)
    if function == "softmax":
        with pytest.raises((TypeError, ValueError)):
            call(np.ones(3), where=HOSTILE[kind]())
        with pytest.raises((TypeError, ValueError)):
            call(np.ones(3), out=HOSTILE[kind]())
    if function == "cross_entropy":
        for name in ("weight", "sample_weight"):
            with pytest.raises((TypeError, ValueError)):
                call(np.ones(3), 0, **{name: HOSTILE[kind]()})
        with pytest.raises((TypeError, ValueError)):
            call(np.ones(3), HOSTILE[kind]())
    if function == "logsumexp":
        with pytest.raises((TypeError, ValueError)):
            call(np.ones(3), b=HOSTILE[kind]())


def test_a_sequence_that_lies_about_its_length() -> None:
    try:
        got = softlane.softmax(Lying())
    except (TypeError, ValueError):
        return
    assert np.isfinite(got).all()


def test_a_buffer_cannot_be_resized_while_it_is_read() -> None:
    """The export is held for the length of the call: resizing raises BufferError, or comes after it."""
    buffer = bytearray(8 * 4_000_000)

    def resize() -> None:
        for _ in range(50):
            with contextlib.suppress(BufferError):
                buffer.append(0)
                buffer.pop()

    resizer = threading.Thread(target=resize)
    resizer.start()
    for _ in range(3):
        got = softlane.softmax(memoryview(buffer)[: 8 * 4_000_000].cast("d"))
        assert got[0] == got[-1]
    resizer.join(30)


def test_an_error_leaves_every_buffer_of_the_loss_untouched(isa: str) -> None:
    """Gradients over logits, probabilities and losses: whatever is found wrong last."""
    bad: list[dict[str, Any]] = [
        {"z_loss": float("nan")},
        {"softcap": -1.0},
        {"temperature": 0.0},
        {"reduction": "most"},
        {"label_smoothing": 2.0},
        {"where": np.ones((4, 4), bool)},
        {"weight": np.ones(3)},
        {"sample_weight": np.ones(4)},
        {"dtype": int},
    ]
    for named in bad:
        for targets in (Y.copy(), P.copy()):
            x, out, gradient = X.copy(), np.full(3, 7.0), np.full((3, 4), 7.0)
            over = targets if targets.dtype == np.float64 else x
            untouched = snapshot(x, targets, out, gradient, *named.values())
            for buffer in (gradient, x, over):
                with pytest.raises((TypeError, ValueError)):
                    softlane.cross_entropy_with_grad(
                        x, targets, grad_out=buffer, return_stats=True, **named
                    )
            with pytest.raises((TypeError, ValueError)):
                softlane.cross_entropy(x, targets, out=out, **({"reduction": "none"} | named))
            assert untouched(), named


def test_an_error_does_not_disturb_the_next_call(isa: str) -> None:
    expected = softlane.softmax(X)
    for _ in range(100):
        with pytest.raises(IndexError):
            softlane.cross_entropy(X, [0, 1, 9])
        assert_same_bits(softlane.softmax(X), expected)
