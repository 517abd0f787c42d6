#include "parallel.h"

#include "fpenv.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace softlane {
namespace {

constexpr int kMaxThreads = 1024;

// A loop has as many threads as it costs multiples, begun ones too, of what is worth one that is awake (kThreadGrain:
// 0.04 ms) or worth waking one. Pieces cost about kPiece or more.
constexpr size_t kAsleepGrain = 2 * kThreadGrain, kPiece = 8192;

// How long threads look for the next loop, or for the end of one, before they sleep: as long as it takes to wake one.
using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kLook{50};
// Where keeps() says that no thread that works on it needs this processor that is kept: Linux gives it, once
// yielded, to another library's thread that only waits, for milliseconds (measured: bench/NOTES.md).
template <class F, class K>
void look_for(F found, K keeps) {
  const Clock::time_point begin = Clock::now();
  while (!found() && Clock::now() - begin < kLook) {
    if (!keeps()) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("isb");
#endif
  }
}

int from_environment(const char* name) {
  const char* text = std::getenv(name);
  // "8,4" (nested OpenMP levels) counts as 8; anything else that is no number as unset.
  const long n = text == nullptr ? 0 : std::strtol(text, nullptr, 10);
  return n < 1 ? 0 : static_cast<int>(std::min<long>(n, kMaxThreads));
}

int default_threads() {
  for (const char* name : {"SOFTLANE_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const int n = from_environment(name);
    if (n > 0) return n;
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::atomic<int> configured{0};
thread_local int thread_limit = 0;
thread_local bool inside = false;

// One loop, in pieces. Each thread has a range of them that is the same from call to call, while the pool and the
// number of threads are, so that what it worked on is in its cache still; when none is left there it takes them from
// the far ends of the others' ranges, which evens out how late the workers come, and what else the machine has to
// do.
class Loop {
 public:
  Loop(size_t n, size_t piece, size_t threads, const std::function<void(size_t, size_t)>& body)
      : n_(n), piece_(piece), body_(body), ranges_(threads) {
    const size_t pieces = (n + piece - 1) / piece;
    for (size_t t = 0; t < threads; ++t) {
      ranges_[t].pieces = pack(pieces * t / threads, pieces * (t + 1) / threads);
    }
  }

  // Works on the loop: the caller as worker 0.
  void run(size_t worker) {
    const DefaultFpEnvironment environment;
    inside = true;
    const size_t threads = ranges_.size();
    const size_t own = worker == 0 ? 0 : 1 + (worker - 1) % (threads - 1);
    for (size_t t = 0; t < threads; ++t) {
      size_t at;
      while (take(ranges_[(own + t) % threads], t == 0, &at)) {
        try {
          body_(at * piece_, std::min(n_, (at + 1) * piece_));
        } catch (...) {
          const std::lock_guard<std::mutex> lock(error_mutex_);
          if (!failed_.exchange(true)) error = std::current_exception();
        }
      }
    }
    inside = false;
  }

  std::exception_ptr error;  // the first one

 private:
  struct alignas(64) Range {
    std::atomic<uint64_t> pieces;  // [begin, end), which are left
  };
  static uint64_t pack(uint64_t begin, uint64_t end) { return begin << 32 | end; }

  // Takes a piece from the front of a thread's own range, or from the back of another's, if one is left.
  bool take(Range& range, bool own, size_t* at) const {
    uint64_t left = range.pieces.load();
    for (;;) {
      const uint64_t begin = left >> 32, end = left & 0xffffffff;
      if (begin == end || failed_.load(std::memory_order_relaxed)) return false;
      *at = static_cast<size_t>(own ? begin : end - 1);
      const uint64_t rest = own ? pack(begin + 1, end) : pack(begin, end - 1);
      if (range.pieces.compare_exchange_weak(left, rest)) return true;
    }
  }

  const size_t n_, piece_;
  const std::function<void(size_t, size_t)>& body_;
  std::vector<Range> ranges_;
  std::atomic<bool> failed_{false};
  std::mutex error_mutex_;
};

// The workers sleep when there is no loop for a while. A pool is never destroyed: its threads may outlive the
// statics of the process, and a forked child, which has none of the threads, just makes a new one.
class Pool {
 public:
  // Runs the loop on the caller and on up to `helpers` workers.
  void run(Loop& loop, int helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      helpers = std::min(helpers, workers_);
      place();
      loop_ = &loop;
      wanted_ = helpers;
      running_ = 0;
    }
    if (helpers == 1) {
      wake_.notify_one();
    } else if (helpers > 1) {
      wake_.notify_all();
    }
    loop.run(0);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      wanted_ = 0;  // whoever has not started by now is not needed
    }
    look_for([this] { return running_ == 0; }, [this] { return apart_ && processor() == caller_; });
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
    loop_ = nullptr;
  }

 private:
  void grow(int helpers) {
    while (workers_ < helpers) {
      handles_.reserve(handles_.size() + 1);  // or fail while there is no thread to lose
      try {
        std::thread worker([this, index = static_cast<size_t>(workers_) + 1] { work(index); });
        handles_.push_back(worker.native_handle());
        worker.detach();
        caller_ = -1;
      } catch (const std::system_error&) {
        return;  // the system gives no more threads: fewer will do
      }
      ++workers_;
    }
  }

  static int processor() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
  }
  // Keeps the workers off the caller's processor: Linux may wake them there again and again, where they
  // wait for the caller while others idle (measured: bench/NOTES.md).
  void place() {
#if defined(__linux__)
    const int here = processor();
    if (here == caller_ || here < 0) return;
    caller_ = here;
    apart_ = false;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return;
    CPU_CLR(static_cast<size_t>(here), &set);
    if (CPU_COUNT(&set) == 0) return;
    for (pthread_t worker : handles_) pthread_setaffinity_np(worker, sizeof(set), &set);
    apart_ = CPU_COUNT(&set) >= workers_;
#endif
  }

  void work(size_t index) {
    for (;;) {
      look_for([this] { return wanted_ > 0; }, [this] { return apart_ && processor() != caller_; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++running_;
      Loop* loop = loop_;
      lock.unlock();
      loop->run(index);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Loop* loop_ = nullptr;
  // Changed under the lock, looked at without.
  std::atomic<int> wanted_{0}, running_{0};
  int workers_ = 0;
  std::vector<std::thread::native_handle_type> handles_;
  std::atomic<int> caller_{-1};     // the processor that the workers keep off
  std::atomic<bool> apart_{false};  // the process had one for each of them beside it then
};

std::atomic<Pool*> pool{nullptr};
std::atomic<bool> busy{false};  // a loop has the pool
struct Release {
  ~Release() { busy = false; }
};
// Loops that follow each other soon: what they cost together, and when the last one ended. After kSeries, or after a
// loop with workers, it is worth having one awake. A guess: other threads' loops may come between.
constexpr size_t kSeries = 2 * kAsleepGrain;
std::atomic<size_t> series{0};
std::atomic<Clock::rep> last_end{0};

#if defined(__unix__) || defined(__APPLE__)
// The child has the pool's memory but none of its threads, and its locks in any state: forget it.
void after_fork_in_child() {
  pool.store(nullptr);
  busy.store(false);
}
const int fork_handler = pthread_atfork(nullptr, nullptr, after_fork_in_child);
#endif

}  // namespace

int get_num_threads() {
  int n = configured.load(std::memory_order_relaxed);
  if (n == 0) {
    static const int chosen = default_threads();
    n = chosen;
  }
  return thread_limit > 0 ? std::min(n, thread_limit) : n;
}

void set_num_threads(int n) { configured.store(std::max(1, std::min(n, kMaxThreads))); }

int set_thread_limit(int n) {
  const int before = thread_limit;
  thread_limit = std::max(0, n);
  return before;
}

void parallel_for(size_t n, size_t cost, size_t most,
                  const std::function<void(size_t, size_t)>& body) {
  if (n == 0) return;
  most = std::min({n, most, static_cast<size_t>(get_num_threads())});
  cost = std::max<size_t>(cost, 1);
  if (most <= 1 || n <= kThreadGrain / cost || inside) {
    body(0, n);
    return;
  }
  const Clock::time_point last{Clock::duration(last_end.load())};
  const size_t before = Clock::now() - last < kLook ? series.load() : 0;
  const auto end = [](size_t costs) {
    series = costs;
    last_end = Clock::now().time_since_epoch().count();
  };
  const size_t grain = std::max<size_t>(1, (before < kSeries ? kAsleepGrain : kThreadGrain) / cost);
  const size_t threads = std::min(most, (n + grain - 1) / grain);
  if (threads <= 1 || busy.exchange(true)) {
    body(0, n);
    end(std::min(kSeries, before + n * cost));
    return;
  }
  // Sixteen pieces a thread even things out well enough.
  const size_t piece = std::max(kPiece / cost, (n + 16 * threads - 1) / (16 * threads));
  std::exception_ptr error;
  bool ran = false;
  try {
    const Release release;
    Loop loop(n, piece, threads, body);
    Pool* current = pool.load();
    if (current == nullptr) pool.store(current = new Pool);
    current->run(loop, static_cast<int>(threads) - 1);
    error = loop.error;
    ran = true;
  } catch (const std::bad_alloc&) {
    // No memory for the loop, or for new threads, and nothing of it has begun: the caller will do.
  }
  if (!ran) body(0, n);
  end(kSeries);
  if (error) std::rethrow_exception(error);
}

}  // namespace softlane
