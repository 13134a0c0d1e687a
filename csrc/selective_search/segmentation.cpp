#include "segmentation.h"

#include <cstring>
#include <utility>

#include "arithmetic.h"

namespace predet {
namespace selective_search {
namespace {

// `key` is the weight's bits, which sort like the weight because it is not negative; `place` is
// twice the pixel, plus one for the edge downwards instead of to the right.
struct Edge {
  uint32_t key;
  uint32_t place;
};

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

float weight_of(const Edge& edge) {
  float weight;
  std::memcpy(&weight, &edge.key, sizeof(weight));
  return weight;
}

std::vector<Edge> build_edges(const SmoothedImage& image, DigitCounts& digits) {
  const int64_t height = image.height, width = image.width, channels = image.channels;
  std::vector<Edge> edges(static_cast<size_t>(2 * height * width - height - width));
  size_t count = 0;
  const auto add = [&](const float* a, const float* b, int64_t place) {
    const float weight = edge_weight(a, b, static_cast<int>(channels));
    Edge& edge = edges[count++];
    std::memcpy(&edge.key, &weight, sizeof(weight));
    edge.place = static_cast<uint32_t>(place);
    digits.add(edge.key);
  };
  for (int64_t y = 0; y < height; ++y) {
    const float* row = image.values + y * width * channels;
    for (int64_t x = 0; x < width; ++x) {
      const float* pixel = row + x * channels;
      const int64_t place = 2 * (y * width + x);
      if (x + 1 < width) add(pixel, pixel + channels, place);
      if (y + 1 < height) add(pixel, pixel + width * channels, place + 1);
    }
  }
  return edges;
}

// Radix sort, least significant digit first: linear and stable.
void sort_edges(std::vector<Edge>& edges, DigitCounts& digits) {
  std::vector<Edge> sorted(edges.size());
  for (int d = 0; d < kDigits; ++d) {
    uint32_t first = 0;
    for (uint32_t& count : digits.counts[d]) first += std::exchange(count, first);
    uint32_t* next = digits.counts[d].data();
    for (const Edge& edge : edges) {
      sorted[next[(edge.key >> (d * kDigitBits)) & kDigitMask]++] = edge;
    }
    edges.swap(sorted);
  }
}

// The partitions of all k at once. As long as a component's history is the same for every k it is
// kept once, as an atom. Where the first k refuses what the last k accepts, both atoms become
// nodes of one union-find per k; from then on these differ. Since thresholds grow with k, the
// smallest k decides alone in most cases.
class Partitions {
 public:
  Partitions(int64_t pixels, const std::vector<float>& k)
      : k_(k), parent_(size_t(pixels)), atom_(size_t(pixels), Atom{1, 0.0f, k.front()}) {
    for (int64_t i = 0; i < pixels; ++i) parent_[size_t(i)] = int32_t(i);
  }

  int32_t atom(int32_t pixel) {
    int32_t root = pixel;
    while (parent_[size_t(root)] != root) root = parent_[size_t(root)];
    parent_[size_t(pixel)] = root;
    return root;
  }

  void prefetch(uint32_t pixel) const { PREDET_PREFETCH(&parent_[pixel]); }

  // An edge between two atoms, in order of weight. Returns whether some k has refused it.
  bool offer(int32_t a, int32_t b, float weight) {
    const Atom &in_a = atom_[size_t(a)], &in_b = atom_[size_t(b)];
    const bool both = in_a.node() < 0 && in_b.node() < 0;
    if (both && weight <= in_a.threshold && weight <= in_b.threshold) {
      join_atoms(a, b, weight);
      return false;
    }
    if (refused_by_all(in_a, weight) || refused_by_all(in_b, weight)) return true;
    return offer_nodes(node(a), node(b), weight);
  }

  // The atom's node; made when there is none.
  int32_t node(int32_t root) {
    Atom& atom = atom_[size_t(root)];
    if (atom.node() < 0) {
      const int32_t made = int32_t(nodes_.size() / k_.size());
      for (const float k : k_) {
        nodes_.push_back({made, atom.size, merge_threshold(atom.last, k, atom.size)});
      }
      atom.set_node(made);
    }
    return atom.node();
  }

  int32_t root(int32_t node, size_t k) {
    int32_t root = node;
    while (at(root, k).parent != root) root = at(root, k).parent;
    at(node, k).parent = root;
    return root;
  }

  int32_t size(int32_t root, size_t k) { return at(root, k).size; }

  int32_t join(int32_t a, int32_t b, size_t k) {
    if (at(a, k).size < at(b, k).size) std::swap(a, b);
    at(b, k).parent = a;
    at(a, k).size += at(b, k).size;
    return a;
  }

  int32_t nodes() const { return int32_t(nodes_.size() / k_.size()); }

 private:
  struct Atom {
    int32_t size;     // of an atom that is a node: minus one minus the node
    float last;       // weight of the edge that joined it last
    float threshold;  // for the first k
    int32_t node() const { return size < 0 ? -1 - size : -1; }
    void set_node(int32_t node) { size = -1 - node; }
  };
  struct Node {
    int32_t parent, size;
    float threshold;
  };

  bool refused_by_all(const Atom& atom, float weight) const {
    return atom.node() < 0 && weight > merge_threshold(atom.last, k_.back(), atom.size);
  }

  Node& at(int32_t node, size_t k) { return nodes_[size_t(node) * k_.size() + k]; }

  void join_atoms(int32_t a, int32_t b, float weight) {
    if (atom_[size_t(a)].size < atom_[size_t(b)].size) std::swap(a, b);
    parent_[size_t(b)] = a;
    Atom& atom = atom_[size_t(a)];
    atom.size += atom_[size_t(b)].size;
    atom.last = weight;
    atom.threshold = merge_threshold(weight, k_.front(), atom.size);
  }

  bool offer_nodes(int32_t a, int32_t b, float weight) {
    bool refused = false;
    for (size_t k = 0; k < k_.size(); ++k) {
      const int32_t root_a = root(a, k), root_b = root(b, k);
      if (root_a == root_b) continue;
      if (weight <= at(root_a, k).threshold && weight <= at(root_b, k).threshold) {
        Node& joined = at(join(root_a, root_b, k), k);
        joined.threshold = merge_threshold(weight, k_[k], joined.size);
      } else {
        refused = true;
      }
    }
    return refused;
  }

  const std::vector<float>& k_;
  std::vector<int32_t> parent_;
  std::vector<Atom> atom_;
  std::vector<Node> nodes_;  // [node][k]
};

struct Refused {
  uint32_t key;
  int32_t a, b;  // nodes
};

class SmallRegions {
 public:
  SmallRegions(Partitions& partitions, const std::vector<Refused>& edges, int32_t min_size)
      : partitions_(partitions), edges_(edges), min_size_(min_size) {}

  // Joins every region that is too small across the lightest edge that leaves it. Returns how
  // often edges of equal weight compete, where their order decides about the regions.
  int32_t join(size_t k) {
    int32_t ambiguous = 0;
    for (size_t first = 0, last = 0; first < edges_.size(); first = last) {
      while (last < edges_.size() && edges_[last].key == edges_[first].key) ++last;
      if (last - first > 1 && compete(first, last, k)) ++ambiguous;
      for (size_t i = first; i < last; ++i) {
        const int32_t a = partitions_.root(edges_[i].a, k), b = partitions_.root(edges_[i].b, k);
        if (concerns(a, b, k)) partitions_.join(a, b, k);
      }
    }
    return ambiguous;
  }

 private:
  bool concerns(int32_t a, int32_t b, size_t k) {
    return a != b && (partitions_.size(a, k) < min_size_ || partitions_.size(b, k) < min_size_);
  }

  // Whether two different pairs of these equal edges share a region.
  bool compete(size_t first, size_t last, size_t k) {
    pairs_.clear();
    for (size_t i = first; i < last; ++i) {
      int32_t a = partitions_.root(edges_[i].a, k), b = partitions_.root(edges_[i].b, k);
      if (!concerns(a, b, k)) continue;
      if (a > b) std::swap(a, b);
      for (const auto& pair : pairs_) {
        const bool same = pair.first == a && pair.second == b;
        const bool shares = pair.first == a || pair.first == b || pair.second == a ||
                            pair.second == b;
        if (shares && !same) return true;
      }
      pairs_.emplace_back(a, b);
    }
    return false;
  }

  Partitions& partitions_;
  const std::vector<Refused>& edges_;
  const int32_t min_size_;
  std::vector<std::pair<int32_t, int32_t>> pairs_;
};

// Offers all edges in order of weight; returns those that some k has refused.
std::vector<Refused> join_similar(Partitions& partitions, const std::vector<Edge>& edges,
                                  int32_t width) {
  constexpr size_t kAhead = 16;
  std::vector<uint32_t> refused;
  for (size_t i = 0; i < edges.size(); ++i) {
    if (i + kAhead < edges.size()) {
      const uint32_t place = edges[i + kAhead].place;
      partitions.prefetch(place >> 1);
      partitions.prefetch((place >> 1) + (place & 1u) * uint32_t(width));
    }
    const int32_t pixel = int32_t(edges[i].place >> 1);
    const int32_t other = pixel + ((edges[i].place & 1u) != 0 ? width : 1);
    const int32_t a = partitions.atom(pixel), b = partitions.atom(other);
    if (a != b && partitions.offer(a, b, weight_of(edges[i]))) refused.push_back(uint32_t(i));
  }
  std::vector<Refused> between;
  between.reserve(refused.size());
  for (const uint32_t i : refused) {
    const int32_t pixel = int32_t(edges[i].place >> 1);
    const int32_t other = pixel + ((edges[i].place & 1u) != 0 ? width : 1);
    const int32_t a = partitions.atom(pixel), b = partitions.atom(other);
    if (a != b) between.push_back({edges[i].key, partitions.node(a), partitions.node(b)});
  }
  return between;
}

}  // namespace

Segmentation segment(const SmoothedImage& image, const std::vector<float>& k, int32_t min_size) {
  const int64_t pixels = int64_t(image.height) * image.width;
  Partitions partitions(pixels, k);
  std::vector<Refused> refused;
  {
    DigitCounts digits;
    std::vector<Edge> edges = build_edges(image, digits);
    sort_edges(edges, digits);
    refused = join_similar(partitions, edges, image.width);
  }

  Segmentation result;
  SmallRegions small(partitions, refused, min_size);
  for (size_t i = 0; i < k.size(); ++i) result.ambiguous.push_back(small.join(i));

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
      int32_t& region = region_of_root[size_t(partitions.root(node, i))];
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
