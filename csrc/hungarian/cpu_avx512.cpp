#define PREDET_ISA avx512
#include "cpu_kernel.h"

namespace predet {
namespace hungarian {

Kernels kernels_avx512() { return kernels(); }

}  // namespace hungarian
}  // namespace predet
