// The CUDA kernels of matching, emulated, behind a C interface for ctypes.
#include <cuda_runtime.h>

// Blocks run one after the other, and all threads of a block share what is static.
#define __shared__ static
inline void __syncwarp() { EmulatedBlock::current()->wait(); }

#include <vector>

#include "../../../csrc/hungarian/cuda.cu"

using namespace predet;
using namespace predet::hungarian;

namespace {

std::vector<int32_t> starts_of(const int64_t* counts, int64_t images) {
  std::vector<int32_t> first{0};
  for (int64_t image = 0; image < images; ++image) {
    first.push_back(first.back() + int32_t(counts[image]));
  }
  return first;
}

// What nobody has written must not look right by chance.
std::vector<char> workspace_of(int64_t bytes) { return std::vector<char>(bytes + 64, char(0xff)); }

void* aligned(std::vector<char>& memory) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (64 - address % 64) % 64;
}

}  // namespace

// sizes: L, B, Q, K, copies, logits' dtype, softmax. weights: as of predet._C.hungarian_match
// addresses: logits, boxes, target classes, target boxes, query_of_target, bad; all dense
extern "C" void run_match(const int64_t* sizes, const int64_t* counts, const float* weights,
                          void** addresses) {
  const std::vector<int32_t> first = starts_of(counts, sizes[1]);
  Match m{};
  m.layers = sizes[0];
  m.images = sizes[1];
  m.queries = sizes[2];
  m.classes = sizes[3];
  m.copies = int32_t(sizes[4]);
  m.first = first.data();
  m.total_targets = first.back();
  m.logits_type = DType(sizes[5]);
  m.logits = addresses[0];
  m.logits_stride = {m.images * m.queries * m.classes, m.queries * m.classes, m.classes};
  m.boxes = static_cast<const float*>(addresses[1]);
  m.boxes_stride = {m.images * m.queries * 4, m.queries * 4, 4};
  m.target_classes = static_cast<const int64_t*>(addresses[2]);
  m.target_boxes = static_cast<const float*>(addresses[3]);
  m.weights = {weights[0], weights[1], weights[2], weights[3], weights[4], sizes[6] != 0};
  m.query_of_target = static_cast<int64_t*>(addresses[4]);
  m.bad = static_cast<int64_t*>(addresses[5]);
  std::vector<char> memory = workspace_of(match_cuda_bytes(m));
  match_cuda(m, aligned(memory), 0, nullptr);
}

// sizes: L, B, Q, cost's dtype. addresses: cost, query_of_target, bad; all dense
extern "C" void run_assign(const int64_t* sizes, const int64_t* counts, void** addresses) {
  const std::vector<int32_t> first = starts_of(counts, sizes[1]);
  Assignment a{};
  a.layers = sizes[0];
  a.images = sizes[1];
  a.queries = sizes[2];
  a.first = first.data();
  a.total_targets = first.back();
  a.cost_type = DType(sizes[3]);
  a.cost = addresses[0];
  a.layer_stride = int64_t(first.back()) * a.queries;
  a.target_stride = a.queries;
  a.query_of_target = static_cast<int64_t*>(addresses[1]);
  a.bad = static_cast<int64_t*>(addresses[2]);
  std::vector<char> memory = workspace_of(assign_cuda_bytes(a));
  assign_cuda(a, aligned(memory), 0, nullptr);
}
