// Hammers parallel.cpp and dispatch.cpp from many threads: right sums, every index once, exceptions to
// their own caller, nested loops, allocation failures. For ThreadSanitizer; without it the checks stand.
//   hammer [seconds]
// The kernels' tables are stand-ins, so that nothing but the two files is compiled.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dispatch.h"
#include "parallel.h"

namespace {

constexpr int kThreads = 8;

softlane::KernelTable table_named(const char* name) {
  softlane::KernelTable table{};
  table.name = name;
  return table;
}
const softlane::KernelTable kGeneric = table_named("generic"), kAvx2 = table_named("avx2"),
                            kAvx512 = table_named("avx512"), kNeon = table_named("neon");

// The calling thread's allocation that fails: 1 is the next one, 0 none.
thread_local int failing = 0;

void* allocate(size_t size) {
  if (failing > 0 && --failing == 0) throw std::bad_alloc();
  if (void* p = std::malloc(size == 0 ? 1 : size)) return p;
  throw std::bad_alloc();
}
void* allocate(size_t size, std::align_val_t align) {
  if (failing > 0 && --failing == 0) throw std::bad_alloc();
  const size_t a = static_cast<size_t>(align);
  if (void* p = std::aligned_alloc(a, (size + a - 1) / a * a)) return p;
  throw std::bad_alloc();
}

}  // namespace

extern "C" const softlane::KernelTable* softlane_table_generic() { return &kGeneric; }
extern "C" const softlane::KernelTable* softlane_table_avx2() { return &kAvx2; }
extern "C" const softlane::KernelTable* softlane_table_avx512() { return &kAvx512; }
extern "C" const softlane::KernelTable* softlane_table_neon() { return &kNeon; }

void* operator new(size_t size) { return allocate(size); }
void* operator new[](size_t size) { return allocate(size); }
void* operator new(size_t size, std::align_val_t align) { return allocate(size, align); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "hammer: %s\n", what.c_str());
  std::fflush(stderr);
  std::_Exit(1);
}
void expect(bool holds, const char* what) {
  if (!holds) fail(what);
}

// xorshift: one a thread.
struct Random {
  uint64_t state;
  size_t below(size_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<size_t>(state % n);
  }
};

// What is enough for a thread, whatever the number of indices.
constexpr size_t kEnough = 1 << 20;
std::atomic<size_t> elsewhere{0};  // pieces that workers took

// Every index once, by plain writes that a race would show; pieces that cost no less than 8192, but for what an
// index more would add; on the caller alone if `most` says so.
void check_sum(size_t n, size_t cost, size_t most = 1000) {
  std::vector<unsigned char> seen(n, 0);
  std::atomic<size_t> sum{0};
  std::atomic<size_t> small{0};
  const std::thread::id caller = std::this_thread::get_id();
  softlane::parallel_for(n, cost, most, [&](size_t begin, size_t end) {
    if (begin >= end || end > n) fail("a piece outside the range");
    if (end - begin < 8192 / cost && end != n) ++small;
    if (std::this_thread::get_id() != caller) ++(most == 1 ? small : elsewhere);
    size_t part = 0;
    for (size_t i = begin; i < end; ++i) {
      ++seen[i];
      part += i;
    }
    sum += part;
  });
  expect(sum == (n == 0 ? 0 : n * (n - 1) / 2), "a wrong sum");
  expect(small == 0, "a piece that costs less than 8192, or a thread too many");
  for (const unsigned char count : seen) expect(count == 1, "an index not visited once");
}

// The exception is the caller's own, and no body runs after it has arrived.
void check_exception(size_t n, size_t bad, int id) {
  std::atomic<int> inside{0};
  bool caught = false;
  try {
    softlane::parallel_for(n, kEnough, n, [&](size_t begin, size_t end) {
      ++inside;
      const bool throws = begin <= bad && bad < end;
      if (throws) {
        --inside;
        throw std::runtime_error(std::to_string(id));
      }
      std::this_thread::yield();
      --inside;
    });
  } catch (const std::runtime_error& e) {
    caught = e.what() == std::to_string(id);
  }
  expect(caught, "an exception lost, or another thread's");
  expect(inside == 0, "a body runs after the loop has ended");
}

void check_nested(size_t n) {
  std::atomic<size_t> sum{0};
  softlane::parallel_for(n, kEnough, n, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      softlane::parallel_for(10, kEnough, 10, [&](size_t first, size_t last) {
        for (size_t k = first; k < last; ++k) sum += k;
      });
    }
    try {
      softlane::parallel_for(4, kEnough, 4, [](size_t, size_t) { throw 1; });
      fail("a nested exception lost");
    } catch (int) {
    }
  });
  expect(sum == 45 * n, "a wrong nested sum");
}

void check_limit(size_t limit) {
  const int before = softlane::set_thread_limit(static_cast<int>(limit));
  expect(softlane::get_num_threads() <= static_cast<int>(limit), "the thread's limit is exceeded");
  check_sum(1000, 1000);
  expect(softlane::set_thread_limit(before) == static_cast<int>(limit), "another thread's limit");
}

void check_dispatch(const std::vector<std::string>& usable, size_t which) {
  softlane::set_active(usable[which]);
  bool known = false;
  const std::string name = softlane::active_table().name;
  for (const std::string& one : usable) known = known || name == one;
  expect(known, "the active table is none of the usable ones");
  expect(softlane::isas_usable() == usable, "the usable sets change");
  try {
    softlane::set_active("sse9");
    fail("an unknown instruction set is accepted");
  } catch (const std::invalid_argument&) {
  }
}

// The k-th allocation of a call fails: the loop is done all the same, and the next one.
void check_allocation_failures() {
  int refused = 0;
  for (int k = 1; k <= 12; ++k) {
    softlane::set_num_threads(16 + k);  // so that the pool has to grow
    std::atomic<size_t> sum{0};
    const std::function<void(size_t, size_t)> body = [&](size_t begin, size_t end) {
      sum += end - begin;
    };
    failing = k;
    softlane::parallel_for(10000, kEnough, 10000, body);
    refused += failing == 0;
    failing = 0;
    expect(sum == 10000, "a wrong sum beside an allocation failure");
    check_sum(10000, kEnough);
  }
  expect(refused > 0, "no allocation of a loop failed");
  std::printf("allocation failures: %d of 12\n", refused);
}

void hammer(int id, std::chrono::steady_clock::time_point end,
            const std::vector<std::string>& usable, std::atomic<size_t>& rounds) {
  Random random{0x9e3779b97f4a7c15u * static_cast<uint64_t>(id + 1)};
  while (std::chrono::steady_clock::now() < end) {
    switch (random.below(8)) {
      case 0:
        softlane::set_num_threads(static_cast<int>(random.below(7)));
        break;
      case 1:
        check_exception(1 + random.below(2000), 0, id);
        break;
      case 2: {
        const size_t n = 1 + random.below(2000);
        check_exception(n, random.below(n), id);
        break;
      }
      case 3:
        check_nested(1 + random.below(60));
        break;
      case 4:
        check_limit(1 + random.below(4));
        break;
      case 5:
        check_dispatch(usable, random.below(usable.size()));
        break;
      default:
        check_sum(random.below(5000), random.below(2000) + 1, 1 + random.below(3));
    }
    ++rounds;
  }
}

template <class F>
void in_threads(F f) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(f, i);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 3;
  // The first choice of a table, and of the number of threads, by all at once.
  std::atomic<int> waiting{kThreads};
  in_threads([&](int) {
    --waiting;
    while (waiting > 0) std::this_thread::yield();
    expect(softlane::active_table().name == softlane::isas_usable().front(), "not the best set");
    expect(softlane::get_num_threads() >= 1, "no thread");
    check_sum(3000, kEnough);
  });
  const std::vector<std::string> usable = softlane::isas_usable();
  std::atomic<size_t> rounds{0};
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::milliseconds(static_cast<int>(1000 * seconds));
  in_threads([&](int id) { hammer(id, end, usable, rounds); });
  // Threads that end and others that begin, one after the other.
  for (int i = 0; i < 50; ++i) std::thread([] { check_sum(3000, kEnough); }).join();
  check_allocation_failures();
  expect(elsewhere > 0, "all loops ran on their callers alone");
  std::printf("hammer: %zu rounds by %d threads\n", rounds.load(), kThreads);
  return 0;
}
