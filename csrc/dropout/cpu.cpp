#include "cpu.h"

#include <algorithm>

#include "../common/cpu_features.h"
#include "../common/parallel.h"

namespace predet {
namespace dropout {
namespace {

// Long enough to be worth handing out.
constexpr int64_t kNumbersOfTask = 256 * kBlock;

Kernel choose_kernel(DType type) {
  switch (instruction_set()) {
#if defined(PREDET_WITH_AVX512)
    case InstructionSet::avx512: return kernel_avx512(type);
#endif
#if defined(PREDET_WITH_AVX2)
    case InstructionSet::avx2: return kernel_avx2(type);
#endif
    default: return kernel_baseline(type);
  }
}

}  // namespace

void run_cpu(const Problem& problem, int threads) {
  const Kernel kernel = choose_kernel(problem.type);
  const int64_t tasks = (problem.count + kNumbersOfTask - 1) / kNumbersOfTask;
  parallel_for(tasks, threads, [&](int64_t task, int) {
    const int64_t first = task * kNumbersOfTask;
    kernel(problem, first, std::min(problem.count, first + kNumbersOfTask));
  });
}

}  // namespace dropout
}  // namespace predet
