// Runs CUDA kernels on the CPU, thread by thread, so that their logic can be tested without a GPU.
//
// Each thread of a block is a fiber: it runs until it must wait for others, then the next one goes
// on. Blocks run one after the other. Nothing is said about speed or about races that a GPU's
// memory model allows; indices, barriers and shuffles are followed exactly.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define PREDET_CUDA_EMULATION 1
#define CUDART_VERSION 0
#define __global__
#define __device__
#define __launch_bounds__(threads)

struct dim3 {
  unsigned int x, y, z;
  dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};
struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t count, cudaStream_t) {
  memset(to, byte, count);
  return cudaSuccess;
}

enum cudaMemcpyKind { cudaMemcpyHostToDevice };
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t count, cudaMemcpyKind,
                                   cudaStream_t) {
  memcpy(to, from, count);
  return cudaSuccess;
}

class EmulatedBlock {
 public:
  static EmulatedBlock*& current() {
    static EmulatedBlock* block = nullptr;
    return block;
  }

  EmulatedBlock(unsigned int threads, size_t shared_bytes, const std::function<void()>& kernel)
      : kernel_(kernel), shared_(shared_bytes + 16), exchange_(threads), threads_(threads) {
    // What a kernel does not write must not look right by chance.
    memset(shared_.data(), 0xff, shared_.size());
    current() = this;
    for (Thread& thread : threads_) {
      getcontext(&thread.context);
      thread.stack.reset(new char[kStack]);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = &scheduler_;
      makecontext(&thread.context, &EmulatedBlock::enter, 0);
    }
  }

  void run() {
    for (size_t done = 0; done < threads_.size();) {
      done = 0;
      for (running_ = 0; running_ < threads_.size(); ++running_) {
        Thread& thread = threads_[running_];
        if (thread.done) {
          ++done;
          continue;
        }
        threadIdx.x = static_cast<unsigned int>(running_);
        swapcontext(&scheduler_, &thread.context);
      }
    }
  }

  // Threads take turns in order, so when one is back all others have come as far, or have ended.
  void wait() { swapcontext(&threads_[running_].context, &scheduler_); }

  unsigned char* shared() {
    return shared_.data() + (16 - reinterpret_cast<uintptr_t>(shared_.data()) % 16) % 16;
  }

  // Bit i: the value of thread i. For blocks of one warp.
  unsigned int ballot(bool value) {
    exchange_[running_] = value;
    wait();
    unsigned int bits = 0;
    for (size_t i = 0; i < threads_.size(); ++i) bits |= unsigned(exchange_[i] != 0) << i;
    wait();
    return bits;
  }

  template <typename T>
  T exchange(T value, int step) {
    static_assert(sizeof(T) <= 8, "one register or two");
    const size_t own = running_;
    memcpy(&exchange_[own], &value, sizeof(T));
    wait();
    T other;
    memcpy(&other, &exchange_[own ^ static_cast<size_t>(step)], sizeof(T));
    wait();
    return other;
  }

 private:
  static constexpr size_t kStack = 64 * 1024;
  struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = false;
  };

  static void enter() {
    EmulatedBlock& block = *current();
    block.kernel_();
    block.threads_[block.running_].done = true;
  }

  const std::function<void()>& kernel_;
  std::vector<unsigned char> shared_;
  std::vector<uint64_t> exchange_;
  std::vector<Thread> threads_;
  ucontext_t scheduler_;
  size_t running_ = 0;
};

inline unsigned char* emulated_shared_memory() { return EmulatedBlock::current()->shared(); }

inline void emulate_launch(dim3 grid, dim3 block, size_t shared_bytes,
                           const std::function<void()>& kernel) {
  gridDim = grid;
  blockDim = block;
  for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
    EmulatedBlock(block.x, shared_bytes, kernel).run();
  }
}

inline void __syncthreads() { EmulatedBlock::current()->wait(); }

template <typename T>
T __shfl_xor_sync(unsigned int, T value, int step, int = 32) {
  return EmulatedBlock::current()->exchange(value, step);
}

inline unsigned int __ballot_sync(unsigned int, bool value) {
  return EmulatedBlock::current()->ballot(value);
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}

template <typename T>
T atomicMax(T* address, T value) {
  const T before = *address;
  *address = before > value ? before : value;
  return before;
}

template <typename T>
T atomicMin(T* address, T value) {
  const T before = *address;
  *address = before < value ? before : value;
  return before;
}

template <typename T>
T atomicCAS(T* address, T expected, T value) {
  const T before = *address;
  if (before == expected) *address = value;
  return before;
}
