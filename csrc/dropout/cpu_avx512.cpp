#define PREDET_ISA avx512
#include "cpu_kernel.h"

namespace predet {
namespace dropout {

Kernel kernel_avx512(DType type) { return kernel(type); }

}  // namespace dropout
}  // namespace predet
