#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__) || defined(_M_X64)
#define SOFTLANE_X86 1
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#ifdef SOFTLANE_HAVE_GENERIC
extern "C" const softlane::KernelTable* softlane_table_generic();
#endif
#ifdef SOFTLANE_HAVE_AVX2
extern "C" const softlane::KernelTable* softlane_table_avx2();
#endif
#ifdef SOFTLANE_HAVE_AVX512
extern "C" const softlane::KernelTable* softlane_table_avx512();
#endif
#ifdef SOFTLANE_HAVE_NEON
extern "C" const softlane::KernelTable* softlane_table_neon();
#endif

namespace softlane {
namespace {

struct CpuFeatures {
  bool avx2 = false;    // AVX2, FMA, F16C
  bool avx512 = false;  // AVX-512 F, DQ, BW, VL on top of these
};

#ifdef SOFTLANE_X86
struct Registers {
  unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf) {
  Registers r{0, 0, 0, 0};
#ifdef _MSC_VER
  int words[4];
  __cpuidex(words, static_cast<int>(leaf), 0);
  r = {unsigned(words[0]), unsigned(words[1]), unsigned(words[2]), unsigned(words[3])};
#else
  __cpuid_count(leaf, 0, r.a, r.b, r.c, r.d);
#endif
  return r;
}

// The register state that the operating system saves: bits 1, 2 SSE and AVX, 5 to 7 AVX-512.
unsigned xcr0() {
#ifdef _MSC_VER
  return static_cast<unsigned>(_xgetbv(0));
#else
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
#endif
}

constexpr bool has(unsigned word, int bit) { return ((word >> bit) & 1u) != 0; }

CpuFeatures detect() {
  CpuFeatures found;
  if (cpuid(0).a < 7) return found;
  const Registers basic = cpuid(1), extended = cpuid(7);
  const bool os_saves = has(basic.c, 27);
  if (!os_saves) return found;
  const unsigned saved = xcr0();
  const bool fma = has(basic.c, 12), avx = has(basic.c, 28), f16c = has(basic.c, 29);
  found.avx2 = (saved & 0x6) == 0x6 && fma && avx && f16c && has(extended.b, 5);
  found.avx512 = found.avx2 && (saved & 0xe6) == 0xe6 && has(extended.b, 16) &&
                 has(extended.b, 17) && has(extended.b, 30) && has(extended.b, 31);
  return found;
}
#else
CpuFeatures detect() { return {}; }
#endif

[[maybe_unused]] const CpuFeatures& cpu() {
  static const CpuFeatures features = detect();
  return features;
}

struct Entry {
  const char* name;
  const KernelTable* (*table)();
  bool usable;
};

// Best first. NEON is part of every AArch64 CPU.
std::vector<Entry> entries() {
  std::vector<Entry> list;
#ifdef SOFTLANE_HAVE_AVX512
  list.push_back({"avx512", softlane_table_avx512, cpu().avx512});
#endif
#ifdef SOFTLANE_HAVE_AVX2
  list.push_back({"avx2", softlane_table_avx2, cpu().avx2});
#endif
#ifdef SOFTLANE_HAVE_NEON
  list.push_back({"neon", softlane_table_neon, true});
#endif
#ifdef SOFTLANE_HAVE_GENERIC
  list.push_back({"generic", softlane_table_generic, true});
#endif
  return list;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const KernelTable* find(const std::string& name) {
  for (const Entry& entry : entries()) {
    if (name == entry.name && entry.usable) return entry.table();
  }
  return nullptr;
}

const KernelTable* choose() {
  const char* wanted = std::getenv("SOFTLANE_ISA");
  if (wanted == nullptr || *wanted == '\0') return find(isas_usable().front());
  const KernelTable* table = find(wanted);
  if (table == nullptr) {
    throw std::runtime_error("SOFTLANE_ISA=" + std::string(wanted) +
                             " is not usable here; usable: " + joined(isas_usable()));
  }
  return table;
}

std::atomic<const KernelTable*> active{nullptr};

}  // namespace

std::vector<std::string> isas_compiled() {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) names.emplace_back(entry.name);
  return names;
}

std::vector<std::string> isas_usable() {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) {
    if (entry.usable) names.emplace_back(entry.name);
  }
  return names;
}

const KernelTable& active_table() {
  const KernelTable* table = active.load(std::memory_order_acquire);
  if (table == nullptr) {
    const KernelTable* chosen = choose();
    // Another thread may have been faster; both choose alike.
    table = active.compare_exchange_strong(table, chosen) ? chosen : table;
  }
  return *table;
}

void set_active(const std::string& name) {
  const KernelTable* table = find(name);
  if (table == nullptr) {
    throw std::invalid_argument("instruction set '" + name +
                                "' is not usable here; usable: " + joined(isas_usable()));
  }
  active.store(table, std::memory_order_release);
}

}  // namespace softlane
