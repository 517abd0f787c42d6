// Calls one kernel some times, for a tool that counts instructions: bench/instructions.py.
//   kernel_cost <isa> <kernel> <f32|f64> <rows> <elements of each> <calls>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "dispatch.h"
#include "kernels/table.h"
#include "scale.h"

namespace {

using softlane::BackwardBatch;
using softlane::Batch;
using softlane::KernelTable;
using softlane::LossBatch;

template <class T>
void run(const KernelTable& table, int storage, const std::string& kernel, size_t rows, size_t n,
         int calls) {
  std::vector<T> x(rows * n), y(rows * n), out(rows * n);
  std::vector<double> loss(rows);
  std::vector<int64_t> targets(rows, static_cast<int64_t>(n / 2));
  // Outputs as they are: equal probabilities, or their logarithms.
  const double share = 1.0 / static_cast<double>(n);
  const auto output = static_cast<T>(kernel == "log_softmax_backward" ? std::log(share) : share);
  uint32_t state = 1;
  for (size_t i = 0; i < x.size(); ++i) {
    state = state * 1664525u + 1013904223u;
    x[i] = static_cast<T>(static_cast<double>(state >> 8) * 0x1p-21 - 4);
    y[i] = output;
  }
  const auto stride = static_cast<ptrdiff_t>(n * sizeof(T));
  const softlane::Scale scale = softlane::make_scale(1);
  Batch batch{};
  batch.x = x.data();
  batch.out = out.data();
  batch.x_stride = batch.out_stride = stride;
  batch.count = rows;
  batch.n = n;
  batch.scale = scale;
  Batch sums = batch;
  sums.out = loss.data();
  BackwardBatch backward{};
  backward.grad = x.data();
  backward.y = y.data();
  backward.out = out.data();
  backward.grad_stride = backward.y_stride = backward.out_stride = stride;
  backward.count = rows;
  backward.n = n;
  backward.scale = scale;
  LossBatch losses{};
  losses.x = x.data();
  losses.x_stride = losses.grad_stride = stride;
  losses.count = rows;
  losses.n = n;
  losses.scale = scale;
  losses.targets = targets.data();
  losses.divisor = 1;
  double weight_sum = static_cast<double>(n), weight_sum_lo = 0;
  losses.weight_sum = &weight_sum;
  losses.weight_sum_lo = &weight_sum_lo;
  losses.classes = static_cast<double>(n);
  losses.loss = loss.data();
  if (kernel == "cross_entropy_with_grad") losses.grad = out.data();
  for (int i = 0; i < calls; ++i) {
    if (kernel == "softmax") {
      table.softmax_rows[storage](batch);
    } else if (kernel == "log_softmax") {
      table.log_softmax_rows[storage](batch);
    } else if (kernel == "logsumexp") {
      table.logsumexp_rows[storage](sums);
    } else if (kernel == "softmax_backward") {
      table.softmax_backward_rows[storage](backward);
    } else if (kernel == "log_softmax_backward") {
      table.log_softmax_backward_rows[storage](backward);
    } else {
      table.cross_entropy_rows[storage](losses);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr, "usage: kernel_cost <isa> <kernel> <f32|f64> <rows> <n> <calls>\n");
    return 2;
  }
  softlane::set_active(argv[1]);
  const KernelTable& table = softlane::active_table();
  const auto rows = static_cast<size_t>(std::atoll(argv[4]));
  const auto n = static_cast<size_t>(std::atoll(argv[5]));
  const int calls = std::atoi(argv[6]);
  if (std::string(argv[3]) == "f64") {
    run<double>(table, softlane::kF64, argv[2], rows, n, calls);
  } else {
    run<float>(table, softlane::kF32, argv[2], rows, n, calls);
  }
}
