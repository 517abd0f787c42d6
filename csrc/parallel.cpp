#include "parallel.h"

#include "fpenv.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace softlane {
namespace {

constexpr int kMaxThreads = 1024;

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

// One loop: pieces are handed out by a counter, so a slow thread takes fewer.
struct Loop {
  size_t n;
  size_t piece;
  const std::function<void(size_t, size_t)>* body;
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  std::mutex error_mutex;

  void run() {
    const DefaultFpEnvironment environment;
    inside = true;
    while (!failed.load(std::memory_order_relaxed)) {
      const size_t begin = next.fetch_add(piece);
      if (begin >= n) break;
      try {
        (*body)(begin, std::min(n, begin + piece));
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
    inside = false;
  }
};

// The workers sleep between loops. A pool is never destroyed: its threads may outlive the statics of
// the process, and a forked child, which has none of the threads, just makes a new one.
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
    loop.run();
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;  // whoever has not started by now is not needed
    // The last pieces are short: to be woken takes longer than to look again for a while.
    for (int i = 0; i < kLooks && running_ != 0; ++i) {
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
    }
    done_.wait(lock, [this] { return running_ == 0; });
    loop_ = nullptr;
  }

 private:
  static constexpr int kLooks = 100;

  void grow(int helpers) {
    while (workers_ < helpers) {
      handles_.reserve(handles_.size() + 1);  // or fail while there is no thread to lose
      try {
        std::thread worker([this] { work(); });
        handles_.push_back(worker.native_handle());
        worker.detach();
        caller_ = -1;
      } catch (const std::system_error&) {
        return;  // the system gives no more threads: fewer will do
      }
      ++workers_;
    }
  }

  // Keeps the workers off the caller's processor: Linux may wake them there again and again, where they
  // wait for the caller while others idle (measured: bench/NOTES.md).
  void place() {
#if defined(__linux__)
    const int processor = sched_getcpu();
    if (processor == caller_ || processor < 0) return;
    caller_ = processor;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return;
    CPU_CLR(static_cast<size_t>(processor), &set);
    if (CPU_COUNT(&set) == 0) return;
    for (pthread_t worker : handles_) pthread_setaffinity_np(worker, sizeof(set), &set);
#endif
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++running_;
      Loop* loop = loop_;
      lock.unlock();
      loop->run();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Loop* loop_ = nullptr;
  int workers_ = 0, wanted_ = 0, running_ = 0;
  std::vector<std::thread::native_handle_type> handles_;
  int caller_ = -1;  // the processor that the workers keep off
};

std::atomic<Pool*> pool{nullptr};
std::atomic<bool> busy{false};

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

void parallel_for(size_t n, size_t grain, const std::function<void(size_t, size_t)>& body) {
  if (n == 0) return;
  grain = std::max<size_t>(grain, 1);
  if (n <= grain || inside) {
    body(0, n);
    return;
  }
  const size_t threads = std::min(static_cast<size_t>(get_num_threads()), (n + grain - 1) / grain);
  if (threads <= 1 || busy.exchange(true)) {
    body(0, n);
    return;
  }
  Loop loop;
  loop.n = n;
  // Sixteen pieces a thread even out how late the workers come, and what else the machine has to do.
  loop.piece = std::max(grain / 16, (n + 16 * threads - 1) / (16 * threads));
  loop.body = &body;
  try {
    Pool* current = pool.load();
    if (current == nullptr) pool.store(current = new Pool);
    current->run(loop, static_cast<int>(threads) - 1);
  } catch (...) {
    busy.store(false);
    throw;
  }
  busy.store(false);
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace softlane
