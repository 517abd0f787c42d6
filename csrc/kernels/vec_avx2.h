// AVX2, FMA and F16C: 8 float or 4 double a register, masks of all ones or zeros in each lane.
#pragma once

#include <immintrin.h>

struct NI {
  static constexpr int kLanes = 8;
  __m256i v;
  SOFTLANE_INLINE static NI Set(int32_t x) { return {_mm256_set1_epi32(x)}; }
};
struct NL {
  static constexpr int kLanes = 4;
  __m256i v;
  SOFTLANE_INLINE static NL Set(int64_t x) { return {_mm256_set1_epi64x(x)}; }
};
struct MF {
  __m256 v;
};
struct MD {
  __m256d v;
};

struct NF {
  using Scalar = float;
  using Mask = MF;
  using Bits = NI;
  static constexpr int kLanes = 8;
  __m256 v;
  SOFTLANE_INLINE static NF Set(float x) { return {_mm256_set1_ps(x)}; }
  SOFTLANE_INLINE static NF Load(const float* p) { return {_mm256_loadu_ps(p)}; }
  SOFTLANE_INLINE static NF Load(const Float16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  SOFTLANE_INLINE static NF Load(const BFloat16* p) {
    return {Widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  SOFTLANE_INLINE static NF LoadN(const float* p, int n, float fill) {
    const __m256i first = First(n);
    return {Select(first, _mm256_maskload_ps(p, first), fill)};
  }
  SOFTLANE_INLINE static NF LoadN(const Float16* p, int n, float fill) {
    return {Select(First(n), _mm256_cvtph_ps(LoadHalves(p, n)), fill)};
  }
  SOFTLANE_INLINE static NF LoadN(const BFloat16* p, int n, float fill) {
    return {Select(First(n), Widen(LoadHalves(p, n)), fill)};
  }
  SOFTLANE_INLINE static MF FirstN(int n) { return {_mm256_castsi256_ps(First(n))}; }

  SOFTLANE_INLINE static __m256i First(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  SOFTLANE_INLINE static __m256 Select(__m256i first, __m256 x, float fill) {
    return _mm256_blendv_ps(_mm256_set1_ps(fill), x, _mm256_castsi256_ps(first));
  }
  SOFTLANE_INLINE static __m256 Widen(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
  // The first n of 8 half elements: whole pairs by a masked load, the last one by itself (which
  // for an even n is there already). The lanes beyond n hold anything.
  template <class Half>
  SOFTLANE_INLINE static __m128i LoadHalves(const Half* p, int n) {
    if (n >= 8) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if (n <= 0) return _mm_setzero_si128();
    const __m128i pairs = _mm_cmpgt_epi32(_mm_set1_epi32(n >> 1), _mm_setr_epi32(0, 1, 2, 3));
    const __m128i whole = _mm_maskload_epi32(reinterpret_cast<const int*>(p), pairs);
    const __m128i last = _mm_set1_epi16(static_cast<short>(p[n - 1].bits));
    const __m128i at = _mm_cmpgt_epi16(_mm_set1_epi16(static_cast<short>(n - 1)),
                                       _mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm_blendv_epi8(last, whole, at);
  }
};

struct ND {
  using Scalar = double;
  using Mask = MD;
  using Bits = NL;
  static constexpr int kLanes = 4;
  __m256d v;
  SOFTLANE_INLINE static ND Set(double x) { return {_mm256_set1_pd(x)}; }
  SOFTLANE_INLINE static ND Load(const double* p) { return {_mm256_loadu_pd(p)}; }
  SOFTLANE_INLINE static ND LoadN(const double* p, int n, double fill) {
    const __m256i first = First(n);
    return {_mm256_blendv_pd(_mm256_set1_pd(fill), _mm256_maskload_pd(p, first),
                             _mm256_castsi256_pd(first))};
  }
  SOFTLANE_INLINE static MD FirstN(int n) { return {_mm256_castsi256_pd(First(n))}; }
  SOFTLANE_INLINE static __m256i First(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
};

SOFTLANE_INLINE NF Add(NF a, NF b) { return {_mm256_add_ps(a.v, b.v)}; }
SOFTLANE_INLINE ND Add(ND a, ND b) { return {_mm256_add_pd(a.v, b.v)}; }
SOFTLANE_INLINE NF Sub(NF a, NF b) { return {_mm256_sub_ps(a.v, b.v)}; }
SOFTLANE_INLINE ND Sub(ND a, ND b) { return {_mm256_sub_pd(a.v, b.v)}; }
SOFTLANE_INLINE NF Mul(NF a, NF b) { return {_mm256_mul_ps(a.v, b.v)}; }
SOFTLANE_INLINE ND Mul(ND a, ND b) { return {_mm256_mul_pd(a.v, b.v)}; }
SOFTLANE_INLINE NF Div(NF a, NF b) { return {_mm256_div_ps(a.v, b.v)}; }
SOFTLANE_INLINE ND Div(ND a, ND b) { return {_mm256_div_pd(a.v, b.v)}; }
SOFTLANE_INLINE NF MulAdd(NF a, NF b, NF c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
SOFTLANE_INLINE ND MulAdd(ND a, ND b, ND c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
SOFTLANE_INLINE NF NegMulAdd(NF a, NF b, NF c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
SOFTLANE_INLINE ND NegMulAdd(ND a, ND b, ND c) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }
SOFTLANE_INLINE NF MulSub(NF a, NF b, NF c) { return {_mm256_fmsub_ps(a.v, b.v, c.v)}; }
SOFTLANE_INLINE ND MulSub(ND a, ND b, ND c) { return {_mm256_fmsub_pd(a.v, b.v, c.v)}; }
SOFTLANE_INLINE NF MulAddExact(NF a, NF b, NF c) { return MulAdd(a, b, c); }
SOFTLANE_INLINE ND MulAddExact(ND a, ND b, ND c) { return MulAdd(a, b, c); }
SOFTLANE_INLINE NF Max(NF a, NF b) { return {_mm256_max_ps(a.v, b.v)}; }
SOFTLANE_INLINE NF Min(NF a, NF b) { return {_mm256_min_ps(a.v, b.v)}; }
SOFTLANE_INLINE ND Max(ND a, ND b) { return {_mm256_max_pd(a.v, b.v)}; }
SOFTLANE_INLINE ND Min(ND a, ND b) { return {_mm256_min_pd(a.v, b.v)}; }
SOFTLANE_INLINE NF Abs(NF a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
SOFTLANE_INLINE ND Abs(ND a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }

SOFTLANE_INLINE MF Lt(NF a, NF b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
SOFTLANE_INLINE MD Lt(ND a, ND b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)}; }
SOFTLANE_INLINE MF Eq(NF a, NF b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
SOFTLANE_INLINE MD Eq(ND a, ND b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)}; }
SOFTLANE_INLINE MF IsNaN(NF a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
SOFTLANE_INLINE MD IsNaN(ND a) { return {_mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q)}; }
SOFTLANE_INLINE MF And(MF a, MF b) { return {_mm256_and_ps(a.v, b.v)}; }
SOFTLANE_INLINE MD And(MD a, MD b) { return {_mm256_and_pd(a.v, b.v)}; }
SOFTLANE_INLINE MF Or(MF a, MF b) { return {_mm256_or_ps(a.v, b.v)}; }
SOFTLANE_INLINE MD Or(MD a, MD b) { return {_mm256_or_pd(a.v, b.v)}; }
SOFTLANE_INLINE MF AndNot(MF a, MF b) { return {_mm256_andnot_ps(a.v, b.v)}; }
SOFTLANE_INLINE MD AndNot(MD a, MD b) { return {_mm256_andnot_pd(a.v, b.v)}; }
SOFTLANE_INLINE uint32_t BitsOfMask(MF m) { return static_cast<uint32_t>(_mm256_movemask_ps(m.v)); }
SOFTLANE_INLINE uint32_t BitsOfMask(MD m) { return static_cast<uint32_t>(_mm256_movemask_pd(m.v)); }
SOFTLANE_INLINE bool AnyTrue(MF m) { return _mm256_movemask_ps(m.v) != 0; }
SOFTLANE_INLINE bool AnyTrue(MD m) { return _mm256_movemask_pd(m.v) != 0; }
SOFTLANE_INLINE NF IfThenElse(MF m, NF a, NF b) { return {_mm256_blendv_ps(b.v, a.v, m.v)}; }
SOFTLANE_INLINE ND IfThenElse(MD m, ND a, ND b) { return {_mm256_blendv_pd(b.v, a.v, m.v)}; }
SOFTLANE_INLINE NF IfThenElseZero(MF m, NF a) { return {_mm256_and_ps(m.v, a.v)}; }
SOFTLANE_INLINE ND IfThenElseZero(MD m, ND a) { return {_mm256_and_pd(m.v, a.v)}; }

SOFTLANE_INLINE NI BitsOf(NF a) { return {_mm256_castps_si256(a.v)}; }
SOFTLANE_INLINE NL BitsOf(ND a) { return {_mm256_castpd_si256(a.v)}; }
SOFTLANE_INLINE NF FromBits(NI a) { return {_mm256_castsi256_ps(a.v)}; }
SOFTLANE_INLINE ND FromBits(NL a) { return {_mm256_castsi256_pd(a.v)}; }
SOFTLANE_INLINE NI Add(NI a, NI b) { return {_mm256_add_epi32(a.v, b.v)}; }
SOFTLANE_INLINE NL Add(NL a, NL b) { return {_mm256_add_epi64(a.v, b.v)}; }
SOFTLANE_INLINE NL Sub(NL a, NL b) { return {_mm256_sub_epi64(a.v, b.v)}; }
SOFTLANE_INLINE NL And(NL a, NL b) { return {_mm256_and_si256(a.v, b.v)}; }
SOFTLANE_INLINE NL Or(NL a, NL b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int kBits>
SOFTLANE_INLINE NI ShiftLeft(NI a) {
  return {_mm256_slli_epi32(a.v, kBits)};
}
template <int kBits>
SOFTLANE_INLINE NL ShiftLeft(NL a) {
  return {_mm256_slli_epi64(a.v, kBits)};
}
template <int kBits>
SOFTLANE_INLINE NL ShiftRight(NL a) {
  return {_mm256_srli_epi64(a.v, kBits)};
}

// table[index & 7]
SOFTLANE_INLINE NF Lookup8(const float* table, NI index) {
  return {_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index.v)};
}
// 64 bits: the table's low and its high words apart (in a loop the compiler does that once), both
// looked up, then interleaved.
SOFTLANE_INLINE ND Lookup8(const double* table, NL index) {
  const __m256 t0 = _mm256_castpd_ps(_mm256_loadu_pd(table));
  const __m256 t1 = _mm256_castpd_ps(_mm256_loadu_pd(table + 4));
  const __m256 outer = _mm256_permute2f128_ps(t0, t1, 0x20);  // 0 1 4 5
  const __m256 inner = _mm256_permute2f128_ps(t0, t1, 0x31);  // 2 3 6 7
  const __m256 low = _mm256_shuffle_ps(outer, inner, 0x88);
  const __m256 high = _mm256_shuffle_ps(outer, inner, 0xdd);
  const __m256i both = _mm256_shuffle_epi32(index.v, 0xa0);
  return {_mm256_castps_pd(_mm256_blend_ps(_mm256_permutevar8x32_ps(low, index.v),
                                           _mm256_permutevar8x32_ps(high, both), 0xaa))};
}

// Lane i gets lane i ^ kDistance.
template <int kDistance>
SOFTLANE_INLINE NF SwapLanes(NF a) {
  if constexpr (kDistance == 4) return {_mm256_permute2f128_ps(a.v, a.v, 0x01)};
  if constexpr (kDistance == 2) return {_mm256_permute_ps(a.v, 0x4e)};
  if constexpr (kDistance == 1) return {_mm256_permute_ps(a.v, 0xb1)};
}
template <int kDistance>
SOFTLANE_INLINE ND SwapLanes(ND a) {
  if constexpr (kDistance == 2) return {_mm256_permute2f128_pd(a.v, a.v, 0x01)};
  if constexpr (kDistance == 1) return {_mm256_permute_pd(a.v, 0x5)};
}
template <int kDistance>
SOFTLANE_INLINE void Exchange(NF& a, NF& b) {
  const __m256 x = a.v, y = b.v;
  if constexpr (kDistance == 4) {
    a.v = _mm256_permute2f128_ps(x, y, 0x20);
    b.v = _mm256_permute2f128_ps(x, y, 0x31);
  } else if constexpr (kDistance == 2) {
    a.v = _mm256_shuffle_ps(x, y, 0x44);
    b.v = _mm256_shuffle_ps(x, y, 0xee);
  } else {
    a.v = _mm256_blend_ps(x, _mm256_moveldup_ps(y), 0xaa);
    b.v = _mm256_blend_ps(_mm256_movehdup_ps(x), y, 0xaa);
  }
}
template <int kDistance>
SOFTLANE_INLINE void Exchange(ND& a, ND& b) {
  const __m256d x = a.v, y = b.v;
  if constexpr (kDistance == 2) {
    a.v = _mm256_permute2f128_pd(x, y, 0x20);
    b.v = _mm256_permute2f128_pd(x, y, 0x31);
  } else {
    a.v = _mm256_unpacklo_pd(x, y);
    b.v = _mm256_unpackhi_pd(x, y);
  }
}
SOFTLANE_INLINE float FirstLane(NF a) { return _mm256_cvtss_f32(a.v); }
SOFTLANE_INLINE double FirstLane(ND a) { return _mm256_cvtsd_f64(a.v); }

SOFTLANE_INLINE Pair<ND> Promote(NF a) {
  return {{_mm256_cvtps_pd(_mm256_castps256_ps128(a.v))},
          {_mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1))}};
}
SOFTLANE_INLINE NF Demote(Pair<ND> a) {
  return {_mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(a.a.v)),
                               _mm256_cvtpd_ps(a.b.v), 1)};
}

SOFTLANE_INLINE void Store(NF a, float* p) { _mm256_storeu_ps(p, a.v); }
SOFTLANE_INLINE void Store(ND a, double* p) { _mm256_storeu_pd(p, a.v); }
// Masked stores take a dozen cycles and more on some processors.
SOFTLANE_INLINE void StoreN(NF a, float* p, int n) {
  if (n >= 8) return Store(a, p);
  if (n <= 0) return;
  __m128 x = _mm256_castps256_ps128(a.v);
  if (n & 4) {
    _mm_storeu_ps(p, x);
    x = _mm256_extractf128_ps(a.v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), x);
    x = _mm_movehl_ps(x, x);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, x);
}
SOFTLANE_INLINE void StoreN(ND a, double* p, int n) {
  if (n >= 4) return Store(a, p);
  if (n <= 0) return;
  __m128d x = _mm256_castpd256_pd128(a.v);
  if (n & 2) {
    _mm_storeu_pd(p, x);
    x = _mm256_extractf128_pd(a.v, 1);
    p += 2;
  }
  if (n & 1) _mm_store_sd(p, x);
}
SOFTLANE_INLINE __m128i ToHalf(NF a, Float16*) {
  return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Round to nearest even by integer arithmetic.
SOFTLANE_INLINE __m128i ToHalf(NF a, BFloat16*) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 rounded =
      _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), IsNaN(a).v);
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(rounded), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
template <class Half>
SOFTLANE_INLINE void StoreHalves(__m128i h, Half* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), h);
}
template <class Half>
SOFTLANE_INLINE void StoreHalves(__m128i h, Half* p, int n) {
  if (n >= 8) return StoreHalves(h, p);
  if (n <= 0) return;
  if (n & 4) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), h);
    h = _mm_unpackhi_epi64(h, h);
    p += 4;
  }
  int low = _mm_cvtsi128_si32(h);
  if (n & 2) {
    p[0].bits = static_cast<uint16_t>(low);
    p[1].bits = static_cast<uint16_t>(low >> 16);
    low = _mm_extract_epi32(h, 1);
    p += 2;
  }
  if (n & 1) p->bits = static_cast<uint16_t>(low);
}
SOFTLANE_INLINE void Store(NF a, Float16* p) { StoreHalves(ToHalf(a, p), p); }
SOFTLANE_INLINE void Store(NF a, BFloat16* p) { StoreHalves(ToHalf(a, p), p); }
SOFTLANE_INLINE void StoreN(NF a, Float16* p, int n) { StoreHalves(ToHalf(a, p), p, n); }
SOFTLANE_INLINE void StoreN(NF a, BFloat16* p, int n) { StoreHalves(ToHalf(a, p), p, n); }

using F32 = Pair<NF>;
using F64 = Pair<ND>;
