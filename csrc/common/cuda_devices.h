// Needs no header of CUDA, so every C++ compiler can include it.
#pragma once

namespace predet {

// 0 also where there is no driver, or one too old for this build.
int cuda_device_count();

}  // namespace predet
