// A small pool of threads for loops over rows.
#pragma once

#include <cstddef>
#include <functional>

namespace softlane {

// The number of threads a call may use: set_num_threads, else SOFTLANE_NUM_THREADS, else
// OMP_NUM_THREADS, else the CPUs this process may run on. The calling thread's limit caps it.
int get_num_threads();
void set_num_threads(int n);
// The limit of the calling thread (0: none); returns the one before.
int set_thread_limit(int n);

// What is worth a thread that is awake, in elements of a long row of floats (measured: bench/NOTES.md).
constexpr size_t kThreadGrain = 131072;

// Calls body(begin, end) for pieces that make up [0, n), each index of which costs as much as `cost` elements of a long
// row of floats: from up to `most` threads if that is enough for them (where a loop has just ended the workers are
// awake, and less is enough). A piece costs some 8192 at least. A nested call, one made while another thread's
// loop is running, and one that there is no memory for, runs serially. It throws nothing but the first exception of a
// body, after all have stopped.
void parallel_for(size_t n, size_t cost, size_t most,
                  const std::function<void(size_t, size_t)>& body);

}  // namespace softlane
