// The virtual vectors as arrays, in plain C++: the fallback for hardware without fused multiply-add, and
// the oracle that the other backends' operations are tested against.
#pragma once

// A loop over lanes. Not unrolled: 16 copies of every operation of every kernel would be megabytes.
#if defined(__GNUC__) && !defined(__clang__)
#define SOFTLANE_EACH_LANE(n) _Pragma("GCC unroll 1") for (int i = 0; i < (n); ++i)
#else
#define SOFTLANE_EACH_LANE(n) for (int i = 0; i < (n); ++i)
#endif

template <class T, int kCount>
struct LaneArray {
  T v[kCount];
  template <class F>
  SOFTLANE_INLINE void Fill(F f) {
    SOFTLANE_EACH_LANE(kCount) { v[i] = f(i); }
  }
};
template <int kCount>
struct LaneMask : LaneArray<bool, kCount> {
  SOFTLANE_INLINE static LaneMask FirstN(int n) {
    LaneMask m;
    m.Fill([&](int i) { return i < n; });
    return m;
  }
};
using MF = LaneMask<16>;
using MD = LaneMask<8>;

template <class T, int kCount>
struct LaneInts : LaneArray<T, kCount> {
  static constexpr int kLanes = kCount;
  SOFTLANE_INLINE static LaneInts Set(T x) {
    LaneInts r;
    r.Fill([&](int) { return x; });
    return r;
  }
};
using NI = LaneInts<int32_t, 16>;
using NL = LaneInts<int64_t, 8>;

SOFTLANE_INLINE float Magnitude(float x) {
  return BitCast<float>(BitCast<uint32_t>(x) & UINT32_C(0x7fffffff));
}
SOFTLANE_INLINE double Magnitude(double x) {
  return BitCast<double>(BitCast<uint64_t>(x) & UINT64_C(0x7fffffffffffffff));
}

// half <-> float by integer arithmetic, round to nearest even.
SOFTLANE_INLINE float HalfToFloat(Float16 h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h.bits & 0x7fff) << 13;
  if (magnitude >= 0x0f800000u) return BitCast<float>(sign | magnitude | 0x7f800000u);
  // A multiplication by 2^112 moves the exponent and normalises subnormals, exactly.
  return BitCast<float>(sign | BitCast<uint32_t>(BitCast<float>(magnitude) * 0x1p112f));
}
SOFTLANE_INLINE float HalfToFloat(BFloat16 h) {
  return BitCast<float>(static_cast<uint32_t>(h.bits) << 16);
}
SOFTLANE_INLINE void FloatToHalf(float x, Float16* out) {
  const uint32_t bits = BitCast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    magnitude = 0x7e00u | ((magnitude >> 13) & 0x1ffu);  // NaN, quiet
  } else if (magnitude >= 0x477ff000u) {
    magnitude = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the value in units of 2^-24 in the low bits, rounded by the FPU.
    magnitude = BitCast<uint32_t>(BitCast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    magnitude += 0xfffu + ((magnitude >> 13) & 1u);
    magnitude = (magnitude - 0x38000000u) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | magnitude);
}
SOFTLANE_INLINE void FloatToHalf(float x, BFloat16* out) {
  const uint32_t bits = BitCast<uint32_t>(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  out->bits = static_cast<uint16_t>(rounded >> 16);
}

SOFTLANE_INLINE float HalfToFloat(float x) { return x; }
SOFTLANE_INLINE double HalfToFloat(double x) { return x; }
SOFTLANE_INLINE void FloatToHalf(float x, float* out) { *out = x; }
SOFTLANE_INLINE void FloatToHalf(double x, double* out) { *out = x; }

template <class T, int kCount, class Mask_, class Bits_>
struct LaneFloats : LaneArray<T, kCount> {
  using Scalar = T;
  using Mask = Mask_;
  using Bits = Bits_;
  static constexpr int kLanes = kCount;
  SOFTLANE_INLINE static LaneFloats Set(T x) {
    LaneFloats r;
    r.Fill([&](int) { return x; });
    return r;
  }
  template <class S>
  SOFTLANE_INLINE static LaneFloats Load(const S* p) {
    LaneFloats r;
    r.Fill([&](int i) { return HalfToFloat(p[i]); });
    return r;
  }
  template <class S>
  SOFTLANE_INLINE static LaneFloats LoadN(const S* p, int n, T fill) {
    LaneFloats r;
    r.Fill([&](int i) { return i < n ? HalfToFloat(p[i]) : fill; });
    return r;
  }
  SOFTLANE_INLINE static Mask FirstN(int n) { return Mask::FirstN(n); }
};
using NF = LaneFloats<float, 16, MF, NI>;
using ND = LaneFloats<double, 8, MD, NL>;

// a + b rounded to odd, for finite a + b: a second rounding, to fewer digits, then rounds as if it were
// the only one (Boldo, Melquiond: Emulation of a FMA and correctly rounded sums, 2008).
SOFTLANE_INLINE double AddToOdd(double a, double b) {
  const double sum = a + b;
  const double b_part = sum - a;
  const double lost = (a - (sum - b_part)) + (b - b_part);
  uint64_t bits = BitCast<uint64_t>(sum);
  const bool inexact = lost > 0 || lost < 0;  // not for NaN: an infinite sum stays
  if (inexact && (bits & 1) == 0) bits += (lost > 0) == (sum > 0) ? 1 : ~uint64_t{0};
  return BitCast<double>(bits);
}
// a*b + c with one rounding. float: the product is exact in double. double: Dekker's product; the
// plain formula where that would overflow or has no digits to lose. Calls: inlined for every lane of every
// vector they would make the library several times as large.
SOFTLANE_CALL float FusedMulAdd(float a, float b, float c) {
  const double p = static_cast<double>(a) * static_cast<double>(b);
  return static_cast<float>(AddToOdd(p, static_cast<double>(c)));
}
SOFTLANE_CALL double FusedMulAdd(double a, double b, double c) {
  const double p = a * b;
  const double limit = 0x1p900;
  const double size = Magnitude(a) > Magnitude(b) ? Magnitude(a) : Magnitude(b);
  if (!(size < limit) || !(Magnitude(p) < limit) || !(Magnitude(c) < limit)) return p + c;
  if (p == 0) return p + c;
  const double a_big = a * 134217729.0, b_big = b * 134217729.0;
  const double a_hi = a_big - (a_big - a), a_lo = a - a_hi;
  const double b_hi = b_big - (b_big - b), b_lo = b - b_hi;
  const double p_lo = ((a_hi * b_hi - p) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo;
  // p + p_lo + c as high + (mid + low), high the rounded sum's neighbour.
  const double low_sum = c + p_lo;
  const double low_part = low_sum - c;
  const double low = (c - (low_sum - low_part)) + (p_lo - low_part);
  const double high = p + low_sum;
  const double high_part = high - p;
  const double mid = (p - (high - high_part)) + (low_sum - high_part);
  return high + AddToOdd(mid, low);
}

SOFTLANE_INLINE float PlainMulAdd(float a, float b, float c) {
  return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) +
                            static_cast<double>(c));
}
SOFTLANE_INLINE double PlainMulAdd(double a, double b, double c) { return a * b + c; }

#define SOFTLANE_LANES_1(V, R, Op, expression)   \
  SOFTLANE_INLINE R Op(const V& a) {             \
    R r;                                         \
    r.Fill([&](int i) { return (expression); }); \
    return r;                                    \
  }
#define SOFTLANE_LANES_2(V, R, Op, expression)   \
  SOFTLANE_INLINE R Op(const V& a, const V& b) { \
    R r;                                         \
    r.Fill([&](int i) { return (expression); }); \
    return r;                                    \
  }
#define SOFTLANE_LANES_3(V, R, Op, expression)               \
  SOFTLANE_INLINE R Op(const V& a, const V& b, const V& c) { \
    R r;                                                     \
    r.Fill([&](int i) { return (expression); });             \
    return r;                                                \
  }
#define SOFTLANE_LANES_FLOATS(V, M)                                                                \
  SOFTLANE_LANES_2(V, V, Add, a.v[i] + b.v[i])                                                     \
  SOFTLANE_LANES_2(V, V, Sub, a.v[i] - b.v[i])                                                     \
  SOFTLANE_LANES_2(V, V, Mul, a.v[i] * b.v[i])                                                     \
  SOFTLANE_LANES_2(V, V, Div, a.v[i] / b.v[i])                                                     \
  /* MulAdd may round twice where nothing depends on it; the others do not. */                     \
  SOFTLANE_LANES_3(V, V, MulAdd, PlainMulAdd(a.v[i], b.v[i], c.v[i]))                              \
  SOFTLANE_LANES_3(V, V, MulAddExact, FusedMulAdd(a.v[i], b.v[i], c.v[i]))                         \
  SOFTLANE_LANES_3(V, V, NegMulAdd, FusedMulAdd(-a.v[i], b.v[i], c.v[i]))                          \
  SOFTLANE_LANES_3(V, V, MulSub, FusedMulAdd(a.v[i], b.v[i], -c.v[i]))                             \
  SOFTLANE_LANES_2(V, V, Max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])                                   \
  SOFTLANE_LANES_2(V, V, Min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])                                   \
  SOFTLANE_LANES_2(V, M, Lt, a.v[i] < b.v[i])                                                      \
  SOFTLANE_LANES_2(V, M, Eq, a.v[i] == b.v[i])                                                     \
  SOFTLANE_LANES_1(V, M, IsNaN, a.v[i] != a.v[i])                                                  \
  SOFTLANE_LANES_2(M, M, And, a.v[i] && b.v[i])                                                    \
  SOFTLANE_LANES_2(M, M, Or, a.v[i] || b.v[i])                                                     \
  SOFTLANE_LANES_2(M, M, AndNot, !a.v[i] && b.v[i])                                                \
  SOFTLANE_INLINE V IfThenElse(const M& m, const V& a, const V& b) {                               \
    V r;                                                                                           \
    r.Fill([&](int i) { return m.v[i] ? a.v[i] : b.v[i]; });                                       \
    return r;                                                                                      \
  }                                                                                                \
  SOFTLANE_INLINE V IfThenElseZero(const M& m, const V& a) { return IfThenElse(m, a, V::Set(0)); } \
  SOFTLANE_INLINE V::Scalar FirstLane(const V& a) { return a.v[0]; }
SOFTLANE_LANES_FLOATS(NF, MF)
SOFTLANE_LANES_FLOATS(ND, MD)
SOFTLANE_LANES_1(NF, NF, Abs, Magnitude(a.v[i]))
SOFTLANE_LANES_1(ND, ND, Abs, Magnitude(a.v[i]))

template <int kCount>
SOFTLANE_INLINE uint32_t BitsOfMask(const LaneMask<kCount>& m) {
  uint32_t bits = 0;
  SOFTLANE_EACH_LANE(kCount) { bits |= static_cast<uint32_t>(m.v[i]) << i; }
  return bits;
}
template <int kCount>
SOFTLANE_INLINE bool AnyTrue(const LaneMask<kCount>& m) {
  return BitsOfMask(m) != 0;
}

// Integer lanes wrap around, as the hardware's do.
SOFTLANE_INLINE int32_t Wrap(uint32_t x) { return static_cast<int32_t>(x); }
SOFTLANE_INLINE int64_t Wrap(uint64_t x) { return static_cast<int64_t>(x); }
SOFTLANE_INLINE uint32_t Bare(int32_t x) { return static_cast<uint32_t>(x); }
SOFTLANE_INLINE uint64_t Bare(int64_t x) { return static_cast<uint64_t>(x); }
SOFTLANE_LANES_1(NF, NI, BitsOf, BitCast<int32_t>(a.v[i]))
SOFTLANE_LANES_1(ND, NL, BitsOf, BitCast<int64_t>(a.v[i]))
SOFTLANE_LANES_1(NI, NF, FromBits, BitCast<float>(a.v[i]))
SOFTLANE_LANES_1(NL, ND, FromBits, BitCast<double>(a.v[i]))
SOFTLANE_LANES_2(NI, NI, Add, Wrap(Bare(a.v[i]) + Bare(b.v[i])))
SOFTLANE_LANES_2(NL, NL, Add, Wrap(Bare(a.v[i]) + Bare(b.v[i])))
SOFTLANE_LANES_2(NL, NL, Sub, Wrap(Bare(a.v[i]) - Bare(b.v[i])))
SOFTLANE_LANES_2(NL, NL, And, a.v[i] & b.v[i])
SOFTLANE_LANES_2(NL, NL, Or, a.v[i] | b.v[i])
template <int kBits>
SOFTLANE_LANES_1(NI, NI, ShiftLeft, Wrap(Bare(a.v[i]) << kBits))
template <int kBits>
SOFTLANE_LANES_1(NL, NL, ShiftLeft, Wrap(Bare(a.v[i]) << kBits))
template <int kBits>
SOFTLANE_LANES_1(NL, NL, ShiftRight, Wrap(Bare(a.v[i]) >> kBits))

// table[index & 7]
template <class V, class T, class I>
SOFTLANE_INLINE V LookupLanes(const T* table, const I& index) {
  V r;
  r.Fill([&](int i) { return table[index.v[i] & 7]; });
  return r;
}
SOFTLANE_INLINE NF Lookup8(const float* t, const NI& index) { return LookupLanes<NF>(t, index); }
SOFTLANE_INLINE ND Lookup8(const double* t, const NL& index) { return LookupLanes<ND>(t, index); }

template <int kDistance>
SOFTLANE_LANES_1(NF, NF, SwapLanes, a.v[i ^ kDistance])
template <int kDistance>
SOFTLANE_LANES_1(ND, ND, SwapLanes, a.v[i ^ kDistance])
template <int kDistance, class V>
SOFTLANE_INLINE void Exchange(V& a, V& b) {
  SOFTLANE_EACH_LANE(V::kLanes) {
    if ((i & kDistance) != 0) continue;
    const auto moved = a.v[i + kDistance];
    a.v[i + kDistance] = b.v[i];
    b.v[i] = moved;
  }
}

SOFTLANE_INLINE Pair<ND> Promote(const NF& a) {
  Pair<ND> r;
  SOFTLANE_EACH_LANE(ND::kLanes) {
    r.a.v[i] = static_cast<double>(a.v[i]);
    r.b.v[i] = static_cast<double>(a.v[i + ND::kLanes]);
  }
  return r;
}
SOFTLANE_INLINE NF Demote(const Pair<ND>& a) {
  NF r;
  SOFTLANE_EACH_LANE(ND::kLanes) {
    r.v[i] = static_cast<float>(a.a.v[i]);
    r.v[i + ND::kLanes] = static_cast<float>(a.b.v[i]);
  }
  return r;
}

template <class V, class T>
SOFTLANE_INLINE void StoreN(const V& a, T* p, int n) {
  const int count = n < V::kLanes ? n : V::kLanes;
  SOFTLANE_EACH_LANE(count) { FloatToHalf(a.v[i], p + i); }
}
SOFTLANE_INLINE void Store(const ND& a, double* p) { StoreN(a, p, ND::kLanes); }
template <class T>
SOFTLANE_INLINE void Store(const NF& a, T* p) {
  StoreN(a, p, NF::kLanes);
}

#undef SOFTLANE_LANES_FLOATS
#undef SOFTLANE_LANES_1
#undef SOFTLANE_LANES_2
#undef SOFTLANE_LANES_3

using F32 = NF;
using F64 = ND;
