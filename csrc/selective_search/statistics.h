// What the grouping needs to know of the regions of one segmentation, measured in one pass.
#pragma once

#include <cstdint>
#include <vector>

#include "arithmetic.h"
#include "hierarchy.h"
#include "segmentation.h"

namespace predet {
namespace selective_search {

// One colour image.
struct ColorImage {
  const uint8_t* values;  // (H, W, C)
  const float* smoothed;  // (H, W, C)
  // (C, 4, H, W): derivatives in x, in y, and in x and y of the image turned by 45 degrees;
  // nullptr when no strategy looks at texture
  const float* derivatives;
  int32_t height, width, channels;
  int64_t pixels() const { return int64_t(height) * width; }
};

// The texture bins that pixels fall into, without the bin of an even area, which most fall into:
// that one is what is missing to the region's size.
struct TextureBins {
  struct Entry {
    uint32_t pixel;
    uint32_t bin;
  };
  int32_t bins = 0;  // of a histogram: channels x 8 directions x 10
  std::vector<int32_t> even_bin;  // of each channel and direction, an index into the histogram
  std::vector<Entry> entries;
};

TextureBins texture_bins(const ColorImage& image, bool fused);

// The regions of one colour image for one k, as the grouping starts with them.
struct Regions {
  int64_t pixels = 0;
  std::vector<Box> boxes;
  std::vector<int32_t> sizes;
  int32_t color_bins = 0, texture_bins = 0;
  std::vector<float> color, texture;                 // (regions, bins); each row sums to one
  std::vector<Touching> touching;                    // ascending pairs, ascending
  int32_t ambiguous = 0;                             // see Segmentation
};

Regions measure(const ColorImage& image, const TextureBins& texture,
                const Segmentation& segmentation, size_t k, bool with_color);

}  // namespace selective_search
}  // namespace predet
