// Dropout on the CPU, in one pass over the numbers.
#pragma once

#include "problem.h"

namespace predet {
namespace dropout {

// The same to the bit for any number of threads.
void run_cpu(const Problem& problem, int threads);

// Numbers first .. last - 1; first is a multiple of kBlock.
constexpr int64_t kBlock = 64;
using Kernel = void (*)(const Problem&, int64_t first, int64_t last);

Kernel kernel_baseline(DType type);
Kernel kernel_avx2(DType type);
Kernel kernel_avx512(DType type);

}  // namespace dropout
}  // namespace predet
