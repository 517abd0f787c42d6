// Cross-entropy and its gradient from the same sweep.
#pragma once

// Double-word arithmetic that lets an infinite or NaN leading part through.
template <class W>
inline Double2<W> Safe(Double2<W> x) {
  return {x.hi, IfThenElseZero(Eq(Sub(x.hi, x.hi), W::Set(0)), x.lo)};
}
template <class W>
inline Double2<W> SafeAdd(Double2<W> a, Double2<W> b) {
  const Double2<W> sum = Add(a, b);
  const W plain = Add(a.hi, b.hi);
  const auto finite = Eq(Sub(plain, plain), W::Set(0));
  return {IfThenElse(finite, sum.hi, plain), IfThenElseZero(finite, sum.lo)};
}
// A zero factor wins over an infinite term.
template <class W>
inline Double2<W> SafeMul(Double2<W> factor, Double2<W> x) {
  const W zero = W::Set(0);
  const Double2<W> product = Mul(factor, x);
  const W plain = IfThenElse(Eq(factor.hi, zero), zero, Mul(factor.hi, x.hi));
  const auto finite = Eq(Sub(product.hi, product.hi), zero);
  return {IfThenElse(finite, product.hi, plain), IfThenElseZero(finite, product.lo)};
}

// Samples with V's elements, one a lane of W.
template <class V, class W>
struct Sample {
  Stats<V, W> stats;
  W target;           // the logit at the target
  Double2<W> gap;     // Σ w·(max - x) in units of 1/kGapScale, for label smoothing alone
  Double2<W> weight;  // the target's class weight
  Double2<W> weight_sum;
  W coef;  // sample weight
};

// What the samples of a batch share.
template <class W>
struct LossTerms {
  Double2<W> inverse_temperature, keep, spread;  // 1/T, 1 - ε, ε/C
  Double2<W> divisor;
  bool smooth;
  W z_loss, offset;
  bool plain;  // none of the options: the loss is (max - x_y) + log Σ
};
template <class W>
SOFTLANE_CALL LossTerms<W> MakeTerms(const LossBatch& b) {
  const Double2<W> keep = TwoSum(W::Set(1), W::Set(-b.smoothing));
  const Double2<W> spread =
      Div(ToDouble2(W::Set(b.smoothing)), ToDouble2(W::Set(b.smoothing != 0 ? b.classes : 1)));
  return {{W::Set(b.scale.inv_hi), W::Set(b.scale.inv_lo)},
          keep,
          spread,
          {W::Set(b.divisor), W::Set(b.divisor_lo)},
          b.smoothing != 0,
          W::Set(b.z_loss),
          W::Set(b.offset),
          b.scale.unit && b.smoothing == 0 && b.z_loss == 0 && b.weight == nullptr &&
              b.coef == nullptr};
}

// Floats' samples, whose numbers are doubles, fill two vectors of these. Where the plain formulas do not serve, one
// after the other is dealt with: half of the code.
template <class V, class W>
constexpr bool kHasHalves = Stats<V, W>::kFloat && sizeof(W) != sizeof(F64);
SOFTLANE_INLINE F64 HalfOf(D16 x, bool second) { return second ? x.b : x.a; }
SOFTLANE_INLINE Double2<F64> HalfOf(Double2<D16> x, bool second) {
  return {HalfOf(x.hi, second), HalfOf(x.lo, second)};
}
template <class V>
inline Sample<V, F64> HalfOf(const Sample<V, D16>& s, bool second) {
  const auto half = [=](auto x) { return HalfOf(x, second); };
  return {{half(s.stats.max), half(s.stats.others), half(s.stats.top)},
          half(s.target),
          half(s.gap),
          half(s.weight),
          half(s.weight_sum),
          half(s.coef)};
}
inline LossTerms<F64> HalfOf(const LossTerms<D16>& t) {
  const auto half = [](auto x) { return HalfOf(x, false); };
  return {half(t.inverse_temperature),
          half(t.keep),
          half(t.spread),
          half(t.divisor),
          t.smooth,
          half(t.z_loss),
          half(t.offset),
          t.plain};
}

// log Σ exp(x/T), infinite only with the logits.
template <class V, class W>
inline Double2<W> SampleLogSumExp(const Stats<V, W>& stats, const Double2<W>& log_sum,
                                  const LossTerms<W>& terms) {
  const Double2<W> top = SafeMul(terms.inverse_temperature, ToDouble2(stats.max));
  return SafeAdd(SafeAdd(top, log_sum), ToDouble2(terms.offset));
}

// Differences of logits can overflow where the loss does not, so their sums are kept in a smaller unit.
// That costs no digits: where they are tiny all logits are alike, and log Σ dwarfs them.
constexpr double kGapScale = 0x1p-64;

// coef * [(1-ε)·w_y·((max - x_y)/T + log Σ) + ε/C·(Σ w·(max - x)/T + Σw·log Σ)]; each term is >= 0
// where the weights are. Beside it coef·λ·logsumexp².
template <class V, class W>
SOFTLANE_CALL W SampleLoss(const Sample<V, W>& s, const LossTerms<W>& terms) {
  const W zero = W::Set(0), one = W::Set(1), far = W::Set(0x1p900);
  if constexpr (Stats<V, W>::kFloat) {
    // The difference is rounded at 2^-53 of it, or infinite.
    if (terms.plain) return Add(Sub(s.stats.max, s.target), s.stats.LogSum().hi);
  }
  if constexpr (kHasHalves<V, W>) {
    const LossTerms<F64> half_terms = HalfOf(terms);
    F64 loss[2];
    for (int i = 0; i < 2; ++i) loss[i] = SampleLoss(HalfOf(s, i == 1), half_terms);
    return {loss[0], loss[1]};
  }
  const auto huge =
      Or(Or(Lt(far, Abs(s.stats.max)), Lt(far, Abs(s.target))), Lt(far, Abs(s.gap.hi)));
  if (terms.plain && !AnyTrue(huge)) {
    const Double2<W> loss =
        SafeAdd(Safe(TwoSum(s.stats.max, Sub(zero, s.target))), s.stats.LogSum());
    return Add(loss.hi, loss.lo);
  }
  const W unit = IfThenElse(huge, W::Set(kGapScale), one);
  const W gap_unit = IfThenElse(huge, one, W::Set(1 / kGapScale));
  const Double2<W> full_log_sum = s.stats.LogSum();
  const Double2<W> log_sum = {Mul(full_log_sum.hi, unit), Mul(full_log_sum.lo, unit)};
  const Double2<W> difference =
      Safe(TwoSum(Mul(s.stats.max, unit), Sub(zero, Mul(s.target, unit))));
  const Double2<W> coef = ToDouble2(s.coef);
  Double2<W> loss = SafeAdd(SafeMul(terms.inverse_temperature, difference), log_sum);
  loss = SafeMul(SafeMul(coef, Mul(terms.keep, s.weight)), loss);
  if (terms.smooth) {
    const Double2<W> gap = {Mul(s.gap.hi, gap_unit), Mul(s.gap.lo, gap_unit)};
    const Double2<W> all =
        SafeAdd(SafeMul(terms.inverse_temperature, gap), SafeMul(s.weight_sum, log_sum));
    loss = SafeAdd(loss, SafeMul(SafeMul(coef, terms.spread), all));
  }
  const W unscale = Div(one, unit);
  if (AnyTrue(Lt(zero, Abs(terms.z_loss)))) {
    const Double2<W> lse = SampleLogSumExp(s.stats, full_log_sum, terms);
    const Double2<W> penalty = SafeMul(SafeMul(coef, ToDouble2(terms.z_loss)), SafeMul(lse, lse));
    loss = SafeAdd({Mul(loss.hi, unscale), Mul(loss.lo, unscale)}, penalty);
    return Add(loss.hi, loss.lo);
  }
  const W result = Mul(Add(loss.hi, loss.lo), unscale);
  // Confident beyond the normal numbers, and nothing but log Σ: the weights join before the one rounding.
  Double2<W> factor = Mul(terms.keep, s.weight);
  const W others = s.stats.others.hi;
  auto tiny = And(And(Lt(Abs(loss.hi), W::Set(0x1p-900)), Eq(Sub(others, others), zero)),
                  Or(Eq(difference.hi, zero), Eq(factor.hi, zero)));
  if (terms.smooth) {
    tiny = And(tiny, Eq(s.gap.hi, zero));
    factor = Add(factor, Mul(terms.spread, s.weight_sum));
  }
  if (!AnyTrue(tiny)) return result;
  return IfThenElse(tiny, Quotient(Mul(Mul(coef, factor), s.stats.others), s.stats.top), result);
}

// The gradient of a row, g_c = prob·p_c - share·w_c, and its value at the target, where p - 1 would
// cancel: there -(Σ_{c≠y} exp)/Σ is used, with the sum that leaves out the maximum if y is the maximum.
template <class W>
struct GradTerms {
  Double2<W> prob, sum;  // g + share·w = prob·exp/sum
  Double2<W> share;      // spread·coef/T
  W at_target;
};
// Without smoothing and penalty, for floats: double has digits and range enough.
template <class V, class W>
inline GradTerms<W> PlainSampleGrad(const Sample<V, W>& s, W target_exp,
                                    const LossTerms<W>& terms) {
  const W zero = W::Set(0);
  const W hit = Mul(Div(Mul(s.weight.hi, s.coef), terms.divisor.hi), terms.inverse_temperature.hi);
  const W total = Add(s.stats.others.hi, s.stats.top.hi);
  const W others = IfThenElse(Eq(s.target, s.stats.max), s.stats.others.hi, Sub(total, target_exp));
  return {ToDouble2(hit), ToDouble2(total), ToDouble2(zero),
          Sub(zero, Mul(hit, Div(others, total)))};
}
template <class V, class W>
SOFTLANE_CALL GradTerms<W> SampleGrad(const Sample<V, W>& s, Double2<W> target_exp,
                                      const LossTerms<W>& terms) {
  const bool penalised = AnyTrue(Lt(W::Set(0), Abs(terms.z_loss)));
  const bool more = terms.smooth || penalised;
  if constexpr (Stats<V, W>::kFloat) {
    if (!more) return PlainSampleGrad(s, target_exp.hi, terms);
  }
  if constexpr (kHasHalves<V, W>) {
    const LossTerms<F64> half_terms = HalfOf(terms);
    GradTerms<F64> half[2];
    for (int i = 0; i < 2; ++i) {
      half[i] = SampleGrad(HalfOf(s, i == 1), HalfOf(target_exp, i == 1), half_terms);
    }
    const auto both = [](Double2<F64> a, Double2<F64> b) {
      return Double2<W>{{a.hi, b.hi}, {a.lo, b.lo}};
    };
    return {both(half[0].prob, half[1].prob),
            both(half[0].sum, half[1].sum),
            both(half[0].share, half[1].share),
            {half[0].at_target, half[1].at_target}};
  }
  const Double2<W> total = s.stats.Sum();
  const Double2<W> coef = Mul(Div(ToDouble2(s.coef), terms.divisor), terms.inverse_temperature);
  const Double2<W> hit = Mul(Mul(terms.keep, s.weight), coef);
  const Double2<W> share = Mul(terms.spread, coef);
  Double2<W> prob = terms.smooth ? Add(hit, Mul(share, s.weight_sum)) : hit;
  const auto is_max = Eq(s.target, s.stats.max);
  const Double2<W> rest =
      Add(total, {Sub(W::Set(0), target_exp.hi), Sub(W::Set(0), target_exp.lo)});
  const Double2<W> others = {IfThenElse(is_max, s.stats.others.hi, rest.hi),
                             IfThenElse(is_max, s.stats.others.lo, rest.lo)};
  // A large weight could overflow before the division, a small quotient would lose digits after it.
  const Double2<W> ratio = Mul(hit, Div(others, total));
  const W quotient = Quotient(Mul(hit, others), total);
  const auto large = Lt(W::Set(0x1p400), Abs(hit.hi));
  // With more terms to come the digits of the ratio are kept.
  const auto sharp = Or(large, Lt(W::Set(0x1p-900), Abs(ratio.hi)));
  const auto as_ratio = more ? sharp : large;
  const W zero = W::Set(0);
  Double2<W> at_target = {Sub(zero, IfThenElse(as_ratio, ratio.hi, quotient)),
                          Sub(zero, IfThenElse(as_ratio, ratio.lo, zero))};
  const Double2<W> p = Div(target_exp, total);
  if (terms.smooth) {
    const Double2<W> pull = {Sub(zero, s.weight.hi), Sub(zero, s.weight.lo)};
    at_target = SafeAdd(at_target, Mul(share, Add(Mul(p, s.weight_sum), pull)));
  }
  if (penalised) {
    const Double2<W> lse = SampleLogSumExp(s.stats, s.stats.LogSum(), terms);
    const Double2<W> penalty = SafeMul(SafeMul(ToDouble2(Mul(W::Set(2), terms.z_loss)), coef), lse);
    prob = SafeAdd(prob, penalty);
    at_target = SafeAdd(at_target, SafeMul(penalty, p));
  }
  return {prob, total, share, Add(at_target.hi, at_target.lo)};
}

inline Double2<F64> SumLanes(Double2<D16> x) {
  return SumLanes(AddLanes(Double2<F64>{x.hi.a, x.lo.a}, Double2<F64>{x.hi.b, x.lo.b}));
}
// A finished sum, whose low part may have been the larger one.
template <class W>
inline Double2<W> Settled(Double2<W> sum) {
  const Double2<W> safe = Safe(sum);
  return Safe(FastTwoSum(safe.hi, safe.lo));
}
template <class W>
inline Double2<W> Settled(W sum) {
  return ToDouble2(sum);
}

// A running sum with its rounding errors.
template <class W>
struct ExactSum {
  W sum = W::Set(0), error = W::Set(0);
  SOFTLANE_INLINE void Add(Double2<W> x) {
    const Double2<W> s = TwoSum(sum, x.hi);
    sum = s.hi;
    error = softlane::SOFTLANE_ISA::Add(error, softlane::SOFTLANE_ISA::Add(s.lo, x.lo));
  }
  SOFTLANE_INLINE void Add(W x) { Add(ToDouble2(x)); }
  SOFTLANE_INLINE void AddProduct(W a, W b) { Add(TwoProd(a, b)); }
  Double2<W> Lanes() const { return {sum, error}; }
  Double2<F64> Total() const { return Settled(SumLanes(Lanes())); }
};
// A running sum of floats, or of products of two, in double, whose own errors are far below theirs.
template <class W>
struct WideSum {
  W sum = W::Set(0);
  SOFTLANE_INLINE void Add(W x) { sum = softlane::SOFTLANE_ISA::Add(sum, x); }
  SOFTLANE_INLINE void AddProduct(W a, W b) { sum = MulAdd(a, b, sum); }  // which is exact
  W Lanes() const { return sum; }
  Double2<F64> Total() const { return ToDouble2(SumLanes(sum)); }
};
// A running sum of V's elements, in double with all the digits that those have.
template <class V>
struct WholeSumOf {
  using Type = WideSum<Wide<V>>;
};
template <>
struct WholeSumOf<F64> {
  using Type = ExactSum<F64>;
};
template <class V>
using WholeSum = typename WholeSumOf<V>::Type;

// Σ w·(max - x)·kGapScale over lanes, of doubles with its rounding errors. A class of weight 0 has no part,
// whatever its logit.
template <class V>
struct GapSum;
template <>
struct GapSum<F32> {
  using W = D16;
  W sum = W::Set(0);
  void Add(F32 x, W max, Double2<W> weight) {
    const W d = Sub(max, Widen(x));
    const W gone = IfThenElse(Eq(weight.hi, W::Set(0)), W::Set(0), d);
    sum = MulAdd(Mul(weight.hi, W::Set(kGapScale)), gone, sum);
  }
  Double2<W> Lanes() const { return ToDouble2(sum); }
};
template <>
struct GapSum<F64> {
  using V = F64;
  using W = F64;
  ExactSum<W> sum;
  void Add(V x, W max, Double2<W> weight) {
    const W zero = W::Set(0);
    const W scale = W::Set(kGapScale);
    const Double2<W> d = TwoSum(Mul(max, scale), Sub(zero, Mul(Widen(x), scale)));
    const Double2<W> p = TwoProd(weight.hi, d.hi);
    const auto gone = Eq(weight.hi, zero);
    const auto finite = Eq(Sub(p.hi, p.hi), zero);
    const W low = IfThenElseZero(finite, MulAdd(weight.hi, d.lo, MulAdd(weight.lo, d.hi, p.lo)));
    sum.Add({IfThenElse(gone, zero, p.hi), IfThenElse(gone, zero, low)});
  }
  Double2<W> Lanes() const { return sum.Lanes(); }
};

// prob·p - pull, rounded once: the two may cancel, so the exp comes with all its digits.
template <class V>
SOFTLANE_INLINE V Smoothed(const Factor<V>& factor, Double2<Wide<V>> e, Double2<Wide<V>> pull) {
  using W = Wide<V>;
  const W zero = W::Set(0);
  if constexpr (Factor<V>::kFloat) {
    const W down = W::Set(PowerOfTwo(-static_cast<int>(Factor<V>::Format::kSpare)));
    const W p = Mul(Mul(e.hi, down), factor.coef.hi);
    return Narrow(Sub(p, pull.hi), static_cast<V*>(nullptr));
  } else {
    const Double2<V> p = Mul(e, Double2<V>{factor.hi, factor.lo});
    const Double2<V> s = TwoSum(p.hi, Sub(zero, pull.hi));
    const V low = Add(s.lo, Sub(p.lo, pull.lo));
    const V y = Add(s.hi, IfThenElseZero(Eq(Sub(s.hi, s.hi), zero), low));
    const auto rare = Lt(e.hi, factor.small);
    if (!AnyTrue(rare)) return y;
    return IfThenElse(rare, Sub(ScaleDown(Mul(e, factor.coef)), pull.hi), y);
  }
}
template <class W>
SOFTLANE_INLINE Double2<W> PullOf(Double2<W> share, Double2<W> weight) {
  const W p = Mul(share.hi, weight.hi);
  const W low = MulAdd(share.hi, weight.lo, MulSub(share.hi, weight.hi, p));
  return FastTwoSum(p, MulAdd(share.lo, weight.hi, low));
}

// The class weights [start, start + count) of a row of T, or its probabilities for weights.
template <class T>
struct RowWeights {
  const T* shares = nullptr;                  // these, or
  const double *hi = nullptr, *lo = nullptr;  // hi null where all are 1, lo where it is 0
  RowWeights(const LossBatch& b, size_t row, size_t start, size_t count) {
    if (b.weight == nullptr && b.shares == nullptr) return;
    const void* chunk =
        b.chunked == nullptr ? nullptr : b.chunked->fetch(b.chunked->context, 2, start, count);
    if (b.shares != nullptr) {
      shares = chunk != nullptr ? static_cast<const T*>(chunk)
                                : Step<const T>(b.shares, row, b.share_stride) + start;
      return;
    }
    const size_t at = chunk != nullptr ? 0 : row * b.weight_stride + start;
    hi = (chunk != nullptr ? static_cast<const double*>(chunk) : b.weight) + at;
    if (b.weight_lo != nullptr) lo = b.weight_lo + at;
  }
  template <class W>
  Double2<W> Load(size_t i, int count) const {
    if (shares != nullptr) return ToDouble2(Widen(Vec<T>::LoadN(shares + i, count, 0)));
    if (hi == nullptr) return ToDouble2(W::Set(1));
    return {W::LoadN(hi + i, count, 0), lo == nullptr ? W::Set(0) : W::LoadN(lo + i, count, 0)};
  }
  double First(double* first_lo) const {
    *first_lo = lo == nullptr ? 0.0 : *lo;
    return shares != nullptr ? static_cast<double>(LoadOne(shares)) : hi == nullptr ? 1.0 : *hi;
  }
};

template <class T>
SOFTLANE_CALL Double2<F64> RowGap(const LossBatch& b, size_t row, const T* x, double max_value) {
  using V = Vec<T>;
  using W = Wide<V>;
  const W max = W::Set(max_value);
  GapSum<V> gap;
  ForChunks(x, b.n, b.chunked, 0, [&](const T* p, size_t start, size_t chunk) {
    const RowWeights<T> weights(b, row, start, chunk);
    for (size_t i = 0; i < chunk; i += V::kLanes) {
      const int count = static_cast<int>(Min(V::kLanes, chunk - i));
      // Lanes beyond the end hold the maximum: their term is 0.
      const V v = V::LoadN(p + i, count, static_cast<typename V::Scalar>(max_value));
      gap.Add(v, max, weights.template Load<W>(i, count));
    }
  });
  return SumLanes(gap.Lanes());
}

// The class weights of a panel's columns, or their probabilities for weights.
template <class S>
struct PanelWeights {
  const double* weight;  // null where all are 1
  const S* shares;       // null where there are none
  template <class W>
  Double2<W> Load(size_t i) const {
    if (shares != nullptr) return ToDouble2(Widen(shares->Load(i)));
    return ToDouble2(W::Set(weight == nullptr ? 1.0 : weight[i]));
  }
};
template <class P, class S, class W>
SOFTLANE_CALL Double2<W> PanelGap(const P& panel, size_t n, const PanelWeights<S>& weights, W max) {
  using V = typename P::V;
  return PanelFold<GapSum<V>, V::kLanes>(n, [&](size_t i, GapSum<V>& lane) {
    lane.Add(panel.Load(i), max, weights.template Load<W>(i));
  });
}

// Writes the facts of the rows' probabilities.
template <class T>
SOFTLANE_CALL void MakeShareFacts(const LossBatch& b) {
  using V = Vec<T>;
  for (size_t r = 0; r < b.count; ++r) {
    WholeSum<V> sum;
    size_t best = 0;
    auto most = static_cast<typename V::Scalar>(-kInf);
    ForChunks(Step<const T>(b.shares, r, b.share_stride), b.n, b.chunked, 2,
              [&](const T* x, size_t start, size_t count) {
                V top = V::Set(most);
                for (size_t i = 0; i < count; i += V::kLanes) {
                  const int here = static_cast<int>(Min(V::kLanes, count - i));
                  const V v = V::LoadN(x + i, here, 0);
                  sum.Add(Widen(v));
                  const V nothing = V::Set(static_cast<typename V::Scalar>(-kInf));
                  top = Max(IfThenElse(V::FirstN(here), v, nothing), top);
                }
                if (!(MaxLane(top) > most)) return;
                most = MaxLane(top);
                best = start + FindFirst(x, count, most);
              });
    const Double2<F64> total = sum.Total();
    b.targets[r] = static_cast<int64_t>(best);
    b.weight_sum[r] = FirstLane(total.hi);
    b.weight_sum_lo[r] = FirstLane(total.lo);
  }
}
// The same for the columns of a panel.
template <class S>
SOFTLANE_CALL void MakePanelShareFacts(const LossBatch& b, size_t first, const S& shares) {
  using V = typename S::V;
  using W = Wide<V>;
  const auto sum = PanelFold<WholeSum<V>, V::kLanes>(
      b.n, [&](size_t i, WholeSum<V>& lane) { lane.Add(Widen(shares.Load(i))); });
  V most = V::Set(static_cast<typename V::Scalar>(-kInf));
  W best = W::Set(0);
  for (size_t i = 0; i < b.n; ++i) {
    const V x = shares.Load(i);
    best = IfThenElse(Lt(Widen(most), Widen(x)), W::Set(static_cast<double>(i)), best);
    most = Max(x, most);
  }
  const auto total = Settled(sum);
  double at[W::kLanes];
  Store(best, at);
  for (int c = 0; c < shares.columns; ++c) {
    b.targets[first + static_cast<size_t>(c)] = static_cast<int64_t>(at[c]);
  }
  StoreN(total.hi, b.weight_sum + first, shares.columns);
  StoreN(total.lo, b.weight_sum_lo + first, shares.columns);
}

template <class T>
SOFTLANE_CALL void FillRow(T* out, size_t n, const ChunkIo* io, int operand,
                           typename Vec<T>::Scalar value) {
  using V = Vec<T>;
  const auto fill = [&](T* p, size_t count) {
    for (size_t i = 0; i < count; i += V::kLanes) {
      StoreN(V::Set(value), p + i, static_cast<int>(Min(V::kLanes, count - i)));
    }
  };
  if (io == nullptr) {
    fill(out, n);
    return;
  }
  for (size_t start = 0; start < n; start += io->chunk) {
    const size_t count = Min(io->chunk, n - start);
    fill(static_cast<T*>(io->fetch(io->context, 0, start, count)), count);
    io->put(io->context, operand, start, count);
  }
}

inline bool Ignored(const LossBatch& b, size_t sample) {
  const int64_t y = b.targets[sample];
  return y < 0 || static_cast<uint64_t>(y) >= b.n;
}

// One element of the row, as a double.
template <class T>
inline double ElementOf(const LossBatch& b, const T* x, size_t i) {
  if (b.chunked == nullptr) return static_cast<double>(LoadOne(x + i));
  return static_cast<double>(
      LoadOne(static_cast<const T*>(b.chunked->fetch(b.chunked->context, 0, i, 1))));
}

// Σ weight of the rows from `first` on.
template <class W>
inline Double2<W> WeightSums(const LossBatch& b, size_t first, size_t rows) {
  if (b.weight_stride == 0 && b.shares == nullptr) {
    return {W::Set(*b.weight_sum), W::Set(*b.weight_sum_lo)};
  }
  const int count = static_cast<int>(rows);
  return {W::LoadN(b.weight_sum + first, count, 0), W::LoadN(b.weight_sum_lo + first, count, 0)};
}

// What the gradients of a block of rows are made of, a row a lane.
template <class V>
struct RowGrads {
  Factor<V> factor;
  Double2<Wide<V>> share;
};

// Writes the gradient of row r of a block, but for the target's, where factors are not plain or exps not kept.
template <class T>
SOFTLANE_CALL void WriteRareGrad(const LossBatch& b, const RowBlock<T>& rows, size_t r, size_t row,
                                 T* grad, RowsAt<typename Vec<T>::Scalar> kept,
                                 const RowGrads<Vec<T>>& grads, bool smooth, double at_target) {
  using V = Vec<T>;
  using W = Wide<V>;
  const Factor<V> factor = FactorOfRow(grads.factor, r);
  const Double2<W> share = {PerRow(grads.share.hi).All(r), PerRow(grads.share.lo).All(r)};
  const ExpReference<V> ref = rows.Ref(r);
  if (kept.first != nullptr) {
    ForStripes<T>(b.crew, b.n, [&](size_t start, size_t count) {
      MapRow<V>(kept[r] + start, grad + start, count, [&](size_t, V e) { return factor(e); });
    });
    return;
  }
  const auto write = [&](const T* p, T* to, size_t start, size_t chunk) {
    if (smooth) {
      const RowWeights<T> weights(b, row, start, chunk);
      MapRow<V>(p, to, chunk, [&](size_t i, V v) {
        const int count = static_cast<int>(Min(V::kLanes, chunk - i));
        const Double2<W> pull = PullOf(share, weights.template Load<W>(i, count));
        return Smoothed(factor, Widen(Exp(v, ref)), pull);
      });
    } else {
      MapRow<V>(p, to, chunk, [&](size_t, V v) { return factor(Value(Exp(v, ref))); });
    }
  };
  if (b.chunked == nullptr) {
    ForStripes<T>(b.crew, b.n, [&](size_t start, size_t count) {
      write(rows.x[r] + start, grad + start, start, count);
    });
    return;
  }
  const auto target = static_cast<size_t>(b.targets[row]);
  ForChunks(rows.x[r], b.n, b.chunked, 0, [&](const T* p, size_t start, size_t chunk) {
    T* to = const_cast<T*>(p);
    write(p, to, start, chunk);
    if (target - start < chunk) {
      StoreOne(static_cast<typename V::Scalar>(at_target), to + (target - start));
    }
    b.chunked->put(b.chunked->context, 1, start, chunk);
  });
}

// ---- statistics of a sample ------------------------------------------------------------------------

// Σ e·(max - x)/T over lanes, in the unit of the exps. Elements below the floor of Exp, -inf too, have no part.
template <class V>
struct EntropySum {
  using W = Wide<V>;
  ExactSum<W> sum;
  void Add(V x, const ExpReference<V>& ref, W max, Double2<W> inverse_temperature) {
    const W zero = W::Set(0);
    const Double2<W> d = TwoSum(max, Sub(zero, Widen(x)));
    const Double2<W> term = Mul(Widen(Exp(x, ref)), Mul(inverse_temperature, d));
    const auto live = Lt(Widen(ref.floor), Widen(Sub(x, ref.shift)));
    sum.Add({IfThenElse(live, term.hi, zero), IfThenElse(live, term.lo, zero)});
  }
  Double2<W> Lanes() const { return sum.Lanes(); }
};

template <class T>
SOFTLANE_CALL Double2<F64> RowEntropy(const LossBatch& b, const RowBlock<T>& rows, size_t r,
                                      double max_value, Double2<Wide<Vec<T>>> inverse_temperature) {
  using V = Vec<T>;
  using W = Wide<V>;
  const W max = W::Set(max_value);
  const ExpReference<V> ref = rows.Ref(r);
  EntropySum<V> entropy;
  ForChunks(rows.x[r], b.n, b.chunked, 0, [&](const T* p, size_t, size_t chunk) {
    for (size_t i = 0; i < chunk; i += V::kLanes) {
      const int count = static_cast<int>(Min(V::kLanes, chunk - i));
      const V v = V::LoadN(p + i, count, static_cast<typename V::Scalar>(-kInf));
      entropy.Add(v, ref, max, inverse_temperature);
    }
  });
  return entropy.sum.Total();
}

template <class P, class V>
inline Double2<Wide<V>> PanelEntropy(const P& panel, size_t n, V max, const ExpReference<V>& ref,
                                     const LossTerms<Wide<V>>& terms) {
  return Settled(PanelFold<EntropySum<V>, V::kLanes>(n, [&](size_t i, EntropySum<V>& lane) {
    lane.Add(panel.Load(i), ref, Widen(max), terms.inverse_temperature);
  }));
}

template <class W>
struct SampleStats {
  W logsumexp, log_prob, entropy;
};
// `spread` is Σ e·(max - x)/T.
template <class V, class W>
SOFTLANE_CALL SampleStats<W> MakeSampleStats(const Sample<V, W>& s, const LossTerms<W>& terms,
                                             Double2<W> spread) {
  if constexpr (kHasHalves<V, W>) {
    const LossTerms<F64> half_terms = HalfOf(terms);
    SampleStats<F64> half[2];
    for (int i = 0; i < 2; ++i) {
      half[i] = MakeSampleStats(HalfOf(s, i == 1), half_terms, HalfOf(spread, i == 1));
    }
    return {{half[0].logsumexp, half[1].logsumexp},
            {half[0].log_prob, half[1].log_prob},
            {half[0].entropy, half[1].entropy}};
  }
  const Double2<W> log_sum = s.stats.LogSum();
  const Double2<W> lse = SampleLogSumExp(s.stats, log_sum, terms);
  const Double2<W> entropy = SafeAdd(Div(spread, s.stats.Sum()), log_sum);
  // The loss without its options.
  Sample<V, W> sample = s;
  sample.coef = W::Set(1);
  sample.weight = ToDouble2(sample.coef);
  LossTerms<W> plain = terms;
  plain.keep = ToDouble2(W::Set(1));
  plain.smooth = false;
  plain.z_loss = W::Set(0);
  plain.plain = false;
  return {Add(lse.hi, lse.lo), Sub(W::Set(0), SampleLoss(sample, plain)),
          Add(entropy.hi, entropy.lo)};
}

// Writes the statistics of one sample; `top` is where its first maximum is.
inline void PutStats(const LossBatch& b, size_t sample, double max, double logsumexp,
                     double log_prob, double entropy, size_t top, bool has_nan) {
  const bool infinite = max == kInf || max == -kInf;
  b.stats->logsumexp[sample] = infinite && !has_nan ? max : logsumexp;
  b.stats->log_prob[sample] = log_prob;
  b.stats->entropy[sample] = entropy;
  b.stats->correct[sample] = !has_nan && static_cast<uint64_t>(b.targets[sample]) == top;
}
inline void PutNoStats(const LossBatch& b, size_t sample) {
  if (b.stats == nullptr) return;
  b.stats->logsumexp[sample] = b.stats->log_prob[sample] = b.stats->entropy[sample] = 0;
  b.stats->correct[sample] = false;
}

template <class T>
SOFTLANE_CALL void PutRowStats(const LossBatch& b, size_t first, const RowBlock<T>& rows,
                               const Sample<Vec<T>, Wide<Vec<T>>>& s,
                               const LossTerms<Wide<Vec<T>>>& terms) {
  using W = Wide<Vec<T>>;
  const Double2<W> inverse = {W::Set(b.scale.inv_hi), W::Set(b.scale.inv_lo)};
  const PerRow max(s.stats.max);
  double hi[W::kLanes] = {}, lo[W::kLanes] = {};
  for (size_t r = 0; r < rows.rows; ++r) {
    const Double2<F64> spread = RowEntropy(b, rows, r, max[r], inverse);
    hi[r] = FirstLane(spread.hi);
    lo[r] = FirstLane(spread.lo);
  }
  const auto stats = MakeSampleStats(s, terms, {W::Load(hi), W::Load(lo)});
  const PerRow logsumexp(stats.logsumexp), log_prob(stats.log_prob), entropy(stats.entropy);
  for (size_t r = 0; r < rows.rows; ++r) {
    if (Ignored(b, first + r)) {
      PutNoStats(b, first + r);
      continue;
    }
    const bool has_nan = entropy[r] != entropy[r] && HasNaN(rows.x[r], b.n, b.chunked);
    PutStats(b, first + r, max[r], logsumexp[r], log_prob[r], entropy[r], rows.FirstMaximum(r),
             has_nan);
  }
}

// What the statistics of a panel need of its logits, which the gradient may overwrite.
template <class V>
struct PanelFacts {
  Double2<Wide<V>> spread;
  size_t top[V::kLanes];
  bool has_nan[V::kLanes];
};
template <class P, class V>
SOFTLANE_CALL PanelFacts<V> MakePanelFacts(const P& panel, size_t n, V max,
                                           const ExpReference<V>& ref,
                                           const LossTerms<Wide<V>>& terms) {
  using T = typename P::T;
  PanelFacts<V> facts;
  facts.spread = PanelEntropy(panel, n, max, ref, terms);
  typename V::Scalar maxima[V::kLanes];
  Store(max, maxima);
  for (int c = 0; c < panel.columns; ++c) {
    facts.top[c] = n;
    facts.has_nan[c] = false;
    for (size_t i = n; i-- > 0;) {
      const auto x = LoadOne(Step<const T>(panel.x, i, panel.stride) + c);
      facts.has_nan[c] = facts.has_nan[c] || x != x;
      if (x == maxima[c]) facts.top[c] = i;
    }
  }
  return facts;
}
template <class V>
SOFTLANE_CALL void PutPanelStats(const LossBatch& b, size_t first, int columns,
                                 const PanelFacts<V>& facts, const Sample<V, Wide<V>>& s,
                                 const LossTerms<Wide<V>>& terms) {
  using W = Wide<V>;
  const SampleStats<W> stats = MakeSampleStats(s, terms, facts.spread);
  double logsumexp[W::kLanes], log_prob[W::kLanes], entropy[W::kLanes], max[W::kLanes];
  Store(stats.logsumexp, logsumexp);
  Store(stats.log_prob, log_prob);
  Store(stats.entropy, entropy);
  Store(s.stats.max, max);
  for (int c = 0; c < columns; ++c) {
    PutStats(b, first + static_cast<size_t>(c), max[c], logsumexp[c], log_prob[c], entropy[c],
             facts.top[c], facts.has_nan[c]);
  }
}

// ---- the kernels -----------------------------------------------------------------------------------

// What the samples of a panel are given; an ignored one has the first class for a target.
template <class V>
struct PanelTargets {
  using Scalar = typename V::Scalar;
  size_t target[V::kLanes] = {};
  Scalar logit[V::kLanes] = {}, live[V::kLanes] = {};  // 1, or 0 where ignored
  bool all_live = true;
  Wide<V> coef;
  Double2<Wide<V>> weight;

  template <class P, class S>
  PanelTargets(const LossBatch& b, size_t first, const P& panel, const S* shares) {
    using W = Wide<V>;
    for (int c = 0; c < panel.columns; ++c) {
      const size_t sample = first + static_cast<size_t>(c);
      const bool is_live = !Ignored(b, sample);
      target[c] = is_live ? static_cast<size_t>(b.targets[sample]) : 0;
      logit[c] = LoadOne(Step<const typename P::T>(panel.x, target[c], panel.stride) + c);
      live[c] = is_live ? Scalar{1} : Scalar{0};
      all_live = all_live && is_live;
    }
    coef = b.coef != nullptr ? W::LoadN(b.coef + first, panel.columns, 0) : W::Set(1);
    weight = ToDouble2(W::Set(1));
    if (b.weight == nullptr && shares == nullptr) return;
    double weights[V::kLanes] = {};
    for (int c = 0; c < panel.columns; ++c) {
      weights[c] = shares == nullptr
                       ? b.weight[target[c]]
                       : static_cast<double>(LoadOne(
                             Step<const typename S::T>(shares->x, target[c], shares->stride) + c));
    }
    weight = ToDouble2(W::Load(weights));
  }
};

// The samples of a panel, but for their statistics and gaps.
template <class V>
inline Sample<V, Wide<V>> PanelSample(const LossBatch& b, size_t first, int columns,
                                      const PanelTargets<V>& given) {
  Sample<V, Wide<V>> sample;
  sample.target = Widen(V::Load(given.logit));
  sample.weight = given.weight;
  sample.weight_sum = WeightSums<Wide<V>>(b, first, static_cast<size_t>(columns));
  sample.coef = given.coef;
  sample.gap = ToDouble2(Wide<V>::Set(0));
  return sample;
}
template <class V>
inline void PutPanelLosses(const LossBatch& b, size_t first, int columns,
                           const PanelTargets<V>& given, const Sample<V, Wide<V>>& sample,
                           const LossTerms<Wide<V>>& terms) {
  StoreN(SampleLoss(sample, terms), b.loss + first, columns);
  for (int c = 0; !given.all_live && c < columns; ++c) {
    if (given.live[c] == 0) b.loss[first + static_cast<size_t>(c)] = 0;
  }
}
// Which lanes of V are those of W in which `x` is not 0.
template <class V, class W>
inline typename V::Mask NotZero(W x) {
  return AndNot(Eq(Narrow(x, static_cast<V*>(nullptr)), V::Set(0)), V::FirstN(V::kLanes));
}
// What the gradient of a panel is made of.
template <class V>
struct PanelGrad {
  GradTerms<Wide<V>> terms;
  Factor<V> factor;
  typename V::Mask live;
  bool plain;  // the results that count are ordinary numbers, or 0
  PanelGrad(const PanelTargets<V>& given, const Sample<V, Wide<V>>& sample, const Range<V>& range,
            const ExpReference<V>& ref, const LossTerms<Wide<V>>& loss)
      : terms(SampleGrad(sample, Widen(Exp(V::Load(given.logit), ref)), loss)),
        factor(PanelFactor<V>(
            MakeFactorParts<V>(terms.prob, Div(Wide<V>::Set(1), terms.prob.hi), terms.sum))),
        live(Eq(V::Load(given.live), V::Set(1))) {
    using W = Wide<V>;
    // A factor of 0, but not of -0, may be left to Plain.
    const W zero = W::Set(0), one = W::Set(1);
    const W counts = IfThenElse(Eq(Div(one, terms.prob.hi), W::Set(kInf)), zero, one);
    const auto small = Lt(Value(Exp(range.min, ref)), factor.small);
    plain = !AnyTrue(And(And(live, NotZero<V>(counts)), small));
  }
  // Writes the elements at the targets.
  template <class T>
  void PutTargets(const PanelTargets<V>& given, const OutPanel<T>& out) const {
    typename V::Scalar at_target[V::kLanes];
    Store(Narrow(terms.at_target, static_cast<V*>(nullptr)), at_target);
    for (int c = 0; c < out.columns; ++c) {
      if (given.live[c] == 0) continue;
      StoreOne(at_target[c], Step<T>(out.out, given.target[c], out.stride) + c);
    }
  }
};

template <class P, class Out, class S>
inline void CrossEntropyPanel(const LossBatch& b, const LossTerms<Wide<typename P::V>>& terms,
                              size_t first, P panel, Out out, const S* shares) {
  using V = typename P::V;
  if (shares != nullptr) MakePanelShareFacts(b, first, *shares);
  const PanelTargets<V> given(b, first, panel, shares);
  const PanelWeights<S> weights{b.weight, shares};
  const Range<V> range = PanelRange(panel, b.n);
  const ExpReference<V> ref = MakeReference(range.max, MakeFactor<V>(b.scale));
  auto sample = PanelSample(b, first, panel.columns, given);
  if (terms.smooth) sample.gap = PanelGap(panel, b.n, weights, Widen(range.max));
  PanelFacts<V> facts;
  if (b.stats != nullptr) facts = MakePanelFacts(panel, b.n, range.max, ref, terms);
  const bool keeps = b.grad != nullptr && !terms.smooth;
  sample.stats = PanelStats(panel, b.n, range, ref, [=](size_t i, ExpParts<V> e) SOFTLANE_LAMBDA {
    if (keeps) out.Store(i, Value(e));
  });
  PutPanelLosses(b, first, panel.columns, given, sample, terms);
  if (b.stats != nullptr) {
    PutPanelStats<V>(b, first, panel.columns, facts, sample, terms);
    for (int c = 0; !given.all_live && c < panel.columns; ++c) {
      if (given.live[c] == 0) PutNoStats(b, first + static_cast<size_t>(c));
    }
  }
  if (b.grad == nullptr) return;
  const PanelGrad<V> grad(given, sample, range, ref, terms);
  for (size_t i = 0; i < b.n; ++i) {
    V g;
    if (terms.smooth) {
      g = Smoothed(grad.factor, Widen(Exp(panel.Load(i), ref)),
                   PullOf(grad.terms.share, weights.template Load<Wide<V>>(i)));
    } else {
      const V e = out.Load(i);
      g = grad.plain ? grad.factor.Plain(e) : grad.factor(e);
    }
    out.Store(i, IfThenElseZero(grad.live, g));
  }
  grad.PutTargets(given, out);
}

// The same for a group, without smoothing or statistics; false, with no gradient written, if an exp or a result of
// that is not ordinary.
template <class T>
SOFTLANE_CALL bool CrossEntropyGroup(const LossBatch& b, const LossTerms<Wide<Vec<T>>>& terms,
                                     Group<T> x, OutGroup<T> out, const GroupColumns& columns) {
  using V = Vec<T>;
  const GroupReferences<V> by(b, x, columns);
  if (!by.ordinary && b.grad != nullptr) return false;
  using Scalar = typename V::Scalar;
  const bool keeps = b.grad != nullptr && b.n <= kMostGrouped;
  auto* const tile = keeps ? static_cast<Scalar*>(b.scratch) : nullptr;
  const auto stats = GroupStats<T>(x, columns, b.n, by, tile);
  const auto first = [&](size_t p) { return columns.first + columns.at[p]; };
  const auto given = MakeOfPanels([&](size_t p) {
    return PanelTargets<V>(b, first(p), x.At(columns.at[p]), static_cast<Panel<Scalar>*>(nullptr));
  });
  const auto samples = MakeOfPanels([&](size_t p) {
    auto sample = PanelSample(b, first(p), V::kLanes, given[p]);
    sample.stats = stats[p];
    PutPanelLosses(b, first(p), V::kLanes, given[p], sample, terms);
    return sample;
  });
  if (b.grad == nullptr) return true;
  const auto grads = MakeOfPanels([&](size_t p) {
    return PanelGrad<V>(given[p], samples[p], by.ranges[p], by.refs[p], terms);
  });
  for (size_t p = 0; p < kGroup; ++p) {
    if (!grads[p].plain) return false;
  }
  const auto write = [&](auto exp) SOFTLANE_LAMBDA {
    out.Write(b.n, columns, [&](size_t i, size_t p, size_t c) SOFTLANE_LAMBDA {
      return IfThenElseZero(grads[p].live, grads[p].factor.Plain(exp(i, p, c)));
    });
  };
  if (keeps) {
    const auto kept = TilesOf(columns, b.n, tile);
    write([&](size_t i, size_t p, size_t)
              SOFTLANE_LAMBDA { return V::Load(kept[p] + i * V::kLanes); });
  } else {
    write([&](size_t i, size_t p, size_t c)
              SOFTLANE_LAMBDA { return Value(Exp<true>(x.Load(i, c), by.refs[p])); });
  }
  for (size_t p = 0; p < kGroup; ++p) {
    grads[p].PutTargets(given[p], OutPanel<T>{out.out + columns.at[p], out.stride, V::kLanes});
  }
  return true;
}

template <class T>
void CrossEntropyRows(const LossBatch& b);
// A column as the chunks of a row.
template <class T>
void CrossEntropyColumn(const LossBatch& b, size_t c) {
  ColumnIo<T> column(static_cast<const T*>(b.x) + c, b.x_stride, nullptr, 0,
                     b.grad == nullptr ? nullptr : static_cast<T*>(b.grad) + c, b.grad_stride,
                     b.weight);
  const ChunkIo io = column.Io();
  LossBatch one = RowOfChunks(b, io);
  one.targets += c;
  if (b.coef != nullptr) one.coef += c;
  one.loss += c;
  LossStats stats;
  if (b.stats != nullptr) {
    const LossStats& all = *b.stats;
    stats = {all.logsumexp + c, all.log_prob + c, all.entropy + c, all.correct + c};
    one.stats = &stats;
  }
  CrossEntropyRows<T>(one);
}

template <class T>
void CrossEntropyCols(const LossBatch& b) {
  using Scalar = typename Vec<T>::Scalar;
  using S = Panel<Scalar>;
  const auto terms = MakeTerms<Wide<Vec<T>>>(b);
  const auto* x = static_cast<const T*>(b.x);
  auto* grad = static_cast<T*>(b.grad);
  const auto at = [=](size_t c) { return grad == nullptr ? nullptr : grad + c; };
  const auto panels = [&](size_t start, size_t end) {
    const auto run = [&](size_t c, auto panel, auto out) {
      const size_t first = start + c;
      if (sizeof(T) == sizeof(Scalar) && b.shares != nullptr) {
        const S shares = PanelAt<Scalar>(b.shares, b.share_stride, b.count, first,
                                         static_cast<size_t>(panel.columns));
        CrossEntropyPanel(b, terms, first, panel, out, &shares);
      } else {
        CrossEntropyPanel(b, terms, first, panel, out, static_cast<const S*>(nullptr));
      }
    };
    const size_t count = end - start;
    if constexpr (sizeof(T) == sizeof(Scalar)) {
      ForPanels<T>(x + start, b.x_stride, at(start), b.grad_stride, count, b.n, Copies::Of(b), run);
    } else if (b.copies) {
      ForCopiedPanels<T>(x + start, b.x_stride, at(start), b.grad_stride, count, b.n, Copies::Of(b),
                         run);
    } else {
      for (size_t c = start; c < end; ++c) CrossEntropyColumn<T>(b, c);
    }
  };
  const bool grouped = b.grouped && !terms.smooth && b.stats == nullptr && b.shares == nullptr;
  const auto group = [&](const GroupColumns& columns) {
    const size_t c = columns.first;
    return CrossEntropyGroup<T>(b, terms, {x + c, b.x_stride}, {at(c), b.grad_stride}, columns);
  };
  ForGroups<T>(grad == nullptr ? static_cast<const void*>(x) : grad, b.count, grouped, group,
               panels);
}

// The weights of the targets of a block's rows, and their gaps if `smooth`.
template <class T, class S>
SOFTLANE_CALL void WeighRows(const LossBatch& b, const RowBlock<T>& rows, size_t first,
                             typename RowBlock<T>::Rows live, bool smooth, S& sample) {
  using W = Wide<Vec<T>>;
  constexpr size_t kRows = RowBlock<T>::kRows;
  double weight[kRows] = {}, weight_lo[kRows] = {}, gap_hi[kRows] = {}, gap_lo[kRows] = {};
  const PerRow max(rows.max);
  for (size_t r = 0; r < rows.rows; ++r) {
    if (!rows.Has(live, r)) continue;
    const auto target = static_cast<size_t>(b.targets[first + r]);
    weight[r] = RowWeights<T>(b, first + r, target, 1).First(&weight_lo[r]);
    if (!smooth) continue;
    const Double2<F64> gap = RowGap(b, first + r, rows.x[r], static_cast<double>(max[r]));
    gap_hi[r] = FirstLane(gap.hi);
    gap_lo[r] = FirstLane(gap.lo);
  }
  sample.weight = {W::Load(weight), W::Load(weight_lo)};
  sample.gap = {W::Load(gap_hi), W::Load(gap_lo)};
}

template <class T>
void CrossEntropyRows(const LossBatch& b) {
  using V = Vec<T>;
  const size_t longest = b.grad == nullptr ? kShortSum<V> : ShortRowFor<V>(b.n);
  if (AreShort(b.count, b.n, b.chunked, longest) && b.weight_stride == 0) {
    using Scalar = typename V::Scalar;
    constexpr auto kStep = static_cast<ptrdiff_t>(V::kLanes * sizeof(Scalar));
    alignas(64) Scalar tile[kLongestTile<V> * V::kLanes];
    const auto terms = MakeTerms<Wide<V>>(b);
    ForTiles<T>(b.x, b.x_stride, b.grad, b.grad_stride, b.count, b.n,
                [&](size_t first, auto panel, auto out) {
                  const Panel<Scalar> shares{tile, kStep, panel.columns};
                  if (b.shares != nullptr) {
                    const auto rows = static_cast<size_t>(panel.columns);
                    LoadTile<T>(b.shares, b.share_stride, first, rows, b.count, b.n, tile, {});
                  }
                  CrossEntropyPanel(b, terms, first, panel, out,
                                    b.shares == nullptr ? nullptr : &shares);
                });
    return;
  }
  if (b.shares != nullptr) MakeShareFacts<T>(b);
  const auto terms = MakeTerms<Wide<V>>(b);
  // Statistics and smoothing need all logits again.
  const bool keeps = b.grad != nullptr && b.stats == nullptr && !terms.smooth;
  ExpBuffer<T> buffer;
  const CacheUse& use = b.grad == nullptr ? kForSums : kForGrads;
  ForRowBlocks<T>(b, use, [&](RowBlock<T>& rows, size_t first) {
    using W = Wide<V>;
    using Scalar = typename V::Scalar;
    typename RowBlock<T>::Rows live = 0;
    Scalar logit[V::kLanes] = {};
    for (size_t r = 0; r < rows.rows; ++r) {
      if (Ignored(b, first + r)) continue;
      live |= typename RowBlock<T>::Rows{1} << r;
      // Read before the exps overwrite a gradient that lies over its logits.
      const auto target = static_cast<size_t>(b.targets[first + r]);
      logit[r] = static_cast<Scalar>(ElementOf(b, rows.x[r], target));
    }
    const RowsAt<T> grad{Step<T>(b.grad, first, b.grad_stride), b.grad_stride};
    RowsAt<Scalar> kept;
    if (keeps) kept = buffer.Rows(grad, rows.rows, b.n, b.chunked, b.scratch);
    rows.template SumRows<true>(kept, buffer.Holds(kept) ? grad : RowsAt<T>(), live);
    const auto count = static_cast<int>(rows.rows);
    Sample<V, W> sample;
    sample.target = Widen(V::Load(logit));
    sample.weight_sum = WeightSums<W>(b, first, rows.rows);
    sample.coef = b.coef != nullptr ? W::LoadN(b.coef + first, count, 0) : W::Set(1);
    sample.weight = ToDouble2(W::Set(1));
    sample.gap = ToDouble2(W::Set(0));
    if (b.weight != nullptr || b.shares != nullptr || terms.smooth) {
      WeighRows(b, rows, first, live, terms.smooth, sample);
    }
    sample.stats = rows.Statistics();
    StoreN(SampleLoss(sample, terms), b.loss + first, count);
    for (size_t r = 0; live != rows.All() && r < rows.rows; ++r) {
      if (!rows.Has(live, r)) b.loss[first + r] = 0;
    }
    if (b.stats != nullptr) PutRowStats(b, first, rows, sample, terms);
    if (b.grad == nullptr) return;
    const auto grad_terms = SampleGrad(sample, rows.Exps(V::Load(logit)), terms);
    const auto parts =
        MakeFactorParts<V>(grad_terms.prob, Div(W::Set(1), grad_terms.prob.hi), grad_terms.sum);
    const RowGrads<V> grads{PanelFactor<V>(parts), grad_terms.share};
    const PerRow hi(grads.factor.hi), lo(grads.factor.lo);
    const PerRow at_target(Narrow(grad_terms.at_target, static_cast<V*>(nullptr)));
    const auto has_small = MaskBits<V>::Of(Lt(rows.StoredExps(rows.min), grads.factor.small));
    for (size_t r = 0; r < rows.rows; ++r) {
      if (!rows.Has(live, r)) {
        FillRow(grad[r], b.n, b.chunked, 1, 0);
        continue;
      }
      if (kept.first == nullptr || rows.crew != nullptr || rows.Has(has_small, r)) {
        WriteRareGrad(b, rows, r, first + r, grad[r], kept, grads, terms.smooth,
                      static_cast<double>(at_target[r]));
      } else {
        const V high = hi.All(r), low = lo.All(r);
        MapRow<V, kLines>(kept[r], grad[r], b.n,
                          [=](size_t, V e) SOFTLANE_LAMBDA { return TimesPair(e, high, low); });
      }
      if (b.chunked == nullptr) StoreOne(at_target[r], grad[r] + b.targets[first + r]);
    }
  });
}

// ---- probability targets ------------------------------------------------------------------------------

inline void BlendArray(const Blend& blend, const double* weight, double* t, double* low, size_t n) {
  using V = F64;
  const V keep = V::Set(blend.keep), keep_lo = V::Set(blend.keep_lo);
  const V spread = V::Set(blend.spread), spread_lo = V::Set(blend.spread_lo);
  for (size_t i = 0; i < n; i += V::kLanes) {
    const int count = static_cast<int>(Min(V::kLanes, n - i));
    const V w = weight == nullptr ? V::Set(1) : V::LoadN(weight + i, count, 0);
    const V share = V::LoadN(t + i, count, 0);
    const Double2<V> kept = TwoProd(keep, share);
    const Double2<V> sum = TwoSum(kept.hi, spread);
    const V sum_lo = Add(Add(sum.lo, MulAdd(keep_lo, share, kept.lo)), spread_lo);
    const Double2<V> product = TwoProd(w, sum.hi);
    const V rest = MulAdd(w, sum_lo, product.lo);
    StoreN(product.hi, t + i, count);
    StoreN(IfThenElseZero(Eq(Sub(rest, rest), V::Set(0)), rest), low + i, count);
  }
}

inline void SumArray(const double* x, const double* low, size_t n, double* sum, double* sum_lo) {
  using V = F64;
  ExactSum<V> total;
  for (size_t i = 0; i < n; i += V::kLanes) {
    const int count = static_cast<int>(Min(V::kLanes, n - i));
    const V hi = V::LoadN(x + i, count, 0);
    const V lo = low == nullptr ? V::Set(0) : V::LoadN(low + i, count, 0);
    total.Add({hi, IfThenElse(Eq(hi, V::Set(0)), V::Set(0), lo)});
  }
  const Double2<V> all = total.Total();
  *sum = FirstLane(all.hi);
  *sum_lo = FirstLane(all.lo);
}
inline size_t FirstMaxOf(const double* x, size_t n) {
  const double max = MaxLane(RangeOf<F64>(x, n).max);
  return max == -kInf ? n : FindFirst(x, n, max);
}

// ---- soft capping ------------------------------------------------------------------------------------

// cap·tanh(x/cap), with tanh(u) = -m/(2 + m) for m = expm1(-2u).
inline void SoftcapArray(double* x, size_t n, double cap) {
  using V = F64;
  const V zero = V::Set(0), two = V::Set(2), limit = V::Set(cap);
  MapRow<V>(x, x, n, [&](size_t, V v) {
    const V u = Div(Abs(v), limit);
    const V m = Elementary<V>::Expm1(Mul(V::Set(-2), u));
    const V size = Mul(limit, Div(Sub(zero, m), Add(two, m)));
    const V capped = IfThenElse(Lt(v, zero), Sub(zero, size), size);
    return IfThenElse(Lt(u, V::Set(0x1p-28)), v, capped);  // where cap·u could lose digits
  });
}

// Times 1 - tanh² = s² for s = 2e/(1 + e²), e = exp(-|u|), u = x/cap. What the rounding of u costs a large one is
// made good: e·(1 - δ). A gradient of 0 stays 0, whatever the logit.
inline void SoftcapBackwardArray(const double* x, double* grad, size_t n, double cap) {
  using V = F64;
  const V zero = V::Set(0), one = V::Set(1), two = V::Set(2), limit = V::Set(cap);
  MapRow<V>(x, grad, n, [&](size_t i, V v) {
    const int count = static_cast<int>(Min(V::kLanes, n - i));
    const V g = V::LoadN(grad + i, count, 0);
    const V u = Div(Abs(v), limit);
    const Double2<V> back = TwoProd(u, limit);
    const V rest = Div(Sub(Sub(Abs(v), back.hi), back.lo), limit);
    const V e = Elementary<V>::Exp(Sub(zero, u));
    const V sharp = Sub(e, Mul(e, IfThenElseZero(Lt(u, V::Set(0x1p30)), rest)));
    // In two doubles: nothing but the error of e, and one rounding.
    const Double2<V> s =
        Div(ToDouble2(Mul(two, sharp)), Add(ToDouble2(one), TwoProd(sharp, sharp)));
    const V once = Mul(g, s.hi);
    const V low = MulAdd(g, s.lo, MulSub(g, s.hi, once));
    const V all = MulAdd(once, s.hi, MulAdd(once, s.lo, Mul(low, s.hi)));
    const V plain = Mul(once, s.hi);
    return IfThenElse(Eq(g, zero), zero, IfThenElse(Eq(Sub(all, all), zero), all, plain));
  });
}
