// Arrays as addresses, shapes and strides; the split of a loop into outer dimensions and a class axis;
// packing of strided, converted or masked rows into contiguous ones. No threads, no Python.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "kernels/table.h"

namespace softlane {

enum class DType : int {
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUInt8,
  kUInt16,
  kUInt32,
  kUInt64,
  kBool,
};

size_t item_size(DType type);
inline bool is_floating(DType type) { return type <= DType::kFloat64; }
// The kernels' name of a floating dtype.
Storage storage_of(DType type);

constexpr int kMaxDims = 64;

struct View {
  char* data = nullptr;
  DType dtype = DType::kFloat64;
  bool swapped = false;  // byte order is not the machine's
  int ndim = 0;
  std::array<ptrdiff_t, kMaxDims> shape;
  std::array<ptrdiff_t, kMaxDims> strides;  // bytes

  size_t size() const {
    size_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= static_cast<size_t>(shape[static_cast<size_t>(d)]);
    return n;
  }
  // Native byte order and every element at a multiple of its size.
  bool aligned() const;
};

// Values of an array of integers, a uint64 beyond INT64_MAX as that.
void load_ints(const char* p, ptrdiff_t step, DType type, bool swapped, int64_t* to, size_t count);
// One value of an array.
uint64_t load_unsigned(const char* p, bool swapped);  // of a uint64 array
double load_double(const char* p, DType type, bool swapped);
void store_double(double value, char* p, DType type, bool swapped);

// Operand strides over the same dimensions: the outer ones, and the class axis, which may be several
// dimensions in C order. An operand that lacks the axis has stride 0 along it.
constexpr int kMaxOperands = 11;
struct Dim {
  ptrdiff_t length;
  std::array<ptrdiff_t, kMaxOperands> stride;
};

struct Plan {
  std::vector<Dim> outer;  // C order; the last one is the run
  std::vector<Dim> axis;   // C order, at least one
  int operands = 0;
  size_t samples = 1;  // product of the outer lengths
  size_t classes = 1;  // product of the axis lengths

  size_t run_length() const { return outer.empty() ? 1 : static_cast<size_t>(outer.back().length); }
  // Makes outer[d] the run.
  void make_run(size_t d);
};

// `operands[i]` has the strides of operand i along all of the `ndim` dimensions of `shape`.
Plan make_plan(int ndim, const ptrdiff_t* shape, uint64_t axes,
               std::initializer_list<const ptrdiff_t*> operands);

// The offsets of every operand at sample s (run-major order of the plan).
using Offsets = std::array<ptrdiff_t, kMaxOperands>;

// Calls f(offsets, position in the run, first sample, count) for the stretches of samples
// [begin, end) that lie within one run.
template <class F>
void for_runs(const Plan& plan, size_t begin, size_t end, F f) {
  const size_t length = plan.run_length();
  for (size_t s = begin; s < end;) {
    const size_t position = s % length;
    size_t index = s / length;
    Offsets offsets{};
    for (size_t d = plan.outer.size(); d-- > 0;) {
      const Dim& dim = plan.outer[d];
      size_t i = position;
      if (d + 1 < plan.outer.size()) {
        i = index % static_cast<size_t>(dim.length);
        index /= static_cast<size_t>(dim.length);
      }
      for (size_t k = 0; k < static_cast<size_t>(plan.operands); ++k) {
        offsets[k] += static_cast<ptrdiff_t>(i) * dim.stride[k];
      }
    }
    const size_t count = length - position < end - s ? length - position : end - s;
    f(offsets, s, count);
    s += count;
  }
}

// The stride of an operand along the run.
inline ptrdiff_t run_stride(const Plan& plan, size_t operand) {
  return plan.outer.empty() ? 0 : plan.outer.back().stride[operand];
}

// Calls f(address, step in bytes, position, count) for the stretches of the class axis
// [start, start + count) of one row that have a constant step.
template <class F>
void for_steps(const Plan& plan, size_t operand, char* row, size_t start, size_t count, F f) {
  const Dim& last = plan.axis.back();
  const size_t length = static_cast<size_t>(last.length);
  for (size_t done = 0; done < count;) {
    const size_t at = start + done;
    size_t index = at / length;
    ptrdiff_t offset = static_cast<ptrdiff_t>(at % length) * last.stride[operand];
    for (size_t d = plan.axis.size() - 1; d-- > 0;) {
      const Dim& dim = plan.axis[d];
      offset +=
          static_cast<ptrdiff_t>(index % static_cast<size_t>(dim.length)) * dim.stride[operand];
      index /= static_cast<size_t>(dim.length);
    }
    const size_t rest = length - at % length;
    const size_t n = rest < count - done ? rest : count - done;
    f(row + offset, last.stride[operand], done, n);
    done += n;
  }
}

// Elements somewhere in memory: rows of `count`, in bytes `row_step` from row to row and `step` within one.
struct Lattice {
  char* data;
  ptrdiff_t row_step, step;
  size_t rows, count;
};

// Copies between a lattice of one dtype and a contiguous array of another (floating) dtype; what is unpacked
// comes from float or double, or has the lattice's dtype. `scale` multiplies what is read, `center` is
// subtracted before that.
void pack(const Lattice& from, DType type, bool swapped, void* to, DType to_type,
          double scale = 1.0, double center = 0.0);
void unpack(const void* from, DType from_type, const Lattice& to, DType type, bool swapped);
// Whether a lattice of a floating dtype has a NaN.
bool any_nan(const Lattice& x, DType type);
// Writes `value` to the elements of a contiguous array of a floating dtype whose bool in the lattice is false.
void fill_outside(const Lattice& where, void* array, DType type, double value);

}  // namespace softlane
