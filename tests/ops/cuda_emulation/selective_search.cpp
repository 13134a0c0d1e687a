// The CUDA kernels of Selective Search, emulated, behind the bindings of predet._C.
#include <cuda_runtime.h>

// Blocks run one after the other, and all threads of a block share what is static.
#define __shared__ static
inline void __syncwarp() { EmulatedBlock::current()->wait(); }

#include "../../../csrc/selective_search/cuda.cu"
#undef __shared__

#include "../../../csrc/selective_search/bindings.cpp"

PYBIND11_MODULE(emulated_selective_search, module) { predet::selective_search::bind(module); }
