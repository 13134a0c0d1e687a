// Graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004) of one image with several
// values of k at once.
#pragma once

#include <cstdint>
#include <vector>

#include "arithmetic.h"

namespace predet {
namespace selective_search {

// An atom is a set of pixels that lie in one region for every k. Atoms are numbered by their first
// pixel in reading order, and so are the regions of each k.
struct Segmentation {
  std::vector<int32_t> atom_of_pixel;                // (H * W)
  std::vector<std::vector<int32_t>> region_of_atom;  // [k][atom]
  std::vector<int32_t> regions;                      // [k] how many
  std::vector<int32_t> ambiguous;  // [k] how often the order of equal edges decided
};

struct SmoothedImage {
  const float* values;  // (H, W, C)
  int32_t height, width, channels;
};

// `k`: ascending and positive. Regions below `min_size` pixels are joined to a neighbour.
// The order of equal edges can only matter when these are joined.
Segmentation segment(const SmoothedImage& image, const std::vector<float>& k, int32_t min_size,
                     TieRule rule);

}  // namespace selective_search
}  // namespace predet
