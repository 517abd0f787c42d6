// The bits of every kernel of one instruction set on a deterministic data set, a hash a line: what
// the sets that promise the same bits are compared by. Values are checked elsewhere, against an
// oracle.
//   kernel_bits                the instruction sets that are built in and that this machine can run
//   kernel_bits <isa>          one line per kernel, storage type and way of calling
//   kernel_bits <isa> --each   one line per length too, to find where two sets part
// The exit status is 1 if ways of calling that must agree (rows, columns, chunks, one by one) do
// not.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "kernels/table.h"
#include "scale.h"

namespace {

using softlane::KernelTable;
using softlane::kStorages;
using softlane::make_scale;
using softlane::Scale;
using softlane::Storage;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr const char* kStorageNames[kStorages] = {"f32", "f64", "f16", "bf16"};
constexpr size_t kItemSize[kStorages] = {4, 8, 2, 2};

// ---- storage
// --------------------------------------------------------------------------------------

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// `x` rounded to nearest even at the given precision; beyond the range infinity, below it
// subnormal. Integer arithmetic, so that no platform has a say. Returns the bits of the narrow
// format.
uint32_t narrow(double x, int mantissa_bits, int exponent_bits) {
  const uint64_t wide = bit_cast<uint64_t>(x);
  const uint32_t sign = static_cast<uint32_t>(wide >> 63) << (mantissa_bits + exponent_bits);
  const uint32_t exponent_mask = (1u << exponent_bits) - 1;
  const uint32_t infinity = exponent_mask << mantissa_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  if (std::isnan(x)) return infinity | (1u << (mantissa_bits - 1));
  if (std::isinf(x)) return sign | infinity;
  int exponent = static_cast<int>((wide >> 52) & 0x7ff) - 1023 + bias;
  uint64_t mantissa = wide & ((uint64_t{1} << 52) - 1);
  if ((wide & ~(uint64_t{1} << 63)) == 0) return sign;
  mantissa |= uint64_t{1} << 52;
  int drop = 52 - mantissa_bits;
  if (exponent < 1) {
    drop += 1 - exponent;
    exponent = 1;
  }
  if (drop > 60) return sign;
  const uint64_t half = uint64_t{1} << (drop - 1);
  uint64_t kept = mantissa >> drop;
  const uint64_t rest = mantissa & ((uint64_t{1} << drop) - 1);
  if (rest > half || (rest == half && (kept & 1))) ++kept;
  // A carry out of the mantissa moves into the exponent by itself.
  const uint64_t bits = (static_cast<uint64_t>(exponent - 1) << mantissa_bits) + kept;
  return sign | (bits >= infinity ? infinity : static_cast<uint32_t>(bits));
}

void store(Storage type, double x, unsigned char* to) {
  if (type == softlane::kF64) {
    std::memcpy(to, &x, 8);
  } else if (type == softlane::kF32) {
    const uint32_t bits = narrow(x, 23, 8);
    std::memcpy(to, &bits, 4);
  } else {
    const uint16_t bits =
        static_cast<uint16_t>(type == softlane::kF16 ? narrow(x, 10, 5) : narrow(x, 7, 8));
    std::memcpy(to, &bits, 2);
  }
}

// ---- hash
// -----------------------------------------------------------------------------------------

class Fnv1a {
 public:
  void add(const void* data, size_t bytes) {
    const unsigned char* p = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < bytes; ++i) state_ = (state_ ^ p[i]) * 0x100000001b3u;
  }
  // Elements of a storage type, every NaN the same.
  void add_elements(Storage type, const unsigned char* p, size_t count) {
    for (size_t i = 0; i < count; ++i, p += kItemSize[type]) {
      uint64_t bits = 0;
      std::memcpy(&bits, p, kItemSize[type]);
      const uint64_t infinity[kStorages] = {0x7f800000u, 0x7ff0000000000000u, 0x7c00u, 0x7f80u};
      const uint64_t sign = uint64_t{1} << (8 * kItemSize[type] - 1);
      if ((bits & ~sign) > infinity[type]) bits = infinity[type] + 1;
      add(&bits, sizeof bits);
    }
  }
  void add_doubles(const std::vector<double>& x) {
    add_elements(softlane::kF64, reinterpret_cast<const unsigned char*>(x.data()), x.size());
  }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

// ---- data
// -----------------------------------------------------------------------------------------

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint64_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return state_ ^ (state_ >> 29);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }      // [0, 1)
  double noise() { return uniform() + uniform() + uniform() + uniform() - 2; }  // about normal
  size_t below(size_t n) { return static_cast<size_t>((bits() >> 33) % static_cast<uint64_t>(n)); }

 private:
  uint64_t state_;
};

using Rows = std::vector<std::vector<double>>;

// Every tail of the virtual vectors, and lengths past the first block; `few` is for the variants.
std::vector<size_t> lengths(bool few) {
  if (few) return {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 1000};
  std::vector<size_t> all;
  for (size_t n = 1; n <= 70; ++n) all.push_back(n);
  for (size_t n : {127, 128, 129, 257, 1000}) all.push_back(n);
  return all;
}

// A length of several stripes, the last of which ends within a block.
constexpr size_t kLong = softlane::kOneStripe + 8 * 128 + 33;

// Rows of logits of every kind that has parted implementations: scales, offsets, confident and
// constant rows, results in the subnormal range, infinities and NaN, values near the largest.
Rows make_logits(size_t n, Storage type) {
  Random random(n);
  Rows rows;
  auto add = [&](const std::function<double(size_t)>& value) {
    std::vector<double> row(n);
    for (size_t i = 0; i < n; ++i) row[i] = value(i);
    rows.push_back(row);
  };
  const double scales[] = {1e-2, 1, 10, 100, 1000};
  const double offsets[] = {1, -100, 255.5, 1e4, -1e6, 1e30};
  for (double scale : scales) add([&](size_t) { return scale * random.noise(); });
  for (double offset : offsets) add([&](size_t) { return 3 * random.noise() + offset; });
  for (double gap : {5.0, 17.0, 50.0, 100.0, 740.0}) {
    const size_t top = random.below(n);
    add([&](size_t i) { return i == top ? 0.25 : 0.5 * random.noise() - gap; });
  }
  add([](size_t) { return 0.1; });
  add([](size_t) { return -1e4 / 3; });
  add([](size_t i) { return i % 2 == 0 ? 0.0 : -0.0; });
  add([n](size_t i) { return 60 * static_cast<double>(i) / static_cast<double>(n) - 30; });
  add([n](size_t i) { return i + 1 == n ? 300.0 : -400.0; });
  const double deep = type == softlane::kF64 ? 745 : 104;
  add([&](size_t i) { return i == 0 ? 0 : -deep * (0.9 + 0.1 * random.uniform()); });
  const double largest[kStorages] = {0x1.fffffep127, std::numeric_limits<double>::max(), 65504,
                                     0x1.fep127};
  add([&](size_t i) { return largest[type] * (i % 3 == 0 ? 1 : random.uniform() * 2 - 1); });
  add([&](size_t) { return 0x1p-1060 * random.noise(); });
  add([&](size_t) { return 0x1p-140 * random.noise(); });
  add([&](size_t i) { return random.below(3) == 0 || i == 0 ? -kInf : random.noise(); });
  add([](size_t) { return -kInf; });
  add([n](size_t i) { return i == n / 3 ? -3.5 : -kInf; });
  add([&](size_t i) { return i == n / 2 ? kInf : random.noise(); });
  add([&](size_t i) { return i == n / 2 ? kNaN : random.noise(); });
  add([&](size_t i) { return i == 0 ? kInf : i + 1 == n ? kNaN : -kInf; });
  if (n < kLong) return rows;
  Rows some;  // as many columns as make a group
  for (size_t r = 0; r < rows.size(); r += 2) some.push_back(rows[r]);
  return some;
}

// The rows in storage: row by row, or (columns) interleaved, so that each row is a column.
struct Array {
  Array(Storage storage, size_t row_count, size_t length, bool as_columns)
      : type(storage),
        rows(row_count),
        n(length),
        columns(as_columns),
        data(row_count * length * kItemSize[storage]) {}
  Array(Storage storage, const Rows& values, bool as_columns)
      : Array(storage, values.size(), values[0].size(), as_columns) {
    for (size_t r = 0; r < rows; ++r) {
      for (size_t i = 0; i < n; ++i) store(type, values[r][i], at(r, i));
    }
  }
  unsigned char* at(size_t r, size_t i) {
    return data.data() + (columns ? i * rows + r : r * n + i) * kItemSize[type];
  }
  ptrdiff_t stride() const {
    return static_cast<ptrdiff_t>((columns ? rows : n) * kItemSize[type]);
  }
  void hash_into(Fnv1a* hash) {
    for (size_t r = 0; r < rows; ++r) {
      for (size_t i = 0; i < n; ++i) hash->add_elements(type, at(r, i), 1);
    }
  }

  Storage type;
  size_t rows, n;
  bool columns;
  std::vector<unsigned char> data;
};

// ---- chunks
// ---------------------------------------------------------------------------------------

// A row that the kernel sees in pieces, through a bounce buffer, as strided memory is seen.
class Chunked {
 public:
  static constexpr size_t kChunk = 128;
  Chunked() : io_{&Chunked::fetch, &Chunked::put, this, kChunk} {}
  void operand(unsigned char* data, size_t item) {
    operands_.push_back({data, item, std::vector<unsigned char>(kChunk * item)});
  }
  const softlane::ChunkIo* io() const { return &io_; }

 private:
  struct Operand {
    unsigned char* data;
    size_t item;
    std::vector<unsigned char> buffer;
  };
  static void* fetch(void* context, int index, size_t start, size_t count) {
    Chunked* self = static_cast<Chunked*>(context);
    Operand& o = self->operands_.at(static_cast<size_t>(index));
    std::memcpy(o.buffer.data(), o.data + start * o.item, count * o.item);
    return o.buffer.data();
  }
  // What is written is what the kernel made of the chunk that it fetched last as operand 0.
  static void put(void* context, int index, size_t start, size_t count) {
    Chunked* self = static_cast<Chunked*>(context);
    const Operand& to = self->operands_.at(static_cast<size_t>(index));
    const std::vector<unsigned char>& from = self->operands_[0].buffer;
    std::memcpy(to.data + start * to.item, from.data(), count * to.item);
  }

  std::vector<Operand> operands_;
  softlane::ChunkIo io_;
};

// ---- running the kernels
// --------------------------------------------------------------------------

enum class Way { kRows, kOneByOne, kChunks, kColumns, kCrew };
constexpr const char* kWayNames[] = {"rows", "one by one", "chunks", "columns", "by a crew"};

// A crew that does the last piece first.
void each_backwards(void*, size_t count, softlane::Crew::Piece piece, void* state) noexcept {
  while (count-- > 0) piece(state, count);
}
constexpr softlane::Crew kCrew{each_backwards, nullptr};

struct alignas(64) Scratch {
  unsigned char bytes[softlane::kScratchBytes];
};

class Runner {
 public:
  Runner(const KernelTable& table, bool each) : table_(table), each_(each), scratch_(new Scratch) {}

  int run() {
    for (double temperature : {1.0, 0.7, 12.5}) {
      scale_ = make_scale(temperature);
      label_ = temperature == 1 ? "" : " T=" + std::to_string(temperature).substr(0, 4);
      for (int i = 0; i < kStorages; ++i) {
        const Storage type = static_cast<Storage>(i);
        forward("softmax", table_.softmax_rows[type], table_.softmax_cols[type], type, false);
        forward("log_softmax", table_.log_softmax_rows[type], table_.log_softmax_cols[type], type,
                false);
        if (temperature == 1) {
          forward("logsumexp", table_.logsumexp_rows[type], table_.logsumexp_cols[type], type,
                  true);
        }
        cross_entropy(type);
        backward("softmax_backward", table_.softmax_backward_rows[type],
                 table_.softmax_backward_cols[type], type, false);
        backward("log_softmax_backward", table_.log_softmax_backward_rows[type],
                 table_.log_softmax_backward_cols[type], type, true);
      }
    }
    scale_ = make_scale(1);
    label_.clear();
    weighted();
    elementary("elementary", softlane::kF32, table_.elementary_f32);
    elementary("elementary", softlane::kF64, table_.elementary_f64);
    return disagreements_ == 0 ? 0 : 1;
  }

 private:
  // Hashes of one kernel, called in every way it can be, over all lengths; printed, and compared.
  using Call = std::function<uint64_t(size_t n, Way way)>;
  void report(const std::string& name, Storage type, std::vector<Way> ways, const Call& call,
              bool has_long = false) {
    const std::string title = name + label_ + " " + kStorageNames[type];
    Fnv1a all;
    std::vector<size_t> every = lengths(!scale_.unit);
    if (has_long && scale_.unit && kItemSize[type] > 2) every.push_back(kLong);
    for (size_t n : every) {
      if (n == kLong) std::replace(ways.begin(), ways.end(), Way::kOneByOne, Way::kCrew);
      const uint64_t first = call(n, ways[0]);
      for (size_t w = 1; w < ways.size(); ++w) {
        if (call(n, ways[w]) == first) continue;
        std::fprintf(stderr, "%s: %s, length %zu: other bits %s than in %s\n", table_.name,
                     title.c_str(), n, kWayNames[static_cast<int>(ways[w])],
                     kWayNames[static_cast<int>(ways[0])]);
        ++disagreements_;
      }
      if (each_) print(title + " n=" + std::to_string(n), first);
      all.add(&first, sizeof first);
    }
    print(title, all.value());
  }
  static void print(const std::string& title, uint64_t hash) {
    std::printf("%-56s %016llx\n", title.c_str(), static_cast<unsigned long long>(hash));
  }

  template <class Kernel>
  static std::vector<Way> ways_of(Kernel rows, Kernel columns) {
    std::vector<Way> ways;
    if (rows != nullptr) {
      for (Way way : {Way::kRows, Way::kOneByOne, Way::kChunks}) ways.push_back(way);
    }
    if (columns != nullptr) ways.push_back(Way::kColumns);
    return ways;
  }

  // Every other length of columns is worked on in copies.
  static bool copies(size_t n, Way way) { return way == Way::kColumns && n % 2 == 0; }

  void forward(const char* name, void (*rows)(const softlane::Batch&),
               void (*columns)(const softlane::Batch&), Storage type, bool reduces) {
    const std::vector<Way> ways = ways_of(rows, columns);
    if (ways.empty()) return;
    report(
        name, type, ways,
        [=](size_t n, Way way) {
          Array x(type, logits(n, type), way == Way::kColumns);
          Array out(type, x.rows, n, x.columns);
          std::vector<double> sums(reduces ? x.rows : 0);
          softlane::Batch batch{};
          batch.n = n;
          batch.scale = scale_;
          batch.scratch = scratch_->bytes;
          batch.copies = copies(n, way) && !reduces;
          batch.grouped = !batch.copies;
          batch.x_stride = batch.out_stride = x.stride();
          const bool whole = way != Way::kOneByOne && way != Way::kChunks;
          batch.crew = way == Way::kCrew ? &kCrew : nullptr;
          batch.count = whole ? x.rows : 1;
          for (size_t r = 0; r < (whole ? 1 : x.rows); ++r) {
            Chunked chunks;
            chunks.operand(x.at(r, 0), kItemSize[type]);
            chunks.operand(out.at(r, 0), kItemSize[type]);
            batch.x = x.at(r, 0);
            batch.out = reduces ? static_cast<void*>(&sums[r]) : out.at(r, 0);
            batch.chunked = way == Way::kChunks ? chunks.io() : nullptr;
            (way == Way::kColumns ? columns : rows)(batch);
          }
          Fnv1a hash;
          out.hash_into(&hash);
          hash.add_doubles(sums);
          return hash.value();
        },
        true);
  }

  void cross_entropy(Storage type) {
    const auto rows = table_.cross_entropy_rows[type];
    const auto columns = table_.cross_entropy_cols[type];
    const std::vector<Way> ways = ways_of(rows, columns);
    if (ways.empty()) return;
    for (int options = 0; options < 10; ++options) {
      const bool with_grad = options & 1, weighted = options & 2, shared = options >= 8;
      const double smoothing = options & 4 ? 0.1 : 0;
      const std::string name = std::string("cross_entropy") + (with_grad ? "+grad" : "") +
                               (weighted ? "+weight" : "") + (smoothing != 0 ? "+smoothing" : "") +
                               (shared ? "+probabilities" : "");
      std::vector<Way> these = ways;
      if (shared && kItemSize[type] == 2) {  // columns of half types are left to packed rows
        these.erase(std::remove(these.begin(), these.end(), Way::kColumns), these.end());
      }
      report(
          name, type, these,
          [=](size_t n, Way way) {
            Array x(type, logits(n, type), way == Way::kColumns);
            Array grad(type, x.rows, n, x.columns);
            Random random(1000 + n);
            std::vector<int64_t> targets;
            std::vector<double> coef, weight;
            for (size_t r = 0; r < x.rows; ++r) {
              targets.push_back(r % 7 == 3 ? -1 : static_cast<int64_t>(random.below(n)));
              coef.push_back(r % 5 == 0 || !weighted ? 1 : 4 * random.uniform());
            }
            for (size_t i = 0; i < n; ++i) weight.push_back(i % 9 == 4 ? 0 : 2 * random.uniform());
            Rows probabilities(x.rows, std::vector<double>(n));
            for (std::vector<double>& row : probabilities) {
              for (double& t : row) t = random.below(4) == 0 ? 0 : random.uniform();
            }
            Array shares(type, probabilities, way == Way::kColumns);
            std::vector<double> sums(x.rows), sums_lo(x.rows);
            std::vector<double> loss(x.rows);
            softlane::LossBatch batch{};
            batch.n = n;
            batch.scale = scale_;
            batch.scratch = scratch_->bytes;
            batch.copies = kItemSize[type] == 2 || (with_grad && copies(n, way));
            batch.grouped = !copies(n, way);
            batch.x_stride = batch.grad_stride = x.stride();
            batch.weight = weighted ? weight.data() : nullptr;
            double weight_sum = weighted ? 0 : static_cast<double>(n);
            for (double w : weight) weight_sum += weighted ? w : 0;
            double zero = 0;
            batch.weight_sum = &weight_sum;
            batch.weight_sum_lo = &zero;
            batch.divisor = weighted ? 37 : 1;
            batch.smoothing = smoothing;
            batch.classes = static_cast<double>(n);
            if (shared) {
              batch.smoothing = batch.classes = 1;
              batch.share_stride = shares.stride();
            }
            const bool whole = way != Way::kOneByOne && way != Way::kChunks;
            batch.crew = way == Way::kCrew ? &kCrew : nullptr;
            batch.count = whole ? x.rows : 1;
            for (size_t r = 0; r < (whole ? 1 : x.rows); ++r) {
              Chunked chunks;
              chunks.operand(x.at(r, 0), kItemSize[type]);
              chunks.operand(grad.at(r, 0), kItemSize[type]);
              if (shared) {
                chunks.operand(shares.at(r, 0), kItemSize[type]);
                batch.shares = shares.at(r, 0);
                batch.weight_sum = &sums[r];
                batch.weight_sum_lo = &sums_lo[r];
              } else {
                chunks.operand(reinterpret_cast<unsigned char*>(weight.data()), sizeof(double));
              }
              batch.x = x.at(r, 0);
              batch.grad = with_grad ? grad.at(r, 0) : nullptr;
              batch.targets = &targets[r];
              batch.coef = weighted ? &coef[r] : nullptr;
              batch.loss = &loss[r];
              batch.chunked = way == Way::kChunks ? chunks.io() : nullptr;
              (way == Way::kColumns ? columns : rows)(batch);
            }
            Fnv1a hash;
            grad.hash_into(&hash);
            hash.add_doubles(loss);
            return hash.value();
          },
          options == 1);
    }
  }

  void backward(const char* name, void (*rows)(const softlane::BackwardBatch&),
                void (*columns)(const softlane::BackwardBatch&), Storage type, bool of_log) {
    const std::vector<Way> ways = {Way::kRows, Way::kOneByOne, Way::kChunks, Way::kColumns};
    report(name, type, ways, [=](size_t n, Way way) {
      Random random(2000 + n);
      Rows upstream, outputs;
      // Groups of columns are of 64; some are of ordinary ones alone.
      const size_t count = n > 16 && (n % 8 == 1 || n > 100) ? 150 : 12;
      for (size_t r = 0; r < count; ++r) {
        const double size = r == 10 ? 1e4 : r == 11 ? 1e-4 : 1;
        std::vector<double> g(n), y(n);
        for (size_t i = 0; i < n; ++i) {
          const bool masked = r > 3 && r < 12 && random.below(5) == 0;
          const double u = random.uniform();
          g[i] = masked && r == 5 ? kInf : size * random.noise();
          y[i] =
              of_log ? (masked ? -kInf : -30 * u * u) : (masked ? 0 : u / static_cast<double>(n));
        }
        upstream.push_back(g);
        outputs.push_back(y);
      }
      upstream[8][n / 2] = kNaN;
      upstream[9][n / 2] = kInf;
      const bool by_columns = way == Way::kColumns;
      Array g(type, upstream, by_columns), y(type, outputs, by_columns);
      Array out(type, g.rows, n, by_columns);
      softlane::BackwardBatch batch{};
      batch.n = n;
      batch.scale = scale_;
      batch.scratch = scratch_->bytes;
      batch.grouped = n > 16;
      batch.copies = kItemSize[type] == 2 || copies(n, way);
      batch.grad_stride = batch.y_stride = batch.out_stride = g.stride();
      batch.count = way == Way::kRows || by_columns ? g.rows : 1;
      for (size_t r = 0; r < g.rows; r += batch.count) {
        Chunked chunks;
        for (Array* a : {&g, &y, &out}) chunks.operand(a->at(r, 0), kItemSize[type]);
        batch.grad = g.at(r, 0);
        batch.y = y.at(r, 0);
        batch.out = out.at(r, 0);
        batch.chunked = way == Way::kChunks ? chunks.io() : nullptr;
        (by_columns ? columns : rows)(batch);
      }
      Fnv1a hash;
      out.hash_into(&hash);
      return hash.value();
    });
  }

  void weighted() {
    if (table_.logsumexp_weighted == nullptr) return;
    report("logsumexp_weighted", softlane::kF64, {Way::kRows, Way::kOneByOne, Way::kChunks},
           [=](size_t n, Way way) {
             std::vector<double> x, b;
             size_t rows = 0;
             for (const auto& row : logits(n, softlane::kF64)) {
               Random random(3000 + n + rows);
               for (double logit : row) {
                 const double weight = random.below(6) == 0 ? 0 : random.noise();
                 // Rows of nothing, of both signs, and of weights that are positive.
                 b.push_back(rows == 0 ? 0 : rows % 2 == 0 ? weight : std::fabs(weight));
                 x.push_back(logit);
               }
               ++rows;
             }
             std::vector<double> results(rows), signs(rows);
             const size_t step = way == Way::kRows ? rows : 1;
             for (size_t r = 0; r < rows; r += step) {
               Chunked chunks;
               chunks.operand(reinterpret_cast<unsigned char*>(x.data() + r * n), sizeof(double));
               chunks.operand(reinterpret_cast<unsigned char*>(b.data() + r * n), sizeof(double));
               softlane::WeightedBatch batch{};
               batch.x = x.data() + r * n;
               batch.b = b.data() + r * n;
               batch.count = step;
               batch.n = n;
               batch.chunked = way == Way::kChunks ? chunks.io() : nullptr;
               batch.result = results.data() + r;
               batch.sign = signs.data() + r;
               table_.logsumexp_weighted(batch);
             }
             Fnv1a hash;
             hash.add_doubles(results);
             hash.add_doubles(signs);
             return hash.value();
           });
  }

  // Arguments of every magnitude as bit patterns, and the range where each function does its work.
  template <class T>
  void elementary(const char* name, Storage type,
                  void (*const functions[4])(const T*, T*, size_t)) {
    constexpr const char* kNames[4] = {"exp", "log", "expm1", "log1p"};
    for (int f = 0; f < 4; ++f) {
      if (functions[f] == nullptr) continue;
      Random random(4000 + static_cast<uint64_t>(f));
      std::vector<T> x;
      for (int i = 0; i < 20000; ++i) {
        if (sizeof(T) == 8) {
          x.push_back(bit_cast<T>(static_cast<typename Bits<T>::Type>(random.bits())));
        } else {
          x.push_back(bit_cast<T>(static_cast<typename Bits<T>::Type>(random.bits() >> 32)));
        }
        const double range = i % 2 == 0 ? 1 : sizeof(T) == 8 ? 760 : 110;
        const double u = 2 * random.uniform() - 1;
        x.push_back(
            static_cast<T>(f == 1 || f == 3 ? (i % 2 == 0 ? u : std::fabs(u) * 50) : u * range));
      }
      Fnv1a all;
      for (size_t n : lengths(false)) {
        std::vector<T> out(n);
        functions[f](x.data() + n, out.data(), n);
        all.add_elements(type, reinterpret_cast<const unsigned char*>(out.data()), n);
      }
      std::vector<T> out(x.size());
      functions[f](x.data(), out.data(), x.size());
      all.add_elements(type, reinterpret_cast<const unsigned char*>(out.data()), out.size());
      print(std::string(name) + " " + kNames[f] + " " + kStorageNames[type], all.value());
    }
  }
  template <class T>
  struct Bits {
    using Type = uint32_t;
  };

  const Rows& logits(size_t n, Storage type) {
    Rows& rows = logits_[{n, type}];
    if (rows.empty()) rows = make_logits(n, type);
    return rows;
  }

  const KernelTable& table_;
  bool each_;
  std::unique_ptr<Scratch> scratch_;
  Scale scale_{};
  std::string label_;
  std::map<std::pair<size_t, int>, Rows> logits_;
  int disagreements_ = 0;
};

template <>
struct Runner::Bits<double> {
  using Type = uint64_t;
};

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> usable = softlane::isas_usable();
  if (argc == 1) {
    for (const std::string& name : usable) std::puts(name.c_str());
    return 0;
  }
  const bool each = argc == 3 && std::strcmp(argv[2], "--each") == 0;
  if (argc > 3 || (argc == 3 && !each)) {
    std::fprintf(stderr, "usage: %s [isa [--each]]\n", argv[0]);
    return 2;
  }
  try {
    softlane::set_active(argv[1]);
  } catch (const std::invalid_argument&) {
    std::string names;
    for (const std::string& name : usable) names += (names.empty() ? "" : " ") + name;
    std::fprintf(stderr, "%s is not usable, expected one of: %s\n", argv[1], names.c_str());
    return 2;
  }
  return Runner(softlane::active_table(), each).run();
}
