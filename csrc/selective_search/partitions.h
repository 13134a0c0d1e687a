// The merging of pixels into first regions (Felzenszwalb and Huttenlocher, IJCV 2004), edge by edge
// in order of weight, for several k at once. One thread of the CPU or of a GPU does it at a time.
#pragma once

#include <cstdint>

#include "../common/numeric.h"
#include "arithmetic.h"

namespace predet {
namespace selective_search {

template <typename T>
PREDET_HOST_DEVICE void swap_values(T& a, T& b) {
  const T kept = a;
  a = b;
  b = kept;
}

// `key` is the weight's bits, which sort like the weight because it is not negative; `place` is
// twice the pixel, plus one for the edge downwards instead of to the right.
struct Edge {
  uint32_t key;
  uint32_t place;
  PREDET_HOST_DEVICE float weight() const { return float_from_bits(key); }
};

// The two pixels that an edge joins.
struct Ends {
  int32_t a, b;
  PREDET_HOST_DEVICE Ends(const Edge& edge, int32_t width)
      : a(int32_t(edge.place >> 1)), b(a + ((edge.place & 1u) != 0 ? width : 1)) {}
};

// An edge that some k has refused.
struct Refused {
  uint32_t key;
  int32_t a, b;  // nodes
};

struct Atom {
  int32_t size;     // of an atom that is a node: minus one minus the node
  float last;       // weight of the edge that joined it last
  float threshold;  // for the first k
  PREDET_HOST_DEVICE int32_t node() const { return size < 0 ? -1 - size : -1; }
  PREDET_HOST_DEVICE void set_node(int32_t node) { size = -1 - node; }
};

struct Node {
  int32_t parent, size;
  union {
    float threshold;  // while similar regions are joined
    int32_t mark;     // afterwards free for use
  };
};

// The partitions of all k at once. As long as a component's history is the same for every k it is
// kept once, as an atom. Where the first k refuses what the last k accepts, both atoms become
// nodes of one union-find per k; from then on these differ. Since thresholds grow with k, the
// smallest k decides alone in most cases.
class Partitions {
 public:
  // Of an image of N pixels: N parents and atoms, K times N nodes, and the number of nodes, 0 at
  // first. Each pixel starts() as an atom.
  struct Memory {
    int32_t* parent;
    Atom* atom;
    Node* node;  // [node][k]
    int32_t* nodes;
  };

  PREDET_HOST_DEVICE Partitions(const Memory& memory, const float* k, int32_t count)
      : m_(memory), k_(k), count_(count) {}

  PREDET_HOST_DEVICE void start(int32_t pixel) {
    m_.parent[pixel] = pixel;
    m_.atom[pixel] = {1, 0.0f, merge_threshold(0.0f, k_[0], 1)};
  }

  PREDET_HOST_DEVICE int32_t atom(int32_t pixel) {
    const int32_t root = find_atom(pixel);
    m_.parent[pixel] = root;
    return root;
  }

  // The same, without a trace.
  PREDET_HOST_DEVICE int32_t find_atom(int32_t pixel) const {
    int32_t root = pixel;
    while (m_.parent[root] != root) root = m_.parent[root];
    return root;
  }

  PREDET_HOST_DEVICE bool surely_one_atom(int32_t a, int32_t b) const {
    return m_.parent[a] == m_.parent[b];
  }

  void prefetch(int32_t pixel) const { PREDET_PREFETCH(&m_.parent[pixel]); }
  void prefetch_parent(int32_t pixel) const {
    const int32_t parent = m_.parent[pixel];
    PREDET_PREFETCH(&m_.parent[parent]);
    PREDET_PREFETCH(&m_.atom[parent]);
  }

  // An edge between two atoms, in order of weight. Returns whether some k has refused it.
  PREDET_HOST_DEVICE bool offer(int32_t a, int32_t b, float weight) {
    const Atom &in_a = m_.atom[a], &in_b = m_.atom[b];
    const bool both = in_a.node() < 0 && in_b.node() < 0;
    if (both && weight <= in_a.threshold && weight <= in_b.threshold) {
      join_atoms(a, b, weight);
      return false;
    }
    if (refused_by_all(in_a, weight) || refused_by_all(in_b, weight)) return true;
    return offer_nodes(node(a), node(b), weight);
  }

  // The atom's node; made when there is none.
  PREDET_HOST_DEVICE int32_t node(int32_t root) {
    Atom& atom = m_.atom[root];
    if (atom.node() < 0) {
      const int32_t made = (*m_.nodes)++;
      for (int32_t k = 0; k < count_; ++k) {
        Node& node = at(made, k);
        node.parent = made;
        node.size = atom.size;
        node.threshold = merge_threshold(atom.last, k_[k], atom.size);
      }
      atom.set_node(made);
    }
    return atom.node();
  }

  PREDET_HOST_DEVICE int32_t node_of(int32_t root) const { return m_.atom[root].node(); }

  PREDET_HOST_DEVICE int32_t root(int32_t node, int32_t k) {
    const int32_t root = find_root(node, k);
    at(node, k).parent = root;
    return root;
  }

  PREDET_HOST_DEVICE int32_t find_root(int32_t node, int32_t k) const {
    int32_t root = node;
    while (at(root, k).parent != root) root = at(root, k).parent;
    return root;
  }

  PREDET_HOST_DEVICE int32_t join(int32_t a, int32_t b, int32_t k) {
    if (at(a, k).size < at(b, k).size) swap_values(a, b);
    at(b, k).parent = a;
    at(a, k).size += at(b, k).size;
    return a;
  }

  PREDET_HOST_DEVICE int32_t nodes() const { return *m_.nodes; }

  PREDET_HOST_DEVICE Node& at(int32_t node, int32_t k) const {
    return m_.node[int64_t(node) * count_ + k];
  }

 private:
  PREDET_HOST_DEVICE bool refused_by_all(const Atom& atom, float weight) const {
    return atom.node() < 0 && weight > merge_threshold(atom.last, k_[count_ - 1], atom.size);
  }

  PREDET_HOST_DEVICE void join_atoms(int32_t a, int32_t b, float weight) {
    if (m_.atom[a].size < m_.atom[b].size) swap_values(a, b);
    m_.parent[b] = a;
    Atom& atom = m_.atom[a];
    atom.size += m_.atom[b].size;
    atom.last = weight;
    atom.threshold = merge_threshold(weight, k_[0], atom.size);
  }

  PREDET_HOST_DEVICE bool offer_nodes(int32_t a, int32_t b, float weight) {
    bool refused = false;
    for (int32_t k = 0; k < count_; ++k) {
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

  const Memory m_;
  const float* const k_;
  const int32_t count_;
};

// Joins every region of one k that is too small across the lightest edge that leaves it. Uses the
// nodes' marks.
class SmallRegions {
 public:
  PREDET_HOST_DEVICE SmallRegions(Partitions& partitions, int32_t k, int32_t min_size)
      : partitions_(partitions), k_(k), min_size_(min_size) {}

  PREDET_HOST_DEVICE void join(const Refused& edge) {
    const Pair pair = roots_of(edge);
    if (concerns(pair)) partitions_.join(pair.a, pair.b, k_);
  }

  // Joins across all of these; returns how often the order of edges of equal weight decided about
  // the regions.
  PREDET_HOST_DEVICE int32_t join_and_count(const Refused* edges, int64_t count) {
    for (int32_t node = 0; node < partitions_.nodes(); ++node) partitions_.at(node, k_).mark = -1;
    int32_t decided = 0;
    for (int64_t first = 0, last = 0; first < count; first = last) {
      while (last < count && edges[last].key == edges[first].key) ++last;
      if (last - first > 1 && order_decides(edges + first, last - first)) ++decided;
      for (int64_t i = first; i < last; ++i) join(edges[i]);
    }
    return decided;
  }

 private:
  static constexpr int kMostPairs = 4;  // more are not tried in every order

  struct Pair {
    int32_t a, b;
  };
  struct Labels {
    int32_t of[2 * kMostPairs];  // of both ends of every pair
  };

  PREDET_HOST_DEVICE Pair roots_of(const Refused& edge) {
    return {partitions_.root(edge.a, k_), partitions_.root(edge.b, k_)};
  }

  PREDET_HOST_DEVICE int32_t size_of(int32_t root) const { return partitions_.at(root, k_).size; }

  PREDET_HOST_DEVICE bool concerns(const Pair& pair) const {
    return pair.a != pair.b && (size_of(pair.a) < min_size_ || size_of(pair.b) < min_size_);
  }

  PREDET_HOST_DEVICE bool order_decides(const Refused* edges, int64_t count) {
    if (!some_share(edges, count)) return false;
    Pair pairs[kMostPairs];
    int found = 0;
    for (int64_t i = 0; i < count; ++i) {
      Pair pair = roots_of(edges[i]);
      if (!concerns(pair)) continue;
      if (pair.b < pair.a) swap_values(pair.a, pair.b);
      bool known = false;
      for (int n = 0; n < found; ++n) known |= pairs[n].a == pair.a && pairs[n].b == pair.b;
      if (known) continue;
      if (found == kMostPairs) return true;
      pairs[found++] = pair;
    }
    int order[kMostPairs] = {0, 1, 2, 3};
    const Labels first = joined_in(order, pairs, found);
    while (next_order(order, found)) {
      const Labels other = joined_in(order, pairs, found);
      for (int n = 0; n < 2 * found; ++n) {
        if (other.of[n] != first.of[n]) return true;
      }
    }
    return false;
  }

  // Whether a region has to do with two others.
  PREDET_HOST_DEVICE bool some_share(const Refused* edges, int64_t count) {
    bool shared = false;
    for (int64_t i = 0; i < count; ++i) {
      const Pair pair = roots_of(edges[i]);
      if (!concerns(pair)) continue;
      int32_t& met_by_a = partitions_.at(pair.a, k_).mark;
      int32_t& met_by_b = partitions_.at(pair.b, k_).mark;
      shared = shared || (met_by_a >= 0 && met_by_a != pair.b) ||
               (met_by_b >= 0 && met_by_b != pair.a);
      met_by_a = pair.b;
      met_by_b = pair.a;
    }
    for (int64_t i = 0; i < count; ++i) {
      const Pair pair = roots_of(edges[i]);
      partitions_.at(pair.a, k_).mark = partitions_.at(pair.b, k_).mark = -1;
    }
    return shared;
  }

  // The next permutation in ascending order.
  PREDET_HOST_DEVICE static bool next_order(int* order, int count) {
    int rise = count - 2;
    while (rise >= 0 && order[rise] > order[rise + 1]) --rise;
    if (rise < 0) return false;
    int larger = count - 1;
    while (order[larger] < order[rise]) --larger;
    swap_values(order[rise], order[larger]);
    for (int low = rise + 1, high = count - 1; low < high; ++low, --high) {
      swap_values(order[low], order[high]);
    }
    return true;
  }

  // For both ends of every pair, the least region that it is joined with in the end.
  PREDET_HOST_DEVICE Labels joined_in(const int* order, const Pair* pairs, int count) const {
    Labels ends{}, label{};
    for (int n = 0; n < count; ++n) {
      ends.of[2 * n] = label.of[2 * n] = pairs[n].a;
      ends.of[2 * n + 1] = label.of[2 * n + 1] = pairs[n].b;
    }
    for (int n = 0; n < count; ++n) {
      const int32_t a = label.of[2 * order[n]], b = label.of[2 * order[n] + 1];
      if (a == b || (joined_size(ends, label, 2 * count, a) >= min_size_ &&
                     joined_size(ends, label, 2 * count, b) >= min_size_)) {
        continue;
      }
      for (int i = 0; i < 2 * count; ++i) {
        if (label.of[i] == a || label.of[i] == b) label.of[i] = a < b ? a : b;
      }
    }
    return label;
  }

  // Pixels of the regions among `ends`, each counted once, that have this label.
  PREDET_HOST_DEVICE int64_t joined_size(const Labels& ends, const Labels& label, int count,
                                         int32_t wanted) const {
    int64_t sum = 0;
    for (int i = 0; i < count; ++i) {
      bool again = false;
      for (int before = 0; before < i; ++before) again |= ends.of[before] == ends.of[i];
      if (label.of[i] == wanted && !again) sum += size_of(ends.of[i]);
    }
    return sum;
  }

  Partitions& partitions_;
  const int32_t k_, min_size_;
};

}  // namespace selective_search
}  // namespace predet
