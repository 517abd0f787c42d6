// The seam between the portable code and the kernels: plain structs and one table of function
// pointers per instruction set. Nothing here may need code from a header: it is compiled for
// every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace softlane {

// Storage types that the kernels read and write in place; half types are computed as float.
enum Storage : int { kF32 = 0, kF64 = 1, kF16 = 2, kBF16 = 3, kStorages = 4 };

// Temperature T as the kernels need it: log2(e)/T and 1/T, each split into a high and a low part.
struct Scale {
  double k_hi, k_lo;      // log2(e)/T in double
  float kf_hi, kf_lo;     // log2(e)/T in float
  double inv_hi, inv_lo;  // 1/T in double
  float invf_hi, invf_lo;
  double inv_k;  // T·ln 2, roughly: 1/k
  bool unit;     // T == 1
};

// Where a row's elements come from when they do not lie in memory as the kernel needs them:
// `fetch` returns elements [start, start + count) as a contiguous array of the kernel's storage
// type, `put` sends a written chunk off; neither throws. A chunk is a multiple of 128 elements that divides kStripe,
// but for the last.
struct ChunkIo {
  void* (*fetch)(void* context, int operand, size_t start, size_t count);
  void (*put)(void* context, int operand, size_t start, size_t count);
  void* context;
  size_t chunk;
};

// Long rows and columns are summed by stripes, which threads can share: each a multiple of kStripe elements, at most
// kMostStripes of them, and one only up to kOneStripe. Their length alone decides, not who works on them.
constexpr size_t kStripe = 30720, kMostStripes = 64;
constexpr size_t kOneStripe = 8 * kStripe;

// Threads that work on one row together: `each` calls piece(state, i) for all i < count, in any order and several at a
// time.
struct Crew {
  using Piece = void (*)(void* state, size_t i) noexcept;
  void (*each)(void* context, size_t count, Piece piece, void* state) noexcept;
  void* context;
};

// A batch of rows (row r starts at data + r * stride, its n elements are adjacent), or of columns
// (column c starts at data + c * sizeof(element), its n elements are `stride` bytes apart).
struct Batch {
  const void* x;
  ptrdiff_t x_stride;
  void* out;
  ptrdiff_t out_stride;
  size_t count;  // rows or columns
  size_t n;      // elements of each
  Scale scale;
  // kScratchBytes, aligned to 64. Float and double need it for copies, and for exps of groups.
  void* scratch;
  bool copies;  // columns: work in copies of them, in the scratch; n is at most kMostCopied
  // Columns of float and double: work on several panels row by row. softmax keeps their exps in the scratch, if n is at
  // most kMostGrouped.
  bool grouped;
  const ChunkIo* chunked;  // not null: count is 1 and the row is read and written through it
  const Crew* crew;        // not null: n is above kOneStripe, and the rows are not of half types
};

struct BackwardBatch {
  const void* grad;  // gradient with respect to the output
  ptrdiff_t grad_stride;
  const void* y;  // the output
  ptrdiff_t y_stride;
  void* out;
  ptrdiff_t out_stride;
  size_t count;
  size_t n;
  Scale scale;
  void* scratch;           // for copies alone
  bool copies;             // n is at most kMostCopied / 2; if it is, columns of half types always
  bool grouped;            // columns: work on several panels of them row by row; n is above 16
  const ChunkIo* chunked;  // operand 0: grad, 1: y, 2: out
};

// What else is known of a sample once its loss is; each is an array of one value a row.
struct LossStats {
  double* logsumexp;
  double* log_prob;  // of the target
  double* entropy;   // of the prediction
  bool* correct;     // the target is the first of the largest logits
};

struct LossBatch {
  const void* x;
  ptrdiff_t x_stride;
  void* grad;  // null: the loss alone
  ptrdiff_t grad_stride;
  size_t count;
  size_t n;
  Scale scale;
  void* scratch;
  // n is at most kMostCopied. Only with a gradient, but of half types all columns as long as that.
  bool copies;
  bool grouped;  // columns of any type; the exps of a gradient are kept as those of softmax
  // Operand 0: logits, 1: gradient, 2: class weights, or probabilities, of the row.
  const ChunkIo* chunked;
  const Crew* crew;         // as of Batch
  int64_t* targets;         // one a row; < 0 or >= n: the row is ignored
  const double* coef;       // one a row: its sample weight; or null for 1
  double divisor;           // of the gradient (the mean's; 1 for a sum)
  double divisor_lo;        // what it lacks
  const double* weight;     // one a class, or null for 1
  const double* weight_lo;  // what the weights at hand lack, set by fetching these; or null for 0
  size_t weight_stride;     // from row to row, in elements, of both; 0: all rows have the same
  // Σ weight over the classes that count (n where weight is null), high and low parts; where the rows have
  // weights of their own, of each.
  double* weight_sum;
  double* weight_sum_lo;
  // Null, or the probabilities that are the weights of each row, laid out as x; not for columns of half types. The
  // kernel then fills targets, weight_sum and weight_sum_lo itself: the likeliest class, and what they add up to.
  const void* shares;
  ptrdiff_t share_stride;
  double smoothing;        // ε
  double classes;          // C in ε/C
  double z_loss;           // λ of λ·logsumexp²
  double offset;           // what was subtracted from the row's logits, over T
  const LossStats* stats;  // null: not wanted
  double* loss;            // one a row
};

// Σ b·exp(x): rows of double one after the other, both operands packed. Result: log|sum| and its sign.
struct WeightedBatch {
  const double* x;
  const double* b;
  size_t count;
  size_t n;
  const ChunkIo* chunked;  // operand 0: x, 1: b; count is 1
  double least;    // below it the result, if x is, too, needs more digits than double alone gives
  double* result;  // one a row
  double* sign;
};

// Σ exp(x) = (hi + lo)·exp(shift)·2^exponent. A sum of nothing has hi 0 and exponent kNoExponent; an
// infinite or NaN sum has it in hi, and shift 0.
struct ExpSumState {
  double shift, exponent, hi, lo;
};
constexpr double kNoExponent = -1e300;

// Probabilities t become w·(keep·t + spread), each a sum of two doubles.
struct Blend {
  double keep = 1, keep_lo = 0;
  double spread = 0, spread_lo = 0;
};

struct KernelTable {
  const char* name;
  bool has_crews;  // else they are ignored
  void (*softmax_rows[kStorages])(const Batch&);
  void (*softmax_cols[kStorages])(const Batch&);
  void (*log_softmax_rows[kStorages])(const Batch&);
  void (*log_softmax_cols[kStorages])(const Batch&);
  // out: double[count], log Σ exp
  void (*logsumexp_rows[kStorages])(const Batch&);
  void (*logsumexp_cols[kStorages])(const Batch&);
  void (*cross_entropy_rows[kStorages])(const LossBatch&);
  void (*cross_entropy_cols[kStorages])(const LossBatch&);
  void (*softmax_backward_rows[kStorages])(const BackwardBatch&);
  void (*softmax_backward_cols[kStorages])(const BackwardBatch&);
  void (*log_softmax_backward_rows[kStorages])(const BackwardBatch&);
  void (*log_softmax_backward_cols[kStorages])(const BackwardBatch&);
  void (*logsumexp_weighted)(const WeightedBatch&);
  // out: ExpSumState[count]
  void (*exp_sum_rows)(const Batch&);  // of doubles
  void (*log_of_sums)(const ExpSumState* sums, double* out, size_t n);
  // `t` in place, what it lacks to `low`; `weight` null: 1.
  void (*blend)(const Blend& blend, const double* weight, double* t, double* low, size_t n);
  // Σ (x + low), as sum and what it lacks; low null: 0. Elements x of 0 have no low part.
  void (*sum)(const double* x, const double* low, size_t n, double* sum, double* sum_lo);
  // The position of the first largest element; n if there is none but -inf and NaN.
  size_t (*first_max)(const double* x, size_t n);
  // x to cap·tanh(x/cap), and a gradient with respect to that to one with respect to x.
  void (*softcap)(double* x, size_t n, double cap);
  void (*softcap_backward)(const double* x, double* grad, size_t n, double cap);
  // Elementary functions over an array, for the tests of their accuracy: exp, log, expm1, log1p.
  void (*elementary_f32[4])(const float* x, float* out, size_t n);
  void (*elementary_f64[4])(const double* x, double* out, size_t n);
};

constexpr size_t kScratchBytes = size_t{1} << 19;
// The longest columns of which a panel, 64 bytes an element, fits the scratch.
constexpr size_t kMostCopied = kScratchBytes / 64;
// The same of groups of four.
constexpr size_t kMostGrouped = kMostCopied / 4;

}  // namespace softlane
