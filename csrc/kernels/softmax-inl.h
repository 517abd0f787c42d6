// The row and column kernels of the softmax family. A row kernel sees one contiguous row (or its
// chunks), a column kernel a panel of adjacent columns, one a lane; both sum in the same virtual lanes
// and reduce in the same tree, so a row has the same bits wherever it lies.
#pragma once

template <class T>
struct VecOf {
  using Type = F32;
};
template <>
struct VecOf<double> {
  using Type = F64;
};
template <class T>
using Vec = typename VecOf<T>::Type;
using D16 = decltype(Promote(F32::Set(0)));

// The sums of a block of kBlock elements are kept in short accumulators and then moved to the long ones.
constexpr size_t kBlock = 128;

constexpr double kInf = std::numeric_limits<double>::infinity();

inline size_t Min(size_t a, size_t b) { return a < b ? a : b; }

// Whether long rows and columns of T have stripes; half types and generic lanes do without, for the library's size.
template <class T>
constexpr bool kHasStripes =
    SOFTLANE_BACKEND != SOFTLANE_IS_generic && sizeof(T) == sizeof(typename Vec<T>::Scalar);
template <class T>
inline bool HasStripes(size_t n) {
  return kHasStripes<T> && n > kOneStripe;
}
// The stripes of a row, or column, of n elements. A rest that is no more than a block belongs to the stripe before.
struct Stripes {
  size_t n, length, count;
  explicit Stripes(size_t all) : n(all), length(all), count(1) {
    constexpr size_t kUnits = kMostStripes * kStripe;
    if (n <= kOneStripe) return;
    length = (n + kUnits - 1) / kUnits * kStripe;
    count = (n - kBlock - 1) / length + 1;
  }
  size_t Start(size_t i) const { return i * length; }
  size_t Length(size_t i) const { return i + 1 < count ? length : n - Start(i); }
  // Whether one begins there, but for the first.
  bool Begins(size_t start) const {
    return start > 0 && start % length == 0 && start / length < count;
  }
};

// Element (or row) `i` of an array with a stride in bytes.
template <class T>
inline T* Step(const void* base, size_t i, ptrdiff_t stride) {
  const char* p = static_cast<const char*>(base) + static_cast<ptrdiff_t>(i) * stride;
  return reinterpret_cast<T*>(const_cast<char*>(p));
}

// The vector of doubles with a lane for each of V's.
template <class V>
struct WideOf;
template <>
struct WideOf<F32> {
  using Type = D16;
};
template <>
struct WideOf<F64> {
  using Type = F64;
};
template <class V>
using Wide = typename WideOf<V>::Type;

SOFTLANE_INLINE D16 Widen(F32 x) { return Promote(x); }
SOFTLANE_INLINE F64 Widen(F64 x) { return x; }
SOFTLANE_INLINE F32 Narrow(D16 x, F32*) { return Demote(x); }
SOFTLANE_INLINE F64 Narrow(F64 x, F64*) { return x; }
// The same for results that may be subnormal, which are put together from their bits (see ScaleDown).
SOFTLANE_CALL F32 NarrowSmall(D16 x) {
  using I = BitsVec<F32>;
  const D16 zero = D16::Set(0), size = Abs(x), magic = D16::Set(0x1p52);
  const auto subnormal = Lt(size, D16::Set(0x1p-126));
  // Rounded to the spacing of the least numbers, in steps of which 2^23 has the bits of 0.
  const D16 scaled = Mul(IfThenElse(subnormal, size, zero), D16::Set(0x1p149));
  const F32 steps = Add(Demote(Sub(Add(scaled, magic), magic)), F32::Set(0x1p23f));
  const I bits = Add(BitsOf(steps), I::Set(-0x4b000000));
  const F32 minus = Demote(IfThenElse(Lt(x, zero), D16::Set(1), zero));
  const F32 below =
      IfThenElse(Eq(minus, F32::Set(1)), FromBits(Add(bits, I::Set(INT32_MIN))), FromBits(bits));
  const F32 whole = Demote(IfThenElse(subnormal, zero, x));
  return IfThenElse(Eq(whole, F32::Set(0)), below, whole);
}

// ---- sums of exp --------------------------------------------------------------------------------

// What is known of all elements of a row, or a panel: they are near enough to the maximum for their scales to have
// exact sums; none is below the floor, and nothing to be subtracted; or nothing.
enum class Spread { kNarrow, kOrdinary, kAny };
template <Spread kValue>
struct Of {
  static constexpr Spread kSpread = kValue;
};
// The arithmetic of generic lanes takes far longer than what could be saved.
constexpr bool kHasSpreads = SOFTLANE_BACKEND != SOFTLANE_IS_generic;
// So few rows of doubles are not narrow that they are done as any others.
template <class V>
constexpr bool kHasOrdinary = kHasSpreads && sizeof(typename V::Scalar) == 4;
// How many scales of a column have to have an exact sum: all, or those of a lane in a block.
template <class V>
inline size_t SummedTogether(size_t n) {
  return n <= kBlock ? n : kBlock / V::kLanes;
}
// Calls f with the Spread of a panel of T with n elements a column, from `min` to the maximum of the reference.
template <class T, class V, class F>
SOFTLANE_INLINE auto BySpread(V min, const ExpReference<V>& ref, size_t n, F f) {
  // Panels of half types do without, for the size of the library.
  constexpr bool kHas = kHasSpreads && sizeof(T) == sizeof(typename V::Scalar);
  if constexpr (kHas) {
    if (AllNarrow(min, ref, SummedTogether<V>(n))) return f(Of<Spread::kNarrow>());
  }
  if constexpr (kHas && kHasOrdinary<V>) {
    if (AllOrdinary(min, ref)) return f(Of<Spread::kOrdinary>());
  }
  return f(Of<Spread::kAny>());
}

// A sum as it is kept from block to block: of floats in double lanes, which InOrder puts in order; of doubles with what
// it lost.
template <class V>
struct LongSumOf;
template <>
struct LongSumOf<F32> {
  using Type = D16;
};
template <>
struct LongSumOf<F64> {
  using Type = Double2<F64>;
};
template <class V>
using LongSum = typename LongSumOf<V>::Type;
SOFTLANE_INLINE D16 InSumLanes(F32 x) { return SumLanes16<F32>::Positive(x); }
SOFTLANE_INLINE F64 InSumLanes(F64 x) { return x; }
SOFTLANE_INLINE D16 InOrder(D16 sum) { return SumLanes16<F32>::InOrder(sum); }
SOFTLANE_INLINE Double2<F64> InOrder(Double2<F64> sum) { return sum; }
SOFTLANE_INLINE D16 ToLong(D16 x) { return x; }
SOFTLANE_INLINE Double2<F64> ToLong(F64 x) { return ToDouble2(x); }
SOFTLANE_INLINE D16 AddTo(D16 sum, D16 x) { return Add(sum, x); }
SOFTLANE_INLINE D16 AddTo(D16 sum, F32 x) {
  using Lanes = SumLanes16<F32>;
  return MulAdd(Lanes::Any(x), D16::Set(Lanes::kUnit), sum);
}
SOFTLANE_INLINE Double2<F64> AddTo(Double2<F64> sum, F64 x) {
  const Double2<F64> s = TwoSum(sum.hi, x);
  return {s.hi, Add(sum.lo, s.lo)};
}
// What the parts of a row come to, on the coarse grid (see ExpSum) and beside it.
template <class V>
struct FoldedParts {
  V coarse, part;
};
// The sum that is in order, with the parts of the last block.
SOFTLANE_INLINE Double2<D16> WithParts(D16 sum, FoldedParts<F32> x) {
  return ToDouble2(Add(Add(sum, Widen(x.coarse)), Widen(x.part)));
}
SOFTLANE_INLINE Double2<F64> WithParts(Double2<F64> sum, FoldedParts<F64> x) {
  return AddTo(AddTo(sum, x.coarse), x.part);
}

// The scales of a block: in their own format if that is exact, else floats in double lanes, doubles with their rounding
// errors, which go to `lost`. Where sums are exact both give the same bits.
template <class V, bool kExact>
struct ScaleSum {
  V sum = V::Set(0);
  SOFTLANE_INLINE void Add(V scale, V&) { sum = softlane::SOFTLANE_ISA::Add(sum, scale); }
  SOFTLANE_INLINE void AddCoarse(V x, V& lost) { Add(x, lost); }
  SOFTLANE_INLINE Wide<V> Total() const { return InSumLanes(sum); }
};
template <>
struct ScaleSum<F32, false> {
  D16 sum = D16::Set(0);
  F32 coarse = F32::Set(0);
  SOFTLANE_INLINE void Add(F32 scale, F32&) {
    sum = softlane::SOFTLANE_ISA::Add(sum, SumLanes16<F32>::Short(scale));
  }
  SOFTLANE_INLINE void AddCoarse(F32 x, F32&) { coarse = softlane::SOFTLANE_ISA::Add(coarse, x); }
  SOFTLANE_INLINE D16 Total() const { return AddTo(sum, coarse); }
};
template <>
struct ScaleSum<F64, false> {
  F64 sum = F64::Set(0);
  SOFTLANE_INLINE void Add(F64 scale, F64& lost) {
    const Double2<F64> s = FastTwoSum(Max(scale, sum), Min(scale, sum));  // a NaN stays
    sum = s.hi;
    lost = softlane::SOFTLANE_ISA::Add(lost, s.lo);
  }
  SOFTLANE_INLINE void AddCoarse(F64 x, F64& lost) { Add(x, lost); }
  SOFTLANE_INLINE F64 Total() const { return sum; }
};

// Σ scale*(1 + z): the scales, and the small z*scale (7.7 % of the whole at most). After every four roundings
// (kSettled elements of a row) what these come to on the coarse grid joins the scales, whose sum stays exact where
// it is. A rounding is 2^-4 u of the whole at most: relative error below 0.25 u whatever the length, but 1.1 u where
// all is too small for the grid, beside a maximum that is left out.
constexpr size_t kRoundings = 4;
template <class V>
constexpr size_t kSettled = kRoundings * V::kLanes;
template <class V, bool kExact>
struct ExpSum {
  LongSum<V> before{};  // of blocks
  ScaleSum<V, kExact> scales;
  V part = V::Set(0);
  SOFTLANE_INLINE void Add(ExpParts<V> e) {
    part = MulAdd(e.z, e.scale, part);
    scales.Add(e.scale, part);
  }
  // Due inside of blocks; once more at once changes nothing.
  SOFTLANE_INLINE void Settle() {
    const V coarse = Coarse(part);
    part = Sub(part, coarse);
    scales.AddCoarse(coarse, part);
  }
  // All but the part of the last block.
  SOFTLANE_INLINE LongSum<V> Sum() const { return AddTo(before, scales.Total()); }
  SOFTLANE_INLINE void EndBlock() {
    before = AddTo(Sum(), part);
    scales = {};
    part = V::Set(0);
  }
};

template <class W>
inline W AddLanes(W a, W b) {
  return Add(a, b);
}
template <class W>
inline Double2<W> AddLanes(Double2<W> a, Double2<W> b) {
  const Double2<W> s = TwoSum(a.hi, b.hi);
  return {s.hi, Add(s.lo, Add(a.lo, b.lo))};
}
template <int kDistance>
inline Double2<F64> SwapLanes(Double2<F64> x) {
  return {SwapLanes<kDistance>(x.hi), SwapLanes<kDistance>(x.lo)};
}
template <class W>
inline Double2<W> ToDouble2(Double2<W> x) {
  return x;
}

// What lanes are folded by.
struct MaxOf {
  template <class V>
  SOFTLANE_INLINE V operator()(V a, V b) const {
    return Max(a, b);
  }
};
struct MinOf {
  template <class V>
  SOFTLANE_INLINE V operator()(V a, V b) const {
    return Min(a, b);
  }
};
struct SumOf {
  template <class S>
  SOFTLANE_INLINE S operator()(S a, S b) const {
    return AddLanes(a, b);
  }
};
// The fold of all lanes, in every lane: i with i ^ kDistance, then with half of that, down to 1.
template <int kDistance, class Op, class S>
SOFTLANE_INLINE S FoldOne(S x) {
  x = Op()(x, SwapLanes<kDistance>(x));
  if constexpr (kDistance > 1) x = FoldOne<kDistance / 2, Op>(x);
  return x;
}
template <class S>
inline S SumLanes(S x) {
  return FoldOne<F64::kLanes / 2, SumOf>(x);
}
inline F64 SumLanes(D16 x) { return SumLanes(Add(x.a, x.b)); }
template <class V>
inline typename V::Scalar MaxLane(V x) {
  return FirstLane(FoldOne<V::kLanes / 2, MaxOf>(x));
}
template <class V>
inline typename V::Scalar MinLane(V x) {
  return FirstLane(FoldOne<V::kLanes / 2, MinOf>(x));
}

template <int kDistance, class W>
SOFTLANE_INLINE void Exchange(Double2<W>& a, Double2<W>& b) {
  Exchange<kDistance>(a.hi, b.hi);
  Exchange<kDistance>(a.lo, b.lo);
}
template <int kDistance, class Op, class S>
SOFTLANE_INLINE void FoldPairs(S* v, size_t rows) {
  const auto fold = [=](size_t r, size_t other) SOFTLANE_LAMBDA {
    S a = v[r], b = v[other];
    Exchange<kDistance>(a, b);
    v[r] = Op()(a, b);
  };
  if (rows == 2 * kDistance) {
    Unrolled<kDistance>([=](int r) SOFTLANE_LAMBDA {
      fold(static_cast<size_t>(r), static_cast<size_t>(r + kDistance));
    });
  } else {
    for (size_t r = 0; r < Min(rows, kDistance); ++r) {
      fold(r, r + kDistance < rows ? r + kDistance : r);
    }
  }
  if constexpr (kDistance > 1) FoldPairs<kDistance / 2, Op>(v, Min(rows, kDistance));
}
// The vectors of up to kLanes rows to one, with the fold of each in the row's lane: the same tree as that of
// FoldOne, some of whose steps serve several rows. Lanes without a row have copies of others.
template <class Op, int kLanes, class S>
SOFTLANE_CALL S FoldRows(S* v, size_t rows) {
  if (rows == 1) return FoldOne<kLanes / 2, Op>(v[0]);
  FoldPairs<kLanes / 2, Op>(v, rows);
  return v[0];
}

// How many levels of the fold of a row's parts come before these are settled: as many as the roundings that its lanes
// have left.
template <class V>
inline size_t LevelsBefore(size_t n) {
  return kRoundings - Min(kRoundings, (n + V::kLanes - 1) / V::kLanes);
}
// These levels of the fold of a short row's lanes; 0 in the lanes that are done with.
template <class V>
SOFTLANE_INLINE V FoldFirst(V part, size_t n) {
  constexpr int kLanes = V::kLanes;
  const size_t levels = LevelsBefore<V>(n);
  if (levels > 0) part = Add(part, SwapLanes<kLanes / 2>(part));
  if (levels > 1) part = Add(part, SwapLanes<kLanes / 4>(part));
  if (levels > 2) part = Add(part, SwapLanes<kLanes / 8>(part));
  return IfThenElseZero(V::FirstN(kLanes >> levels), part);
}
// The parts of rows of n elements, a row a lane.
template <class V>
SOFTLANE_CALL FoldedParts<V> FoldParts(V* parts, size_t rows, size_t n) {
  V coarse[V::kLanes];
  for (size_t r = 0; r < rows; ++r) {
    if (n < kSettled<V>) parts[r] = FoldFirst(parts[r], n);
    coarse[r] = Coarse(parts[r]);
    parts[r] = Sub(parts[r], coarse[r]);
  }
  return {FoldRows<SumOf, V::kLanes>(coarse, rows), FoldRows<SumOf, V::kLanes>(parts, rows)};
}

// ---- the statistics of rows ---------------------------------------------------------------------

// One row of V's elements for each lane of W. `others` is Σ exp without one maximum, `top` the
// maximum's own exp, both in units of 2^(N - kSpare).
template <class V, class W>
struct Stats {
  static constexpr bool kFloat = sizeof(typename V::Scalar) == 4;
  W max;
  Double2<W> others, top;
  // Counts the maximum's exp once more for each time that it is repeated.
  SOFTLANE_RARE void AddRepeats(W count) {
    const auto any = Lt(W::Set(0), count);
    const Double2<W> all = Add(others, Mul(top, ToDouble2(count)));
    others = {IfThenElse(any, all.hi, others.hi), IfThenElse(any, all.lo, others.lo)};
  }
  Double2<W> Sum() const { return Add(others, top); }
  // log(Σ exp(x - max)). For doubles, where it is tiny, it is others / top, subnormal perhaps and rounded
  // once.
  SOFTLANE_CALL Double2<W> LogSum() const {
    if constexpr (kFloat) {
      return ToDouble2(Log1p(Div(others.hi, top.hi)));
    } else {
      const Double2<W> ratio = Div(others, top);
      const Double2<W> log = Log1p(ratio);
      const auto tiny = Lt(ratio.hi, W::Set(0x1p-900));
      if (!AnyTrue(tiny)) return log;
      return {IfThenElse(tiny, Quotient(others, top), log.hi), IfThenElse(tiny, W::Set(0), log.lo)};
    }
  }
};

// scale * (1 + z) in double, or as a sum of two doubles.
inline Double2<D16> Widen(ExpParts<F32> e) {
  const D16 scale = Promote(e.scale);
  return ToDouble2(MulAdd(Promote(e.z), scale, scale));
}
template <class W>
inline Double2<W> ExactValue(ExpParts<W> e) {
  const Double2<W> p = TwoProd(e.z, e.scale);
  const Double2<W> s = FastTwoSum(e.scale, p.hi);
  return {s.hi, Add(s.lo, p.lo)};
}
inline Double2<F64> Widen(ExpParts<F64> e) { return ExactValue(e); }

// x·(hi + lo), for a lo far below hi.
template <class V>
SOFTLANE_INLINE V TimesPair(V x, V hi, V lo) {
  x = InRegister(x);
  return MulAddExact(x, hi, Mul(x, lo));
}

// What turns stored exps into results, p·coef: e times hi + lo. Where the result or e*lo could leave the
// normal range (e < small), but for an e of 0, the product is formed wider and rounded once.
template <class V>
struct Factor {
  using W = Wide<V>;
  using Format = ExpFormat<typename V::Scalar>;
  static constexpr bool kFloat = sizeof(typename V::Scalar) == 4;
  Double2<W> coef;  // hi + lo without the 2^-kSpare
  V hi, lo, small;

  // For an e of 0 or of at least `small`.
  SOFTLANE_INLINE V Plain(V e) const { return TimesPair(e, hi, lo); }
  SOFTLANE_INLINE V operator()(V e) const { return AnyTrue(IsRare(e)) ? WithRare(e) : Plain(e); }
  SOFTLANE_INLINE typename V::Mask IsRare(V e) const {
    return AndNot(Eq(e, V::Set(0)), Lt(e, small));
  }
  SOFTLANE_RARE V WithRare(V e) const {
    const auto rare = IsRare(e);
    return IfThenElse(rare, Small(IfThenElseZero(rare, e)), Plain(IfThenElse(rare, V::Set(0), e)));
  }
  V Small(V e) const {
    if constexpr (kFloat) {
      const W down = W::Set(PowerOfTwo(-static_cast<int>(Format::kSpare)));
      return NarrowSmall(Mul(Mul(Widen(e), down), coef.hi));
    } else {
      static_assert(Format::kSpare == kLift, "one power of two undoes both");
      // Far below the least number nothing is left, and no product is itself so small.
      e = IfThenElseZero(Lt(V::Set(0x1p-700), Abs(Mul(e, coef.hi))), e);
      const V p = Mul(e, coef.hi);
      return ScaleDown(Double2<V>{p, MulAdd(e, coef.lo, MulSub(e, coef.hi, p))});
    }
  }
};

// What a Factor is made of, one sample a lane.
template <class W>
struct FactorParts {
  Double2<W> coef;
  W hi, lo, small;
};

// A double rounded to V's format: for float Veltkamp's split at 24 digits.
template <class V, class W>
SOFTLANE_INLINE W RoundTo(W x) {
  if constexpr (sizeof(typename V::Scalar) == 8) {
    return x;
  } else {
    const W c = Mul(x, W::Set(0x1p29 + 1));
    return Sub(c, Sub(c, x));
  }
}

// The factor coef / sum, for a sum in units of 2^-kSpare; inverse_coef is 1 / coef, roughly.
template <class V, class W>
SOFTLANE_CALL FactorParts<W> MakeFactorParts(Double2<W> coef, W inverse_coef, Double2<W> sum) {
  using F = Factor<V>;
  const W down = W::Set(PowerOfTwo(-static_cast<int>(F::Format::kSpare)));
  Double2<W> ratio;
  if constexpr (F::kFloat) {
    ratio = ToDouble2(Div(coef.hi, Mul(sum.hi, down)));
  } else {
    ratio = Div(coef, Double2<W>{Mul(sum.hi, down), Mul(sum.lo, down)});
  }
  const W size = Abs(ratio.hi);
  const W scaled = Mul(ratio.hi, down);
  const W hi = RoundTo<V>(scaled);
  const W lo = Add(Sub(scaled, hi), Mul(ratio.lo, down));
  // e*lo keeps its digits for results above 2^-100 (2^-960). Where the factor itself is too small to be
  // split, or too large, every element is rare.
  const W bound = Mul(Mul(W::Set(F::kFloat ? 0x1p-100 : 0x1p-960), Abs(inverse_coef)), sum.hi);
  const auto splits = And(Lt(W::Set(F::kFloat ? 0x1p-32 : 0x1p-400), size),
                          Lt(size, W::Set(F::kFloat ? 0x1p120 : 0x1p1023)));
  // What is not split meets nothing but exps of 0, whose results are 0, though hi may be beyond V's range.
  const auto beyond = AndNot(splits, Lt(size, W::Set(kInf)));
  const W zero = W::Set(0);
  return {ratio, IfThenElse(beyond, zero, hi), IfThenElse(beyond, zero, lo),
          IfThenElse(Or(splits, IsNaN(size)), bound, W::Set(kInf))};
}
// The factors of a panel.
template <class V>
inline Factor<V> PanelFactor(const FactorParts<Wide<V>>& parts) {
  V* tag = nullptr;
  return {parts.coef, Narrow(parts.hi, tag), Narrow(parts.lo, tag), Narrow(parts.small, tag)};
}

// Samples in which the maximum's probability rounds to 1: it is 1 exactly there, whatever the rounding of
// its stored exp says. `stored` is that exp, `top` the same with all its digits. Gives `stored`, or a value
// that no exp has.
template <class V, class W>
inline W CertainExp(W stored, Double2<W> top, Double2<W> sum) {
  const double unit = PowerOfTwo(static_cast<int>(ExpFormat<typename V::Scalar>::kSpare));
  const W others = Add(Sub(sum.hi, top.hi), Sub(sum.lo, top.lo));
  const double half_ulp =
      0.25 * static_cast<double>(std::numeric_limits<typename V::Scalar>::epsilon());
  const auto near = And(Lt(sum.hi, W::Set(1.5 * unit)), Lt(others, W::Set(unit * half_ulp)));
  return IfThenElse(near, stored, W::Set(-1));
}

// log_softmax of one element: (x - max)/T - log_sum. Both terms have one sign, so the error is the
// three roundings; with a temperature the rounding of x - max is carried along.
template <class V>
struct LogMap {
  V max, inv_hi, inv_lo, log_sum, log_sum_lo;
  SOFTLANE_INLINE V Unit(V x) const { return Sub(Sub(x, max), log_sum); }
  // In quarters, as x - max may overflow where the quotient does not.
  SOFTLANE_INLINE V Scaled(V x) const {
    const V zero = V::Set(0), quarter = V::Set(static_cast<typename V::Scalar>(0.25));
    const Double2<V> d = TwoSum(Mul(x, quarter), Sub(zero, Mul(max, quarter)));
    const V small = Sub(MulAdd(d.hi, inv_lo, Mul(d.lo, inv_hi)), log_sum_lo);
    const V finite = IfThenElseZero(Eq(Sub(small, small), zero), small);
    return Add(MulAddExact(d.hi, inv_hi, Sub(zero, log_sum)), finite);
  }
};
// `hi` is the sum's logarithm rounded to V's format, `lo` the rest.
template <class V>
inline LogMap<V> MakeLogMap(V max, V hi, V lo, const Scale& scale) {
  if constexpr (sizeof(typename V::Scalar) == 4) {
    return {max, V::Set(4 * scale.invf_hi), V::Set(4 * scale.invf_lo), hi, lo};
  } else {
    return {max, V::Set(4 * scale.inv_hi), V::Set(4 * scale.inv_lo), hi, lo};
  }
}
template <class V, class W>
inline Double2<W> SplitFor(Double2<W> x) {
  const W hi = RoundTo<V>(x.hi);
  return {hi, Add(Sub(x.hi, hi), x.lo)};
}

// log Σ exp(x) without a temperature; the maximum itself where that is infinite.
template <class W>
inline W LogSumExpOf(W max, Double2<W> log_sum) {
  const W s = Add(max, log_sum.hi);
  const W part = Sub(s, max);
  const W rest = Add(Add(Sub(max, Sub(s, part)), Sub(log_sum.hi, part)), log_sum.lo);
  return IfThenElse(Eq(Abs(max), W::Set(kInf)), max, Add(s, rest));
}

// ---- rows ---------------------------------------------------------------------------------------

// Calls f(data, start, count) for the row, or for its chunks.
template <class T, class F>
inline void ForChunks(const T* row, size_t n, const ChunkIo* io, int operand, F f) {
  if (io == nullptr) {
    f(row, size_t{0}, n);
    return;
  }
  for (size_t start = 0; start < n; start += io->chunk) {
    const size_t count = Min(io->chunk, n - start);
    f(static_cast<const T*>(io->fetch(io->context, operand, start, count)), start, count);
  }
}

// Writes the first results f(position) up to where a cache line begins, with vectors that overlap; returns how many.
// Of vectors as long as a line each would else lie across two, which for a quick f counts (measured: bench/NOTES.md).
template <class V, class U, class F>
SOFTLANE_INLINE size_t MapToLine(U* out, F f) {
  const size_t over = reinterpret_cast<uintptr_t>(out) / sizeof(U) % V::kLanes;
  if (over == 0) return 0;
  const size_t next = V::kLanes - over;
  // Both before either is stored, as `out` may be where they come from.
  const V first = f(0), second = f(next);
  Store(first, out);
  Store(second, out + next);
  return next + V::kLanes;
}
// From how many vectors on that pays; never for shorter vectors.
constexpr size_t kLines = SOFTLANE_BACKEND == SOFTLANE_IS_avx512 ? 4 : SIZE_MAX;

// out[i] = f(x[i]) for a row, or in place for its chunks. f takes (position, vector). From kLinesFrom vectors on,
// results begin at cache lines.
template <class V, size_t kLinesFrom = SIZE_MAX, class T, class U, class F>
SOFTLANE_INLINE void MapRow(const T* x, U* out, size_t n, F f) {
  constexpr size_t kLanes = V::kLanes;
  size_t i = 0;
  if (n / kLanes >= kLinesFrom) {
    i = MapToLine<V>(out, [=](size_t at) SOFTLANE_LAMBDA { return f(at, V::Load(x + at)); });
  }
  for (; i + kLanes <= n; i += kLanes) Store(f(i, V::Load(x + i)), out + i);
  if (i < n) {
    const int count = static_cast<int>(n - i);
    StoreN(f(i, V::LoadN(x + i, count, 0)), out + i, count);
  }
}
// Calls f(start, count) for the stripes of a row; a crew, if there is one, does several at a time.
template <class T, class F>
inline void ForStripes(const Crew* crew, size_t n, F f) {
  if constexpr (!kHasStripes<T>) {
    f(size_t{0}, n);
  } else {
    struct Work {
      F& f;
      Stripes stripes;
    } work{f, Stripes(n)};
    const auto piece = [](void* state, size_t i) noexcept {
      const Work& of = *static_cast<const Work*>(state);
      of.f(of.stripes.Start(i), of.stripes.Length(i));
    };
    if (crew != nullptr) {
      crew->each(crew->context, work.stripes.count, piece, &work);
    } else {
      for (size_t i = 0; i < work.stripes.count; ++i) piece(&work, i);
    }
  }
}
// The same as MapRow for a row, or for its chunks or stripes; f takes vectors alone.
template <class T, class B, class F>
inline void MapPieces(const B& b, const T* x, T* out, int out_operand, F f) {
  const auto map = [&](const T* from, T* to, size_t count) {
    MapRow<Vec<T>>(from, to, count, [=](size_t, Vec<T> v) { return f(v); });
  };
  if (b.chunked == nullptr) {
    ForStripes<T>(b.crew, b.n,
                  [&](size_t start, size_t count) { map(x + start, out + start, count); });
    return;
  }
  ForChunks(x, b.n, b.chunked, 0, [&](const T* p, size_t start, size_t count) {
    map(p, const_cast<T*>(p), count);
    b.chunked->put(b.chunked->context, out_operand, start, count);
  });
}

// The largest and the smallest element that are not NaN; -inf and inf if there is none.
template <class V>
struct Range {
  V max = V::Set(static_cast<typename V::Scalar>(-kInf));
  V min = V::Set(static_cast<typename V::Scalar>(kInf));
  SOFTLANE_INLINE void Add(V x) {
    max = Max(x, max);
    min = Min(x, min);
  }
  void Add(const Range& other) {
    max = Max(other.max, max);
    min = Min(other.min, min);
  }
};
template <class V, class T>
SOFTLANE_INLINE Range<V> RangeOf(const T* x, size_t n) {
  constexpr size_t kLanes = V::kLanes;
  Range<V> r0;
  size_t i = 0;
  if (n >= 4 * kLanes) {
    Range<V> r1, r2, r3;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
      r0.Add(V::Load(x + i));
      r1.Add(V::Load(x + i + kLanes));
      r2.Add(V::Load(x + i + 2 * kLanes));
      r3.Add(V::Load(x + i + 3 * kLanes));
    }
    r0.Add(r1);
    r2.Add(r3);
    r0.Add(r2);
  }
  for (; i + kLanes <= n; i += kLanes) r0.Add(V::Load(x + i));
  if (i < n) {
    const auto nan = std::numeric_limits<typename V::Scalar>::quiet_NaN();
    r0.Add(V::LoadN(x + i, static_cast<int>(n - i), nan));
  }
  return r0;
}
template <class T>
SOFTLANE_RARE Range<Vec<T>> RangeOfStripes(const T* row, size_t n, const Crew* crew) {
  using V = Vec<T>;
  T max[kMostStripes], min[kMostStripes];
  const Stripes stripes(n);
  ForStripes<T>(crew, n, [&](size_t start, size_t count) {
    const Range<V> range = RangeOf<V>(row + start, count);
    max[start / stripes.length] = MaxLane(range.max);
    min[start / stripes.length] = MinLane(range.min);
  });
  Range<V> all;
  for (size_t i = 0; i < stripes.count; ++i) all.Add({V::Set(max[i]), V::Set(min[i])});
  return all;
}
template <class T>
SOFTLANE_INLINE Range<Vec<T>> RowRange(const T* row, size_t n, const ChunkIo* io,
                                       const Crew* crew) {
  if constexpr (kHasStripes<T>) {
    if (crew != nullptr) return RangeOfStripes(row, n, crew);
  }
  if (io == nullptr) return RangeOf<Vec<T>>(row, n);
  Range<Vec<T>> range;
  ForChunks(row, n, io, 0,
            [&](const T* x, size_t, size_t count) { range.Add(RangeOf<Vec<T>>(x, count)); });
  return range;
}

template <class T>
inline typename Vec<T>::Scalar LoadOne(const T* x) {
  if constexpr (sizeof(T) == sizeof(typename Vec<T>::Scalar)) {
    return *x;
  } else {
    return FirstLane(Vec<T>::LoadN(x, 1, 0));
  }
}
template <class T>
inline void StoreOne(typename Vec<T>::Scalar value, T* x) {
  if constexpr (sizeof(T) == sizeof(value)) {
    *x = value;
  } else {
    StoreN(Vec<T>::Set(value), x, 1);
  }
}

// The position of the first element equal to `value` (n if there is none).
template <class T>
inline size_t FindFirst(const T* x, size_t n, typename Vec<T>::Scalar value) {
  using V = Vec<T>;
  constexpr size_t kLanes = V::kLanes;
  const V wanted = V::Set(value);
  for (size_t i = 0; i < n; i += kLanes) {
    const bool whole = n - i >= kLanes;
    const V v = whole ? V::Load(x + i)
                      : V::LoadN(x + i, static_cast<int>(n - i),
                                 std::numeric_limits<typename V::Scalar>::quiet_NaN());
    const uint32_t found = MaskBits<V>::Of(Eq(v, wanted));
    if (found != 0) return i + FirstBit(found);
  }
  return n;
}

template <class T>
inline bool HasNaN(const T* row, size_t n, const ChunkIo* io) {
  using V = Vec<T>;
  bool found = false;
  ForChunks(row, n, io, 0, [&](const T* x, size_t, size_t count) {
    for (size_t i = 0; i < count; i += V::kLanes) {
      const int m = static_cast<int>(Min(V::kLanes, count - i));
      found = found || AnyTrue(IsNaN(V::LoadN(x + i, m, 0)));
    }
  });
  return found;
}

// What the caches are asked for during a sweep that is bound by its arithmetic: the same elements of what is read
// after it, soon or late, and of what is written then (null: of nothing).
template <class T>
struct Ahead {
  const T *read = nullptr, *read_late = nullptr;
  T* written = nullptr;
  SOFTLANE_INLINE void Prefetch(size_t i) const {
    if (read != nullptr) SOFTLANE_PREFETCH(read + i);
    if (read_late != nullptr) SOFTLANE_PREFETCH_FAR(read_late + i);
    if (written != nullptr) SOFTLANE_PREFETCH_WRITE(written + i);
  }
};

// One row's ExpReference and maximum.
template <class V>
struct RowReference {
  typename V::Scalar k_hi, k_lo, shift, magic, floor, max;
  SOFTLANE_INLINE ExpReference<V> Vectors() const {
    return {{V::Set(k_hi), V::Set(k_lo), V::Set(0)}, V::Set(shift), V::Set(magic), V::Set(floor)};
  }
};

// A row's sum, and how often it has its maximum.
template <class V, Spread kSpread>
struct RowSum {
  ExpSum<V, kSpread == Spread::kNarrow> sum;
  size_t maxima = 0;
};

// `row` and the exps of x[0..n), if kSkips without those of the maximum, which are counted. Keeps all of them, rounded,
// if kKeep and `kept` is not null, which in ordinary rows it then never is. Every call but the last of a row has an n
// that is a multiple of kBlock; the last block is left as it is.
template <bool kKeep, Spread kSpread, bool kSkips, class V, class T>
SOFTLANE_INLINE void SumExp(const T* x, size_t n, const Ahead<T>& ahead,
                            const RowReference<V>& reference, typename V::Scalar* kept,
                            RowSum<V, kSpread>& row) {
  constexpr size_t kLanes = V::kLanes;
  constexpr bool kOrdinary = kSpread != Spread::kAny;
  const ExpReference<V> ref = reference.Vectors();
  const V top = V::Set(reference.max);
  size_t i = 0;
  while (i + kLanes <= n) {
    const size_t end = Min(n - kLanes, i + (kSettled<V> - kLanes));
    for (; i <= end; i += kLanes) {
      ahead.Prefetch(i);
      const V v = InRegister(V::Load(x + i));
      ExpParts<V> e = Exp<kOrdinary>(v, ref);
      if (kKeep && (kOrdinary || kept != nullptr)) Store(Value(e), kept + i);
      if constexpr (kSkips) {
        const auto others = Lt(v, top);
        e.scale = IfThenElseZero(others, e.scale);
        row.maxima += kLanes - CountBits(MaskBits<V>::Of(others));
      }
      row.sum.Add(e);
    }
    if (i >= n) break;
    if (i % kBlock == 0) {
      row.sum.EndBlock();
    } else if (i % kSettled<V> == 0) {
      row.sum.Settle();
    }
  }
  if (i < n) {
    const int count = static_cast<int>(n - i);
    const V v = V::LoadN(x + i, count, reference.max);
    ExpParts<V> e = Exp<kOrdinary>(v, ref);
    if (kKeep && (kOrdinary || kept != nullptr)) StoreN(Value(e), kept + i, count);
    auto counts = V::FirstN(count);
    if constexpr (kSkips) {
      counts = And(Lt(v, top), counts);
      row.maxima += static_cast<size_t>(count) - CountBits(MaskBits<V>::Of(counts));
    }
    e.scale = IfThenElseZero(counts, e.scale);
    row.sum.Add(e);
  }
}

// Rows that lie `stride` bytes apart; or none, with a null `first`.
template <class T>
struct RowsAt {
  T* first = nullptr;
  ptrdiff_t stride = 0;
  T* operator[](size_t r) const { return Step<T>(first, r, stride); }
};
// Where the exps of the rows of a block are kept between the two sweeps: those of short rows in a buffer, aligned
// and with room for whole vectors; others in the output itself if it has the computing type, else in the scratch;
// nowhere if neither will do and they are computed twice.
template <class T>
struct ExpBuffer {
  using V = Vec<T>;
  using Scalar = typename V::Scalar;
  static constexpr size_t kLongest = 128;
  alignas(64) Scalar buffer[kLongest * V::kLanes];
  bool Holds(RowsAt<Scalar> rows) const { return rows.first == buffer; }
  RowsAt<Scalar> Rows(RowsAt<T> out, size_t rows, size_t n, const ChunkIo* io, void* scratch) {
    if (io != nullptr) return {};
    const size_t room = (n + V::kLanes - 1) / V::kLanes * V::kLanes;
    const auto stride = static_cast<ptrdiff_t>(room * sizeof(Scalar));
    if (room <= kLongest) return {buffer, stride};
    if constexpr (sizeof(Scalar) == sizeof(T)) {
      return out;
    } else {
      if (rows * room * sizeof(Scalar) > kScratchBytes) return {};
      return {static_cast<Scalar*>(scratch), stride};
    }
  }
};

// How many bytes of rows, and of their results, are worked on at a time; and up to how many bytes a row is fetched
// while the one before it is summed, beyond which it would not stay. Results are quicker written if what a sweep
// reads and writes is in the L1 cache for the next; sums alone, if more rows share what follows them, even in the L2
// cache; a loss with its gradient is both, and shorter vectors make it more of a sum (measured: bench/NOTES.md).
struct CacheUse {
  size_t block, fetched;
};
constexpr bool kLongVectors = SOFTLANE_BACKEND == SOFTLANE_IS_avx512;
constexpr CacheUse kForResults{32768, 7 << 17}, kForSums{kLongVectors ? 65536 : 196608, 1 << 20},
    kForGrads{kLongVectors ? 49152 : 196608, 7 << 17};
// Up to how many bytes of results of T their place is asked for during the sums.
template <class T>
constexpr size_t kWrittenSoon = kLongVectors && sizeof(T) > 2 ? 98304 : 786432;

// Some rows at a time, whose maxima, sums and logarithms are then worked out together, one row a lane:
// alone each would wait for the long chain of its own (measured: bench/NOTES.md).
template <class T>
struct RowBlock {
  using V = Vec<T>;
  using W = Wide<V>;
  using Scalar = typename V::Scalar;
  static constexpr size_t kRows = V::kLanes;

  size_t rows, n;
  const ChunkIo* io;
  const Crew* crew;
  const T* x[kRows];
  V max, min;  // a row a lane
  ExpReference<V> ref;

  // How many rows of n elements, whose inputs and results together have this many bytes or less.
  static size_t Count(size_t n, const ChunkIo* io, size_t bytes) {
    if (io != nullptr) return 1;
    const size_t fit = bytes / (2 * sizeof(Scalar) * (n + 1));
    return fit < 1 ? 1 : Min(fit, kRows);
  }

  // Rows [first, first + count) of `all`.
  RowBlock(const void* base, ptrdiff_t stride, size_t first, size_t count, size_t all,
           size_t length, const ChunkIo* chunked, const Crew* all_hands, const Scale& scale,
           size_t fetched)
      : rows(count),
        n(length),
        io(chunked),
        crew(kHasStripes<T> ? all_hands : nullptr),
        stride_(stride) {
    if (is_striped_) total_ = ToDouble2(W::Set(0));
    constexpr size_t kSoon = size_t{1} << 18;
    const size_t bytes = n * sizeof(T);
    const bool fetches = io == nullptr && bytes <= fetched && !is_striped_;
    next_rows_ = fetches ? Min(rows, all - first - rows) : 0;
    is_soon_ = bytes <= kSoon;
    V maxima[kRows], minima[kRows];
    for (size_t r = 0; r < rows; ++r) {
      x[r] = Step<const T>(base, first + r, stride);
      const Range<V> range = RowRange(x[r], n, io, crew);
      maxima[r] = range.max;
      minima[r] = range.min;
    }
    max = FoldRows<MaxOf, V::kLanes>(maxima, rows);
    min = FoldRows<MinOf, V::kLanes>(minima, rows);
    ref = MakeReference(max, MakeFactor<V>(scale));
    Store(max, max_);
    Store(ref.shift, shift_);
    Store(ref.magic, magic_);
    Store(ref.floor, floor_);
    k_hi_ = FirstLane(ref.k.hi);
    k_lo_ = FirstLane(ref.k.lo);
    const auto plain = Eq(ref.shift, V::Set(0));
    narrow_ =
        kHasSpreads
            ? MaskBits<V>::Of(And(plain, Lt(NarrowFrom(ref, kBlock / V::kLanes), min))) & All()
            : 0;
    exact_ = kHasSpreads && io == nullptr && n <= kBlock && AllNarrow(min, ref, n);
    ordinary_ = narrow_;
    if constexpr (kHasOrdinary<V>) {
      ordinary_ = MaskBits<V>::Of(And(plain, Lt(ref.floor, min))) & All();
    }
  }

  ExpReference<V> Ref(size_t r) const { return Reference(r).Vectors(); }

  // A set of rows: row r is bit r.
  using Rows = uint32_t;
  Rows All() const { return (Rows{1} << rows) - 1; }
  static bool Has(Rows which, size_t r) { return (which >> r & 1) != 0; }

  // Σ exp of the rows `which`, without their maxima if kSkips, and 0 for others; the exps go to `kept`, the results
  // later to `written`, unless these are none.
  template <bool kSkips>
  void SumRows(RowsAt<Scalar> kept, RowsAt<T> written, Rows which) {
    if constexpr (kHasStripes<T>) {
      if (is_striped_ && io == nullptr && which != 0) {
        SumStripes<kSkips>(kept);
        return;
      }
    }
    const Rows ordinary = io == nullptr ? which & ordinary_ : 0;
    if constexpr (kHasSpreads) {
      if (kept.first != nullptr) {
        SumOrdinary<true, kSkips>(kept, written, ordinary);
      } else {
        SumOrdinary<false, kSkips>(kept, written, ordinary);
      }
    }
    if (ordinary != All()) SumRare<kSkips>(kept, which, ordinary);
  }
  // Where the first maximum of row r is; n if it has none.
  size_t FirstMaximum(size_t r) const {
    size_t top = n;
    ForChunks(x[r], n, io, 0, [&](const T* p, size_t start, size_t count) {
      if (top != n) return;
      const size_t at = FindFirst(p, count, max_[r]);
      if (at < count) top = start + at;
    });
    return top;
  }
  Double2<W> Sums() {
    if (kHasStripes<T> && is_striped_) return total_;
    return SumsOf(n);
  }
  // The sums of rows, or of stripes, of so many elements.
  Double2<W> SumsOf(size_t length) {
    const FoldedParts<V> parts = FoldParts(parts_, rows, length);
    if (exact_) return WithParts(ToLong(Widen(FoldRows<SumOf, V::kLanes>(scales_, rows))), parts);
    return WithParts(FoldRows<SumOf, V::kLanes>(lanes_, rows), parts);
  }

  // The exps of one number a row.
  Double2<W> Exps(V v) const { return Widen(Exp(v, ref)); }
  V StoredExps(V v) const { return Value(Exp(v, ref)); }

  // For rows whose sums left the maxima out.
  Stats<V, W> Statistics() {
    Stats<V, W> stats{Widen(max), Sums(), Exps(max)};
    const W repeats = Sub(W::LoadN(maxima_, static_cast<int>(rows), 0), W::Set(1));
    if (AnyTrue(Lt(W::Set(0), repeats))) stats.AddRepeats(repeats);
    return stats;
  }

 private:
  RowReference<V> Reference(size_t r) const {
    return {k_hi_, k_lo_, shift_[r], magic_[r], floor_[r], max_[r]};
  }
  template <Spread kSpread>
  SOFTLANE_INLINE void Keep(size_t r, const RowSum<V, kSpread>& row) {
    parts_[r] = row.sum.part;
    if (!exact_) {
      lanes_[r] = InOrder(row.sum.Sum());
    } else if constexpr (kSpread == Spread::kNarrow) {
      scales_[r] = row.sum.scales.sum;
    } else {
      scales_[r] = V::Set(0);  // of a row that is not summed
    }
    maxima_[r] = static_cast<double>(row.maxima);
  }
  template <bool kKeep, bool kSkips>
  SOFTLANE_CALL void SumOrdinary(RowsAt<Scalar> kept, RowsAt<T> written, Rows which) {
    for (size_t r = 0; r < rows; ++r) {
      if (!Has(which, r)) continue;
      const T* next = r < next_rows_ ? Step<const T>(x[r], rows, stride_) : nullptr;
      const Ahead<T> ahead{is_soon_ ? next : nullptr, is_soon_ ? nullptr : next,
                           written.first == nullptr ? nullptr : written[r]};
      const auto sum = [&](auto spread) SOFTLANE_LAMBDA {
        RowSum<V, spread.kSpread> row;
        SumExp<kKeep, spread.kSpread, kSkips>(x[r], n, ahead, Reference(r),
                                              kKeep ? kept[r] : nullptr, row);
        Keep(r, row);
      };
      if (!kHasOrdinary<V> || Has(narrow_, r)) {
        sum(Of<Spread::kNarrow>());
      } else {
        sum(Of<Spread::kOrdinary>());
      }
    }
  }
  // What is left: one loop serves all kinds.
  template <bool kSkips>
  SOFTLANE_RARE void SumRare(RowsAt<Scalar> kept, Rows which, Rows done) {
    for (size_t r = 0; r < rows; ++r) {
      if (Has(done, r)) continue;
      RowSum<V, Spread::kAny> row;
      if (Has(which, r)) {
        Scalar* const to = kept.first == nullptr ? nullptr : kept[r];
        ForChunks(x[r], n, io, 0, [&](const T* p, size_t start, size_t count) {
          if (kHasStripes<T> && Stripes(n).Begins(start)) {
            EndStripe(row, Stripes(n).length);
          } else if (start > 0) {
            row.sum.EndBlock();
          }
          SumExp<true, Spread::kAny, kSkips>(p, count, Ahead<T>(), Reference(r), to, row);
        });
      }
      if (kHasStripes<T> && is_striped_) {
        EndStripe(row, Stripes(n).Length(Stripes(n).count - 1));
      } else {
        Keep(r, row);
      }
    }
  }
  // Adds the sum of the stripe that has so many elements to those before it.
  void EndStripe(RowSum<V, Spread::kAny>& row, size_t length) {
    Keep(0, row);
    row.sum = {};
    total_ = AddLanes(total_, SumsOf(length));
  }
  // One stripe of a row of `whole`, to be summed.
  RowBlock(const RowBlock& whole, size_t start, size_t count)
      : rows(1),
        n(count),
        io(nullptr),
        crew(nullptr),
        stride_(0),
        is_striped_(false),
        next_rows_(0),
        is_soon_(false),
        ordinary_(whole.ordinary_),
        narrow_(whole.narrow_),
        k_hi_(whole.k_hi_),
        k_lo_(whole.k_lo_),
        exact_(false) {
    x[0] = whole.x[0] + start;
    max_[0] = whole.max_[0];
    shift_[0] = whole.shift_[0];
    magic_[0] = whole.magic_[0];
    floor_[0] = whole.floor_[0];
  }
  // The sum of a block of one row of several stripes.
  template <bool kSkips>
  SOFTLANE_RARE void SumStripes(RowsAt<Scalar> kept) {
    const Stripes stripes(n);
    Double2<W> sums[kMostStripes];
    double maxima[kMostStripes];
    ForStripes<T>(crew, n, [&](size_t start, size_t count) {
      RowBlock stripe(*this, start, count);
      RowsAt<Scalar> to = kept;
      if (to.first != nullptr) to.first += start;
      stripe.template SumRows<kSkips>(to, {}, 1);
      sums[start / stripes.length] = stripe.SumsOf(count);
      maxima[start / stripes.length] = stripe.maxima_[0];
    });
    maxima_[0] = 0;
    for (size_t i = 0; i < stripes.count; ++i) {
      total_ = AddLanes(total_, sums[i]);
      maxima_[0] += maxima[i];
    }
  }

  ptrdiff_t stride_;
  bool is_striped_ = HasStripes<T>(n);
  Double2<W> total_;  // of a row of several stripes
  size_t next_rows_;  // how many of the next block there are to be fetched
  bool is_soon_;
  Rows ordinary_, narrow_;  // as Spread has them; without kOrdinary the same
  Scalar k_hi_, k_lo_;
  alignas(64) Scalar max_[kRows];
  alignas(64) Scalar shift_[kRows];
  alignas(64) Scalar magic_[kRows];
  alignas(64) Scalar floor_[kRows];
  // Rows of one block, all of whose scales have an exact sum: only these, and parts, are then kept.
  bool exact_;
  LongSum<V> lanes_[kRows];
  V scales_[kRows], parts_[kRows];
  double maxima_[kRows];  // how many
};

// Numbers of rows, one a lane, to be taken one by one.
template <class V>
struct PerRow {
  alignas(64) typename V::Scalar value[V::kLanes];
  explicit PerRow(V x) { Store(x, value); }
  typename V::Scalar operator[](size_t r) const { return value[r]; }
  // Row r's number in every lane.
  V All(size_t r) const { return V::Set(value[r]); }
};
template <class V>
PerRow(V) -> PerRow<V>;

// Row r's, of factors that hold a row a lane.
template <class V>
Factor<V> FactorOfRow(const Factor<V>& f, size_t r) {
  return {{PerRow(f.coef.hi).All(r), PerRow(f.coef.lo).All(r)},
          PerRow(f.hi).All(r),
          PerRow(f.lo).All(r),
          PerRow(f.small).All(r)};
}

// Calls f(block, first row) for all rows of a batch of T.
template <class T, class B, class F>
inline void ForRowBlocks(const B& b, const CacheUse& use, F f) {
  static_assert(kForSums.block < 2 * sizeof(typename Vec<T>::Scalar) * kOneStripe,
                "a row of several stripes is a block");
  const size_t block = RowBlock<T>::Count(b.n, b.chunked, use.block);
  for (size_t first = 0; first < b.count; first += block) {
    const size_t here = Min(block, b.count - first);
    RowBlock<T> rows(b.x, b.x_stride, first, here, b.count, b.n, b.chunked, b.crew, b.scale,
                     use.fetched);
    f(rows, first);
  }
}

// ---- columns ------------------------------------------------------------------------------------

// Up to one vector of adjacent columns; element i of each is `stride` bytes on from the one before.
template <class T_>
struct Panel {
  using T = T_;
  using V = Vec<T>;
  const T* x;
  ptrdiff_t stride;
  int columns;
  SOFTLANE_INLINE V Load(size_t i) const {
    const T* p = Step<const T>(x, i, stride);
    return columns == V::kLanes ? V::Load(p) : V::LoadN(p, columns, 0);
  }
  Panel From(size_t i) const { return {Step<const T>(x, i, stride), stride, columns}; }
  // The same in the first sweep: the next panel's part of the row, which no processor foresees, is asked for.
  SOFTLANE_INLINE V LoadFirst(size_t i) const {
    SOFTLANE_PREFETCH(Step<const char>(x, i, stride) + 2 * V::kLanes * sizeof(T));
    return Load(i);
  }
};
template <class T>
struct OutPanel {
  using V = Vec<T>;
  T* out;
  ptrdiff_t stride;
  int columns;
  SOFTLANE_INLINE V Load(size_t i) const { return Panel<T>{out, stride, columns}.Load(i); }
  SOFTLANE_INLINE void Store(size_t i, V v) const {
    T* p = Step<T>(out, i, stride);
    if (columns == V::kLanes) {
      softlane::SOFTLANE_ISA::Store(v, p);
    } else {
      StoreN(v, p, columns);
    }
  }
};

// Where panels are copied to be worked on; null: they are not.
struct Copies {
  void* place;
  size_t bytes;
  template <class B>
  static Copies Of(const B& b) {
    return {b.copies ? b.scratch : nullptr, kScratchBytes};
  }
};

template <class T>
inline void CopyPanel(const Panel<T>& panel, size_t n, typename Vec<T>::Scalar* tile) {
  for (size_t i = 0; i < n; ++i) Store(panel.LoadFirst(i), tile + i * Vec<T>::kLanes);
}

// How many columns the first panel takes, so that the others begin where cache lines do, as far as the rows allow it:
// a vector across two of them costs both, and a panel its neighbours' lines.
template <class T>
inline size_t FirstPanel(const void* x, size_t count) {
  constexpr size_t kLanes = Vec<T>::kLanes;
  const size_t over = reinterpret_cast<uintptr_t>(x) / sizeof(T) % kLanes;
  return count < 4 * kLanes ? kLanes : kLanes - over;
}

// A batch of one row, which comes in chunks.
template <class B>
inline B RowOfChunks(B batch, const ChunkIo& io) {
  batch.count = 1;
  batch.chunked = &io;
  return batch;
}
// A column of one array or two, operands 0 and 1, as the chunks of a row, whose results are put where they belong.
// Operand 2 is an array of doubles, which all columns share.
template <class T>
struct ColumnIo {
  static constexpr size_t kChunk = 512;
  static_assert(kStripe % kChunk == 0, "whole chunks");
  const T* x[2];
  ptrdiff_t stride[2];
  T* out;
  ptrdiff_t out_stride;
  const double* weights;
  T buffers[2][kChunk];

  ColumnIo(const T* first, ptrdiff_t first_stride, const T* second, ptrdiff_t second_stride,
           T* result, ptrdiff_t result_stride, const double* all_weights = nullptr)
      : x{first, second},
        stride{first_stride, second_stride},
        out(result),
        out_stride(result_stride),
        weights(all_weights) {}
  ChunkIo Io() { return {&ColumnIo::Fetch, &ColumnIo::Put, this, kChunk}; }
  static void* Fetch(void* context, int operand, size_t start, size_t count) {
    ColumnIo& self = *static_cast<ColumnIo*>(context);
    if (operand == 2) return const_cast<double*>(self.weights + start);
    T* to = self.buffers[operand];
    for (size_t i = 0; i < count; ++i) {
      to[i] = *Step<const T>(self.x[operand], start + i, self.stride[operand]);
    }
    return to;
  }
  static void Put(void* context, int, size_t start, size_t count) {
    const ColumnIo& self = *static_cast<ColumnIo*>(context);
    for (size_t i = 0; i < count; ++i) {
      *Step<T>(self.out, start + i, self.out_stride) = self.buffers[0][i];
    }
  }
};

// Calls f(first column, columns) for panels of `count` columns, the last perhaps with fewer, as FirstPanel has them.
template <class T, class F>
inline void ForPanelStarts(const void* x, size_t count, F f) {
  size_t columns = FirstPanel<T>(x, count);
  for (size_t c = 0; c < count; c += columns, columns = Vec<T>::kLanes) f(c, columns);
}
// The panel of columns [first, first + width) that an array has of its `count`.
template <class T>
SOFTLANE_INLINE Panel<T> PanelAt(const void* x, ptrdiff_t stride, size_t count, size_t first,
                                 size_t width) {
  return {static_cast<const T*>(x) + first, stride, static_cast<int>(Min(width, count - first))};
}
template <class T>
SOFTLANE_INLINE OutPanel<T> OutPanelAt(void* out, ptrdiff_t stride, size_t count, size_t first,
                                       size_t width) {
  return {out == nullptr ? nullptr : static_cast<T*>(out) + first, stride,
          static_cast<int>(Min(width, count - first))};
}

// So many rows before they are written the caches are asked for the places of several panels' results.
constexpr size_t kRowsAhead = 16;

// Calls f(first column, Panel, OutPanel) for a copy of every panel of the batch. The OutPanel lies over the Panel.
template <class T, class F>
inline void ForCopiedPanels(const void* x, ptrdiff_t x_stride, void* out, ptrdiff_t out_stride,
                            size_t count, size_t n, Copies copies, F f) {
  using V = Vec<T>;
  using Scalar = typename V::Scalar;
  constexpr size_t kLanes = V::kLanes;
  constexpr auto kStep = static_cast<ptrdiff_t>(kLanes * sizeof(Scalar));
  // Several panels are copied at a time, so that more of a row is read and written at once: as many as fit half of
  // an L1 cache, or a part of the L2 cache. They begin where lines of what is written do.
  static_assert(sizeof(V) * kMostCopied <= kScratchBytes, "a panel fits the scratch");
  auto* tile = static_cast<Scalar*>(copies.place);
  const size_t bytes = n <= 256 ? 256 * sizeof(V) : Min(copies.bytes, 1 << 18);
  const size_t fit = bytes / (n * sizeof(V));
  const size_t group = fit < 1 ? 1 : Min(8, fit);
  const size_t before = kLanes - FirstPanel<T>(out == nullptr ? x : out, count);
  const size_t panels = (before + count + kLanes - 1) / kLanes;
  const auto start = [=](size_t p) { return p == 0 ? 0 : p * kLanes - before; };
  const auto width = [=](size_t p) { return (p + 1) * kLanes - before - start(p); };
  for (size_t first = 0; first < panels; first += group) {
    const size_t end = Min(panels, first + group);
    const auto place = [=](size_t p) { return tile + (p - first) * n * kLanes; };
    for (size_t i = 0; i < n; ++i) {
      for (size_t p = first; p < end; ++p) {
        const Panel<T> from = PanelAt<T>(x, x_stride, count, start(p), width(p));
        Store(from.LoadFirst(i), place(p) + i * kLanes);
      }
    }
    for (size_t p = first; p < end; ++p) {
      const auto columns = static_cast<int>(Min(width(p), count - start(p)));
      f(start(p), Panel<Scalar>{place(p), kStep, columns},
        OutPanel<Scalar>{place(p), kStep, columns});
    }
    for (size_t i = 0; out != nullptr && i < n; ++i) {
      for (size_t p = first; p < end; ++p) {
        const OutPanel<T> to = OutPanelAt<T>(out, out_stride, count, start(p), width(p));
        SOFTLANE_PREFETCH_WRITE(Step<const char>(to.out, i + kRowsAhead, out_stride));
        to.Store(i, V::Load(place(p) + i * kLanes));
      }
    }
  }
}

// The same for the panels themselves, or for copies of them.
template <class T, class F>
inline void ForPanels(const void* x, ptrdiff_t x_stride, void* out, ptrdiff_t out_stride,
                      size_t count, size_t n, Copies copies, F f) {
  if (copies.place != nullptr) {
    ForCopiedPanels<T>(x, x_stride, out, out_stride, count, n, copies, f);
    return;
  }
  ForPanelStarts<T>(x, count, [&](size_t c, size_t columns) {
    f(c, PanelAt<T>(x, x_stride, count, c, columns),
      OutPanelAt<T>(out, out_stride, count, c, columns));
  });
}

// Of columns that are read and written one vector wide the processor foresees nothing: this many panels are gone
// through together, row by row or, for their sums, block by block (measured: bench/NOTES.md).
constexpr size_t kGroup = 4;
// The arithmetic of generic lanes takes far longer than memory does.
constexpr bool kHasGroups = SOFTLANE_BACKEND != SOFTLANE_IS_generic;
// What f(panel) makes of each panel of a group.
template <class X>
struct OfPanels {
  X panel[kGroup];
  const X& operator[](size_t p) const { return panel[p]; }
};
template <class F>
inline auto MakeOfPanels(F f) -> OfPanels<decltype(f(size_t{0}))> {
  static_assert(kGroup == 4, "one for each");
  return {{f(0), f(1), f(2), f(3)}};
}
// The columns of a group, and where its panels begin among them. Where these are fewer than four whole ones they
// overlap: then some are worked on twice.
struct GroupColumns {
  size_t first, count;
  size_t at[kGroup];
  // The first panel that begins where panel p does.
  size_t Own(size_t p) const {
    while (p > 0 && at[p] == at[p - 1]) --p;
    return p;
  }
};
// Calls f(row, panel, its first column) for all of a group.
template <class F>
SOFTLANE_INLINE void ForGroup(size_t n, const GroupColumns& columns, F f) {
  const GroupColumns own = columns;
  for (size_t i = 0; i < n; ++i) {
    Unrolled<kGroup>([&](int p) SOFTLANE_LAMBDA {
      f(i, static_cast<size_t>(p), own.at[static_cast<size_t>(p)]);
    });
  }
}
template <class T>
struct Group {
  using V = Vec<T>;
  const T* x;
  ptrdiff_t stride;
  SOFTLANE_INLINE V Load(size_t i, size_t column) const {
    return InRegister(V::Load(Step<const T>(x, i, stride) + column));
  }
  Panel<T> At(size_t column) const { return {x + column, stride, V::kLanes}; }
  Group From(size_t i) const { return {Step<const T>(x, i, stride), stride}; }
};
template <class T>
struct OutGroup {
  using V = Vec<T>;
  T* out;
  ptrdiff_t stride;
  // out = f(row, panel, column), which may overlap what f reads: of a row all is read before any is written.
  template <class F>
  SOFTLANE_INLINE void Write(size_t n, const GroupColumns& columns, F f) const {
    const GroupColumns own = columns;
    for (size_t i = 0; i < n; ++i) {
      V results[kGroup];
      Unrolled<kGroup>([&](int p) SOFTLANE_LAMBDA {
        results[p] = f(i, static_cast<size_t>(p), own.at[static_cast<size_t>(p)]);
      });
      T* to = Step<T>(out, i, stride);
      Unrolled<kGroup>([&](int p) SOFTLANE_LAMBDA {
        T* place = to + own.at[static_cast<size_t>(p)];
        SOFTLANE_PREFETCH_WRITE(Step<const char>(place, kRowsAhead, stride));
        Store(results[p], place);
      });
    }
  }
};
// Calls group(GroupColumns) for groups of columns, if `grouped`, and panels(first, end) for a panel that is left
// alone, and for those groups of which group says false. They begin where cache lines do, but in narrow arrays,
// where that takes more groups.
template <class T, class G, class P>
inline void ForGroups(const void* out, size_t count, bool grouped, G group, P panels) {
  constexpr size_t kLanes = Vec<T>::kLanes, kColumns = kGroup * kLanes;
  // A single panel is as quick, but for those of half types, which may have to be done as rows.
  constexpr size_t kLeast = sizeof(T) == sizeof(typename Vec<T>::Scalar) ? kLanes + 1 : kLanes;
  size_t c = 0;
  if constexpr (kHasGroups) {
    // Columns of the next group's first panel that the others do not have.
    size_t head = FirstPanel<T>(out, count);
    const auto groups = [](size_t columns) { return (columns + kColumns - 1) / kColumns; };
    if (count <= 4 * kColumns && groups(count + kLanes - head) > groups(count)) head = kLanes;
    while (grouped && count - c >= kLeast) {
      GroupColumns columns{c, Min(count - c, head + kColumns - kLanes), {}};
      const size_t left = count - c - columns.count;
      if (left > 0 && left < kLeast) columns.count -= kLanes;
      for (size_t p = 1; p < kGroup; ++p) {
        columns.at[p] = Min(head + (p - 1) * kLanes, columns.count - kLanes);
      }
      c += columns.count;
      if (!group(columns)) panels(columns.first, c);
      head = kLanes;
    }
  }
  if (c < count) panels(c, count);
}

// The tree of SumLanes over lanes that are vectors. Only the first `live` lanes hold anything but zero,
// so the other additions are left out.
template <class S, size_t kLanes>
inline S FoldLanes(S (&sums)[kLanes], size_t live) {
  for (size_t distance = kLanes / 2; distance > 0; distance /= 2) {
    for (size_t lane = 0; lane < distance && lane + distance < live; ++lane) {
      sums[lane] = AddLanes(sums[lane], sums[lane + distance]);
    }
  }
  return sums[0];
}

// The parts of columns of n elements, for lanes that are vectors.
template <class V, size_t kLanes>
inline FoldedParts<V> FoldParts(V (&parts)[kLanes], size_t n) {
  size_t live = Min(n, kLanes), distance = kLanes;
  for (size_t level = LevelsBefore<V>(n); level > 0; --level) {
    distance /= 2;
    for (size_t lane = 0; lane + distance < live; ++lane) {
      parts[lane] = Add(parts[lane], parts[lane + distance]);
    }
    live = Min(live, distance);
  }
  V coarse[kLanes];
  for (size_t lane = 0; lane < live; ++lane) {
    coarse[lane] = Coarse(parts[lane]);
    parts[lane] = Sub(parts[lane], coarse[lane]);
  }
  return {FoldLanes(coarse, live), FoldLanes(parts, live)};
}

// Due after each whole block of a column longer than that; most sums have nothing to do then.
template <class Sum>
SOFTLANE_INLINE void EndBlock(Sum&) {}

// Sums over the elements of a panel in the virtual lanes of a row: add(i, accumulator).
template <class Sum, size_t kLanes, class F>
SOFTLANE_INLINE auto PanelFold(size_t n, F add) {
  decltype(Sum().Lanes()) sums[kLanes];
  sums[0] = Sum().Lanes();
  const size_t live = Min(n, kLanes);
  if (n <= kBlock) {
    for (size_t lane = 0; lane < live; ++lane) {
      Sum sum;
      for (size_t i = lane; i < n; i += kLanes) add(i, sum);
      sums[lane] = sum.Lanes();
    }
    return FoldLanes(sums, live);
  }
  Sum lanes[kLanes];
  for (size_t start = 0; start < n; start += kBlock) {
    const size_t end = Min(n, start + kBlock);
    for (size_t lane = 0; lane < kLanes; ++lane) {
      Sum sum = lanes[lane];
      for (size_t i = start + lane; i < end; i += kLanes) add(i, sum);
      EndBlock(sum);
      lanes[lane] = sum;
    }
  }
  for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane].Lanes();
  return FoldLanes(sums, kLanes);
}

template <class P>
inline Range<typename P::V> PanelRange(const P& panel, size_t n) {
  Range<typename P::V> r0, r1;
  size_t i = 0;
  for (; i + 2 <= n; i += 2) {
    r0.Add(panel.LoadFirst(i));
    r1.Add(panel.LoadFirst(i + 1));
  }
  if (i < n) r0.Add(panel.LoadFirst(i));
  r0.Add(r1);
  return r0;
}

// The exps of a panel, summed in the virtual lanes of a row; if kSkips without those of each column's maximum, which
// are counted; keep(i, exp) is shown all of them.
template <class V>
struct PanelSum {
  Double2<Wide<V>> sum;
  bool may_repeat;  // more than one maximum in a column
  Wide<V> repeats;  // of each
};
template <class V>
SOFTLANE_RARE void AddStripe(PanelSum<V>& all, const PanelSum<V>& next) {
  all.sum = AddLanes(all.sum, next.sum);
  all.repeats = Add(Add(all.repeats, next.repeats), Wide<V>::Set(1));
  all.may_repeat = true;
}
// The sum of a panel of T that sum(first row, rows) makes, stripe by stripe of a long one.
template <class T, class F>
SOFTLANE_INLINE auto SumOfStripes(size_t n, F sum) {
  if constexpr (!kHasStripes<T>) {
    return sum(size_t{0}, n);
  } else {
    const Stripes stripes(n);
    decltype(sum(size_t{0}, n)) all;
    for (size_t i = 0; i < stripes.count; ++i) {
      const auto one = sum(stripes.Start(i), stripes.Length(i));
      if (i == 0) {
        all = one;
      } else {
        AddStripe(all, one);
      }
    }
    return all;
  }
}
template <class V>
struct PanelLanes {
  LongSum<V> sums[V::kLanes];
  V parts[V::kLanes];  // of the last block
  Double2<Wide<V>> Total(size_t n) { return WithParts(InOrder(sums[0]), FoldParts(parts, n)); }
};
// The block of rows from `start` on; after the last one the sum of all lanes is in the first. Returns how many
// elements of each column are below the maximum.
template <bool kSkips, Spread kSpread, class P, class V, class Keep>
SOFTLANE_INLINE V SumBlock(const P& panel, size_t n, size_t start, V max,
                           const ExpReference<V>& ref, Keep keep, PanelLanes<V>& lanes) {
  constexpr size_t kLanes = V::kLanes;
  const size_t end = Min(n, start + kBlock);
  V below = V::Set(0);
  const auto next = [&](size_t i) SOFTLANE_LAMBDA {
    const V x = panel.Load(i);
    ExpParts<V> e = Exp<kSpread != Spread::kAny>(x, ref);
    keep(i, e);
    if constexpr (kSkips) {
      const auto counts = Lt(x, max);
      e.scale = IfThenElseZero(counts, e.scale);
      below = Add(below, IfThenElseZero(counts, V::Set(1)));
    }
    return e;
  };
  const auto add_lane = [&](size_t lane, auto& sum) SOFTLANE_LAMBDA {
    size_t i = start + lane;
    for (size_t to = start + kSettled<V>;; to += kSettled<V>) {
      for (; i < Min(to, end); i += kLanes) sum.Add(next(i));
      if (to >= end) break;
      sum.Settle();
    }
  };
  const size_t live = Min(n, kLanes);
  if (kSpread == Spread::kNarrow && n <= kBlock) {
    // All scales have an exact sum.
    ExpSum<V, true> sum;
    for (size_t lane = 0; lane < live; ++lane) {
      sum.part = V::Set(0);
      add_lane(lane, sum);
      lanes.parts[lane] = sum.part;
    }
    lanes.sums[0] = ToLong(sum.scales.Total());
  } else {
    for (size_t lane = 0; lane < live; ++lane) {
      ExpSum<V, kSpread == Spread::kNarrow> sum;
      add_lane(lane, sum);
      if (start == 0) {
        lanes.sums[lane] = ToLong(sum.scales.Total());
      } else {
        const auto before = AddTo(lanes.sums[lane], lanes.parts[lane]);
        lanes.sums[lane] = AddTo(before, sum.scales.Total());
      }
      lanes.parts[lane] = sum.part;
    }
    if (end == n) FoldLanes(lanes.sums, live);
  }
  return below;
}
template <bool kSkips, Spread kSpread, class P, class V, class Keep>
SOFTLANE_INLINE PanelSum<V> PanelSumOf(const P& panel, size_t n, V max,
                                       const ExpReference<V>& reference, Keep keep) {
  using W = Wide<V>;
  const ExpReference<V> ref = reference;
  PanelLanes<V> sums;
  sums.sums[0] = LongSum<V>();
  sums.parts[0] = V::Set(0);
  W before = W::Set(0);  // how many are below the maximum in the blocks before,
  V below = V::Set(0);   // and in this
  for (size_t start = 0; start < n; start += kBlock) {
    before = Add(before, Widen(below));
    below = SumBlock<kSkips, kSpread>(panel, n, start, max, ref, keep, sums);
    if (n <= kBlock) break;
  }
  const auto most = static_cast<double>(n - 1);
  const bool may_repeat =
      n > kBlock || AnyTrue(Lt(below, V::Set(static_cast<typename V::Scalar>(most))));
  W repeats = W::Set(0);
  if (may_repeat) repeats = Sub(W::Set(most), Add(before, Widen(below)));
  return {sums.Total(n), may_repeat, repeats};
}

template <bool kSkips, class P, class V, class Keep>
inline PanelSum<V> SumPanel(const P& panel, size_t n, const Range<V>& range,
                            const ExpReference<V>& ref, Keep keep) {
  using T = typename P::T;
  return SumOfStripes<T>(n, [&](size_t first, size_t rows) SOFTLANE_LAMBDA {
    return BySpread<T>(range.min, ref, rows, [&](auto spread) SOFTLANE_LAMBDA {
      const auto keep_stripe = [&](size_t i, ExpParts<V> e) SOFTLANE_LAMBDA { keep(first + i, e); };
      return PanelSumOf<kSkips, spread.kSpread>(panel.From(first), rows, range.max, ref,
                                                keep_stripe);
    });
  });
}
// The statistics of a panel.
template <class V>
SOFTLANE_INLINE Stats<V, Wide<V>> StatsOf(const Range<V>& range, const ExpReference<V>& ref,
                                          const PanelSum<V>& all) {
  Stats<V, Wide<V>> stats{Widen(range.max), all.sum, Widen(Exp(range.max, ref))};
  if (all.may_repeat) stats.AddRepeats(all.repeats);
  return stats;
}
template <class P, class V, class Keep>
SOFTLANE_INLINE Stats<V, Wide<V>> PanelStats(const P& panel, size_t n, const Range<V>& range,
                                             const ExpReference<V>& ref, Keep keep) {
  return StatsOf(range, ref, SumPanel<true>(panel, n, range, ref, keep));
}

// What groups of panels are summed by.
template <class V>
struct GroupReferences {
  Range<V> ranges[kGroup];
  ExpReference<V> refs[kGroup];
  bool ordinary = true, narrow = true;
  template <class B, class T>
  GroupReferences(const B& b, const Group<T>& x, const GroupColumns& columns) {
    ForGroup(b.n, columns,
             [&](size_t i, size_t p, size_t c) SOFTLANE_LAMBDA { ranges[p].Add(x.Load(i, c)); });
    for (size_t p = 0; p < kGroup; ++p) {
      refs[p] = MakeReference(ranges[p].max, MakeFactor<V>(b.scale));
      ordinary = ordinary && AllOrdinary(ranges[p].min, refs[p]);
      narrow = narrow && AllNarrow(ranges[p].min, refs[p], SummedTogether<V>(b.n));
    }
  }
};
// The sums of a group's panels, block by block of each: what is read then lies together, however long the columns.
// Exps go to `kept`, where that is not null.
template <bool kSkips, Spread kSpread, class T, class V>
SOFTLANE_INLINE OfPanels<PanelSum<V>> GroupStripe(const Group<T>& x, const GroupColumns& columns,
                                                  size_t n, const GroupReferences<V>& by,
                                                  const OfPanels<typename V::Scalar*>& kept) {
  using W = Wide<V>;
  PanelLanes<V> sums[kGroup];
  W repeats[kGroup];
  for (W& r : repeats) r = W::Set(static_cast<double>(n - 1));
  for (size_t start = 0; start < n; start += kBlock) {
    for (size_t p = 0; p < kGroup; ++p) {
      if (columns.Own(p) != p) continue;
      const ExpReference<V> ref = by.refs[p];
      auto* const tile = kept[p];
      const V below = SumBlock<kSkips, kSpread>(
          x.At(columns.at[p]), n, start, by.ranges[p].max, ref,
          [=](size_t i, ExpParts<V> e) SOFTLANE_LAMBDA {
            if (tile != nullptr) Store(Value(e), tile + i * V::kLanes);
          },
          sums[p]);
      repeats[p] = Sub(repeats[p], Widen(below));
    }
  }
  OfPanels<PanelSum<V>> all;
  for (size_t p = 0; p < kGroup; ++p) {
    const size_t own = columns.Own(p);
    all.panel[p] =
        own == p ? PanelSum<V>{sums[p].Total(n), AnyTrue(Lt(W::Set(0), repeats[p])), repeats[p]}
                 : all[own];
  }
  return all;
}

template <class V>
SOFTLANE_RARE void AddStripe(OfPanels<PanelSum<V>>& all, const OfPanels<PanelSum<V>>& next) {
  for (size_t p = 0; p < kGroup; ++p) AddStripe(all.panel[p], next[p]);
}
template <bool kSkips, Spread kSpread, class T, class V>
SOFTLANE_INLINE OfPanels<PanelSum<V>> GroupSums(const Group<T>& x, const GroupColumns& columns,
                                                size_t n, const GroupReferences<V>& by,
                                                const OfPanels<typename V::Scalar*>& kept) {
  static_assert(kMostGrouped < kOneStripe, "exps of several stripes are not kept");
  return SumOfStripes<T>(n, [&](size_t first, size_t rows) SOFTLANE_LAMBDA {
    return GroupStripe<kSkips, kSpread>(x.From(first), columns, rows, by, kept);
  });
}

// Where the exps of a group's panels are kept, if they are.
template <class S>
inline OfPanels<S*> TilesOf(const GroupColumns& columns, size_t n, S* tile) {
  constexpr size_t kLanes = Vec<S>::kLanes;
  return MakeOfPanels(
      [&](size_t p) { return tile == nullptr ? tile : tile + columns.Own(p) * n * kLanes; });
}
// The statistics of a group's panels. Their exps go to `tile`, panel after panel, unless it is null.
template <Spread kSpread, class T, class V>
SOFTLANE_CALL OfPanels<Stats<V, Wide<V>>> GroupStatsOf(Group<T> x, const GroupColumns& columns,
                                                       size_t n, const GroupReferences<V>& by,
                                                       typename V::Scalar* tile) {
  const auto sums = GroupSums<true, kSpread>(x, columns, n, by, TilesOf(columns, n, tile));
  return MakeOfPanels([&](size_t p) { return StatsOf(by.ranges[p], by.refs[p], sums[p]); });
}
template <class T, class V>
inline OfPanels<Stats<V, Wide<V>>> GroupStats(const Group<T>& x, const GroupColumns& columns,
                                              size_t n, const GroupReferences<V>& by,
                                              typename V::Scalar* tile) {
  // Half types, and floats that are ordinary only, do without the few operations less, for the size of the library.
  if constexpr (sizeof(T) == sizeof(typename V::Scalar)) {
    if (by.narrow) return GroupStatsOf<Spread::kNarrow>(x, columns, n, by, tile);
  }
  return GroupStatsOf<Spread::kAny>(x, columns, n, by, tile);
}

// The exps of a panel between the sweeps: in the output, in the scratch, or nowhere (computed twice).
template <class T>
struct KeptPanel {
  using V = Vec<T>;
  using Scalar = typename V::Scalar;
  OutPanel<T> out;
  Scalar* scratch;
  static constexpr bool kInOutput = sizeof(T) == sizeof(Scalar);
  bool Keeps() const { return kInOutput || scratch != nullptr; }
  SOFTLANE_INLINE void Store(size_t i, V e) const {
    if constexpr (kInOutput) {
      out.Store(i, e);
    } else if (scratch != nullptr) {
      softlane::SOFTLANE_ISA::Store(e, scratch + i * V::kLanes);
    }
  }
  SOFTLANE_INLINE V Load(size_t i) const {
    if constexpr (kInOutput) {
      return out.Load(i);
    } else {
      return V::Load(scratch + i * V::kLanes);
    }
  }
};
template <class T>
inline KeptPanel<T> KeepPanel(OutPanel<T> out, size_t n, void* scratch) {
  using Scalar = typename Vec<T>::Scalar;
  const bool fits = n <= kScratchBytes / (sizeof(Scalar) * Vec<T>::kLanes);
  return {out, fits ? static_cast<Scalar*>(scratch) : nullptr};
}

// Σ exp of a panel whose exps are kept.
template <class P, class V, class T>
SOFTLANE_INLINE Double2<Wide<V>> SumKept(const P& panel, size_t n, const Range<V>& range,
                                         const ExpReference<V>& ref, const KeptPanel<T>& kept) {
  const auto keep = [&](size_t i, ExpParts<V> e) SOFTLANE_LAMBDA { kept.Store(i, Value(e)); };
  return SumPanel<false>(panel, n, range, ref, keep).sum;
}
template <class P, class Out>
inline void SoftmaxPanel(const Batch& b, P panel, Out out) {
  using V = typename P::V;
  using W = Wide<V>;
  const Range<V> range = PanelRange(panel, b.n);
  const ExpReference<V> ref = MakeReference(range.max, MakeFactor<V>(b.scale));
  const auto kept = KeepPanel(out, b.n, b.scratch);
  const Double2<W> sum = SumKept(panel, b.n, range, ref, kept);
  const Factor<V> factor = PanelFactor<V>(MakeFactorParts<V>(ToDouble2(W::Set(1)), W::Set(1), sum));
  const ExpParts<V> top = Exp(range.max, ref);
  const W certain = CertainExp<V>(Widen(Value(top)), Widen(top), sum);
  const V certain_exp = Narrow(certain, static_cast<V*>(nullptr));
  const bool plain =
      !AnyTrue(Or(Lt(Value(Exp(range.min, ref)), factor.small), Lt(V::Set(0), certain_exp)));
  for (size_t i = 0; i < b.n; ++i) {
    const V e = kept.Keeps() ? kept.Load(i) : Value(Exp(panel.Load(i), ref));
    out.Store(i, plain ? factor.Plain(e) : IfThenElse(Eq(e, certain_exp), V::Set(1), factor(e)));
  }
}

// The same for a group; false, with nothing written, if its Spread is kAny, or a result small or certain.
template <class T>
SOFTLANE_CALL bool SoftmaxGroup(const Batch& b, Group<T> x, OutGroup<T> out,
                                const GroupColumns& columns) {
  using V = Vec<T>;
  using W = Wide<V>;
  const GroupReferences<V> by(b, x, columns);
  if (!by.narrow && !(kHasOrdinary<V> && by.ordinary)) return false;
  // Exps of long columns are computed twice.
  T* const tile = b.n <= kMostGrouped ? static_cast<T*>(b.scratch) : nullptr;
  const OfPanels<T*> kept = TilesOf(columns, b.n, tile);
  const auto sums = !kHasOrdinary<V> || by.narrow
                        ? GroupSums<false, Spread::kNarrow>(x, columns, b.n, by, kept)
                        : GroupSums<false, Spread::kOrdinary>(x, columns, b.n, by, kept);
  V hi[kGroup], lo[kGroup];
  for (size_t p = 0; p < kGroup; ++p) {
    const Double2<W> sum = sums[p].sum;
    const auto parts = MakeFactorParts<V>(ToDouble2(W::Set(1)), W::Set(1), sum);
    const Factor<V> factor = PanelFactor<V>(parts);
    const ExpParts<V> top = Exp(by.ranges[p].max, by.refs[p]);
    const W certain = CertainExp<V>(Widen(Value(top)), Widen(top), sum);
    const V least = Value(Exp(by.ranges[p].min, by.refs[p]));
    if (AnyTrue(Lt(least, factor.small)) || AnyTrue(Lt(W::Set(0), certain))) return false;
    hi[p] = factor.hi;
    lo[p] = factor.lo;
  }
  if (tile != nullptr) {
    out.Write(b.n, columns, [&](size_t i, size_t p, size_t) SOFTLANE_LAMBDA {
      return TimesPair(V::Load(kept[p] + i * V::kLanes), hi[p], lo[p]);
    });
  } else {
    out.Write(b.n, columns, [&](size_t i, size_t p, size_t c) SOFTLANE_LAMBDA {
      return TimesPair(Value(Exp<true>(x.Load(i, c), by.refs[p])), hi[p], lo[p]);
    });
  }
  return true;
}

template <class P, class V>
SOFTLANE_INLINE Stats<V, Wide<V>> PanelStats(const P& panel, size_t n, const Range<V>& range,
                                             const Scale& scale) {
  const ExpReference<V> ref = MakeReference(range.max, MakeFactor<V>(scale));
  return PanelStats(panel, n, range, ref, [](size_t, ExpParts<V>) SOFTLANE_LAMBDA {});
}

// What makes the results of a panel of its elements.
template <class V>
inline LogMap<V> LogMapOf(const Batch& b, const Stats<V, Wide<V>>& stats) {
  V* tag = nullptr;
  const auto log_sum = SplitFor<V>(stats.LogSum());
  return MakeLogMap<V>(Narrow(stats.max, tag), Narrow(log_sum.hi, tag), Narrow(log_sum.lo, tag),
                       b.scale);
}
template <class P, class Out>
inline void LogSoftmaxPanel(const Batch& b, P panel, Out out) {
  using V = typename P::V;
  const LogMap<V> map = LogMapOf(b, PanelStats(panel, b.n, PanelRange(panel, b.n), b.scale));
  if (b.scale.unit) {
    for (size_t i = 0; i < b.n; ++i) out.Store(i, map.Unit(panel.Load(i)));
  } else {
    for (size_t i = 0; i < b.n; ++i) out.Store(i, map.Scaled(panel.Load(i)));
  }
}
// The same for a group; false, with nothing written, for a temperature.
template <class T>
SOFTLANE_CALL bool LogSoftmaxGroup(const Batch& b, Group<T> x, OutGroup<T> out,
                                   const GroupColumns& columns) {
  using V = Vec<T>;
  if (!b.scale.unit) return false;
  const GroupReferences<V> by(b, x, columns);
  const auto stats = GroupStats<T>(x, columns, b.n, by, nullptr);
  const auto maps = MakeOfPanels([&](size_t p) { return LogMapOf(b, stats[p]); });
  out.Write(b.n, columns, [&](size_t i, size_t p, size_t c) SOFTLANE_LAMBDA {
    return maps[p].Unit(x.Load(i, c));
  });
  return true;
}

// Panels wait here for their logarithms, which one alone would take as long as a few together: the processor has
// long chains of several at work, if nothing else lies between them.
template <class V>
class LogSumExpPanels {
 public:
  using W = Wide<V>;
  explicit LogSumExpPanels(const Batch& b) : b_(b), out_(static_cast<double*>(b.out)) {}
  ~LogSumExpPanels() { Finish(); }
  template <class P>
  void Add(size_t first, P panel) {
    Add(first, panel.columns, PanelStats(panel, b_.n, PanelRange(panel, b_.n), b_.scale));
    Waiting& w = panels_[waiting_ - 1];
    if (!AnyTrue(Eq(Abs(w.stats.max), W::Set(kInf)))) return;
    // SciPy's answer for infinities beside a NaN.
    for (size_t i = 0; i < b_.n; ++i) {
      const W x = Widen(panel.Load(i));
      w.invalid = IfThenElse(IsNaN(x), x, w.invalid);
    }
  }
  void Add(size_t first, int columns, const Stats<V, W>& stats) {
    if (waiting_ == kMost) Finish();
    panels_[waiting_++] = {first, columns, stats, W::Set(0)};
  }

 private:
  static constexpr size_t kMost = 4;
  struct Waiting {
    size_t first;
    int columns;
    Stats<V, W> stats;
    W invalid;  // NaN where an element is
  };
  void Finish() {
    for (size_t i = 0; i < waiting_; ++i) {
      const Waiting& w = panels_[i];
      const W value = LogSumExpOf(w.stats.max, w.stats.LogSum());
      StoreN(IfThenElse(IsNaN(w.invalid), w.invalid, value), out_ + w.first, w.columns);
    }
    waiting_ = 0;
  }
  const Batch& b_;
  double* out_;
  size_t waiting_ = 0;
  Waiting panels_[kMost];
};

// What does columns: panels, or copies of them, and groups of float and double, but where they are not ordinary: false.
template <class T>
struct ColumnKernels {
  using Scalar = typename Vec<T>::Scalar;
  void (*panel)(const Batch&, Panel<T>, OutPanel<T>);
  void (*copy)(const Batch&, Panel<Scalar>, OutPanel<Scalar>);
  bool (*group)(const Batch&, Group<T>, OutGroup<T>, const GroupColumns&) = nullptr;
};
template <class T>
constexpr bool kIsGrouped = kHasGroups && sizeof(T) == sizeof(typename Vec<T>::Scalar);
template <class T>
void ForColumns(const Batch& b, const ColumnKernels<T>& kernels) {
  const auto* x = static_cast<const T*>(b.x);
  auto* out = static_cast<T*>(b.out);
  ForGroups<T>(
      out, b.count, b.grouped && kIsGrouped<T>,
      [&](const GroupColumns& columns) {
        const size_t c = columns.first;
        return kernels.group(b, {x + c, b.x_stride}, {out + c, b.out_stride}, columns);
      },
      [&](size_t first, size_t end) {
        ForPanels<T>(x + first, b.x_stride, out + first, b.out_stride, end - first, b.n,
                     Copies::Of(b), [&](size_t, auto panel, auto result) {
                       if constexpr (sizeof(typename decltype(panel)::T) == sizeof(T)) {
                         kernels.panel(b, panel, result);
                       } else {
                         kernels.copy(b, panel, result);
                       }
                     });
      });
}
template <class T>
void SoftmaxCols(const Batch& b) {
  using Scalar = typename Vec<T>::Scalar;
  ColumnKernels<T> kernels{SoftmaxPanel<Panel<T>, OutPanel<T>>,
                           SoftmaxPanel<Panel<Scalar>, OutPanel<Scalar>>};
  if constexpr (kIsGrouped<T>) kernels.group = SoftmaxGroup<T>;
  ForColumns(b, kernels);
}
template <class T>
void LogSoftmaxCols(const Batch& b) {
  using Scalar = typename Vec<T>::Scalar;
  ColumnKernels<T> kernels{LogSoftmaxPanel<Panel<T>, OutPanel<T>>,
                           LogSoftmaxPanel<Panel<Scalar>, OutPanel<Scalar>>};
  if constexpr (kIsGrouped<T>) kernels.group = LogSoftmaxGroup<T>;
  ForColumns(b, kernels);
}
template <class T>
void LogSumExpCols(const Batch& b) {
  using V = Vec<T>;
  LogSumExpPanels<V> logs(b);
  const auto* x = static_cast<const T*>(b.x);
  const auto panels = [&](size_t start, size_t end) {
    ForPanels<T>(x + start, b.x_stride, nullptr, 0, end - start, b.n, Copies{},
                 [&](size_t first, auto panel, auto) { logs.Add(start + first, panel); });
  };
  if constexpr (sizeof(T) < sizeof(typename V::Scalar)) {
    panels(0, b.count);
  } else {
    const auto group = [&](const GroupColumns& columns) {
      const Group<T> panels_of{x + columns.first, b.x_stride};
      const GroupReferences<V> by(b, panels_of, columns);
      for (const Range<V>& range : by.ranges) {
        if (AnyTrue(Eq(Abs(range.max), V::Set(static_cast<T>(kInf))))) return false;
      }
      const auto stats = GroupStats<T>(panels_of, columns, b.n, by, nullptr);
      for (size_t p = 0; p < kGroup; ++p) {
        logs.Add(columns.first + columns.at[p], V::kLanes, stats[p]);
      }
      return true;
    };
    ForGroups<T>(x, b.count, b.grouped, group, panels);
  }
}

// ---- short rows, turned into a panel ------------------------------------------------------------

// Rows up to these lengths are turned, a vector's lanes of them at a time, into a panel of columns: each of their
// steps then takes one vector operation for all, and none works on lanes beyond a row's end. Longer ones, whose
// results would have to be turned back, are quicker as they are; those that have but one result, later (measured:
// bench/NOTES.md).
template <class V>
constexpr size_t kShortRow =
    sizeof(typename V::Scalar) == 8 && SOFTLANE_BACKEND == SOFTLANE_IS_avx512 ? 23 : 40;
template <class V>
constexpr size_t kShortSum = sizeof(typename V::Scalar) == 4 ? 96 : 56;
// The same for pairs of rows, which need less arithmetic, and for those that need exps.
constexpr size_t kShortPair = 12, kShortLogPair = 40, kShortWeighted = 56;
// The longest of all, in whole vectors.
template <class V>
constexpr size_t kLongestTile = (kShortSum<V> + V::kLanes - 1) / V::kLanes * V::kLanes;

// Turns the squares that the first kWidth vectors hold side by side, kWidth by kWidth elements, around
// their diagonals.
template <int kWidth, int kDistance = kWidth / 2, class V>
SOFTLANE_INLINE void TransposeSquares(V (&v)[V::kLanes]) {
  Unrolled<kWidth>([&](int i) SOFTLANE_LAMBDA {
    if ((i & kDistance) == 0) Exchange<kDistance>(v[i], v[i + kDistance]);
  });
  if constexpr (kDistance > 1) TransposeSquares<kWidth, kDistance / 2>(v);
}

// The first kWidth elements of each of kLanes vectors as kWidth vectors, and back.
template <int kWidth, int kDistance, class V>
SOFTLANE_INLINE void GatherSquares(V (&v)[V::kLanes]) {
  if constexpr (kDistance >= kWidth) {
    Unrolled<kDistance>([&](int i)
                            SOFTLANE_LAMBDA { Exchange<kDistance>(v[i], v[i + kDistance]); });
    GatherSquares<kWidth, kDistance / 2>(v);
  } else {
    TransposeSquares<kWidth>(v);
  }
}
template <int kDistance, class V>
SOFTLANE_INLINE void SpreadSquares(V (&v)[V::kLanes]) {
  if constexpr (kDistance < V::kLanes) {
    Unrolled<kDistance>([&](int i)
                            SOFTLANE_LAMBDA { v[i + kDistance] = SwapLanes<kDistance>(v[i]); });
    SpreadSquares<2 * kDistance>(v);
  }
}

// Up to kWidth adjacent columns of up to kLanes rows turned into as many vectors, and back.
template <int kWidth, class T>
SOFTLANE_INLINE void LoadColumns(const void* x, ptrdiff_t stride, size_t rows, int width,
                                 typename Vec<T>::Scalar* tile) {
  using V = Vec<T>;
  V v[V::kLanes];
  const bool full = kWidth == V::kLanes && width == kWidth;
  const T* row = static_cast<const T*>(x);
  const auto load = [&](int r) SOFTLANE_LAMBDA {
    v[r] = full ? V::Load(row) : V::LoadN(row, width, 0);
    row = Step<const T>(row, 1, static_cast<size_t>(r) + 1 < rows ? stride : 0);
  };
  // Conversions are too long to be repeated for each row.
  if constexpr (sizeof(T) == sizeof(typename V::Scalar)) {
    Unrolled<V::kLanes>(load);
  } else {
    for (int r = 0; r < V::kLanes; ++r) load(r);
  }
  GatherSquares<kWidth, V::kLanes / 2>(v);
  Unrolled<kWidth>([&](int i) SOFTLANE_LAMBDA {
    if (i < width) Store(v[i], tile + i * V::kLanes);
  });
}
template <int kWidth, class T>
SOFTLANE_INLINE void StoreColumns(void* out, ptrdiff_t stride, size_t rows, int width,
                                  const typename Vec<T>::Scalar* tile) {
  using V = Vec<T>;
  V v[V::kLanes];
  const bool full = kWidth == V::kLanes && width == kWidth;
  Unrolled<kWidth>([&](int i) SOFTLANE_LAMBDA { v[i] = V::Load(tile + i * V::kLanes); });
  TransposeSquares<kWidth>(v);
  SpreadSquares<kWidth>(v);
  const auto store = [&](int r) SOFTLANE_LAMBDA {
    if (static_cast<size_t>(r) >= rows) return;
    T* row = Step<T>(out, static_cast<size_t>(r), stride);
    if (full) {
      Store(v[r], row);
    } else {
      StoreN(v[r], row, width);
    }
  };
  if constexpr (sizeof(T) == sizeof(typename V::Scalar)) {
    Unrolled<V::kLanes>(store);
  } else {
    for (int r = 0; r < V::kLanes; ++r) store(r);
  }
}

template <int kColumns>
struct Width {
  static constexpr int kWidth = kColumns;
};
// Calls f(first column, number of columns, the narrowest Width that holds them) for the columns of a tile.
template <class V, class F>
inline void ForWidths(size_t n, F f) {
  constexpr int kLanes = V::kLanes;
  for (size_t c = 0; c < n; c += kLanes) {
    const int width = static_cast<int>(Min(kLanes, n - c));
    if (width <= kLanes / 4) {
      f(c, width, Width<kLanes / 4>());
    } else if (width <= kLanes / 2) {
      f(c, width, Width<kLanes / 2>());
    } else {
      f(c, width, Width<kLanes>());
    }
  }
}

// Asks for rows that will be read, or written, after the work on a tile; those that lie several to a cache line come
// by themselves. Not a function that could be called: compilers drop calls of what does nothing but this.
template <class T, bool kWrite>
SOFTLANE_INLINE void PrefetchRows(const void* x, ptrdiff_t stride, size_t rows, size_t n) {
  constexpr size_t kLine = 64;
  if (n * sizeof(T) < kLine) return;
  for (size_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < n * sizeof(T); i += kLine) {
      const char* p = Step<const char>(x, r, stride) + i;
      if constexpr (kWrite) {
        SOFTLANE_PREFETCH_WRITE(p);
      } else {
        SOFTLANE_PREFETCH(p);
      }
    }
  }
}

// Up to kLanes rows of n elements turned into a tile of n vectors, and back. Of the `count` rows that there are the
// next ones are then asked for, and where the results will be `written`, unless that is none.
template <class T>
SOFTLANE_CALL void LoadTile(const void* x, ptrdiff_t stride, size_t first, size_t rows,
                            size_t count, size_t n, typename Vec<T>::Scalar* tile,
                            RowsAt<T> written) {
  const T* base = Step<const T>(x, first, stride);
  ForWidths<Vec<T>>(n, [=](size_t c, int width, auto bound) SOFTLANE_LAMBDA {
    LoadColumns<bound.kWidth, T>(base + c, stride, rows, width, tile + c * Vec<T>::kLanes);
  });
  const size_t ahead = Min(count - first - rows, Vec<T>::kLanes);
  PrefetchRows<T, false>(Step<const T>(base, rows, stride), stride, ahead, n);
  if (written.first != nullptr) PrefetchRows<T, true>(written.first, written.stride, rows, n);
}
template <class T>
SOFTLANE_CALL void StoreTile(void* out, ptrdiff_t stride, size_t first, size_t rows, size_t n,
                             const typename Vec<T>::Scalar* tile) {
  T* base = Step<T>(out, first, stride);
  ForWidths<Vec<T>>(n, [=](size_t c, int width, auto bound) SOFTLANE_LAMBDA {
    StoreColumns<bound.kWidth, T>(base + c, stride, rows, width, tile + c * Vec<T>::kLanes);
  });
}

// Calls f(first row, Panel, OutPanel) for tiles of rows; the OutPanel lies over the Panel, and is
// written to `out` unless that is null.
template <class T, class F>
inline void ForTiles(const void* x, ptrdiff_t x_stride, void* out, ptrdiff_t out_stride,
                     size_t count, size_t n, F f) {
  using Scalar = typename Vec<T>::Scalar;
  constexpr size_t kLanes = Vec<T>::kLanes;
  constexpr auto kStep = static_cast<ptrdiff_t>(kLanes * sizeof(Scalar));
  alignas(64) Scalar tile[kLongestTile<Vec<T>> * kLanes];
  for (size_t first = 0; first < count; first += kLanes) {
    const size_t rows = Min(kLanes, count - first);
    RowsAt<T> written;
    if (out != nullptr) written = {Step<T>(out, first, out_stride), out_stride};
    LoadTile<T>(x, x_stride, first, rows, count, n, tile, written);
    f(first, Panel<Scalar>{tile, kStep, static_cast<int>(rows)},
      OutPanel<Scalar>{tile, kStep, static_cast<int>(rows)});
    if (out != nullptr) StoreTile<T>(out, out_stride, first, rows, n, tile);
  }
}
// Rows of two whole vectors waste no lanes: of float, and of double if a vector is one register.
template <class V>
inline size_t ShortRowFor(size_t n) {
  constexpr bool kWhole = sizeof(typename V::Scalar) == 4 || SOFTLANE_BACKEND == SOFTLANE_IS_avx512;
  return kWhole && n == 2 * V::kLanes ? 0 : kShortRow<V>;
}
inline bool AreShort(size_t count, size_t n, const ChunkIo* io, size_t longest) {
  return n <= longest && count > 1 && io == nullptr;
}

// ---- the row kernels -----------------------------------------------------------------------------

// The results of a row that has small ones, or a certain one, or whose exps were not kept.
template <class T>
SOFTLANE_CALL void WriteRareRow(const Batch& b, const RowBlock<T>& rows, size_t r, T* out,
                                RowsAt<typename Vec<T>::Scalar> kept, const Factor<Vec<T>>& factor,
                                Vec<T> certain) {
  using V = Vec<T>;
  const auto result = [&](V e) { return IfThenElse(Eq(e, certain), V::Set(1), factor(e)); };
  if (kept.first != nullptr) {
    ForStripes<T>(b.crew, b.n, [&](size_t start, size_t count) {
      MapRow<V>(kept[r] + start, out + start, count, [&](size_t, V e) { return result(e); });
    });
  } else {
    const ExpReference<V> ref = rows.Ref(r);
    MapPieces(b, rows.x[r], out, 1, [&](V v) { return result(Value(Exp(v, ref))); });
  }
}

template <class T>
void SoftmaxRows(const Batch& b) {
  using V = Vec<T>;
  if (AreShort(b.count, b.n, b.chunked, ShortRowFor<V>(b.n))) {
    ForTiles<T>(b.x, b.x_stride, b.out, b.out_stride, b.count, b.n,
                [&](size_t, auto panel, auto out) { SoftmaxPanel(b, panel, out); });
    return;
  }
  ExpBuffer<T> buffer;
  ForRowBlocks<T>(b, kForResults, [&](RowBlock<T>& rows, size_t first) {
    using W = Wide<V>;
    const RowsAt<T> out{Step<T>(b.out, first, b.out_stride), b.out_stride};
    const auto kept = buffer.Rows(out, rows.rows, b.n, b.chunked, b.scratch);
    rows.template SumRows<false>(kept, buffer.Holds(kept) ? out : RowsAt<T>(), rows.All());
    const Double2<W> sums = rows.Sums();
    const Factor<V> all = PanelFactor<V>(MakeFactorParts<V>(ToDouble2(W::Set(1)), W::Set(1), sums));
    const PerRow hi(all.hi), lo(all.lo);
    const Double2<W> top = rows.Exps(rows.max);
    const W certain = CertainExp<V>(Widen(rows.StoredExps(rows.max)), top, sums);
    const V certain_exp = Narrow(certain, static_cast<V*>(nullptr));
    const uint32_t rare =
        MaskBits<V>::Of(Or(Lt(rows.StoredExps(rows.min), all.small), Lt(V::Set(0), certain_exp)));
    for (size_t r = 0; r < rows.rows; ++r) {
      if (kept.first == nullptr || rows.crew != nullptr || rows.Has(rare, r)) {
        WriteRareRow(b, rows, r, out[r], kept, FactorOfRow(all, r), PerRow(certain_exp).All(r));
      } else {
        const V high = hi.All(r), low = lo.All(r);
        MapRow<V, kLines>(kept[r], out[r], b.n,
                          [=](size_t, V e) SOFTLANE_LAMBDA { return TimesPair(e, high, low); });
      }
    }
  });
}

template <class T>
void LogSoftmaxRows(const Batch& b) {
  using V = Vec<T>;
  if (AreShort(b.count, b.n, b.chunked, ShortRowFor<V>(b.n))) {
    ForTiles<T>(b.x, b.x_stride, b.out, b.out_stride, b.count, b.n,
                [&](size_t, auto panel, auto out) { LogSoftmaxPanel(b, panel, out); });
    return;
  }
  ForRowBlocks<T>(b, kForResults, [&](RowBlock<T>& rows, size_t first) {
    const RowsAt<T> out{Step<T>(b.out, first, b.out_stride), b.out_stride};
    const bool is_soon = b.n * sizeof(T) <= kWrittenSoon<T>;
    rows.template SumRows<true>({}, is_soon ? out : RowsAt<T>(), rows.All());
    const auto stats = rows.Statistics();
    const auto log_sum = SplitFor<V>(stats.LogSum());
    V* tag = nullptr;
    const PerRow max(rows.max), hi(Narrow(log_sum.hi, tag)), lo(Narrow(log_sum.lo, tag));
    for (size_t r = 0; r < rows.rows; ++r) {
      if (b.scale.unit && b.chunked == nullptr && rows.crew == nullptr) {
        const V top = max.All(r), log = hi.All(r);
        MapRow<V, kLines>(rows.x[r], out[r], b.n,
                          [=](size_t, V v) SOFTLANE_LAMBDA { return Sub(Sub(v, top), log); });
      } else {
        const LogMap<V> map = MakeLogMap<V>(max.All(r), hi.All(r), lo.All(r), b.scale);
        MapPieces(b, rows.x[r], out[r], 1,
                  [&](V v) { return b.scale.unit ? map.Unit(v) : map.Scaled(v); });
      }
    }
  });
}

template <class T>
void LogSumExpRows(const Batch& b) {
  if (AreShort(b.count, b.n, b.chunked, kShortSum<Vec<T>>)) {
    LogSumExpPanels<Vec<T>> panels(b);
    ForTiles<T>(b.x, b.x_stride, nullptr, 0, b.count, b.n,
                [&](size_t first, auto panel, auto) { panels.Add(first, panel); });
    return;
  }
  double* out = static_cast<double*>(b.out);
  ForRowBlocks<T>(b, kForSums, [&](RowBlock<T>& rows, size_t first) {
    rows.template SumRows<true>({}, {}, rows.All());
    const auto stats = rows.Statistics();
    StoreN(LogSumExpOf(stats.max, stats.LogSum()), out + first, static_cast<int>(rows.rows));
    if (!AnyTrue(Eq(Abs(stats.max), Wide<Vec<T>>::Set(kInf)))) return;
    const PerRow max(stats.max);
    for (size_t r = 0; r < rows.rows; ++r) {
      const bool infinite = max[r] == kInf || max[r] == -kInf;
      if (infinite && HasNaN(rows.x[r], b.n, b.chunked)) out[first + r] = kInf - kInf;
    }
  });
}

// ---- sums that others go on with -----------------------------------------------------------------

// Of doubles: near 0 the logarithm of the sum has digits that float exps do not.
inline void ExpSumRows(const Batch& b) {
  using T = double;
  using Format = ExpFormat<T>;
  auto* out = static_cast<ExpSumState*>(b.out);
  ForRowBlocks<T>(b, kForSums, [&](RowBlock<T>& rows, size_t first) {
    rows.template SumRows<true>({}, {}, rows.All());
    auto stats = rows.Statistics();
    // Without 33/32, and the maximum's exp sharp: of a maximum near 0 it has a small logarithm.
    stats.others = Lowered(stats.others);
    stats.top = Widen(Exp<false, true>(rows.max, rows.ref));
    const auto sum = stats.Sum();
    const PerRow max(stats.max), hi(sum.hi), lo(sum.lo);
    for (size_t r = 0; r < rows.rows; ++r) {
      if (max[r] == kInf || max[r] == -kInf) {
        const bool has_nan = HasNaN(rows.x[r], b.n, b.chunked);
        const double value = has_nan ? kInf - kInf : max[r] == kInf ? kInf : 0;
        out[first + r] = {0, kNoExponent, value, 0};
        continue;
      }
      const ExpReference<Vec<T>> ref = rows.Ref(r);
      const auto magic = FirstLane(ref.magic);
      out[first + r] = {FirstLane(ref.shift), Format::kMagic + Format::kBias - magic, hi[r], lo[r]};
    }
  });
}

// log(mantissa·2^exponent) + shift. A mantissa near 1 keeps the small logarithm it has, so it is taken
// from [3/4, 3/2).
inline void LogOfSums(const ExpSumState* sums, double* out, size_t n) {
  using V = F64;
  const Double2<V> ln2 = {V::Set(kLn2DDHi), V::Set(kLn2DDLo)};
  for (size_t i = 0; i < n; ++i) {
    const ExpSumState s = sums[i];
    if (!(s.hi > 0 && s.hi < kInf)) {
      out[i] = s.hi == 0 ? -kInf : s.hi == kInf ? kInf : kInf - kInf;
      continue;
    }
    const Decomposed<V> d = Decompose(V::Set(s.hi));
    const bool upper = FirstLane(d.mantissa) >= 1.5;
    const double binades = FirstLane(d.exponent) + (upper ? 1 : 0);
    const PowerScale<V> down(-static_cast<int>(binades));
    const Double2<V> mantissa = {down(V::Set(s.hi)), down(V::Set(s.lo))};
    const V exponent = V::Set(s.exponent + binades);
    const Double2<V> log = Add(Log(mantissa), Mul(ToDouble2(exponent), ln2));
    const Double2<V> all = Add(ToDouble2(V::Set(s.shift)), log);
    out[i] = FirstLane(Add(all.hi, all.lo));
  }
}

// ---- weighted sums ------------------------------------------------------------------------------

// The z of a sharp Exp as a sum of two: r·ln 2 exactly, with what r lost to rounding, and the higher terms.
inline Double2<F64> ExactZ(F64 x, const ExpReference<F64>& ref) {
  x = Max(ref.floor, Sub(x, ref.shift));
  const F64 t = MulAdd(x, ref.k.hi, ref.magic);
  const F64 r_hi = MulSub(x, ref.k.hi, Sub(t, ref.magic));
  const auto bits = BitsOf(t);
  const Double2<F64> step = TwoSum(r_hi, Lookup8(kExp2StepD, bits));
  const F64 rest = Add(step.lo, Lookup8(kExp2StepLoD, bits));
  const Double2<F64> r = TwoSum(step.hi, MulAdd(x, ref.k.lo, rest));
  const Double2<F64> linear = TwoProd(r.hi, F64::Set(kLn2DDHi));
  const F64 low = MulAdd(r.lo, F64::Set(kLn2DDHi), MulAdd(r.hi, F64::Set(kLn2DDLo), linear.lo));
  const F64 higher = Mul(Mul(r.hi, r.hi), Exp2Tail(r.hi));
  const Double2<F64> sum = TwoSum(linear.hi, higher);
  return FastTwoSum(sum.hi, Add(sum.lo, low));
}

// Calls f(x, b) for the vectors of a row; where b is 0, x is -inf.
template <class F>
SOFTLANE_INLINE void ForWeighted(const WeightedBatch& w, size_t row, F f) {
  using V = F64;
  ForChunks(w.x + row * w.n, w.n, w.chunked, 0, [&](const double* x, size_t start, size_t chunk) {
    const double* b = w.b + row * w.n + start;
    if (w.chunked != nullptr) {
      b = static_cast<const double*>(w.chunked->fetch(w.chunked->context, 1, start, chunk));
    }
    for (size_t i = 0; i < chunk; i += V::kLanes) {
      const int count = static_cast<int>(Min(V::kLanes, chunk - i));
      const V bv = V::LoadN(b + i, count, 0);
      f(IfThenElse(Eq(bv, V::Set(0)), V::Set(-kInf), V::LoadN(x + i, count, -kInf)), bv);
    }
  });
}

// Σ b·exp(x) of ordinary rows, whose b are positive (or 0) and not far from 1: no product leaves the range, and
// nothing cancels. Beside the errors of ExpSum each product is rounded once: below 1 u of the sum, an error in its
// logarithm that results (or x) from `least` on do not show.
struct PlainWeighted {
  using V = F64;
  V top = V::Set(-kInf), least = V::Set(kInf), most = V::Set(0), bad = V::Set(0);
  ExpReference<V> ref;
  SOFTLANE_INLINE void See(V x, V b) {
    top = Max(x, top);
    most = Max(b, most);
    least = Min(IfThenElse(Eq(b, V::Set(0)), V::Set(kInf), b), least);
    bad = IfThenElse(Or(Or(IsNaN(x), IsNaN(b)), Lt(b, V::Set(0))), V::Set(1), bad);
  }
  V IsOrdinary() const {
    const auto finite = Lt(Abs(top), V::Set(kInf));
    const auto near = And(Lt(V::Set(0x1p-400), least), Lt(most, V::Set(0x1p400)));
    return IfThenElseZero(And(And(finite, near), Eq(bad, V::Set(0))), V::Set(1));
  }
  // Brings the facts of a row's lanes together.
  void Join() {
    top = V::Set(MaxLane(top));
    most = V::Set(MaxLane(most));
    least = V::Set(MinLane(least));
    bad = V::Set(MaxLane(bad));
  }
  struct Sum {
    ExpSum<V, false> sum;
    size_t added = 0;
    SOFTLANE_INLINE void Add(V x, V b, const ExpReference<V>& ref) {
      ExpParts<V> e = Exp(x, ref);
      e.scale = Mul(e.scale, b);
      if (added++ % (kBlock / V::kLanes) == 0) sum.EndBlock();  // b may be too small for the grid
      sum.Add(e);
    }
    Double2<V> Lanes() const { return AddTo(sum.Sum(), sum.part); }
  };
  // log of a sum in units of 2^-kSpare, beside the reference.
  V LogOf(Double2<V> total) const {
    using Format = ExpFormat<double>;
    const V down = V::Set(PowerOfTwo(-static_cast<int>(Format::kSpare)));
    const V exponent = Sub(V::Set(Format::kMagic + Format::kBias + Format::kSpare), ref.magic);
    const Double2<V> sum = Lowered(total);
    const Double2<V> log = Log(Double2<V>{Mul(sum.hi, down), Mul(sum.lo, down)});
    const Double2<V> ln2 = {V::Set(kLn2DDHi), V::Set(kLn2DDLo)};
    const Double2<V> all = softlane::SOFTLANE_ISA::Add(Mul(ToDouble2(exponent), ln2), log);
    const Double2<V> moved = softlane::SOFTLANE_ISA::Add(ToDouble2(ref.shift), all);
    return softlane::SOFTLANE_ISA::Add(moved.hi, moved.lo);
  }
  // Where the result has its digits: 1, elsewhere 0.
  V Holds(V result, double least_result) const {
    const V size = Max(Abs(result), Abs(top));
    return IfThenElseZero(Lt(V::Set(least_result), size), V::Set(1));
  }
};

// log|Σ b·exp(x)| and its sign. The exponent of b joins that of exp(x), so no product overflows; an
// element with b == 0 has no part, whatever x holds.
SOFTLANE_CALL void WeightedRow(const WeightedBatch& w, size_t row) {
  using V = F64;
  const V zero = V::Set(0);
  const ExpFactor<V> k = UnitFactor<V>();
  const auto for_vectors = [&](auto f) { ForWeighted(w, row, f); };
  double* const result = w.result + row;
  double* const sign = w.sign + row;
  // The extremes first: NaN, infinite terms, the largest x and the largest x·k + exponent of b.
  bool nan = false, plus = false, minus = false;
  V top = V::Set(-kInf);
  for_vectors([&](V x, V b) {
    const V term = Mul(b, IfThenElse(Eq(x, V::Set(-kInf)), zero, V::Set(1)));
    nan = nan || AnyTrue(IsNaN(x)) || AnyTrue(IsNaN(term));
    const auto infinite = Or(Eq(x, V::Set(kInf)), Eq(Abs(term), V::Set(kInf)));
    plus = plus || AnyTrue(And(infinite, Lt(zero, b)));
    minus = minus || AnyTrue(And(infinite, Lt(b, zero)));
    top = Max(x, top);
  });
  *sign = 1;
  *result = kInf - kInf;
  if (nan || (plus && minus)) {
    *sign = *result;
    return;
  }
  if (plus || minus) {
    *sign = plus ? 1 : -1;
    *result = kInf;
    return;
  }
  const double max = MaxLane(top);
  if (max == -kInf) {
    *sign = 0;
    *result = -kInf;
    return;
  }
  // b moves the largest term by up to 2100 binades: the maximum is subtracted only far beyond that.
  const bool far = max * kLog2EHi > 0x1p14 || max * kLog2EHi < -0x1p14;
  const V shift = V::Set(far ? max : 0);
  V highest = V::Set(-kInf);
  for_vectors([&](V x, V b) {
    const V here = MulAdd(Sub(x, shift), k.hi, Decompose(b).exponent);
    highest = Max(IfThenElse(Eq(b, zero), V::Set(-kInf), here), highest);
  });
  const double round = ExpFormat<double>::kRound;
  const double exponent = (MaxLane(highest) + round) - round;
  using Format = ExpFormat<double>;
  V sum = zero, part = zero, error = zero;
  for_vectors([&](V x, V b) {
    const Decomposed<V> d = Decompose(b);
    const V n = Sub(V::Set(exponent), d.exponent);
    ExpReference<V> ref;
    ref.k = k;
    ref.shift = shift;
    ref.magic = Sub(V::Set(Format::kMagic + Format::kBias), n);
    ref.floor = Mul(Sub(n, V::Set(Format::kFloor)), k.inverse);
    ExpParts<V> e = Exp(x, ref);
    // A sum near 1 has a small logarithm: here z is needed to its own last digit.
    const Double2<V> z = ExactZ(x, ref);
    const Double2<V> p = TwoProd(e.scale, d.mantissa);
    const Double2<V> s = TwoSum(sum, p.hi);
    sum = s.hi;
    const Double2<V> q = TwoProd(z.hi, p.hi);
    const Double2<V> t = TwoSum(part, q.hi);
    part = t.hi;
    error = Add(error, Add(Add(s.lo, p.lo), Add(t.lo, MulAdd(z.lo, p.hi, q.lo))));
  });
  const Double2<V> flushed = TwoSum(sum, part);
  Double2<V> total = SumLanes(Double2<V>{flushed.hi, Add(error, flushed.lo)});
  total = FastTwoSum(total.hi, total.lo);
  const double value = FirstLane(total.hi);
  *sign = value > 0 ? 1 : value < 0 ? -1 : 0;
  *result = -kInf;
  if (value == 0) return;
  const ExpSumState sum_state{FirstLane(shift), exponent, value * *sign,
                              FirstLane(total.lo) * *sign};
  LogOfSums(&sum_state, result, 1);
}

inline void LogSumExpWeighted(const WeightedBatch& w) {
  using V = F64;
  using Sum = PlainWeighted::Sum;
  const ExpFactor<V> k = UnitFactor<V>();
  if (!AreShort(w.count, w.n, w.chunked, kShortWeighted)) {
    for (size_t row = 0; row < w.count; ++row) {
      PlainWeighted plain;
      ForWeighted(w, row, [&](V x, V b) SOFTLANE_LAMBDA { plain.See(x, b); });
      plain.Join();
      if (FirstLane(plain.IsOrdinary()) != 0) {
        plain.ref = MakeReference(plain.top, k);
        Sum sum;
        ForWeighted(w, row, [&](V x, V b) SOFTLANE_LAMBDA { sum.Add(x, b, plain.ref); });
        const V result = plain.LogOf(SumLanes(sum.Lanes()));
        if (FirstLane(plain.Holds(result, w.least)) != 0) {
          w.result[row] = FirstLane(result);
          w.sign[row] = 1;
          continue;
        }
      }
      WeightedRow(w, row);
    }
    return;
  }
  alignas(64) double x[kShortWeighted * V::kLanes];
  alignas(64) double b[kShortWeighted * V::kLanes];
  const auto stride = static_cast<ptrdiff_t>(w.n * sizeof(double));
  for (size_t first = 0; first < w.count; first += V::kLanes) {
    const size_t rows = Min(V::kLanes, w.count - first);
    LoadTile<double>(w.x, stride, first, rows, w.count, w.n, x, {});
    LoadTile<double>(w.b, stride, first, rows, w.count, w.n, b, {});
    const auto weight = [&](size_t i) SOFTLANE_LAMBDA { return V::Load(b + i * V::kLanes); };
    const auto logit = [&](size_t i) SOFTLANE_LAMBDA {
      const V v = V::Load(x + i * V::kLanes);
      return IfThenElse(Eq(weight(i), V::Set(0)), V::Set(-kInf), v);
    };
    PlainWeighted plain;
    for (size_t i = 0; i < w.n; ++i) plain.See(logit(i), weight(i));
    const V ordinary = plain.IsOrdinary();
    plain.ref = MakeReference(plain.top, k);
    const V result =
        plain.LogOf(PanelFold<Sum, V::kLanes>(w.n, [&](size_t i, Sum& lane) SOFTLANE_LAMBDA {
          lane.Add(logit(i), weight(i), plain.ref);
        }));
    double holds[V::kLanes];
    Store(Mul(ordinary, plain.Holds(result, w.least)), holds);
    StoreN(result, w.result + first, static_cast<int>(rows));
    for (size_t r = 0; r < rows; ++r) {
      w.sign[first + r] = 1;
      if (holds[r] == 0) WeightedRow(w, first + r);
    }
  }
}

// ---- elementary functions -----------------------------------------------------------------------

template <class V, class F>
inline void MapElementary(const typename V::Scalar* x, typename V::Scalar* out, size_t n, F f) {
  MapRow<V>(x, out, n, [&](size_t, V v) { return f(v); });
}
template <class T>
void ExpArray(const T* x, T* out, size_t n) {
  MapElementary<Vec<T>>(x, out, n, [](Vec<T> v) { return Elementary<Vec<T>>::Exp(v); });
}
template <class T>
void Expm1Array(const T* x, T* out, size_t n) {
  MapElementary<Vec<T>>(x, out, n, [](Vec<T> v) { return Elementary<Vec<T>>::Expm1(v); });
}
template <class T>
void LogArray(const T* x, T* out, size_t n) {
  MapElementary<Vec<T>>(x, out, n, [](Vec<T> v) {
    Vec<T>* tag = nullptr;
    return Narrow(Elementary<Vec<T>>::LogWide(Widen(v)), tag);
  });
}
template <class T>
void Log1pArray(const T* x, T* out, size_t n) {
  MapElementary<Vec<T>>(x, out, n, [](Vec<T> v) {
    Vec<T>* tag = nullptr;
    return Narrow(Elementary<Vec<T>>::Log1pWide(Widen(v)), tag);
  });
}
