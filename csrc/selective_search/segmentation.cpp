#include "segmentation.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
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

  bool surely_one_atom(int32_t a, int32_t b) const {
    return parent_[size_t(a)] == parent_[size_t(b)];
  }

  void prefetch(int32_t pixel) const { PREDET_PREFETCH(&parent_[size_t(pixel)]); }
  void prefetch_parent(int32_t pixel) const {
    const size_t parent = size_t(parent_[size_t(pixel)]);
    PREDET_PREFETCH(&parent_[parent]);
    PREDET_PREFETCH(&atom_[parent]);
  }

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

  int32_t size(int32_t root, size_t k) const { return nodes_[size_t(root) * k_.size() + k].size; }

  int32_t join(int32_t a, int32_t b, size_t k) {
    if (at(a, k).size < at(b, k).size) std::swap(a, b);
    at(b, k).parent = a;
    at(a, k).size += at(b, k).size;
    return a;
  }

  // What was joined for one k, to be taken back later.
  std::vector<std::pair<int32_t, int32_t>> saved(size_t k) {
    std::vector<std::pair<int32_t, int32_t>> state;
    for (int32_t node = 0; node < nodes(); ++node) {
      state.emplace_back(at(node, k).parent, at(node, k).size);
    }
    return state;
  }
  void restore(const std::vector<std::pair<int32_t, int32_t>>& state, size_t k) {
    for (int32_t node = 0; node < int32_t(state.size()); ++node) {
      at(node, k).parent = state[size_t(node)].first;
      at(node, k).size = state[size_t(node)].second;
    }
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

// Joins every region that is too small across the lightest edge that leaves it.
class SmallRegions {
 public:
  SmallRegions(Partitions& partitions, int32_t min_size)
      : partitions_(partitions), min_size_(min_size) {}

  void join(const std::vector<Refused>& edges, size_t k) {
    for (const Refused& edge : edges) join(edge, k);
  }

  // The same; returns how often the order of edges of equal weight decided about the regions.
  int32_t join_and_count(const std::vector<Refused>& edges, size_t k) {
    int32_t decided = 0;
    for (size_t first = 0, last = 0; first < edges.size(); first = last) {
      while (last < edges.size() && edges[last].key == edges[first].key) ++last;
      if (last - first > 1) decided += order_decides(edges.data() + first, last - first, k);
      for (size_t i = first; i < last; ++i) join(edges[i], k);
    }
    return decided;
  }

 private:
  static constexpr size_t kMostPairs = 4;  // more are not tried in every order

  struct Pair {
    int32_t a, b;
    bool operator==(const Pair& other) const { return a == other.a && b == other.b; }
    bool shares(const Pair& other) const {
      return a == other.a || a == other.b || b == other.a || b == other.b;
    }
  };

  void join(const Refused& edge, size_t k) {
    const int32_t a = partitions_.root(edge.a, k), b = partitions_.root(edge.b, k);
    if (concerns(a, b, k)) partitions_.join(a, b, k);
  }

  bool concerns(int32_t a, int32_t b, size_t k) {
    return a != b && (partitions_.size(a, k) < min_size_ || partitions_.size(b, k) < min_size_);
  }

  bool order_decides(const Refused* edges, size_t count, size_t k) {
    pairs_.clear();
    bool shared = false;
    for (size_t i = 0; i < count; ++i) {
      const int32_t a = partitions_.root(edges[i].a, k), b = partitions_.root(edges[i].b, k);
      if (!concerns(a, b, k)) continue;
      const Pair pair{std::min(a, b), std::max(a, b)};
      if (std::find(pairs_.begin(), pairs_.end(), pair) != pairs_.end()) continue;
      for (const Pair& other : pairs_) shared = shared || other.shares(pair);
      pairs_.push_back(pair);
      if (shared && pairs_.size() > kMostPairs) return true;
    }
    if (!shared) return false;
    std::array<size_t, kMostPairs> order{0, 1, 2, 3};
    const auto end = order.begin() + int64_t(pairs_.size());
    const std::vector<int32_t> first = joined_in(order.data(), k);
    while (std::next_permutation(order.begin(), end)) {
      if (joined_in(order.data(), k) != first) return true;
    }
    return false;
  }

  // For both ends of every pair, the least region that it is joined with in the end.
  std::vector<int32_t> joined_in(const size_t* order, size_t k) const {
    std::vector<int32_t> ends;
    for (const Pair& pair : pairs_) ends.insert(ends.end(), {pair.a, pair.b});
    const auto size = [&](const std::vector<int32_t>& label, int32_t of) {
      int64_t sum = 0;
      for (size_t i = 0; i < ends.size(); ++i) {
        const bool new_one = std::find(ends.begin(), ends.begin() + int64_t(i), ends[i]) ==
                             ends.begin() + int64_t(i);
        if (label[i] == of && new_one) sum += partitions_.size(ends[i], k);
      }
      return sum;
    };
    std::vector<int32_t> label = ends;
    for (size_t i = 0; i < pairs_.size(); ++i) {
      const int32_t a = label[2 * order[i]], b = label[2 * order[i] + 1];
      if (a == b || (size(label, a) >= min_size_ && size(label, b) >= min_size_)) continue;
      for (int32_t& of : label) of = of == a || of == b ? std::min(a, b) : of;
    }
    return label;
  }

  Partitions& partitions_;
  const int32_t min_size_;
  std::vector<Pair> pairs_;
};

// The two pixels that an edge joins.
struct Ends {
  int32_t a, b;
  Ends(const Edge& edge, int32_t width)
      : a(int32_t(edge.place >> 1)), b(a + ((edge.place & 1u) != 0 ? width : 1)) {}
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
    if (a != b && partitions.offer(a, b, weight_of(edges[i]))) refused.push_back(uint32_t(i));
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

std::vector<int32_t> join_small(Partitions& partitions, const std::vector<Refused>& refused,
                                const SmoothedImage& image, size_t count, int32_t min_size,
                                TieRule rule) {
  SmallRegions small(partitions, min_size);
  std::vector<int32_t> ambiguous;
  std::vector<Refused> in_std_order;
  for (size_t k = 0; k < count; ++k) {
    const auto before = partitions.saved(k);
    ambiguous.push_back(small.join_and_count(refused, k));
    if (ambiguous.back() == 0 || rule == TieRule::own) continue;
    if (in_std_order.empty()) in_std_order = refused_in_std_order(partitions, image);
    partitions.restore(before, k);
    small.join(in_std_order, k);
  }
  return ambiguous;
}

}  // namespace

Segmentation segment(const SmoothedImage& image, const std::vector<float>& k, int32_t min_size,
                     TieRule rule) {
  const int64_t pixels = int64_t(image.height) * image.width;
  Partitions partitions(pixels, k);
  std::vector<Refused> refused;
  {
    const Edges edges = sorted_edges(image);
    refused = join_similar(partitions, edges, image.width);
  }

  Segmentation result;
  result.ambiguous = join_small(partitions, refused, image, k.size(), min_size, rule);

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
