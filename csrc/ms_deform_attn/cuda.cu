// A block takes some rows: a row is one head of one query. Its threads first stage the points of
// these rows in shared memory, one thread a point; then a group of threads takes each row and works
// through the pixels of its points, each thread some channels, 16 bytes at a time where it can.
#include "cuda.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "../common/cuda_support.h"
#include "fixed_point.h"
#include "sampling.h"

namespace predet {
namespace ms_deform_attn {
namespace {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int kMostLevels = 16;
constexpr int kMostPoints = 256;  // of a head
constexpr int64_t kSharedBytes = 40 * 1024;

// What a kernel gets by value. The table of levels in `problem` is in host memory: not for kernels.
struct Launch {
  Problem problem;
  Level level[kMostLevels];
  int64_t rows;
  int rows_of_block;
  int group;  // threads of a row, a power of two up to a warp
  // Where the gradient of the value is added up: one or the other.
  unsigned long long* fixed_sums;  // followed by the bits of the largest gradient and weight
  void* sums;                      // in the arithmetic type
};

template <typename A>
struct alignas(16) Pixels {
  int32_t pixel[4];  // among the S; the first is -1 if the point is outside
  A share[4];        // what each counts in the output: weight included
};

// The backward pass needs more of a point: its coordinates in pixels, and the products of the
// output's gradient with its pixels, which then make room for the point's own gradient.
template <typename A>
struct alignas(16) Point {
  A x, y, weight;
  int32_t level;
};
template <typename A>
struct alignas(16) Products {
  A number[4];
};

// Numbers that are loaded and stored together.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Packet {
  T number[kCount];
};

// The block's shared memory: what lies where, for `count` points.
template <typename A>
struct Stage {
  Pixels<A>* pixels;
  Products<A>* products;  // while staging: two numbers a point; then for the backward pass only
  Point<A>* points;       // backward pass only

  __device__ Stage(unsigned char* memory, int count)
      : pixels(reinterpret_cast<Pixels<A>*>(memory)),
        products(reinterpret_cast<Products<A>*>(pixels + count)),
        points(reinterpret_cast<Point<A>*>(products + count)) {}

  static int64_t bytes_of_point() { return sizeof(Pixels<A>) + sizeof(Products<A>) + sizeof(Point<A>); }
};

template <typename A, typename T>
__device__ A load_weight(const Problem& p, int64_t i) {
  if (p.weights_type == p.value_type) return A(widen(static_cast<const T*>(p.weights)[i]));
  return static_cast<const A*>(p.weights)[i];
}

template <typename A>
struct Placement {
  A base_x, base_y, scale_x, scale_y;
};

// The table in sampling.h, for the points of level l.
template <typename A>
__device__ Placement<A> place(const Problem& p, const Level& level, int64_t row, int l) {
  const A width = A(level.width), height = A(level.height);
  if (p.reference_size == 0) return {A(-0.5), A(-0.5), width, height};
  const int64_t image_query = row / p.heads;
  const A* reference =
      static_cast<const A*>(p.reference) + (image_query * p.levels + l) * p.reference_size;
  Placement<A> at{base_of(reference[0], width), base_of(reference[1], height), A(1), A(1)};
  if (p.reference_size == 4) {
    at.scale_x = scale_of(reference[2], width, p.points);
    at.scale_y = scale_of(reference[3], height, p.points);
  }
  return at;
}

template <typename A>
__device__ Pixels<A> pixels_of(const Level& level, A x, A y, A weight) {
  const Span<A> across = span_of(x, level.width), down = span_of(y, level.height);
  const A top = weight * down.low_share, bottom = weight * down.high_share;
  const int32_t above = level.first_pixel + down.low * level.width;
  const int32_t below = level.first_pixel + down.high * level.width;
  Pixels<A> found{{above + across.low, above + across.high, below + across.low, below + across.high},
                  {top * across.low_share, top * across.high_share, bottom * across.low_share,
                   bottom * across.high_share}};
  if (!(across.inside & down.inside)) found.pixel[0] = -1;
  return found;
}

// number[kTo] of each point = exp(number[kFrom] - the highest of its row)
template <typename A, int kFrom, int kTo>
__device__ void exponentials(Products<A>* products, int count, int points) {
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const Products<A>* own = products + i / points * points;
    A highest = own[0].number[kFrom];
    for (int k = 1; k < points; ++k) {
      highest = own[k].number[kFrom] > highest ? own[k].number[kFrom] : highest;
    }
    products[i].number[kTo] = exponential(products[i].number[kFrom] - highest);
  }
}

// Stages the points of `rows` rows. Ends with all threads of the block seeing all of it.
template <typename A, typename T, bool kBackward>
__device__ void stage_points(const Launch& launch, int64_t first_row, int rows,
                             const Stage<A>& stage) {
  const Problem& p = launch.problem;
  const int points = int(p.points_of_head()), count = rows * points;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    stage.products[i].number[0] = load_weight<A, T>(p, first_row * points + i);
  }
  __syncthreads();
  const bool fused = p.reference_size > 0;
  if (fused) exponentials<A, 0, 1>(stage.products, count, points);
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) {
    A weight = stage.products[i].number[0];
    if (fused) {
      const Products<A>* own = stage.products + i / points * points;
      A sum = A(0);
      for (int k = 0; k < points; ++k) sum += own[k].number[1];
      weight = stage.products[i].number[1] / sum;
    }
    const int64_t row = first_row + i / points;
    const int l = int(i % points / p.points);
    const Placement<A> at = place<A>(p, launch.level[l], row, l);
    const A* given = static_cast<const A*>(p.given) + 2 * (first_row * points + i);
    const A x = at.base_x + at.scale_x * given[0], y = at.base_y + at.scale_y * given[1];
    stage.pixels[i] = pixels_of(launch.level[l], x, y, weight);
    if (kBackward) stage.points[i] = {x, y, weight, l};
  }
  __syncthreads();
}

// Where the channels of a row's pixel 0 begin in the value.
__device__ int64_t first_pixel_of(const Problem& p, int64_t row) {
  const int64_t image = row / (p.queries * p.heads), head = row % p.heads;
  return (image * p.pixels * p.heads + head) * p.channels;
}

template <typename A, typename T, int kVec>
__global__ void __launch_bounds__(kThreads) forward_kernel(Launch launch) {
  PREDET_SHARED_MEMORY(memory);
  const Problem& p = launch.problem;
  const int points = int(p.points_of_head());
  const int64_t first_row = int64_t(blockIdx.x) * launch.rows_of_block;
  const int64_t left = launch.rows - first_row;
  const int rows = left < launch.rows_of_block ? int(left) : launch.rows_of_block;
  const Stage<A> stage(memory, launch.rows_of_block * points);
  stage_points<A, T, false>(launch, first_row, rows, stage);

  using Channels = Packet<T, kVec>;
  const int own = threadIdx.x / launch.group;
  if (own >= rows) return;
  const int64_t row = first_row + own, stride = p.heads * p.channels;
  const Pixels<A>* pixels = stage.pixels + own * points;
  for (int64_t c = int64_t(threadIdx.x % launch.group) * kVec; c < p.channels;
       c += int64_t(launch.group) * kVec) {
    const T* value = static_cast<const T*>(p.value) + first_pixel_of(p, row) + c;
    A sum[kVec] = {};
    for (int k = 0; k < points; ++k) {
      const Pixels<A> at = pixels[k];
      if (at.pixel[0] < 0) continue;
      Channels pixel[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        pixel[n] = *reinterpret_cast<const Channels*>(value + at.pixel[n] * stride);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int j = 0; j < kVec; ++j) sum[j] += at.share[n] * A(widen(pixel[n].number[j]));
      }
    }
    Channels result;
#pragma unroll
    for (int j = 0; j < kVec; ++j) narrow(sum[j], result.number[j]);
    *reinterpret_cast<Channels*>(static_cast<T*>(p.output) + row * p.channels + c) = result;
  }
}

// Adds kVec terms to the gradient of the value, from number `first` on.
template <typename A, int kVec>
__device__ void add_terms(const Launch& launch, int64_t first, const A (&term)[kVec],
                          double units_in_one) {
  if (launch.fixed_sums != nullptr) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const int64_t fixed = to_fixed_point(double(term[j]), units_in_one);
      atomicAdd(launch.fixed_sums + first + j, static_cast<unsigned long long>(fixed));
    }
    return;
  }
  A* sums = static_cast<A*>(launch.sums) + first;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010
  constexpr bool kFours = sizeof(A) == 4 && kVec % 4 == 0;
#else
  constexpr bool kFours = false;
#endif
  if constexpr (kFours) {
#pragma unroll
    for (int j = 0; j < kVec; j += 4) {
      atomicAdd(reinterpret_cast<float4*>(sums + j),
                make_float4(term[j], term[j + 1], term[j + 2], term[j + 3]));
    }
  } else {
#pragma unroll
    for (int j = 0; j < kVec; ++j) atomicAdd(sums + j, term[j]);
  }
}

__device__ double unit_of(const Launch& launch) {
  const Problem& p = launch.problem;
  if (launch.fixed_sums == nullptr) return 1.0;
  const auto* highest = reinterpret_cast<const double*>(
      launch.fixed_sums + p.batch * p.pixels * p.heads * p.channels);
  const double weight = p.reference_size > 0 ? 1.0 : highest[1];
  return fixed_point_unit(highest[0] * weight, p.queries * p.points);
}

// For each point: products with its pixels, into shared memory, and what its pixels get.
template <typename A, typename T, int kVec>
__device__ void work_through_pixels(const Launch& launch, int64_t first_row, int rows,
                                    const Stage<A>& stage) {
  using Channels = Packet<T, kVec>;
  const Problem& p = launch.problem;
  const int points = int(p.points_of_head());
  const int own = threadIdx.x / launch.group, member = threadIdx.x % launch.group;
  // Threads without a row take part: the sums over a group are made by whole warps.
  const bool active = own < rows;
  const int64_t row = first_row + (active ? own : 0), stride = p.heads * p.channels;
  const int64_t start = first_pixel_of(p, row);
  const double units_in_one = 1.0 / unit_of(launch);
  const bool scatter = launch.fixed_sums != nullptr || launch.sums != nullptr;
  for (int k = 0; k < points; ++k) {
    const Pixels<A> at = stage.pixels[(active ? own : 0) * points + k];
    const bool inside = active && at.pixel[0] >= 0;
    A product[4] = {};
    for (int64_t c = int64_t(member) * kVec; inside && c < p.channels;
         c += int64_t(launch.group) * kVec) {
      const auto gradient = *reinterpret_cast<const Channels*>(
          static_cast<const T*>(p.grad_output) + row * p.channels + c);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int64_t first = start + at.pixel[n] * stride + c;
        const auto pixel =
            *reinterpret_cast<const Channels*>(static_cast<const T*>(p.value) + first);
        A term[kVec];
#pragma unroll
        for (int j = 0; j < kVec; ++j) {
          const A g = A(widen(gradient.number[j]));
          product[n] += g * A(widen(pixel.number[j]));
          term[j] = at.share[n] * g;
        }
        if (scatter && at.share[n] != A(0)) {
          add_terms<A, kVec>(launch, first, term, units_in_one);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      for (int step = launch.group / 2; step > 0; step /= 2) {
        product[n] += __shfl_xor_sync(0xffffffffu, product[n], step, kWarp);
      }
    }
    if (active && member == 0) {
      stage.products[own * points + k] = {product[0], product[1], product[2], product[3]};
    }
  }
  __syncthreads();
}

// A point's products make room for its gradient: by weight, x, y.
template <typename A>
__device__ void differentiate_points(const Launch& launch, int count, const Stage<A>& stage) {
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const Point<A> point = stage.points[i];
    const Level& level = launch.level[point.level];
    A product[4];
    for (int n = 0; n < 4; ++n) product[n] = stage.products[i].number[n];
    const PointGradient<A> g =
        differentiate(span_of(point.x, level.width), span_of(point.y, level.height), point.weight,
                      product);
    stage.products[i] = {g.weight, g.x, g.y, A(0)};
  }
  __syncthreads();
}

template <typename A, typename T>
__device__ void store_gradients(const Launch& launch, int64_t first_row, int count,
                                const Stage<A>& stage) {
  const Problem& p = launch.problem;
  const int points = int(p.points_of_head());
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int64_t at = first_row * points + i;
    const Products<A> g = stage.products[i];
    if (p.grad_given != nullptr) {
      const int l = stage.points[i].level;
      const Placement<A> placed = place<A>(p, launch.level[l], first_row + i / points, l);
      A* to = static_cast<A*>(p.grad_given) + 2 * at;
      to[0] = g.number[1] * placed.scale_x;
      to[1] = g.number[2] * placed.scale_y;
    }
    if (p.grad_weights == nullptr) continue;
    A gradient = g.number[0];
    if (p.reference_size > 0) {  // through the softmax
      const int first = i / points * points;
      A mean = A(0);
      for (int k = first; k < first + points; ++k) {
        mean += stage.points[k].weight * stage.products[k].number[0];
      }
      gradient = stage.points[i].weight * (gradient - mean);
    }
    if (p.weights_type == p.value_type) {
      narrow(gradient, static_cast<T*>(p.grad_weights)[at]);
    } else {
      static_cast<A*>(p.grad_weights)[at] = gradient;
    }
  }
}

// One thread for each level of a row.
template <typename A>
__device__ void store_grad_reference(const Launch& launch, int64_t first_row, int rows,
                                     const Stage<A>& stage) {
  const Problem& p = launch.problem;
  const int levels = int(p.levels), points = int(p.points);
  for (int i = threadIdx.x; i < rows * levels; i += kThreads) {
    const Level& level = launch.level[i % levels];
    A sum[4] = {};
    for (int k = 0; k < points; ++k) {
      const int64_t point = int64_t(i) * points + k;
      const A* given = static_cast<const A*>(p.given) + 2 * (first_row * levels * points + point);
      const A x = stage.products[point].number[1] * A(level.width);
      const A y = stage.products[point].number[2] * A(level.height);
      sum[0] += x;
      sum[1] += y;
      sum[2] += x * given[0] * (A(0.5) / A(points));
      sum[3] += y * given[1] * (A(0.5) / A(points));
    }
    A* to = static_cast<A*>(p.grad_reference) + (first_row * levels + i) * p.reference_size;
    for (int n = 0; n < int(p.reference_size); ++n) to[n] = sum[n];
  }
}

template <typename A, typename T, int kVec>
__global__ void __launch_bounds__(kThreads) backward_kernel(Launch launch) {
  PREDET_SHARED_MEMORY(memory);
  const Problem& p = launch.problem;
  const int points = int(p.points_of_head());
  const int64_t first_row = int64_t(blockIdx.x) * launch.rows_of_block;
  const int64_t left = launch.rows - first_row;
  const int rows = left < launch.rows_of_block ? int(left) : launch.rows_of_block;
  const Stage<A> stage(memory, launch.rows_of_block * points);
  stage_points<A, T, true>(launch, first_row, rows, stage);
  work_through_pixels<A, T, kVec>(launch, first_row, rows, stage);
  differentiate_points<A>(launch, rows * points, stage);
  store_gradients<A, T>(launch, first_row, rows * points, stage);
  if (p.grad_reference != nullptr) store_grad_reference<A>(launch, first_row, rows, stage);
}

// *highest = the bits of the largest magnitude, which are ordered as the numbers are; NaN is higher.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    find_highest(const T* from, int64_t count, unsigned long long* highest) {
  unsigned long long own = 0;
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const double magnitude = fabs(double(widen(from[i])));
    unsigned long long bits;
    memcpy(&bits, &magnitude, sizeof(bits));
    own = bits > own ? bits : own;
  }
  atomicMax(highest, own);
}

// The sums become the gradient of the value.
template <typename A, typename T>
__global__ void __launch_bounds__(kThreads) store_sums(Launch launch, int64_t count) {
  const double unit = unit_of(launch);
  T* to = static_cast<T*>(launch.problem.grad_value);
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    if (launch.fixed_sums != nullptr) {
      narrow(A(from_fixed_point(int64_t(launch.fixed_sums[i]), unit)), to[i]);
    } else {
      narrow(static_cast<const A*>(launch.sums)[i], to[i]);
    }
  }
}

unsigned int blocks_for(int64_t count) {
  return static_cast<unsigned int>(std::max<int64_t>(
      1, std::min<int64_t>((count + kThreads - 1) / kThreads, 4096)));
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename T>
constexpr int packet_size() {
  return 16 / int(sizeof(T));
}

template <typename T>
bool packets_fit(const Problem& p) {
  return p.channels % packet_size<T>() == 0 && aligned(p.value) && aligned(p.output) &&
         aligned(p.grad_output) && aligned(p.grad_value);
}

template <typename A>
Launch prepare(const Problem& p, int vec) {
  Launch launch{};
  launch.problem = p;
  if (p.levels > kMostLevels || p.points_of_head() > kMostPoints) {
    throw std::invalid_argument("on CUDA there can be 16 levels and 256 points a head at most");
  }
  std::copy(p.level, p.level + p.levels, launch.level);
  launch.rows = p.batch * p.queries * p.heads;
  launch.group = 1;
  while (launch.group < kWarp && launch.group * vec < p.channels) launch.group *= 2;
  const int64_t row_bytes =
      std::max<int64_t>(1, p.points_of_head()) * Stage<A>::bytes_of_point();
  launch.rows_of_block =
      int(std::max<int64_t>(1, std::min<int64_t>(kThreads / launch.group, kSharedBytes / row_bytes)));
  if (launch.rows / launch.rows_of_block >= std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("too many queries for one call");
  }
  return launch;
}

template <typename A>
size_t shared_bytes(const Launch& launch) {
  return launch.rows_of_block * launch.problem.points_of_head() * Stage<A>::bytes_of_point();
}

dim3 grid_of(const Launch& launch) {
  return dim3((unsigned int)((launch.rows + launch.rows_of_block - 1) / launch.rows_of_block));
}

template <typename T, int kVec>
void forward_as(const Problem& p, cudaStream_t stream) {
  using A = typename ArithmeticOf<T>::type;
  const Launch launch = prepare<A>(p, kVec);
  predet::launch("ms_deform_attn forward", forward_kernel<A, T, kVec>, grid_of(launch),
                 dim3(kThreads), shared_bytes<A>(launch), stream, launch);
}

template <typename T, int kVec>
void backward_as(const Problem& p, cudaStream_t stream, void* workspace, bool deterministic) {
  using A = typename ArithmeticOf<T>::type;
  Launch launch = prepare<A>(p, kVec);
  const int64_t numbers = p.batch * p.pixels * p.heads * p.channels;
  if (p.grad_value != nullptr && deterministic) {
    launch.fixed_sums = static_cast<unsigned long long*>(workspace);
    const int64_t outputs = launch.rows * p.channels;
    predet::launch("ms_deform_attn find_highest", find_highest<T>, dim3(blocks_for(outputs)),
                   dim3(kThreads), 0, stream, static_cast<const T*>(p.grad_output), outputs,
                   launch.fixed_sums + numbers);
    const int64_t weights = launch.rows * p.points_of_head();
    if (p.reference_size == 0 && p.weights_type == p.value_type) {
      predet::launch("ms_deform_attn find_highest", find_highest<T>, dim3(blocks_for(weights)),
                     dim3(kThreads), 0, stream, static_cast<const T*>(p.weights), weights,
                     launch.fixed_sums + numbers + 1);
    } else if (p.reference_size == 0) {
      predet::launch("ms_deform_attn find_highest", find_highest<A>, dim3(blocks_for(weights)),
                     dim3(kThreads), 0, stream, static_cast<const A*>(p.weights), weights,
                     launch.fixed_sums + numbers + 1);
    }
  } else if (p.grad_value != nullptr) {
    launch.sums = sizeof(T) < sizeof(A) ? workspace : p.grad_value;
    if (launch.sums == p.grad_value) {
      check_cuda(cudaMemsetAsync(p.grad_value, 0, numbers * sizeof(T), stream),
                 "ms_deform_attn memset");
    }
  }
  if (launch.rows > 0) {
    predet::launch("ms_deform_attn backward", backward_kernel<A, T, kVec>, grid_of(launch),
                   dim3(kThreads), shared_bytes<A>(launch), stream, launch);
  }
  if (p.grad_value != nullptr && launch.sums != p.grad_value) {
    predet::launch("ms_deform_attn store_sums", store_sums<A, T>, dim3(blocks_for(numbers)),
                   dim3(kThreads), 0, stream, launch, numbers);
  }
}

// Calls body(T()) with T the storage type of the value.
template <typename Body>
void with_storage(DType type, Body&& body) {
  switch (type) {
    case DType::bfloat16: return body(BFloat16());
    case DType::float16: return body(Half());
    case DType::float64: return body(double());
    default: return body(float());
  }
}

}  // namespace

void forward_cuda(const Problem& problem, int device, void* stream) {
  const DeviceGuard guard(device);
  with_storage(problem.value_type, [&](auto type) {
    using T = decltype(type);
    if (packets_fit<T>(problem)) {
      forward_as<T, packet_size<T>()>(problem, static_cast<cudaStream_t>(stream));
    } else {
      forward_as<T, 1>(problem, static_cast<cudaStream_t>(stream));
    }
  });
}

void backward_cuda(const Problem& problem, int device, void* stream, void* workspace,
                   bool deterministic) {
  const DeviceGuard guard(device);
  with_storage(problem.value_type, [&](auto type) {
    using T = decltype(type);
    const auto on = static_cast<cudaStream_t>(stream);
    if (packets_fit<T>(problem)) {
      backward_as<T, packet_size<T>()>(problem, on, workspace, deterministic);
    } else {
      backward_as<T, 1>(problem, on, workspace, deterministic);
    }
  });
}

}  // namespace ms_deform_attn
}  // namespace predet
