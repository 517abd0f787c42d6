// log2(e)/T and 1/T for the kernels, as sums of two floating-point numbers, in arithmetic that is the same everywhere.
#pragma once

#include <cmath>

#include "kernels/table.h"

namespace softlane {

inline Scale make_scale(double temperature) {
  const double log2e_hi = 0x1.71547652b82fep+0, log2e_lo = 0x1.777d0ffda0d24p-56;
  const double t = temperature;
  Scale s;
  s.k_hi = log2e_hi / t;
  s.k_lo = (std::fma(-s.k_hi, t, log2e_hi) + log2e_lo) / t;
  s.kf_hi = static_cast<float>(s.k_hi);
  s.kf_lo = static_cast<float>((s.k_hi - s.kf_hi) + s.k_lo);
  s.inv_hi = 1 / t;
  s.inv_lo = std::fma(-s.inv_hi, t, 1.0) / t;
  s.invf_hi = static_cast<float>(s.inv_hi);
  s.invf_lo = static_cast<float>((s.inv_hi - s.invf_hi) + s.inv_lo);
  s.inv_k = t * 0x1.62e42fefa39efp-1;
  s.unit = t == 1;
  return s;
}

}  // namespace softlane
