// The floating-point environment of a thread: default modes while kernels run, and what the caller had
// (rounding mode, flush-to-zero, exception flags and traps) afterwards.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#endif

namespace softlane {

class DefaultFpEnvironment {
 public:
#if defined(__x86_64__) || defined(_M_X64)
  DefaultFpEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFpEnvironment() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
  DefaultFpEnvironment() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(control_));
    __asm__ volatile("mrs %0, fpsr" : "=r"(status_));
    __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~DefaultFpEnvironment() {
    __asm__ volatile("msr fpcr, %0" : : "r"(control_));
    __asm__ volatile("msr fpsr, %0" : : "r"(status_));
  }
#else
  DefaultFpEnvironment() = default;
#endif
  DefaultFpEnvironment(const DefaultFpEnvironment&) = delete;
  DefaultFpEnvironment& operator=(const DefaultFpEnvironment&) = delete;

 private:
#if defined(__x86_64__) || defined(_M_X64)
  unsigned saved_;
#elif defined(__aarch64__)
  uint64_t control_, status_;
#endif
};

}  // namespace softlane
