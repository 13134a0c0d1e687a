// The CUDA kernels of multi-scale deformable attention, emulated, behind a C interface for ctypes.
#include <cuda_runtime.h>

#include <vector>

#include "../../../csrc/ms_deform_attn/cuda.cu"

using namespace predet;
using namespace predet::ms_deform_attn;

// sizes: B, S, H, C, Q, P, reference_size, L, value's and weights' dtype, deterministic
// addresses: value, reference, given, weights, output; or with grad_output in its place, then four
// gradients and the workspace
extern "C" void run(const int64_t* sizes, const int64_t* shapes, void** addresses, int backward) {
  std::vector<Level> levels;
  int32_t first = 0;
  for (int64_t l = 0; l < sizes[7]; ++l) {
    levels.push_back({int32_t(shapes[2 * l]), int32_t(shapes[2 * l + 1]), first});
    first += levels.back().height * levels.back().width;
  }
  Problem p{};
  p.batch = sizes[0];
  p.pixels = sizes[1];
  p.heads = sizes[2];
  p.channels = sizes[3];
  p.queries = sizes[4];
  p.points = sizes[5];
  p.reference_size = sizes[6];
  p.levels = sizes[7];
  p.level = levels.data();
  p.value_type = DType(sizes[8]);
  p.weights_type = DType(sizes[9]);
  p.value = addresses[0];
  p.reference = addresses[1];
  p.given = addresses[2];
  p.weights = addresses[3];
  if (!backward) {
    p.output = addresses[4];
    return forward_cuda(p, 0, nullptr);
  }
  p.grad_output = addresses[4];
  p.grad_value = addresses[5];
  p.grad_reference = addresses[6];
  p.grad_given = addresses[7];
  p.grad_weights = addresses[8];
  backward_cuda(p, 0, nullptr, addresses[9], sizes[10] != 0);
}
