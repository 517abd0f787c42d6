"""The oracle against mpmath at 50 digits, on samples of every input kind; and the ulp measure on known cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import oracle
from oracle import LD, Exact, ulp_error
from support import BFLOAT16, Array, make_rows, rng_for

mpmath: Any = pytest.importorskip("mpmath")
mp = mpmath.mp

pytestmark = pytest.mark.skipif(
    oracle.PRECISION < 64, reason="longdouble is no longer than float64 here"
)

LENGTHS = (1, 2, 5, 19)
SLACK = 0.01  # float64 ulp


@pytest.fixture(autouse=True)
def fifty_digits() -> Any:
    with mpmath.workdps(50):
        yield


def number(value: Any) -> Any:
    """A longdouble as an mpf, exactly: its significand in two float64 halves."""
    if not np.isfinite(value):
        return mp.mpf(float(value))
    significand, exponent = np.frexp(value)
    high = float(significand)
    return mp.ldexp(mp.mpf(high) + mp.mpf(float(significand - LD(high))), int(exponent))


def assert_agree(exact: Exact, expected: list[Any], label: str, slack: float = SLACK) -> None:
    """The oracle's values, rounded to nothing, are within `slack` float64 ulp (of the oracle's own scale)."""
    for value, scale, reference in zip(
        exact.value.ravel(), exact.scale.ravel(), expected, strict=True
    ):
        if mp.isnan(reference) or mp.isinf(reference):
            assert np.isnan(value) if mp.isnan(reference) else float(value) == float(reference), (
                label
            )
            continue
        size = max(abs(number(scale)), mp.mpf(2) ** -1022)
        assert abs(number(value) - reference) <= slack * size * mp.mpf(2) ** -52, (
            label,
            value,
            reference,
        )


def exact_rows(z: list[Any], mask: list[bool], temperature: float) -> tuple[list[Any], list[Any]]:
    """Softmax and its logarithm by the textbook formula at 50 digits more than the terms differ by."""
    t = mp.mpf(temperature)
    inside = [v / t for v, m in zip(z, mask, strict=True) if m]
    top = max(inside)
    with mpmath.workdps(400):
        powers = [mp.exp(v / t - top) if m else mp.mpf(0) for v, m in zip(z, mask, strict=True)]
        total = mp.fsum(powers)
        log_total = mp.log(total)
        logs = [(v / t - top) - log_total if m else mp.ninf for v, m in zip(z, mask, strict=True)]
        return [p / total for p in powers], logs


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1e-3, 1e30])
@pytest.mark.parametrize("n", LENGTHS)
def test_softmax_and_log_softmax(n: int, temperature: float) -> None:
    names, rows = make_rows(np.dtype(np.float64), n)
    mask = rng_for(n).random(rows.shape) < 0.8
    mask[:, n // 3] = True
    mask |= rows == rows.max(axis=-1, keepdims=True)
    got = oracle.softmax(rows, where=mask, temperature=temperature)
    logs = oracle.log_softmax(rows, where=mask, temperature=temperature)
    for i, name in enumerate(names):
        p, lp = exact_rows([mp.mpf(float(v)) for v in rows[i]], list(mask[i]), temperature)
        assert_agree(Exact(got.value[i], got.scale[i]), p, name)
        assert_agree(Exact(logs.value[i], logs.scale[i]), lp, name)


@pytest.mark.parametrize("with_b", [False, True])
@pytest.mark.parametrize("n", LENGTHS)
def test_logsumexp(n: int, with_b: bool) -> None:
    names, rows = make_rows(np.dtype(np.float64), n)
    rng = rng_for(n, with_b)
    b = rng.standard_normal(rows.shape) if with_b else np.ones(rows.shape)
    b[:, -1] = np.where(b[:, -1] == 0, 1.0, b[:, -1])
    got, sign = oracle.logsumexp(rows, b=b if with_b else None)
    for i, name in enumerate(names):
        top = max(mp.mpf(float(v)) for v in rows[i])
        with mpmath.workdps(400):
            total = mp.fsum(
                mp.mpf(float(c)) * mp.exp(mp.mpf(float(v)) - top)
                for c, v in zip(b[i], rows[i], strict=True)
            )
            expected = top + mp.log(abs(total))
        assert_agree(Exact(got.value[i : i + 1], got.scale[i : i + 1]), [expected], name)
        assert float(sign[i]) == float(mp.sign(total)), name


def test_logsumexp_with_b_near_zero() -> None:
    x = np.array([0.0, 1e-17, -3e-17])
    b = np.array([0.25, 0.5, 0.25])
    got, _ = oracle.logsumexp(x, b=b)
    with mpmath.workdps(100):
        expected = mp.log(
            mp.fsum(mp.mpf(float(c)) * mp.exp(mp.mpf(float(v))) for c, v in zip(b, x, strict=True))
        )
    assert_agree(Exact(got.value[None], got.scale[None]), [expected], "b sums to 1")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("n", LENGTHS)
def test_cross_entropy(n: int, smoothing: float) -> None:
    names, rows = make_rows(np.dtype(np.float64), n, infinities=False)
    rng = rng_for(n, smoothing)
    targets = rng.integers(0, n, len(rows))
    targets[::2] = np.argmax(rows[::2], axis=-1)
    weight, sample_weight = rng.uniform(0.1, 3, n), rng.uniform(0.1, 3, len(rows))
    mask = rng.random(rows.shape) < 0.8
    mask[np.arange(len(rows)), targets] = True
    temperature = 0.7
    got = oracle.cross_entropy(
        rows,
        targets,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=smoothing,
        temperature=temperature,
        where=mask,
        reduction="mean",
    )
    w, s, eps = (
        [mp.mpf(float(v)) for v in weight],
        [mp.mpf(float(v)) for v in sample_weight],
        mp.mpf(smoothing),
    )
    divisor = mp.fsum(w[y] * s[i] for i, y in enumerate(targets))
    for i, name in enumerate(names):
        y = int(targets[i])
        with mpmath.workdps(400):
            p, lp = exact_rows([mp.mpf(float(v)) for v in rows[i]], list(mask[i]), temperature)
            inside = [c for c in range(n) if mask[i, c]]
            share = eps / len(inside)
            loss = (1 - eps) * w[y] * -lp[y] + share * mp.fsum(w[c] * -lp[c] for c in inside)
            total = mp.fsum(w[c] for c in inside)
            grad = []
            for c in range(n):
                g = (1 - eps) * w[y] * (p[c] - (c == y)) + share * (p[c] * total - w[c])
                grad.append(g * s[i] / divisor / mp.mpf(temperature) if mask[i, c] else mp.mpf(0))
        assert_agree(
            Exact(got.loss.value[i : i + 1], got.loss.scale[i : i + 1]), [loss * s[i]], name
        )
        assert_agree(Exact(got.grad.value[i], got.grad.scale[i]), grad, name)


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("given", ["classes", "probabilities"])
@pytest.mark.parametrize("n", LENGTHS)
def test_other_losses_and_statistics(
    n: int, given: str, z_loss: float, softcap: float | None
) -> None:
    """By the textbook formulas: loss -sum q log p + λ lse², gradient by its definition."""
    names, rows = make_rows(np.dtype(np.float64), n, infinities=False)
    rng = rng_for(n, given, z_loss, softcap)
    weight = rng.uniform(0.1, 3, n)
    mask = rng.random(rows.shape) < 0.8
    mask[:, 0] = True
    hot = np.zeros(len(rows), np.int64)
    t = rng.dirichlet(np.ones(n), len(rows))
    if given == "classes":
        t = np.eye(n)[hot]
    options: dict[str, Any] = {"where": mask, "temperature": 0.7}
    targets = hot if given == "classes" else t
    got = oracle.cross_entropy(
        rows, targets, weight=weight, label_smoothing=0.1, z_loss=z_loss, softcap=softcap, **options
    )
    stats = oracle.cross_entropy_stats(rows, targets, **options)
    slack = SLACK
    if softcap is not None:  # 30·tanh rounded to longdouble: 2^-63·30/0.7 in the exponents
        slack = 0.1
        scaled = np.abs(rows.astype(LD) / LD(softcap)) < 20
        names, rows = names, np.where(scaled, rows, 0.0)
        got = oracle.cross_entropy(
            rows,
            targets,
            weight=weight,
            label_smoothing=0.1,
            z_loss=z_loss,
            softcap=30.0,
            **options,
        )
    eps, temperature, factor = mp.mpf(0.1), mp.mpf(0.7), mp.mpf(z_loss)
    for i, name in enumerate(names):
        with mpmath.workdps(400):
            z = [mp.mpf(float(v)) for v in rows[i]]
            slope = [mp.mpf(1)] * n
            if softcap is not None:
                slope = [1 / mp.cosh(v / 30) ** 2 for v in z]
                z = [30 * mp.tanh(v / 30) for v in z]
            p, lp = exact_rows(z, list(mask[i]), 0.7)
            inside = [c for c in range(n) if mask[i, c]]
            share = eps / len(inside)
            q = {
                c: mp.mpf(float(weight[c])) * ((1 - eps) * mp.mpf(float(t[i, c])) + share)
                for c in inside
            }
            lse = z[inside[0]] / temperature - lp[inside[0]]
            total = mp.fsum(q.values())
            loss = -mp.fsum(q[c] * lp[c] for c in inside) + factor * lse**2
            grad = [
                (total * p[c] - q[c] + 2 * factor * lse * p[c]) / temperature * slope[c]
                if mask[i, c]
                else mp.mpf(0)
                for c in range(n)
            ]
            entropy = -mp.fsum(p[c] * lp[c] for c in inside)
        assert_agree(
            Exact(got.loss.value[i : i + 1], got.loss.scale[i : i + 1]), [loss], name, slack
        )
        assert_agree(Exact(got.grad.value[i], got.grad.scale[i]), grad, name, slack)
        if softcap is None:
            y = 0 if given == "classes" else max(inside, key=lambda c: (t[i, c], -c))
            for found, expected in (
                (stats.logsumexp, lse),
                (stats.log_prob, lp[y]),
                (stats.entropy, entropy),
            ):
                assert_agree(
                    Exact(found.value[i : i + 1], found.scale[i : i + 1]), [expected], name
                )
            assert stats.correct[i] == (min(inside, key=lambda c: (-rows[i, c], c)) == y)


@pytest.mark.parametrize("n", LENGTHS)
def test_backward(n: int) -> None:
    rng = rng_for(n)
    y = rng.dirichlet(np.ones(n), 8)
    g = rng.standard_normal((8, n)) * 10.0 ** rng.integers(-3, 4, (8, n))
    g[0] = 1e20 * rng.standard_normal(n)
    g[1, 0], g[1, -1] = 1e20, -1e20
    lp = np.log(y)
    soft = oracle.softmax_backward(g, y, temperature=0.7)
    logs = oracle.log_softmax_backward(g, lp, temperature=0.7)
    for i in range(8):
        gi, yi, li = ([mp.mpf(float(v)) for v in row] for row in (g[i], y[i], lp[i]))
        with mpmath.workdps(100):
            dot, total = mp.fsum(a * b for a, b in zip(gi, yi, strict=True)), mp.fsum(gi)
            t = mp.mpf(0.7)
            expected = [b * (a - dot) / t for a, b in zip(gi, yi, strict=True)]
            expected_log = [(a - mp.exp(b) * total) / t for a, b in zip(gi, li, strict=True)]
        assert_agree(Exact(soft.value[i], soft.scale[i]), expected, "softmax")
        assert_agree(Exact(logs.value[i], logs.scale[i]), expected_log, "log_softmax")


def test_axes_and_where_select_the_same_elements() -> None:
    rng = rng_for("axes")
    x = rng.standard_normal((3, 4, 5))
    p = oracle.softmax(x, (0, 2)).value
    for j in range(4):
        flat = oracle.softmax(x[:, j].ravel()).value.reshape(3, 5)
        assert np.array_equal(p[:, j], flat)
    assert np.array_equal(oracle.softmax(x, None).value.ravel(), oracle.softmax(x.ravel()).value)
    assert np.array_equal(oracle.softmax(x, ()).value, np.ones(x.shape))


def eps(dtype: Any) -> Array:
    return np.asarray(np.spacing(np.array(1, dtype)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ulp_error_of_known_cases(dtype: Any) -> None:
    one, info = np.array([1], dtype), np.finfo(dtype)
    above = one + eps(dtype)
    assert ulp_error(above, LD(1)) == 1
    assert ulp_error(one, LD(above[0])) == 1
    assert (
        ulp_error(np.nextafter(one, dtype(0)), LD(1)) == 0.5
    )  # the ulp is that of the exact value's binade
    assert ulp_error(one, LD(1) + LD(eps(dtype)) / 4) == 0.25
    assert ulp_error(2 * one, LD(2)) == 0
    smallest = np.array([info.smallest_subnormal], dtype)
    assert ulp_error(smallest, LD(0)) == 1
    assert ulp_error(3 * smallest, 2.5 * LD(smallest[0])) == 0.5
    assert ulp_error(0 * one, LD(info.tiny)) == 2 ** (info.nmant)


def test_ulp_error_of_specials() -> None:
    got = np.array([np.nan, np.nan, np.inf, -np.inf, np.inf, 0.0, np.inf], np.float32)
    exact = np.array([np.nan, 1.0, np.inf, np.inf, 3.5e38, -0.0, 3.4e38], LD)
    assert np.array_equal(ulp_error(got, exact), [0, np.inf, 0, np.inf, 0, 0, np.inf])


def test_ulp_error_with_a_scale() -> None:
    assert ulp_error(np.array([0.0], np.float32), LD(2.0**-23), LD(1)) == 1
    assert ulp_error(np.array([2.0**-24], np.float64), LD(0), LD(2.0**28)) == 1


@pytest.mark.skipif(BFLOAT16 is None, reason="ml_dtypes is not installed")
def test_ulp_error_of_bfloat16() -> None:
    got = np.array([1.0078125, 1.0], BFLOAT16)
    assert np.array_equal(ulp_error(got, np.array([1, 1.00390625], LD)), [1, 0.5])


def test_check_ulp_reports_the_worst_element() -> None:
    exact = Exact(np.ones(3, LD), np.ones(3, LD))
    got = np.array([1, 1 + 2.0**-20, 1], np.float32)
    with pytest.raises(
        AssertionError, match=r"row 1: float32 error 8\.000 ulp \(bar 2\.0\) at \(1,\)"
    ):
        oracle.check_ulp(got, exact, label=lambda at: f"row {at[0]}")
    assert oracle.check_ulp(got, exact, bar=8) == 8
    with pytest.raises(AssertionError, match="shape"):
        oracle.check_ulp(got[:2], exact)
    two_spacings = np.array([3 * 2.0**-149], np.float32)
    with pytest.raises(AssertionError, match=r"error 2\.000 ulp"):
        oracle.check_ulp(two_spacings, Exact(np.array([LD(2) ** -149]), np.array([LD(2) ** -149])))
