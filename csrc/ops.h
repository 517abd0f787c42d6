// The operations over arrays of any layout: each chooses rows, columns or packed rows, splits the work
// over threads, and calls the active table. Arguments are validated; shapes agree.
#pragma once

#include "strided.h"

namespace softlane {

// `axes` is a set of bits. `where` (bool, x's shape) may be null. `out` may be x.
void softmax(const View& x, const View& out, uint64_t axes, const View* where, double temperature,
             bool log);

// The same for contiguous rows of a floating dtype, at once and by this thread.
void softmax_rows(const void* x, void* out, DType type, size_t rows, size_t classes, bool log);

// `out` and `sign` have x's shape without the axes; `sign` and `b` may be null.
void logsumexp(const View& x, const View& out, const View* sign, uint64_t axes, const View* b,
               const View* where);

enum class Reduction { kNone = 0, kMean = 1, kSum = 2 };

struct CrossEntropyArgs {
  View logits;
  // Integers in the logits' shape without the axis, or probabilities in the logits' shape.
  View targets;
  int axis = 0;
  const View* weight = nullptr;         // one-dimensional
  const View* sample_weight = nullptr;  // the targets' shape
  int64_t ignore_index = -100;
  double label_smoothing = 0;
  double temperature = 1;
  double z_loss = 0;
  double softcap = 0;  // 0: none
  const View* where = nullptr;
  Reduction reduction = Reduction::kMean;
  // Of the losses' shape for kNone, else without dimensions. Double asks for double arithmetic throughout.
  const View* loss = nullptr;
  const View* grad = nullptr;
  // Null, or logsumexp, log_prob, entropy (floating) and correct (bool), all of the losses' shape.
  std::array<const View*, 4> stats{};
};

// Throws std::out_of_range and std::invalid_argument for bad targets, before anything is written.
void cross_entropy(const CrossEntropyArgs& args);

// Σ exp(x) over the axes as a state that others can be added to: `states` is double, of the shape of the
// result and a last axis of 4.
void exp_sums(const View& x, const View& states, uint64_t axes);
// The logarithms of `n` such states.
void log_of_sums(const double* states, double* out, size_t n);

// softmax (log: log_softmax) of each segment [pointers[i], pointers[i + 1]) of one-dimensional x, or its
// logsumexp. The pointers ascend from 0 to the length of x.
void segment_softmax(const View& x, const View& out, const std::vector<int64_t>& pointers,
                     bool log);
void segment_logsumexp(const View& x, const View& out, const std::vector<int64_t>& pointers);

void softmax_backward(const View& grad_output, const View& output, const View& out, uint64_t axes,
                      double temperature, bool log);

}  // namespace softlane
