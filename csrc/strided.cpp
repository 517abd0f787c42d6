#include "strided.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <type_traits>

namespace softlane {
namespace {

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

double to_double(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) {
    return static_cast<double>(bit_cast<float>(sign | magnitude | 0x7f800000u));
  }
  return static_cast<double>(
      bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f)));
}
double to_double(Brain b) {
  return static_cast<double>(bit_cast<float>(static_cast<uint32_t>(b.bits) << 16));
}
template <class T>
double to_double(T x) {
  return static_cast<double>(x);
}

// Rounds a double to `digits` binary digits with the smallest exponent `lowest` (of the last digit),
// to odd: a second rounding to fewer digits is then the right one.
float to_float_odd(double x) {
  const float f = static_cast<float>(x);
  const double back = static_cast<double>(f);
  if (back == x || x != x || back - back != 0) return f;
  uint32_t bits = bit_cast<uint32_t>(f);
  if ((bits & 1u) == 0) {
    // Towards the exact value; rounding had moved away from it.
    const bool away = (back > x) == (x > 0);
    bits = away ? bits - 1 : bits + 1;
    if (f == 0) bits = bit_cast<uint32_t>(f) | 1u;
  }
  return bit_cast<float>(bits);
}

template <class T>
T from_double(double x) {
  return static_cast<T>(x);
}
template <>
Half from_double<Half>(double x) {
  const uint32_t bits = bit_cast<uint32_t>(to_float_odd(x));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    magnitude = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    magnitude = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    magnitude = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    magnitude = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  }
  return {static_cast<uint16_t>(sign | magnitude)};
}
template <>
Brain from_double<Brain>(double x) {
  const uint32_t bits = bit_cast<uint32_t>(to_float_odd(x));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <class T>
T load(const char* p, bool swapped) {
  T value;
  if (!swapped) {
    std::memcpy(&value, p, sizeof(T));
    return value;
  }
  unsigned char bytes[sizeof(T)];
  std::memcpy(bytes, p, sizeof(T));
  std::reverse(bytes, bytes + sizeof(T));
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}
template <class T>
void store(T value, char* p, bool swapped) {
  if (!swapped) {
    std::memcpy(p, &value, sizeof(T));
    return;
  }
  unsigned char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  std::reverse(bytes, bytes + sizeof(T));
  std::memcpy(p, bytes, sizeof(T));
}

// Calls f with a value of the C++ type of `type`.
template <class F>
auto visit(DType type, F f) {
  switch (type) {
    case DType::kFloat16:
      return f(Half{});
    case DType::kBFloat16:
      return f(Brain{});
    case DType::kFloat32:
      return f(float{});
    case DType::kInt8:
      return f(int8_t{});
    case DType::kInt16:
      return f(int16_t{});
    case DType::kInt32:
      return f(int32_t{});
    case DType::kInt64:
      return f(int64_t{});
    case DType::kUInt8:
    case DType::kBool:
      return f(uint8_t{});
    case DType::kUInt16:
      return f(uint16_t{});
    case DType::kUInt32:
      return f(uint32_t{});
    case DType::kUInt64:
      return f(uint64_t{});
    case DType::kFloat64:
      break;
  }
  return f(double{});
}

// Calls f(first address, first position, count) for the rows; those that follow each other in the distance of
// their elements are one.
template <class F>
void for_row_blocks(const Lattice& x, F f) {
  if (x.row_step == static_cast<ptrdiff_t>(x.count) * x.step) {
    f(x.data, size_t{0}, x.rows * x.count);
    return;
  }
  for (size_t r = 0; r < x.rows; ++r) {
    f(x.data + static_cast<ptrdiff_t>(r) * x.row_step, r * x.count, x.count);
  }
}
// Calls f(address, position) for all elements in order.
template <class Step, class F>
void for_elements_by(Step step, const Lattice& x, F f) {
  for_row_blocks(x, [=](char* row, size_t first, size_t count) {
    for (size_t i = 0; i < count; ++i) f(row + static_cast<ptrdiff_t>(i) * step, first + i);
  });
}
template <class F>
void for_elements(const Lattice& x, F f) {
  for_elements_by(x.step, x, f);
}
// The same where a step of `kLikely` is known to the compiler, which may then move several elements at a time.
template <ptrdiff_t kLikely, class F>
void for_many_elements(const Lattice& x, F f) {
  if (x.step == kLikely) return for_elements_by(std::integral_constant<ptrdiff_t, kLikely>(), x, f);
  for_elements(x, f);
}

// Whether rows of some length lie nearer to each other than their elements, as columns of an array do.
bool lies_across(const Lattice& x) {
  return x.rows > 1 && x.count >= 64 && std::abs(x.row_step) < std::abs(x.step);
}
// Calls f(address, position) for all elements, a few rows' at a time: a line of the cache, which has elements of
// each, is then written once and not once a row. Reading is no quicker like this, nor are short rows (measured:
// bench/NOTES.md).
template <class F>
void for_elements_across(const Lattice& x, F f) {
  constexpr size_t kRows = 8;  // more could lie in the same set of lines when packed
  for (size_t first = 0; first < x.rows; first += kRows) {
    const size_t end = std::min(x.rows, first + kRows);
    for (size_t i = 0; i < x.count; ++i) {
      char* column = x.data + static_cast<ptrdiff_t>(i) * x.step;
      for (size_t r = first; r < end; ++r) {
        f(column + static_cast<ptrdiff_t>(r) * x.row_step, r * x.count + i);
      }
    }
  }
}

// Calls f with an unsigned number of `size` bytes.
template <class F>
auto visit_word(size_t size, F f) {
  if (size == 2) return f(uint16_t{});
  if (size == 4) return f(uint32_t{});
  return f(uint64_t{});
}

// Appends a dimension, or merges it with the last one where every operand walks both with one stride.
void append(std::vector<Dim>& dims, const Dim& dim, size_t operands) {
  bool joins = !dims.empty();
  for (size_t k = 0; joins && k < operands; ++k) {
    joins = dims.back().stride[k] == dim.length * dim.stride[k];
  }
  if (joins) {
    dims.back().length *= dim.length;
    dims.back().stride = dim.stride;
  } else {
    dims.push_back(dim);
  }
}

}  // namespace

size_t item_size(DType type) {
  return visit(type, [](auto value) { return sizeof(value); });
}

Storage storage_of(DType type) {
  switch (type) {
    case DType::kFloat16:
      return kF16;
    case DType::kBFloat16:
      return kBF16;
    case DType::kFloat32:
      return kF32;
    default:
      return kF64;
  }
}

bool View::aligned() const {
  if (swapped) return false;
  const auto item = static_cast<uintptr_t>(item_size(dtype));
  if (reinterpret_cast<uintptr_t>(data) % item != 0) return false;
  for (int d = 0; d < ndim; ++d) {
    const auto i = static_cast<size_t>(d);
    if (shape[i] > 1 && strides[i] % static_cast<ptrdiff_t>(item) != 0) return false;
  }
  return true;
}

void load_ints(const char* p, ptrdiff_t step, DType type, bool swapped, int64_t* to, size_t count) {
  visit(type, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (std::is_integral_v<T>) {
      const auto convert = [](T value) {
        if constexpr (std::is_same_v<T, uint64_t>) {
          return static_cast<int64_t>(std::min(value, static_cast<uint64_t>(INT64_MAX)));
        } else {
          return static_cast<int64_t>(value);
        }
      };
      if (!swapped && step == static_cast<ptrdiff_t>(sizeof(T))) {
        for (size_t i = 0; i < count; ++i) to[i] = convert(load<T>(p + i * sizeof(T), false));
        return;
      }
      for (size_t i = 0; i < count; ++i) {
        to[i] = convert(load<T>(p, swapped));
        p += step;
      }
    }
  });
}

uint64_t load_unsigned(const char* p, bool swapped) { return load<uint64_t>(p, swapped); }

double load_double(const char* p, DType type, bool swapped) {
  return visit(type, [&](auto tag) { return to_double(load<decltype(tag)>(p, swapped)); });
}

void store_double(double value, char* p, DType type, bool swapped) {
  switch (type) {
    case DType::kFloat16:
      return store(from_double<Half>(value), p, swapped);
    case DType::kBFloat16:
      return store(from_double<Brain>(value), p, swapped);
    case DType::kFloat32:
      return store(static_cast<float>(value), p, swapped);
    default:
      return store(value, p, swapped);
  }
}

void Plan::make_run(size_t d) {
  const Dim run = outer[d];
  outer.erase(outer.begin() + static_cast<ptrdiff_t>(d));
  outer.push_back(run);
}

Plan make_plan(int ndim, const ptrdiff_t* shape, uint64_t axes,
               std::initializer_list<const ptrdiff_t*> operands) {
  Plan plan;
  plan.operands = static_cast<int>(operands.size());
  plan.axis.reserve(1);
  for (int d = 0; d < ndim; ++d) {
    const bool inner = ((axes >> d) & 1) != 0;
    (inner ? plan.classes : plan.samples) *= static_cast<size_t>(shape[d]);
    if (shape[d] == 1) continue;
    Dim dim{shape[d], {}};
    size_t k = 0;
    for (const ptrdiff_t* strides : operands) dim.stride[k++] = strides[d];
    append(inner ? plan.axis : plan.outer, dim, k);
  }
  if (plan.axis.empty()) plan.axis.push_back(Dim{1, {}});
  return plan;
}

void pack(const Lattice& from, DType type, bool swapped, void* to, DType to_type, double scale,
          double center) {
  if (type == to_type && scale == 1.0) {
    const size_t item = item_size(type);
    auto* out = static_cast<char*>(to);
    if (!swapped && from.step == static_cast<ptrdiff_t>(item)) {
      for_row_blocks(from, [&](char* row, size_t first, size_t count) {
        std::memcpy(out + first * item, row, count * item);
      });
      return;
    }
    visit_word(item, [&](auto tag) {
      using T = decltype(tag);
      const auto copy = [=](const char* p, size_t i) {
        store(load<T>(p, false), out + i * sizeof(T), false);
      };
      if (!swapped) return for_many_elements<2 * sizeof(T)>(from, copy);  // every other element
      for_elements(from, [=](const char* p, size_t i) {
        store(load<T>(p, true), out + i * sizeof(T), false);
      });
    });
    return;
  }
  const auto convert = [&](auto* out) {
    using To = std::remove_pointer_t<decltype(out)>;
    visit(type, [&](auto tag) {
      using T = decltype(tag);
      if (!swapped && scale == 1.0) {
        for_elements(from, [=](const char* p, size_t i) {
          out[i] = static_cast<To>(to_double(load<T>(p, false)));
        });
        return;
      }
      for_elements(from, [=](const char* p, size_t i) {
        double value = to_double(load<T>(p, swapped));
        if (scale != 1.0) {
          // Finite stays finite: what is so far below the maximum has no weight.
          const bool finite = value - value == 0;
          value = (value - center) * scale;
          if (finite) value = std::max(value, -std::numeric_limits<double>::max());
        }
        out[i] = static_cast<To>(value);
      });
    });
  };
  if (to_type == DType::kFloat64) {
    convert(static_cast<double*>(to));
  } else {
    convert(static_cast<float*>(to));
  }
}

void unpack(const void* from, DType from_type, const Lattice& to, DType type, bool swapped) {
  if (type == from_type) {
    const size_t item = item_size(type);
    const auto* in = static_cast<const char*>(from);
    if (!swapped && to.step == static_cast<ptrdiff_t>(item)) {
      for_row_blocks(to, [&](char* row, size_t first, size_t count) {
        std::memcpy(row, in + first * item, count * item);
      });
      return;
    }
    visit_word(item, [&](auto tag) {
      using T = decltype(tag);
      if (!swapped && lies_across(to)) {
        return for_elements_across(
            to, [=](char* p, size_t i) { store(load<T>(in + i * sizeof(T), false), p, false); });
      }
      for_elements(
          to, [=](char* p, size_t i) { store(load<T>(in + i * sizeof(T), false), p, swapped); });
    });
    return;
  }
  visit(from_type, [&](auto from_tag) {
    visit(type, [&](auto tag) {
      using From = decltype(from_tag);
      using T = decltype(tag);
      if constexpr (sizeof(From) >= 4 && std::is_floating_point_v<From> && !std::is_integral_v<T>) {
        const auto* in = static_cast<const From*>(from);
        for_elements(
            to, [=](char* p, size_t i) { store(from_double<T>(to_double(in[i])), p, swapped); });
      }
    });
  });
}

bool any_nan(const Lattice& x, DType type) {
  return visit(type, [&](auto tag) {
    bool found = false;
    for_elements(x, [&](const char* p, size_t) {
      const double value = to_double(load<decltype(tag)>(p, false));
      found |= value != value;
    });
    return found;
  });
}

void fill_outside(const Lattice& where, void* array, DType type, double value) {
  visit_word(item_size(type), [&](auto tag) {
    using T = decltype(tag);
    char bytes[sizeof(double)];
    store_double(value, bytes, type, false);
    const T bits = load<T>(bytes, false);
    auto* to = static_cast<char*>(array);
    for_many_elements<1>(where, [=](const char* p, size_t i) {
      char* element = to + i * sizeof(T);
      const auto kept =
          static_cast<T>(T{0} - static_cast<T>(*p != 0));  // no branch: masks may be random
      store(static_cast<T>(bits ^ ((load<T>(element, false) ^ bits) & kept)), element, false);
    });
  });
}

}  // namespace softlane
