// AVX-512 F/DQ/BW/VL: 16 float or 8 double a register, predicate masks.
#pragma once

#include <immintrin.h>

struct NF;
struct ND;
struct NI {
  static constexpr int kLanes = 16;
  __m512i v;
  SOFTLANE_INLINE static NI Set(int32_t x) { return {_mm512_set1_epi32(x)}; }
};
struct NL {
  static constexpr int kLanes = 8;
  __m512i v;
  SOFTLANE_INLINE static NL Set(int64_t x) { return {_mm512_set1_epi64(x)}; }
};
struct MF {
  __mmask16 v;
};
struct MD {
  __mmask8 v;
};

struct NF {
  using Scalar = float;
  using Mask = MF;
  using Bits = NI;
  static constexpr int kLanes = 16;
  __m512 v;
  SOFTLANE_INLINE static NF Set(float x) { return {_mm512_set1_ps(x)}; }
  SOFTLANE_INLINE static NF Load(const float* p) { return {_mm512_loadu_ps(p)}; }
  SOFTLANE_INLINE static NF Load(const Float16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  SOFTLANE_INLINE static NF Load(const BFloat16* p) {
    return {Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  SOFTLANE_INLINE static NF LoadN(const float* p, int n, float fill) {
    return {_mm512_mask_loadu_ps(_mm512_set1_ps(fill), First(n), p)};
  }
  SOFTLANE_INLINE static NF LoadN(const Float16* p, int n, float fill) {
    const __m256i h = _mm256_maskz_loadu_epi16(First(n), p);
    return {_mm512_mask_cvtph_ps(_mm512_set1_ps(fill), First(n), h)};
  }
  SOFTLANE_INLINE static NF LoadN(const BFloat16* p, int n, float fill) {
    const __m512 wide = Widen(_mm256_maskz_loadu_epi16(First(n), p));
    return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), First(n), wide)};
  }
  SOFTLANE_INLINE static MF FirstN(int n) { return {First(n)}; }

  SOFTLANE_INLINE static __mmask16 First(int n) {
    return n >= 16 ? static_cast<__mmask16>(0xffff)
                   : static_cast<__mmask16>(n <= 0 ? 0 : (1u << n) - 1u);
  }
  SOFTLANE_INLINE static __m512 Widen(__m256i h) {
    // Word i to the upper half of lane i.
    const __m512i to =
        _mm512_set_epi32(0xf0000, 0xe0000, 0xd0000, 0xc0000, 0xb0000, 0xa0000, 0x90000, 0x80000,
                         0x70000, 0x60000, 0x50000, 0x40000, 0x30000, 0x20000, 0x10000, 0);
    const __m512i words = _mm512_castsi256_si512(h);
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, to, words));
  }
};

struct ND {
  using Scalar = double;
  using Mask = MD;
  using Bits = NL;
  static constexpr int kLanes = 8;
  __m512d v;
  SOFTLANE_INLINE static ND Set(double x) { return {_mm512_set1_pd(x)}; }
  SOFTLANE_INLINE static ND Load(const double* p) { return {_mm512_loadu_pd(p)}; }
  SOFTLANE_INLINE static ND LoadN(const double* p, int n, double fill) {
    return {_mm512_mask_loadu_pd(_mm512_set1_pd(fill), First(n), p)};
  }
  SOFTLANE_INLINE static MD FirstN(int n) { return {First(n)}; }
  SOFTLANE_INLINE static __mmask8 First(int n) {
    return n >= 8 ? static_cast<__mmask8>(0xff)
                  : static_cast<__mmask8>(n <= 0 ? 0 : (1u << n) - 1u);
  }
};

SOFTLANE_INLINE NF Add(NF a, NF b) { return {_mm512_add_ps(a.v, b.v)}; }
SOFTLANE_INLINE ND Add(ND a, ND b) { return {_mm512_add_pd(a.v, b.v)}; }
SOFTLANE_INLINE NF Sub(NF a, NF b) { return {_mm512_sub_ps(a.v, b.v)}; }
SOFTLANE_INLINE ND Sub(ND a, ND b) { return {_mm512_sub_pd(a.v, b.v)}; }
SOFTLANE_INLINE NF Mul(NF a, NF b) { return {_mm512_mul_ps(a.v, b.v)}; }
SOFTLANE_INLINE ND Mul(ND a, ND b) { return {_mm512_mul_pd(a.v, b.v)}; }
SOFTLANE_INLINE NF Div(NF a, NF b) { return {_mm512_div_ps(a.v, b.v)}; }
SOFTLANE_INLINE ND Div(ND a, ND b) { return {_mm512_div_pd(a.v, b.v)}; }
SOFTLANE_INLINE NF MulAdd(NF a, NF b, NF c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
SOFTLANE_INLINE ND MulAdd(ND a, ND b, ND c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
SOFTLANE_INLINE NF NegMulAdd(NF a, NF b, NF c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
SOFTLANE_INLINE ND NegMulAdd(ND a, ND b, ND c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
SOFTLANE_INLINE NF MulSub(NF a, NF b, NF c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
SOFTLANE_INLINE ND MulSub(ND a, ND b, ND c) { return {_mm512_fmsub_pd(a.v, b.v, c.v)}; }
SOFTLANE_INLINE NF MulAddExact(NF a, NF b, NF c) { return MulAdd(a, b, c); }
SOFTLANE_INLINE ND MulAddExact(ND a, ND b, ND c) { return MulAdd(a, b, c); }
SOFTLANE_INLINE NF Max(NF a, NF b) { return {_mm512_max_ps(a.v, b.v)}; }
SOFTLANE_INLINE NF Min(NF a, NF b) { return {_mm512_min_ps(a.v, b.v)}; }
SOFTLANE_INLINE ND Max(ND a, ND b) { return {_mm512_max_pd(a.v, b.v)}; }
SOFTLANE_INLINE ND Min(ND a, ND b) { return {_mm512_min_pd(a.v, b.v)}; }
// As integers, for which there are more units.
SOFTLANE_INLINE NF MinPositive(NF a, NF b) {
  return {
      _mm512_castsi512_ps(_mm512_min_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
SOFTLANE_INLINE ND MinPositive(ND a, ND b) {
  return {
      _mm512_castsi512_pd(_mm512_min_epi64(_mm512_castpd_si512(a.v), _mm512_castpd_si512(b.v)))};
}
SOFTLANE_INLINE NF Abs(NF a) { return {_mm512_abs_ps(a.v)}; }
SOFTLANE_INLINE ND Abs(ND a) { return {_mm512_abs_pd(a.v)}; }

SOFTLANE_INLINE MF Lt(NF a, NF b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
SOFTLANE_INLINE MD Lt(ND a, ND b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ)}; }
SOFTLANE_INLINE MF Eq(NF a, NF b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
SOFTLANE_INLINE MD Eq(ND a, ND b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ)}; }
SOFTLANE_INLINE MF IsNaN(NF a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
SOFTLANE_INLINE MD IsNaN(ND a) { return {_mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q)}; }
SOFTLANE_INLINE MF And(MF a, MF b) { return {static_cast<__mmask16>(a.v & b.v)}; }
SOFTLANE_INLINE MD And(MD a, MD b) { return {static_cast<__mmask8>(a.v & b.v)}; }
SOFTLANE_INLINE MF Or(MF a, MF b) { return {static_cast<__mmask16>(a.v | b.v)}; }
SOFTLANE_INLINE MD Or(MD a, MD b) { return {static_cast<__mmask8>(a.v | b.v)}; }
SOFTLANE_INLINE MF AndNot(MF a, MF b) { return {static_cast<__mmask16>(~a.v & b.v)}; }
SOFTLANE_INLINE MD AndNot(MD a, MD b) { return {static_cast<__mmask8>(~a.v & b.v)}; }
SOFTLANE_INLINE uint32_t BitsOfMask(MF m) { return m.v; }
SOFTLANE_INLINE uint32_t BitsOfMask(MD m) { return m.v; }
SOFTLANE_INLINE bool AnyTrue(MF m) { return m.v != 0; }
SOFTLANE_INLINE bool AnyTrue(MD m) { return m.v != 0; }
SOFTLANE_INLINE NF IfThenElse(MF m, NF a, NF b) { return {_mm512_mask_mov_ps(b.v, m.v, a.v)}; }
SOFTLANE_INLINE ND IfThenElse(MD m, ND a, ND b) { return {_mm512_mask_mov_pd(b.v, m.v, a.v)}; }
// By integers: GCC merges the mask into the operation before it, which in exp is one of integers.
SOFTLANE_INLINE NF IfThenElseZero(MF m, NF a) {
  return {_mm512_castsi512_ps(_mm512_maskz_mov_epi32(m.v, _mm512_castps_si512(a.v)))};
}
SOFTLANE_INLINE ND IfThenElseZero(MD m, ND a) {
  return {_mm512_castsi512_pd(_mm512_maskz_mov_epi64(m.v, _mm512_castpd_si512(a.v)))};
}

SOFTLANE_INLINE NI BitsOf(NF a) { return {_mm512_castps_si512(a.v)}; }
SOFTLANE_INLINE NL BitsOf(ND a) { return {_mm512_castpd_si512(a.v)}; }
SOFTLANE_INLINE NF FromBits(NI a) { return {_mm512_castsi512_ps(a.v)}; }
SOFTLANE_INLINE ND FromBits(NL a) { return {_mm512_castsi512_pd(a.v)}; }
SOFTLANE_INLINE NI Add(NI a, NI b) { return {_mm512_add_epi32(a.v, b.v)}; }
SOFTLANE_INLINE NL Add(NL a, NL b) { return {_mm512_add_epi64(a.v, b.v)}; }
SOFTLANE_INLINE NL Sub(NL a, NL b) { return {_mm512_sub_epi64(a.v, b.v)}; }
SOFTLANE_INLINE NL And(NL a, NL b) { return {_mm512_and_si512(a.v, b.v)}; }
SOFTLANE_INLINE NL Or(NL a, NL b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int kBits>
SOFTLANE_INLINE NI ShiftLeft(NI a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
SOFTLANE_INLINE NL ShiftLeft(NL a) {
  return {_mm512_slli_epi64(a.v, kBits)};
}
template <int kBits>
SOFTLANE_INLINE NL ShiftRight(NL a) {
  return {_mm512_srli_epi64(a.v, kBits)};
}

// table[index & 7]
SOFTLANE_INLINE NF Lookup8(const float* table, NI index) {
  return {_mm512_permutexvar_ps(index.v, _mm512_broadcast_f32x8(_mm256_loadu_ps(table)))};
}
SOFTLANE_INLINE ND Lookup8(const double* table, NL index) {
  return {_mm512_permutexvar_pd(index.v, _mm512_loadu_pd(table))};
}

// Lane i gets lane i ^ kDistance.
template <int kDistance>
SOFTLANE_INLINE NF SwapLanes(NF a) {
  if constexpr (kDistance == 8) return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
  if constexpr (kDistance == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
  if constexpr (kDistance == 2) return {_mm512_permute_ps(a.v, 0x4e)};
  if constexpr (kDistance == 1) return {_mm512_permute_ps(a.v, 0xb1)};
}
template <int kDistance>
SOFTLANE_INLINE ND SwapLanes(ND a) {
  if constexpr (kDistance == 4) return {_mm512_shuffle_f64x2(a.v, a.v, 0x4e)};
  if constexpr (kDistance == 2) return {_mm512_shuffle_f64x2(a.v, a.v, 0xb1)};
  if constexpr (kDistance == 1) return {_mm512_permute_pd(a.v, 0x55)};
}
template <int kDistance>
SOFTLANE_INLINE void Exchange(NF& a, NF& b) {
  const __m512 x = a.v, y = b.v;
  if constexpr (kDistance == 8) {
    a.v = _mm512_shuffle_f32x4(x, y, 0x44);
    b.v = _mm512_shuffle_f32x4(x, y, 0xee);
  } else if constexpr (kDistance == 4) {
    a.v = _mm512_mask_shuffle_f32x4(x, 0xf0f0, y, y, 0xa0);
    b.v = _mm512_mask_shuffle_f32x4(y, 0x0f0f, x, x, 0xf5);
  } else if constexpr (kDistance == 2) {
    a.v = _mm512_shuffle_ps(x, y, 0x44);
    b.v = _mm512_shuffle_ps(x, y, 0xee);
  } else {
    a.v = _mm512_mask_moveldup_ps(x, 0xaaaa, y);
    b.v = _mm512_mask_movehdup_ps(y, 0x5555, x);
  }
}
template <int kDistance>
SOFTLANE_INLINE void Exchange(ND& a, ND& b) {
  const __m512d x = a.v, y = b.v;
  if constexpr (kDistance == 4) {
    a.v = _mm512_shuffle_f64x2(x, y, 0x44);
    b.v = _mm512_shuffle_f64x2(x, y, 0xee);
  } else if constexpr (kDistance == 2) {
    a.v = _mm512_mask_shuffle_f64x2(x, 0xcc, y, y, 0xa0);
    b.v = _mm512_mask_shuffle_f64x2(y, 0x33, x, x, 0xf5);
  } else {
    a.v = _mm512_unpacklo_pd(x, y);
    b.v = _mm512_unpackhi_pd(x, y);
  }
}
SOFTLANE_INLINE float FirstLane(NF a) { return _mm512_cvtss_f32(a.v); }
SOFTLANE_INLINE double FirstLane(ND a) { return _mm512_cvtsd_f64(a.v); }

SOFTLANE_INLINE Pair<ND> Promote(NF a) {
  return {{_mm512_cvtps_pd(_mm512_castps512_ps256(a.v))},
          {_mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))}};
}
SOFTLANE_INLINE NF Demote(Pair<ND> a) {
  return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(a.a.v)), _mm512_cvtpd_ps(a.b.v),
                             1)};
}

// Even and odd lanes apart: moved up by 29 the bits of a positive float are those of a double, 2^-896 times it, which
// takes two operations less for 16 lanes than conversions do.
template <>
struct SumLanes16<NF> {
  static constexpr double kUnit = 0x1p-896;
  SOFTLANE_INLINE static Pair<ND> Positive(NF x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i even = _mm512_mul_epu32(bits, _mm512_set1_epi64(1 << 29));
    const __m512i upper = _mm512_and_si512(bits, _mm512_set1_epi64(INT64_C(-0x100000000)));
    return {{_mm512_castsi512_pd(even)}, {_mm512_castsi512_pd(_mm512_srli_epi64(upper, 3))}};
  }
  SOFTLANE_INLINE static Pair<ND> Short(NF x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    return {{_mm512_castsi512_pd(_mm512_slli_epi64(bits, 29))},
            {_mm512_castsi512_pd(_mm512_maskz_srli_epi32(0xaaaa, bits, 3))}};
  }
  SOFTLANE_INLINE static Pair<ND> Any(NF x) {
    const __m512i apart = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    return Promote(NF{_mm512_permutexvar_ps(apart, x.v)});
  }
  SOFTLANE_INLINE static Pair<ND> InOrder(Pair<ND> sum) {
    const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    const ND unit = ND::Set(1 / kUnit);
    return {Mul({_mm512_permutex2var_pd(sum.a.v, low, sum.b.v)}, unit),
            Mul({_mm512_permutex2var_pd(sum.a.v, high, sum.b.v)}, unit)};
  }
};

SOFTLANE_INLINE void Store(NF a, float* p) { _mm512_storeu_ps(p, a.v); }
SOFTLANE_INLINE void Store(ND a, double* p) { _mm512_storeu_pd(p, a.v); }
SOFTLANE_INLINE void StoreN(NF a, float* p, int n) { _mm512_mask_storeu_ps(p, NF::First(n), a.v); }
SOFTLANE_INLINE void StoreN(ND a, double* p, int n) { _mm512_mask_storeu_pd(p, ND::First(n), a.v); }
SOFTLANE_INLINE __m256i ToHalf(NF a, Float16*) {
  return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Round to nearest even by integer arithmetic (the bf16 instruction flushes subnormals).
SOFTLANE_INLINE __m256i ToHalf(NF a, BFloat16*) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i one = _mm512_set1_epi32(1), below = _mm512_set1_epi32(0x7fff);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  __m512i up = _mm512_add_epi32(bits, below);
  up = _mm512_mask_add_epi32(up, odd, up, one);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
  // The upper words.
  const __m512i from = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0x1f001d, 0x1b0019, 0x170015,
                                        0x130011, 0xf000d, 0xb0009, 0x70005, 0x30001);
  return _mm512_castsi512_si256(_mm512_permutexvar_epi16(from, rounded));
}
SOFTLANE_INLINE void Store(NF a, Float16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), ToHalf(a, p));
}
SOFTLANE_INLINE void Store(NF a, BFloat16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), ToHalf(a, p));
}
SOFTLANE_INLINE void StoreN(NF a, Float16* p, int n) {
  _mm256_mask_storeu_epi16(p, NF::First(n), ToHalf(a, p));
}
SOFTLANE_INLINE void StoreN(NF a, BFloat16* p, int n) {
  _mm256_mask_storeu_epi16(p, NF::First(n), ToHalf(a, p));
}

using F32 = NF;
using F64 = ND;
