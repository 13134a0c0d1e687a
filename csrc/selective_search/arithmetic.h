// The formulas of Selective Search, shared by everything that evaluates them.
//
// Products and sums are rounded one by one, in the order written here: the boxes depend on it. So
// these files are compiled without contraction to fused multiply-adds.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/portability.h"

namespace predet {
namespace selective_search {

constexpr int kColorBins = 25;    // a channel
constexpr int kTextureBins = 10;  // a channel and direction
constexpr int kDirections = 8;    // four derivatives, each cut into its positive and negative part

// Which of several equally light edges, or equally similar pairs of regions, comes first.
enum class TieRule {
  own,     // edges in reading order; the pair that was found last
  opencv,  // what std::sort, which is free to choose, does with OpenCV's lists
};

// x1, y1 inclusive; x2, y2 exclusive
struct Box {
  int32_t x1, y1, x2, y2;
};

PREDET_HOST_DEVICE Box united(const Box& a, const Box& b) {
  return {a.x1 < b.x1 ? a.x1 : b.x1, a.y1 < b.y1 ? a.y1 : b.y1, a.x2 > b.x2 ? a.x2 : b.x2,
          a.y2 > b.y2 ? a.y2 : b.y2};
}

// Euclidean distance of two pixels' values.
PREDET_HOST_DEVICE float edge_weight(const float* a, const float* b, int channels) {
  float sum = 0.0f;
  for (int c = 0; c < channels; ++c) {
    const float difference = a[c] - b[c];
    sum += difference * difference;
  }
  return sqrtf(sum);
}

// How heavy an edge a component of `size` pixels, joined last by an edge of weight `last`, accepts.
PREDET_HOST_DEVICE float merge_threshold(float last, float k, int32_t size) {
  return last + k / static_cast<float>(size);
}

PREDET_HOST_DEVICE int color_bin(int value) { return (value * kColorBins) >> 8; }

PREDET_HOST_DEVICE float clamp_to_one(float x) {
  const float below = x < 1.0f ? x : 1.0f;
  return below > 0.0f ? below : 0.0f;
}

PREDET_HOST_DEVICE float size_similarity(int32_t size_a, int32_t size_b, int64_t pixels) {
  return clamp_to_one(1.0f - static_cast<float>(size_a + size_b) / static_cast<float>(pixels));
}

PREDET_HOST_DEVICE float fill_similarity(const Box& a, int32_t size_a, const Box& b, int32_t size_b,
                                         int64_t pixels) {
  const Box box = united(a, b);
  const int32_t area = (box.x2 - box.x1) * (box.y2 - box.y1);
  return clamp_to_one(1.0f -
                      static_cast<float>(area - size_a - size_b) / static_cast<float>(pixels));
}

// One bin of the histogram of two regions together.
PREDET_HOST_DEVICE float merged_bin(float a, int32_t size_a, float b, int32_t size_b) {
  const float in_a = a * static_cast<float>(size_a);
  const float in_b = b * static_cast<float>(size_b);
  return (in_a + in_b) / static_cast<float>(size_a + size_b);
}

// Scaling of the values low .. high to 0 .. 255, as OpenCV converts to 8 bits: in fp32, with one
// rounding (fused) where the processor has that instruction, else two; halves go to even numbers.
struct ByteScale {
  float factor = 0.0f, shift = 0.0f;
  bool empty = true;  // low == high: everything becomes 0
  bool fused = false;

  ByteScale() = default;
  PREDET_HOST_DEVICE ByteScale(float low, float high, bool fused_)
      : empty(!(high > low)), fused(fused_) {
    if (empty) return;
    const double range = double(high) - double(low);
    factor = static_cast<float>(255.0 / range);
    shift = static_cast<float>(-255.0 * double(low) / range);
  }

  PREDET_HOST_DEVICE int operator()(float value) const {
    if (empty) return 0;
    const float scaled = fused ? fmaf(value, factor, shift) : value * factor + shift;
    const float rounded = nearbyintf(scaled);
    return rounded < 0.0f ? 0 : rounded > 255.0f ? 255 : static_cast<int>(rounded);
  }
};

PREDET_HOST_DEVICE int texture_bin(int byte) {
  return static_cast<int>(static_cast<float>(byte) / (256.0f / static_cast<float>(kTextureBins)));
}

}  // namespace selective_search
}  // namespace predet
