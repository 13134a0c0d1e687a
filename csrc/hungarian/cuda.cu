#include "cuda.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "../common/cuda_support.h"
#include "cuda_group.h"
#include "solver.h"

namespace predet {
namespace hungarian {
namespace {

constexpr int kImages = 256;        // of one launch: their table travels with its arguments
constexpr int kCostThreads = 256;   // of the block that makes a tile of costs
constexpr int kManySlots = 512;     // from here on a problem gets a block rather than a warp
constexpr int kBlockThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kMostBlocks = 65535;  // in the second and third dimension of a grid

// Where the problems of some images lie. A problem's memory is its Workspace, then its costs.
struct Table {
  int32_t images;
  int32_t first_image;
  int32_t first[kImages + 1];  // targets
  int64_t offset[kImages];     // bytes from the layer's memory to the image's
  int64_t layer_bytes;
};

template <typename T>
int64_t problem_bytes(int64_t targets, int64_t queries, int64_t copies, bool with_costs) {
  const int64_t costs = with_costs ? (targets * queries * int64_t(sizeof(T)) + 63) / 64 * 64 : 0;
  return Workspace<T>(nullptr, targets, queries, copies).bytes + costs;
}

// Calls body(table) for the images, at most kImages at a time.
template <typename T, typename Problem, typename Body>
void for_tables(const Problem& problem, int64_t copies, bool with_costs, Body&& body) {
  int64_t layer_bytes = 0;
  for (int64_t image = 0; image < problem.images; ++image) {
    layer_bytes += problem_bytes<T>(problem.targets_of(image), problem.queries, copies, with_costs);
  }
  int64_t offset = 0;
  for (int64_t from = 0; from < problem.images; from += kImages) {
    Table table{};
    table.images = int32_t(std::min<int64_t>(kImages, problem.images - from));
    table.first_image = int32_t(from);
    table.layer_bytes = layer_bytes;
    for (int32_t i = 0; i < table.images; ++i) {
      table.first[i] = problem.first[from + i];
      table.first[i + 1] = problem.first[from + i + 1];
      table.offset[i] = offset;
      offset += problem_bytes<T>(problem.targets_of(from + i), problem.queries, copies, with_costs);
    }
    body(table);
  }
}

template <typename T, typename Problem>
int64_t all_bytes(const Problem& problem, int64_t copies, bool with_costs) {
  int64_t bytes = 0;
  for (int64_t image = 0; image < problem.images; ++image) {
    bytes += problem_bytes<T>(problem.targets_of(image), problem.queries, copies, with_costs);
  }
  return bytes * problem.layers;
}

__device__ char* memory_of(const Table& table, void* workspace, int64_t layer, int image) {
  return static_cast<char*>(workspace) + layer * table.layer_bytes + table.offset[image];
}

__device__ void add_to(int64_t* count, int64_t more) {
  // The count is not negative, so adding without sign is the same.
  if (more != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(count), static_cast<unsigned long long>(more));
  }
}

// log(sum(exp(row))) by the 16 threads of half a warp, in the partial sums of cpu_kernel.h. The
// result is that of the half's first thread.
template <typename T>
__device__ float log_sum_exp(const T* row, int64_t classes, int lane) {
  static_assert(kSums == 16, "half a warp");
  const int64_t steps = (classes + kSums - 1) / kSums * kSums;
  float most = -infinity<float>();
  for (int64_t k = lane; k < classes; k += kSums) {
    const float x = widen(row[k]);
    most = (x > most) | (x != x) ? x : most;
  }
  for (int step = kSums / 2; step > 0; step /= 2) {
    const float x = __shfl_xor_sync(0xffffffffu, most, step, kSums);
    most = (x > most) | (x != x) ? x : most;
  }
  float sum = 0;
  for (int64_t k = lane; k < steps; k += kSums) {
    sum += exponential((k < classes ? widen(row[k]) : -infinity<float>()) - most);
  }
  for (int step = kSums / 2; step > 0; step /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, step, kSums);
  }
  return is_finite(most) ? most + logarithm(sum) : most;
}

__device__ float class_cost_of(const CostWeights& weights, float logit, float normalizer) {
  if (weights.softmax) return softmax_cost(logit, normalizer);
  return weights.gamma == 2.0f ? focal_cost<true>(logit, weights.alpha, weights.gamma)
                               : focal_cost<false>(logit, weights.alpha, weights.gamma);
}

// Costs and bounds of one tile of kBlock queries of one image: a block each.
template <typename T>
__global__ void __launch_bounds__(kCostThreads)
    cost_kernel(const __grid_constant__ Match m, const __grid_constant__ Table table,
                void* workspace) {
  __shared__ Box queries[kBlock];
  __shared__ float normalizer[kBlock];
  const int image = blockIdx.z;
  const int32_t targets = table.first[image + 1] - table.first[image];
  if (targets == 0) return;
  const int64_t first = int64_t(blockIdx.x) * kBlock;
  const int32_t count = m.queries - first < kBlock ? int32_t(m.queries - first) : kBlock;
  const bool bounded = int64_t(targets) * m.copies <= m.queries;
  const int64_t batch_image = table.first_image + image;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t layer = blockIdx.y; layer < m.layers; layer += gridDim.y) {
    const T* logits = static_cast<const T*>(m.logits) + layer * m.logits_stride.layer +
                      batch_image * m.logits_stride.image + first * m.logits_stride.query;
    const float* boxes = m.boxes + layer * m.boxes_stride.layer +
                         batch_image * m.boxes_stride.image + first * m.boxes_stride.query;
    if (threadIdx.x < count) {
      const float* box = boxes + threadIdx.x * m.boxes_stride.query;
      queries[threadIdx.x] = box_of(box[0], box[1], box[2], box[3]);
    }
    if (m.weights.softmax) {
      // The last halves of warps do a query again rather than leave the shuffles.
      for (int32_t q = 0; q < kBlock; q += kCostThreads / kSums) {
        const int32_t own = q + int32_t(threadIdx.x) / kSums;
        const int32_t i = own < count ? own : count - 1;
        const float result = log_sum_exp(logits + i * m.logits_stride.query, m.classes,
                                         int(threadIdx.x % kSums));
        if (threadIdx.x % kSums == 0 && own < count) normalizer[own] = result;
      }
    }
    __syncthreads();
    char* memory = memory_of(table, workspace, layer, image);
    const Workspace<float> w(memory, targets, m.queries, m.copies);
    float* cost = reinterpret_cast<float*>(memory + w.bytes) + first;
    int64_t bad = 0;
    for (int32_t t = warp; t < targets; t += kCostThreads / kWarp) {
      const float* corner = m.target_boxes + int64_t(table.first[image] + t) * 4;
      const Box target = box_of(corner[0], corner[1], corner[2], corner[3]);
      const int64_t k = m.target_classes[table.first[image] + t];
      const bool known = k >= 0 && k < m.classes;
      float least = infinity<float>();
      for (int32_t i = lane; i < count; i += kWarp) {
        const float logit = known ? widen(logits[i * m.logits_stride.query + k]) : not_a_number();
        const float x = cost_of(m.weights, class_cost_of(m.weights, logit, normalizer[i]),
                                queries[i], target);
        cost[t * m.queries + i] = x;
        bad += is_finite(x) ? 0 : 1;
        const float y = usable(x);
        least = y < least ? y : least;
      }
      if (bounded) {
        least = least_of_warp(Found<float>{least, 0}).value;
        if (lane == 0) w.bound[t * w.bound_stride + blockIdx.x] = least;
        for (int64_t b = gridDim.x + lane; blockIdx.x == 0 && b < w.bound_stride; b += kWarp) {
          w.bound[t * w.bound_stride + b] = infinity<float>();
        }
      }
    }
    add_to(m.bad + layer * m.images + batch_image, bad);
    __syncthreads();
  }
}

// Bounds of costs that are given: a warp for each block of columns of a target.
template <typename T>
__global__ void __launch_bounds__(kCostThreads)
    bound_kernel(const __grid_constant__ Assignment a, const __grid_constant__ Table table,
                 void* workspace) {
  const int image = blockIdx.z;
  const int32_t targets = table.first[image + 1] - table.first[image];
  if (targets == 0 || targets > a.queries) return;
  const ThreadGroup<kWarp> group;
  const int64_t warps = int64_t(gridDim.x) * (kCostThreads / kWarp);
  const int64_t own = int64_t(blockIdx.x) * (kCostThreads / kWarp) + threadIdx.x / kWarp;
  for (int64_t layer = blockIdx.y; layer < a.layers; layer += gridDim.y) {
    const Workspace<T> w(memory_of(table, workspace, layer, image), targets, a.queries, 1);
    const T* cost = static_cast<const T*>(a.cost) + layer * a.layer_stride +
                    table.first[image] * a.target_stride;
    int64_t bad = 0;
    for (int64_t i = own; i < targets * w.bound_stride; i += warps) {
      const int64_t row = i / w.bound_stride, first = i % w.bound_stride * kBlock;
      const int64_t left = a.queries - first;
      const int32_t count = left < 0 ? 0 : (left < kBlock ? int32_t(left) : kBlock);
      const T least = group.bound(cost + row * a.target_stride + first, count, bad);
      if (group.leads()) w.bound[i] = least;
    }
    add_to(a.bad + layer * a.images + table.first_image + image, bad);
  }
}

// Assigns one problem a group of threads; its costs lie behind its workspace.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    match_kernel(const __grid_constant__ Match m, const __grid_constant__ Table table,
                 void* workspace) {
  const int image = blockIdx.x;
  const int32_t targets = table.first[image + 1] - table.first[image];
  if (targets == 0) return;
  const bool bounded = int64_t(targets) * m.copies <= m.queries;
  for (int64_t layer = blockIdx.y; layer < m.layers; layer += gridDim.y) {
    char* memory = memory_of(table, workspace, layer, image);
    const Workspace<float> w(memory, targets, m.queries, m.copies);
    const int64_t row = layer * m.total_targets + table.first[image];
    assign(ThreadGroup<kThreads>(), w, reinterpret_cast<const float*>(memory + w.bytes), m.queries,
           targets, int32_t(m.queries), m.copies, bounded, m.query_of_target + row * m.copies);
  }
}

template <typename T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    assign_kernel(const __grid_constant__ Assignment a, const __grid_constant__ Table table,
                  void* workspace) {
  const int image = blockIdx.x;
  const int32_t targets = table.first[image + 1] - table.first[image];
  if (targets == 0) return;
  for (int64_t layer = blockIdx.y; layer < a.layers; layer += gridDim.y) {
    const Workspace<T> w(memory_of(table, workspace, layer, image), targets, a.queries, 1);
    const T* cost = static_cast<const T*>(a.cost) + layer * a.layer_stride +
                    table.first[image] * a.target_stride;
    const int64_t bad =
        assign(ThreadGroup<kThreads>(), w, cost, a.target_stride, targets, int32_t(a.queries), 1,
               targets <= a.queries, a.query_of_target + layer * a.total_targets + table.first[image]);
    if (threadIdx.x == 0) add_to(a.bad + layer * a.images + table.first_image + image, bad);
  }
}

unsigned int grid_size(int64_t wanted) {
  return static_cast<unsigned int>(std::max<int64_t>(1, std::min(wanted, kMostBlocks)));
}

template <typename Problem>
int64_t most_slots(const Problem& problem, int64_t copies) {
  int64_t most = 0;
  for (int64_t image = 0; image < problem.images; ++image) {
    most = std::max(most, problem.targets_of(image) * copies);
  }
  return std::min(most, problem.queries);
}

template <typename T>
void match_images(const Match& m, const Table& table, void* workspace, bool many,
                  cudaStream_t stream) {
  const int64_t tiles = blocks_of(m.queries);
  const unsigned int layers = grid_size(m.layers), images = table.images;
  if (tiles > 0) {
    cost_kernel<T><<<dim3(unsigned(tiles), layers, images), kCostThreads, 0, stream>>>(m, table,
                                                                                       workspace);
    check_launch("hungarian cost_kernel");
  }
  const dim3 grid(images, layers);
  if (many) {
    match_kernel<kBlockThreads><<<grid, kBlockThreads, 0, stream>>>(m, table, workspace);
  } else {
    match_kernel<kWarp><<<grid, kWarp, 0, stream>>>(m, table, workspace);
  }
  check_launch("hungarian match_kernel");
}

template <typename T>
void assign_images(const Assignment& a, void* workspace, cudaStream_t stream) {
  const bool many = most_slots(a, 1) >= kManySlots;
  for_tables<T>(a, 1, false, [&](const Table& table) {
    const unsigned int layers = grid_size(a.layers), images = table.images;
    // Blocks enough for a usual image; larger ones go round.
    bound_kernel<T><<<dim3(64, layers, images), kCostThreads, 0, stream>>>(a, table, workspace);
    check_launch("hungarian bound_kernel");
    const dim3 grid(images, layers);
    if (many) {
      assign_kernel<T, kBlockThreads><<<grid, kBlockThreads, 0, stream>>>(a, table, workspace);
    } else {
      assign_kernel<T, kWarp><<<grid, kWarp, 0, stream>>>(a, table, workspace);
    }
    check_launch("hungarian assign_kernel");
  });
}

}  // namespace

int64_t match_cuda_bytes(const Match& match) { return all_bytes<float>(match, match.copies, true); }

int64_t assign_cuda_bytes(const Assignment& assignment) {
  return assignment.cost_type == DType::float64 ? all_bytes<double>(assignment, 1, false)
                                                : all_bytes<float>(assignment, 1, false);
}

void match_cuda(const Match& match, void* workspace, int device, void* stream_address) {
  const DeviceGuard guard(device);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
  check_cuda(cudaMemsetAsync(match.bad, 0, sizeof(int64_t) * match.layers * match.images, stream),
             "hungarian memset");
  if (match.layers == 0 || match.first[match.images] == 0) return;
  const bool many = most_slots(match, match.copies) >= kManySlots;
  for_tables<float>(match, match.copies, true, [&](const Table& table) {
    switch (match.logits_type) {
      case DType::bfloat16: return match_images<BFloat16>(match, table, workspace, many, stream);
      case DType::float16: return match_images<Half>(match, table, workspace, many, stream);
      default: return match_images<float>(match, table, workspace, many, stream);
    }
  });
}

void assign_cuda(const Assignment& assignment, void* workspace, int device, void* stream_address) {
  const DeviceGuard guard(device);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
  check_cuda(cudaMemsetAsync(assignment.bad, 0,
                             sizeof(int64_t) * assignment.layers * assignment.images, stream),
             "hungarian memset");
  if (assignment.layers == 0 || assignment.first[assignment.images] == 0) return;
  if (assignment.cost_type == DType::float64) {
    assign_images<double>(assignment, workspace, stream);
  } else {
    assign_images<float>(assignment, workspace, stream);
  }
}

}  // namespace hungarian
}  // namespace predet
