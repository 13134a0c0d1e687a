#include "grouping.h"

#include <algorithm>
#include <utility>

namespace predet {
namespace selective_search {
namespace {

// sums[n] = sum over bins of min(a, others[n]), added up bin by bin; several sums at a time, since
// each addition waits for the one before.
void intersections(const float* a, const float* const* others, size_t count, int32_t bins,
                   float* sums) {
  size_t n = 0;
  for (; n + 4 <= count; n += 4) {
    const float *b0 = others[n], *b1 = others[n + 1], *b2 = others[n + 2], *b3 = others[n + 3];
    float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
    for (int32_t i = 0; i < bins; ++i) {
      s0 += std::min(a[i], b0[i]);
      s1 += std::min(a[i], b1[i]);
      s2 += std::min(a[i], b2[i]);
      s3 += std::min(a[i], b3[i]);
    }
    sums[n] = s0;
    sums[n + 1] = s1;
    sums[n + 2] = s2;
    sums[n + 3] = s3;
  }
  for (; n < count; ++n) {
    float sum = 0.0f;
    for (int32_t i = 0; i < bins; ++i) sum += std::min(a[i], others[n][i]);
    sums[n] = sum;
  }
}

// Regions and how similar they are. A merged region takes the histogram's row of one it came from.
class Hierarchy {
 public:
  Hierarchy(const Regions& regions, const Strategy& strategy)
      : strategy_(strategy), pixels_(regions.pixels), color_bins_(regions.color_bins),
        texture_bins_(regions.texture_bins), boxes_(regions.boxes), sizes_(regions.sizes) {
    const size_t count = sizes_.size();
    if (strategy.color) color_ = regions.color;
    if (strategy.texture) texture_ = regions.texture;
    levels_.assign(count, 1);
    alive_.assign(count, 1);
    for (size_t i = 0; i < count; ++i) row_.push_back(int32_t(i));
    const size_t most = 2 * count;
    for (std::vector<int32_t>* list : {&sizes_, &levels_, &row_}) list->reserve(most);
    boxes_.reserve(most);
    alive_.reserve(most);
  }

  bool alive(int32_t region) const { return alive_[size_t(region)] != 0; }

  int32_t merge(int32_t a, int32_t b) {
    const size_t i = size_t(a), j = size_t(b);
    merge_rows(color_, color_bins_, a, b);
    merge_rows(texture_, texture_bins_, a, b);
    boxes_.push_back(united(boxes_[i], boxes_[j]));
    sizes_.push_back(sizes_[i] + sizes_[j]);
    levels_.push_back(std::max(levels_[i], levels_[j]) + 1);
    row_.push_back(row_[i]);
    alive_[i] = alive_[j] = 0;
    alive_.push_back(1);
    return int32_t(alive_.size()) - 1;
  }

  // similarity[n] of `region` and others[n]
  void compare(int32_t region, const std::vector<int32_t>& others, std::vector<float>& similarity) {
    const size_t count = others.size();
    similarity.assign(count, 0.0f);
    const int parts = strategy_.color + strategy_.fill + strategy_.texture + strategy_.size;
    const float weight = parts == 3 ? 0.3333f : 1.0f / static_cast<float>(parts);
    float total = 0.0f;
    for (int part = 0; part < parts; ++part) total += weight;
    if (strategy_.color) add_intersections(color_, color_bins_, region, others, weight, similarity);
    if (strategy_.fill) {
      for (size_t n = 0; n < count; ++n) {
        const size_t a = size_t(region), b = size_t(others[n]);
        similarity[n] +=
            weight * fill_similarity(boxes_[a], sizes_[a], boxes_[b], sizes_[b], pixels_);
      }
    }
    if (strategy_.texture) {
      add_intersections(texture_, texture_bins_, region, others, weight, similarity);
    }
    for (size_t n = 0; n < count; ++n) {
      if (strategy_.size) {
        similarity[n] +=
            weight * size_similarity(sizes_[size_t(region)], sizes_[size_t(others[n])], pixels_);
      }
      similarity[n] /= total;
    }
  }

  Grouping take() && {
    Grouping grouping;
    grouping.boxes = std::move(boxes_);
    grouping.levels = std::move(levels_);
    return grouping;
  }

 private:
  void merge_rows(std::vector<float>& rows, int32_t bins, int32_t a, int32_t b) {
    if (rows.empty()) return;
    float* into = rows.data() + int64_t(row_[size_t(a)]) * bins;
    const float* from = rows.data() + int64_t(row_[size_t(b)]) * bins;
    const int32_t size_a = sizes_[size_t(a)], size_b = sizes_[size_t(b)];
    for (int32_t i = 0; i < bins; ++i) into[i] = merged_bin(into[i], size_a, from[i], size_b);
  }

  void add_intersections(const std::vector<float>& rows, int32_t bins, int32_t region,
                         const std::vector<int32_t>& others, float weight,
                         std::vector<float>& similarity) {
    other_rows_.clear();
    for (const int32_t other : others) {
      other_rows_.push_back(rows.data() + int64_t(row_[size_t(other)]) * bins);
    }
    sums_.resize(others.size());
    intersections(rows.data() + int64_t(row_[size_t(region)]) * bins, other_rows_.data(),
                  others.size(), bins, sums_.data());
    for (size_t n = 0; n < others.size(); ++n) similarity[n] += weight * sums_[n];
  }

  const Strategy strategy_;
  const int64_t pixels_;
  const int32_t color_bins_, texture_bins_;
  std::vector<float> color_, texture_;
  std::vector<Box> boxes_;
  std::vector<int32_t> sizes_, levels_, row_;
  std::vector<uint8_t> alive_;
  std::vector<const float*> other_rows_;
  std::vector<float> sums_;
};

struct Pair {
  float similarity;
  int32_t a, b;
};

// All pairs that touch, in ascending order of the regions.
std::vector<Pair> first_pairs(const Regions& regions, Hierarchy& hierarchy) {
  std::vector<Pair> pairs;
  std::vector<int32_t> others;
  std::vector<float> similarity;
  const auto& touching = regions.touching;
  for (size_t first = 0, last = 0; first < touching.size(); first = last) {
    const int32_t region = touching[first].first;
    others.clear();
    for (; last < touching.size() && touching[last].first == region; ++last) {
      others.push_back(touching[last].second);
    }
    hierarchy.compare(region, others, similarity);
    for (size_t n = 0; n < others.size(); ++n) pairs.push_back({similarity[n], region, others[n]});
  }
  return pairs;
}

// A heap of pairs, in which those of a region that was merged stay until they come up.
class PairHeap {
 public:
  PairHeap(const std::vector<Pair>& pairs, const Hierarchy& hierarchy) : hierarchy_(hierarchy) {
    heap_.reserve(2 * pairs.size());
    for (const Pair& pair : pairs) heap_.push_back({pair, number_++});
    std::make_heap(heap_.begin(), heap_.end());
  }

  void push(const Pair& pair) {
    if (heap_.size() == heap_.capacity()) drop_merged();
    heap_.push_back({pair, number_++});
    std::push_heap(heap_.begin(), heap_.end());
  }

  // The most similar pair, or nullptr; the pair stays.
  const Pair* top() {
    while (!heap_.empty() && !valid(heap_.front())) pop();
    return heap_.empty() ? nullptr : &heap_.front().pair;
  }

  void pop() {
    std::pop_heap(heap_.begin(), heap_.end());
    heap_.pop_back();
  }

 private:
  struct Entry {
    Pair pair;
    uint32_t number;
    bool operator<(const Entry& other) const {
      return pair.similarity != other.pair.similarity ? pair.similarity < other.pair.similarity
                                                      : number < other.number;
    }
  };

  bool valid(const Entry& entry) const {
    return hierarchy_.alive(entry.pair.a) && hierarchy_.alive(entry.pair.b);
  }

  // Keeps the heap as small as the number of pairs that are left.
  void drop_merged() {
    const auto merged = [this](const Entry& entry) { return !valid(entry); };
    heap_.erase(std::remove_if(heap_.begin(), heap_.end(), merged), heap_.end());
    std::make_heap(heap_.begin(), heap_.end());
    if (2 * heap_.size() > heap_.capacity()) heap_.reserve(2 * heap_.capacity());
  }

  const Hierarchy& hierarchy_;
  std::vector<Entry> heap_;
  uint32_t number_ = 0;
};

int32_t merge_newest_first(const Regions& regions, Hierarchy& hierarchy) {
  const size_t count = regions.sizes.size();
  std::vector<std::vector<int32_t>> neighbours(count);
  for (const auto& pair : regions.touching) {
    neighbours[size_t(pair.first)].push_back(pair.second);
    neighbours[size_t(pair.second)].push_back(pair.first);
  }
  PairHeap heap(first_pairs(regions, hierarchy), hierarchy);
  std::vector<int32_t> seen(2 * count, -1);
  std::vector<float> similarity;
  int32_t ties = 0;
  while (const Pair* top = heap.top()) {
    const Pair pair = *top;
    heap.pop();
    if (const Pair* next = heap.top()) ties += next->similarity == pair.similarity;
    const int32_t merged = hierarchy.merge(pair.a, pair.b);
    std::vector<int32_t> around;
    for (const int32_t side : {pair.a, pair.b}) {
      for (const int32_t region : std::exchange(neighbours[size_t(side)], {})) {
        if (!hierarchy.alive(region) || seen[size_t(region)] == merged) continue;
        seen[size_t(region)] = merged;
        around.push_back(region);
      }
    }
    hierarchy.compare(merged, around, similarity);
    for (size_t n = 0; n < around.size(); ++n) {
      heap.push({similarity[n], merged, around[n]});
      neighbours[size_t(around[n])].push_back(merged);
    }
    neighbours.push_back(std::move(around));
  }
  return ties;
}

// One ascending list that is sorted after every merge: the order of equals is that of std::sort.
int32_t merge_in_std_order(const Regions& regions, Hierarchy& hierarchy) {
  std::vector<Pair> pairs = first_pairs(regions, hierarchy);
  std::vector<int32_t> around;
  std::vector<float> similarity;
  int32_t ties = 0;
  while (!pairs.empty()) {
    std::sort(pairs.begin(), pairs.end(),
              [](const Pair& p, const Pair& q) { return p.similarity < q.similarity; });
    const Pair best = pairs.back();
    pairs.pop_back();
    ties += !pairs.empty() && pairs.back().similarity == best.similarity;
    const int32_t merged = hierarchy.merge(best.a, best.b);
    around.clear();
    size_t kept = 0;
    for (const Pair& pair : pairs) {
      if (hierarchy.alive(pair.a) && hierarchy.alive(pair.b)) {
        pairs[kept++] = pair;
        continue;
      }
      const int32_t other = hierarchy.alive(pair.a) ? pair.a : pair.b;
      if (std::find(around.begin(), around.end(), other) == around.end()) around.push_back(other);
    }
    pairs.resize(kept);
    hierarchy.compare(merged, around, similarity);
    for (size_t n = 0; n < around.size(); ++n) pairs.push_back({similarity[n], merged, around[n]});
  }
  return ties;
}

}  // namespace

Grouping group(const Regions& regions, const Strategy& strategy, TieRule rule) {
  const auto run = [&](auto merge_all) {
    Hierarchy hierarchy(regions, strategy);
    const int32_t ties = merge_all(regions, hierarchy);
    Grouping grouping = std::move(hierarchy).take();
    grouping.ties = ties;
    return grouping;
  };
  // Without histograms, similarities are few numbers of pixels: there are ties nearly always.
  const bool expected = !strategy.color && !strategy.texture;
  if (rule == TieRule::opencv && expected) return run(merge_in_std_order);
  Grouping grouping = run(merge_newest_first);
  if (rule == TieRule::opencv && grouping.ties > 0) return run(merge_in_std_order);
  return grouping;
}

}  // namespace selective_search
}  // namespace predet
