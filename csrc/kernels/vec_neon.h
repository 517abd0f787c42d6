// AArch64 NEON: 4 float or 2 double a register, masks of all ones or zeros in each lane.
#pragma once

#include <arm_neon.h>

struct NI {
  static constexpr int kLanes = 4;
  int32x4_t v;
  SOFTLANE_INLINE static NI Set(int32_t x) { return {vdupq_n_s32(x)}; }
};
struct NL {
  static constexpr int kLanes = 2;
  int64x2_t v;
  SOFTLANE_INLINE static NL Set(int64_t x) { return {vdupq_n_s64(x)}; }
};
struct MF {
  uint32x4_t v;
};
struct MD {
  uint64x2_t v;
};

struct NF {
  using Scalar = float;
  using Mask = MF;
  using Bits = NI;
  static constexpr int kLanes = 4;
  float32x4_t v;
  SOFTLANE_INLINE static NF Set(float x) { return {vdupq_n_f32(x)}; }
  SOFTLANE_INLINE static NF Load(const float* p) { return {vld1q_f32(p)}; }
  SOFTLANE_INLINE static NF Load(const Float16* p) { return {Widen(vld1_u16(&p->bits), p)}; }
  SOFTLANE_INLINE static NF Load(const BFloat16* p) { return {Widen(vld1_u16(&p->bits), p)}; }
  SOFTLANE_INLINE static NF LoadN(const float* p, int n, float fill) {
    if (n >= 4) return Load(p);
    float32x4_t x = vdupq_n_f32(fill);
    if (n > 0) x = vld1q_lane_f32(p, x, 0);
    if (n > 1) x = vld1q_lane_f32(p + 1, x, 1);
    if (n > 2) x = vld1q_lane_f32(p + 2, x, 2);
    return {x};
  }
  template <class Half>
  SOFTLANE_INLINE static NF LoadN(const Half* p, int n, float fill) {
    if (n >= 4) return Load(p);
    uint16x4_t h = vdup_n_u16(0);
    if (n > 0) h = vld1_lane_u16(&p[0].bits, h, 0);
    if (n > 1) h = vld1_lane_u16(&p[1].bits, h, 1);
    if (n > 2) h = vld1_lane_u16(&p[2].bits, h, 2);
    return {vbslq_f32(FirstN(n).v, Widen(h, p), vdupq_n_f32(fill))};
  }
  SOFTLANE_INLINE static MF FirstN(int n) {
    const int32x4_t lane = {0, 1, 2, 3};
    return {vcgtq_s32(vdupq_n_s32(n), lane)};
  }

  SOFTLANE_INLINE static float32x4_t Widen(uint16x4_t h, const Float16*) {
    return vcvt_f32_f16(vreinterpret_f16_u16(h));
  }
  SOFTLANE_INLINE static float32x4_t Widen(uint16x4_t h, const BFloat16*) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(h), 16));
  }
};

struct ND {
  using Scalar = double;
  using Mask = MD;
  using Bits = NL;
  static constexpr int kLanes = 2;
  float64x2_t v;
  SOFTLANE_INLINE static ND Set(double x) { return {vdupq_n_f64(x)}; }
  SOFTLANE_INLINE static ND Load(const double* p) { return {vld1q_f64(p)}; }
  SOFTLANE_INLINE static ND LoadN(const double* p, int n, double fill) {
    if (n >= 2) return Load(p);
    const float64x2_t x = vdupq_n_f64(fill);
    return {n > 0 ? vld1q_lane_f64(p, x, 0) : x};
  }
  SOFTLANE_INLINE static MD FirstN(int n) {
    const int64x2_t lane = {0, 1};
    return {vcgtq_s64(vdupq_n_s64(n), lane)};
  }
};

SOFTLANE_INLINE NF Add(NF a, NF b) { return {vaddq_f32(a.v, b.v)}; }
SOFTLANE_INLINE ND Add(ND a, ND b) { return {vaddq_f64(a.v, b.v)}; }
SOFTLANE_INLINE NF Sub(NF a, NF b) { return {vsubq_f32(a.v, b.v)}; }
SOFTLANE_INLINE ND Sub(ND a, ND b) { return {vsubq_f64(a.v, b.v)}; }
SOFTLANE_INLINE NF Mul(NF a, NF b) { return {vmulq_f32(a.v, b.v)}; }
SOFTLANE_INLINE ND Mul(ND a, ND b) { return {vmulq_f64(a.v, b.v)}; }
SOFTLANE_INLINE NF Div(NF a, NF b) { return {vdivq_f32(a.v, b.v)}; }
SOFTLANE_INLINE ND Div(ND a, ND b) { return {vdivq_f64(a.v, b.v)}; }
SOFTLANE_INLINE NF MulAdd(NF a, NF b, NF c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
SOFTLANE_INLINE ND MulAdd(ND a, ND b, ND c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
SOFTLANE_INLINE NF NegMulAdd(NF a, NF b, NF c) { return {vfmsq_f32(c.v, a.v, b.v)}; }
SOFTLANE_INLINE ND NegMulAdd(ND a, ND b, ND c) { return {vfmsq_f64(c.v, a.v, b.v)}; }
// The addend negated, not the result: an exact zero must be positive.
SOFTLANE_INLINE NF MulSub(NF a, NF b, NF c) { return {vfmaq_f32(vnegq_f32(c.v), a.v, b.v)}; }
SOFTLANE_INLINE ND MulSub(ND a, ND b, ND c) { return {vfmaq_f64(vnegq_f64(c.v), a.v, b.v)}; }
SOFTLANE_INLINE NF MulAddExact(NF a, NF b, NF c) { return MulAdd(a, b, c); }
SOFTLANE_INLINE ND MulAddExact(ND a, ND b, ND c) { return MulAdd(a, b, c); }
// a > b ? a : b, which fmax is not where one is NaN.
SOFTLANE_INLINE NF Max(NF a, NF b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
SOFTLANE_INLINE NF Min(NF a, NF b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
SOFTLANE_INLINE ND Max(ND a, ND b) { return {vbslq_f64(vcgtq_f64(a.v, b.v), a.v, b.v)}; }
SOFTLANE_INLINE ND Min(ND a, ND b) { return {vbslq_f64(vcltq_f64(a.v, b.v), a.v, b.v)}; }
SOFTLANE_INLINE NF Abs(NF a) { return {vabsq_f32(a.v)}; }
SOFTLANE_INLINE ND Abs(ND a) { return {vabsq_f64(a.v)}; }

SOFTLANE_INLINE MF Lt(NF a, NF b) { return {vcltq_f32(a.v, b.v)}; }
SOFTLANE_INLINE MD Lt(ND a, ND b) { return {vcltq_f64(a.v, b.v)}; }
SOFTLANE_INLINE MF Eq(NF a, NF b) { return {vceqq_f32(a.v, b.v)}; }
SOFTLANE_INLINE MD Eq(ND a, ND b) { return {vceqq_f64(a.v, b.v)}; }
SOFTLANE_INLINE MF IsNaN(NF a) { return {vmvnq_u32(vceqq_f32(a.v, a.v))}; }
SOFTLANE_INLINE MD IsNaN(ND a) {
  return {vreinterpretq_u64_u32(vmvnq_u32(vreinterpretq_u32_u64(vceqq_f64(a.v, a.v))))};
}
SOFTLANE_INLINE MF And(MF a, MF b) { return {vandq_u32(a.v, b.v)}; }
SOFTLANE_INLINE MD And(MD a, MD b) { return {vandq_u64(a.v, b.v)}; }
SOFTLANE_INLINE MF Or(MF a, MF b) { return {vorrq_u32(a.v, b.v)}; }
SOFTLANE_INLINE MD Or(MD a, MD b) { return {vorrq_u64(a.v, b.v)}; }
SOFTLANE_INLINE MF AndNot(MF a, MF b) { return {vbicq_u32(b.v, a.v)}; }
SOFTLANE_INLINE MD AndNot(MD a, MD b) { return {vbicq_u64(b.v, a.v)}; }
SOFTLANE_INLINE uint32_t BitsOfMask(MF m) {
  const uint32x4_t bit = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(m.v, bit));
}
SOFTLANE_INLINE uint32_t BitsOfMask(MD m) {
  const uint64x2_t bit = {1, 2};
  return static_cast<uint32_t>(vaddvq_u64(vandq_u64(m.v, bit)));
}
SOFTLANE_INLINE bool AnyTrue(MF m) { return vmaxvq_u32(m.v) != 0; }
SOFTLANE_INLINE bool AnyTrue(MD m) { return vmaxvq_u32(vreinterpretq_u32_u64(m.v)) != 0; }
SOFTLANE_INLINE NF IfThenElse(MF m, NF a, NF b) { return {vbslq_f32(m.v, a.v, b.v)}; }
SOFTLANE_INLINE ND IfThenElse(MD m, ND a, ND b) { return {vbslq_f64(m.v, a.v, b.v)}; }
SOFTLANE_INLINE NF IfThenElseZero(MF m, NF a) {
  return {vreinterpretq_f32_u32(vandq_u32(m.v, vreinterpretq_u32_f32(a.v)))};
}
SOFTLANE_INLINE ND IfThenElseZero(MD m, ND a) {
  return {vreinterpretq_f64_u64(vandq_u64(m.v, vreinterpretq_u64_f64(a.v)))};
}

SOFTLANE_INLINE NI BitsOf(NF a) { return {vreinterpretq_s32_f32(a.v)}; }
SOFTLANE_INLINE NL BitsOf(ND a) { return {vreinterpretq_s64_f64(a.v)}; }
SOFTLANE_INLINE NF FromBits(NI a) { return {vreinterpretq_f32_s32(a.v)}; }
SOFTLANE_INLINE ND FromBits(NL a) { return {vreinterpretq_f64_s64(a.v)}; }
// Added as unsigned: GCC's signed intrinsics are a + b, undefined where that overflows.
SOFTLANE_INLINE uint32x4_t Bare(NI a) { return vreinterpretq_u32_s32(a.v); }
SOFTLANE_INLINE uint64x2_t Bare(NL a) { return vreinterpretq_u64_s64(a.v); }
SOFTLANE_INLINE NI Add(NI a, NI b) { return {vreinterpretq_s32_u32(vaddq_u32(Bare(a), Bare(b)))}; }
SOFTLANE_INLINE NL Add(NL a, NL b) { return {vreinterpretq_s64_u64(vaddq_u64(Bare(a), Bare(b)))}; }
SOFTLANE_INLINE NL Sub(NL a, NL b) { return {vreinterpretq_s64_u64(vsubq_u64(Bare(a), Bare(b)))}; }
SOFTLANE_INLINE NL And(NL a, NL b) { return {vandq_s64(a.v, b.v)}; }
SOFTLANE_INLINE NL Or(NL a, NL b) { return {vorrq_s64(a.v, b.v)}; }
template <int kBits>
SOFTLANE_INLINE NI ShiftLeft(NI a) {
  return {vshlq_n_s32(a.v, kBits)};
}
template <int kBits>
SOFTLANE_INLINE NL ShiftLeft(NL a) {
  return {vshlq_n_s64(a.v, kBits)};
}
template <int kBits>
SOFTLANE_INLINE NL ShiftRight(NL a) {
  return {vreinterpretq_s64_u64(vshrq_n_u64(Bare(a), kBits))};
}

// table[index & 7], by the numbers of the bytes wanted: the index times the element's size in each
// byte, plus the byte's place within the element.
SOFTLANE_INLINE uint8x16_t Lookup8Bytes(const uint8_t* table, NI index) {
  const uint8x16x2_t t = {{vld1q_u8(table), vld1q_u8(table + 16)}};
  const uint32x4_t i = vandq_u32(vreinterpretq_u32_s32(index.v), vdupq_n_u32(7));
  const uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100), i, vdupq_n_u32(0x04040404));
  return vqtbl2q_u8(t, vreinterpretq_u8_u32(bytes));
}
SOFTLANE_INLINE uint8x16_t Lookup8Bytes(const uint8_t* table, NL index) {
  const uint8x16x4_t t = {
      {vld1q_u8(table), vld1q_u8(table + 16), vld1q_u8(table + 32), vld1q_u8(table + 48)}};
  const uint32x4_t words = vreinterpretq_u32_s64(index.v);
  const uint32x4_t i = vandq_u32(vtrn1q_u32(words, words), vdupq_n_u32(7));
  const uint32x4_t place = {0x03020100, 0x07060504, 0x03020100, 0x07060504};
  const uint32x4_t bytes = vmlaq_u32(place, i, vdupq_n_u32(0x08080808));
  return vqtbl4q_u8(t, vreinterpretq_u8_u32(bytes));
}
SOFTLANE_INLINE NF Lookup8(const float* table, NI index) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(table);
  return {vreinterpretq_f32_u8(Lookup8Bytes(bytes, index))};
}
SOFTLANE_INLINE ND Lookup8(const double* table, NL index) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(table);
  return {vreinterpretq_f64_u8(Lookup8Bytes(bytes, index))};
}

// Lane i gets lane i ^ kDistance.
template <int kDistance>
SOFTLANE_INLINE NF SwapLanes(NF a) {
  if constexpr (kDistance == 2) return {vextq_f32(a.v, a.v, 2)};
  if constexpr (kDistance == 1) return {vrev64q_f32(a.v)};
}
template <int kDistance>
SOFTLANE_INLINE ND SwapLanes(ND a) {
  static_assert(kDistance == 1, "");
  return {vextq_f64(a.v, a.v, 1)};
}
template <int kDistance>
SOFTLANE_INLINE void Exchange(NF& a, NF& b) {
  if constexpr (kDistance == 2) {
    const float64x2_t x = vreinterpretq_f64_f32(a.v), y = vreinterpretq_f64_f32(b.v);
    a.v = vreinterpretq_f32_f64(vtrn1q_f64(x, y));
    b.v = vreinterpretq_f32_f64(vtrn2q_f64(x, y));
  } else {
    const float32x4_t x = a.v;
    a.v = vtrn1q_f32(x, b.v);
    b.v = vtrn2q_f32(x, b.v);
  }
}
template <int kDistance>
SOFTLANE_INLINE void Exchange(ND& a, ND& b) {
  static_assert(kDistance == 1, "two lanes");
  const float64x2_t x = a.v;
  a.v = vtrn1q_f64(x, b.v);
  b.v = vtrn2q_f64(x, b.v);
}
SOFTLANE_INLINE float FirstLane(NF a) { return vgetq_lane_f32(a.v, 0); }
SOFTLANE_INLINE double FirstLane(ND a) { return vgetq_lane_f64(a.v, 0); }

SOFTLANE_INLINE Pair<ND> Promote(NF a) {
  return {{vcvt_f64_f32(vget_low_f32(a.v))}, {vcvt_high_f64_f32(a.v)}};
}
SOFTLANE_INLINE NF Demote(Pair<ND> a) { return {vcvt_high_f32_f64(vcvt_f32_f64(a.a.v), a.b.v)}; }

SOFTLANE_INLINE void Store(NF a, float* p) { vst1q_f32(p, a.v); }
SOFTLANE_INLINE void Store(ND a, double* p) { vst1q_f64(p, a.v); }
SOFTLANE_INLINE void StoreN(NF a, float* p, int n) {
  if (n >= 4) return Store(a, p);
  if (n > 0) vst1q_lane_f32(p, a.v, 0);
  if (n > 1) vst1q_lane_f32(p + 1, a.v, 1);
  if (n > 2) vst1q_lane_f32(p + 2, a.v, 2);
}
SOFTLANE_INLINE void StoreN(ND a, double* p, int n) {
  if (n >= 2) return Store(a, p);
  if (n > 0) vst1q_lane_f64(p, a.v, 0);
}
SOFTLANE_INLINE uint16x4_t ToHalf(NF a, Float16*) {
  return vreinterpret_u16_f16(vcvt_f16_f32(a.v));
}
// Round to nearest even by integer arithmetic.
SOFTLANE_INLINE uint16x4_t ToHalf(NF a, BFloat16*) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(IsNaN(a).v, quiet, up), 16);
}
template <class Half>
SOFTLANE_INLINE void StoreHalvesN(uint16x4_t h, Half* p, int n) {
  if (n >= 4) return vst1_u16(&p->bits, h);
  if (n > 0) vst1_lane_u16(&p[0].bits, h, 0);
  if (n > 1) vst1_lane_u16(&p[1].bits, h, 1);
  if (n > 2) vst1_lane_u16(&p[2].bits, h, 2);
}
SOFTLANE_INLINE void Store(NF a, Float16* p) { vst1_u16(&p->bits, ToHalf(a, p)); }
SOFTLANE_INLINE void Store(NF a, BFloat16* p) { vst1_u16(&p->bits, ToHalf(a, p)); }
SOFTLANE_INLINE void StoreN(NF a, Float16* p, int n) { StoreHalvesN(ToHalf(a, p), p, n); }
SOFTLANE_INLINE void StoreN(NF a, BFloat16* p, int n) { StoreHalvesN(ToHalf(a, p), p, n); }

using F32 = Pair<Pair<NF>>;
using F64 = Pair<Pair<ND>>;
