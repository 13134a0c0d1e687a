#define PREDET_ISA avx2
#include "cpu_kernel.h"

namespace predet {
namespace ms_deform_attn {

Kernels kernels_avx2(DType type) { return kernels(type); }

}  // namespace ms_deform_attn
}  // namespace predet
