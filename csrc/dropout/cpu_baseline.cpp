#define PREDET_ISA baseline
#include "cpu_kernel.h"

namespace predet {
namespace dropout {

Kernel kernel_baseline(DType type) { return kernel(type); }

}  // namespace dropout
}  // namespace predet
