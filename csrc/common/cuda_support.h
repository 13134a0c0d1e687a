// What the hosts of CUDA kernels share; for .cu files. Errors become RuntimeErrors of Python.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <tuple>

// The dynamic shared memory of a kernel, as bytes.
#if defined(PREDET_CUDA_EMULATION)  // tests/ops/cuda_emulation
#define PREDET_SHARED_MEMORY(name) unsigned char* name = emulated_shared_memory()
#else
#define PREDET_SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace predet {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

// After a launch: what was wrong with it (not with its work, which is still to be done).
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

// Launches kernel(arguments...) and checks the launch.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
#if defined(PREDET_CUDA_EMULATION)
  (void)name;
  (void)stream;
  emulate_launch(grid, block, shared_bytes, [&] { kernel(arguments...); });
#else
  std::tuple<Parameters...> parameters(arguments...);
  std::apply(
      [&](auto&... each) {
        void* addresses[] = {&each...};
        check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, addresses,
                                    shared_bytes, stream),
                   name);
      },
      parameters);
#endif
}

// Makes a device the current one as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device_) check_cuda(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (before_ != device_) (void)cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  int device_;
};

}  // namespace predet
