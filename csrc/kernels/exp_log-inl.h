// exp, log, expm1 and log1p on vectors, and the double-word arithmetic that they and the row
// statistics need. Everything is a template over the vector type, so that rows, panels of columns
// and every instruction set share one formulation and get the same bits.
#pragma once

// A vector of unevaluated sums hi + lo, |lo| <= ulp(hi)/2.
template <class W>
struct Double2 {
  W hi, lo;
};

// s + err = a + b exactly (Knuth).
template <class W>
SOFTLANE_INLINE Double2<W> TwoSum(W a, W b) {
  const W s = Add(a, b);
  const W b_part = Sub(s, a);
  return {s, Add(Sub(a, Sub(s, b_part)), Sub(b, b_part))};
}
// The same for |a| >= |b| or a == 0 (Dekker).
template <class W>
SOFTLANE_INLINE Double2<W> FastTwoSum(W a, W b) {
  const W s = Add(a, b);
  return {s, Sub(b, Sub(s, a))};
}
template <class W>
SOFTLANE_INLINE Double2<W> TwoProd(W a, W b) {
  const W p = Mul(a, b);
  return {p, MulSub(a, b, p)};
}
template <class W>
SOFTLANE_INLINE Double2<W> ToDouble2(W x) {
  return {x, W::Set(0)};
}
template <class W>
inline Double2<W> Add(Double2<W> a, Double2<W> b) {
  const Double2<W> s = TwoSum(a.hi, b.hi);
  return FastTwoSum(s.hi, Add(s.lo, Add(a.lo, b.lo)));
}
template <class W>
inline Double2<W> Mul(Double2<W> a, Double2<W> b) {
  const Double2<W> p = TwoProd(a.hi, b.hi);
  return FastTwoSum(p.hi, Add(p.lo, MulAdd(a.hi, b.lo, Mul(a.lo, b.hi))));
}
template <class W>
inline Double2<W> Div(Double2<W> a, Double2<W> b) {
  // One division: what the rounded quotient leaves is divided by a multiplication.
  const W inverse = Div(W::Set(1), b.hi);
  const W q = Mul(a.hi, inverse);
  const Double2<W> p = TwoProd(q, b.hi);
  const W rest = Sub(Add(Sub(Sub(a.hi, p.hi), p.lo), a.lo), Mul(q, b.lo));
  return FastTwoSum(q, Mul(rest, inverse));
}
// An infinite (or NaN) hi makes the error terms NaN: they are dropped.
template <class W>
inline W Collapse(Double2<W> a) {
  const W zero = W::Set(0);
  const auto finite = Eq(Sub(a.hi, a.hi), zero);
  return Add(a.hi, IfThenElseZero(finite, a.lo));
}

// ---- exp ----------------------------------------------------------------------------------------

// Format constants. `kSpare` moves the exponents up, so that results far below the maximum keep their
// digits: exp is delivered as 33/32 * 2^kSpare * exp(x) / 2^N. `kFar`: at and beyond this |max * k| the maximum
// is subtracted first; every element that matters is then within a factor 2 of it and the difference is
// exact (Sterbenz): 150 + 25 binades in float, 1074 + 54 in double, are less than half of it. `kNarrow`: scales,
// of four bits, from so many binades below the largest, which is 1.5 at most, on have exact sums of up to 8 in
// float (16 in double): these are below 2^4 (2^5), and what is added is a multiple of 2^-20 (2^-48).
template <class Scalar>
struct ExpFormat;
template <>
struct ExpFormat<float> {
  static constexpr float kMagic = 0x1.8p20f;  // ulp 1/8: x*k + kMagic rounds x*k to eighths
  static constexpr float kRound = 0x1.8p23f;
  static constexpr float kBias = 127, kSpare = 64, kFloor = 125, kFar = 369, kNarrow = 16.5f;
  static constexpr float kCoarse = 0x1.8p71f;  // ulp 2^-16 in units of 2^kSpare
  static constexpr int kShift = 20;
  static constexpr const float *kRaised = kExp2RaisedF, *kSteps = kExp2StepF;
};
template <>
struct ExpFormat<double> {
  static constexpr double kMagic = 0x1.8p49;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kBias = 1023, kSpare = 500, kFloor = 1021, kFar = 4096, kNarrow = 44.5;
  static constexpr double kCoarse = 0x1.8p507;  // ulp 2^-45 in units of 2^kSpare
  static constexpr int kShift = 49;
  static constexpr const double *kRaised = kExp2RaisedD, *kSteps = kExp2StepD;
};

// log2(e)/T in the vector's format.
template <class V>
struct ExpFactor {
  V hi, lo, inverse;
};
template <class V>
inline ExpFactor<V> MakeFactor(const Scale& s) {
  using Scalar = typename V::Scalar;
  if constexpr (sizeof(Scalar) == 4) {
    return {V::Set(s.kf_hi), V::Set(s.kf_lo), V::Set(static_cast<float>(s.inv_k))};
  } else {
    return {V::Set(s.k_hi), V::Set(s.k_lo), V::Set(s.inv_k)};
  }
}

// log2(e) itself: no temperature.
template <class V>
inline ExpFactor<V> UnitFactor() {
  using Scalar = typename V::Scalar;
  const Scalar hi = static_cast<Scalar>(kLog2EHi);
  const Scalar lo = static_cast<Scalar>(kLog2EHi - static_cast<double>(hi) + kLog2ELo);
  return {V::Set(hi), V::Set(lo), V::Set(static_cast<Scalar>(kLn2DDHi))};
}

// What the exponents of a row are measured against (see MakeReference).
template <class V>
struct ExpReference {
  ExpFactor<V> k;
  V shift;  // subtracted from x first: 0, or the maximum
  V magic;  // rounds to eighths and carries the exponent bias, kSpare and -N
  V floor;  // the exps of smaller x are 0: the smallest factor is 2^-126 (2^-1022)
};

// exp as the product scale * (1 + z): scale is a power of two times 1, 9/8, ... 15/8; |z| < 0.077, or 0.098 of
// a kSharp exp.
template <class V>
struct ExpParts {
  V scale, z;
};

// The reference for rows with maximum `max`: N = round(max*k), or x - max where max is far from zero.
// A maximum of -inf, +inf or NaN makes every result NaN (inf - inf).
template <class V>
SOFTLANE_CALL ExpReference<V> MakeReference(V max, ExpFactor<V> k) {
  using Format = ExpFormat<typename V::Scalar>;
  const V scaled = Mul(max, k.hi);
  const auto near = Lt(Abs(scaled), V::Set(Format::kFar));
  const V round = V::Set(Format::kRound);
  const V exponent = IfThenElseZero(near, Sub(Add(scaled, round), round));
  ExpReference<V> ref;
  ref.k = k;
  ref.shift = IfThenElse(near, V::Set(0), max);
  ref.magic = Sub(V::Set(Format::kMagic + Format::kBias + Format::kSpare), exponent);
  ref.floor = Mul(Sub(exponent, V::Set(Format::kFloor + Format::kSpare)), k.inverse);
  return ref;
}

// That of a maximum of 0, without a temperature.
template <class V>
SOFTLANE_INLINE ExpReference<V> UnitReference() {
  using Scalar = typename V::Scalar;
  using Format = ExpFormat<Scalar>;
  constexpr Scalar kMagic = Format::kMagic + Format::kBias + Format::kSpare;
  constexpr Scalar kFloor = -(Format::kFloor + Format::kSpare) * static_cast<Scalar>(kLn2DDHi);
  return {UnitFactor<V>(), V::Set(0), V::Set(kMagic), V::Set(kFloor)};
}

// c[kFirst] + r·(c[kFirst + 1] + r·(...)).
template <size_t kFirst, class V, class Scalar, size_t kCount>
SOFTLANE_INLINE V Horner(V r, const Scalar (&c)[kCount]) {
  if constexpr (kFirst + 1 == kCount) {
    return V::Set(c[kFirst]);
  } else {
    return MulAdd(r, Horner<kFirst + 1>(r, c), V::Set(c[kFirst]));
  }
}
// w(r) of 2^r - 1 = r·w(r), as w(0) + r * tail.
template <class V>
SOFTLANE_INLINE V Exp2Tail(V r) {
  if constexpr (sizeof(typename V::Scalar) == 4) {
    return Horner<1>(r, kExp2SharpF);
  } else {
    return Horner<1>(r, kExp2SharpD);
  }
}
// w(r) itself; as far as 2^r needs it, or kSharp, as 2^r - 1 does.
template <bool kSharp, class V>
SOFTLANE_INLINE V Exp2Poly(V r) {
  if constexpr (kSharp) {
    V first;
    if constexpr (sizeof(typename V::Scalar) == 4) {
      first = V::Set(kExp2SharpF[0]);
    } else {
      first = V::Set(kExp2SharpD[0]);
    }
    return MulAdd(r, Exp2Tail(r), first);
  } else if constexpr (sizeof(typename V::Scalar) == 4) {
    return Horner<0>(r, kExp2F);
  } else {
    return Horner<0>(r, kExp2D);
  }
}

// Whether every x from `min` on lies above the floor, and nothing is subtracted: such an x needs neither
// step of Exp. False for a reference that is not finite.
template <class V>
SOFTLANE_INLINE bool AllOrdinary(V min, const ExpReference<V>& ref) {
  const auto plain = And(Eq(ref.shift, V::Set(0)), Lt(ref.floor, min));
  return !AnyTrue(AndNot(plain, Eq(V::Set(0), V::Set(0))));
}
// Above it the scales of so many elements, or of a vector's lane in a block of 128, have an exact sum (kNarrow).
// It is above the floor, and finite if that is: what is added is 360 * T (3000 * T in double) at most, and ops.cpp
// keeps T within 2^90 (2^800).
template <class V>
SOFTLANE_INLINE V NarrowFrom(const ExpReference<V>& ref, size_t count) {
  using Format = ExpFormat<typename V::Scalar>;
  auto above = Format::kFloor + Format::kSpare - Format::kNarrow;
  for (size_t few = 128 / V::kLanes; few < count; few *= 2) above += 1;
  return MulAdd(V::Set(above), ref.k.inverse, ref.floor);
}
template <class V>
SOFTLANE_INLINE bool AllNarrow(V min, const ExpReference<V>& ref, size_t count) {
  const auto narrow = And(Eq(ref.shift, V::Set(0)), Lt(NarrowFrom(ref, count), min));
  return !AnyTrue(AndNot(narrow, Eq(V::Set(0), V::Set(0))));
}

// x, of a size below that of kCoarse / 3, on the grid on which all the scales of 128 elements are, if NarrowFrom
// lets them have an exact sum: this is below 2^8, or 2^24 (2^53) steps of the grid, with 7.7 % more, too.
template <class V>
SOFTLANE_INLINE V Coarse(V x) {
  const V magic = V::Set(ExpFormat<typename V::Scalar>::kCoarse);
  return Sub(Add(x, magic), magic);
}

// exp(x/T) / 2^N * 2^kSpare, and 33/32 of that unless kSharp, as scale * (1 + z). Relative error before the
// product is rounded: 0.23 u (u = 2^-24 or 2^-53), or 0.36 u if kSharp: z is at most 0.077 (0.098) and its own
// error at most 1.6 u of that; r, and what it is the sum of, are rounded at 2^-28 (2^-57). NaN and inf - inf give a
// NaN z. x is at most the maximum of the reference; below the floor scale is 0, which costs no processor the time
// that products with the smallest numbers do.
template <bool kOrdinary = false, bool kSharp = false, class V>
SOFTLANE_INLINE ExpParts<V> Exp(V x, const ExpReference<V>& ref) {
  using Format = ExpFormat<typename V::Scalar>;
  if constexpr (!kOrdinary) {
    const V moved = Sub(x, ref.shift);
    ExpParts<V> e = Exp<true, kSharp>(Max(ref.floor, moved), ref);  // in this order a NaN stays
    e.scale = IfThenElse(Lt(moved, ref.floor), V::Set(0), e.scale);
    return e;
  } else {
    const V t = MulAdd(x, ref.k.hi, ref.magic);
    const V n = Sub(t, ref.magic);
    const auto bits = BitsOf(t);
    const V step = Lookup8(kSharp ? Format::kSteps : Format::kRaised, bits);
    const V low = MulAdd(x, ref.k.lo, step);
    const V r = Add(MulSub(x, ref.k.hi, n), low);
    return {FromBits(ShiftLeft<Format::kShift>(bits)), Mul(r, Exp2Poly<kSharp>(r))};
  }
}
template <class V>
SOFTLANE_INLINE V Value(ExpParts<V> e) {
  return MulAddExact(e.z, e.scale, e.scale);
}

// A sum of exps, raised by 33/32, without that.
template <class W>
SOFTLANE_INLINE Double2<W> Lowered(Double2<W> x) {
  return Mul(x, Double2<W>{W::Set(kExp2LowerHi), W::Set(kExp2LowerLo)});
}

// ---- powers of two ------------------------------------------------------------------------------

// A power of two; its exponent is that of a normal double.
inline double PowerOfTwo(int exponent) {
  return BitCast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

// A factor b as mantissa * 2^exponent, |mantissa| in [1, 2), subnormal b too.
template <class W>
struct Decomposed {
  W mantissa, exponent;
};
template <class W>
inline Decomposed<W> Decompose(W b) {
  using I = decltype(BitsOf(b));
  const auto small = Lt(Abs(b), W::Set(0x1p-900));
  const W scaled = IfThenElse(small, Mul(b, W::Set(0x1p200)), b);
  const auto bits = BitsOf(scaled);
  const auto biased = And(ShiftRight<52>(bits), I::Set(0x7ff));
  const W exponent = Sub(FromBits(Add(biased, I::Set(0x4330000000000000))), W::Set(0x1p52 + 1023));
  const auto mantissa =
      Or(And(bits, I::Set(INT64_C(-0x7ff0000000000001))), I::Set(INT64_C(0x3ff0000000000000)));
  return {FromBits(mantissa), Sub(exponent, IfThenElseZero(small, W::Set(200)))};
}

// x * 2^exponent for |exponent| <= 2000, far outside a double's range, in two steps.
template <class W>
struct PowerScale {
  W first, second;
  explicit PowerScale(int exponent)
      : first(W::Set(PowerOfTwo(exponent / 2))),
        second(W::Set(PowerOfTwo(exponent - exponent / 2))) {}
  W operator()(W x) const { return Mul(Mul(x, first), second); }
};

// hi + lo times 2^-kLift, rounded once even where the result is subnormal: there hi is first rounded to
// the grid of the result, and lo decides the ties. Subnormal results are put together from their bits: arithmetic
// takes some processors 150 cycles for each vector that has one.
constexpr int kLift = 500;
template <class W>
SOFTLANE_CALL W ScaleDown(Double2<W> x) {
  const Double2<W> s = FastTwoSum(x.hi, x.lo);
  const W zero = W::Set(0), least_normal = W::Set(PowerOfTwo(kLift - 1022));
  const W size = Abs(s.hi);
  const auto normal = Or(Lt(least_normal, size), IsNaN(size));
  const auto negative = Lt(s.hi, zero);
  const W low = IfThenElse(negative, Sub(zero, s.lo), s.lo);
  // least_normal + size has the grid's spacing, 2^-1074 in units of 2^-kLift.
  const W rounded = Sub(Add(least_normal, size), least_normal);
  const W error = Sub(size, rounded);
  const W grid = W::Set(PowerOfTwo(kLift - 1000) * 0x1p-74);
  const W half = W::Set(PowerOfTwo(kLift - 1000) * 0x1p-75);
  const auto up = And(Eq(error, half), Lt(zero, low));
  const auto down = And(Eq(error, Sub(zero, half)), Lt(low, zero));
  const W r = Sub(Add(rounded, IfThenElseZero(up, grid)), IfThenElseZero(down, grid));
  // In the grid's spacing, from least_normal on: the number of steps is that of the result.
  using I = BitsVec<W>;
  const I steps = Sub(BitsOf(Add(least_normal, r)), BitsOf(least_normal));
  const W below = IfThenElse(negative, FromBits(Or(steps, I::Set(INT64_MIN))), FromBits(steps));
  const W whole = Mul(IfThenElse(normal, s.hi, zero), W::Set(PowerOfTwo(-kLift)));
  return IfThenElse(normal, whole, below);
}
// a / b rounded once, for an a that is 2^kLift away from the ends of the range.
template <class W>
SOFTLANE_CALL W Quotient(Double2<W> a, Double2<W> b) {
  const Double2<W> q = Div(a, b);
  const auto tiny = Lt(Abs(q.hi), W::Set(0x1p-960));
  const W plain = Add(q.hi, q.lo);
  if (!AnyTrue(tiny)) return plain;
  const W lift = W::Set(PowerOfTwo(kLift));
  const Double2<W> lifted = {Mul(a.hi, lift), Mul(a.lo, lift)};
  return IfThenElse(tiny, ScaleDown(Div(lifted, b)), plain);
}

// ---- log ----------------------------------------------------------------------------------------

// A positive normal u = 2^k·m, with `down` = 2^-k, and the m ≈ c that the tables know by `index`.
template <class W>
struct LogArgument {
  BitsVec<W> index;
  W k, down, m, inverse;  // 1/c, rounded
  SOFTLANE_INLINE explicit LogArgument(W u) {
    using I = BitsVec<W>;
    const auto rounded = Add(BitsOf(u), I::Set(int64_t{1} << 48));
    const auto biased = ShiftRight<52>(rounded);
    index = ShiftRight<49>(rounded);
    down = FromBits(ShiftLeft<52>(Sub(I::Set(2046), biased)));
    k = Sub(FromBits(Add(biased, I::Set(0x4330000000000000))), W::Set(0x1p52 + 1023));
    m = Mul(u, down);
    inverse = Lookup8(kLogInvC, index);
  }
  SOFTLANE_INLINE W Leading() const { return MulAdd(k, W::Set(kLn2Hi), Lookup8(kLogCHi, index)); }
  SOFTLANE_INLINE W Trailing() const { return MulAdd(k, W::Set(kLn2Lo), Lookup8(kLogCLo, index)); }
};
// log(1 + r) - r for a small r, by fdlibm's identity log1p(r) = r - (r²/2 - s*(r²/2 + R)), s = r/(2 + r).
template <class W>
SOFTLANE_INLINE W LogTail(W r) {
  const W s = Div(r, Add(W::Set(2), r));
  const W z = Mul(s, s);
  const W poly = Mul(z, Horner<0>(z, kLogPoly));
  const W half_square = Mul(W::Set(0.5), Mul(r, r));
  return Sub(Mul(s, Add(half_square, poly)), half_square);
}

// log(hi + lo) for a normal positive hi in double; relative error below 2^-61, also near 1, where hi
// and lo carry the difference. Method: u = 2^k * m, r = m * invc - 1 by table. NaN gives NaN.
template <class W>
SOFTLANE_CALL Double2<W> Log(Double2<W> u) {
  const LogArgument<W> a(u.hi);
  const Double2<W> p = TwoProd(a.m, a.inverse);
  const W r_hi = Sub(p.hi, W::Set(1));
  const Double2<W> r = FastTwoSum(r_hi, MulAdd(Mul(u.lo, a.down), a.inverse, p.lo));
  const Double2<W> sum = TwoSum(a.Leading(), r.hi);
  return FastTwoSum(sum.hi, Add(sum.lo, Add(a.Trailing(), Add(LogTail(r.hi), r.lo))));
}

// log(1 + x) for x >= 0.
template <class W>
inline Double2<W> Log1p(Double2<W> x) {
  Double2<W> u = TwoSum(W::Set(1), x.hi);
  u.lo = Add(u.lo, x.lo);
  return Log(u);
}
// The same in double alone, for results that will be floats: relative error below 2^-50.
template <class W>
SOFTLANE_CALL W Log1p(W x) {
  const Double2<W> u = TwoSum(W::Set(1), x);
  const LogArgument<W> a(u.hi);
  const W r = MulAdd(Mul(u.lo, a.down), a.inverse, MulSub(a.m, a.inverse, W::Set(1)));
  return Add(a.Leading(), Add(r, Add(LogTail(r), a.Trailing())));
}

// ---- elementary functions over arrays, for the tests of their accuracy ---------------------------

// Error bounds, measured: see tests/test_elementary.py.
template <class V>
struct Elementary {
  using Scalar = typename V::Scalar;
  using Format = ExpFormat<Scalar>;
  static constexpr bool kFloat = sizeof(Scalar) == 4;
  static constexpr Scalar kInfinity = std::numeric_limits<Scalar>::infinity();

  // exp(x) * 2^-sign(x)*64 as parts, and the factor that undoes the power of two.
  static ExpParts<V> Parts(V x, V* undo) {
    const V zero = V::Set(0);
    const auto negative = Lt(x, zero);
    const Scalar spare = 64;
    ExpReference<V> ref;
    ref.k = UnitFactor<V>();
    ref.shift = zero;
    ref.magic = Add(V::Set(Format::kMagic + Format::kBias),
                    IfThenElse(negative, V::Set(spare), V::Set(-spare)));
    ref.floor = V::Set(-(Format::kFloor + spare) * static_cast<Scalar>(kLn2DDHi));
    *undo = IfThenElse(negative, V::Set(static_cast<Scalar>(0x1p-64)),
                       V::Set(static_cast<Scalar>(0x1p64)));
    const V ceiling = V::Set((Format::kBias + 30) * static_cast<Scalar>(kLn2DDHi));
    return softlane::SOFTLANE_ISA::Exp<false, true>(IfThenElse(Lt(ceiling, x), ceiling, x), ref);
  }
  static V Exp(V x) {
    V undo;
    const ExpParts<V> e = Parts(x, &undo);
    return Mul(Value(e), undo);
  }
  static V Expm1(V x) {
    V undo;
    const ExpParts<V> e = Parts(x, &undo);
    const V one = Div(V::Set(1), undo);
    const V far = Mul(MulAddExact(e.z, e.scale, Sub(e.scale, one)), undo);
    // Near 0: x + x·log2(e)·(w(r) - ln 2), r = x·log2(e).
    const V r = Mul(x, V::Set(static_cast<Scalar>(kLog2EHi)));
    const V near = MulAdd(x, Mul(Mul(r, Exp2Tail(r)), V::Set(static_cast<Scalar>(kLog2EHi))), x);
    const V result = IfThenElse(Lt(Abs(x), V::Set(static_cast<Scalar>(0.1))), near, far);
    return IfThenElse(Eq(x, V::Set(0)), x, result);
  }

  // Log wants a normal argument below 2^1020.
  template <class W>
  static W LogWide(W x) {
    const auto small = Lt(x, W::Set(0x1p-1000)), large = Lt(W::Set(0x1p1000), x);
    const W up = IfThenElse(small, W::Set(0x1p100), IfThenElse(large, W::Set(0x1p-100), W::Set(1)));
    const W k = IfThenElse(small, W::Set(-100), IfThenElseZero(large, W::Set(100)));
    const Double2<W> log = softlane::SOFTLANE_ISA::Log(ToDouble2(Mul(x, up)));
    const Double2<W> all = Add(log, Double2<W>{Mul(k, W::Set(kLn2Hi)), Mul(k, W::Set(kLn2Lo))});
    return Specials(x, W::Set(0), Add(all.hi, all.lo));
  }
  template <class W>
  static W Log1pWide(W x) {
    const Double2<W> log = softlane::SOFTLANE_ISA::Log1p(ToDouble2(x));
    const auto large = Lt(W::Set(0x1p1000), x);
    const W r = Specials(x, W::Set(-1), Add(log.hi, log.lo));
    return IfThenElse(large, LogWide(x), IfThenElse(Eq(x, W::Set(0)), x, r));
  }
  // -inf at the pole, NaN beyond it, inf at inf, `inside` elsewhere.
  template <class W>
  static W Specials(W x, W pole, W inside) {
    const double inf = std::numeric_limits<double>::infinity();
    W r = IfThenElse(Eq(x, pole), W::Set(-inf), inside);
    r = IfThenElse(Eq(x, W::Set(inf)), x, r);
    return IfThenElse(Or(Lt(x, pole), IsNaN(x)), W::Set(inf - inf), r);
  }
};
