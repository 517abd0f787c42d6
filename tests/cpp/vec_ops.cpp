// Runs every operation of a vec_<isa>.h over special and pseudo-random input and prints, per
// operation, a hash of the result's bits. Compiled once per instruction set with
// -DSOFTLANE_ISA=<isa> and that set's flags; the lines must be those of the generic build. No
// kernels here, only the vocabulary below them.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#define SOFTLANE_GUARD_PAGES 1
#endif

#define SOFTLANE_CAT_(a, b) a##b
#define SOFTLANE_CAT(a, b) SOFTLANE_CAT_(a, b)
#define SOFTLANE_IS_generic 1
#define SOFTLANE_IS_avx2 2
#define SOFTLANE_IS_avx512 3
#define SOFTLANE_IS_neon 4
#define SOFTLANE_BACKEND SOFTLANE_CAT(SOFTLANE_IS_, SOFTLANE_ISA)

#if SOFTLANE_BACKEND == SOFTLANE_IS_neon
#include <arm_neon.h>
#elif SOFTLANE_BACKEND != SOFTLANE_IS_generic
#include <immintrin.h>
#endif

namespace softlane {
namespace SOFTLANE_ISA {
namespace {

#include "kernels/pair-inl.h"
#if SOFTLANE_BACKEND == SOFTLANE_IS_avx2
#include "kernels/vec_avx2.h"
#elif SOFTLANE_BACKEND == SOFTLANE_IS_avx512
#include "kernels/vec_avx512.h"
#elif SOFTLANE_BACKEND == SOFTLANE_IS_neon
#include "kernels/vec_neon.h"
#else
#include "kernels/vec_generic.h"
#endif

static_assert(F32::kLanes == 16 && F64::kLanes == 8, "the virtual vectors' lengths");
constexpr bool kGeneric = SOFTLANE_BACKEND == SOFTLANE_IS_generic;

// ---- hashing ----

class Hash {
 public:
  void Byte(uint8_t x) { value_ = (value_ ^ x) * 0x100000001b3u; }
  template <class T>
  void Raw(const T& x) {
    uint8_t bytes[sizeof(T)];
    std::memcpy(bytes, &x, sizeof(T));
    for (const uint8_t b : bytes) Byte(b);
  }
  // A number; which NaN it is does not count.
  template <class T>
  void Number(T x) {
    Raw(x == x ? x : std::numeric_limits<T>::quiet_NaN());
  }
  void Line(const char* name, const char* type) const {
    std::printf("%s<%s> %016llx\n", name, type, static_cast<unsigned long long>(value_));
    std::fflush(stdout);  // a crash should show behind which line it came
  }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

template <class T>
const char* TypeName();
template <>
const char* TypeName<float>() {
  return "float";
}
template <>
const char* TypeName<double>() {
  return "double";
}
template <>
const char* TypeName<int32_t>() {
  return "int32";
}
template <>
const char* TypeName<int64_t>() {
  return "int64";
}
template <>
const char* TypeName<Float16>() {
  return "float16";
}
template <>
const char* TypeName<BFloat16>() {
  return "bfloat16";
}

// ---- input ----

template <class T, class Bits>
T FromWord(Bits bits) {
  static_assert(sizeof(T) == sizeof(Bits), "");
  T x;
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}

// splitmix64
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Word() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int Below(int n) { return static_cast<int>(Word() % static_cast<uint64_t>(n)); }

 private:
  uint64_t state_;
};

template <class T>
struct Format;
template <>
struct Format<float> {
  using Word = uint32_t;
  using Int = int32_t;
  static constexpr int kMantissa = 23;
  static constexpr int kBias = 127;
};
template <>
struct Format<double> {
  using Word = uint64_t;
  using Int = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr int kBias = 1023;
};

template <class T>
T AnyBits(Random& random) {
  return FromWord<T>(static_cast<typename Format<T>::Word>(random.Word() >> (64 - 8 * sizeof(T))));
}
// Either sign, an exponent of -spread to spread, `digits` significant bits at most.
template <class T>
T Moderate(Random& random, int spread, int digits) {
  using F = Format<T>;
  using Word = typename F::Word;
  const Word mantissa = static_cast<Word>(random.Word()) & ((Word{1} << F::kMantissa) - 1);
  const Word kept = mantissa >> (F::kMantissa + 1 - digits) << (F::kMantissa + 1 - digits);
  const Word exponent = static_cast<Word>(F::kBias - spread + random.Below(2 * spread + 1));
  const Word sign = static_cast<Word>(random.Word() & 1) << (8 * sizeof(T) - 1);
  return FromWord<T>(static_cast<Word>(sign | exponent << F::kMantissa | kept));
}

template <class T>
std::vector<T> Specials() {
  using Limits = std::numeric_limits<T>;
  using Word = typename Format<T>::Word;
  const T eps = Limits::epsilon();
  const T integers = 1 / eps;  // from here on all are integers, from twice that even ones
  std::vector<T> x = {0,
                      Limits::denorm_min(),
                      3 * Limits::denorm_min(),
                      Limits::min() / 2,
                      Limits::min() - Limits::denorm_min(),
                      Limits::min(),
                      Limits::min() + Limits::denorm_min(),
                      eps,
                      eps / 2,
                      T(0.1),
                      T(0.5),
                      1 - eps / 2,
                      1,
                      1 + eps,
                      1 + 2 * eps,
                      T(1.5),
                      2,
                      3,
                      T(10),
                      integers - 1,
                      integers + 1,
                      2 * integers - 1,
                      2 * integers,
                      T(65504),
                      T(65520),
                      Limits::max() / 2,
                      Limits::max(),
                      Limits::infinity(),
                      Limits::quiet_NaN()};
  const size_t positive = x.size();
  for (size_t i = 0; i < positive; ++i) x.push_back(-x[i]);
  // A NaN with a payload, of each sign.
  const Word payload = (Word{0x7ff} << (8 * sizeof(T) - 12)) | 0x1234567;
  x.push_back(FromWord<T>(static_cast<Word>(payload | Word{3} << (Format<T>::kMantissa - 1))));
  x.push_back(FromWord<T>(static_cast<Word>(payload | Word{0x801} << (8 * sizeof(T) - 12) |
                                            Word{1} << (Format<T>::kMantissa - 1))));
  return x;
}

template <class T>
bool Finite(T x) {
  return x - x == 0;
}

template <class T>
void Pad(std::vector<T>& x) {
  while (x.size() % 16 != 0) x.push_back(T());
}

template <class T>
std::vector<T> Singles() {
  std::vector<T> x = Specials<T>();
  Random random(1);
  for (int i = 0; i < 4096; ++i) {
    x.push_back(AnyBits<T>(random));
    x.push_back(Moderate<T>(random, 20, Format<T>::kMantissa + 1));
  }
  Pad(x);
  return x;
}

template <class T>
struct Columns {
  std::vector<T> a, b, c;
  struct Row {
    T a, b, c = T();
  };
  void Push(Row row) {
    a.push_back(row.a);
    b.push_back(row.b);
    c.push_back(row.c);
  }
  void PadAll() {
    Pad(a);
    Pad(b);
    Pad(c);
  }
};

template <class T>
Columns<T> Couples() {
  Columns<T> out;
  const std::vector<T> special = Specials<T>();
  for (const T a : special)
    for (const T b : special) out.Push({a, b});
  Random random(2);
  const int digits = Format<T>::kMantissa + 1;
  for (int i = 0; i < 8192; ++i) {
    // Braces: they order the draws, which a call's arguments do not.
    out.Push({AnyBits<T>(random), AnyBits<T>(random)});
    out.Push({Moderate<T>(random, 2, digits), Moderate<T>(random, 2, digits)});
    out.Push({Moderate<T>(random, 30, digits), Moderate<T>(random, 30, digits)});
  }
  out.PadAll();
  return out;
}

// For a*b + c: special values, and numbers of like size, so that the sum cancels and rounds.
template <class T>
Columns<T> Triples() {
  Columns<T> out;
  const std::vector<T> special = Specials<T>();
  for (const T a : special)
    for (const T b : special)
      for (const T c : special) out.Push({a, b, c});
  Random random(3);
  const int digits = Format<T>::kMantissa + 1;
  for (int i = 0; i < 8192; ++i) {
    out.Push({AnyBits<T>(random), AnyBits<T>(random), AnyBits<T>(random)});
    out.Push({Moderate<T>(random, 2, digits), Moderate<T>(random, 2, digits),
              Moderate<T>(random, 4, digits)});
    // The product exact.
    out.Push({Moderate<T>(random, 3, digits / 2), Moderate<T>(random, 3, digits / 2),
              Moderate<T>(random, 6, digits)});
  }
  out.PadAll();
  return out;
}

// Those of them on which the generic build, which has no fused instruction, has the same bits.
// float: it computes in double, and where that sum is inexact it may round twice. double: the
// product must be exact (MulAdd is not fused), nothing zero or infinite (the emulation of the
// others is not meant for these).
bool Unfusable(float a, float b, float c) {
  const double p = static_cast<double>(a) * static_cast<double>(b);
  const double sum = p + static_cast<double>(c);
  const double c_part = sum - p;
  const double lost = (p - (sum - c_part)) + (static_cast<double>(c) - c_part);
  return !Finite(sum) || lost == 0;
}
bool Unfusable(double a, double b, double c) {
  const auto digits_lost = [](double x) { return FromWord<uint64_t>(x) << 38 != 0; };
  const auto usual = [](double x) {
    const double size = x < 0 ? -x : x;
    return size > 0x1p-400 && size < 0x1p400;
  };
  return usual(a) && usual(b) && usual(c) && !digits_lost(a) && !digits_lost(b);
}
template <class T>
Columns<T> TriplesUnfused() {
  const Columns<T> all = Triples<T>();
  Columns<T> out;
  for (size_t i = 0; i < all.a.size(); ++i)
    if (Unfusable(all.a[i], all.b[i], all.c[i])) out.Push({all.a[i], all.b[i], all.c[i]});
  out.PadAll();
  return out;
}

// ---- running an operation over it ----

template <class V, class T>
void AddLanes(Hash& hash, V x, const T*, bool number) {
  typename V::Scalar lanes[V::kLanes];
  Store(x, lanes);
  for (const auto lane : lanes) {
    if (number) {
      hash.Number(lane);
    } else {
      hash.Raw(lane);
    }
  }
}
template <class V>
void AddNumbers(Hash& hash, V x) {
  AddLanes(hash, x, static_cast<const V*>(nullptr), true);
}
template <class V>
void AddBits(Hash& hash, V x) {
  AddLanes(hash, x, static_cast<const V*>(nullptr), false);
}

template <class V>
constexpr size_t kLaneCount = static_cast<size_t>(V::kLanes);

template <class V, class Op>
void Unary(const char* name, bool number, const std::vector<typename V::Scalar>& x, Op op) {
  Hash hash;
  for (size_t i = 0; i < x.size(); i += kLaneCount<V>) {
    const V y = op(V::Load(&x[i]));
    AddLanes(hash, y, &x[i], number);
  }
  hash.Line(name, TypeName<typename V::Scalar>());
}
template <class V, class Op>
void Ternary(const char* name, const Columns<typename V::Scalar>& x, Op op) {
  Hash hash;
  for (size_t i = 0; i < x.a.size(); i += kLaneCount<V>)
    AddNumbers(hash, op(V::Load(&x.a[i]), V::Load(&x.b[i]), V::Load(&x.c[i])));
  hash.Line(name, TypeName<typename V::Scalar>());
}
template <class V, class Op>
void Binary(const char* name, const Columns<typename V::Scalar>& x, Op op) {
  Ternary<V>(name, x, [op](V a, V b, V) { return op(a, b); });
}
template <class V, class Op>
void Compare(const char* name, const Columns<typename V::Scalar>& x, Op op) {
  Hash hash;
  for (size_t i = 0; i < x.a.size(); i += kLaneCount<V>)
    hash.Raw(MaskBits<V>::Of(op(V::Load(&x.a[i]), V::Load(&x.b[i]))));
  hash.Line(name, TypeName<typename V::Scalar>());
}
// Integers come from and go to the floating vectors' bits.
template <class V, class Op>
void Integers(const char* name, const Columns<typename V::Scalar>& x, Op op) {
  Hash hash;
  for (size_t i = 0; i < x.a.size(); i += kLaneCount<V>)
    AddBits(hash, FromBits(op(BitsOf(V::Load(&x.a[i])), BitsOf(V::Load(&x.b[i])))));
  hash.Line(name, TypeName<typename Format<typename V::Scalar>::Int>());
}

template <class V>
void Arithmetic() {
  using T = typename V::Scalar;
  const std::vector<T> singles = Singles<T>();
  const Columns<T> couples = Couples<T>();
  const Columns<T> triples = TriplesUnfused<T>();
  Unary<V>("Abs", false, singles, [](V a) { return Abs(a); });
  Binary<V>("Add", couples, [](V a, V b) { return Add(a, b); });
  Binary<V>("Sub", couples, [](V a, V b) { return Sub(a, b); });
  Binary<V>("Mul", couples, [](V a, V b) { return Mul(a, b); });
  Binary<V>("Div", couples, [](V a, V b) { return Div(a, b); });
  Binary<V>("Max", couples, [](V a, V b) { return Max(a, b); });
  Binary<V>("Min", couples, [](V a, V b) { return Min(a, b); });
  // Of numbers without a sign alone.
  const auto positive = [](V a) { return IfThenElse(IsNaN(a), V::Set(1), Abs(a)); };
  Binary<V>("MinPositive", couples,
            [=](V a, V b) { return MinPositive(positive(a), positive(b)); });
  Ternary<V>("MulAdd", triples, [](V a, V b, V c) { return MulAdd(a, b, c); });
  Ternary<V>("MulAddExact", triples, [](V a, V b, V c) { return MulAddExact(a, b, c); });
  Ternary<V>("NegMulAdd", triples, [](V a, V b, V c) { return NegMulAdd(a, b, c); });
  Ternary<V>("MulSub", triples, [](V a, V b, V c) { return MulSub(a, b, c); });
}

// Over all the triples, on which the sets with a fused instruction must agree to the bit; the
// generic build shows the C library's fma for them.
template <class V>
void Fused() {
  using T = typename V::Scalar;
  const Columns<T> x = Triples<T>();
  Hash add, exact, negated, sub;
  for (size_t i = 0; i < x.a.size(); i += kLaneCount<V>) {
    if (kGeneric) {
      for (size_t j = i; j < i + kLaneCount<V>; ++j) {
        add.Number(std::fma(x.a[j], x.b[j], x.c[j]));
        exact.Number(std::fma(x.a[j], x.b[j], x.c[j]));
        negated.Number(std::fma(-x.a[j], x.b[j], x.c[j]));
        sub.Number(std::fma(x.a[j], x.b[j], -x.c[j]));
      }
    } else {
      const V a = V::Load(&x.a[i]), b = V::Load(&x.b[i]), c = V::Load(&x.c[i]);
      AddNumbers(add, MulAdd(a, b, c));
      AddNumbers(exact, MulAddExact(a, b, c));
      AddNumbers(negated, NegMulAdd(a, b, c));
      AddNumbers(sub, MulSub(a, b, c));
    }
  }
  const char* type = sizeof(T) == 4 ? "float, fused" : "double, fused";
  add.Line("MulAdd", type);
  exact.Line("MulAddExact", type);
  negated.Line("NegMulAdd", type);
  sub.Line("MulSub", type);
}

template <class V>
void Masks() {
  using T = typename V::Scalar;
  const Columns<T> couples = Couples<T>();
  const V one = V::Set(1);
  Compare<V>("Lt", couples, [](V a, V b) { return Lt(a, b); });
  Compare<V>("Eq", couples, [](V a, V b) { return Eq(a, b); });
  Compare<V>("IsNaN", couples, [](V a, V) { return IsNaN(a); });
  Compare<V>("And", couples, [one](V a, V b) { return And(Lt(a, one), Lt(b, one)); });
  Compare<V>("Or", couples, [one](V a, V b) { return Or(Lt(a, one), Lt(b, one)); });
  Compare<V>("AndNot", couples, [one](V a, V b) { return AndNot(Lt(a, one), Lt(b, one)); });
  Hash choice, or_zero;
  for (size_t i = 0; i < couples.a.size(); i += kLaneCount<V>) {
    const V a = V::Load(&couples.a[i]), b = V::Load(&couples.b[i]);
    AddBits(choice, IfThenElse(Lt(a, b), a, b));
    AddBits(or_zero, IfThenElseZero(IsNaN(a), a));
    AddBits(or_zero, IfThenElseZero(Lt(a, b), b));
  }
  choice.Line("IfThenElse", TypeName<T>());
  or_zero.Line("IfThenElseZero", TypeName<T>());

  Hash first, any, bits;
  T lanes[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) lanes[i] = static_cast<T>(i);
  for (const int n : {-1000, 65537}) first.Raw(MaskBits<V>::Of(V::FirstN(n)));
  for (int n = -1; n <= V::kLanes + 1; ++n) {
    first.Raw(MaskBits<V>::Of(V::FirstN(n)));
    AddBits(first, IfThenElse(V::FirstN(n), one, V::Set(2)));
    any.Raw(AnyTrue(V::FirstN(n)));
    const auto only = Eq(V::Load(lanes), V::Set(static_cast<T>(n)));
    any.Raw(AnyTrue(only));
    bits.Raw(MaskBits<V>::Of(only));
  }
  first.Line("FirstN", TypeName<T>());
  any.Line("AnyTrue", TypeName<T>());
  bits.Line("BitsOfMask", TypeName<T>());
}

template <class V, int kDistance>
void Swap(Hash& hash) {
  typename V::Scalar lanes[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) lanes[i] = static_cast<typename V::Scalar>(i + 1);
  AddBits(hash, SwapLanes<kDistance>(V::Load(lanes)));
  if constexpr (kDistance > 1) Swap<V, kDistance / 2>(hash);
}

template <class V, int kDistance>
void Exchanges(Hash& hash) {
  typename V::Scalar low[V::kLanes], high[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) {
    low[i] = static_cast<typename V::Scalar>(i + 1);
    high[i] = static_cast<typename V::Scalar>(i + 101);
  }
  V a = V::Load(low), b = V::Load(high);
  Exchange<kDistance>(a, b);
  AddBits(hash, a);
  AddBits(hash, b);
  if constexpr (kDistance > 1) Exchanges<V, kDistance / 2>(hash);
}

template <class V>
void Moves() {
  using T = typename V::Scalar;
  using Int = typename Format<T>::Int;
  const std::vector<T> singles = Singles<T>();
  Unary<V>("Load", false, singles, [](V a) { return a; });
  Hash set, first, swap, exchange, bits, looked_up;
  Exchanges<V, V::kLanes / 2>(exchange);
  exchange.Line("Exchange", TypeName<T>());
  Swap<V, V::kLanes / 2>(swap);
  swap.Line("SwapLanes", TypeName<T>());
  Random random(4);
  for (size_t i = 0; i < singles.size(); ++i) AddBits(set, V::Set(singles[i]));
  set.Line("Set", TypeName<T>());
  for (size_t i = 0; i < singles.size(); i += kLaneCount<V>)
    first.Raw(FirstLane(V::Load(&singles[i])));
  first.Line("FirstLane", TypeName<T>());
  for (int i = 0; i < 256; ++i) {
    T table[8], index[V::kLanes];
    for (T& x : table) x = AnyBits<T>(random);
    for (T& x : index) x = AnyBits<T>(random);
    const auto at = BitsOf(V::Load(index));
    AddBits(looked_up, Lookup8(table, at));
    Int whole;
    std::memcpy(&whole, table, sizeof(whole));
    AddBits(bits, FromBits(BitsVec<V>::Set(whole)));
    AddBits(bits, FromBits(at));
  }
  bits.Line("BitsOf", TypeName<T>());
  bits.Line("FromBits", TypeName<Int>());
  looked_up.Line("Lookup8", TypeName<T>());
}

void IntegerOperations() {
  using I = BitsVec<F32>;
  using L = BitsVec<F64>;
  const Columns<float> x = Couples<float>();
  const Columns<double> y = Couples<double>();
  Integers<F32>("Add", x, [](I a, I b) { return Add(a, b); });
  Integers<F32>("ShiftLeft", x, [](I a, I b) { return Add(ShiftLeft<1>(a), ShiftLeft<23>(b)); });
  Integers<F64>("Add", y, [](L a, L b) { return Add(a, b); });
  Integers<F64>("Sub", y, [](L a, L b) { return Sub(a, b); });
  Integers<F64>("And", y, [](L a, L b) { return And(a, b); });
  Integers<F64>("Or", y, [](L a, L b) { return Or(a, b); });
  Integers<F64>("ShiftLeft", y, [](L a, L b) { return Add(ShiftLeft<3>(a), ShiftLeft<52>(b)); });
  Integers<F64>("ShiftRight", y, [](L a, L b) { return Add(ShiftRight<3>(a), ShiftRight<52>(b)); });
}

void Conversions() {
  static_assert(std::is_same<decltype(Promote(F32::Set(0))), Pair<F64>>::value, "");
  static_assert(std::is_same<decltype(Demote(Promote(F32::Set(0)))), F32>::value, "");
  Hash up, down;
  const std::vector<float> x = Singles<float>();
  std::vector<double> y = Singles<double>();
  // Every float of the list, the ties beside it, and what lies just off them.
  for (const float near : x) {
    if (!Finite(near)) continue;
    const uint32_t bits = FromWord<uint32_t>(near);
    const double here = static_cast<double>(near);
    const double next = static_cast<double>(FromWord<float>(bits + 1));  // away from zero
    const double tie = here + (Finite(next) ? (next - here) / 2 : here > 0 ? 0x1p103 : -0x1p103);
    const uint64_t tie_bits = FromWord<uint64_t>(tie);
    y.push_back(here);
    y.push_back(tie);
    y.push_back(FromWord<double>(tie_bits + 1));
    y.push_back(tie == 0 ? tie : FromWord<double>(tie_bits - 1));
  }
  Pad(y);
  for (size_t i = 0; i < x.size(); i += 16) {
    const Pair<F64> wide = Promote(F32::Load(&x[i]));
    AddNumbers(up, wide.a);
    AddNumbers(up, wide.b);
  }
  for (size_t i = 0; i < y.size(); i += 16)
    AddNumbers(down, Demote(Pair<F64>{F64::Load(&y[i]), F64::Load(&y[i + 8])}));
  up.Line("Promote", "float");
  down.Line("Demote", "double");
}

void Sums() {
  using Lanes = SumLanes16<F32>;
  Hash positive, few_bits, any;
  const std::vector<float> x = Singles<float>();
  for (size_t i = 0; i < x.size(); i += 16) {
    float normal[16], rounded[16];
    for (size_t j = 0; j < 16; ++j) {
      const float size = std::fabs(x[i + j]);
      normal[j] = std::isnormal(size) ? size : 0;
      rounded[j] = FromWord<float>(FromWord<uint32_t>(normal[j]) & ~uint32_t{7});
    }
    const auto sum = Lanes::InOrder(Lanes::Positive(F32::Load(normal)));
    AddNumbers(positive, sum.a);
    AddNumbers(positive, sum.b);
    const auto rounded_sum = Lanes::InOrder(Lanes::Short(F32::Load(rounded)));
    AddNumbers(few_bits, rounded_sum.a);
    AddNumbers(few_bits, rounded_sum.b);
    const Pair<F64> unit = Pair<F64>::Set(Lanes::kUnit);
    const auto other = Lanes::InOrder(Mul(Lanes::Any(F32::Load(&x[i])), unit));
    AddNumbers(any, other.a);
    AddNumbers(any, other.b);
  }
  positive.Line("SumLanes16 Positive", "float");
  few_bits.Line("SumLanes16 Short", "float");
  any.Line("SumLanes16 Any", "float");
}

// ---- the half types ----

template <class Half>
void HalfLoad(bool number) {
  Hash hash;
  for (uint32_t i = 0; i < 65536; i += 16) {
    Half block[16];
    for (uint32_t j = 0; j < 16; ++j) block[j].bits = static_cast<uint16_t>(i + j);
    const F32 x = F32::Load(block);
    AddLanes(hash, x, block, number);
  }
  hash.Line("Load", TypeName<Half>());
}

template <class Half>
class HalfStores {
 public:
  void Push(float x) {
    block_[filled_++] = x;
    if (filled_ < 16) return;
    Half out[16];
    Store(F32::Load(block_), out);
    hash_.Raw(out);
    filled_ = 0;
  }
  void Line() {
    while (filled_ != 0) Push(0);
    hash_.Line("Store", TypeName<Half>());
  }

 private:
  Hash hash_;
  float block_[16];
  int filled_ = 0;
};

// NaN's bits count here: it must come out quiet, of the same sign, with the payload's first bits.
void HalfStore() {
  HalfStores<Float16> f16;
  HalfStores<BFloat16> bf16;
  const auto push = [&](uint32_t bits) {
    f16.Push(FromWord<float>(bits));
    bf16.Push(FromWord<float>(bits));
  };
  // Each bfloat16 and what rounds to it, ties among that.
  for (uint32_t high = 0; high < 65536; ++high)
    for (const uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      push(high << 16 | low);
  // Each float16 and the ties: normal, half a unit of bit 13 away; subnormal, multiples of 2^-25.
  for (uint32_t sign = 0; sign < 2; ++sign) {
    for (uint32_t i = 0x38000000u; i <= 0x47800000u; i += 0x1000u)
      for (const uint32_t bits : {i - 1, i, i + 1}) push(sign << 31 | bits);
    for (int i = 0; i < 2050; ++i) {
      const uint32_t middle = FromWord<uint32_t>(static_cast<float>(i) * 0x1p-25f);
      push(sign << 31 | middle);
      push(sign << 31 | (middle + 1));
      if (i > 0) push(sign << 31 | (middle - 1));
    }
  }
  for (uint64_t bits = 0; bits < 0x100000000u; bits += 4099) push(static_cast<uint32_t>(bits));
  f16.Line();
  bf16.Line();
}

// ---- partial loads and stores ----

// Memory whose start and end are those of what may be touched: beyond lie inaccessible pages, or
// where there is no such thing, nothing in particular.
class Block {
 public:
  Block() {
#if SOFTLANE_GUARD_PAGES
    page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* base = mmap(nullptr, 3 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (base != MAP_FAILED) {
      start_ = static_cast<uint8_t*>(base) + page_;
      if (mprotect(start_, page_, PROT_READ | PROT_WRITE) == 0) return;
    }
#endif
    page_ = sizeof(spare_) / 2;
    start_ = spare_;
  }
  uint8_t* start() const { return start_; }
  uint8_t* end() const { return start_ + page_; }

 private:
  size_t page_;
  uint8_t* start_;
  alignas(64) uint8_t spare_[2048] = {};
};

template <class T>
T Element(int i) {
  return static_cast<T>(i % 2 ? -i - 1 : i + 1);
}
template <>
Float16 Element<Float16>(int i) {
  return {static_cast<uint16_t>(0x3c00 + 37 * i)};
}
template <>
BFloat16 Element<BFloat16>(int i) {
  return {static_cast<uint16_t>(0xbf80 + 37 * i)};
}

// n from -1 to one more than there are lanes, and far beyond both.
template <class V, class Run>
void EachCount(Run run) {
  run(-1000);
  for (int n = -1; n <= V::kLanes + 1; ++n) run(n);
  run(65537);
}

template <class V, class T>
void Partial() {
  const Block block;
  Hash loaded, stored;
  const auto touched = [](int n) { return n < 0 ? 0 : n > V::kLanes ? V::kLanes : n; };
  EachCount<V>([&](int n) {
    const int count = touched(n);
    for (const bool at_end : {false, true}) {
      uint8_t* p = at_end ? block.end() - static_cast<size_t>(count) * sizeof(T) : block.start();
      for (int i = 0; i < count; ++i) {
        const T x = Element<T>(i);
        std::memcpy(p + static_cast<size_t>(i) * sizeof(T), &x, sizeof(T));
      }
      const T* from = reinterpret_cast<const T*>(p);
      AddNumbers(loaded, V::LoadN(from, n, 7));
      AddNumbers(loaded, V::LoadN(from, n, -std::numeric_limits<float>::infinity()));
    }
  });
  T values[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) values[i] = Element<T>(i);
  const V x = V::Load(values);
  EachCount<V>([&](int n) {
    const size_t bytes = static_cast<size_t>(touched(n)) * sizeof(T);
    std::memset(block.start(), 0x5a, static_cast<size_t>(block.end() - block.start()));
    StoreN(x, reinterpret_cast<T*>(block.end() - bytes), n);
    for (const uint8_t* p = block.end() - 256; p < block.end(); ++p) stored.Byte(*p);
    // Amid other values, at an address that is a multiple of the element's size only.
    StoreN(x, reinterpret_cast<T*>(block.start() + 64 + sizeof(T)), n);
    for (const uint8_t* p = block.start(); p < block.start() + 256; ++p) stored.Byte(*p);
  });
  loaded.Line("LoadN", TypeName<T>());
  stored.Line("StoreN", TypeName<T>());
  if (std::is_same<T, typename V::Scalar>::value) {
    Hash whole;
    T out[V::kLanes + 2];
    std::memset(out, 0x5a, sizeof(out));
    Store(x, out + 1);
    whole.Raw(out);
    whole.Line("Store", TypeName<T>());
  }
}

int Main() {
  Moves<F32>();
  Moves<F64>();
  HalfLoad<Float16>(true);
  HalfLoad<BFloat16>(false);
  HalfStore();
  Partial<F32, float>();
  Partial<F32, Float16>();
  Partial<F32, BFloat16>();
  Partial<F64, double>();
  Arithmetic<F32>();
  Arithmetic<F64>();
  Fused<F32>();
  Fused<F64>();
  Masks<F32>();
  Masks<F64>();
  IntegerOperations();
  Conversions();
  Sums();
  return 0;
}

}  // namespace
}  // namespace SOFTLANE_ISA
}  // namespace softlane

int main() { return softlane::SOFTLANE_ISA::Main(); }
