#include "segmentation.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "arithmetic.h"
#include "partitions.h"

namespace predet {
namespace selective_search {
namespace {

constexpr int kDigitBits = 11, kDigits = 3;
constexpr uint32_t kDigitMask = (1u << kDigitBits) - 1;

struct DigitCounts {
  std::vector<uint32_t> counts[kDigits];
  DigitCounts() {
    for (auto& of_digit : counts) of_digit.assign(kDigitMask + 1, 0);
  }
  void add(uint32_t key) {
    for (int d = 0; d < kDigits; ++d) ++counts[d][(key >> (d * kDigitBits)) & kDigitMask];
  }
};

// Memory that is not set to zero first.
struct Edges {
  explicit Edges(int64_t count) : data(new Edge[size_t(count)]), size(size_t(count)) {}
  Edge* begin() const { return data.get(); }
  Edge* end() const { return data.get() + size; }
  const Edge& operator[](size_t i) const { return data[i]; }

  std::unique_ptr<Edge[]> data;
  size_t size;
};

template <int C>
Edges build_edges(const SmoothedImage& image, DigitCounts& digits) {
  const int64_t height = image.height, width = image.width;
  Edges edges(2 * height * width - height - width);
  Edge* next = edges.begin();
  const auto add = [&](const float* a, const float* b, int64_t place) {
    const float weight = edge_weight(a, b, C);
    std::memcpy(&next->key, &weight, sizeof(weight));
    next->place = static_cast<uint32_t>(place);
    digits.add(next++->key);
  };
  for (int64_t y = 0; y < height; ++y) {
    const float* row = image.values + y * width * C;
    for (int64_t x = 0; x < width; ++x) {
      const float* pixel = row + x * C;
      const int64_t place = 2 * (y * width + x);
      if (x + 1 < width) add(pixel, pixel + C, place);
      if (y + 1 < height) add(pixel, pixel + width * C, place + 1);
    }
  }
  return edges;
}

// All edges of the image by weight: radix sort, least significant digit first, linear and stable.
Edges sorted_edges(const SmoothedImage& image) {
  DigitCounts digits;
  Edges edges = image.channels == 1 ? build_edges<1>(image, digits) : build_edges<3>(image, digits);
  Edges sorted(int64_t(edges.size));
  for (int d = 0; d < kDigits; ++d) {
    uint32_t first = 0;
    for (uint32_t& count : digits.counts[d]) first += std::exchange(count, first);
    uint32_t* next = digits.counts[d].data();
    for (const Edge& edge : edges) {
      sorted.data[next[(edge.key >> (d * kDigitBits)) & kDigitMask]++] = edge;
    }
    std::swap(edges, sorted);
  }
  return edges;
}

// Memory of Partitions; pages of it that are never used cost nothing.
class OwnedPartitions {
 public:
  OwnedPartitions(int64_t pixels, const std::vector<float>& k)
      : parent_(new int32_t[size_t(pixels)]), atom_(new Atom[size_t(pixels)]),
        node_(new Node[size_t(pixels) * k.size()]),
        partitions({parent_.get(), atom_.get(), node_.get(), &nodes_}, k.data(),
                   int32_t(k.size())) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel) partitions.start(int32_t(pixel));
  }

 private:
  std::unique_ptr<int32_t[]> parent_;
  std::unique_ptr<Atom[]> atom_;
  std::unique_ptr<Node[]> node_;
  int32_t nodes_ = 0;

 public:
  Partitions partitions;
};

// What was joined for one k, to be taken back later.
class Saved {
 public:
  Saved(const Partitions& partitions, int32_t k) : partitions_(partitions), k_(k) {
    for (int32_t i = 0; i < partitions.nodes(); ++i) nodes_.push_back(partitions.at(i, k));
  }
  void restore() const {
    for (size_t i = 0; i < nodes_.size(); ++i) partitions_.at(int32_t(i), k_) = nodes_[i];
  }

 private:
  const Partitions& partitions_;
  const int32_t k_;
  std::vector<Node> nodes_;
};

// Offers all edges in order of weight; returns those that some k has refused.
std::vector<Refused> join_similar(Partitions& partitions, const Edges& edges, int32_t width) {
  constexpr size_t kFar = 32, kNear = 12;
  std::vector<uint32_t> refused;
  for (size_t i = 0; i < edges.size; ++i) {
    if (i + kFar < edges.size) {
      const Ends far(edges[i + kFar], width), near(edges[i + kNear], width);
      partitions.prefetch(far.a);
      partitions.prefetch(far.b);
      partitions.prefetch_parent(near.a);
      partitions.prefetch_parent(near.b);
    }
    const Ends ends(edges[i], width);
    if (partitions.surely_one_atom(ends.a, ends.b)) continue;
    const int32_t a = partitions.atom(ends.a), b = partitions.atom(ends.b);
    if (a != b && partitions.offer(a, b, edges[i].weight())) refused.push_back(uint32_t(i));
  }
  std::vector<Refused> between;
  between.reserve(refused.size());
  for (const uint32_t i : refused) {
    const Ends ends(edges[i], width);
    const int32_t a = partitions.atom(ends.a), b = partitions.atom(ends.b);
    if (a != b) between.push_back({edges[i].key, partitions.node(a), partitions.node(b)});
  }
  return between;
}

// The edges between atoms in the order that std::sort gives to OpenCV's list: every edge once from
// each end, pixel by pixel.
std::vector<Refused> refused_in_std_order(Partitions& partitions, const SmoothedImage& image) {
  struct Directed {
    float weight;
    uint32_t place;  // four times the pixel, plus the direction
  };
  const int64_t height = image.height, width = image.width, channels = image.channels;
  const int64_t steps[4] = {-width, -1, width, 1};
  std::vector<Directed> edges;
  edges.reserve(size_t(4 * height * width));
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const bool inside[4] = {y > 0, x > 0, y + 1 < height, x + 1 < width};
      const int64_t pixel = y * width + x;
      const float* a = image.values + pixel * channels;
      for (int64_t d = 0; d < 4; ++d) {
        if (!inside[d]) continue;
        const float weight = edge_weight(a, a + steps[d] * channels, int(channels));
        edges.push_back({weight, uint32_t(4 * pixel + d)});
      }
    }
  }
  std::sort(edges.begin(), edges.end(),
            [](const Directed& e, const Directed& f) { return e.weight < f.weight; });
  std::vector<Refused> refused;
  for (const Directed& edge : edges) {
    const int32_t pixel = int32_t(edge.place / 4);
    const int32_t a = partitions.atom(pixel);
    const int32_t b = partitions.atom(pixel + int32_t(steps[edge.place % 4]));
    if (a != b) refused.push_back({0, partitions.node(a), partitions.node(b)});
  }
  return refused;
}

// Returns for each k how often the order of equal edges decided.
std::vector<int32_t> join_small(Partitions& partitions, const std::vector<Refused>& refused,
                                const SmoothedImage& image, int32_t count, int32_t min_size,
                                TieRule rule) {
  std::vector<int32_t> ambiguous;
  std::vector<Refused> in_std_order;
  for (int32_t k = 0; k < count; ++k) {
    SmallRegions small(partitions, k, min_size);
    const Saved before(partitions, k);
    ambiguous.push_back(small.join_and_count(refused.data(), int64_t(refused.size())));
    if (ambiguous.back() == 0 || rule == TieRule::own) continue;
    if (in_std_order.empty()) in_std_order = refused_in_std_order(partitions, image);
    before.restore();
    for (const Refused& edge : in_std_order) small.join(edge);
  }
  return ambiguous;
}

}  // namespace

Segmentation segment(const SmoothedImage& image, const std::vector<float>& k, int32_t min_size,
                     TieRule rule) {
  const int64_t pixels = int64_t(image.height) * image.width;
  OwnedPartitions owned(pixels, k);
  Partitions& partitions = owned.partitions;
  std::vector<Refused> refused;
  {
    const Edges edges = sorted_edges(image);
    refused = join_similar(partitions, edges, image.width);
  }

  Segmentation result;
  result.ambiguous = join_small(partitions, refused, image, int32_t(k.size()), min_size, rule);

  // Number the atoms, then each k's regions, by their first pixel.
  result.atom_of_pixel.resize(size_t(pixels));
  std::vector<int32_t> node_of_atom;
  std::vector<int32_t> atom_of_node(size_t(partitions.nodes()), -1);
  for (int64_t i = 0; i < pixels; ++i) {
    const int32_t node = partitions.node(partitions.atom(int32_t(i)));
    if (size_t(node) >= atom_of_node.size()) atom_of_node.resize(size_t(node) + 1, -1);
    int32_t& atom = atom_of_node[size_t(node)];
    if (atom < 0) {
      atom = int32_t(node_of_atom.size());
      node_of_atom.push_back(node);
    }
    result.atom_of_pixel[size_t(i)] = atom;
  }
  std::vector<int32_t> region_of_root;
  for (size_t i = 0; i < k.size(); ++i) {
    region_of_root.assign(size_t(partitions.nodes()), -1);
    std::vector<int32_t> region_of_atom;
    region_of_atom.reserve(node_of_atom.size());
    int32_t regions = 0;
    for (const int32_t node : node_of_atom) {
      int32_t& region = region_of_root[size_t(partitions.root(node, int32_t(i)))];
      if (region < 0) region = regions++;
      region_of_atom.push_back(region);
    }
    result.region_of_atom.push_back(std::move(region_of_atom));
    result.regions.push_back(regions);
  }
  return result;
}

}  // namespace selective_search
}  // namespace predet
