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
constexpr int64_t kBoundBlocks = 64;  // of a problem: enough for a usual one
constexpr int64_t kMostBlocks = 1 << 30;  // of a grid; what is beyond goes round

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

__device__ void add_to(int64_t* count, int64_t more) {
  // The count is not negative, so adding without sign is the same.
  if (more != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(count), static_cast<unsigned long long>(more));
  }
}

// log(sum(exp(row))) by the 16 threads of half a warp, in the partial sums of cpu_kernel.h and added
// in the same order.
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
    sum += __shfl_xor_sync(0xffffffffu, sum, step, kSums);
  }
  return is_finite(most) ? most + logarithm(sum) : most;
}

__device__ float class_cost_of(const CostWeights& weights, float logit, float normalizer) {
  if (weights.softmax) return softmax_cost(logit, normalizer);
  return weights.gamma == 2.0f ? focal_cost<true>(logit, weights.alpha, weights.gamma)
                               : focal_cost<false>(logit, weights.alpha, weights.gamma);
}

// A problem's place: the kernels number those of a table image by image within a layer.
struct Place {
  int64_t layer;
  int image;        // of the table
  int64_t targets;  // how many
};

__device__ Place place_of(const Table& table, int64_t problem) {
  const int image = int(problem % table.images);
  return {problem / table.images, image, table.first[image + 1] - table.first[image]};
}

__device__ char* memory_of(const Table& table, void* workspace, const Place& place) {
  return static_cast<char*>(workspace) + place.layer * table.layer_bytes +
         table.offset[place.image];
}

// Costs and bounds of one tile of kBlock queries of one problem, by one block.
template <typename T>
__device__ void make_tile(const Match& m, const Table& table, const Place& place, int64_t tile,
                          void* workspace, Box* queries, float* normalizer) {
  const int64_t first = tile * kBlock, batch_image = table.first_image + place.image;
  const int32_t count = m.queries - first < kBlock ? int32_t(m.queries - first) : kBlock;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T* logits = static_cast<const T*>(m.logits) + place.layer * m.logits_stride.layer +
                    batch_image * m.logits_stride.image + first * m.logits_stride.query;
  const float* boxes = m.boxes + place.layer * m.boxes_stride.layer +
                       batch_image * m.boxes_stride.image + first * m.boxes_stride.query;
  if (int(threadIdx.x) < count) {
    const float* box = boxes + threadIdx.x * m.boxes_stride.query;
    queries[threadIdx.x] = box_of(box[0], box[1], box[2], box[3]);
  }
  if (m.weights.softmax) {
    for (int32_t q = 0; q < kBlock; q += kCostThreads / kSums) {
      const int32_t own = q + int32_t(threadIdx.x) / kSums;
      const int32_t i = own < count ? own : count - 1;  // again, rather than leave the shuffles
      const float result = log_sum_exp(logits + i * m.logits_stride.query, m.classes,
                                       int(threadIdx.x % kSums));
      if (threadIdx.x % kSums == 0 && own < count) normalizer[own] = result;
    }
  }
  __syncthreads();
  char* memory = memory_of(table, workspace, place);
  const Workspace<float> w(memory, place.targets, m.queries, m.copies);
  const bool bounded = place.targets * m.copies <= m.queries;
  const int64_t blocks = blocks_of(m.queries);
  float* cost = reinterpret_cast<float*>(memory + w.bytes) + first;
  int64_t bad = 0;
  for (int64_t t = warp; t < place.targets; t += kCostThreads / kWarp) {
    const int64_t batch_target = table.first[place.image] + t;
    const float* numbers = m.target_boxes + batch_target * 4;
    const Box target = box_of(numbers[0], numbers[1], numbers[2], numbers[3]);
    const int64_t k = m.target_classes[batch_target];
    const bool known = k >= 0 && k < m.classes;
    float least = infinity<float>();
    for (int32_t i = lane; i < count; i += kWarp) {
      const float logit = known ? widen(logits[i * m.logits_stride.query + k]) : not_a_number();
      const float x =
          cost_of(m.weights, class_cost_of(m.weights, logit, normalizer[i]), queries[i], target);
      cost[t * m.queries + i] = x;
      bad += is_finite(x) ? 0 : 1;
      const float y = usable(x);
      least = y < least ? y : least;
    }
    if (!bounded) continue;
    least = least_of_warp(Found<float>{least, 0}).value;
    float* bound = w.bound + t * w.bound_stride;
    if (lane == 0) bound[tile] = least;
    for (int64_t b = blocks + lane; tile == 0 && b < w.bound_stride; b += kWarp) {
      bound[b] = infinity<float>();
    }
  }
  add_to(m.bad + place.layer * m.images + batch_image, bad);
}

template <typename T>
__global__ void __launch_bounds__(kCostThreads)
    cost_kernel(const Match m, const Table table, void* workspace) {
  __shared__ Box queries[kBlock];
  __shared__ float normalizer[kBlock];
  const int64_t tiles = blocks_of(m.queries), problems = m.layers * table.images;
  for (int64_t i = blockIdx.x; i < tiles * problems; i += gridDim.x) {
    const Place place = place_of(table, i / tiles);
    if (place.targets > 0) {
      make_tile<T>(m, table, place, i % tiles, workspace, queries, normalizer);
    }
    __syncthreads();
  }
}

// Bounds of costs that are given: a warp for each block of columns of a target.
template <typename T>
__global__ void __launch_bounds__(kCostThreads)
    bound_kernel(const Assignment a, const Table table, int64_t blocks, void* workspace) {
  const ThreadGroup<kWarp> group;
  const int64_t problems = a.layers * table.images;
  for (int64_t i = blockIdx.x; i < blocks * problems; i += gridDim.x) {
    const Place place = place_of(table, i / blocks);
    if (place.targets == 0 || place.targets > a.queries) continue;
    const Workspace<T> w(memory_of(table, workspace, place), place.targets, a.queries, 1);
    const T* cost = static_cast<const T*>(a.cost) + place.layer * a.layer_stride +
                    table.first[place.image] * a.target_stride;
    const int64_t warps = blocks * (kCostThreads / kWarp);
    int64_t bad = 0;
    for (int64_t j = i % blocks * (kCostThreads / kWarp) + threadIdx.x / kWarp;
         j < place.targets * w.bound_stride; j += warps) {
      const int64_t row = j / w.bound_stride, first = j % w.bound_stride * kBlock;
      const int64_t left = a.queries - first;
      const int32_t count = left < 0 ? 0 : (left < kBlock ? int32_t(left) : kBlock);
      const T least = group.bound(cost + row * a.target_stride + first, count, bad);
      if (group.leads()) w.bound[j] = least;
    }
    add_to(a.bad + place.layer * a.images + table.first_image + place.image, bad);
  }
}

// Assigns a problem whose costs cost_kernel() has made, by one group of threads.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    match_kernel(const Match m, const Table table, void* workspace) {
  const ThreadGroup<kThreads> group;
  for (int64_t i = blockIdx.x; i < m.layers * table.images; i += gridDim.x) {
    const Place place = place_of(table, i);
    if (place.targets == 0) continue;
    char* memory = memory_of(table, workspace, place);
    const Workspace<float> w(memory, place.targets, m.queries, m.copies);
    const int64_t row = place.layer * m.total_targets + table.first[place.image];
    assign(group, w, reinterpret_cast<const float*>(memory + w.bytes), m.queries,
           int32_t(place.targets), int32_t(m.queries), m.copies,
           place.targets * m.copies <= m.queries, m.query_of_target + row * m.copies);
  }
}

// Assigns a problem whose costs are given.
template <typename T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    assign_kernel(const Assignment a, const Table table, void* workspace) {
  const ThreadGroup<kThreads> group;
  for (int64_t i = blockIdx.x; i < a.layers * table.images; i += gridDim.x) {
    const Place place = place_of(table, i);
    if (place.targets == 0) continue;
    const Workspace<T> w(memory_of(table, workspace, place), place.targets, a.queries, 1);
    const int64_t first = table.first[place.image];
    const T* cost =
        static_cast<const T*>(a.cost) + place.layer * a.layer_stride + first * a.target_stride;
    const int64_t bad =
        assign(group, w, cost, a.target_stride, int32_t(place.targets), int32_t(a.queries), 1,
               place.targets <= a.queries,
               a.query_of_target + place.layer * a.total_targets + first);
    if (group.leads()) {
      add_to(a.bad + place.layer * a.images + table.first_image + place.image, bad);
    }
  }
}

dim3 grid_of(int64_t blocks) {
  return dim3(static_cast<unsigned int>(std::max<int64_t>(1, std::min(blocks, kMostBlocks))));
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
  const int64_t problems = m.layers * table.images;
  launch("hungarian cost_kernel", cost_kernel<T>, grid_of(problems * blocks_of(m.queries)),
         dim3(kCostThreads), 0, stream, m, table, workspace);
  launch("hungarian match_kernel", many ? match_kernel<kBlockThreads> : match_kernel<kWarp>,
         grid_of(problems), dim3(many ? kBlockThreads : kWarp), 0, stream, m, table, workspace);
}

template <typename T>
void assign_images(const Assignment& a, void* workspace, cudaStream_t stream) {
  const bool many = most_slots(a, 1) >= kManySlots;
  for_tables<T>(a, 1, false, [&](const Table& table) {
    const int64_t problems = a.layers * table.images;
    launch("hungarian bound_kernel", bound_kernel<T>, grid_of(problems * kBoundBlocks),
           dim3(kCostThreads), 0, stream, a, table, kBoundBlocks, workspace);
    launch("hungarian assign_kernel",
           many ? assign_kernel<T, kBlockThreads> : assign_kernel<T, kWarp>, grid_of(problems),
           dim3(many ? kBlockThreads : kWarp), 0, stream, a, table, workspace);
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
