// One lane of plain C++, lifted to 16 and 8 lanes by pair-inl.h: the fallback for hardware without
// fused multiply-add, and the oracle that the other backends' operations are tested against.
#pragma once

struct NI {
  static constexpr int kLanes = 1;
  int32_t v;
  SOFTLANE_INLINE static NI Set(int32_t x) { return {x}; }
};
struct NL {
  static constexpr int kLanes = 1;
  int64_t v;
  SOFTLANE_INLINE static NL Set(int64_t x) { return {x}; }
};
struct MF {
  bool v;
};
struct MD {
  bool v;
};

template <class To, class From>
SOFTLANE_INLINE To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
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

struct NF {
  using Scalar = float;
  using Mask = MF;
  using Bits = NI;
  static constexpr int kLanes = 1;
  float v;
  SOFTLANE_INLINE static NF Set(float x) { return {x}; }
  SOFTLANE_INLINE static NF Load(const float* p) { return {*p}; }
  template <class Half>
  SOFTLANE_INLINE static NF Load(const Half* p) {
    return {HalfToFloat(*p)};
  }
  template <class T>
  SOFTLANE_INLINE static NF LoadN(const T* p, int n, float fill) {
    return n > 0 ? Load(p) : NF{fill};
  }
  SOFTLANE_INLINE static MF FirstN(int n) { return {n > 0}; }
};
struct ND {
  using Scalar = double;
  using Mask = MD;
  using Bits = NL;
  static constexpr int kLanes = 1;
  double v;
  SOFTLANE_INLINE static ND Set(double x) { return {x}; }
  SOFTLANE_INLINE static ND Load(const double* p) { return {*p}; }
  SOFTLANE_INLINE static ND LoadN(const double* p, int n, double fill) {
    return {n > 0 ? *p : fill};
  }
  SOFTLANE_INLINE static MD FirstN(int n) { return {n > 0}; }
};

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
// plain formula where that would overflow or has no digits to lose.
SOFTLANE_INLINE float FusedMulAdd(float a, float b, float c) {
  const double p = static_cast<double>(a) * static_cast<double>(b);
  return static_cast<float>(AddToOdd(p, static_cast<double>(c)));
}
SOFTLANE_INLINE double FusedMulAdd(double a, double b, double c) {
  const double p = a * b;
  const double limit = 0x1p900;
  const double size = __builtin_fabs(a) > __builtin_fabs(b) ? __builtin_fabs(a) : __builtin_fabs(b);
  if (!(size < limit) || !(__builtin_fabs(p) < limit) || !(__builtin_fabs(c) < limit)) return p + c;
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

SOFTLANE_INLINE NF Add(NF a, NF b) { return {a.v + b.v}; }
SOFTLANE_INLINE ND Add(ND a, ND b) { return {a.v + b.v}; }
SOFTLANE_INLINE NF Sub(NF a, NF b) { return {a.v - b.v}; }
SOFTLANE_INLINE ND Sub(ND a, ND b) { return {a.v - b.v}; }
SOFTLANE_INLINE NF Mul(NF a, NF b) { return {a.v * b.v}; }
SOFTLANE_INLINE ND Mul(ND a, ND b) { return {a.v * b.v}; }
SOFTLANE_INLINE NF Div(NF a, NF b) { return {a.v / b.v}; }
SOFTLANE_INLINE ND Div(ND a, ND b) { return {a.v / b.v}; }
// MulAdd may round twice where nothing depends on it; MulAddExact and the others do not.
SOFTLANE_INLINE NF MulAdd(NF a, NF b, NF c) {
  return {static_cast<float>(static_cast<double>(a.v) * static_cast<double>(b.v) +
                             static_cast<double>(c.v))};
}
SOFTLANE_INLINE ND MulAdd(ND a, ND b, ND c) { return {a.v * b.v + c.v}; }
SOFTLANE_INLINE NF MulAddExact(NF a, NF b, NF c) { return {FusedMulAdd(a.v, b.v, c.v)}; }
SOFTLANE_INLINE ND MulAddExact(ND a, ND b, ND c) { return {FusedMulAdd(a.v, b.v, c.v)}; }
SOFTLANE_INLINE NF NegMulAdd(NF a, NF b, NF c) { return {FusedMulAdd(-a.v, b.v, c.v)}; }
SOFTLANE_INLINE ND NegMulAdd(ND a, ND b, ND c) { return {FusedMulAdd(-a.v, b.v, c.v)}; }
SOFTLANE_INLINE NF MulSub(NF a, NF b, NF c) { return {FusedMulAdd(a.v, b.v, -c.v)}; }
SOFTLANE_INLINE ND MulSub(ND a, ND b, ND c) { return {FusedMulAdd(a.v, b.v, -c.v)}; }
SOFTLANE_INLINE NF Max(NF a, NF b) { return {a.v > b.v ? a.v : b.v}; }
SOFTLANE_INLINE NF Min(NF a, NF b) { return {a.v < b.v ? a.v : b.v}; }
SOFTLANE_INLINE ND Max(ND a, ND b) { return {a.v > b.v ? a.v : b.v}; }
SOFTLANE_INLINE ND Min(ND a, ND b) { return {a.v < b.v ? a.v : b.v}; }
SOFTLANE_INLINE NF Abs(NF a) { return {__builtin_fabsf(a.v)}; }
SOFTLANE_INLINE ND Abs(ND a) { return {__builtin_fabs(a.v)}; }

SOFTLANE_INLINE MF Lt(NF a, NF b) { return {a.v < b.v}; }
SOFTLANE_INLINE MD Lt(ND a, ND b) { return {a.v < b.v}; }
SOFTLANE_INLINE MF Eq(NF a, NF b) { return {a.v == b.v}; }
SOFTLANE_INLINE MD Eq(ND a, ND b) { return {a.v == b.v}; }
SOFTLANE_INLINE MF IsNaN(NF a) { return {a.v != a.v}; }
SOFTLANE_INLINE MD IsNaN(ND a) { return {a.v != a.v}; }
SOFTLANE_INLINE MF And(MF a, MF b) { return {a.v && b.v}; }
SOFTLANE_INLINE MD And(MD a, MD b) { return {a.v && b.v}; }
SOFTLANE_INLINE MF Or(MF a, MF b) { return {a.v || b.v}; }
SOFTLANE_INLINE MD Or(MD a, MD b) { return {a.v || b.v}; }
SOFTLANE_INLINE MF AndNot(MF a, MF b) { return {!a.v && b.v}; }
SOFTLANE_INLINE MD AndNot(MD a, MD b) { return {!a.v && b.v}; }
SOFTLANE_INLINE uint32_t BitsOfMask(MF m) { return m.v; }
SOFTLANE_INLINE uint32_t BitsOfMask(MD m) { return m.v; }
SOFTLANE_INLINE bool AnyTrue(MF m) { return m.v; }
SOFTLANE_INLINE bool AnyTrue(MD m) { return m.v; }
SOFTLANE_INLINE NF IfThenElse(MF m, NF a, NF b) { return {m.v ? a.v : b.v}; }
SOFTLANE_INLINE ND IfThenElse(MD m, ND a, ND b) { return {m.v ? a.v : b.v}; }
SOFTLANE_INLINE NF IfThenElseZero(MF m, NF a) { return {m.v ? a.v : 0.0f}; }
SOFTLANE_INLINE ND IfThenElseZero(MD m, ND a) { return {m.v ? a.v : 0.0}; }

// Integer lanes wrap around, as the hardware's do.
SOFTLANE_INLINE int32_t Wrap(uint32_t x) { return static_cast<int32_t>(x); }
SOFTLANE_INLINE int64_t Wrap(uint64_t x) { return static_cast<int64_t>(x); }
SOFTLANE_INLINE uint32_t Bare(int32_t x) { return static_cast<uint32_t>(x); }
SOFTLANE_INLINE uint64_t Bare(int64_t x) { return static_cast<uint64_t>(x); }
SOFTLANE_INLINE NI BitsOf(NF a) { return {BitCast<int32_t>(a.v)}; }
SOFTLANE_INLINE NL BitsOf(ND a) { return {BitCast<int64_t>(a.v)}; }
SOFTLANE_INLINE NF FromBits(NI a) { return {BitCast<float>(a.v)}; }
SOFTLANE_INLINE ND FromBits(NL a) { return {BitCast<double>(a.v)}; }
SOFTLANE_INLINE NI Add(NI a, NI b) { return {Wrap(Bare(a.v) + Bare(b.v))}; }
SOFTLANE_INLINE NL Add(NL a, NL b) { return {Wrap(Bare(a.v) + Bare(b.v))}; }
SOFTLANE_INLINE NL Sub(NL a, NL b) { return {Wrap(Bare(a.v) - Bare(b.v))}; }
SOFTLANE_INLINE NL And(NL a, NL b) { return {a.v & b.v}; }
SOFTLANE_INLINE NL Or(NL a, NL b) { return {a.v | b.v}; }
template <int kBits>
SOFTLANE_INLINE NI ShiftLeft(NI a) {
  return {Wrap(Bare(a.v) << kBits)};
}
template <int kBits>
SOFTLANE_INLINE NL ShiftLeft(NL a) {
  return {Wrap(Bare(a.v) << kBits)};
}
template <int kBits>
SOFTLANE_INLINE NL ShiftRight(NL a) {
  return {Wrap(Bare(a.v) >> kBits)};
}

// table[index & 7]
SOFTLANE_INLINE NF Lookup8(const float* table, NI index) { return {table[index.v & 7]}; }
SOFTLANE_INLINE NI Lookup8(const int32_t* table, NI index) { return {table[index.v & 7]}; }
SOFTLANE_INLINE ND Lookup8(const double* table, NL index) { return {table[index.v & 7]}; }
SOFTLANE_INLINE NL Lookup8(const int64_t* table, NL index) { return {table[index.v & 7]}; }

template <int kDistance>
SOFTLANE_INLINE NF SwapLanes(NF a) {
  return a;
}
template <int kDistance>
SOFTLANE_INLINE ND SwapLanes(ND a) {
  return a;
}
template <int kDistance, class V>
SOFTLANE_INLINE void Exchange(V&, V&) {}  // one lane: nothing to exchange within it
SOFTLANE_INLINE float FirstLane(NF a) { return a.v; }
SOFTLANE_INLINE double FirstLane(ND a) { return a.v; }

SOFTLANE_INLINE ND Promote(NF a) { return {static_cast<double>(a.v)}; }
SOFTLANE_INLINE NF Demote(ND a) { return {static_cast<float>(a.v)}; }

SOFTLANE_INLINE void Store(NF a, float* p) { *p = a.v; }
SOFTLANE_INLINE void Store(ND a, double* p) { *p = a.v; }
SOFTLANE_INLINE void Store(NF a, Float16* p) { FloatToHalf(a.v, p); }
SOFTLANE_INLINE void Store(NF a, BFloat16* p) { FloatToHalf(a.v, p); }
template <class V, class T>
SOFTLANE_INLINE void StoreN(V a, T* p, int n) {
  if (n > 0) Store(a, p);
}

using F32 = Pair<Pair<Pair<Pair<NF>>>>;
using F64 = Pair<Pair<Pair<ND>>>;
