// Selective Search on a GPU: many colour images at once, all on the caller's stream.
#pragma once

#include <cstdint>
#include <vector>

#include "hierarchy.h"

namespace predet {
namespace selective_search {

constexpr int kMostK = 16, kMostStrategies = 16;

// What is done with every colour image.
struct CudaSettings {
  float k[kMostK];  // ascending, positive
  int32_t ks;
  int32_t min_size;
  Strategy strategies[kMostStrategies];
  int32_t num_strategies;
  bool with_color, with_texture;
  bool fused;  // see ByteScale
};

// One colour image, in device memory; see ColorImage.
struct CudaImage {
  const uint8_t* values;
  const float* smoothed;
  const float* derivatives;
  int32_t height, width, channels;
};

// Bytes of device memory beside the images: for what is found, and to work with.
struct CudaBytes {
  int64_t output, workspace;
};
CudaBytes cuda_bytes(const std::vector<CudaImage>& images, const CudaSettings& settings);

// Queues the search. Equal weights and similarities come as with TieRule::own.
void search_cuda(const std::vector<CudaImage>& images, const CudaSettings& settings, void* output,
                 void* workspace, int device, void* stream);

// The boxes that one colour image made, as often as they were made.
struct CudaResult {
  std::vector<Box> boxes;
  std::vector<int32_t> levels;
  int64_t ambiguous = 0, ties = 0;  // as of Segmentation and Grouping
};

// Of an output that has been copied to the host.
std::vector<CudaResult> results_of(const std::vector<CudaImage>& images,
                                   const CudaSettings& settings, const void* output);

}  // namespace selective_search
}  // namespace predet
