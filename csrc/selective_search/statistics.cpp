#include "statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace predet {
namespace selective_search {
namespace {

constexpr int kDerivatives = kDirections / 2;

// Bins of one part of a derivative, the positive or the negative one. Bins ascend with the values,
// so the least value of each bin is found once; then comparing is enough, and exact.
class PartBins {
 public:
  PartBins() = default;
  PartBins(float low, float high, bool fused) : low_(low), scale_(low, high, fused) {
    for (int bin = 0; bin <= kTextureBins; ++bin) least_[bin] = least_value(bin, low, high);
    per_bin_ = scale_.empty ? 0.0f : float(kTextureBins) / 256.0f * scale_.factor;
    even_ = exact_bin(0.0f);
  }

  int even() const { return even_; }
  // The values from the first to below the second are in the bin of an even area.
  float even_from() const { return least_[even_]; }
  float even_to() const { return least_[even_ + 1]; }

  int bin(float value) const {
    int guess = static_cast<int>((value - low_) * per_bin_);
    guess = guess < 0 ? 0 : guess >= kTextureBins ? kTextureBins - 1 : guess;
    while (guess > 0 && value < least_[guess]) --guess;
    while (value >= least_[guess + 1]) ++guess;
    return guess;
  }

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  int exact_bin(float value) const { return texture_bin(scale_(value)); }

  float least_value(int bin, float low, float high) const {
    if (bin == 0) return -kInfinity;
    // Zero is in the part's range or next to it.
    low = std::min(low, 0.0f);
    high = std::max(high, 0.0f);
    if (exact_bin(high) < bin) return kInfinity;
    if (exact_bin(low) >= bin) return -kInfinity;
    while (std::nextafter(low, high) < high) {  // low is below the bin, high is not
      float middle = low + (high - low) / 2;
      if (!(middle > low && middle < high)) middle = std::nextafter(low, high);
      (exact_bin(middle) < bin ? low : high) = middle;
    }
    return high;
  }

  float low_ = 0.0f, per_bin_ = 0.0f;
  ByteScale scale_;
  float least_[kTextureBins + 1] = {};
  int even_ = 0;
};

// Adds the entries of one derivative; `first` is the histogram's first bin for its positive part.
void add_entries(const float* values, int64_t count, int32_t first, bool fused,
                 TextureBins& result) {
  float low = values[0], high = values[0];
  for (int64_t i = 1; i < count; ++i) {
    low = values[i] < low ? values[i] : low;
    high = values[i] > high ? values[i] : high;
  }
  const PartBins positive(std::max(low, 0.0f), std::max(high, 0.0f), fused);
  const PartBins negative(std::min(low, 0.0f), std::min(high, 0.0f), fused);
  const int32_t second = first + kTextureBins;
  result.even_bin.push_back(first + positive.even());
  result.even_bin.push_back(second + negative.even());
  const float even_from = negative.even_from(), even_to = positive.even_to();
  for (int64_t i = 0; i < count; ++i) {
    const float value = values[i];
    if (value >= even_from && value < even_to) continue;
    const int32_t bin = value > 0.0f ? first + positive.bin(value) : second + negative.bin(value);
    result.entries.push_back({uint32_t(i), uint32_t(bin)});
  }
}

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

  std::vector<Touching> sorted() {
    slots_.erase(std::remove(slots_.begin(), slots_.end(), kFree), slots_.end());
    std::sort(slots_.begin(), slots_.end());
    std::vector<Touching> pairs;
    pairs.reserve(slots_.size());
    for (const uint64_t pair : slots_) pairs.push_back({int32_t(pair >> 32), int32_t(pair)});
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
    add_entries(image.derivatives + plane * pixels, pixels, 2 * plane * kTextureBins, fused,
                result);
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
