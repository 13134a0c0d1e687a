#define PREDET_ISA baseline
#include "cpu_kernel.h"

namespace predet {
namespace hungarian {

Kernels kernels_baseline() { return kernels(); }

}  // namespace hungarian
}  // namespace predet
