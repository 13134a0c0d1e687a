// Selective Search (Uijlings et al., IJCV 2013) in two steps: segmenting colour images, then
// grouping the regions of many of them, with all the work shared between threads.
#pragma once

#include <cstdint>
#include <vector>

#include "grouping.h"
#include "statistics.h"

namespace predet {
namespace selective_search {

constexpr int64_t kMostPixels = int64_t(1) << 26;
constexpr int64_t kLongestSide = 65535;

struct SegmentSettings {
  std::vector<float> k;  // ascending, positive
  int32_t min_size;
  bool with_color;
  bool fused;  // see ByteScale
  TieRule rule;
};

// The regions of one colour image, one set for each k. Holds nothing of the size of the image.
std::vector<Regions> find_regions(const ColorImage& image, const SegmentSettings& settings,
                                  int threads);

// The boxes of one image: distinct, ascending by x1, y1, x2, y2. Box i was made at the levels
// levels[first[i]] .. levels[first[i + 1] - 1], ascending, one for each time that it was made.
struct Boxes {
  std::vector<Box> boxes;
  std::vector<int32_t> levels;
  std::vector<int64_t> first;
  int64_t ties = 0;  // of all groupings
};

// Groups every set of regions of every image by every strategy.
std::vector<Boxes> find_boxes(const std::vector<std::vector<const Regions*>>& images,
                              const std::vector<Strategy>& strategies, TieRule rule, int threads);

}  // namespace selective_search
}  // namespace predet
