// The gradients of softmax and log_softmax with respect to the logits, from their outputs.
#pragma once

// Calls f(grad, y, out, count) for the row, or for its chunks, which are written in place of the
// gradient's.
template <class T, class F>
inline void ForPairs(const BackwardBatch& b, size_t row, bool writes, F f) {
  if (b.chunked == nullptr) {
    f(Step<const T>(b.grad, row, b.grad_stride), Step<const T>(b.y, row, b.y_stride),
      Step<T>(b.out, row, b.out_stride), b.n);
    return;
  }
  const ChunkIo& io = *b.chunked;
  for (size_t start = 0; start < b.n; start += io.chunk) {
    const size_t count = Min(io.chunk, b.n - start);
    T* grad = static_cast<T*>(io.fetch(io.context, 0, start, count));
    f(static_cast<const T*>(grad), static_cast<const T*>(io.fetch(io.context, 1, start, count)),
      grad, count);
    if (writes) io.put(io.context, 2, start, count);
  }
}
// Calls f(g, y) for the vectors of a row, and end_block() after each whole block; beyond its end g is 0 and y is
// `fill`. If `ahead` is not 0 the caches are asked for the row that is so many on.
template <class T, class F, class End>
SOFTLANE_INLINE void ForPairVectors(const BackwardBatch& b, size_t row, size_t ahead,
                                    typename Vec<T>::Scalar fill, F f, End end_block) {
  using V = Vec<T>;
  ForPairs<T>(b, row, false, [&](const T* g, const T* y, T*, size_t count) SOFTLANE_LAMBDA {
    const T* const next_g = Step<const T>(g, ahead, b.grad_stride);
    const T* const next_y = Step<const T>(y, ahead, b.y_stride);
    size_t i = 0;
    while (i + V::kLanes <= count) {
      const size_t last = Min(count, i + kBlock) - V::kLanes;
      for (; i <= last; i += V::kLanes) {
        if (ahead != 0) {
          SOFTLANE_PREFETCH(next_g + i);
          SOFTLANE_PREFETCH(next_y + i);
        }
        f(InRegister(V::Load(g + i)), InRegister(V::Load(y + i)));
      }
      if (i % kBlock == 0) end_block();
    }
    if (i == count) return;
    const int m = static_cast<int>(count - i);
    f(V::LoadN(g + i, m, 0), V::LoadN(y + i, m, fill));
  });
}
template <class T, class F>
SOFTLANE_INLINE void ForPairVectors(const BackwardBatch& b, size_t row,
                                    typename Vec<T>::Scalar fill, F f) {
  ForPairVectors<T>(b, row, 0, fill, f, [] {});
}
// out = f(g, y) for all elements of a row; from kLinesFrom vectors on, results begin at cache lines.
template <class T, size_t kLinesFrom = SIZE_MAX, class F>
SOFTLANE_INLINE void MapPairs(const BackwardBatch& b, size_t row, F f) {
  using V = Vec<T>;
  ForPairs<T>(b, row, true, [&](const T* g, const T* y, T* out, size_t count) SOFTLANE_LAMBDA {
    size_t i = 0;
    if (count / V::kLanes >= kLinesFrom) {
      i = MapToLine<V>(
          out, [=](size_t at) SOFTLANE_LAMBDA { return f(V::Load(g + at), V::Load(y + at)); });
    }
    for (; i + V::kLanes <= count; i += V::kLanes) {
      Store(f(InRegister(V::Load(g + i)), InRegister(V::Load(y + i))), out + i);
    }
    if (i == count) return;
    const int m = static_cast<int>(count - i);
    StoreN(f(V::LoadN(g + i, m, 0), V::LoadN(y + i, m, 1)), out + i, m);
  });
}

// x/T for an x that was rounded to W, or is infinite.
template <class W>
inline W DivideByTemperature(W x, const Scale& scale) {
  if (scale.unit) return x;
  const W low = Mul(x, W::Set(scale.inv_lo));
  return MulAddExact(x, W::Set(scale.inv_hi), IfThenElseZero(Lt(Abs(x), W::Set(kInf)), low));
}

// |g|, or 0 where the output is 0 and the gradient has no part.
template <class V>
SOFTLANE_INLINE V LiveGrad(V g, V y) {
  const V zero = V::Set(0);
  return IfThenElse(Eq(y, zero), zero, Abs(g));
}

// The largest |g| of a row, with kMasked among the elements whose y is not 0.
template <bool kMasked, class T>
inline double LargestGrad(const BackwardBatch& b, size_t row) {
  using V = Vec<T>;
  V max = V::Set(0);
  ForPairVectors<T>(b, row, 0,
                    [&](V g, V y) { max = Max(kMasked ? LiveGrad(g, y) : Abs(g), max); });
  return static_cast<double>(MaxLane(max));
}

// A running sum of products; of floats with half of the conversions: a product is rounded to float, and what
// it lost, 2^-24 of it, is summed in float. That holds while the products are ordinary numbers.
template <class V>
struct DotSum {
  WideSum<Wide<V>> sum;
  V rest = V::Set(0);
  SOFTLANE_INLINE void AddProduct(V a, V b) {
    const Double2<V> p = TwoProd(a, b);
    sum.Add(Widen(p.hi));
    rest = Add(rest, p.lo);
  }
  Wide<V> Lanes() const { return Add(sum.Lanes(), Widen(rest)); }
  Double2<F64> Total() const { return ToDouble2(SumLanes(Lanes())); }
};

// That of products of half types, which are exact in float: there, block by block. It is off by 2^-21 of the sum of
// their sizes at most, a thousandth of what the result is rounded to.
struct HalfDot {
  D16 sum = D16::Set(0);
  F32 part = F32::Set(0);
  SOFTLANE_INLINE void AddProduct(F32 a, F32 b) { part = MulAdd(a, b, part); }
  D16 Lanes() const { return Add(sum, Widen(part)); }
};
SOFTLANE_INLINE void EndBlock(HalfDot& x) { x = {x.Lanes(), F32::Set(0)}; }

// The sum that rows of many products of T take; one of single products has nothing to save.
template <class T>
struct LongDotOf {
  using Type = HalfDot;
};
template <>
struct LongDotOf<float> {
  using Type = DotSum<F32>;
};
template <>
struct LongDotOf<double> {
  using Type = WholeSum<F64>;
};
template <class T>
using LongDot = typename LongDotOf<T>::Type;
// Calls f with the sum that rows of n products of T take.
template <class T, class F>
SOFTLANE_INLINE auto WithDotSum(size_t n, F f) {
  if constexpr (sizeof(T) == 4) {
    if (n <= F32::kLanes) return f(WholeSum<F32>());
  }
  return f(LongDot<T>());
}
SOFTLANE_INLINE void AddDot(F32 a, F32 b, WideSum<D16>& sum) { sum.AddProduct(Widen(a), Widen(b)); }
template <class V, class Sum>
SOFTLANE_INLINE void AddDot(V a, V b, Sum& sum) {
  sum.AddProduct(a, b);
}

// A sum of doubles as one of two numbers of V's format, sample by sample.
template <class V>
struct Split {
  V hi, lo;
  Split(V high, V low) : hi(high), lo(low) {}
  explicit Split(Double2<Wide<V>> x) {
    V* tag = nullptr;
    hi = Narrow(x.hi, tag);
    lo = Narrow(Add(Sub(x.hi, Widen(hi)), x.lo), tag);
  }
  Wide<V> Both() const { return Add(Widen(hi), Widen(lo)); }
};

// Below this the rounding of partial results could count.
template <class V>
constexpr typename V::Scalar Tiny() {
  return static_cast<typename V::Scalar>(sizeof(typename V::Scalar) == 4 ? 0x1p-100 : 0x1p-900);
}

// Calls f(panel of g, panel of y, panel of out) for tiles of short rows; the panel of out lies over
// that of g.
template <class T, class F>
inline void ForPairTiles(const BackwardBatch& b, F f) {
  using Scalar = typename Vec<T>::Scalar;
  constexpr size_t kLanes = Vec<T>::kLanes;
  constexpr auto kStep = static_cast<ptrdiff_t>(kLanes * sizeof(Scalar));
  alignas(64) Scalar y[kShortLogPair * kLanes];
  ForTiles<T>(b.grad, b.grad_stride, b.out, b.out_stride, b.count, b.n,
              [&](size_t first, auto panel, auto out) {
                const auto rows = static_cast<size_t>(panel.columns);
                LoadTile<T>(b.y, b.y_stride, first, rows, b.count, b.n, y, {});
                f(panel, Panel<Scalar>{y, kStep, panel.columns}, out);
              });
}
// Groups of columns of both operands, and where their results go.
template <class T>
struct PairGroup {
  Group<T> g, y;
  OutGroup<T> out;
  GroupColumns columns;
  // out = grads[panel](g, y)
  template <class Grad>
  SOFTLANE_INLINE void Write(size_t n, const OfPanels<Grad>& grads) const {
    const Group<T> own_g = g, own_y = y;
    out.Write(n, columns, [&](size_t i, size_t p, size_t c) SOFTLANE_LAMBDA {
      return grads[p](own_g.Load(i, c), own_y.Load(i, c));
    });
  }
};
// PanelFold for the panels of a group: add(panel, g, y, accumulator).
template <class Sum, class T, class W, class F>
SOFTLANE_INLINE void GroupFold(const PairGroup<T>& group, size_t n, Double2<W>* totals, F add) {
  using V = Vec<T>;
  constexpr size_t kLanes = V::kLanes;
  Sum lanes[kLanes][kGroup];
  Sum* const first = &lanes[0][0];
  for (size_t start = 0; start < n; start += kBlock) {
    const Group<T> g = group.g.From(start), y = group.y.From(start);
    ForGroup(Min(n - start, kBlock), group.columns,
             [=](size_t i, size_t p, size_t c) SOFTLANE_LAMBDA {
               add(p, g.Load(i, c), y.Load(i, c), first[i % kLanes * kGroup + p]);
             });
    for (size_t i = 0; i < kLanes * kGroup; ++i) EndBlock(first[i]);
  }
  for (size_t p = 0; p < kGroup; ++p) {
    decltype(Sum().Lanes()) sums[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane][p].Lanes();
    totals[p] = Settled(FoldLanes(sums, kLanes));
  }
}

// What does columns: panels of g and y, or copies of them, whose results then lie over those of g; rows; and groups,
// but where they are not ordinary: false.
template <class T>
struct PairKernels {
  using Scalar = typename Vec<T>::Scalar;
  void (*panel)(const BackwardBatch&, const Panel<Scalar>&, const Panel<Scalar>&,
                const OutPanel<Scalar>&);
  void (*rows)(const BackwardBatch&);
  bool (*group)(const BackwardBatch&, const PairGroup<T>&) = nullptr;
};
// Columns [first, end) in panels. Those of half types without copies, for which they are too long, are done as rows,
// one by one.
template <class T>
inline void ForPairPanels(const BackwardBatch& b, size_t first, size_t end,
                          const PairKernels<T>& kernels) {
  using Scalar = typename Vec<T>::Scalar;
  const size_t count = end - first;
  const auto* g = static_cast<const T*>(b.grad) + first;
  const auto* y = static_cast<const T*>(b.y) + first;
  auto* out = static_cast<T*>(b.out) + first;
  if (b.copies) {
    // One half of the scratch for each operand.
    constexpr size_t kHalf = kScratchBytes / 2;
    constexpr auto kStep = static_cast<ptrdiff_t>(Vec<T>::kLanes * sizeof(Scalar));
    auto* tile = static_cast<Scalar*>(b.scratch) + kHalf / sizeof(Scalar);
    ForCopiedPanels<T>(g, b.grad_stride, out, b.out_stride, count, b.n, Copies{b.scratch, kHalf},
                       [&](size_t c, const Panel<Scalar>& grad, const OutPanel<Scalar>& result) {
                         CopyPanel(Panel<T>{y + c, b.y_stride, grad.columns}, b.n, tile);
                         kernels.panel(b, grad, Panel<Scalar>{tile, kStep, grad.columns}, result);
                       });
  } else if constexpr (sizeof(T) == sizeof(Scalar)) {
    ForPanelStarts<T>(out, count, [&](size_t c, size_t columns) {
      kernels.panel(b, PanelAt<T>(g, b.grad_stride, count, c, columns),
                    PanelAt<T>(y, b.y_stride, count, c, columns),
                    OutPanelAt<T>(out, b.out_stride, count, c, columns));
    });
  } else {
    for (size_t c = 0; c < count; ++c) {
      ColumnIo<T> column(g + c, b.grad_stride, y + c, b.y_stride, out + c, b.out_stride);
      kernels.rows(RowOfChunks(b, column.Io()));
    }
  }
}
template <class T>
void ForPairColumns(const BackwardBatch& b, const PairKernels<T>& kernels) {
  ForGroups<T>(
      b.out, b.count, b.grouped,
      [&](const GroupColumns& columns) {
        const size_t c = columns.first;
        return kernels.group(b, {{static_cast<const T*>(b.grad) + c, b.grad_stride},
                                 {static_cast<const T*>(b.y) + c, b.y_stride},
                                 {static_cast<T*>(b.out) + c, b.out_stride},
                                 columns});
      },
      [&](size_t first, size_t last) { ForPairPanels<T>(b, first, last, kernels); });
}

// A row of a half type as chunks of floats.
template <class T>
struct FloatIo {
  using V = Vec<T>;
  static constexpr size_t kChunk = 512;
  const BackwardBatch& b;
  size_t row;
  T* place = nullptr;  // of the results at hand
  bool here[2] = {};   // a row that is one chunk is fetched once
  float buffers[2][kChunk];

  FloatIo(const BackwardBatch& batch, size_t r) : b(batch), row(r) {}
  void Run(void (*of_floats)(const BackwardBatch&, size_t)) {
    const size_t chunk = b.chunked == nullptr ? kChunk : Min(kChunk, b.chunked->chunk);
    of_floats(RowOfChunks(b, {&FloatIo::Fetch, &FloatIo::Put, this, chunk}), 0);
  }
  static void* Fetch(void* context, int operand, size_t start, size_t count) {
    FloatIo& self = *static_cast<FloatIo*>(context);
    const BackwardBatch& b = self.b;
    float* to = self.buffers[operand];
    if (self.here[operand]) return to;
    self.here[operand] = count == b.n;
    const T* from;
    if (b.chunked != nullptr) {
      auto* chunk = static_cast<T*>(b.chunked->fetch(b.chunked->context, operand, start, count));
      if (operand == 0) self.place = chunk;
      from = chunk;
    } else {
      self.place = Step<T>(b.out, self.row, b.out_stride) + start;
      from = operand == 0 ? Step<const T>(b.grad, self.row, b.grad_stride)
                          : Step<const T>(b.y, self.row, b.y_stride);
      from += start;
    }
    for (size_t i = 0; i < count; i += V::kLanes) {
      Store(V::LoadN(from + i, static_cast<int>(Min(V::kLanes, count - i)), 0), to + i);
    }
    return to;
  }
  static void Put(void* context, int operand, size_t start, size_t count) {
    const FloatIo& self = *static_cast<FloatIo*>(context);
    for (size_t i = 0; i < count; i += V::kLanes) {
      StoreN(V::Load(self.buffers[0] + i), self.place + i,
             static_cast<int>(Min(V::kLanes, count - i)));
    }
    const ChunkIo* io = self.b.chunked;
    if (io != nullptr) io->put(io->context, operand, start, count);
  }
};
// Does a row by what does it for the arithmetic's type.
template <class T>
inline void CarefulRow(const BackwardBatch& b, size_t row,
                       void (*careful)(const BackwardBatch&, size_t)) {
  if constexpr (sizeof(T) == sizeof(typename Vec<T>::Scalar)) {
    careful(b, row);
  } else {
    FloatIo<T>(b, row).Run(careful);
  }
}

// out = f(g, y) for the columns of a panel in which `fine`; the others are left to `row`.
template <class P, class Out, class M, class F>
inline void MapPanel(const BackwardBatch& b, const P& g, const P& y, const Out& out, M fine, F f,
                     void (*row)(const BackwardBatch&, size_t)) {
  using V = typename P::V;
  const V one = V::Set(1);
  if (!AnyTrue(AndNot(fine, Eq(one, one)))) {
    for (size_t i = 0; i < b.n; ++i) out.Store(i, f(g.Load(i), y.Load(i)));
    return;
  }
  typename V::Scalar is_fine[V::kLanes];
  Store(IfThenElseZero(fine, one), is_fine);
  for (int c = 0; c < g.columns; ++c) {
    if (is_fine[c] != 0) continue;
    ColumnIo<typename P::T> column(g.x + c, g.stride, y.x + c, y.stride, out.out + c, out.stride);
    row(RowOfChunks(b, column.Io()), 0);
  }
  for (size_t i = 0; i < b.n; ++i) {
    out.Store(i, IfThenElse(fine, f(g.Load(i), y.Load(i)), out.Load(i)));
  }
}

// ---- softmax ------------------------------------------------------------------------------------

// y·(g - unit·Σ)·inverse for numbers whose products would leave the normal range; y == 0 gives 0.
SOFTLANE_RARE inline F64 SmallSoftmaxGrad(F64 y, F64 g, Double2<F64> dot, F64 unit,
                                          Double2<F64> inverse) {
  const F64 zero = F64::Set(0);
  const F64 raised = Mul(y, F64::Set(PowerOfTwo(kLift)));
  const Double2<F64> up = TwoProd(raised, g);
  const F64 lifted = Mul(raised, unit);
  const Double2<F64> down = TwoProd(lifted, dot.hi);
  const Double2<F64> all =
      Add(up, Double2<F64>{Sub(zero, down.hi), Sub(zero, MulAdd(lifted, dot.lo, down.lo))});
  return IfThenElse(Eq(y, zero), zero, ScaleDown(Mul(all, inverse)));
}

// |Σ|, or 1 for one of 0: beside an output of Tiny / this or more |y|(|g| + Σ|g·y|) is an ordinary number, or
// y·g is the result.
template <class V>
SOFTLANE_INLINE V GradUnit(V sum) {
  const V size = Abs(sum);
  return IfThenElse(Eq(size, V::Set(0)), V::Set(1), size);
}

// y·(g - Σ g·y), without a temperature. g - Σ and the product are rounded once each, and what Σ lacks is
// far below them: 1.5 ulp of |y|(|g| + Σ|g·y|). Where that could be less than a normal number, which is looked
// for if kMayBeTiny, the result is rounded once. For half types these roundings of floats are nothing, nor is
// what Σ lacks.
template <class T, bool kMayBeTiny>
struct SoftmaxGrad {
  using V = Vec<T>;
  using W = Wide<V>;
  static constexpr bool kFloat = sizeof(typename V::Scalar) == 4;
  Split<V> dot;
  V unit;
  SoftmaxGrad(Split<V> sum, V grad_unit) : dot(sum), unit(grad_unit) {}
  explicit SoftmaxGrad(Split<V> sum) : SoftmaxGrad(sum, GradUnit(sum.hi)) {}
  SOFTLANE_INLINE V operator()(V g, V y) const {
    const V zero = V::Set(0);
    const V rest = Sub(g, dot.hi);
    if constexpr (sizeof(T) == 2) return Mul(y, rest);
    const V r = MulAddExact(y, rest, Mul(y, Sub(zero, dot.lo)));
    if constexpr (!kMayBeTiny) return r;
    const V tiny = V::Set(Tiny<V>());
    const auto small = AndNot(Eq(y, zero), Lt(Abs(r), tiny));
    if (!AnyTrue(small)) return r;
    return IfThenElse(And(small, Lt(Mul(y, unit), tiny)), Small(g, y), r);
  }
  SOFTLANE_RARE V Small(V g, V y) const {
    if constexpr (kFloat) {
      const W r = Mul(Widen(y), Sub(Widen(g), dot.Both()));
      return NarrowSmall(r);
    } else {
      return SmallSoftmaxGrad(y, g, {dot.hi, dot.lo}, V::Set(1), ToDouble2(V::Set(1)));
    }
  }
};
// Samples in which g - Σ cannot overflow and what is left of Σ is a normal number: 1, others 0.
template <class V, class S>
inline S FitsSoftmaxGrad(Double2<S> sum, const Scale& scale) {
  constexpr bool kFloat = sizeof(typename V::Scalar) == 4;
  const S size = Abs(sum.hi);
  const auto ordinary = And(Lt(S::Set(kFloat ? 0x1p-90 : 0x1p-400), size),
                            Lt(size, S::Set(kFloat ? 0x1p100 : 0x1p500)));
  return IfThenElseZero(Or(ordinary, Eq(size, S::Set(0))), S::Set(scale.unit ? 1 : 0));
}
// The least output of some samples, which tells whether one of their results may be tiny; half types, of whose numbers
// the least are far larger, need not know. Registers of 8 floats are as quick, or quicker, if that is looked for in
// every result.
#if SOFTLANE_BACKEND == SOFTLANE_IS_avx512
constexpr bool kSeeksLeast = true;
#else
constexpr bool kSeeksLeast = false;
#endif
// Whether it is, which halves need not.
template <class T>
constexpr bool kAlwaysLooks = !kSeeksLeast && sizeof(T) != 2;
template <class T>
constexpr auto kNoLeast = static_cast<typename Vec<T>::Scalar>(1);
template <class T>
SOFTLANE_INLINE void KeepLeast(Vec<T> y, Vec<T>& least) {
  if constexpr (kSeeksLeast && sizeof(T) != 2) least = MinPositive(y, least);
}
// Whether SoftmaxGrad may find something tiny beside these least outputs and units. Twice what it looks for, as the
// products are rounded: what a sample gets depends on itself alone, not on those beside it.
template <class T>
inline bool MayBeTiny(Vec<T> least, Vec<T> unit) {
  using V = Vec<T>;
  if constexpr (sizeof(T) == 2) return false;
  if constexpr (kAlwaysLooks<T>) return true;
  const auto fine = Lt(V::Set(2 * Tiny<V>()), Mul(least, unit));  // not for NaN
  return AnyTrue(AndNot(fine, V::FirstN(V::kLanes)));
}

// Σ unit·g·y; an element with y == 0 has no part, whatever its g.
template <class T>
inline Double2<F64> MaskedDot(const BackwardBatch& b, size_t row, double unit) {
  using V = Vec<T>;
  using W = Wide<V>;
  const W zero = W::Set(0);
  WholeSum<V> sum;
  ForPairVectors<T>(b, row, 0, [&](V g, V y) {
    const W yv = Widen(y);
    sum.AddProduct(IfThenElse(Eq(yv, zero), zero, Mul(Widen(g), W::Set(unit))), yv);
  });
  return sum.Total();
}

// y·(g - Σ g·y)/T for any numbers, in double as (y·g - y·Σ)/T, as g - Σ may overflow where the product
// does not. y == 0 gives 0.
template <class T>
SOFTLANE_RARE void SoftmaxBackwardRow(const BackwardBatch& b, size_t row) {
  using V = Vec<T>;
  using W = Wide<V>;
  const W zero = W::Set(0);
  // The products in a unit in which they are ordinary numbers.
  const double largest = LargestGrad<true, T>(b, row);
  const double unit = largest > 0x1p900 ? 0x1p-64 : largest < 0x1p-700 ? 0x1p300 : 1;
  const Double2<F64> total = MaskedDot<T>(b, row, unit);
  const Double2<W> dot = {W::Set(FirstLane(total.hi)), W::Set(FirstLane(total.lo))};
  // With a sum of this size the products of a y from 2^-400 on are normal numbers.
  const bool sound = FirstLane(Abs(total.hi)) > 0x1p-400;
  const W least = W::Set(sound ? 0x1p-400 : kInf), back = W::Set(1 / unit);
  MapPairs<T>(b, row, [&](V g, V y) {
    const W yv = Widen(y), gv = Widen(g);
    if constexpr (sizeof(T) < 8) {
      const W r = DivideByTemperature(Mul(yv, Sub(gv, dot.hi)), b.scale);
      return IfThenElse(Eq(y, V::Set(0)), V::Set(0), Narrow(r, static_cast<V*>(nullptr)));
    } else {
      const Double2<W> product = Safe(TwoProd(yv, dot.hi));
      const W part = Mul(product.hi, back);
      const W rest = Mul(MulAdd(yv, dot.lo, product.lo), back);
      const W r = DivideByTemperature(Sub(MulAddExact(yv, gv, Sub(zero, part)), rest), b.scale);
      if (!AnyTrue(Lt(yv, least))) return r;
      const auto tiny = Lt(Add(Abs(Mul(yv, gv)), Abs(part)), W::Set(0x1p-900));
      const Double2<W> inverse = {W::Set(b.scale.inv_hi), W::Set(b.scale.inv_lo)};
      return IfThenElse(Or(tiny, Eq(yv, zero)), SmallSoftmaxGrad(yv, gv, dot, back, inverse), r);
    }
  });
}

// Whether a Σ that is 0 may have lost products too small for a float; where a g counts, it has to be formed
// anew.
template <class T, class S>
inline bool MayLose(size_t n, Double2<S> total) {
  if constexpr (sizeof(T) == 8) {
    return false;
  } else {
    return (sizeof(T) == 2 || n > F32::kLanes) && AnyTrue(Eq(total.hi, S::Set(0)));
  }
}

// T is the type of the arrays, of which these may be copies.
template <class T, class Scalar>
inline void SoftmaxBackwardPanel(const BackwardBatch& b, const Panel<Scalar>& g,
                                 const Panel<Scalar>& y, const OutPanel<Scalar>& out) {
  using V = Vec<Scalar>;
  using W = Wide<V>;
  V least = V::Set(kNoLeast<T>);
  const auto sum = WithDotSum<T>(b.n, [&](auto kind) SOFTLANE_LAMBDA {
    using Sum = decltype(kind);
    return PanelFold<Sum, V::kLanes>(b.n, [&](size_t i, Sum& lane) SOFTLANE_LAMBDA {
      const V output = y.Load(i);
      AddDot(g.Load(i), output, lane);
      KeepLeast<T>(output, least);
    });
  });
  const auto total = Settled(sum);
  auto fits = FitsSoftmaxGrad<V>(total, b.scale);
  if (MayLose<T>(b.n, total)) {
    V largest = V::Set(0);
    for (size_t i = 0; i < b.n; ++i) largest = Max(LiveGrad(g.Load(i), y.Load(i)), largest);
    const auto lost = And(Eq(total.hi, W::Set(0)), Lt(W::Set(0), Widen(largest)));
    fits = IfThenElse(lost, W::Set(0), fits);
  }
  const Split<V> parts(total);
  const auto map = [&](auto grad) SOFTLANE_LAMBDA {
    MapPanel(b, g, y, out, NotZero<V>(fits), grad, SoftmaxBackwardRow<Scalar>);
  };
  const V unit = GradUnit(parts.hi);
  if (MayBeTiny<T>(least, unit)) {
    map(SoftmaxGrad<T, true>(parts, unit));
  } else {
    map(SoftmaxGrad<T, false>(parts, unit));
  }
}

// The same for a group; false, with nothing written, unless all of its columns are ordinary.
template <class T>
SOFTLANE_CALL bool SoftmaxBackwardGroup(const BackwardBatch& b, const PairGroup<T>& group) {
  using V = Vec<T>;
  using W = Wide<V>;
  using Grad = SoftmaxGrad<T, kAlwaysLooks<T>>;
  Double2<W> totals[kGroup];
  V least = V::Set(kNoLeast<T>);
  GroupFold<LongDot<T>>(group, b.n, totals,
                        [&](size_t, V g, V y, LongDot<T>& lane) SOFTLANE_LAMBDA {
                          AddDot(g, y, lane);
                          KeepLeast<T>(y, least);
                        });
  const auto grads = MakeOfPanels([&](size_t p) { return Grad(Split<V>(totals[p])); });
  for (size_t p = 0; p < kGroup; ++p) {
    const bool fits = !AnyTrue(Eq(FitsSoftmaxGrad<V>(totals[p], b.scale), W::Set(0)));
    const bool tiny = !kAlwaysLooks<T> && MayBeTiny<T>(least, grads[p].unit);
    if (!fits || tiny || MayLose<T>(b.n, totals[p])) return false;
  }
  group.Write(b.n, grads);
  return true;
}

template <class T>
void SoftmaxBackwardRows(const BackwardBatch& b);
template <class T>
void SoftmaxBackwardCols(const BackwardBatch& b) {
  using Scalar = typename Vec<T>::Scalar;
  PairKernels<T> kernels{SoftmaxBackwardPanel<T, Scalar>, SoftmaxBackwardRows<T>};
  if constexpr (kHasGroups) kernels.group = SoftmaxBackwardGroup<T>;
  ForPairColumns<T>(b, kernels);
}

// How many rows are summed at a time, whose sums are then looked at and split together. More would be a little
// quicker in the L2 cache, and far slower in memory, as results would be written later (measured: bench/NOTES.md).
template <class V>
inline size_t PairBlock(const BackwardBatch& b) {
  constexpr size_t kBytes = 8192;
  if (b.chunked != nullptr) return 1;
  const size_t fit = kBytes / (2 * sizeof(typename V::Scalar) * b.n);
  return fit < 1 ? 1 : Min(fit, V::kLanes);
}

// How many rows on the one lies that is fetched while a row is summed: in the next block, if rows are short; else, and
// for half types, 0 (measured: bench/NOTES.md).
template <class T>
inline size_t PairsAhead(const BackwardBatch& b, size_t block) {
  constexpr size_t kBytes = 8192;
  return sizeof(T) > 2 && b.chunked == nullptr && b.n * sizeof(T) <= kBytes ? block : 0;
}

template <class T>
void SoftmaxBackwardRows(const BackwardBatch& b) {
  using V = Vec<T>;
  if (AreShort(b.count, b.n, b.chunked, kShortPair)) {
    ForPairTiles<T>(b, [&](auto g, auto y, auto out) { SoftmaxBackwardPanel<T>(b, g, y, out); });
    return;
  }
  using W = Wide<V>;
  const size_t block = PairBlock<V>(b), ahead = PairsAhead<T>(b, block);
  for (size_t first = 0; first < b.count; first += block) {
    const size_t rows = Min(block, b.count - first);
    V least = V::Set(kNoLeast<T>);
    const auto sum = WithDotSum<T>(b.n, [&](auto kind) SOFTLANE_LAMBDA {
      using Sum = decltype(kind);
      decltype(kind.Lanes()) lanes[V::kLanes];
      for (size_t r = 0; r < rows; ++r) {
        Sum dot;
        ForPairVectors<T>(
            b, first + r, ahead, kNoLeast<T>,
            [&](V g, V y) SOFTLANE_LAMBDA {
              AddDot(g, y, dot);
              KeepLeast<T>(y, least);
            },
            [&] { EndBlock(dot); });
        lanes[r] = dot.Lanes();
      }
      return FoldRows<SumOf, V::kLanes>(lanes, rows);
    });
    const Double2<W> totals = Settled(sum);
    const Split<V> parts(totals);
    const V grad_units = GradUnit(parts.hi);
    const PerRow high(parts.hi), low(parts.lo), unit(grad_units);
    const PerRow fits(FitsSoftmaxGrad<V>(totals, b.scale)), total(totals.hi);
    const bool may_lose = MayLose<T>(b.n, totals);
    const bool may_be_tiny = MayBeTiny<T>(least, V::Set(MinLane(grad_units)));
    for (size_t r = 0; r < rows; ++r) {
      const size_t row = first + r;
      const bool lost = may_lose && total[r] == 0 && LargestGrad<true, T>(b, row) != 0;
      if (lost || fits[r] == 0) {
        CarefulRow<T>(b, row, SoftmaxBackwardRow<typename V::Scalar>);
        continue;
      }
      const Split<V> dot(high.All(r), low.All(r));
      if (may_be_tiny) {
        MapPairs<T>(b, row, SoftmaxGrad<T, true>(dot, unit.All(r)));
      } else {
        MapPairs<T, kLines>(b, row, SoftmaxGrad<T, false>(dot, unit.All(r)));
      }
    }
  }
}

// ---- log_softmax --------------------------------------------------------------------------------

// What a sample's gradient needs: Σ g, the largest |g| and the largest y.
template <class V>
struct GradTotals {
  V largest = V::Set(0), top = V::Set(static_cast<typename V::Scalar>(-kInf));
  SOFTLANE_INLINE void Add(V g, V y, WholeSum<V>& sum) {
    sum.Add(Widen(g));
    top = Max(y, top);
    if constexpr (sizeof(typename V::Scalar) == 4) largest = Max(Abs(g), largest);
  }
};

// g - exp(y)·Σ g, without a temperature: two roundings and the error of exp, 1.7 ulp of |g| + exp(y)|Σ|.
template <class V>
struct LogSoftmaxGrad {
  using W = Wide<V>;
  using Format = ExpFormat<typename V::Scalar>;
  static constexpr bool kFloat = sizeof(typename V::Scalar) == 4;
  static constexpr int kSpare = static_cast<int>(Format::kSpare);  // exps are in units of 2^-kSpare
  Split<V> sum;
  V unit = V::Set(static_cast<typename V::Scalar>(PowerOfTwo(-kSpare)));
  V sum_units;
  V floor;  // below it exp(y)·Σ is less than half of the least number
  LogSoftmaxGrad(Split<V> total, V least_y)
      : sum(total), sum_units(Mul(total.hi, unit)), floor(least_y) {}
  explicit LogSoftmaxGrad(Split<V> total) : LogSoftmaxGrad(total, Floor(total.hi)) {}
  SOFTLANE_INLINE V operator()(V g, V y) const {
    const ExpReference<V> ref = UnitReference<V>();
    const auto gone = Lt(y, floor);
    ExpParts<V> e = Exp<true, true>(Max(floor, y), ref);
    e.scale = IfThenElse(gone, V::Set(0), e.scale);
    const V leading = NegMulAdd(e.scale, sum_units, g);
    const V rest = MulAdd(Mul(e.z, e.scale), sum.hi, Mul(e.scale, sum.lo));
    const V r = NegMulAdd(rest, unit, leading);
    const auto tiny = AndNot(gone, Lt(Abs(r), V::Set(Tiny<V>())));
    return AnyTrue(tiny) ? IfThenElse(tiny, Small(g, e), r) : r;
  }
  SOFTLANE_RARE V Small(V g, ExpParts<V> parts) const {
    const Double2<W> e = Widen(parts);
    if constexpr (kFloat) {
      const W down = W::Set(PowerOfTwo(-kSpare));
      return NarrowSmall(Sub(Widen(g), Mul(Mul(e.hi, down), sum.Both())));
    } else {
      static_assert(kSpare == kLift, "one power of two undoes both");
      const V zero = V::Set(0);
      const Double2<V> product = Mul(e, Double2<V>{Sub(zero, sum.hi), Sub(zero, sum.lo)});
      return ScaleDown(Add(ToDouble2(Mul(g, V::Set(PowerOfTwo(kLift)))), product));
    }
  }
  // For ordinary Σ higher than that of Exp: products with smaller exps would be subnormal.
  static V Floor(V total) {
    using Scalar = typename V::Scalar;
    constexpr int kBinades = 8;
    constexpr auto kNear = static_cast<Scalar>(-((kFloat ? 151 : 1076) + kBinades) * kLn2DDHi);
    const auto near = Lt(Abs(total), V::Set(static_cast<Scalar>(1 << kBinades)));
    return IfThenElse(near, V::Set(kNear), UnitReference<V>().floor);
  }
  static typename W::Mask IsOrdinary(W size) {
    const auto within = And(Lt(W::Set(kFloat ? 0x1p-30 : 0x1p-400), size),
                            Lt(size, W::Set(kFloat ? 0x1p38 : 0x1p400)));
    return Or(within, Eq(size, W::Set(0)));
  }
  // Samples of log-probabilities whose Σ is exact enough, and what is left of it a normal number: 1, others 0.
  static W Fits(Double2<W> sum, const GradTotals<V>& totals, size_t n, const Scale& scale) {
    const W zero = W::Set(0), size = Abs(sum.hi);
    auto fits = IsOrdinary(size);
    if constexpr (kFloat) {
      // n/16 additions a lane and four of lanes, each wrong by 2^-53 of at most n times the largest.
      const double count = static_cast<double>(n);
      const W bound = Mul(Widen(totals.largest), W::Set(0x1p-27 * count * (count / 16 + 4)));
      fits = AndNot(Lt(size, bound), fits);
    }
    fits = AndNot(Lt(zero, Widen(totals.top)), fits);
    return IfThenElseZero(fits, W::Set(scale.unit ? 1 : 0));
  }
};

// (g - exp(y)·Σ g)/T for any numbers; y == -inf gives g. exp(y)·Σ is formed with the exponents kept apart.
template <class T>
SOFTLANE_RARE void LogSoftmaxBackwardRow(const BackwardBatch& b, size_t row) {
  using V = Vec<T>;
  using W = Wide<V>;
  using Format = ExpFormat<double>;
  const W zero = W::Set(0);
  const double unit = LargestGrad<false, T>(b, row) > 0x1p900 ? 0x1p-64 : 1;
  ExactSum<W> sum;
  W top = zero;
  ForPairVectors<T>(b, row, 0, [&](V g, V y) {
    sum.Add(ToDouble2(Mul(Widen(g), W::Set(unit))));
    top = Max(Widen(y), top);
  });
  const Double2<F64> pair = sum.Total();
  const double total = FirstLane(pair.hi);
  if constexpr (sizeof(T) == 4) {
    // Many rows are here for nothing but their Σ, which now is exact: long ones, and those whose gradients nearly
    // cancel.
    if (b.scale.unit && MaxLane(top) == 0 &&
        AnyTrue(LogSoftmaxGrad<V>::IsOrdinary(W::Set(total < 0 ? -total : total)))) {
      const Double2<W> all = {W::Set(total), W::Set(FirstLane(pair.lo))};
      MapPairs<T>(b, row, LogSoftmaxGrad<V>(Split<V>(all)));
      return;
    }
  }
  // log-probabilities are <= 0; beyond this bound exp overflows whatever it is multiplied by.
  const double limit = 2500;
  const double max = MaxLane(top) < limit ? MaxLane(top) : limit;
  const ExpReference<W> ref = MakeReference(W::Set(max), UnitFactor<W>());
  const double n = Format::kMagic + Format::kBias + Format::kSpare - FirstLane(ref.magic);
  const bool ordinary = total - total == 0 && total != 0;
  const Decomposed<F64> parts = Decompose(F64::Set(ordinary ? total : 1));
  const W mantissa = W::Set(ordinary ? FirstLane(parts.mantissa) : total);
  // What the low part is worth beside the mantissa.
  const W rest = W::Set(ordinary ? FirstLane(pair.lo) / total * FirstLane(parts.mantissa) : 0);
  // The largest exponents there are: n <= 3700, and 1024 of the sum's.
  const auto power = [](double exponent) {
    if (exponent > 2000) exponent = 2000;
    if (exponent < -2000) exponent = -2000;
    return PowerScale<W>(static_cast<int>(exponent));
  };
  const double shift = FirstLane(parts.exponent) + n - Format::kSpare;
  const PowerScale<W> rescale = power(shift);  // in units of `unit`: exp(y)·Σ alone may overflow
  const PowerScale<W> lift = power(shift + kLift + (unit == 1 ? 0 : 64));
  const Double2<W> inverse = {W::Set(b.scale.inv_hi), W::Set(b.scale.inv_lo)};
  MapPairs<T>(b, row, [&](V g, V y) {
    const W gv = Widen(g), yv = Widen(y);
    V* tag = nullptr;
    // Below the floor exp(y) is the square of exp(y/2): times the largest Σ it can still be a number.
    const auto deep = And(Eq(W::Set(max), zero), Lt(yv, ref.floor));
    const W half = IfThenElse(deep, Mul(yv, W::Set(0.5)), yv);
    // An infinite Σ is not for 0 to be multiplied by: below the floor the exp is the floor's.
    const W low_y = Max(ref.floor, IfThenElse(Lt(W::Set(max), half), W::Set(max), half));
    const Double2<W> e = ExactValue(Exp<false, true>(low_y, ref));
    Double2<W> product = SafeMul(e, Double2<W>{mantissa, rest});
    W unlift = W::Set(1);
    if (AnyTrue(deep)) {
      const W spare = W::Set(PowerOfTwo(600 - static_cast<int>(Format::kSpare)));
      const Double2<W> square = SafeMul({Mul(e.hi, spare), Mul(e.lo, spare)}, product);
      product = {IfThenElse(deep, square.hi, product.hi), IfThenElse(deep, square.lo, product.lo)};
      unlift = IfThenElse(deep, W::Set(0x1p-600), unlift);
    }
    product = Safe(product);
    const auto gone = Eq(yv, W::Set(-kInf));
    const W high = IfThenElse(gone, zero, Mul(rescale(product.hi), unlift));
    const W low = IfThenElse(gone, zero, Mul(rescale(product.lo), unlift));
    const W own = Mul(gv, W::Set(unit));
    const W r = Mul(DivideByTemperature(Sub(Sub(own, high), low), b.scale), W::Set(1 / unit));
    const auto tiny = Lt(Add(Abs(own), Abs(high)), W::Set(0x1p-900 * unit));
    if (!AnyTrue(tiny)) return Narrow(r, tag);
    const Double2<W> lifted = {IfThenElse(gone, zero, Mul(lift(product.hi), unlift)),
                               IfThenElse(gone, zero, Mul(lift(product.lo), unlift))};
    const Double2<W> all = Add(ToDouble2(Mul(gv, W::Set(PowerOfTwo(kLift)))),
                               Double2<W>{Sub(zero, lifted.hi), Sub(zero, lifted.lo)});
    return Narrow(IfThenElse(tiny, ScaleDown(Mul(all, inverse)), r), tag);
  });
}

template <class T>
inline void LogSoftmaxBackwardPanel(const BackwardBatch& b, const Panel<T>& g, const Panel<T>& y,
                                    const OutPanel<T>& out) {
  using V = Vec<T>;
  GradTotals<V> totals;
  const auto sum = PanelFold<WholeSum<V>, V::kLanes>(
      b.n,
      [&](size_t i, WholeSum<V>& lane) SOFTLANE_LAMBDA { totals.Add(g.Load(i), y.Load(i), lane); });
  const auto total = Settled(sum);
  const auto fits = LogSoftmaxGrad<V>::Fits(total, totals, b.n, b.scale);
  MapPanel(b, g, y, out, NotZero<V>(fits), LogSoftmaxGrad<V>(Split<V>(total)),
           LogSoftmaxBackwardRow<T>);
}

// The same for a group; false, with nothing written, unless all of its columns are ordinary.
template <class T>
SOFTLANE_CALL bool LogSoftmaxBackwardGroup(const BackwardBatch& b, const PairGroup<T>& group) {
  using V = Vec<T>;
  using W = Wide<V>;
  using Grad = LogSoftmaxGrad<V>;
  Double2<W> totals[kGroup];
  GradTotals<V> seen[kGroup];
  GradTotals<V>* const all_seen = seen;
  GroupFold<WholeSum<V>>(group, b.n, totals,
                         [=](size_t p, V g, V y, WholeSum<V>& lane)
                             SOFTLANE_LAMBDA { all_seen[p].Add(g, y, lane); });
  for (size_t p = 0; p < kGroup; ++p) {
    const W fits = Grad::Fits(totals[p], seen[p], b.n, b.scale);
    if (AnyTrue(Eq(fits, W::Set(0)))) return false;
  }
  const auto grads = MakeOfPanels([&](size_t p) { return Grad(Split<V>(totals[p])); });
  group.Write(b.n, grads);
  return true;
}

template <class T>
void LogSoftmaxBackwardRows(const BackwardBatch& b);
template <class T>
void LogSoftmaxBackwardCols(const BackwardBatch& b) {
  using Scalar = typename Vec<T>::Scalar;
  PairKernels<T> kernels{LogSoftmaxBackwardPanel<Scalar>, LogSoftmaxBackwardRows<T>};
  if constexpr (kHasGroups) kernels.group = LogSoftmaxBackwardGroup<T>;
  ForPairColumns<T>(b, kernels);
}

template <class T>
void LogSoftmaxBackwardRows(const BackwardBatch& b) {
  using V = Vec<T>;
  using W = Wide<V>;
  if (AreShort(b.count, b.n, b.chunked, kShortLogPair)) {
    ForPairTiles<T>(b, [&](auto g, auto y, auto out) { LogSoftmaxBackwardPanel(b, g, y, out); });
    return;
  }
  const size_t block = PairBlock<V>(b), ahead = PairsAhead<T>(b, block);
  for (size_t first = 0; first < b.count; first += block) {
    const size_t rows = Min(block, b.count - first);
    decltype(WholeSum<V>().Lanes()) lanes[V::kLanes];
    V largest[V::kLanes], top[V::kLanes];
    for (size_t r = 0; r < rows; ++r) {
      GradTotals<V> totals;
      WholeSum<V> sum;
      constexpr auto kLeast = static_cast<typename V::Scalar>(-kInf);
      ForPairVectors<T>(
          b, first + r, ahead, kLeast, [&](V g, V y) SOFTLANE_LAMBDA { totals.Add(g, y, sum); },
          [] {});
      lanes[r] = sum.Lanes();
      largest[r] = totals.largest;
      top[r] = totals.top;
    }
    const Double2<W> sums = Settled(FoldRows<SumOf, V::kLanes>(lanes, rows));
    const GradTotals<V> totals{FoldRows<MaxOf, V::kLanes>(largest, rows),
                               FoldRows<MaxOf, V::kLanes>(top, rows)};
    const Split<V> parts(sums);
    const PerRow high(parts.hi), low(parts.lo), floor(LogSoftmaxGrad<V>::Floor(parts.hi));
    const PerRow fits(LogSoftmaxGrad<V>::Fits(sums, totals, b.n, b.scale));
    for (size_t r = 0; r < rows; ++r) {
      if (fits[r] == 0) {
        CarefulRow<T>(b, first + r, LogSoftmaxBackwardRow<typename V::Scalar>);
      } else {
        const Split<V> sum(high.All(r), low.All(r));
        MapPairs<T>(b, first + r, LogSoftmaxGrad<V>(sum, floor.All(r)));
      }
    }
  }
}
