// Multi-scale deformable attention on CUDA. Nothing here waits for the device.
#pragma once

#include "problem.h"

namespace predet {
namespace ms_deform_attn {

// All addresses of `problem` but the levels' are on the device. std::invalid_argument: more levels
// or points than the kernels hold.
void forward_cuda(const Problem& problem, int device, void* stream);

// problem.grad_reference is (B, Q, H, L, reference_size): one part for each head, for the caller to
// add up. `workspace` is where the gradient of the value is added up before it is stored, zeros:
//   deterministic         int64, one for each number of the value and two more
//   16-bit storage        fp32, one for each number of the value
//   else                  null: it is added up in its own memory
void backward_cuda(const Problem& problem, int device, void* stream, void* workspace,
                   bool deterministic);

}  // namespace ms_deform_attn
}  // namespace predet
