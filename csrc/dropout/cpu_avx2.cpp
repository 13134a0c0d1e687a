#define PREDET_ISA avx2
#include "cpu_kernel.h"

namespace predet {
namespace dropout {

Kernel kernel_avx2(DType type) { return kernel(type); }

}  // namespace dropout
}  // namespace predet
