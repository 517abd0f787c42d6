// Vectors of a fixed number of virtual lanes (16 float, 8 double) out of whatever a register holds:
// Pair<H> is two H side by side, and every operation of a vec_<isa>.h lifts to it. This is what gives
// all instruction sets the same lanes, and so the same order of summation.
#pragma once

// The building blocks of the inner loops must not become calls, which pass vectors through memory; the
// rare paths beside them must not grow the loops; and what is long and runs once for many elements is
// better called than copied into every kernel, of which there are many.
#if defined(_MSC_VER) && !defined(__clang__)
#define SOFTLANE_INLINE __forceinline
#define SOFTLANE_LAMBDA
#define SOFTLANE_RARE __declspec(noinline)
#define SOFTLANE_CALL __declspec(noinline)
#else
#if SOFTLANE_BACKEND == SOFTLANE_IS_generic
// Its lanes are loops in memory, and calls of them no slower; the library is a tenth smaller.
#define SOFTLANE_INLINE inline
#define SOFTLANE_LAMBDA
#else
#define SOFTLANE_INLINE inline __attribute__((always_inline))
#define SOFTLANE_LAMBDA __attribute__((always_inline))
#endif
#define SOFTLANE_RARE __attribute__((noinline, cold))
#define SOFTLANE_CALL __attribute__((noinline))
#endif

// For what is read soon, for what is read late, which may wait in the L2 cache, and for what is written soon.
#if defined(__GNUC__)
#define SOFTLANE_PREFETCH(p) __builtin_prefetch(p)
#define SOFTLANE_PREFETCH_FAR(p) __builtin_prefetch(p, 0, 2)
#define SOFTLANE_PREFETCH_WRITE(p) __builtin_prefetch(p, 1)
#else
#define SOFTLANE_PREFETCH(p) static_cast<void>(p)
#define SOFTLANE_PREFETCH_FAR(p) static_cast<void>(p)
#define SOFTLANE_PREFETCH_WRITE(p) static_cast<void>(p)
#endif

// Calls f(0) to f(kCount - 1), one after the other and not in a loop: an array of vectors that they index
// can stay in registers. The lanes of the generic set are loops themselves.
template <int kCount, class F>
SOFTLANE_INLINE void Unrolled(F f) {
#if SOFTLANE_BACKEND == SOFTLANE_IS_generic
  for (int i = 0; i < kCount; ++i) f(i);
#else
  if constexpr (kCount > 0) {
    Unrolled<kCount - 1>(f);
    f(kCount - 1);
  }
#endif
}

// A number's bytes as those of another type. The C library's memcpy is not here to be called.
template <class To, class From>
SOFTLANE_INLINE To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
#if defined(__GNUC__)
  __builtin_memcpy(&to, &from, sizeof(to));
#else
  const auto* source = reinterpret_cast<const unsigned char*>(&from);
  auto* target = reinterpret_cast<unsigned char*>(&to);
  for (size_t i = 0; i < sizeof(to); ++i) target[i] = source[i];
#endif
  return to;
}

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class H>
struct Pair;

template <class M>
struct PairMask {
  M a, b;
};

template <class H>
struct Pair {
  using Scalar = typename H::Scalar;
  using Mask = PairMask<typename H::Mask>;
  static constexpr int kHalf = H::kLanes;
  static constexpr int kLanes = 2 * kHalf;
  H a, b;
  SOFTLANE_INLINE static Pair Set(Scalar x) { return {H::Set(x), H::Set(x)}; }
  template <class T>
  SOFTLANE_INLINE static Pair Load(const T* p) {
    return {H::Load(p), H::Load(p + kHalf)};
  }
  template <class T>
  SOFTLANE_INLINE static Pair LoadN(const T* p, int n, Scalar fill) {
    return {H::LoadN(p, n, fill), n > kHalf ? H::LoadN(p + kHalf, n - kHalf, fill) : H::Set(fill)};
  }
  SOFTLANE_INLINE static Mask FirstN(int n) { return {H::FirstN(n), H::FirstN(n - kHalf)}; }
};

// Integer vectors lift without Load and Mask.
template <class I>
struct PairInt {
  static constexpr int kLanes = 2 * I::kLanes;
  I a, b;
  template <class T>
  SOFTLANE_INLINE static PairInt Set(T x) {
    return {I::Set(x), I::Set(x)};
  }
};

template <class V>
struct BitsType {
  using Type = typename V::Bits;
};
template <class H>
struct BitsType<Pair<H>> {
  using Type = PairInt<typename BitsType<H>::Type>;
};
template <class V>
using BitsVec = typename BitsType<V>::Type;

#define SOFTLANE_LIFT_1(Op)               \
  template <class H>                      \
  SOFTLANE_INLINE Pair<H> Op(Pair<H> x) { \
    return {Op(x.a), Op(x.b)};            \
  }
#define SOFTLANE_LIFT_2(Op)                          \
  template <class H>                                 \
  SOFTLANE_INLINE Pair<H> Op(Pair<H> x, Pair<H> y) { \
    return {Op(x.a, y.a), Op(x.b, y.b)};             \
  }
#define SOFTLANE_LIFT_3(Op)                                     \
  template <class H>                                            \
  SOFTLANE_INLINE Pair<H> Op(Pair<H> x, Pair<H> y, Pair<H> z) { \
    return {Op(x.a, y.a, z.a), Op(x.b, y.b, z.b)};              \
  }
#define SOFTLANE_LIFT_COMPARE(Op)                                       \
  template <class H>                                                    \
  SOFTLANE_INLINE PairMask<typename H::Mask> Op(Pair<H> x, Pair<H> y) { \
    return {Op(x.a, y.a), Op(x.b, y.b)};                                \
  }
#define SOFTLANE_LIFT_MASK(Op)                                   \
  template <class M>                                             \
  SOFTLANE_INLINE PairMask<M> Op(PairMask<M> x, PairMask<M> y) { \
    return {Op(x.a, y.a), Op(x.b, y.b)};                         \
  }
#define SOFTLANE_LIFT_INT(Op)                                 \
  template <class I>                                          \
  SOFTLANE_INLINE PairInt<I> Op(PairInt<I> x, PairInt<I> y) { \
    return {Op(x.a, y.a), Op(x.b, y.b)};                      \
  }
#define SOFTLANE_LIFT_SHIFT(Op)                 \
  template <int kBits, class I>                 \
  SOFTLANE_INLINE PairInt<I> Op(PairInt<I> x) { \
    return {Op<kBits>(x.a), Op<kBits>(x.b)};    \
  }

SOFTLANE_LIFT_1(Abs)
SOFTLANE_LIFT_2(Add)
SOFTLANE_LIFT_2(Sub)
SOFTLANE_LIFT_2(Mul)
SOFTLANE_LIFT_2(Div)
SOFTLANE_LIFT_2(Max)
SOFTLANE_LIFT_2(Min)
SOFTLANE_LIFT_3(MulAdd)
SOFTLANE_LIFT_3(MulAddExact)
SOFTLANE_LIFT_3(NegMulAdd)
SOFTLANE_LIFT_3(MulSub)
SOFTLANE_LIFT_COMPARE(Lt)
SOFTLANE_LIFT_COMPARE(Eq)
SOFTLANE_LIFT_MASK(And)
SOFTLANE_LIFT_MASK(Or)
SOFTLANE_LIFT_MASK(AndNot)
SOFTLANE_LIFT_INT(Add)
SOFTLANE_LIFT_INT(Sub)
SOFTLANE_LIFT_INT(And)
SOFTLANE_LIFT_INT(Or)
SOFTLANE_LIFT_SHIFT(ShiftLeft)
SOFTLANE_LIFT_SHIFT(ShiftRight)

#undef SOFTLANE_LIFT_1
#undef SOFTLANE_LIFT_2
#undef SOFTLANE_LIFT_3
#undef SOFTLANE_LIFT_COMPARE
#undef SOFTLANE_LIFT_MASK
#undef SOFTLANE_LIFT_INT
#undef SOFTLANE_LIFT_SHIFT

template <class H>
SOFTLANE_INLINE PairMask<typename H::Mask> IsNaN(Pair<H> x) {
  return {IsNaN(x.a), IsNaN(x.b)};
}
template <class H>
SOFTLANE_INLINE Pair<H> IfThenElse(PairMask<typename H::Mask> m, Pair<H> x, Pair<H> y) {
  return {IfThenElse(m.a, x.a, y.a), IfThenElse(m.b, x.b, y.b)};
}
template <class H>
SOFTLANE_INLINE Pair<H> IfThenElseZero(PairMask<typename H::Mask> m, Pair<H> x) {
  return {IfThenElseZero(m.a, x.a), IfThenElseZero(m.b, x.b)};
}
template <class M>
SOFTLANE_INLINE bool AnyTrue(PairMask<M> m) {
  return AnyTrue(Or(m.a, m.b));
}
template <class H>
SOFTLANE_INLINE PairInt<typename BitsType<H>::Type> BitsOf(Pair<H> x) {
  return {BitsOf(x.a), BitsOf(x.b)};
}
template <class I>
SOFTLANE_INLINE auto FromBits(PairInt<I> x) -> Pair<decltype(FromBits(x.a))> {
  return {FromBits(x.a), FromBits(x.b)};
}
template <class T, class I>
SOFTLANE_INLINE auto Lookup8(const T* table, PairInt<I> index)
    -> Pair<decltype(Lookup8(table, index.a))> {
  return {Lookup8(table, index.a), Lookup8(table, index.b)};
}

template <class H>
SOFTLANE_INLINE auto Promote(Pair<H> x) -> Pair<decltype(Promote(x.a))> {
  return {Promote(x.a), Promote(x.b)};
}
template <class H>
SOFTLANE_INLINE auto Demote(Pair<H> x) -> Pair<decltype(Demote(x.a))> {
  return {Demote(x.a), Demote(x.b)};
}

// How floats become addends of a running sum in double: in an order of lanes and in a unit (kUnit times the number)
// that InOrder undoes for the sum. Positive takes normal numbers and 0, Short those of them whose last three bits
// are 0, and they make no NaN of others; Any takes all, and leaves the unit to be multiplied in. A vec_<isa>.h may
// know a quicker way than conversion.
template <class V>
struct SumLanes16 {
  static constexpr double kUnit = 1;
  SOFTLANE_INLINE static auto Positive(V x) { return Promote(x); }
  SOFTLANE_INLINE static auto Short(V x) { return Promote(x); }
  SOFTLANE_INLINE static auto Any(V x) { return Promote(x); }
  template <class W>
  SOFTLANE_INLINE static W InOrder(W sum) {
    return sum;
  }
};

// Lane i gets lane i ^ kDistance.
template <int kDistance, class H>
SOFTLANE_INLINE Pair<H> SwapLanes(Pair<H> x) {
  if constexpr (kDistance == H::kLanes) {
    return {x.b, x.a};
  } else {
    return {SwapLanes<kDistance>(x.a), SwapLanes<kDistance>(x.b)};
  }
}
// A step of a transposition: a keeps its lanes i with i & kDistance == 0 and gets b's lane i - kDistance
// in the others; b gets a's lane i + kDistance in the first kind and keeps the others.
template <int kDistance, class H>
SOFTLANE_INLINE void Exchange(Pair<H>& a, Pair<H>& b) {
  if constexpr (kDistance == H::kLanes) {
    const H moved = a.b;
    a.b = b.a;
    b.a = moved;
  } else {
    Exchange<kDistance>(a.a, b.a);
    Exchange<kDistance>(a.b, b.b);
  }
}
template <class H>
SOFTLANE_INLINE typename H::Scalar FirstLane(Pair<H> x) {
  return FirstLane(x.a);
}

template <class H, class T>
SOFTLANE_INLINE void Store(Pair<H> x, T* p) {
  Store(x.a, p);
  Store(x.b, p + H::kLanes);
}
template <class H, class T>
SOFTLANE_INLINE void StoreN(Pair<H> x, T* p, int n) {
  StoreN(x.a, p, n);
  if (n > H::kLanes) StoreN(x.b, p + H::kLanes, n - H::kLanes);
}

// The smaller of two numbers if both are positive; if not, a, b or what compares as neither.
template <class V>
SOFTLANE_INLINE V MinPositive(V a, V b) {
  return Min(a, b);
}
// What was loaded, once: GCC reads memory again for each use, which costs more than a register where most vectors
// lie across two cache lines, as they do in rows of AVX-512's.
template <class V>
SOFTLANE_INLINE V InRegister(V x) {
#if defined(__GNUC__) && SOFTLANE_BACKEND == SOFTLANE_IS_avx512
  asm("" : "+v"(x.v));
#endif
  return x;
}

// The lanes of a mask as bits, lane 0 the lowest.
template <class V>
struct MaskBits {
  SOFTLANE_INLINE static uint32_t Of(typename V::Mask m) { return BitsOfMask(m); }
};
template <class H>
struct MaskBits<Pair<H>> {
  SOFTLANE_INLINE static uint32_t Of(PairMask<typename H::Mask> m) {
    return MaskBits<H>::Of(m.a) | MaskBits<H>::Of(m.b) << H::kLanes;
  }
};
// The number of the lowest bit that is set.
SOFTLANE_INLINE size_t FirstBit(uint32_t bits) {
#if defined(__GNUC__)
  return static_cast<size_t>(__builtin_ctz(bits));
#else
  size_t i = 0;
  while ((bits >> i & 1) == 0) ++i;
  return i;
#endif
}
// How many bits are set.
SOFTLANE_INLINE size_t CountBits(uint32_t bits) {
#if defined(__GNUC__) && SOFTLANE_BACKEND != SOFTLANE_IS_generic
  return static_cast<size_t>(__builtin_popcount(bits));
#else
  size_t count = 0;  // as good as none
  for (; bits != 0; bits &= bits - 1) ++count;
  return count;
#endif
}
