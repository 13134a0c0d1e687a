#include "grouping.h"

#include <algorithm>
#include <utility>

#include "hierarchy.h"

namespace predet {
namespace selective_search {
namespace {

constexpr int kTogether = 4;  // regions compared at a time

struct OneThread {
  int32_t lane() const { return 0; }
  int32_t lanes() const { return 1; }
  bool leads() const { return true; }
  void sync() const {}
};

// The memory of a Hierarchy, which starts with copies of the regions.
class OwnedHierarchy {
 public:
  OwnedHierarchy(const Regions& regions, const Strategy& strategy)
      : boxes_(regions.boxes), sizes_(regions.sizes) {
    const size_t count = sizes_.size();
    if (strategy.color) color_ = regions.color;
    if (strategy.texture) texture_ = regions.texture;
    levels_.assign(count, 1);
    for (size_t i = 0; i < count; ++i) rows_.push_back(int32_t(i));
    boxes_.resize(2 * count);
    for (std::vector<int32_t>* list : {&sizes_, &levels_, &rows_}) list->resize(2 * count);
    memory_ = {boxes_.data(), sizes_.data(),   levels_.data(),     rows_.data(),
               color_.data(), texture_.data(), regions.color_bins, regions.texture_bins};
  }

  const Hierarchy::Memory& memory() const { return memory_; }

  Grouping take(int32_t made, int32_t ties) && {
    boxes_.resize(size_t(made));
    levels_.resize(size_t(made));
    return {std::move(boxes_), std::move(levels_), ties};
  }

 private:
  std::vector<float> color_, texture_;
  std::vector<Box> boxes_;
  std::vector<int32_t> sizes_, levels_, rows_;
  Hierarchy::Memory memory_;
};

Grouping merge_newest_first(const Regions& regions, const Strategy& strategy) {
  OwnedHierarchy owned(regions, strategy);
  Hierarchy hierarchy(owned.memory(), strategy, regions.pixels);
  const size_t count = regions.sizes.size(), pairs = regions.touching.size();
  std::vector<int32_t> ends(6 * pairs), of_rows(3 * count), changed(pairs);
  std::vector<uint64_t> best(size_t(2 * Pairs::leaves(int64_t(pairs))));
  int32_t scalars[2];
  const Pairs::Memory memory = {ends.data(),
                                ends.data() + 2 * pairs,
                                ends.data() + 4 * pairs,
                                of_rows.data(),
                                of_rows.data() + count,
                                of_rows.data() + 2 * count,
                                changed.data(),
                                best.data(),
                                scalars};
  int32_t made = 0;
  const int32_t ties =
      Pairs(memory, hierarchy, regions.touching.data(), int32_t(pairs), int32_t(count))
          .merge_all<kTogether>(OneThread(), made);
  return std::move(owned).take(made, ties);
}

struct Pair {
  float similarity;
  int32_t a, b;
};

void add_pairs(const Hierarchy& hierarchy, int32_t region, const std::vector<int32_t>& neighbours,
               std::vector<Pair>& pairs) {
  for (size_t i = 0; i < neighbours.size(); i += kTogether) {
    const int count = int(std::min<size_t>(kTogether, neighbours.size() - i));
    int32_t others[kTogether];
    float similarity[kTogether];
    std::copy_n(neighbours.begin() + int64_t(i), count, others);
    hierarchy.compare(region, others, count, similarity);
    for (int n = 0; n < count; ++n) pairs.push_back({similarity[n], region, others[n]});
  }
}

// All pairs that touch, in ascending order of the regions.
std::vector<Pair> first_pairs(const Regions& regions, const Hierarchy& hierarchy) {
  std::vector<Pair> pairs;
  std::vector<int32_t> neighbours;
  const auto& touching = regions.touching;
  for (size_t first = 0, last = 0; first < touching.size(); first = last) {
    neighbours.clear();
    for (; last < touching.size() && touching[last].a == touching[first].a; ++last) {
      neighbours.push_back(touching[last].b);
    }
    add_pairs(hierarchy, touching[first].a, neighbours, pairs);
  }
  return pairs;
}

// One ascending list that is sorted after every merge: the order of equals is that of std::sort.
Grouping merge_in_std_order(const Regions& regions, const Strategy& strategy) {
  OwnedHierarchy owned(regions, strategy);
  Hierarchy hierarchy(owned.memory(), strategy, regions.pixels);
  std::vector<Pair> pairs = first_pairs(regions, hierarchy);
  std::vector<uint8_t> merged(2 * regions.sizes.size(), 0);
  std::vector<int32_t> around;
  int32_t ties = 0, made = int32_t(regions.sizes.size());
  for (; !pairs.empty(); ++made) {
    std::sort(pairs.begin(), pairs.end(),
              [](const Pair& p, const Pair& q) { return p.similarity < q.similarity; });
    const Pair best = pairs.back();
    pairs.pop_back();
    ties += !pairs.empty() && pairs.back().similarity == best.similarity;
    hierarchy.merge(OneThread(), best.a, best.b, made);
    merged[size_t(best.a)] = merged[size_t(best.b)] = 1;
    around.clear();
    size_t kept = 0;
    for (const Pair& pair : pairs) {
      if (!merged[size_t(pair.a)] && !merged[size_t(pair.b)]) {
        pairs[kept++] = pair;
        continue;
      }
      const int32_t other = merged[size_t(pair.a)] ? pair.b : pair.a;
      if (std::find(around.begin(), around.end(), other) == around.end()) around.push_back(other);
    }
    pairs.resize(kept);
    add_pairs(hierarchy, made, around, pairs);
  }
  return std::move(owned).take(made, ties);
}

}  // namespace

Grouping group(const Regions& regions, const Strategy& strategy, TieRule rule) {
  // Without histograms, similarities are few numbers of pixels: there are ties nearly always.
  const bool expected = !strategy.color && !strategy.texture;
  if (rule == TieRule::opencv && expected) return merge_in_std_order(regions, strategy);
  Grouping grouping = merge_newest_first(regions, strategy);
  if (rule == TieRule::opencv && grouping.ties > 0) return merge_in_std_order(regions, strategy);
  return grouping;
}

}  // namespace selective_search
}  // namespace predet
