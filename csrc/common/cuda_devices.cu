#include "cuda_devices.h"

#include <cuda_runtime.h>

namespace predet {

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();  // else the next check would find it
  return 0;
}

}  // namespace predet
