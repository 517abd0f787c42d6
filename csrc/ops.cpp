#include "ops.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "parallel.h"
#include "scale.h"

namespace softlane {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A thread's scratch, at most 1 MiB: the kernels' own, and two buffers for packed rows.
constexpr size_t kChunk = kStripe;  // elements
constexpr size_t kPackBytes = kChunk * sizeof(double);
static_assert(kScratchBytes + 2 * kPackBytes <= (size_t{1} << 20), "scratch");

constexpr size_t kPanel = 16;  // columns

class Scratch {
 public:
  char* kernel() { return base(); }
  char* pack(size_t i) { return base() + kScratchBytes + i * kPackBytes; }

 private:
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  char* base() {
    if (!memory_) {
      memory_.reset(
          static_cast<char*>(::operator new(kScratchBytes + 2 * kPackBytes, std::align_val_t{64})));
    }
    return memory_.get();
  }
  std::unique_ptr<char, Free> memory_;
};
thread_local Scratch scratch;

// Float arithmetic needs a 1/T well inside its range; beyond it rows are computed in double. Where even
// double has no room for log2(e)/T, logits and T are multiplied by a power of two first.
bool fits_float(double temperature) { return temperature > 0x1p-90 && temperature < 0x1p90; }
bool fits_double(double temperature) { return temperature > 0x1p-800 && temperature < 0x1p800; }
// What a gradient by an extreme temperature is multiplied by at last: 1/T alone may have no double, or one with
// few digits.
double gradient_lift(double temperature) {
  return temperature < 0x1p-900 ? 0x1p120 : temperature > 0x1p900 ? 0x1p-120 : 1;
}

void multiply(double* x, size_t n, double factor) {
  for (size_t i = 0; i < n; ++i) x[i] *= factor;
}

// Most temperatures are 1.
Scale scale_of(double temperature) {
  static const Scale unit = make_scale(1);
  return temperature == 1 ? unit : make_scale(temperature);
}

struct Compute {
  DType type;  // of the packed rows, and of the kernel
  Scale scale;
  double factor = 1;    // multiplies the logits as they are packed
  bool direct = false;  // the arrays can be read and written where they are
};

// How to compute on `x` with results in `out` (null: reductions), in double if `wide` or needed.
Compute make_compute(const View& x, const View* out, const View* where, double temperature,
                     bool wide) {
  Compute c;
  wide = wide || x.dtype == DType::kFloat64 || !is_floating(x.dtype) ||
         (out != nullptr && out->dtype == DType::kFloat64);
  const bool same = is_floating(x.dtype) && (out == nullptr || out->dtype == x.dtype) &&
                    (!wide || x.dtype == DType::kFloat64);
  const bool ordinary =
      x.dtype == DType::kFloat64 ? fits_double(temperature) : fits_float(temperature);
  c.type = same && ordinary                   ? x.dtype
           : wide || !fits_float(temperature) ? DType::kFloat64
                                              : DType::kFloat32;
  if (c.type == DType::kFloat64 && !fits_double(temperature)) {
    c.factor = temperature > 1 ? 0x1p-400 : 0x1p600;
    temperature *= c.factor;
  }
  c.scale = scale_of(temperature);
  c.direct =
      same && ordinary && where == nullptr && x.aligned() && (out == nullptr || out->aligned());
  return c;
}

// The dimension along which neighbouring columns of all operands [0, count) are adjacent, or -1.
int column_dim(const Plan& plan, size_t count, size_t item) {
  if (plan.axis.size() != 1) return -1;
  for (size_t d = plan.outer.size(); d-- > 0;) {
    bool adjacent = plan.outer[d].length >= 8;
    for (size_t k = 0; adjacent && k < count; ++k) {
      adjacent = plan.outer[d].stride[k] == static_cast<ptrdiff_t>(item);
    }
    if (adjacent) return static_cast<int>(d);
  }
  return -1;
}

bool contiguous(const Plan& plan, size_t operand, size_t item) {
  if (plan.axis.size() != 1) return false;
  return plan.classes == 1 || plan.axis[0].stride[operand] == static_cast<ptrdiff_t>(item);
}
bool contiguous_axis(const Plan& plan, size_t count, size_t item) {
  bool all = true;
  for (size_t k = 0; k < count; ++k) all = all && contiguous(plan, k, item);
  return all;
}

enum class Mode { kRows, kCols, kPacked };

Mode choose_mode(Plan& plan, bool direct, size_t operands, size_t item) {
  if (!direct) return Mode::kPacked;
  if (contiguous_axis(plan, operands, item)) return Mode::kRows;
  const int d = column_dim(plan, operands, item);
  if (d < 0) return Mode::kPacked;
  plan.make_run(static_cast<size_t>(d));
  return Mode::kCols;
}

// Whether n rows at this distance come to lie in few of the sets of lines of an L1 cache, 64 of eight lines or more:
// whether some k rows get back to within a quarter of a line of where they began. k up to 3 is what counts (measured:
// bench/NOTES.md).
bool compete(size_t n, ptrdiff_t stride) {
  constexpr size_t kSize = 4096;
  for (size_t k = 1; k <= std::min<size_t>(3, n / 8); ++k) {
    const size_t gap = k * static_cast<size_t>(stride) % kSize;
    if (std::min(gap, kSize - gap) < 16) return true;
  }
  return false;
}

// Whether rows of columns compete so in any of the operands.
bool any_competes(const Plan& plan, size_t operands) {
  bool any = false;
  for (size_t k = 0; k < operands; ++k) {
    any = any || compete(plan.classes, plan.axis[0].stride[k]);
  }
  return any;
}
// Whether columns that are read, from so many operands, and written are better worked on in copies: where their rows
// compete.
bool wants_copies(const Plan& plan, Mode mode, size_t inputs) {
  return mode == Mode::kCols && plan.classes <= kMostCopied / inputs &&
         any_competes(plan, inputs + 1);
}
// Whether the columns of an operand reach over more memory than an L1 cache has, or than half of an L2 cache.
bool reach(const Plan& plan, size_t bytes) {
  return plan.classes * static_cast<size_t>(std::abs(plan.axis[0].stride[0])) > bytes;
}
bool lie_wide(const Plan& plan) { return reach(plan, 48 << 10); }
bool lie_far(const Plan& plan) { return reach(plan, 512 << 10); }
// Whether an operand is larger than an L2 cache.
bool is_large(const Plan& plan, size_t item) {
  return plan.samples * plan.classes * item > 4 << 20;
}
// Whether there is a whole group of columns, or they reach far.
bool fill_group(const Plan& plan, size_t item) {
  return plan.run_length() * item >= 256 || lie_wide(plan);
}
// Whether columns of float and double are worked on several panels at a time, which pays if there are enough of
// them, or they reach far: but for long ones that compete, for which copies are quicker, and for softmax and
// gradients, which read what they wrote, if neither short nor long, in arrays that lie in caches (measured:
// bench/NOTES.md). The kernels do not for log_softmax with a temperature.
bool wants_groups(const Plan& plan, Mode mode, const Compute& compute, bool log) {
  const size_t n = plan.classes, item = item_size(compute.type);
  if (mode != Mode::kCols || item == 2 || (log && !compute.scale.unit)) return false;
  if (any_competes(plan, 2) && n <= kMostCopied) return lie_far(plan) && n <= 512;
  if (log || n <= 8) return fill_group(plan, item);
  return lie_wide(plan) && (n >= 200 || (n >= 32 && is_large(plan, item)));
}
// The same for results that are one a column.
bool wants_sum_groups(const Plan& plan, Mode mode, const Compute& compute) {
  const size_t item = item_size(compute.type);
  return mode == Mode::kCols && item > 2 && fill_group(plan, item);
}
// The same for pairs, which it costs less: those of half types, too, and those whose exps are needed. The kernels do
// not with a temperature.
bool wants_pair_groups(const Plan& plan, Mode mode, const Compute& compute, bool log) {
  const size_t n = plan.classes, item = item_size(compute.type);
  if (mode != Mode::kCols || n <= 16 || !compute.scale.unit) return false;
  if (log || item == 2 || any_competes(plan, 3)) return true;
  return lie_wide(plan) && (n >= 128 || (n >= 64 && lie_far(plan)) || is_large(plan, item));
}

// Gives a batch its scratch, for copies or for the floats of half types.
template <class B>
void take_scratch(B& batch, bool copies, DType type) {
  batch.copies = copies;
  if (copies || item_size(type) == 2) batch.scratch = scratch.kernel();
}
// The same for the exps of groups, which those of long columns compute twice.
template <class B>
void keep_exps(B& batch) {
  if (batch.n <= kMostGrouped) batch.scratch = scratch.kernel();
}

// How samples are divided among threads: in whole units, the first of which lacks `before`; less than `least` at the
// end goes with the unit before.
struct Division {
  size_t unit = 1, before = 0, least = 1;
  size_t threads = static_cast<size_t>(get_num_threads());
};
// Rows are divided anywhere, columns between panels. Where a run is divided, each row of its columns is, and lines
// go back and forth between the caches of two threads, the more so if results are `written` to an array (like
// `view`) that lies in caches: narrow runs stay whole (measured: bench/NOTES.md). Groups begin where cache lines do,
// and are as wide as evens out the threads' shares.
Division divide(const Plan& plan, Mode mode, const View& view, bool grouped, bool written) {
  constexpr size_t kLine = 64, kCached = 2 << 20, kLeastCached = 768, kLeast = 256;  // bytes
  constexpr size_t kGroup = 64;                                                      // columns
  Division division;
  if (mode != Mode::kCols) return division;
  const size_t item = item_size(view.dtype), run = plan.run_length();
  const bool cached = written && plan.samples * plan.classes * item <= kCached;
  const size_t narrow = (cached ? kLeastCached : kLeast) / item;
  if (run < 2 * narrow) {
    division.unit = run;
    return division;
  }
  division.unit = kPanel;
  division.threads = std::min(division.threads, plan.samples / narrow);
  if (!grouped) return division;
  const size_t line = kLine / item;
  const size_t share = (plan.samples + division.threads - 1) / division.threads;
  const size_t pieces = (share + kGroup - 1) / kGroup;
  const size_t even = (share + pieces - 1) / pieces;
  division.unit = std::clamp((even + line - 1) / line * line, 2 * kPanel, kGroup);
  division.before = reinterpret_cast<uintptr_t>(view.data) % kLine / item;
  division.least = kPanel;
  return division;
}

// What a sample costs, in elements of a long row of floats (measured: bench/NOTES.md).
size_t cost_of(size_t classes, const View& view) {
  constexpr size_t kOverhead = 24;
  return (classes + kOverhead) * (item_size(view.dtype) == 8 ? 2 : 1);
}

// Long rows of float and double that are too few for the threads are worked on by several, one row after the other.
class RowCrew {
 public:
  // `divides_all`: there is no sweep that one thread does for all.
  RowCrew(const Plan& plan, Mode mode, const View& view, bool divides_all = true)
      : crew_{&RowCrew::each, this}, cost_(cost_of(plan.classes, view)) {
    constexpr size_t kLeast = 327680;  // is worth waking threads for (measured: bench/NOTES.md)
    if (mode != Mode::kRows || item_size(view.dtype) == 2 || plan.classes <= kOneStripe ||
        cost_ < kLeast || !(divides_all || plan.samples == 1) || !active_table().has_crews) {
      return;
    }
    // In the time of one row a thread does one, a crew as many as it has threads.
    const auto threads = static_cast<size_t>(get_num_threads());
    const size_t crew = std::min({threads, cost_ / kThreadGrain, kMostStripes});
    const size_t apart = (plan.samples + threads - 1) / threads;
    wanted_ = static_cast<double>(plan.samples) < 0.9 * static_cast<double>(apart * crew);
  }
  RowCrew(const RowCrew&) = delete;
  RowCrew& operator=(const RowCrew&) = delete;
  // Null if not wanted.
  const Crew* get() const { return wanted_ ? &crew_ : nullptr; }

 private:
  static void each(void* context, size_t count, Crew::Piece piece, void* state) noexcept {
    const size_t cost = static_cast<const RowCrew*>(context)->cost_ / count;
    const auto pieces = [=](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) piece(state, i);
    };
    parallel_for(count, cost, count, std::ref(pieces));
  }
  Crew crew_;
  size_t cost_;
  bool wanted_ = false;
};

// Calls body(begin, end) over samples, which lie, or are written, like those of `view`; once, if a crew works on them or
// they are too few for threads.
void over_samples(const Plan& plan, Mode mode, const View& view, bool grouped, bool written,
                  const Crew* crew, const std::function<void(size_t, size_t)>& body) {
  if (crew != nullptr || plan.samples * cost_of(plan.classes, view) <= kThreadGrain) {
    body(0, plan.samples);
    return;
  }
  const Division by = divide(plan, mode, view, grouped, written);
  const size_t count = by.before + plan.samples;
  const size_t units = count < by.unit + by.least ? 1 : (count - by.least) / by.unit + 1;
  const size_t cost = by.unit * cost_of(plan.classes, view);
  parallel_for(units, cost, by.threads, [&](size_t begin, size_t end) {
    body(begin == 0 ? 0 : begin * by.unit - by.before,
         end == units ? plan.samples : end * by.unit - by.before);
  });
}

// One operand of a packed row.
struct Slot {
  const View* view = nullptr;
  size_t operand = 0;    // its strides in the plan
  char* row = nullptr;   // address of the row at hand
  char* base = nullptr;  // where rows are packed, one after the other
  DType type = DType::kFloat64;
  double factor = 1;       // what elements are multiplied by as they are packed
  double masked = 0;       // what an element outside `where` is packed, or written, as
  double center = 0;       // with a factor > 1, which could overflow: the row's maximum, subtracted
  char* buffer = nullptr;  // where the row at hand is packed
  // Called with the buffer (of double) after it was packed or before it is unpacked: start, count, and the number
  // of rows that lie there.
  std::function<void(double*, size_t, size_t, size_t)> adjust = nullptr;
};

// Packs and unpacks the rows of the kernels' operands: several at a time, or a long one by chunks.
class PackedRows {
 public:
  const Plan* plan;
  Slot slots[3];
  const View* where = nullptr;
  size_t where_operand = 0;
  char* where_row = nullptr;
  ChunkIo io{&PackedRows::fetch, &PackedRows::put, nullptr, kChunk};

  // Moves to the sample at `position` of its run, which is packed as row `index`.
  void seek(const Offsets& offsets, size_t position_, size_t index = 0) {
    const auto position = static_cast<ptrdiff_t>(position_);
    for (Slot& slot : slots) {
      if (slot.view == nullptr) continue;
      slot.row =
          slot.view->data + offsets[slot.operand] + position * run_stride(*plan, slot.operand);
      slot.buffer = slot.base + index * plan->classes * item_size(slot.type);
    }
    if (where != nullptr) {
      where_row =
          where->data + offsets[where_operand] + position * run_stride(*plan, where_operand);
    }
  }
  // The largest element that counts, if it is large. Softmax and losses depend on differences alone.
  void find_center(Slot& slot) const {
    double max = -kInf;
    const auto see = [&](char* from, ptrdiff_t step, size_t, size_t n) {
      for (size_t i = 0; i < n; ++i) {
        const double x = load_double(from + static_cast<ptrdiff_t>(i) * step, slot.view->dtype,
                                     slot.view->swapped);
        if (x > max) max = x;
      }
    };
    if (where == nullptr) {
      for_steps(*plan, slot.operand, slot.row, 0, plan->classes, see);
    } else {
      for_steps(*plan, where_operand, where_row, 0, plan->classes,
                [&](char* mask, ptrdiff_t step, size_t at, size_t n) {
                  for (size_t i = 0; i < n; ++i) {
                    if (mask[static_cast<ptrdiff_t>(i) * step] == 0) continue;
                    for_steps(*plan, slot.operand, slot.row, at + i, 1, see);
                  }
                });
    }
    // Where nothing can overflow the difference's rounding would cost digits.
    slot.center = std::isfinite(max) && std::abs(max) > 0x1p400 ? max : 0;
  }
  bool whole() const { return plan->classes <= kChunk; }
  // How many rows are worked on at a time: what they are packed to should stay in the caches.
  size_t batch() const {
    constexpr size_t kElements = 8192, kRows = 256;
    static_assert(kElements <= kChunk, "the buffers hold a chunk");
    return std::min(kRows, std::max<size_t>(1, kElements / std::max<size_t>(1, plan->classes)));
  }
  const ChunkIo* chunked() {
    io.context = this;
    return whole() ? nullptr : &io;
  }
  // The distance of packed rows.
  ptrdiff_t stride(size_t operand) const {
    return static_cast<ptrdiff_t>(plan->classes * item_size(slots[operand].type));
  }
  // Calls `kernel` for `rows` samples of a run from `first` on. Whole rows are then packed in the buffers of the
  // operands in the set of bits `inputs`, and `output` (-1: none) is unpacked; chunks the kernel asks for itself.
  template <class F>
  void run(const Offsets& offsets, size_t first, size_t rows, unsigned inputs, int output,
           F kernel) {
    if (!whole()) {
      seek(offsets, first);
      center();
      kernel();
      return;
    }
    for (int operand = 0; operand < 3; ++operand) {
      if ((inputs >> operand) & 1) load(offsets, first, rows, operand);
    }
    kernel();
    if (output >= 0) save(offsets, first, rows, output);
  }

  // Whether the kernel can write an operand where it belongs: there rows follow each other as they do when packed.
  bool lies_packed(size_t operand) const {
    const Slot& slot = slots[operand];
    return whole() && slot.view->dtype == slot.type && slot.view->aligned() &&
           contiguous(*plan, slot.operand, item_size(slot.type)) &&
           (plan->outer.empty() || run_stride(*plan, slot.operand) == stride(operand));
  }
  // For rows of an operand that the kernel wrote where they belong, from logits of -inf outside `where`: outside they
  // have the results of -inf, which are `masked`, but in rows that are NaN from the first element to the last.
  void mask_nan_rows(const Offsets& offsets, size_t first, size_t rows, int operand) {
    Slot& slot = slots[operand];
    seek(offsets, first);
    if (!any_nan({slot.row, stride(static_cast<size_t>(operand)), 0, rows, 1}, slot.type)) return;
    slot.buffer = slot.row;
    adjust(slot, 0, plan->classes, rows);
  }

  static void* fetch(void* context, int operand, size_t start, size_t count) {
    PackedRows& self = *static_cast<PackedRows*>(context);
    self.pack_rows(self.slots[operand], start, count, 1);
    return self.slots[operand].buffer;
  }
  static void put(void* context, int operand, size_t start, size_t count) {
    const PackedRows& self = *static_cast<PackedRows*>(context);
    self.unpack_rows(self.slots[operand], start, count, 1);
  }
  // Calls f(lattice, position) for the stretches of classes [start, start + count) with a constant step, of an
  // operand's rows from `row` on.
  template <class F>
  void for_lattices(size_t operand, char* row, size_t start, size_t count, size_t rows, F f) const {
    for_steps(*plan, operand, row, start, count, [&](char* p, ptrdiff_t step, size_t at, size_t n) {
      f(Lattice{p, run_stride(*plan, operand), step, rows, n}, at);
    });
  }
  // How many classes of the row at hand `where` leaves out.
  size_t count_masked() const {
    size_t masked = 0;
    if (where == nullptr) return masked;
    for_steps(*plan, where_operand, where_row, 0, plan->classes,
              [&](const char* mask, ptrdiff_t step, size_t, size_t n) {
                for (size_t i = 0; i < n; ++i)
                  masked += mask[static_cast<ptrdiff_t>(i) * step] == 0;
              });
    return masked;
  }

 private:
  // The largest element that counts of the first operand's row, where it is to be subtracted.
  void center() {
    if (slots[0].factor > 1) find_center(slots[0]);
  }
  // The buffers as the caller sees them: adjusted, and with `masked` outside `where`.
  void adjust(const Slot& slot, size_t start, size_t count, size_t rows) const {
    if (slot.adjust) slot.adjust(reinterpret_cast<double*>(slot.buffer), start, count, rows);
    if (where == nullptr) return;
    const size_t item = item_size(slot.type);
    for_lattices(where_operand, where_row, start, count, rows, [&](const Lattice& mask, size_t at) {
      fill_outside(mask, slot.buffer + at * item, slot.type, slot.masked);
    });
  }
  // Several rows at once only if their axis is one stretch, and whole.
  void pack_rows(const Slot& slot, size_t start, size_t count, size_t rows) const {
    const size_t item = item_size(slot.type);
    for_lattices(slot.operand, slot.row, start, count, rows, [&](const Lattice& from, size_t at) {
      pack(from, slot.view->dtype, slot.view->swapped, slot.buffer + at * item, slot.type,
           slot.factor, slot.center);
    });
    adjust(slot, start, count, rows);
  }
  void unpack_rows(const Slot& slot, size_t start, size_t count, size_t rows) const {
    const size_t item = item_size(slot.type);
    adjust(slot, start, count, rows);
    for_lattices(slot.operand, slot.row, start, count, rows, [&](const Lattice& to, size_t at) {
      unpack(slot.buffer + at * item, slot.type, to, slot.view->dtype, slot.view->swapped);
    });
  }
  // How many rows can be packed at once: those without a centre of their own.
  size_t together(const Slot& slot, size_t rows) const {
    return plan->axis.size() == 1 && slot.factor <= 1 ? rows : 1;
  }
  void load(const Offsets& offsets, size_t first, size_t rows, int operand) {
    const size_t step = together(slots[operand], rows);
    for (size_t r = 0; r < rows; r += step) {
      seek(offsets, first + r, r);
      if (operand == 0) center();
      pack_rows(slots[operand], 0, plan->classes, step);
    }
  }
  void save(const Offsets& offsets, size_t first, size_t rows, int operand) {
    const size_t step = together(slots[operand], rows);
    for (size_t r = 0; r < rows; r += step) {
      seek(offsets, first + r, r);
      unpack_rows(slots[operand], 0, plan->classes, step);
    }
  }
};

// Strides of an array that lacks the axes, or of none: 0 along them.
class Expanded {
 public:
  Expanded(const View* v, int ndim, uint64_t axes) {
    size_t from = 0;
    for (int d = 0; d < ndim; ++d) {
      const bool has = v != nullptr && ((axes >> d) & 1) == 0;
      strides_[d] = has ? v->strides[from++] : 0;
    }
  }
  const ptrdiff_t* data() const { return strides_; }

 private:
  ptrdiff_t strides_[kMaxDims];
};

constexpr std::array<ptrdiff_t, kMaxDims> kNoStrides{};
const ptrdiff_t* strides_or_none(const View* v) {
  return v == nullptr ? kNoStrides.data() : v->strides.data();
}

}  // namespace

void softmax(const View& x, const View& out, uint64_t axes, const View* where, double temperature,
             bool log) {
  const Compute compute = make_compute(x, &out, where, temperature, false);
  Plan plan = make_plan(x.ndim, x.shape.data(), axes,
                        {x.strides.data(), out.strides.data(), strides_or_none(where)});
  if (plan.samples == 0 || plan.classes == 0) return;
  const KernelTable& table = active_table();
  const Storage storage = storage_of(compute.type);
  const Mode mode = choose_mode(plan, compute.direct, 2, item_size(x.dtype));
  const auto rows = log ? table.log_softmax_rows[storage] : table.softmax_rows[storage];
  const auto cols = log ? table.log_softmax_cols[storage] : table.softmax_cols[storage];
  const bool grouped = wants_groups(plan, mode, compute, log);
  const bool copies = wants_copies(plan, mode, 1);  // where a group is refused, too
  const RowCrew crew(plan, mode, out);
  over_samples(plan, mode, out, grouped, true, crew.get(), [&](size_t begin, size_t end) {
    Batch batch{};
    batch.n = plan.classes;
    batch.crew = crew.get();
    batch.scale = compute.scale;
    take_scratch(batch, copies, compute.type);
    if (grouped && !log) keep_exps(batch);
    batch.grouped = grouped;
    std::optional<PackedRows> row;
    if (mode == Mode::kPacked) {
      const double masked = log ? -kInf : 0;
      row = PackedRows{&plan, {}, where, 2};
      row->slots[0] = {&x, 0, nullptr, scratch.pack(0), compute.type, compute.factor, -kInf};
      row->slots[1] = {&out, 1, nullptr, scratch.pack(0), compute.type, 1, masked};
    }
    for_runs(plan, begin, end, [&](const Offsets& at, size_t, size_t count) {
      if (row) {
        batch.chunked = row->chunked();
        batch.x = batch.out = scratch.pack(0);
        batch.x_stride = batch.out_stride = row->stride(0);
        const bool unpacks = !row->lies_packed(1);
        for (size_t done = 0; done < count; done += batch.count) {
          batch.count = std::min(row->batch(), count - done);
          if (!unpacks) {
            batch.out = out.data + at[1] + static_cast<ptrdiff_t>(done) * run_stride(plan, 1);
          }
          row->run(at, done, batch.count, 1, unpacks ? 1 : -1, [&] { rows(batch); });
          if (!unpacks && where != nullptr) row->mask_nan_rows(at, done, batch.count, 1);
        }
        return;
      }
      batch.x = x.data + at[0];
      batch.out = out.data + at[1];
      batch.count = count;
      const bool by_columns = mode == Mode::kCols;
      batch.x_stride = by_columns ? plan.axis[0].stride[0] : run_stride(plan, 0);
      batch.out_stride = by_columns ? plan.axis[0].stride[1] : run_stride(plan, 1);
      (by_columns ? cols : rows)(batch);
    });
  });
}

void softmax_rows(const void* x, void* out, DType type, size_t rows, size_t classes, bool log) {
  const KernelTable& table = active_table();
  const Storage storage = storage_of(type);
  Batch batch{};
  batch.x = x;
  batch.out = out;
  batch.x_stride = batch.out_stride = static_cast<ptrdiff_t>(classes * item_size(type));
  batch.count = rows;
  batch.n = classes;
  batch.scale = scale_of(1);
  if (item_size(type) == 2) batch.scratch = scratch.kernel();
  (log ? table.log_softmax_rows : table.softmax_rows)[storage](batch);
}

void logsumexp(const View& x, const View& out, const View* sign, uint64_t axes, const View* b,
               const View* where) {
  Compute compute = make_compute(x, nullptr, where, 1, out.dtype == DType::kFloat64);
  if (b != nullptr) {
    compute.type = DType::kFloat64;
    compute.direct = false;
  }
  const Expanded out_strides(&out, x.ndim, axes), sign_strides(sign, x.ndim, axes);
  Plan plan = make_plan(x.ndim, x.shape.data(), axes,
                        {x.strides.data(), out_strides.data(), sign_strides.data(),
                         strides_or_none(b), strides_or_none(where)});
  if (plan.samples == 0) return;
  const KernelTable& table = active_table();
  const Storage storage = storage_of(compute.type);
  const Mode mode = choose_mode(plan, compute.direct, 1, item_size(x.dtype));
  const bool grouped = wants_sum_groups(plan, mode, compute);
  const RowCrew crew(plan, mode, x);
  over_samples(plan, mode, x, grouped, false, crew.get(), [&](size_t begin, size_t end) {
    constexpr size_t kBlock = 256;
    double results[kBlock];
    Batch batch{};
    batch.n = plan.classes;
    batch.crew = crew.get();
    batch.scale = compute.scale;
    batch.out = results;
    batch.grouped = grouped;
    std::optional<PackedRows> row;
    if (mode == Mode::kPacked) {
      row = PackedRows{&plan, {}, where, 4};
      const double outside = b == nullptr ? -kInf : 0;
      row->slots[0] = {&x, 0, nullptr, scratch.pack(0), compute.type, 1, outside};
      if (b != nullptr) row->slots[1] = {b, 3, nullptr, scratch.pack(1), DType::kFloat64, 1, 0};
    }
    for_runs(plan, begin, end, [&](const Offsets& at, size_t, size_t count) {
      const auto store = [&](const View& to, size_t operand, size_t done, size_t n,
                             const double* values) {
        const ptrdiff_t step = run_stride(plan, operand);
        char* p = to.data + at[operand] + static_cast<ptrdiff_t>(done) * step;
        unpack(values, DType::kFloat64, {p, 0, step, 1, n}, to.dtype, to.swapped);
      };
      for (size_t done = 0; done < count;) {
        const size_t most = row ? std::min(kBlock, row->batch()) : kBlock;
        const size_t block = std::min(most, count - done);
        double signs[kBlock];
        if (row && b != nullptr) {
          row->run(at, done, block, 3, -1, [&] {
            table.logsumexp_weighted({reinterpret_cast<const double*>(scratch.pack(0)),
                                      reinterpret_cast<const double*>(scratch.pack(1)), block,
                                      plan.classes, row->chunked(),
                                      out.dtype == DType::kFloat64 ? 1 : 0x1p-20, results, signs});
          });
          for (size_t i = 0; sign == nullptr && i < block; ++i) {
            if (signs[i] < 0) results[i] = kNaN;
          }
        } else if (row) {
          batch.x = scratch.pack(0);
          batch.x_stride = row->stride(0);
          batch.count = block;
          batch.chunked = row->chunked();
          row->run(at, done, block, 1, -1, [&] { table.logsumexp_rows[storage](batch); });
        } else {
          const bool by_columns = mode == Mode::kCols;
          const ptrdiff_t step = run_stride(plan, 0);
          batch.x = x.data + at[0] + static_cast<ptrdiff_t>(done) * step;
          batch.x_stride = by_columns ? plan.axis[0].stride[0] : step;
          batch.count = block;
          (by_columns ? table.logsumexp_cols : table.logsumexp_rows)[storage](batch);
        }
        store(out, 1, done, block, results);
        if (sign != nullptr) {
          for (size_t i = 0; b == nullptr && i < block; ++i) {
            const double r = results[i];
            signs[i] = r != r ? r : r == -kInf ? 0 : 1;
          }
          store(*sign, 2, done, block, signs);
        }
        done += block;
      }
    });
  });
}

namespace {

// A sum with its rounding error (Neumaier).
struct Sum {
  double hi = 0, lo = 0;
  void add(double x) {
    const double s = hi + x;
    const double part = s - hi;
    const double error = (hi - (s - part)) + (x - part);
    if (std::isfinite(s)) lo += error;
    hi = s;
  }
  void add(const Sum& other) {
    add(other.hi);
    add(other.lo);
  }
  double value() const { return hi + lo; }
};

// A sum of losses. Huge ones are kept apart in a smaller unit, so that their mean is found where their sum
// overflows.
class LossSum {
 public:
  void add(double loss) {
    if (std::abs(loss) > 0x1p900) {
      huge_.add(loss * kUnit);
    } else {
      plain_.add(loss);
    }
  }
  void add(const LossSum& other) {
    plain_.add(other.plain_);
    huge_.add(other.huge_);
  }
  double over(double divisor) const {
    const double mean = plain_.value() / divisor;
    return huge_.value() == 0 ? mean : mean + huge_.value() / divisor / kUnit;
  }

 private:
  static constexpr double kUnit = 0x1p-64;
  Sum plain_, huge_;
};

// The sum of a block of losses, whose number i joins lane i % kLanes, however many come at a time: a single sum would
// wait for each of its additions.
class LossLanes {
 public:
  void add(const double* loss, size_t n) {
    double most = 0;
    bool numbers = true;
    for (size_t i = 0; i < n; ++i) {
      most = std::max(most, std::abs(loss[i]));
      numbers &= loss[i] == loss[i];
    }
    size_t i = 0;
    if (numbers && most <= kLargest) {
      while (i < n && count_ % kLanes != 0) add(loss[i++]);
      for (; n - i >= kLanes; i += kLanes, count_ += kLanes) {
        for (size_t k = 0; k < kLanes; ++k) {
          const double x = loss[i + k];
          const double sum = hi_[k] + x;
          const double part = sum - hi_[k];
          lo_[k] += (hi_[k] - (sum - part)) + (x - part);
          hi_[k] = sum;
        }
      }
    }
    while (i < n) add(loss[i++]);
  }
  LossSum total() const {
    LossSum all = rest_;
    for (size_t k = 0; k < std::min(kLanes, count_); ++k) {
      all.add(hi_[k]);
      all.add(lo_[k]);
    }
    return all;
  }

 private:
  static constexpr size_t kLanes = 8;
  static constexpr double kLargest = 0x1p900;
  void add(double x) {
    const size_t k = count_++ % kLanes;
    if (!(std::abs(x) <= kLargest)) {
      rest_.add(x);
      return;
    }
    Sum lane{hi_[k], lo_[k]};
    lane.add(x);
    hi_[k] = lane.hi;
    lo_[k] = lane.lo;
  }
  double hi_[kLanes] = {}, lo_[kLanes] = {};
  size_t count_ = 0;
  LossSum rest_;  // huge ones, infinities and NaN
};

// "[3, 0]" for sample number s of an array.
std::string position(const View& v, size_t s) {
  std::string text;
  for (int d = v.ndim; d-- > 0;) {
    const auto length = static_cast<size_t>(v.shape[static_cast<size_t>(d)]);
    text = std::to_string(s % length) + (text.empty() ? "" : ", ") + text;
    s /= length;
  }
  return v.ndim == 0 ? "" : "[" + text + "]";
}

// One call's plan and checked parameters.
class CrossEntropy {
 public:
  explicit CrossEntropy(const CrossEntropyArgs& args)
      : a_(args),
        compute_(make_compute(args.logits, args.grad, args.where, args.temperature,
                              args.loss->dtype == DType::kFloat64 || args.softcap != 0)),
        losses_(args.reduction == Reduction::kNone ? args.loss : nullptr),
        lift_(gradient_lift(args.temperature)),
        given_(is_floating(args.targets.dtype)),
        shares_(given_ && args.targets.dtype == compute_.type && args.where == nullptr &&
                args.weight == nullptr && args.label_smoothing == 0),
        own_weights_((given_ && !shares_) || (args.where != nullptr && args.label_smoothing != 0)) {
    // Probabilities that are blended become the weights of packed rows; softcap is for those too.
    if (own_weights_ || a_.softcap != 0 || (shares_ && !args.targets.aligned())) {
      compute_.direct = false;
    }
    const View& x = a_.logits;
    const uint64_t axes = uint64_t{1} << a_.axis;
    const Expanded targets(&a_.targets, x.ndim, given_ ? 0 : axes);
    const Expanded weight(a_.weight, x.ndim, ~axes);
    const auto of_samples = [&](const View* v) { return Expanded(v, x.ndim, axes); };
    const Expanded sample_weight = of_samples(a_.sample_weight), loss = of_samples(losses_);
    const Expanded stats[] = {of_samples(a_.stats[0]), of_samples(a_.stats[1]),
                              of_samples(a_.stats[2]), of_samples(a_.stats[3])};
    plan_ = make_plan(x.ndim, x.shape.data(), axes,
                      {x.strides.data(), (a_.grad ? *a_.grad : x).strides.data(), targets.data(),
                       sample_weight.data(), loss.data(), strides_or_none(a_.where), weight.data(),
                       stats[0].data(), stats[1].data(), stats[2].data(), stats[3].data()});
    classes_ = static_cast<size_t>(x.shape[static_cast<size_t>(a_.axis)]);
    read_weights();
  }

  double run() {
    check_targets();
    const double divisor = a_.reduction == Reduction::kMean ? divisor_.value() : 1;
    if (plan_.samples == 0) {
      return a_.reduction == Reduction::kMean ? kNaN : 0;
    }
    const size_t item = item_size(a_.logits.dtype);
    // Operand 1 has the strides of the logits where there is no gradient.
    const size_t operands = shares_ ? 3 : a_.grad != nullptr ? 2 : 1;
    Mode mode = choose_mode(plan_, compute_.direct && direct_weights_, operands, item);
    // The kernels take columns of half types without probabilities, and long ones in groups alone.
    const bool special = a_.label_smoothing != 0 || a_.stats[0] != nullptr;
    const bool lacks = item == 2 && (shares_ || (classes_ > kMostCopied && special));
    if (mode == Mode::kCols && lacks) mode = Mode::kPacked;
    // Partial sums over blocks of samples, added in order: the same for any number of threads.
    const size_t unit = mode == Mode::kCols ? kPanel : 1;
    constexpr size_t kElements = 32768;  // a kernel's call should have more to do than it costs
    size_t block = std::min(kBlock, std::max<size_t>(1, kElements / std::max<size_t>(1, classes_)));
    block = std::max(block, plan_.samples / 8192 + 1);
    block = (block + unit - 1) / unit * unit;
    const size_t blocks = (plan_.samples + block - 1) / block;
    std::vector<LossSum> partial(a_.reduction == Reduction::kNone ? 0 : blocks);
    // What a thread takes is whole blocks, and of columns as many as make a group, whether they are one or not.
    const Division by = divide(plan_, mode, a_.logits, true, a_.grad != nullptr);
    const size_t together = (by.unit + block - 1) / block * block;
    const size_t pieces = (plan_.samples + together - 1) / together;
    const size_t cost = together * cost_of(classes_, a_.logits);
    const RowCrew crew(plan_, mode, a_.logits, !special && !given_);
    const auto body = [&](size_t first, size_t last) {
      const size_t end = std::min(plan_.samples, last * together);
      size_t at = first * together;
      LossLanes sum;
      samples(mode, at, end, divisor, crew.get(), [&](const double* loss, size_t n) {
        if (partial.empty()) return;
        for (size_t done = 0, here = 0; done < n; done += here, at += here) {
          here = std::min(n - done, block - at % block);
          sum.add(loss + done, here);
          if (at + here != end && (at + here) % block != 0) continue;
          partial[at / block] = sum.total();
          sum = LossLanes();
        }
      });
    };
    if (crew.get() != nullptr) {
      body(0, pieces);
    } else {
      parallel_for(pieces, cost, by.threads, body);
    }
    LossSum total;
    for (const LossSum& sum : partial) total.add(sum);
    if (a_.reduction == Reduction::kNone) return 0;
    return divisor == 0 ? kNaN : total.over(divisor);
  }

 private:
  static constexpr size_t kBlock = 256;  // samples whose numbers are at hand at a time

  char* at(const View& v, size_t operand, const Offsets& offsets, size_t i) const {
    return v.data + offsets[operand] + static_cast<ptrdiff_t>(i) * run_stride(plan_, operand);
  }
  double sample_weight(const Offsets& offsets, size_t i) const {
    if (a_.sample_weight == nullptr) return 1;
    const View& v = *a_.sample_weight;
    return load_double(at(v, 3, offsets, i), v.dtype, v.swapped);
  }
  void load_targets(const Offsets& offsets, size_t i, size_t n, int64_t* targets) const {
    const View& y = a_.targets;
    load_ints(at(y, 2, offsets, i), run_stride(plan_, 2), y.dtype, y.swapped, targets, n);
  }
  double class_weight(size_t c) const {
    if (a_.weight == nullptr) return 1;
    const View& v = *a_.weight;
    return load_double(v.data + static_cast<ptrdiff_t>(c) * v.strides[0], v.dtype, v.swapped);
  }

  // The kernels want double weights side by side: converted once where they are few.
  void read_weights() {
    if (a_.weight == nullptr) return;
    const View& v = *a_.weight;
    if (v.dtype == DType::kFloat64 && v.aligned() &&
        (classes_ <= 1 || v.strides[0] == static_cast<ptrdiff_t>(sizeof(double)))) {
      weights_ = reinterpret_cast<const double*>(v.data);
    } else if (classes_ <= kChunk) {
      converted_.resize(classes_);
      for (size_t c = 0; c < classes_; ++c) converted_[c] = class_weight(c);
      weights_ = converted_.data();
    } else {
      direct_weights_ = false;
    }
  }

  void check_targets() {
    if (given_) {
      for_runs(plan_, 0, plan_.samples, [&](const Offsets& offsets, size_t, size_t count) {
        for (size_t i = 0; i < count; ++i) divisor_.add(sample_weight(offsets, i));
      });
      return;
    }
    weight_sum_ = static_cast<double>(classes_);
    if (a_.label_smoothing != 0 && a_.weight != nullptr && plan_.samples != 0) {
      Sum weight_sum;
      for (size_t c = 0; c < classes_; ++c) weight_sum.add(class_weight(c));
      weight_sum_ = weight_sum.value();
    }
    const bool weighs = a_.weight != nullptr || a_.sample_weight != nullptr;
    int64_t targets[kBlock];
    size_t counted = 0;
    for_runs(plan_, 0, plan_.samples, [&](const Offsets& offsets, size_t first, size_t count) {
      for (size_t done = 0, n = 0; done < count; done += n) {
        n = std::min(kBlock, count - done);
        load_targets(offsets, done, n, targets);
        // Most blocks are ordinary, and counted without a look at single targets.
        size_t valid = 0;
        for (size_t i = 0; i < n; ++i) {
          valid += targets[i] != a_.ignore_index && static_cast<uint64_t>(targets[i]) < classes_;
        }
        if (!weighs && a_.where == nullptr && valid == n) {
          counted += n;
          continue;
        }
        for (size_t i = 0; i < n; ++i) {
          if (!check_target(targets[i], offsets, done + i, first + done + i)) continue;
          ++counted;
          if (!weighs) continue;
          const auto c = static_cast<size_t>(targets[i]);
          const double w = class_weight(c), s = sample_weight(offsets, done + i);
          divisor_.add(w * s);
          const double rest = std::fma(w, s, -(w * s));
          if (std::isfinite(rest)) divisor_.lo += rest;
        }
      }
    });
    if (!weighs) divisor_.add(static_cast<double>(counted));
  }

  // Whether the target of a sample, position i in its run, counts.
  bool check_target(int64_t target, const Offsets& offsets, size_t i, size_t sample) const {
    const View& y = a_.targets;
    const bool beyond = y.dtype == DType::kUInt64 && target == INT64_MAX;
    if (target == a_.ignore_index && !beyond) return false;
    if (target < 0 || static_cast<uint64_t>(target) >= classes_) {
      const std::string given = beyond
                                    ? std::to_string(load_unsigned(at(y, 2, offsets, i), y.swapped))
                                    : std::to_string(target);
      throw std::out_of_range("targets" + position(y, sample) + " is " + given +
                              ", expected 0 <= target < " + std::to_string(classes_) +
                              " (the length of axis " + std::to_string(a_.axis) +
                              " of logits) or ignore_index " + std::to_string(a_.ignore_index));
    }
    if (a_.where != nullptr) {
      const View& mask = *a_.where;
      const auto axis = static_cast<size_t>(a_.axis);
      if (at(mask, 5, offsets, i)[target * mask.strides[axis]] == 0) {
        throw std::invalid_argument("targets" + position(y, sample) + " is " +
                                    std::to_string(target) +
                                    ", a class that where leaves out there");
      }
    }
    return true;
  }

  // The losses and gradients of samples [begin, end); calls put(losses, count) for these in order.
  template <class F>
  void samples(Mode mode, size_t begin, size_t end, double divisor, const Crew* crew, F put) const {
    int64_t targets[kBlock];
    double coef[kBlock], loss[kBlock];
    LossBatch batch{};
    batch.n = classes_;
    batch.crew = crew;
    batch.scale = compute_.scale;
    batch.targets = targets;
    batch.coef = a_.sample_weight == nullptr ? nullptr : coef;
    batch.loss = loss;
    // The gradient lacks the factor of the logits, and what it is multiplied by later.
    batch.divisor = divisor == 0 ? kNaN : divisor * (lift_ / compute_.factor);
    if (a_.reduction == Reduction::kMean && std::isfinite(divisor)) {
      batch.divisor_lo = ((divisor_.hi - divisor) + divisor_.lo) * (lift_ / compute_.factor);
    }
    batch.weight = weights_;
    batch.smoothing = a_.label_smoothing;
    batch.classes = static_cast<double>(classes_);
    batch.z_loss = a_.z_loss;
    double sums[kBlock], sums_lo[kBlock];
    sums[0] = weight_sum_;  // of all rows, where they have no weights of their own
    sums_lo[0] = 0;
    batch.weight_sum = sums;
    batch.weight_sum_lo = sums_lo;
    // The loss of probabilities is what smoothing alone would make of them.
    if (given_) batch.smoothing = batch.classes = 1;
    double logsumexps[kBlock], log_probs[kBlock], entropies[kBlock];
    bool correct[kBlock];
    const LossStats stats{logsumexps, log_probs, entropies, correct};
    if (a_.stats[0] != nullptr) batch.stats = &stats;
    const bool is_half = item_size(compute_.type) == 2;
    const bool copies =
        is_half ? classes_ <= kMostCopied : a_.grad != nullptr && wants_copies(plan_, mode, 1);
    take_scratch(batch, copies, compute_.type);
    batch.grouped = is_half              ? mode == Mode::kCols && classes_ > 16
                    : a_.grad == nullptr ? wants_sum_groups(plan_, mode, compute_)
                                         : wants_groups(plan_, mode, compute_, false);
    if (batch.grouped && a_.grad != nullptr) keep_exps(batch);
    const KernelTable& table = active_table();
    const Storage storage = storage_of(compute_.type);
    std::optional<PackedRows> packed;
    RowOptions options;
    View ones;
    if (mode == Mode::kPacked) {
      PackedRows& row = packed.emplace(PackedRows{&plan_, {}, a_.where, 5});
      row.slots[0] = {&a_.logits,      0,    nullptr, scratch.pack(0), compute_.type,
                      compute_.factor, -kInf};
      if (a_.grad != nullptr) {
        row.slots[1] = {a_.grad, 1, nullptr, scratch.pack(0), compute_.type, 1, 0};
        if (a_.softcap != 0 || lift_ != 1) {
          row.slots[1].adjust = [&](double* grad, size_t start, size_t n, size_t rows) {
            if (a_.softcap != 0) uncap(*packed, grad, start, n, rows);
            if (lift_ != 1) multiply(grad, rows * n, lift_);
          };
        }
      }
      static const double one = 1;
      ones.data = const_cast<char*>(reinterpret_cast<const char*>(&one));
      const View* weight = a_.weight == nullptr ? &ones : a_.weight;
      row.slots[2] = {weight, 6, nullptr, scratch.pack(1), DType::kFloat64, 1, 0};
      if (shares_) {
        row.slots[2] = {&a_.targets, 2, nullptr, scratch.pack(1), compute_.type, 1, 0};
      } else if (given_) {
        row.slots[2] = {&a_.targets, 2, nullptr, scratch.pack(1), DType::kFloat64, 1, 0};
        row.slots[2].adjust = [&](double* t, size_t start, size_t count, size_t) {
          if (options.blends) blend(options, t, start, count);
        };
        options.blend.keep = 1 - a_.label_smoothing;
        options.blend.keep_lo = (1 - options.blend.keep) - a_.label_smoothing;
      }
      if (a_.softcap != 0) cap(row, options);
    }
    for_runs(plan_, begin, end, [&](const Offsets& offsets, size_t, size_t count) {
      for (size_t done = 0; done < count;) {
        const size_t n = std::min(packed ? packed_rows(*packed) : kBlock, count - done);
        if (a_.sample_weight != nullptr) {
          for (size_t i = 0; i < n; ++i) coef[i] = sample_weight(offsets, done + i);
        }
        if (!given_) {
          // Another thread may have changed them since the check: the kernel ignores what is out of range.
          load_targets(offsets, done, n, targets);
          if (static_cast<uint64_t>(a_.ignore_index) < classes_) {
            std::replace(targets, targets + n, a_.ignore_index, int64_t{-1});
          }
        }
        if (classes_ == 0) {  // every sample is ignored, or has no probabilities
          for (double* values : {loss, logsumexps, log_probs, entropies})
            std::fill_n(values, n, 0.0);
          std::fill_n(correct, n, false);
        } else if (packed) {
          batch.count = n;
          packed_samples(*packed, options, offsets, done, batch, table.cross_entropy_rows[storage]);
        } else {
          const bool by_columns = mode == Mode::kCols;
          const auto place = [&](const View& v, size_t operand, ptrdiff_t* stride) {
            const ptrdiff_t step = run_stride(plan_, operand);
            *stride = by_columns ? plan_.axis[0].stride[operand] : step;
            return v.data + offsets[operand] + static_cast<ptrdiff_t>(done) * step;
          };
          batch.x = place(a_.logits, 0, &batch.x_stride);
          if (a_.grad != nullptr) batch.grad = place(*a_.grad, 1, &batch.grad_stride);
          if (shares_) batch.shares = place(a_.targets, 2, &batch.share_stride);
          batch.count = n;
          (by_columns ? table.cross_entropy_cols : table.cross_entropy_rows)[storage](batch);
        }
        put(loss, n);
        const auto store = [&](const View* v, size_t operand, const double* values) {
          if (v == nullptr) return;
          unpack(values, DType::kFloat64,
                 {at(*v, operand, offsets, done), 0, run_stride(plan_, operand), 1, n}, v->dtype,
                 v->swapped);
        };
        store(losses_, 4, loss);
        store(a_.stats[0], 7, logsumexps);
        store(a_.stats[1], 8, log_probs);
        store(a_.stats[2], 9, entropies);
        if (a_.stats[3] != nullptr) {
          for (size_t i = 0; i < n; ++i) *at(*a_.stats[3], 10, offsets, done + i) = correct[i];
        }
        done += n;
      }
    });
  }

  // What changes from packed row to packed row.
  struct RowOptions {
    bool blends = false;  // probabilities become weights
    Blend blend;
    double center = 0;  // what is subtracted from the capped logits
    size_t index = 0;   // of the row among those that are packed
  };

  // The low parts of a packed row's weights, in the half of the kernels' scratch that `cap` leaves.
  double* weight_lo(size_t index) const {
    static_assert(kChunk * sizeof(double) <= kScratchBytes / 2, "a chunk fits each half");
    return reinterpret_cast<double*>(scratch.kernel() + kScratchBytes / 2) + index * classes_;
  }

  void blend(const RowOptions& options, double* t, size_t start, size_t count) const {
    const double* weights = weights_ == nullptr ? nullptr : weights_ + start;
    if (a_.weight != nullptr && weights == nullptr) {
      auto* loaded = reinterpret_cast<double*>(scratch.kernel());
      for (size_t i = 0; i < count; ++i) loaded[i] = class_weight(start + i);
      weights = loaded;
    }
    active_table().blend(options.blend, weights, t, weight_lo(options.index), count);
  }

  // Caps the logits as they are packed.
  void cap(PackedRows& row, RowOptions& options) const {
    const KernelTable& table = active_table();
    row.slots[0].factor = 1;  // which comes after the cap
    row.slots[0].adjust = [&](double* x, size_t, size_t count, size_t rows) {
      table.softcap(x, rows * count, a_.softcap);
      if (compute_.factor == 1) return;
      for (size_t i = 0; i < rows * count; ++i) x[i] = (x[i] - options.center) * compute_.factor;
    };
  }

  // Brings the gradient of capped logits back through the cap.
  void uncap(const PackedRows& row, double* grad, size_t start, size_t count, size_t rows) const {
    const Slot& logits = row.slots[0];
    auto* raw = reinterpret_cast<double*>(scratch.kernel());
    row.for_lattices(logits.operand, logits.row, start, count, rows,
                     [&](const Lattice& from, size_t at) {
                       pack(from, a_.logits.dtype, a_.logits.swapped, raw + at, DType::kFloat64);
                     });
    active_table().softcap_backward(raw, grad, rows * count, a_.softcap);
  }

  // Calls f(first class, weights, count) for the row's weights as the kernel will see them. Those of a whole row
  // then stay in its buffer.
  template <class F>
  void for_weights(PackedRows& row, F f) const {
    for (size_t start = 0; start < classes_; start += kChunk) {
      const size_t count = std::min(kChunk, classes_ - start);
      f(start, static_cast<const double*>(PackedRows::fetch(&row, 2, start, count)), count);
    }
  }
  // The first class of the largest probability, whose element of the gradient is taken the most care of.
  int64_t likeliest(PackedRows& row, RowOptions& options) const {
    double most = -kInf;
    size_t best = 0;
    options.blends = false;
    row.slots[2].masked = -kInf;
    for_weights(row, [&](size_t start, const double* t, size_t count) {
      const size_t at = active_table().first_max(t, count);
      if (at == count || !(t[at] > most)) return;
      most = t[at];
      best = start + at;
    });
    row.slots[2].masked = 0;
    options.blends = true;
    return static_cast<int64_t>(best);
  }
  // What the row's weights add up to.
  Sum sum_weights(PackedRows& row, const double* low) const {
    Sum all;
    for_weights(row, [&](size_t, const double* weights, size_t count) {
      double sum = 0, sum_lo = 0;
      active_table().sum(weights, low, count, &sum, &sum_lo);
      all.add(sum);
      all.lo += sum_lo;
    });
    return {all.value(), (all.hi - all.value()) + all.lo};
  }

  // How many rows go through the pack buffers at a time: one, where it has numbers of its own.
  size_t packed_rows(const PackedRows& row) const {
    return (own_weights_ && !given_) || compute_.factor > 1 ? 1 : std::min(kBlock, row.batch());
  }

  // Rows through the pack buffers. With `where`, weights outside are 0 and C counts the rest. With
  // probabilities the row's weights are w·t', and the loss is what smoothing alone would make of them.
  void packed_samples(PackedRows& row, RowOptions& options, const Offsets& offsets, size_t i,
                      LossBatch batch, void (*kernel)(const LossBatch&)) const {
    Slot& logits = row.slots[0];
    if (a_.softcap != 0 && compute_.factor > 1) {
      row.seek(offsets, i);
      row.find_center(logits);
      options.center = logits.center;
      active_table().softcap(&options.center, 1, a_.softcap);
      logits.center = 0;
    }
    batch.chunked = row.chunked();
    batch.x = scratch.pack(0);
    batch.grad = a_.grad == nullptr ? nullptr : scratch.pack(0);
    batch.x_stride = batch.grad_stride = row.stride(0);
    if (shares_) {
      batch.shares = scratch.pack(1);
      batch.share_stride = row.stride(2);
    }
    for (size_t r = 0; own_weights_ && r < batch.count; ++r) {
      row.seek(offsets, i + r, r);
      const double classes = static_cast<double>(classes_ - row.count_masked());
      if (given_) {
        batch.targets[r] = likeliest(row, options);
        options.index = r;
        Blend& blend = options.blend;
        const double some = std::max(1.0, classes);
        blend.spread = a_.label_smoothing / some;
        blend.spread_lo = std::fma(-blend.spread, some, a_.label_smoothing) / some;
      } else {
        batch.classes = classes;
      }
      const Sum sum = sum_weights(row, given_ ? weight_lo(r) : nullptr);
      batch.weight_sum[r] = sum.hi;
      batch.weight_sum_lo[r] = sum.lo;
    }
    if (own_weights_) {
      batch.weight_stride = classes_;
      if (given_) batch.weight_lo = weight_lo(0);
    }
    if (own_weights_ || !direct_weights_ || (a_.weight != nullptr && !row.whole())) {
      batch.weight = reinterpret_cast<const double*>(scratch.pack(1));
    }
    row.run(offsets, i, batch.count, shares_ ? 5 : 1, a_.grad == nullptr ? -1 : 1, [&] {
      batch.offset = (logits.center + options.center) / a_.temperature;
      kernel(batch);
    });
  }

  const CrossEntropyArgs& a_;
  Compute compute_;
  const View* losses_;  // of each sample, where they are wanted
  double lift_;
  bool given_;        // targets are probabilities
  bool shares_;       // which the kernels take as they are
  bool own_weights_;  // every row has weights of its own
  Plan plan_;
  size_t classes_ = 0;
  std::vector<double> converted_;
  const double* weights_ = nullptr;
  bool direct_weights_ = true;
  double weight_sum_ = 0;
  Sum divisor_;
};

}  // namespace

void cross_entropy(const CrossEntropyArgs& args) {
  const double reduced = CrossEntropy(args).run();
  if (args.reduction == Reduction::kNone) return;
  store_double(reduced, args.loss->data, args.loss->dtype, args.loss->swapped);
}

void exp_sums(const View& x, const View& states, uint64_t axes) {
  const Compute compute = make_compute(x, nullptr, nullptr, 1, true);
  View flat = states;  // without the last axis
  flat.ndim -= 1;
  const Expanded state_strides(&flat, x.ndim, axes);
  const Plan plan =
      make_plan(x.ndim, x.shape.data(), axes, {x.strides.data(), state_strides.data()});
  if (plan.samples == 0) return;
  const auto rows = active_table().exp_sum_rows;
  const bool direct = compute.direct && contiguous_axis(plan, 1, item_size(x.dtype));
  const Mode mode = direct ? Mode::kRows : Mode::kPacked;
  over_samples(plan, mode, x, false, false, nullptr, [&](size_t begin, size_t end) {
    Batch batch{};
    batch.n = plan.classes;
    batch.scale = compute.scale;
    batch.count = 1;
    std::optional<PackedRows> row;
    if (!direct) {
      row = PackedRows{&plan, {}};
      row->slots[0] = {&x, 0, nullptr, scratch.pack(0), compute.type};
    }
    for_runs(plan, begin, end, [&](const Offsets& at, size_t, size_t count) {
      for (size_t done = 0; done < count; done += batch.count) {
        const auto place = [&](const View& v, size_t operand) {
          return v.data + at[operand] + static_cast<ptrdiff_t>(done) * run_stride(plan, operand);
        };
        batch.out = place(states, 1);
        if (direct) {
          batch.x = place(x, 0);
          rows(batch);
        } else {
          batch.x = scratch.pack(0);
          batch.chunked = row->chunked();
          row->run(at, done, 1, 1, -1, [&] { rows(batch); });
        }
      }
    });
  });
}

void log_of_sums(const double* states, double* out, size_t n) {
  active_table().log_of_sums(reinterpret_cast<const ExpSumState*>(states), out, n);
}

namespace {

// Calls body(segment, slice of x, slice of out) for segments of one-dimensional arrays; without `out` the
// slice of x twice.
template <class F>
void over_segments(const View& x, const View* out, const std::vector<int64_t>& pointers, F body) {
  const size_t segments = pointers.size() - 1;
  const size_t average = static_cast<size_t>(x.shape[0]) / std::max<size_t>(1, segments);
  parallel_for(segments, cost_of(average, x), segments, [&](size_t begin, size_t end) {
    for (size_t s = begin; s < end; ++s) {
      const auto slice = [&](const View& v) {
        View part = v;
        part.data += pointers[s] * v.strides[0];
        part.shape[0] = pointers[s + 1] - pointers[s];
        return part;
      };
      body(s, slice(x), slice(out == nullptr ? x : *out));
    }
  });
}

}  // namespace

void segment_softmax(const View& x, const View& out, const std::vector<int64_t>& pointers,
                     bool log) {
  const bool direct = x.dtype == out.dtype && is_floating(x.dtype) && x.aligned() &&
                      out.aligned() && x.strides[0] == static_cast<ptrdiff_t>(item_size(x.dtype)) &&
                      out.strides[0] == static_cast<ptrdiff_t>(item_size(x.dtype));
  over_segments(x, &out, pointers, [&](size_t, const View& from, const View& to) {
    if (from.shape[0] == 0) return;
    if (direct) {
      softmax_rows(from.data, to.data, x.dtype, 1, static_cast<size_t>(from.shape[0]), log);
    } else {
      softmax(from, to, 1, nullptr, 1, log);
    }
  });
}

void segment_logsumexp(const View& x, const View& out, const std::vector<int64_t>& pointers) {
  over_segments(x, nullptr, pointers, [&](size_t s, const View& from, const View&) {
    View one = out;
    one.ndim = 0;
    one.data += static_cast<ptrdiff_t>(s) * out.strides[0];
    logsumexp(from, one, nullptr, 1, nullptr, nullptr);
  });
}

void softmax_backward(const View& grad_output, const View& output, const View& out, uint64_t axes,
                      double temperature, bool log) {
  const bool same = output.dtype == grad_output.dtype && output.dtype == out.dtype;
  Compute compute = make_compute(grad_output, &out, nullptr, temperature, !same);
  compute.direct = compute.direct && same && output.aligned();
  const double lift = gradient_lift(temperature);
  compute.scale = scale_of(temperature * lift);
  Plan plan = make_plan(out.ndim, out.shape.data(), axes,
                        {grad_output.strides.data(), output.strides.data(), out.strides.data()});
  if (plan.samples == 0 || plan.classes == 0) return;
  const KernelTable& table = active_table();
  const Storage storage = storage_of(compute.type);
  const auto rows =
      log ? table.log_softmax_backward_rows[storage] : table.softmax_backward_rows[storage];
  const auto cols =
      log ? table.log_softmax_backward_cols[storage] : table.softmax_backward_cols[storage];
  Mode mode = choose_mode(plan, compute.direct, 3, item_size(out.dtype));
  const bool is_half = item_size(compute.type) == 2;
  const bool grouped = wants_pair_groups(plan, mode, compute, log);
  // Long columns of half types the kernels take in groups alone.
  const bool fit = plan.classes <= kMostCopied / 2;
  if (mode == Mode::kCols && is_half && !fit && !grouped) mode = Mode::kPacked;
  const bool copies = is_half ? fit : wants_copies(plan, mode, 2);
  over_samples(plan, mode, out, grouped, true, nullptr, [&](size_t begin, size_t end) {
    BackwardBatch batch{};
    batch.n = plan.classes;
    batch.scale = compute.scale;
    take_scratch(batch, copies, compute.type);
    batch.grouped = grouped;
    std::optional<PackedRows> row;
    if (mode == Mode::kPacked) {
      row = PackedRows{&plan, {}};
      row->slots[0] = {&grad_output, 0, nullptr, scratch.pack(0), compute.type};
      row->slots[1] = {&output, 1, nullptr, scratch.pack(1), compute.type};
      row->slots[2] = {&out, 2, nullptr, scratch.pack(0), compute.type};
      if (lift != 1) {
        row->slots[2].adjust = [=](double* x, size_t, size_t n, size_t count) {
          multiply(x, count * n, lift);
        };
      }
    }
    for_runs(plan, begin, end, [&](const Offsets& at, size_t, size_t count) {
      if (row) {
        batch.chunked = row->chunked();
        batch.grad = batch.out = scratch.pack(0);
        batch.y = scratch.pack(1);
        batch.grad_stride = batch.y_stride = batch.out_stride = row->stride(0);
        for (size_t done = 0; done < count; done += batch.count) {
          batch.count = std::min(row->batch(), count - done);
          row->run(at, done, batch.count, 3, 2, [&] { rows(batch); });
        }
        return;
      }
      const bool by_columns = mode == Mode::kCols;
      const auto stride = [&](size_t operand) {
        return by_columns ? plan.axis[0].stride[operand] : run_stride(plan, operand);
      };
      batch.grad = grad_output.data + at[0];
      batch.grad_stride = stride(0);
      batch.y = output.data + at[1];
      batch.y_stride = stride(1);
      batch.out = out.data + at[2];
      batch.out_stride = stride(2);
      batch.count = count;
      (by_columns ? cols : rows)(batch);
    });
  });
}

}  // namespace softlane
