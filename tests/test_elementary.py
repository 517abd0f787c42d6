"""exp, log, expm1 and log1p of every instruction set: error in ulp over specials, dense samples and every float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import oracle
from softlane import _core
from support import Array, assert_same_bits, rng_for, using

BOUNDS = {"exp": 1.0, "log": 0.6, "expm1": 2.0, "log1p": 0.6}
ROUNDS_TO_INF = 2.0**128 - 2.0**103  # in float32
every_function = pytest.mark.parametrize("name", list(BOUNDS))
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

nan, inf = math.nan, math.inf


def evaluate(name: str, x: Array) -> Array:
    got: Array = np.asarray(_core.elementary(name, np.ascontiguousarray(x)))
    assert got.dtype == x.dtype and got.shape == x.shape
    return got


def check(name: str, x: Array) -> float:
    exact = oracle.elementary(name, x)
    return oracle.check_ulp(
        evaluate(name, x), exact, BOUNDS[name], label=lambda at: f"{name}({float(x[at])!r})"
    )


def samples(name: str, dtype: Any) -> dict[str, Array]:
    """Dense and adversarial inputs inside each function's domain."""
    rng = rng_for("elementary", name, np.dtype(dtype).name)
    info = np.finfo(dtype)
    low, high = math.log(float(info.smallest_subnormal)), math.log(float(info.max))
    ln2 = math.log(2)
    unsigned: Any = np.uint32 if dtype == np.float32 else np.uint64
    patterns = rng.integers(0, np.iinfo(unsigned).max, 200_000, unsigned, endpoint=True).view(dtype)
    halves = (np.arange(-1100, 1100) + 0.5) * ln2
    halves = np.concatenate([halves * (1 + k * float(info.eps)) for k in (-2, -1, 0, 1, 2)])
    near_one = 1 + rng.uniform(-1, 1, 50_000) * 10.0 ** -rng.uniform(0, 16, 50_000)
    tiny = rng.choice([-1, 1], 50_000) * 10.0 ** -rng.uniform(0, 40, 50_000)
    found: dict[str, Array] = {"bit patterns": patterns}
    if name in ("exp", "expm1"):
        found |= {
            "whole range": rng.uniform(low - 2, high + 2, 200_000),
            "one period": rng.uniform(-ln2, ln2, 100_000),
            "half-way between multiples of ln 2": halves,
            "multiples of ln 2": np.arange(-1100, 1100) * ln2,
            "subnormal results": rng.uniform(low - 1, math.log(float(info.tiny)) + 1, 50_000),
            "near overflow": rng.uniform(high - 1e-3, high + 1e-3, 20_000),
            "near zero": tiny,
            "integers": np.arange(-800.0, 800.0),
            "half-way between multiples of ln 2 / 8": halves / 8,
        }
    if name in ("log", "log1p"):
        found |= {
            "near one": near_one,
            "wide": 10.0 ** rng.uniform(-37, 38, 100_000),
            "one binade": rng.uniform(0.5, 2.5, 100_000),
            "near the square root of two": math.sqrt(2) * (1 + rng.uniform(-1e-3, 1e-3, 20_000)),
            "powers of two": 2.0 ** np.arange(-126, 127),
            "subnormal": rng.uniform(0, 1, 20_000) * float(info.tiny),
            "near zero": tiny,
            "near minus one": -near_one,
        }
    with np.errstate(all="ignore"):
        return {kind: np.asarray(values).astype(dtype) for kind, values in found.items()}


@every_function
@every_dtype
def test_samples(isa: str, name: str, dtype: Any) -> None:
    for values in samples(name, dtype).values():
        with np.errstate(all="ignore"):
            defined = ~np.isnan(oracle.elementary(name, values).value)
        check(name, values[defined])


SPECIALS: dict[str, list[tuple[float, float]]] = {
    "exp": [
        (0.0, 1),
        (-0.0, 1),
        (-inf, 0),
        (inf, inf),
        (nan, nan),
        (1e4, inf),
        (-1e4, 0),
        (-1e38, 0),
    ],
    "log": [(1.0, 0), (0.0, -inf), (inf, inf), (nan, nan)],
    "expm1": [(0.0, 0), (-inf, -1), (inf, inf), (nan, nan), (-1e4, -1), (-1e38, -1), (-0.0, -0.0)],
    "log1p": [(0.0, 0), (-0.0, -0.0), (inf, inf), (nan, nan)],
}


@every_function
@every_dtype
def test_specials(isa: str, name: str, dtype: Any) -> None:
    for value, expected in SPECIALS[name]:
        for n in (1, 16, 37):
            got = evaluate(name, np.full(n, value, dtype))
            assert_same_bits(got, np.full(n, expected, dtype), f"{name}({value})")


@every_function
@every_dtype
def test_every_length_and_neighbours(isa: str, name: str, dtype: Any) -> None:
    """A lane depends on nothing but its own input."""
    x = rng_for("lanes").uniform(0.1, 3, 70).astype(dtype)
    whole = evaluate(name, x)
    for n in range(71):
        assert_same_bits(evaluate(name, x[:n]), whole[:n])
    spoiled = x.copy()
    spoiled[::3] = nan
    kept = np.arange(70) % 3 != 0
    assert_same_bits(evaluate(name, spoiled)[kept], whole[kept])


@every_dtype
def test_monotonic_around_zero(isa: str, dtype: Any) -> None:
    x = np.linspace(-1, 1, 20_001).astype(dtype)
    assert (np.diff(evaluate("exp", x)) >= 0).all()


@every_dtype
def test_expm1_where_its_formulas_meet(isa: str, dtype: Any) -> None:
    for start in (-0.11, -0.045, 0.042, 0.095):
        check("expm1", np.linspace(start, start + 0.015, 20_001).astype(dtype))


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", list(BOUNDS))
def test_every_float32(name: str) -> None:
    """All 2**32 bit patterns on every usable set, against NumPy's float64 function.

    The exact value is never rounded to float32, so ties do not matter; its error, a few float64 ulp, is below 1e-8 ulp.
    """
    compute: Any = getattr(np, name)
    worst = dict.fromkeys(_core.isas_usable(), (0.0, 0.0))
    step = 1 << 18
    for start in range(0, 1 << 32, step):
        x = np.arange(start, start + step, dtype=np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            exact = compute(x.astype(np.float64))
        defined = ~np.isnan(exact)
        unit = (exact.view(np.int64) & 0x7FF0 << 48).view(np.float64)
        unit = np.clip(unit, 2.0**-126, 2.0**127) * 2.0**-23
        known: dict[bytes, tuple[float, float]] = {}  # sets that agree are measured once
        for isa in worst:
            with using(isa):
                got = evaluate(name, x)
            key = got.tobytes()
            if key not in known:
                with np.errstate(all="ignore"):
                    error = np.abs(got - exact) / unit
                    same = (got == exact) | ((np.abs(exact) >= ROUNDS_TO_INF) & np.isinf(got))
                error[same | (np.isnan(got) & ~defined)] = 0
                error[np.isnan(error)] = np.inf
                at = int(np.argmax(error))
                known[key] = float(error[at]), float(x[at])
            worst[isa] = max(worst[isa], known[key])
    for isa, (error_there, argument) in worst.items():
        print(f"{name} on {isa}: {error_there:.4f} ulp at {argument.hex()}")
    assert max(worst.values())[0] <= BOUNDS[name], worst
