// Where the things of a search on a GPU lie in its memory.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda.h"
#include "partitions.h"

namespace predet {
namespace selective_search {

constexpr int kSortThreads = 256, kDigits = 256;
constexpr int kDerivatives = kDirections / 2;
constexpr unsigned long long kFreeSlot = ~0ull;
// Numbers that kernels find, by place; the last two for each k.
enum { kNumNodes, kNumRefused, kNumRegions, kNumPairs = kNumRegions + kMostK };
constexpr int kScalars = kNumPairs + kMostK;

PREDET_HOST_DEVICE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// How the positive and the negative part of a derivative become bins.
struct PlaneBins {
  ByteScale scale[2];
  int32_t even[2];  // bin of zero
};

struct Found {
  int32_t made, ties;
};

// One colour image. Every region has min_size pixels, unless it is the only one; and as pixels that
// touch make a plane graph (each cell of the grid with one of its diagonals), N regions have less
// than 3 N pairs.
struct Work {
  CudaImage image;
  int64_t pixels, num_edges, most_regions, most_pairs, slots;
  int32_t color_bins, texture_bins, planes;
  // Output.
  int32_t* ambiguous;   // [k]
  Found* found;         // [grouping]
  Box* made_box;        // [grouping][2 most_regions]
  int32_t* made_level;  // [grouping][2 most_regions]
  // Workspace.
  int32_t* scalars;
  Edge *edges, *sorted;
  uint32_t* counts;  // [digit][thread]
  Partitions::Memory partitions;
  Refused* refused;
  int32_t* label;  // [k][pixel]
  Box* box;        // [k][most_regions], and so on
  int32_t *size, *color_counts, *texture_counts, *next;
  float *color, *texture;
  unsigned long long* pair_set;          // [k][slots]
  Touching *touching, *spare_touching;  // [k][most_pairs]
  PlaneBins* plane_bins;
  char* groupings;
  int64_t grouping_bytes;
};

// Hands out memory piece by piece; without an address it only counts.
class Shelf {
 public:
  PREDET_HOST_DEVICE explicit Shelf(void* memory) : start_(static_cast<char*>(memory)) {}

  template <typename T>
  PREDET_HOST_DEVICE T* take(int64_t count) {
    char* taken = start_ == nullptr ? nullptr : start_ + bytes_;
    bytes_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(taken);
  }
  PREDET_HOST_DEVICE int64_t bytes() const { return bytes_; }

 private:
  char* start_;
  int64_t bytes_ = 0;
};

struct GroupingWork {
  Hierarchy::Memory hierarchy;
  Pairs::Memory pairs;
  int64_t bytes;
};

// What grouping `number` of an image works with.
PREDET_HOST_DEVICE GroupingWork grouping_work(const Work& w, int64_t number) {
  Shelf shelf(w.groupings == nullptr ? nullptr : w.groupings + number * w.grouping_bytes);
  const int64_t regions = w.most_regions, pairs = w.most_pairs;
  GroupingWork g;
  g.hierarchy.box = w.made_box == nullptr ? nullptr : w.made_box + 2 * number * regions;
  g.hierarchy.level = w.made_level == nullptr ? nullptr : w.made_level + 2 * number * regions;
  g.hierarchy.size = shelf.take<int32_t>(2 * regions);
  g.hierarchy.row = shelf.take<int32_t>(2 * regions);
  g.hierarchy.color = shelf.take<float>(regions * w.color_bins);
  g.hierarchy.texture = shelf.take<float>(regions * w.texture_bins);
  g.hierarchy.color_bins = w.color_bins;
  g.hierarchy.texture_bins = w.texture_bins;
  g.pairs.region = shelf.take<int32_t>(2 * pairs);
  g.pairs.before = shelf.take<int32_t>(2 * pairs);
  g.pairs.after = shelf.take<int32_t>(2 * pairs);
  g.pairs.first = shelf.take<int32_t>(regions);
  g.pairs.last = shelf.take<int32_t>(regions);
  g.pairs.seen = shelf.take<int32_t>(regions);
  g.pairs.changed = shelf.take<int32_t>(pairs);
  g.pairs.best = shelf.take<uint64_t>(2 * Pairs::leaves(pairs));
  g.pairs.shared = shelf.take<int32_t>(2);
  g.bytes = shelf.bytes();
  return g;
}

inline Work work_of(const CudaImage& image, const CudaSettings& settings, Shelf& output,
                    Shelf& memory) {
  Work w{};
  w.image = image;
  w.pixels = int64_t(image.height) * image.width;
  w.num_edges = 2 * w.pixels - image.height - image.width;
  const int64_t least = settings.min_size > 1 ? settings.min_size : 1;
  w.most_regions = w.pixels / least > 1 ? w.pixels / least : 1;
  w.most_pairs = 3 * w.most_regions;
  w.slots = 2 * Pairs::leaves(w.most_pairs);
  w.color_bins = settings.with_color ? image.channels * kColorBins : 0;
  w.planes = settings.with_texture ? image.channels * kDerivatives : 0;
  w.texture_bins = 2 * w.planes * kTextureBins;
  const int64_t groupings = int64_t(settings.ks) * settings.num_strategies;
  w.ambiguous = output.take<int32_t>(settings.ks);
  w.found = output.take<Found>(groupings);
  w.made_box = output.take<Box>(2 * groupings * w.most_regions);
  w.made_level = output.take<int32_t>(2 * groupings * w.most_regions);
  w.scalars = memory.take<int32_t>(kScalars);
  w.edges = memory.take<Edge>(w.num_edges);
  w.sorted = memory.take<Edge>(w.num_edges);
  w.counts = memory.take<uint32_t>(kDigits * kSortThreads);
  w.partitions.parent = memory.take<int32_t>(w.pixels);
  w.partitions.atom = memory.take<Atom>(w.pixels);
  w.partitions.node = memory.take<Node>(settings.ks * w.pixels);
  w.partitions.nodes = w.scalars == nullptr ? nullptr : w.scalars + kNumNodes;
  w.refused = memory.take<Refused>(w.num_edges);
  w.label = memory.take<int32_t>(settings.ks * w.pixels);
  const int64_t regions = settings.ks * w.most_regions;
  w.box = memory.take<Box>(regions);
  w.size = memory.take<int32_t>(regions);
  w.color_counts = memory.take<int32_t>(regions * w.color_bins);
  w.texture_counts = memory.take<int32_t>(regions * w.texture_bins);
  w.next = memory.take<int32_t>(regions + settings.ks);
  w.color = memory.take<float>(regions * w.color_bins);
  w.texture = memory.take<float>(regions * w.texture_bins);
  w.pair_set = memory.take<unsigned long long>(settings.ks * w.slots);
  w.touching = memory.take<Touching>(3 * regions);
  w.spare_touching = memory.take<Touching>(3 * regions);
  w.plane_bins = memory.take<PlaneBins>(w.planes);
  w.grouping_bytes = grouping_work(w, 0).bytes;
  w.groupings = memory.take<char>(groupings * w.grouping_bytes);
  return w;
}

struct Layout {
  std::vector<Work> works;
  CudaBytes bytes;
};

// The workspace begins with the works themselves.
inline Layout lay_out(const std::vector<CudaImage>& images, const CudaSettings& settings,
                      void* output, void* workspace) {
  Layout layout;
  Shelf of_output(output), memory(workspace);
  (void)memory.take<Work>(int64_t(images.size()));
  for (const CudaImage& image : images) {
    layout.works.push_back(work_of(image, settings, of_output, memory));
  }
  layout.bytes = {of_output.bytes(), memory.bytes()};
  return layout;
}

}  // namespace selective_search
}  // namespace predet
