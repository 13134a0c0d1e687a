#include "statistics.h"

#include <algorithm>
#include <array>
#include <limits>

namespace predet {
namespace selective_search {
namespace {

constexpr int kDerivatives = kDirections / 2;

// Bins of one derivative: of its positive part and of its negative part.
class DerivativeBins {
 public:
  DerivativeBins(const float* values, int64_t count, bool fused) {
    float low = values[0], high = values[0];
    for (int64_t i = 1; i < count; ++i) {
      low = values[i] < low ? values[i] : low;
      high = values[i] > high ? values[i] : high;
    }
    const auto cut = [](float x, bool positive) { return positive == (x > 0.0f) ? x : 0.0f; };
    scale_[0] = ByteScale(cut(low, true), cut(high, true), fused);
    scale_[1] = ByteScale(cut(low, false), cut(high, false), fused);
    for (int byte = 0; byte < 256; ++byte) bin_of_byte_[size_t(byte)] = uint8_t(texture_bin(byte));
    for (int part = 0; part < 2; ++part) even_[part] = bin(part, 0.0f);
    // 24 of 255 next to the byte of an even area are surely in its bin: a bin is 25.6 wide.
    if (!scale_[0].empty) certain_high_ = 24.0f / scale_[0].factor;
    if (!scale_[1].empty) certain_low_ = -24.0f / scale_[1].factor;
  }

  bool surely_even(float value) const { return value < certain_high_ && value > certain_low_; }
  int even(int part) const { return even_[part]; }
  int bin(int part, float value) const {
    const float of_part = (part == 0) == (value > 0.0f) ? value : 0.0f;
    return bin_of_byte_[size_t(scale_[part](of_part))];
  }

 private:
  ByteScale scale_[2];
  std::array<uint8_t, 256> bin_of_byte_;
  int even_[2];
  float certain_low_ = -std::numeric_limits<float>::infinity();
  float certain_high_ = std::numeric_limits<float>::infinity();
};

// Pairs of neighbours, each kept once.
class PairSet {
 public:
  PairSet() : slots_(1024, kFree) {}

  void add(int32_t a, int32_t b) {
    if (a > b) std::swap(a, b);
    const uint64_t pair = uint64_t(uint32_t(a)) << 32 | uint32_t(b);
    if (pair == last_) return;
    last_ = pair;
    if (2 * (count_ + 1) > slots_.size()) grow();
    insert(pair);
  }

  std::vector<std::pair<int32_t, int32_t>> sorted() {
    slots_.erase(std::remove(slots_.begin(), slots_.end(), kFree), slots_.end());
    std::sort(slots_.begin(), slots_.end());
    std::vector<std::pair<int32_t, int32_t>> pairs;
    pairs.reserve(slots_.size());
    for (const uint64_t pair : slots_) pairs.emplace_back(int32_t(pair >> 32), int32_t(pair));
    return pairs;
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t(0);

  void insert(uint64_t pair) {
    const size_t mask = slots_.size() - 1;
    size_t i = size_t((pair * 0x9E3779B97F4A7C15u) >> 20) & mask;
    while (slots_[i] != kFree && slots_[i] != pair) i = (i + 1) & mask;
    count_ += slots_[i] == kFree;
    slots_[i] = pair;
  }

  void grow() {
    std::vector<uint64_t> old(2 * slots_.size(), kFree);
    old.swap(slots_);
    count_ = 0;
    for (const uint64_t pair : old) {
      if (pair != kFree) insert(pair);
    }
  }

  std::vector<uint64_t> slots_;
  size_t count_ = 0;
  uint64_t last_ = kFree;
};

// Two pixels touch when one is left of, above, or left above the other; the first row and the
// first column are not looked at.
void measure_shapes(const ColorImage& image, const Segmentation& segmentation, size_t k,
                    Regions& regions) {
  const std::vector<int32_t>& region_of_atom = segmentation.region_of_atom[k];
  const int32_t width = image.width;
  std::vector<int32_t> above(static_cast<size_t>(width)), row(static_cast<size_t>(width));
  PairSet pairs;
  for (int32_t y = 0; y < image.height; ++y) {
    const int32_t* atoms = segmentation.atom_of_pixel.data() + int64_t(y) * width;
    for (int32_t x = 0; x < width; ++x) row[size_t(x)] = region_of_atom[size_t(atoms[x])];
    for (int32_t x = 0; x < width;) {
      const int32_t region = row[size_t(x)];
      const int32_t first = x;
      while (x < width && row[size_t(x)] == region) ++x;
      Box& box = regions.boxes[size_t(region)];
      box = united(box, {first, y, x, y + 1});
      regions.sizes[size_t(region)] += x - first;
    }
    if (y > 0) {
      for (int32_t x = 1; x < width; ++x) {
        const int32_t here = row[size_t(x)], left = row[size_t(x - 1)];
        const int32_t up = above[size_t(x)], corner = above[size_t(x - 1)];
        if (((here ^ left) | (here ^ up) | (here ^ corner)) == 0) continue;
        if (here != left) pairs.add(here, left);
        if (here != up) pairs.add(here, up);
        if (here != corner) pairs.add(here, corner);
      }
    }
    above.swap(row);
  }
  regions.touching = pairs.sorted();
}

template <int C>
void count_colors(const ColorImage& image, const Segmentation& segmentation, size_t k,
                  std::vector<int32_t>& counts) {
  const int32_t* region_of_atom = segmentation.region_of_atom[k].data();
  const int32_t* atoms = segmentation.atom_of_pixel.data();
  for (int64_t i = 0; i < image.pixels(); ++i) {
    int32_t* row = counts.data() + int64_t(region_of_atom[atoms[i]]) * (C * kColorBins);
    for (int c = 0; c < C; ++c) ++row[c * kColorBins + color_bin(image.values[i * C + c])];
  }
}

void measure_colors(const ColorImage& image, const Segmentation& segmentation, size_t k,
                    Regions& regions) {
  const size_t bins = size_t(image.channels) * kColorBins;
  std::vector<int32_t> counts(regions.sizes.size() * bins, 0);
  if (image.channels == 1) {
    count_colors<1>(image, segmentation, k, counts);
  } else {
    count_colors<3>(image, segmentation, k, counts);
  }
  regions.color_bins = int32_t(bins);
  regions.color.resize(counts.size());
  for (size_t first = 0; first < counts.size(); first += bins) {
    float total = 0.0f;
    for (size_t b = 0; b < bins; ++b) total += static_cast<float>(counts[first + b]);
    for (size_t b = 0; b < bins; ++b) {
      regions.color[first + b] = static_cast<float>(counts[first + b]) / total;
    }
  }
}

void measure_textures(const TextureBins& texture, const Segmentation& segmentation, size_t k,
                      Regions& regions) {
  const size_t bins = size_t(texture.bins);
  std::vector<int32_t> counts(regions.sizes.size() * bins, 0);
  const int32_t* region_of_atom = segmentation.region_of_atom[k].data();
  const int32_t* atoms = segmentation.atom_of_pixel.data();
  for (const TextureBins::Entry& entry : texture.entries) {
    ++counts[size_t(region_of_atom[atoms[entry.pixel]]) * bins + entry.bin];
  }
  regions.texture_bins = texture.bins;
  regions.texture.resize(counts.size());
  for (size_t region = 0; region < regions.sizes.size(); ++region) {
    int32_t* row = counts.data() + region * bins;
    for (size_t part = 0; part < texture.even_bin.size(); ++part) {
      int32_t uneven = 0;
      for (int b = 0; b < kTextureBins; ++b) uneven += row[part * kTextureBins + size_t(b)];
      row[texture.even_bin[part]] = regions.sizes[region] - uneven;
    }
    const int32_t total = regions.sizes[region] * int32_t(texture.even_bin.size());
    for (size_t b = 0; b < bins; ++b) {
      regions.texture[region * bins + b] = static_cast<float>(row[b]) / static_cast<float>(total);
    }
  }
}

}  // namespace

TextureBins texture_bins(const ColorImage& image, bool fused) {
  TextureBins result;
  result.bins = image.channels * kDirections * kTextureBins;
  const int64_t pixels = image.pixels();
  for (int32_t plane = 0; plane < image.channels * kDerivatives; ++plane) {
    const float* values = image.derivatives + plane * pixels;
    const DerivativeBins bins(values, pixels, fused);
    int32_t first[2];
    for (int part = 0; part < 2; ++part) {
      first[part] = (2 * plane + part) * kTextureBins;
      result.even_bin.push_back(first[part] + bins.even(part));
    }
    for (int64_t i = 0; i < pixels; ++i) {
      if (bins.surely_even(values[i])) continue;
      for (int part = 0; part < 2; ++part) {
        const int bin = bins.bin(part, values[i]);
        if (bin != bins.even(part)) {
          result.entries.push_back({uint32_t(i), uint32_t(first[part] + bin)});
        }
      }
    }
  }
  return result;
}

Regions measure(const ColorImage& image, const TextureBins& texture,
                const Segmentation& segmentation, size_t k, bool with_color) {
  const size_t count = size_t(segmentation.regions[k]);
  Regions regions;
  regions.pixels = image.pixels();
  regions.boxes.assign(count, {image.width, image.height, 0, 0});
  regions.sizes.assign(count, 0);
  regions.ambiguous = segmentation.ambiguous[k];
  measure_shapes(image, segmentation, k, regions);
  if (with_color) measure_colors(image, segmentation, k, regions);
  if (texture.bins > 0) measure_textures(texture, segmentation, k, regions);
  return regions;
}

}  // namespace selective_search
}  // namespace predet
