#include "cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

#include "../common/cuda_support.h"
#include "cuda_layout.h"
#include "partitions.h"

namespace predet {
namespace selective_search {
namespace {

constexpr int kWarp = 32;
constexpr int kParts = 16;  // blocks that share an image where its pixels are independent
constexpr int32_t kFar = 0x7fffffff;

// The pixels, or other things, of this thread among those of kParts blocks.
struct Mine {
  int64_t first, step;
};
__device__ Mine mine() {
  return {int64_t(blockIdx.x % kParts) * blockDim.x + threadIdx.x, int64_t(kParts) * blockDim.x};
}

__device__ Partitions partitions_of(const Work& w, const CudaSettings& settings) {
  return Partitions(w.partitions, settings.k, settings.ks);
}

__device__ void add_edge(const Work& w, int64_t index, const float* a, const float* b,
                         int64_t place) {
  const float weight = w.image.channels == 1 ? edge_weight(a, b, 1) : edge_weight(a, b, 3);
  w.edges[index] = {bits_from_float(weight), uint32_t(place)};
}

// Everything that is counted starts at zero, every pixel as an atom; and the edges, in the order of
// segmentation.cpp.
__global__ void prepare_kernel(const Work* works, const CudaSettings settings) {
  const Work w = works[blockIdx.x / kParts];
  const Mine own = mine();
  const int64_t height = w.image.height, width = w.image.width, channels = w.image.channels;
  Partitions partitions = partitions_of(w, settings);
  for (int64_t i = own.first; i < w.pixels; i += own.step) {
    partitions.start(int32_t(i));
    const int64_t y = i / width, x = i % width;
    const float* pixel = w.image.smoothed + i * channels;
    const bool lowest = y + 1 == height;
    const int64_t index = y * (2 * width - 1) + (lowest ? x : 2 * x);
    const bool right = x + 1 < width;
    if (right) add_edge(w, index, pixel, pixel + channels, 2 * i);
    if (!lowest) add_edge(w, index + right, pixel, pixel + width * channels, 2 * i + 1);
  }
  const int64_t regions = settings.ks * w.most_regions;
  for (int64_t i = own.first; i < regions; i += own.step) {
    w.box[i] = {w.image.width, w.image.height, 0, 0};
    w.size[i] = 0;
  }
  for (int64_t i = own.first; i < regions * w.color_bins; i += own.step) w.color_counts[i] = 0;
  for (int64_t i = own.first; i < regions * w.texture_bins; i += own.step) w.texture_counts[i] = 0;
  for (int64_t i = own.first; i < settings.ks * w.slots; i += own.step) w.pair_set[i] = kFreeSlot;
  if (own.first == 0) w.scalars[kNumNodes] = w.scalars[kNumRefused] = 0;
}

// In `totals` (kSortThreads) numbers of threads: the sum of those before.
__device__ uint32_t sum_before(const uint32_t* totals) {
  uint32_t sum = 0;
  for (int thread = 0; thread < int(threadIdx.x); ++thread) sum += totals[thread];
  return sum;
}

// All edges of an image by weight: radix sort, least significant digit first. Each thread has a
// stretch of the edges and a counter for each digit, so equal ones stay in order.
__global__ void __launch_bounds__(kSortThreads) sort_kernel(const Work* works) {
  __shared__ uint32_t totals[kSortThreads];
  const Work w = works[blockIdx.x];
  const int thread = int(threadIdx.x);
  const int64_t stretch = (w.num_edges + kSortThreads - 1) / kSortThreads;
  const int64_t first = min64(thread * stretch, w.num_edges);
  const int64_t last = min64(first + stretch, w.num_edges);
  Edge *from = w.edges, *to = w.sorted;
  for (int shift = 0; shift < 32; shift += 8) {
    for (int digit = 0; digit < kDigits; ++digit) w.counts[digit * kSortThreads + thread] = 0;
    for (int64_t i = first; i < last; ++i) {
      ++w.counts[(from[i].key >> shift & 0xffu) * kSortThreads + thread];
    }
    __syncthreads();
    uint32_t* of_digit = w.counts + thread * kSortThreads;  // a thread for each digit
    uint32_t sum = 0;
    for (int i = 0; i < kSortThreads; ++i) sum += of_digit[i];
    totals[thread] = sum;
    __syncthreads();
    sum = sum_before(totals);
    for (int i = 0; i < kSortThreads; ++i) {
      const uint32_t count = of_digit[i];
      of_digit[i] = sum;
      sum += count;
    }
    __syncthreads();
    for (int64_t i = first; i < last; ++i) {
      to[w.counts[(from[i].key >> shift & 0xffu) * kSortThreads + thread]++] = from[i];
    }
    __syncthreads();
    swap_values(from, to);
  }
}

// Offers all edges in order of weight: a warp looks at 32 edges at once, and its threads take turns
// with those that join different atoms.
__global__ void __launch_bounds__(kWarp) join_kernel(const Work* works,
                                                     const CudaSettings settings) {
  const Work w = works[blockIdx.x];
  Partitions partitions = partitions_of(w, settings);
  const int lane = int(threadIdx.x);
  int32_t* num_refused = w.scalars + kNumRefused;
  for (int64_t base = 0; base < w.num_edges; base += kWarp) {
    const int64_t i = min64(base + lane, w.num_edges - 1);
    const Edge edge = w.edges[i];
    const Ends ends(edge, w.image.width);
    const bool open = base + lane < w.num_edges &&
                      partitions.find_atom(ends.a) != partitions.find_atom(ends.b);
    const unsigned int turns = __ballot_sync(0xffffffffu, open);
    for (int turn = 0; turn < kWarp; ++turn) {
      if ((turns >> turn & 1u) == 0) continue;
      if (turn == lane) {
        const int32_t a = partitions.atom(ends.a), b = partitions.atom(ends.b);
        if (a != b && partitions.offer(a, b, edge.weight())) {
          w.refused[(*num_refused)++] = {edge.key, ends.a, ends.b};
        }
      }
      __syncwarp();
    }
  }
  if (lane != 0) return;
  int32_t kept = 0;
  for (int32_t i = 0; i < *num_refused; ++i) {
    const Refused edge = w.refused[i];
    const int32_t a = partitions.atom(edge.a), b = partitions.atom(edge.b);
    if (a != b) w.refused[kept++] = {edge.key, partitions.node(a), partitions.node(b)};
  }
  *num_refused = kept;
  (void)partitions.node(partitions.atom(0));  // there may be one atom only
}

// A thread for each k of each image.
__global__ void small_kernel(const Work* works, const CudaSettings settings) {
  const Work w = works[blockIdx.x / settings.ks];
  const int32_t k = int32_t(blockIdx.x % settings.ks);
  Partitions partitions = partitions_of(w, settings);
  w.ambiguous[k] = SmallRegions(partitions, k, settings.min_size)
                       .join_and_count(w.refused, w.scalars[kNumRefused]);
}

__global__ void mark_kernel(const Work* works, const CudaSettings settings) {
  const Work w = works[blockIdx.x / kParts];
  const Mine own = mine();
  for (int64_t i = own.first; i < int64_t(settings.ks) * w.scalars[kNumNodes]; i += own.step) {
    w.partitions.node[i].mark = kFar;
  }
}

// The region of each pixel, as a node, and the first pixel of each region, as its mark.
__global__ void root_kernel(const Work* works, const CudaSettings settings) {
  const Work w = works[blockIdx.x / kParts];
  const Mine own = mine();
  const Partitions partitions = partitions_of(w, settings);
  for (int64_t i = own.first; i < w.pixels; i += own.step) {
    const int32_t node = partitions.node_of(partitions.find_atom(int32_t(i)));
    for (int32_t k = 0; k < settings.ks; ++k) {
      const int32_t root = partitions.find_root(node, k);
      w.label[k * w.pixels + i] = root;
      atomicMin(&partitions.at(root, k).mark, int32_t(i));
    }
  }
}

// Numbers the regions of one k by their first pixels; the number becomes the size of the node.
__global__ void __launch_bounds__(kSortThreads)
    number_kernel(const Work* works, const CudaSettings settings) {
  __shared__ uint32_t totals[kSortThreads];
  const Work w = works[blockIdx.x / settings.ks];
  const int32_t k = int32_t(blockIdx.x % settings.ks);
  const Partitions partitions = partitions_of(w, settings);
  const int32_t* root = w.label + k * w.pixels;
  const int64_t stretch = (w.pixels + kSortThreads - 1) / kSortThreads;
  const int64_t first = min64(threadIdx.x * stretch, w.pixels);
  const int64_t last = min64(first + stretch, w.pixels);
  uint32_t found = 0;
  for (int64_t i = first; i < last; ++i) found += partitions.at(root[i], k).mark == i;
  totals[threadIdx.x] = found;
  __syncthreads();
  uint32_t number = sum_before(totals);
  for (int64_t i = first; i < last; ++i) {
    Node& node = partitions.at(root[i], k);
    if (node.mark == i) node.size = int32_t(number++);
  }
  if (threadIdx.x + 1 == kSortThreads) w.scalars[kNumRegions + k] = int32_t(number);
}

// Numbers instead of nodes; sizes, boxes and colours of the regions.
__global__ void shape_kernel(const Work* works, const CudaSettings settings) {
  const Work w = works[blockIdx.x / kParts];
  const Mine own = mine();
  const Partitions partitions = partitions_of(w, settings);
  for (int64_t i = own.first; i < w.pixels; i += own.step) {
    const int32_t x = int32_t(i % w.image.width), y = int32_t(i / w.image.width);
    for (int32_t k = 0; k < settings.ks; ++k) {
      int32_t& label = w.label[k * w.pixels + i];
      label = partitions.at(label, k).size;
      const int64_t region = k * w.most_regions + label;
      Box& box = w.box[region];
      atomicAdd(&w.size[region], 1);
      atomicMin(&box.x1, x);
      atomicMin(&box.y1, y);
      atomicMax(&box.x2, x + 1);
      atomicMax(&box.y2, y + 1);
      if (!settings.with_color) continue;
      int32_t* counts = w.color_counts + region * w.color_bins;
      for (int32_t c = 0; c < w.image.channels; ++c) {
        const int value = w.image.values[i * w.image.channels + c];
        atomicAdd(&counts[c * kColorBins + color_bin(value)], 1);
      }
    }
  }
}

__device__ void insert(unsigned long long* set, int64_t slots, int32_t a, int32_t b) {
  if (a == b) return;
  if (a > b) swap_values(a, b);
  const unsigned long long pair = (unsigned long long)(uint32_t(a)) << 32 | uint32_t(b);
  int64_t i = int64_t((pair * 0x9E3779B97F4A7C15ull) >> 20) & (slots - 1);
  for (;; i = (i + 1) & (slots - 1)) {
    const unsigned long long before = atomicCAS(&set[i], (unsigned long long)(kFreeSlot), pair);
    if (before == kFreeSlot || before == pair) return;
  }
}

// Which regions touch; see measure_shapes() in statistics.cpp.
__global__ void touch_kernel(const Work* works, const CudaSettings settings) {
  const Work w = works[blockIdx.x / kParts];
  const Mine own = mine();
  for (int64_t i = own.first; i < w.pixels; i += own.step) {
    if (i < w.image.width || i % w.image.width == 0) continue;
    for (int32_t k = 0; k < settings.ks; ++k) {
      const int32_t* here = w.label + k * w.pixels + i;
      unsigned long long* set = w.pair_set + k * w.slots;
      insert(set, w.slots, here[0], here[-1]);
      insert(set, w.slots, here[0], here[-w.image.width]);
      insert(set, w.slots, here[0], here[-w.image.width - 1]);
    }
  }
}

// The pairs of one k in ascending order, from a set in whatever order: counted by the second
// region, then by the first. A thread for each k of each image.
__global__ void pair_kernel(const Work* works, const CudaSettings settings) {
  const Work w = works[blockIdx.x / settings.ks];
  const int32_t k = int32_t(blockIdx.x % settings.ks);
  const unsigned long long* set = w.pair_set + k * w.slots;
  const int32_t regions = w.scalars[kNumRegions + k];
  Touching* pairs = w.touching + k * w.most_pairs;
  Touching* spare = w.spare_touching + k * w.most_pairs;
  int32_t* next = w.next + k * (w.most_regions + 1);
  int32_t count = 0;
  for (int64_t i = 0; i < w.slots; ++i) {
    if (set[i] != kFreeSlot) pairs[count++] = {int32_t(set[i] >> 32), int32_t(uint32_t(set[i]))};
  }
  for (int by = 0; by < 2; ++by) {
    for (int32_t i = 0; i <= regions; ++i) next[i] = 0;
    for (int32_t i = 0; i < count; ++i) ++next[(by == 0 ? pairs[i].b : pairs[i].a) + 1];
    for (int32_t i = 0; i < regions; ++i) next[i + 1] += next[i];
    for (int32_t i = 0; i < count; ++i) spare[next[by == 0 ? pairs[i].b : pairs[i].a]++] = pairs[i];
    swap_values(pairs, spare);
  }
  w.scalars[kNumPairs + k] = count;
}

// Low and high of one derivative, by a block, and how its two parts become bins.
__global__ void __launch_bounds__(kSortThreads) range_kernel(const Work* works, int32_t planes,
                                                             bool fused) {
  __shared__ float lows[kSortThreads], highs[kSortThreads];
  const Work w = works[blockIdx.x / planes];
  const int32_t plane = int32_t(blockIdx.x % planes);
  if (plane >= w.planes) return;
  const float* values = w.image.derivatives + plane * w.pixels;
  float low = values[0], high = values[0];
  for (int64_t i = threadIdx.x; i < w.pixels; i += kSortThreads) {
    low = values[i] < low ? values[i] : low;
    high = values[i] > high ? values[i] : high;
  }
  lows[threadIdx.x] = low;
  highs[threadIdx.x] = high;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kSortThreads; ++i) {
    low = lows[i] < low ? lows[i] : low;
    high = highs[i] > high ? highs[i] : high;
  }
  PlaneBins& bins = w.plane_bins[plane];
  bins.scale[0] = ByteScale(low > 0.0f ? low : 0.0f, high > 0.0f ? high : 0.0f, fused);
  bins.scale[1] = ByteScale(low < 0.0f ? low : 0.0f, high < 0.0f ? high : 0.0f, fused);
  for (int part = 0; part < 2; ++part) bins.even[part] = texture_bin(bins.scale[part](0.0f));
}

// Counts what is not in the bin of an even area.
__global__ void texture_kernel(const Work* works, const CudaSettings settings) {
  const Work w = works[blockIdx.x / kParts];
  const Mine own = mine();
  for (int64_t i = own.first; i < w.pixels; i += own.step) {
    for (int32_t plane = 0; plane < w.planes; ++plane) {
      const PlaneBins& bins = w.plane_bins[plane];
      const float value = w.image.derivatives[plane * w.pixels + i];
      const int part = value > 0.0f ? 0 : 1;
      const int bin = texture_bin(bins.scale[part](value));
      if (bin == bins.even[part]) continue;
      const int32_t index = (2 * plane + part) * kTextureBins + bin;
      for (int32_t k = 0; k < settings.ks; ++k) {
        const int64_t region = k * w.most_regions + w.label[k * w.pixels + i];
        atomicAdd(&w.texture_counts[region * w.texture_bins + index], 1);
      }
    }
  }
}

__device__ void color_row(const Work& w, int64_t region) {
  const int32_t* counts = w.color_counts + region * w.color_bins;
  float total = 0.0f;
  for (int32_t b = 0; b < w.color_bins; ++b) total += static_cast<float>(counts[b]);
  for (int32_t b = 0; b < w.color_bins; ++b) {
    w.color[region * w.color_bins + b] = static_cast<float>(counts[b]) / total;
  }
}

__device__ void texture_row(const Work& w, int64_t region) {
  const int32_t* counts = w.texture_counts + region * w.texture_bins;
  const int32_t parts = w.texture_bins / kTextureBins, size = w.size[region];
  const float total = static_cast<float>(size * parts);
  for (int32_t part = 0; part < parts; ++part) {
    const int even = w.plane_bins[part / 2].even[part % 2];
    int32_t uneven = 0;
    for (int b = 0; b < kTextureBins; ++b) uneven += counts[part * kTextureBins + b];
    for (int b = 0; b < kTextureBins; ++b) {
      const int32_t index = part * kTextureBins + b;
      const int32_t count = b == even ? size - uneven : counts[index];
      w.texture[region * w.texture_bins + index] = static_cast<float>(count) / total;
    }
  }
}

__global__ void histogram_kernel(const Work* works, const CudaSettings settings) {
  const Work w = works[blockIdx.x / kParts];
  const Mine own = mine();
  for (int64_t i = own.first; i < settings.ks * w.most_regions; i += own.step) {
    if (i % w.most_regions >= w.scalars[kNumRegions + i / w.most_regions]) continue;
    if (settings.with_color) color_row(w, i);
    if (settings.with_texture) texture_row(w, i);
  }
}

struct WarpGroup {
  __device__ int32_t lane() const { return int32_t(threadIdx.x); }
  __device__ int32_t lanes() const { return kWarp; }
  __device__ bool leads() const { return threadIdx.x == 0; }
  __device__ void sync() const { __syncwarp(); }
};

template <typename T>
__device__ void copy(const WarpGroup& group, const T* from, T* to, int64_t count) {
  for (int64_t i = group.lane(); i < count; i += group.lanes()) to[i] = from[i];
}

// A warp for each grouping.
__global__ void __launch_bounds__(kWarp) group_kernel(const Work* works,
                                                      const CudaSettings settings) {
  const int32_t of_image = settings.ks * settings.num_strategies;
  const Work w = works[blockIdx.x / of_image];
  const int32_t number = int32_t(blockIdx.x % of_image), k = number / settings.num_strategies;
  const Strategy strategy = settings.strategies[number % settings.num_strategies];
  const GroupingWork work = grouping_work(w, number);
  const int32_t regions = w.scalars[kNumRegions + k];
  const int64_t first = k * w.most_regions;
  const WarpGroup group;
  copy(group, w.box + first, work.hierarchy.box, regions);
  copy(group, w.size + first, work.hierarchy.size, regions);
  for (int32_t i = group.lane(); i < regions; i += group.lanes()) {
    work.hierarchy.level[i] = 1;
    work.hierarchy.row[i] = i;
  }
  if (strategy.color) {
    copy(group, w.color + first * w.color_bins, work.hierarchy.color, regions * w.color_bins);
  }
  if (strategy.texture) {
    copy(group, w.texture + first * w.texture_bins, work.hierarchy.texture,
         int64_t(regions) * w.texture_bins);
  }
  group.sync();
  Hierarchy hierarchy(work.hierarchy, strategy, w.pixels);
  int32_t made = 0;
  const int32_t ties = Pairs(work.pairs, hierarchy, w.touching + k * w.most_pairs,
                             w.scalars[kNumPairs + k], regions)
                           .merge_all<1>(group, made);
  if (group.leads()) w.found[number] = {made, ties};
}

}  // namespace

void search_cuda(const std::vector<CudaImage>& images, const CudaSettings& settings, void* output,
                 void* workspace, int device, void* stream_address) {
  if (images.empty()) return;
  const DeviceGuard guard(device);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
  const std::vector<Work> host = lay_out(images, settings, output, workspace).works;
  // From memory that is not pinned: it has been read when this returns.
  Work* works = static_cast<Work*>(workspace);
  check_cuda(cudaMemcpyAsync(works, host.data(), host.size() * sizeof(Work),
                             cudaMemcpyHostToDevice, stream),
             "selective_search cudaMemcpyAsync");
  const unsigned int count = static_cast<unsigned int>(images.size());
  const unsigned int ks = static_cast<unsigned int>(settings.ks);
  const dim3 parts(count * kParts), threads(kSortThreads);
  const auto run = [&](const char* name, auto kernel, dim3 grid, dim3 block,
                       const auto&... arguments) {
    launch(name, kernel, grid, block, 0, stream, works, arguments...);
  };
  run("prepare_kernel", prepare_kernel, parts, threads, settings);
  run("sort_kernel", sort_kernel, dim3(count), threads);
  run("join_kernel", join_kernel, dim3(count), dim3(kWarp), settings);
  run("small_kernel", small_kernel, dim3(count * ks), dim3(1), settings);
  run("mark_kernel", mark_kernel, parts, threads, settings);
  run("root_kernel", root_kernel, parts, threads, settings);
  run("number_kernel", number_kernel, dim3(count * ks), threads, settings);
  run("shape_kernel", shape_kernel, parts, threads, settings);
  run("touch_kernel", touch_kernel, parts, threads, settings);
  run("pair_kernel", pair_kernel, dim3(count * ks), dim3(1), settings);
  if (settings.with_texture) {
    const int32_t planes = 3 * kDerivatives;
    run("range_kernel", range_kernel, dim3(count * planes), threads, planes, settings.fused);
    run("texture_kernel", texture_kernel, parts, threads, settings);
  }
  run("histogram_kernel", histogram_kernel, parts, threads, settings);
  run("group_kernel", group_kernel,
      dim3(count * ks * static_cast<unsigned int>(settings.num_strategies)), dim3(kWarp), settings);
}

CudaBytes cuda_bytes(const std::vector<CudaImage>& images, const CudaSettings& settings) {
  return lay_out(images, settings, nullptr, nullptr).bytes;
}

std::vector<CudaResult> results_of(const std::vector<CudaImage>& images,
                                   const CudaSettings& settings, const void* output) {
  std::vector<CudaResult> results;
  for (const Work& w : lay_out(images, settings, const_cast<void*>(output), nullptr).works) {
    CudaResult result;
    for (int32_t k = 0; k < settings.ks; ++k) result.ambiguous += w.ambiguous[k];
    for (int32_t number = 0; number < settings.ks * settings.num_strategies; ++number) {
      const Found found = w.found[number];
      const Box* box = w.made_box + 2 * number * w.most_regions;
      const int32_t* level = w.made_level + 2 * number * w.most_regions;
      result.boxes.insert(result.boxes.end(), box, box + found.made);
      result.levels.insert(result.levels.end(), level, level + found.made);
      result.ties += found.ties;
    }
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace selective_search
}  // namespace predet
