"""Fit the constants of exp and log and write csrc/kernels/constants-inl.h (needs mpmath).

Each polynomial is the weighted minimax fit (Remez exchange on a dense grid, 60 digits). Its
coefficients are rounded to the target format one at a time, the others being fitted again after
each rounding, so that they make up for most of what the rounding lost.

    python tools/fit_constants.py           print the errors, write the header
    python tools/fit_constants.py --check   fit again, compare with the header, verify the errors
"""

from __future__ import annotations

import argparse
import difflib
import random
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from mpmath import mp, mpf  # type: ignore[import-untyped]

mp.dps = 60

HEADER = Path(__file__).resolve().parents[1] / "csrc" / "kernels" / "constants-inl.h"
GRID_POINTS = 1501
FLOAT_BITS = 24
DOUBLE_BITS = 53
# 2^x = 2^n * (1 + j/8) * 2^r for an x within 1/16 of n + j/8, r = x - n - j/8 + EXP_STEPS[j]; the slack covers
# the rounding of r. Raised by EXP_RAISE, r is about as far from 0 below as above; 2^0 then is 33/32, which loses
# nothing.
EXP_STEPS = [mpf(j) / 8 - mp.log(1 + mpf(j) / 8, 2) for j in range(8)]
EXP_HALF_STEP = mpf(1) / 16 + mpf(2) ** -20
EXP_RAISED = mpf(33) / 32
EXP_RAISE = mp.log(EXP_RAISED, 2)
LOG_SLACK = mpf(2) ** -20
LOG_GRID = 41  # the high parts of k*ln2 and log(c) are multiples of 2^-LOG_GRID
LOG_MAX_K = 2100
INVC_BITS = 9

Function = Callable[[mpf], mpf]


def round_to(x: mpf, bits: int) -> mpf:
    """Round to the nearest number of `bits` significant bits (normal range assumed)."""
    with mp.workprec(bits):
        return +x


def exact(x: mpf) -> Fraction:
    """Give the value of x as a fraction."""
    man, exp = x.man_exp
    return Fraction(int(man)) * Fraction(2) ** int(exp)


def log2_abs(x: mpf) -> float:
    return float(mp.log(abs(x), 2)) if x else float("-inf")


# ------------------------------------------------------------------------------- minimax fitting


@dataclass(frozen=True)
class Problem:
    """Approximate `target` by sum of c_i * x**powers[i] on [low, high], error times `weight`."""

    name: str
    target: Function
    powers: tuple[int, ...]
    weight: Function
    weight_text: str
    low: mpf
    high: mpf

    def grid(self) -> list[mpf]:
        """Chebyshev extrema, without zero (where every error vanishes)."""
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        last = GRID_POINTS - 1
        points = (middle - half * mp.cos(mp.pi * i / last) for i in range(GRID_POINTS))
        return [x for x in points if abs(x) > half * mpf(10) ** -9]


@dataclass(frozen=True)
class Fit:
    problem: Problem
    coefficients: list[mpf]
    ideal_error: mpf  # of the fit before rounding
    error: mpf  # of the rounded coefficients
    order: str  # in which order they were rounded

    def summary(self) -> str:
        p = self.problem
        return (
            f"{p.name}: x in [{mp.nstr(p.low, 8)}, {mp.nstr(p.high, 8)}], {p.weight_text}, "
            f"{len(self.coefficients)} coefficients: 2^{log2_abs(self.ideal_error):.2f}, "
            f"rounded ({self.order}) 2^{log2_abs(self.error):.2f}"
        )


def positive(
    points: Sequence[mpf], values: Sequence[mpf], basis: Sequence[Sequence[mpf]], power: int
) -> tuple[list[mpf], list[list[mpf]]]:
    """Flip the sign where x**power < 0: only then the best error alternates (x**power * poly)."""
    signs = [-1 if x < 0 and power % 2 else 1 for x in points]
    flipped = [[sign * b for b in row] for sign, row in zip(signs, basis, strict=True)]
    return [sign * v for sign, v in zip(signs, values, strict=True)], flipped


def remez(values: Sequence[mpf], basis: Sequence[Sequence[mpf]]) -> list[mpf]:
    """Minimax coefficients on a grid; values and basis rows are already weighted."""
    n = len(basis[0])
    last = len(values) - 1
    reference = [
        round(last * (1 - float(mp.cos(mp.pi * (2 * i + 1) / (2 * n + 2)))) / 2)
        for i in range(n + 1)
    ]
    for _ in range(60):
        matrix = mp.matrix(n + 1, n + 1)
        right = mp.matrix(n + 1, 1)
        for row, index in enumerate(reference):
            for column in range(n):
                matrix[row, column] = basis[index][column]
            matrix[row, n] = (-1) ** row
            right[row] = values[index]
        solution = mp.lu_solve(matrix, right)
        found = [solution[i] for i in range(n)]
        level = abs(solution[n])
        errors = [v - mp.fdot(found, b) for v, b in zip(values, basis, strict=True)]
        if max(abs(e) for e in errors) <= level * (1 + mpf(10) ** -12):
            return found
        reference = exchange(errors, n + 1)
    raise ArithmeticError("the exchange does not converge")


def exchange(errors: Sequence[mpf], count: int) -> list[int]:
    """The `count` indices of largest errors with alternating signs."""
    extrema: list[int] = []
    for i, e in enumerate(errors):
        if extrema and (e > 0) == (errors[extrema[-1]] > 0):
            if abs(e) > abs(errors[extrema[-1]]):
                extrema[-1] = i
        else:
            extrema.append(i)
    while len(extrema) > count:
        sizes = [abs(errors[i]) for i in extrema]
        least = min(range(len(sizes)), key=sizes.__getitem__)
        if len(extrema) == count + 1 or least in (0, len(sizes) - 1):
            del extrema[0 if sizes[0] < sizes[-1] else -1]
        else:  # two neighbours, so that the signs go on alternating
            first = least - 1 if sizes[least - 1] < sizes[least + 1] else least
            del extrema[first : first + 2]
    if len(extrema) < count:
        raise ArithmeticError(f"only {len(extrema)} alternating extrema, expected {count}")
    return extrema


def fit(problem: Problem, bits: int) -> Fit:
    """Minimax fit with coefficients of `bits` bits, rounded in the better of two orders."""
    points = problem.grid()
    weights = [problem.weight(x) for x in points]
    target = [w * problem.target(x) for w, x in zip(weights, points, strict=True)]
    rows = [[w * x**p for p in problem.powers] for w, x in zip(weights, points, strict=True)]
    n = len(problem.powers)

    def worst(c: Sequence[mpf]) -> mpf:
        return max(abs(t - mp.fdot(c, row)) for t, row in zip(target, rows, strict=True))

    ideal = remez(*positive(points, target, rows, problem.powers[0]))
    candidates = []
    for name, order in (("lowest first", range(n)), ("highest first", range(n - 1, -1, -1))):
        fixed: dict[int, mpf] = {}
        free = list(order)
        current = dict(enumerate(ideal))
        while free:
            index = free.pop(0)
            fixed[index] = round_to(current[index], bits)
            if free:
                columns = sorted(free)
                rest = [
                    t - mp.fsum(c * row[i] for i, c in fixed.items())
                    for t, row in zip(target, rows, strict=True)
                ]
                reduced = [[row[i] for i in columns] for row in rows]
                refit = remez(*positive(points, rest, reduced, problem.powers[columns[0]]))
                current = dict(zip(columns, refit, strict=True))
        rounded = [fixed[i] for i in range(n)]
        candidates.append(Fit(problem, rounded, worst(ideal), worst(rounded), name))
    return min(candidates, key=lambda f: f.error)


# ------------------------------------------------------------------------------------- constants


def exp2_problem(name: str, count: int, raised: mpf) -> Problem:
    """2^r - 1 = r*w(r), absolute error, w with `count` coefficients."""
    reach = EXP_HALF_STEP + max(abs(s + raised) for s in EXP_STEPS)
    return Problem(
        name=name,
        target=lambda r: mp.expm1(r * mp.ln2),
        powers=tuple(range(1, count + 1)),
        weight=lambda _: mpf(1),
        weight_text="absolute error of r*w(r) against 2^r - 1",
        low=-reach,
        high=reach,
    )


def fit_exp2(
    name: str, bits: int, count: int, goal: float, raised: mpf = EXP_RAISE
) -> tuple[list[Fit], Fit]:
    """The first count of coefficients (from `count`) whose error is below 2^goal."""
    tried = [fit(exp2_problem(name, count, raised), bits)]
    while log2_abs(tried[-1].error) > goal:
        count += 1
        tried.append(fit(exp2_problem(name, count, raised), bits))
    return tried, tried[-1]


def double_bits(x: mpf) -> int:
    return int(struct.unpack("<q", struct.pack("<d", float(x)))[0])


def exp2_steps(raised: mpf, bits: int) -> list[mpf]:
    return [round_to(s + raised, bits) for s in EXP_STEPS]


@dataclass(frozen=True)
class LogTable:
    invc: list[mpf]
    hi: list[mpf]
    lo: list[mpf]
    ln2_hi: mpf
    ln2_lo: mpf
    r_low: mpf  # range of r = m*invc - 1, with slack
    r_high: mpf


def split_on_grid(x: mpf) -> tuple[mpf, mpf]:
    """High part a multiple of 2^-LOG_GRID, low part the rest as a double."""
    hi = mp.nint(mp.ldexp(x, LOG_GRID)) / mpf(2) ** LOG_GRID
    return hi, round_to(x - hi, DOUBLE_BITS)


def log_table() -> LogTable:
    invc = [round_to(1 / (1 + mpf(j) / 8), INVC_BITS) for j in range(8)]
    parts = [split_on_grid(-mp.log(c)) for c in invc]
    ln2_hi, ln2_lo = split_on_grid(+mp.ln2)
    ends = []
    for j, c in enumerate(invc):
        middle = 1 + mpf(j) / 8
        low = mpf(31) / 32 if j == 0 else middle - mpf(1) / 16
        ends += [low * c - 1 - LOG_SLACK, (middle + mpf(1) / 16) * c - 1 + LOG_SLACK]
    return LogTable(
        invc, [p[0] for p in parts], [p[1] for p in parts], ln2_hi, ln2_lo, min(ends), max(ends)
    )


def log_problem(table: LogTable, count: int) -> Problem:
    """R(z) = log(1+r)/s - 2, s = r/(2+r), z = s*s; error of s*R relative to r."""
    s_max = max(abs(r / (2 + r)) for r in (table.r_low, table.r_high))

    def target(z: mpf) -> mpf:
        s = mp.sqrt(z)
        return 2 * mp.atanh(s) / s - 2

    return Problem(
        name="kLogPoly",
        target=target,
        powers=tuple(range(1, count + 1)),
        weight=lambda z: (1 + mp.sqrt(z)) / 2,  # |s/r| = (1-s)/2, at its largest for s < 0
        weight_text="error of s*R relative to r",
        low=mpf(0),
        high=s_max**2,
    )


def fit_log(table: LogTable, count: int, goal: float) -> tuple[list[Fit], Fit]:
    tried = [fit(log_problem(table, count), DOUBLE_BITS)]
    while log2_abs(tried[-1].error) > goal:
        count += 1
        tried.append(fit(log_problem(table, count), DOUBLE_BITS))
    return tried, tried[-1]


def double_double(x: mpf) -> tuple[mpf, mpf]:
    hi = round_to(x, DOUBLE_BITS)
    return hi, round_to(x - hi, DOUBLE_BITS)


# ---------------------------------------------------------------------------------------- header


def literal(x: mpf, suffix: str = "") -> str:
    """C hex-float literal without trailing zeros."""
    if not x:
        return f"0.0{suffix}"
    mantissa, exponent = float(x).hex().split("p")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}p{exponent}{suffix}"


def array(kind: str, name: str, items: Sequence[str], per_line: int) -> str:
    lines = [
        "    " + ", ".join(items[i : i + per_line]) + "," for i in range(0, len(items), per_line)
    ]
    return "\n".join([f"constexpr {kind} {name}[{len(items)}] = {{", *lines, "};"])


def scalar(name: str, x: mpf) -> str:
    return f"constexpr double {name} = {literal(x)};"


@dataclass(frozen=True)
class Constants:
    exp_f: Fit
    exp_d: Fit
    exp_sharp_f: Fit
    exp_sharp_d: Fit
    log: Fit
    raised_f: list[mpf]  # steps
    raised_d: list[mpf]
    steps_f: list[mpf]
    steps_d: list[mpf]
    steps_lo_d: list[mpf]  # what these lost to rounding
    lower: tuple[mpf, mpf]  # 2^-EXP_RAISE
    log_table: LogTable
    log2e: tuple[mpf, mpf]
    ln2: tuple[mpf, mpf]


def compute(report: bool) -> Constants:
    """All constants; `report` prints every fit, also those that missed their goal."""
    tried_f, exp_f = fit_exp2("kExp2F", FLOAT_BITS, 4, -29)
    tried_d, exp_d = fit_exp2("kExp2D", DOUBLE_BITS, 8, -59.5)
    tried_sf, exp_sharp_f = fit_exp2("kExp2SharpF", FLOAT_BITS, 5, -31, mpf(0))
    tried_sd, exp_sharp_d = fit_exp2("kExp2SharpD", DOUBLE_BITS, 9, -61, mpf(0))
    steps_d = exp2_steps(mpf(0), DOUBLE_BITS)
    table = log_table()
    tried_l, log = fit_log(table, 4, -66)
    if report:
        for f in [*tried_f, *tried_d, *tried_sf, *tried_sd, *tried_l]:
            print(f.summary())
        print(f"r of log in [{mp.nstr(table.r_low, 8)}, {mp.nstr(table.r_high, 8)}]")
    return Constants(
        exp_f=exp_f,
        exp_d=exp_d,
        exp_sharp_f=exp_sharp_f,
        exp_sharp_d=exp_sharp_d,
        log=log,
        raised_f=exp2_steps(EXP_RAISE, FLOAT_BITS),
        raised_d=exp2_steps(EXP_RAISE, DOUBLE_BITS),
        steps_f=exp2_steps(mpf(0), FLOAT_BITS),
        steps_d=steps_d,
        steps_lo_d=[round_to(s - r, DOUBLE_BITS) for s, r in zip(EXP_STEPS, steps_d, strict=True)],
        lower=double_double(1 / EXP_RAISED),
        log_table=table,
        log2e=double_double(1 / mp.ln2),
        ln2=double_double(+mp.ln2),
    )


def power_of_two(x: mpf) -> str:
    return f"2^{log2_abs(x):.2f}"


def header(c: Constants) -> str:
    t = c.log_table
    blocks = [
        """\
// Constants of exp and log. Written by tools/fit_constants.py (which repeats and checks the fits);
// do not edit. Data only, for the anonymous namespace of a kernel file.
#pragma once

// clang-format off

// exp, float32: x = n + j/8 + f, |f| <= 1/16, 2^x = 2^n * (1 + j/8) * 2^r, r = f + step_j, 2^r - 1 = r * w(r). With
// t = 8*q + j, q the biased exponent, t << 20 has the bits of 2^(q-127) * (1 + j/8). Steps are raised, and so is
// 2^x, by a factor of 33/32: then r is about as far from 0 below as above, and 2^0 loses nothing to rounding.
// step_j = j/8 - log2(1 + j/8) + log2(33/32), rounded.""",
        array("float", "kExp2RaisedF", [literal(x, "f") for x in c.raised_f], 4),
        f"""\
// w[0] + w[1]*r + ...; |r| <= {mp.nstr(c.exp_f.problem.high, 6)}; absolute error of r*w(r)\
 {power_of_two(c.exp_f.error)} (before rounding the coefficients
// {power_of_two(c.exp_f.ideal_error)}).""",
        array("float", "kExp2F", [literal(x, "f") for x in c.exp_f.coefficients], 4),
        f"""\
// The same where 2^r - 1 is what matters, not raised: |r| <= {mp.nstr(c.exp_sharp_f.problem.high, 6)}, error \
{power_of_two(c.exp_sharp_f.error)}.""",
        array("float", "kExp2StepF", [literal(x, "f") for x in c.steps_f], 4),
        array("float", "kExp2SharpF", [literal(x, "f") for x in c.exp_sharp_f.coefficients], 4),
        f"""\

// exp, float64: as above (t << 49); errors {power_of_two(c.exp_d.error)}\
 (before rounding {power_of_two(c.exp_d.ideal_error)}) and {power_of_two(c.exp_sharp_d.error)}.""",
        array("double", "kExp2RaisedD", [literal(x) for x in c.raised_d], 3),
        array("double", "kExp2D", [literal(x) for x in c.exp_d.coefficients], 3),
        array("double", "kExp2StepD", [literal(x) for x in c.steps_d], 3),
        array("double", "kExp2SharpD", [literal(x) for x in c.exp_sharp_d.coefficients], 3),
        "// What the steps lost to rounding, and 32/33, the sum of two doubles.",
        array("double", "kExp2StepLoD", [literal(x) for x in c.steps_lo_d], 3),
        scalar("kExp2LowerHi", c.lower[0]),
        scalar("kExp2LowerLo", c.lower[1]),
        f"""\

// log, float64: u = 2^k * m, m in [1 - 1/32, 2 - 1/16), j the nearest of c_j = 1 + j/8,
// log(u) = k*ln2 + logc_j + log1p(r), r = m*invc_j - 1, r in [{mp.nstr(t.r_low, 6)}, \
{mp.nstr(t.r_high, 6)}] with a slack
// of 2^-20. invc_j is 1/c_j rounded to {INVC_BITS} bits; logc_j = -log(invc_j) = hi + lo.
// kLogCHi and kLn2Hi are multiples of 2^-{LOG_GRID}, so that k*kLn2Hi and k*kLn2Hi + kLogCHi[j]
// are exact for |k| <= {LOG_MAX_K}.""",
        array("double", "kLogInvC", [literal(x) for x in t.invc], 8),
        array("double", "kLogCHi", [literal(x) for x in t.hi], 4),
        array("double", "kLogCLo", [literal(x) for x in t.lo], 3),
        scalar("kLn2Hi", t.ln2_hi),
        scalar("kLn2Lo", t.ln2_lo),
        f"""\
// log1p(r) = r - (h - s*(h + R)), h = r*r/2, s = r/(2+r), z = s*s, R = z*(L[0] + z*(L[1] + ...));
// z in [0, {mp.nstr(c.log.problem.high, 6)}]; error of s*R relative to r\
 {power_of_two(c.log.error)} (before rounding {power_of_two(c.log.ideal_error)}).""",
        array("double", "kLogPoly", [literal(x) for x in c.log.coefficients], 3),
        "\n// log2(e) and ln(2), each the sum of two doubles (the high one is the nearest double).",
        scalar("kLog2EHi", c.log2e[0]),
        scalar("kLog2ELo", c.log2e[1]),
        scalar("kLn2DDHi", c.ln2[0]),
        scalar("kLn2DDLo", c.ln2[1]),
        "\n// clang-format on\n",
    ]
    return "\n".join(blocks)


# ----------------------------------------------------------------------------------------- check


class CheckError(Exception):
    pass


def require(condition: bool, text: str) -> None:
    if not condition:
        raise CheckError(text)


def check_fit(f: Fit, points: int, rng: random.Random) -> None:
    """The error at random points is within the stated one (up to what the grid may miss)."""
    p = f.problem
    worst = mpf(0)
    for _ in range(points):
        x = p.low + (p.high - p.low) * rng.getrandbits(64) / mpf(2) ** 64
        if x:
            value = mp.fsum(c * x**k for c, k in zip(f.coefficients, p.powers, strict=True))
            worst = max(worst, abs(p.weight(x) * (value - p.target(x))))
    print(f"{p.name}: {points} random points, largest error {power_of_two(worst)}")
    require(
        worst <= f.error * (1 + mpf(10) ** -4),
        f"{p.name}: error {power_of_two(worst)}, stated {power_of_two(f.error)}",
    )


def check_exp2_relative(f: Fit, points: int, goal: float, rng: random.Random) -> None:
    """r*w(r) relative to 2^r - 1, which is what expm1 near zero depends on."""
    worst = mpf(0)
    for _ in range(points):
        r = mp.ldexp(f.problem.high * rng.uniform(-1, 1), -rng.randrange(40))
        if r:
            value = mp.fsum(c * r**k for c, k in zip(f.coefficients, f.problem.powers, strict=True))
            worst = max(worst, abs(value / f.problem.target(r) - 1))
    print(f"{f.problem.name}: relative error {power_of_two(worst)}")
    require(log2_abs(worst) <= goal, f"{f.problem.name}: relative error {power_of_two(worst)}")


def check_exp2_steps(c: Constants) -> None:
    for j in range(8):
        true = -mp.log((1 + mpf(j) / 8) / mp.power(2, mpf(j) / 8), 2)
        off = abs(c.steps_d[j] + c.steps_lo_d[j] - true)
        require(off <= mpf(2) ** -108, f"kExp2StepD[{j}] is off")
        for steps, raised, bits in (
            (c.steps_f, mpf(0), FLOAT_BITS),
            (c.raised_f, EXP_RAISE, FLOAT_BITS),
            (c.raised_d, EXP_RAISE, DOUBLE_BITS),
        ):
            off = abs(steps[j] - true - raised)
            require(off <= mpf(2) ** (-4 - bits), f"step {j} of {bits} bits is off")


def check_log_table(t: LogTable) -> None:
    grid = Fraction(2) ** LOG_GRID
    for x in [t.ln2_hi, *t.hi]:
        require((exact(x) * grid).denominator == 1, "log table: high part off its grid")
        require(double_bits(x) & 0xFFF == 0, "log table: low 12 bits of a high part not zero")
    top = LOG_MAX_K * exact(t.ln2_hi) + exact(max(t.hi))
    require(top * grid < 2**DOUBLE_BITS, "log table: k*ln2 + log(c) is not exact")
    for j, (c, hi, lo) in enumerate(zip(t.invc, t.hi, t.lo, strict=True)):
        error = abs(hi + lo + mp.log(c))
        require(error <= mpf(2) ** -(LOG_GRID + DOUBLE_BITS + 1), f"log(c_{j}) off by {error}")
    error = abs(t.ln2_hi + t.ln2_lo - mp.ln2)
    require(error <= mpf(2) ** -(LOG_GRID + DOUBLE_BITS + 1), f"ln2 off by {error}")


def check_log1p(c: Constants, points: int, rng: random.Random) -> None:
    """Compose the whole of log1p as the kernel does, in fractions; error relative to r."""
    t = c.log_table
    worst = mpf(0)
    for _ in range(points):
        r = Fraction(float(t.r_low + (t.r_high - t.r_low) * rng.getrandbits(64) / mpf(2) ** 64))
        if not r:
            continue
        s, h = r / (2 + r), r * r / 2
        z = s * s
        tail = Fraction(0)
        for coefficient in reversed(c.log.coefficients):
            tail = (tail + exact(coefficient)) * z
        value = r - (h - s * (h + tail))
        true = mp.log1p(mpf(r.numerator) / r.denominator)
        approximate = mpf(value.numerator) / value.denominator
        worst = max(worst, abs((approximate - true) * r.denominator / r.numerator))
    print(f"log1p: {points} random points, largest error relative to r {power_of_two(worst)}")
    require(worst <= c.log.error * (1 + mpf(10) ** -4), f"log1p: error {power_of_two(worst)}")


def check(c: Constants, points: int) -> None:
    rng = random.Random(20240501)
    for f in (c.exp_f, c.exp_d, c.exp_sharp_f, c.exp_sharp_d, c.log):
        check_fit(f, points, rng)
    check_exp2_relative(c.exp_sharp_f, points, -27, rng)
    check_exp2_relative(c.exp_sharp_d, points, -54.5, rng)
    check_log1p(c, points, rng)
    check_exp2_steps(c)
    check_log_table(c.log_table)
    found = HEADER.read_text(encoding="utf-8") if HEADER.exists() else ""
    wanted = header(c)
    diff = difflib.unified_diff(
        found.splitlines(), wanted.splitlines(), str(HEADER), "computed", lineterm=""
    )
    require(found == wanted, "the header differs from what the fits give\n" + "\n".join(diff))
    print(f"{HEADER.name}: as computed")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare and verify, write nothing")
    parser.add_argument("--points", type=int, default=20000, help="random points (--check)")
    options = parser.parse_args(arguments)
    constants = compute(report=True)
    if options.check:
        try:
            check(constants, options.points)
        except CheckError as failure:
            print(f"check failed: {failure}", file=sys.stderr)
            return 1
        return 0
    HEADER.parent.mkdir(parents=True, exist_ok=True)
    HEADER.write_text(header(constants), encoding="utf-8")
    print(f"wrote {HEADER.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
