"""Coverage-guided fuzzing of the public functions: python tests/fuzz/fuzz.py tests/fuzz/corpus -max_total_time=60.

Each input becomes a call with hostile layouts and parameters. Its result is compared with softlane.reference in
higher precision, in ulp, and bit by bit with that for contiguous copies on another instruction set; what it must
not touch is compared too. README.md beside this file has the build that gives coverage of the extension.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np

sys.setdlopenflags(sys.getdlopenflags() | os.RTLD_GLOBAL)
with atheris.instrument_imports(include=["softlane"]):
    import softlane
    from softlane import _core, reference

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import oracle  # noqa: E402
from support import (  # noqa: E402
    FLOATS,
    FUSED,
    INTEGERS,
    Array,
    DType,
    assert_same_bits,
    elementwise_dtype,
    result_dtype,
    using,
)

USABLE = _core.isas_usable()
FUSED_USABLE = [isa for isa in USABLE if isa in FUSED]
Shape = tuple[int, ...]


class Refused(Exception):  # noqa: N818
    """The arguments are not accepted."""


class Input:
    """Draws from the bytes of one input."""

    def __init__(self, data: bytes) -> None:
        self.more = atheris.FuzzedDataProvider(data)

    def below(self, n: int) -> int:
        return int(self.more.ConsumeIntInRange(0, n - 1))

    def one_of(self, *choices: Any) -> Any:
        return choices[self.below(len(choices))]

    def flag(self) -> bool:
        return bool(self.below(2))

    def shape(self) -> Shape:
        ndim = self.below(5)
        shape = [self.one_of(1, 2, 3, 5, self.below(10)) for _ in range(ndim)]
        if ndim:
            shape[self.below(ndim)] = self.below(self.one_of(20, 80, 700))
        while np.prod(shape) > 1500:
            shape[shape.index(max(shape))] //= 2
        return tuple(shape)

    def axis(self, ndim: int, *, one: bool = False) -> Any:
        if one or self.flag():
            return self.below(2 * ndim) - ndim if ndim else -1
        return None if self.flag() else tuple(a for a in range(ndim) if self.flag())

    def values(self, dtype: DType, shape: Shape, *, tame: bool = False) -> Array:
        """Any bits, or small numbers with a scale and an offset."""
        count = int(np.prod(shape))
        raw = self.more.ConsumeBytes(self.below(65)) or b"\0"
        if not tame and self.flag():
            room = np.resize(np.frombuffer(raw, np.uint8), count * dtype.itemsize)
            if dtype.kind == "b":
                room %= 2
            return room.view(dtype).reshape(shape)
        numbers = np.resize(np.frombuffer(raw, np.int8), count).reshape(shape).astype(np.float64)
        if not tame:
            numbers = numbers * 2.0 ** (self.below(24) - 12) + self.one_of(0, 0, 100, -3000)
        with np.errstate(all="ignore"):
            return numbers.astype(dtype)

    def place(self, x: Array) -> Array:
        """The values somewhere in a room of their own, behind strides of any kind; swapped, perhaps."""
        dtype = x.dtype.newbyteorder() if self.below(8) == 0 and x.dtype.kind != "V" else x.dtype
        strides, step = [0] * x.ndim, dtype.itemsize + self.one_of(0, 0, 0, 1, 3, dtype.itemsize)
        axes = list(range(x.ndim))
        while axes:
            axis = axes.pop(self.below(len(axes)) if self.flag() else -1)
            strides[axis] = step * self.one_of(1, 1, 1, -1, 2, -3)
            step = max(abs(strides[axis]) * x.shape[axis], step)
        first = self.below(9)
        spans = [s * (n - 1) for s, n in zip(strides, x.shape, strict=True)] if x.size else [0]
        first -= sum(min(0, s) for s in spans)
        last = first + sum(max(0, s) for s in spans) + dtype.itemsize
        self.room = np.full(last, 0xA5, np.uint8)
        view: Array = np.ndarray(x.shape, dtype, self.room.data, first, strides)
        view[...] = x
        if x.ndim and x.shape[0] and self.below(16) == 0:
            view = np.broadcast_to(view[:1], x.shape)
        return view

    def exporter(self, x: Array) -> Any:
        plain = x.dtype.kind != "V" and x.size
        return memoryview(x) if plain and self.below(8) == 0 else x  # type: ignore[arg-type]

    def mask(self, shape: Shape) -> Array | None:
        if self.below(3):
            return None
        kept = tuple(n if self.flag() else 1 for n in shape)
        return self.place(self.values(np.dtype(bool), kept))

    def temperature(self) -> float:
        if self.below(3):
            return 1.0
        return float(self.more.ConsumeFloat() if self.flag() else self.one_of(0.5, 0.7, 100.0))


def native(x: Any) -> Array:
    """A contiguous copy in native byte order; integers as the float64 that they are computed as."""
    x = np.asarray(x)
    dtype = x.dtype if x.dtype.kind == "V" else x.dtype.newbyteorder("=")
    copy: Array = np.array(x, dtype, order="C")
    return copy


def exponents(x: Any) -> Array:
    copy = native(x)
    return copy.astype(np.float64) if copy.dtype.kind in "biu" else copy


def close(
    got: Any,
    value: Any,
    exact: oracle.Exact,
    dtype: DType,
    what: str,
    bars: dict[str, float] = oracle.BARS,
) -> None:
    """Within the contract of what the reference gives; `exact` has the magnitude whose ulp counts."""
    got = np.asarray(got)
    assert got.dtype == dtype, f"{what}: {got.dtype}, expected {dtype}"
    assert got.shape == np.shape(value), f"{what}: {got.shape}, expected {np.shape(value)}"
    # The reference or the oracle: sums may cancel beyond longdouble in the one, and 0 times what is not finite
    # has two readings.
    error = np.minimum(
        oracle.ulp_error(got, value, exact.scale), oracle.ulp_error(got, exact.value, exact.scale)
    )
    bar = bars.get(dtype.name, oracle.BARS[dtype.name]) + 0.01  # the reference rounds too
    tiny = np.ldexp(oracle.LD(1), oracle.FORMATS[dtype.name].min_exponent)
    # Results just below the normal numbers are 1.02 spacings off where a temperature of 1e300 is divided by.
    excess = error / np.where(exact.scale < tiny, min(bar, 2.01), bar)
    if (excess > 1).any():
        at = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(excess > 1)))
        raise AssertionError(
            f"{what}: {np.atleast_1d(error)[at]} ulp at {at}, got {np.atleast_1d(got)[at]!r}, "
            f"expected {np.atleast_1d(value)[at]!r}"
        )


class Call:
    """A function with its arguments as drawn, and as contiguous copies."""

    def __init__(self, draw: Input, function: Callable[..., Any], *arrays: Array | None) -> None:
        self.draw, self.function = draw, function
        self.placed = [None if a is None else draw.exporter(a) for a in arrays]
        self.copies = [None if a is None else native(a) for a in arrays]

    def run(self, invoke: Callable[..., Any]) -> tuple[Any, ...]:
        """The results, having checked that they do not depend on layout, output or instruction set."""
        kept = [None if a is None else np.asarray(a).tobytes() for a in self.placed]
        with using(self.draw.one_of(*USABLE)):
            self.isa = isa = _core.get_isa()
            try:
                results = as_tuple(invoke(*self.placed))
            except (TypeError, ValueError, IndexError) as error:
                raise Refused(error) from None
            finally:
                for a, before in zip(self.placed, kept, strict=True):
                    assert a is None or np.asarray(a).tobytes() == before, "an input has changed"
        with using(self.draw.one_of(*FUSED_USABLE) if isa in FUSED_USABLE else isa):
            for got, other in zip(results, as_tuple(invoke(*self.copies)), strict=True):
                assert_same_bits(got, other, f"{isa} and {_core.get_isa()}, layouts")
        return results

    def into(self, result: Any, invoke: Callable[[Array], Any]) -> None:
        """The same into an output somewhere, and nothing beside it."""
        if self.draw.below(3):
            return
        out = self.draw.place(np.zeros_like(result))
        if not out.flags.writeable:
            return
        room = self.draw.room
        before, elements = room.tobytes(), out.copy()
        with using(self.isa):
            assert invoke(out) is out
        assert_same_bits(out, result, "out")
        out[...] = elements
        assert room.tobytes() == before, "written beside the output"


def as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def one_input(data: bytes) -> None:
    draw = Input(data)
    with contextlib.suppress(Refused):
        draw.one_of(softmax, log_sum_exp, cross_entropy, backward, segments, streaming)(draw)


def softmax(draw: Input) -> None:
    name = draw.one_of("softmax", "log_softmax")
    function, dtype = getattr(softlane, name), draw.one_of(*FLOATS, *INTEGERS)
    x = draw.place(draw.values(dtype, draw.shape()))
    mask, axis = draw.mask(x.shape), draw.axis(x.ndim)
    options: dict[str, Any] = {"temperature": draw.temperature()}
    if draw.below(4) == 0:
        options["dtype"] = draw.one_of(*FLOATS)
    call = Call(draw, function, x, mask)
    (got,) = call.run(lambda x, mask: function(x, axis, where=mask, **options))
    call.into(got, lambda out: function(x, axis, where=mask, out=out, **options))
    computed, t = options.get("dtype", elementwise_dtype(native(x).dtype)), options["temperature"]
    value = getattr(reference, name)(
        exponents(x), axis, where=mask, temperature=oracle.LD(t), dtype=oracle.LD
    )
    exact = getattr(oracle, name)(exponents(x), axis, where=mask, temperature=t)
    close(got, value, exact, computed, name)


def log_sum_exp(draw: Input) -> None:
    x = draw.place(draw.values(draw.one_of(*FLOATS, *INTEGERS), draw.shape()))
    axis, b, mask = draw.axis(x.ndim), None, draw.mask(x.shape)
    if draw.flag():
        shape = tuple(n if draw.flag() else 1 for n in x.shape)
        b = draw.place(draw.values(draw.one_of(*FLOATS, *INTEGERS), shape, tame=True))
    options: dict[str, Any] = {"keepdims": draw.flag(), "return_sign": draw.flag()}
    call = Call(draw, softlane.logsumexp, x, b, mask)
    results = call.run(lambda x, b, mask: softlane.logsumexp(x, axis, b=b, where=mask, **options))
    got = results[0]
    call.into(
        got,
        lambda out: as_tuple(softlane.logsumexp(x, axis, b=b, where=mask, out=out, **options))[0],
    )
    factors = None if b is None else exponents(b)
    values = reference.logsumexp(
        exponents(x), axis, b=factors, where=mask, dtype=oracle.LD, **options
    )
    exact, _ = oracle.logsumexp(exponents(x), axis, b=factors, where=mask)
    if b is not None:  # a sum of exactly 1 has a logarithm of 0, to what is left of the terms
        exact = oracle.Exact(exact.value, np.maximum(exact.scale, 1e-12))
    if options["keepdims"]:
        exact = oracle.Exact(*(np.reshape(part, np.shape(got)) for part in exact))
    # What b cancels to nothing may leave more than longdouble sees, or less than float64.
    cancels = b is not None and bool((exponents(b) < 0).any())
    unclear = (np.isneginf(exact.value) | (np.isneginf(got) & (exact.scale > 1e15))) & cancels
    exact = oracle.Exact(np.where(unclear, got, exact.value), exact.scale)
    dtype = reference._common_dtype(*(native(a) for a in (x, b) if a is not None))
    close(got, as_tuple(values)[0], exact, dtype, "logsumexp")
    if options["return_sign"]:
        same = np.equal(results[1], values[1]) | (np.isnan(results[1]) & np.isnan(values[1]))
        assert (same | unclear | (cancels & (exact.scale > 1e15))).all(), "sign"


def cross_entropy(draw: Input) -> None:
    dtype, shape = draw.one_of(*FLOATS), draw.shape() or (draw.below(9) + 1,)
    axis = draw.axis(len(shape), one=True)
    samples = tuple(n for a, n in enumerate(shape) if a != axis % len(shape))
    classes = shape[axis]
    z = draw.place(draw.values(dtype, shape))
    options: dict[str, Any] = {
        "reduction": draw.one_of("none", "mean", "sum"),
        "temperature": draw.temperature(),
        "label_smoothing": draw.one_of(0.0, 0.0, 0.1, 1.0),
        "z_loss": draw.one_of(0.0, 0.0, 0.01, -2.0),
        "softcap": draw.one_of(None, None, None, 5.0, 50.0),
        "ignore_index": draw.one_of(-100, -1, 0, 3),
    }
    if draw.below(3) == 0:
        y = np.abs(draw.values(draw.one_of(*FLOATS), shape, tame=True))
    else:
        y = draw.values(draw.one_of(*INTEGERS[1:]), samples)
        if draw.below(8) and classes:
            y = (y.astype(np.uint64) % np.uint64(min(classes, 100))).astype(y.dtype)
    y, mask, w, s = draw.place(y), draw.mask(shape), None, None
    if not np.broadcast_to(True if mask is None else mask, shape).any(axis).all():
        options["z_loss"] = 0.0  # the logsumexp of nothing, squared, has no meaning
    if not (np.abs(native(z)) < 1e5).all():
        options["z_loss"] = 0.0  # and a huge one, times a probability that is 0, is not quite 0
    if draw.below(3) == 0:
        w = draw.place(draw.values(draw.one_of(*FLOATS), (classes,), tame=True))
    if draw.below(3) == 0:
        s = draw.place(draw.values(draw.one_of(*FLOATS), samples, tame=True))

    def invoke(z: Any, y: Any, w: Any, s: Any, mask: Any, **more: Any) -> Any:
        both = softlane.cross_entropy_with_grad(
            z, y, axis, weight=w, sample_weight=s, where=mask, **options, **more
        )
        if not more:
            loss, stats = softlane.cross_entropy(
                z, y, axis, weight=w, sample_weight=s, where=mask, return_stats=True, **options
            )
            assert_same_bits(loss, both[0], "without the gradient")
            both += tuple(stats)
        return both

    call = Call(draw, softlane.cross_entropy_with_grad, z, y, w, s, mask)
    arguments = {"weight": w, "sample_weight": s, "where": mask, **options}
    try:
        loss, grad, logsumexp, *_ = call.run(invoke)
    except Refused as refused:
        (error,) = refused.args
        if str(error).startswith("temperature"):
            raise
        try:
            reference.cross_entropy(native(z), native(y), axis, **arguments)
        except (ValueError, IndexError) as other:
            raise refused from other
        raise AssertionError(f"{error!r}, but the reference computes") from None
    call.into(grad, lambda out: invoke(z, y, w, s, mask, grad_out=out)[1])
    parts = {k: None if v is None else exponents(v) for k, v in list(arguments.items())[:2]}
    arguments |= parts | {"temperature": oracle.LD(options["temperature"])}
    values = reference.cross_entropy_with_grad(
        exponents(z), native(y), axis, dtype=oracle.LD, **arguments
    )
    exact = oracle.cross_entropy(native(z), native(y), axis, **arguments)
    of_loss = exact.loss if options["reduction"] == "none" else exact.reduced(options["reduction"])
    if options["reduction"] == "mean" and exact.divisor == 0:
        return  # NaN, where the reference may divide something else than 0
    if s is not None and (native(s) == 0).any() and not np.isfinite(np.asarray(values[0])).all():
        return  # 0 times what is not finite
    if (np.abs(exact.loss.value) > np.finfo(np.float64).max).any():
        return  # a sample's own weighted loss has no double, though the mean may have
    if options["z_loss"] and np.isinf(logsumexp).any():
        return  # a logsumexp beyond float64: known, tests/test_losses.py has it as a failure
    if options["softcap"] is not None and options["temperature"] < 1e-300:
        return  # capped logits over that are beyond what longdouble can subtract
    # cap·tanh(x/cap) is rounded to float64 before the exponent: 20·cap/T ulp, as in tests/test_losses.py.
    bars = (
        {}
        if options["softcap"] is None
        else {
            "float64": min(500.0, 20 * options["softcap"] / min(1.0, options["temperature"]) + 12)
        }
    )
    close(loss, values[0], of_loss, result_dtype(dtype), "loss", bars)
    close(grad, values[1], exact.grad, dtype, "gradient", bars)


def backward(draw: Input) -> None:
    name = draw.one_of("softmax_backward", "log_softmax_backward")
    function, shape = getattr(softlane, name), draw.shape()
    dtypes = draw.one_of(*FLOATS), draw.one_of(*FLOATS)
    same = dtypes[0] if draw.below(4) else dtypes[1]
    g, y = draw.values(dtypes[0], shape), draw.values(same, shape)
    axis, t = draw.axis(len(shape)), draw.temperature()
    y = getattr(softlane, name.removesuffix("_backward"))(y, axis)
    g, y = draw.place(g), draw.place(y)
    call = Call(draw, function, g, y)
    (got,) = call.run(lambda g, y: function(g, y, axis, temperature=t))
    call.into(got, lambda out: function(g, y, axis, temperature=t, out=out))
    wide = [native(a).astype(oracle.LD) for a in (g, y)]
    value = getattr(reference, name)(*wide, axis, temperature=oracle.LD(t))
    exact = getattr(oracle, name)(native(g), native(y), axis, temperature=t)
    # An infinite sum times an exp(y) that is 0 in longdouble, but not in truth.
    value = np.where(np.isinf(got) & np.isnan(value) & (wide[1] < -11000), got, value)
    # Over a tiny temperature products count that have no double, and terms of one have none that may cancel.
    lost = exact.scale * oracle.LD(t) < np.ldexp(oracle.LD(1), -1400)
    lost |= exact.scale > np.finfo(got.dtype if got.dtype.kind == "f" else np.float32).max
    close(got, np.where(lost, got, value), exact, got.dtype, name)


def segments(draw: Input) -> None:
    name = draw.one_of("segment_softmax", "segment_log_softmax", "segment_logsumexp")
    function = getattr(softlane, name)
    x = draw.place(draw.values(draw.one_of(*FLOATS), (draw.below(200),)))
    cuts = sorted(draw.below(x.size + 1) for _ in range(draw.below(12)))
    if draw.below(20) == 0 and cuts:
        cuts[draw.below(len(cuts))] = draw.one_of(-1, x.size + 1, 2**31, -(2**63))
    pointers = draw.place(np.array([0, *cuts, x.size]).astype(draw.one_of("h", "i", "q")))
    call = Call(draw, function, x, pointers)
    (got,) = call.run(function)
    call.into(got, lambda out: function(x, pointers, out=out))
    of = name.removeprefix("segment_")
    for i, (start, stop) in enumerate(
        zip(native(pointers)[:-1], native(pointers)[1:], strict=True)
    ):
        part = got[i] if of == "logsumexp" else got[start:stop]
        with using(call.isa):
            alone = getattr(softlane, of)(native(x)[start:stop])
        assert_same_bits(part, alone, f"{name}, segment {i}")


def streaming(draw: Input) -> None:
    x = draw.place(draw.values(draw.one_of(*FLOATS), (draw.below(4), draw.below(90))))
    cut = draw.below(x.shape[1] + 1)
    state, other = softlane.LogSumExp().update(x[:, :cut]), softlane.LogSumExp()
    other.update(x[:, cut:])
    exact, _ = oracle.logsumexp(native(x))
    value = reference.logsumexp(native(x), dtype=oracle.LD)
    close(state.merge(other).result(), value, exact, result_dtype(native(x).dtype), "LogSumExp")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
