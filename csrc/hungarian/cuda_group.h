// CUDA's groups: a warp (kThreads = 32, any warp of a block) or a whole block.
#pragma once

#include "group.h"

namespace predet {
namespace hungarian {

// Of equal values the one of lower index, so the result does not depend on who compares first.
template <typename T>
__device__ Found<T> lesser_of(Found<T> a, Found<T> b) {
  return b.value < a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

template <typename T>
__device__ Found<T> least_of_warp(Found<T> own) {
  for (int step = 16; step > 0; step /= 2) {
    const Found<T> other{__shfl_xor_sync(0xffffffffu, own.value, step),
                         __shfl_xor_sync(0xffffffffu, own.index, step)};
    own = lesser_of(own, other);
  }
  return own;
}

template <int kThreads>
struct ThreadGroup {
  static_assert(kThreads % 32 == 0, "whole warps");
  static constexpr int kWarps = kThreads / 32;
  static constexpr int32_t kNone = 0x7fffffff;

  __device__ int32_t lane() const { return int32_t(threadIdx.x % kThreads); }
  __device__ int32_t lanes() const { return kThreads; }
  __device__ bool leads() const { return lane() == 0; }
  __device__ void sync() const {
    if (kThreads == 32) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  __device__ int64_t sum(int64_t own) const {
    for (int step = 16; step > 0; step /= 2) own += __shfl_xor_sync(0xffffffffu, own, step);
    if (kThreads == 32) return own;
    __shared__ int64_t of_warp[kWarps];
    if (threadIdx.x % 32 == 0) of_warp[lane() / 32] = own;
    sync();
    own = 0;
    for (int i = 0; i < kWarps; ++i) own += of_warp[i];
    sync();
    return own;
  }

  // The least of an array and where it first is.
  template <typename T>
  __device__ Found<T> lowest(const T* values, int32_t count) const {
    Found<T> own{infinity<T>(), kNone};
    for (int32_t i = lane(); i < count; i += kThreads) own = lesser_of(own, {values[i], i});
    return least(own);
  }

  // The least of max(cost, barrier).
  template <typename T>
  __device__ Found<T> lowest(const T* cost, const T* barrier, int32_t count) const {
    Found<T> own{infinity<T>(), kNone};
    for (int32_t i = lane(); i < count; i += kThreads) {
      const T x = usable(cost[i]);
      own = lesser_of(own, {x < barrier[i] ? barrier[i] : x, i});
    }
    return least(own);
  }

  // The least of `count` costs; each thread adds to its own `bad`.
  template <typename T>
  __device__ T bound(const T* cost, int32_t count, int64_t& bad) const {
    Found<T> own{infinity<T>(), kNone};
    for (int32_t i = lane(); i < count; i += kThreads) {
      bad += is_finite(cost[i]) ? 0 : 1;
      own = lesser_of(own, {usable(cost[i]), i});
    }
    return least(own).value;
  }

  // Offers each slot the path of length base + near + open through `row`; the least key after it.
  template <typename T>
  __device__ Found<double> relax(const T* near, const double* open, double base, int64_t row,
                                 int32_t count, double* key, int64_t* from) const {
    Found<double> own{infinity<double>(), kNone};
    for (int32_t i = lane(); i < count; i += kThreads) {
      const double length = base + (double(near[i]) + open[i]);
      double now = key[i];
      if (length < now) {
        now = length;
        key[i] = length;
        from[i] = row;
      }
      own = lesser_of(own, {now, i});
    }
    return least(own);
  }

 private:
  template <typename T>
  __device__ Found<T> least(Found<T> own) const {
    own = least_of_warp(own);
    if (kThreads == 32) return own;
    __shared__ T values[kWarps];
    __shared__ int32_t indices[kWarps];
    if (threadIdx.x % 32 == 0) {
      values[lane() / 32] = own.value;
      indices[lane() / 32] = own.index;
    }
    sync();
    for (int i = 0; i < kWarps; ++i) own = lesser_of(own, {values[i], indices[i]});
    sync();
    return own;
  }
};

}  // namespace hungarian
}  // namespace predet
