#define PREDET_ISA avx2
#include "cpu_kernel.h"

namespace predet {
namespace hungarian {

Kernels kernels_avx2() { return kernels(); }

}  // namespace hungarian
}  // namespace predet
