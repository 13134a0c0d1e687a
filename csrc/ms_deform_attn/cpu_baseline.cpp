#define PREDET_ISA baseline
#include "cpu_kernel.h"

namespace predet {
namespace ms_deform_attn {

Kernels kernels_baseline(DType type) { return kernels(type); }

}  // namespace ms_deform_attn
}  // namespace predet
