// Compiled once per instruction set, with -DSOFTLANE_ISA=<isa> and that set's flags. Everything is in
// an anonymous namespace: a symbol that the linker could share with another set's object would run
// AVX-512 code on a machine without it. The only way out is the table.
#include "kernels/table.h"

#include <cstddef>
#include <cstdint>
#include <limits>

#define SOFTLANE_CAT_(a, b) a##b
#define SOFTLANE_CAT(a, b) SOFTLANE_CAT_(a, b)
#define SOFTLANE_NAME_(a) #a
#define SOFTLANE_NAME(a) SOFTLANE_NAME_(a)

// The value of SOFTLANE_IS_<isa> picks the backend.
#define SOFTLANE_IS_generic 1
#define SOFTLANE_IS_avx2 2
#define SOFTLANE_IS_avx512 3
#define SOFTLANE_IS_neon 4
#define SOFTLANE_BACKEND SOFTLANE_CAT(SOFTLANE_IS_, SOFTLANE_ISA)

#if SOFTLANE_BACKEND == SOFTLANE_IS_neon
#include <arm_neon.h>
#elif SOFTLANE_BACKEND != SOFTLANE_IS_generic
#include <immintrin.h>
#endif

namespace softlane {
namespace SOFTLANE_ISA {
namespace {

#include "kernels/constants-inl.h"
#include "kernels/pair-inl.h"
#if SOFTLANE_BACKEND == SOFTLANE_IS_avx2
#include "kernels/vec_avx2.h"
#elif SOFTLANE_BACKEND == SOFTLANE_IS_avx512
#include "kernels/vec_avx512.h"
#elif SOFTLANE_BACKEND == SOFTLANE_IS_neon
#include "kernels/vec_neon.h"
#else
#include "kernels/vec_generic.h"
#endif
#include "kernels/exp_log-inl.h"
#include "kernels/softmax-inl.h"
#include "kernels/cross_entropy-inl.h"
#include "kernels/backward-inl.h"

#define SOFTLANE_STORAGES(Kernel) {Kernel<float>, Kernel<double>, Kernel<Float16>, Kernel<BFloat16>}

const KernelTable kTable = {
    SOFTLANE_NAME(SOFTLANE_ISA),
    kHasStripes<float>,
    SOFTLANE_STORAGES(SoftmaxRows),
    SOFTLANE_STORAGES(SoftmaxCols),
    SOFTLANE_STORAGES(LogSoftmaxRows),
    SOFTLANE_STORAGES(LogSoftmaxCols),
    SOFTLANE_STORAGES(LogSumExpRows),
    SOFTLANE_STORAGES(LogSumExpCols),
    SOFTLANE_STORAGES(CrossEntropyRows),
    SOFTLANE_STORAGES(CrossEntropyCols),
    SOFTLANE_STORAGES(SoftmaxBackwardRows),
    SOFTLANE_STORAGES(SoftmaxBackwardCols),
    SOFTLANE_STORAGES(LogSoftmaxBackwardRows),
    SOFTLANE_STORAGES(LogSoftmaxBackwardCols),
    LogSumExpWeighted,
    ExpSumRows,
    LogOfSums,
    BlendArray,
    SumArray,
    FirstMaxOf,
    SoftcapArray,
    SoftcapBackwardArray,
    {ExpArray<float>, LogArray<float>, Expm1Array<float>, Log1pArray<float>},
    {ExpArray<double>, LogArray<double>, Expm1Array<double>, Log1pArray<double>},
};

}  // namespace
}  // namespace SOFTLANE_ISA
}  // namespace softlane

extern "C" const softlane::KernelTable* SOFTLANE_CAT(softlane_table_, SOFTLANE_ISA)() {
  return &softlane::SOFTLANE_ISA::kTable;
}
