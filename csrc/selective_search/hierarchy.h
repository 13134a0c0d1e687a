// Hierarchical grouping: the two most similar neighbours are merged until nothing touches. One CPU
// thread, or the threads of a warp, work on one grouping together.
//
// `Group` is who works: all members run the same code with the same numbers; lane(), lanes(),
// leads() say who a member is, and sync() makes what one has written known to all.
#pragma once

#include <cstdint>

#include "../common/numeric.h"
#include "arithmetic.h"

namespace predet {
namespace selective_search {

// What similarity looks at; the parts that are on weigh the same.
struct Strategy {
  bool color, fill, texture, size;

  PREDET_HOST_DEVICE int parts() const { return color + fill + texture + size; }
};

// Two regions that touch.
struct Touching {
  int32_t a, b;
};

// Regions, their histograms and how similar they are. Of N first regions up to N - 1 more are made.
// A merged region takes the histograms of one that it was made from.
class Hierarchy {
 public:
  struct Memory {
    Box* box;         // (2 N)
    int32_t* size;    // (2 N) pixels
    int32_t* level;   // (2 N)
    int32_t* row;     // (2 N) of the histograms
    float* color;     // (N, color_bins)
    float* texture;   // (N, texture_bins)
    int32_t color_bins, texture_bins;
  };

  PREDET_HOST_DEVICE Hierarchy(const Memory& memory, const Strategy& strategy, int64_t pixels)
      : m_(memory), strategy_(strategy), pixels_(pixels),
        weight_(strategy.parts() == 3 ? 0.3333f : 1.0f / static_cast<float>(strategy.parts())),
        total_(0.0f) {
    for (int part = 0; part < strategy.parts(); ++part) total_ += weight_;
  }

  // The two regions become `merged`. Ends with a sync().
  template <typename Group>
  PREDET_HOST_DEVICE void merge(const Group& group, int32_t a, int32_t b, int32_t merged) {
    if (strategy_.color) merge_rows(group, m_.color, m_.color_bins, a, b);
    if (strategy_.texture) merge_rows(group, m_.texture, m_.texture_bins, a, b);
    if (group.leads()) {
      m_.box[merged] = united(m_.box[a], m_.box[b]);
      m_.size[merged] = m_.size[a] + m_.size[b];
      m_.level[merged] = (m_.level[a] > m_.level[b] ? m_.level[a] : m_.level[b]) + 1;
      m_.row[merged] = m_.row[a];
    }
    group.sync();
  }

  // similarity[n] of `region` and others[n]: the first `count` of kMost. Sums are added up bin by
  // bin; several at a time, since each addition waits for the one before.
  template <int kMost>
  PREDET_HOST_DEVICE void compare(int32_t region, const int32_t (&others)[kMost], int count,
                                  float (&similarity)[kMost]) const {
    for (int n = 0; n < kMost; ++n) similarity[n] = 0.0f;
    if (strategy_.color) {
      add_intersections(m_.color, m_.color_bins, region, others, count, similarity);
    }
    if (strategy_.fill) {
      for (int n = 0; n < count; ++n) {
        similarity[n] += weight_ * fill_similarity(m_.box[region], m_.size[region],
                                                   m_.box[others[n]], m_.size[others[n]], pixels_);
      }
    }
    if (strategy_.texture) {
      add_intersections(m_.texture, m_.texture_bins, region, others, count, similarity);
    }
    for (int n = 0; n < count; ++n) {
      if (strategy_.size) {
        similarity[n] += weight_ * size_similarity(m_.size[region], m_.size[others[n]], pixels_);
      }
      similarity[n] /= total_;
    }
  }

  PREDET_HOST_DEVICE int32_t row(int32_t region) const { return m_.row[region]; }

 private:
  template <typename Group>
  PREDET_HOST_DEVICE void merge_rows(const Group& group, float* rows, int32_t bins, int32_t a,
                                     int32_t b) {
    float* PREDET_RESTRICT into = rows + int64_t(m_.row[a]) * bins;
    const float* PREDET_RESTRICT from = rows + int64_t(m_.row[b]) * bins;
    const int32_t size_a = m_.size[a], size_b = m_.size[b];
    for (int32_t i = group.lane(); i < bins; i += group.lanes()) {
      into[i] = merged_bin(into[i], size_a, from[i], size_b);
    }
  }

  template <int kMost>
  PREDET_HOST_DEVICE void add_intersections(const float* rows, int32_t bins, int32_t region,
                                            const int32_t (&others)[kMost], int count,
                                            float (&similarity)[kMost]) const {
    const float* own = rows + int64_t(m_.row[region]) * bins;
    const float* other[kMost];
    float sum[kMost];
    for (int n = 0; n < kMost; ++n) {
      other[n] = n < count ? rows + int64_t(m_.row[others[n]]) * bins : own;
      sum[n] = 0.0f;
    }
    for (int32_t i = 0; i < bins; ++i) {
      const float x = own[i];
      for (int n = 0; n < kMost; ++n) sum[n] += other[n][i] < x ? other[n][i] : x;
    }
    for (int n = 0; n < count; ++n) similarity[n] += weight_ * sum[n];
  }

  const Memory m_;
  const Strategy strategy_;
  const int64_t pixels_;
  const float weight_;
  float total_;
};

// The pairs of regions that touch, most similar first; of equals the one that was found last.
//
// Each pair has a slot. The slots of a region hang together in a list, of which a pair is in two:
// an end of pair s is 2 s or 2 s + 1, and e ^ 1 the other one. When regions are merged, the pairs
// that either had become the new region's, and where both had one with the same neighbour a slot
// falls free; so no memory is needed beyond that of the first pairs. A tournament over the slots
// finds the most similar.
class Pairs {
 public:
  // For N first regions and P pairs of them.
  struct Memory {
    int32_t* region;          // (2 P) of the end
    int32_t *before, *after;  // (2 P) ends of the same region, -1: none
    int32_t *first, *last;    // (N) ends of the region with this row
    int32_t* seen;            // (N) by row of a neighbour: the merged region that met it last
    int32_t* changed;         // (P) slots
    uint64_t* best;           // (2 leaves(P)) tournament
    int32_t* shared;          // (2) scalars that the leader finds
  };

  PREDET_HOST_DEVICE static int64_t leaves(int64_t pairs) {
    int64_t leaves = 1;
    while (leaves < pairs) leaves *= 2;
    return leaves;
  }

  PREDET_HOST_DEVICE Pairs(const Memory& memory, Hierarchy& hierarchy, const Touching* touching,
                           int32_t pairs, int32_t regions)
      : m_(memory), hierarchy_(hierarchy), touching_(touching), pairs_(pairs), regions_(regions),
        leaves_(leaves(pairs)) {}

  // Merges until nothing touches. Returns how often the most similar pair was not the only one;
  // then `made` is the number of regions.
  template <int kTogether, typename Group>
  PREDET_HOST_DEVICE int32_t merge_all(const Group& group, int32_t& made) {
    start<kTogether>(group);
    int32_t ties = 0;
    made = regions_;
    for (uint64_t top = m_.best[1]; top != 0; top = m_.best[1]) {
      const int64_t slot = slot_of(top);
      group.sync();
      take_out(group, slot);
      ties += (m_.best[1] >> 32) == (top >> 32) && m_.best[1] != 0;
      const int32_t a = m_.region[2 * slot], b = m_.region[2 * slot + 1];
      hierarchy_.merge(group, a, b, made);
      if (group.leads()) join_lists(a, b, made);
      group.sync();
      rate<kTogether>(group, made);
      ++made;
    }
    return ties;
  }

 private:
  enum { kAround, kFreed };

  template <int kTogether, typename Group>
  PREDET_HOST_DEVICE void start(const Group& group) {
    for (int64_t i = group.lane(); i < 2 * leaves_; i += group.lanes()) m_.best[i] = 0;
    for (int32_t i = group.lane(); i < regions_; i += group.lanes()) {
      m_.first[i] = m_.last[i] = m_.seen[i] = -1;
    }
    group.sync();
    if (group.leads()) {
      for (int32_t pair = 0; pair < pairs_; ++pair) {
        append(2 * pair, touching_[pair].a, touching_[pair].a);
        append(2 * pair + 1, touching_[pair].b, touching_[pair].b);
      }
    }
    // Runs of pairs with the same first region.
    for (int32_t pair = group.lane(), run = 0; pair < pairs_; pair += run * group.lanes()) {
      const int32_t region = touching_[pair].a;
      int32_t others[kTogether];
      float similarity[kTogether];
      for (run = 0; run < kTogether && pair + run < pairs_; ++run) {
        if (touching_[pair + run].a != region) break;
        others[run] = touching_[pair + run].b;
      }
      hierarchy_.compare(region, others, run, similarity);
      for (int32_t n = 0; n < run; ++n) {
        m_.best[leaves_ + pair + n] = key_of(similarity[n], uint32_t(pair + n));
      }
    }
    found_ = uint32_t(pairs_);
    group.sync();
    for (int64_t level = leaves_ / 2; level > 0; level /= 2) {
      for (int64_t i = level + group.lane(); i < 2 * level; i += group.lanes()) play(i);
      group.sync();
    }
  }

  // Keys of pairs are above 0 and all different.
  PREDET_HOST_DEVICE static uint64_t key_of(float similarity, uint32_t number) {
    return uint64_t(bits_from_float(similarity)) << 32 | (number + 1);
  }

  PREDET_HOST_DEVICE void play(int64_t i) {
    const uint64_t a = m_.best[2 * i], b = m_.best[2 * i + 1];
    m_.best[i] = a > b ? a : b;
  }

  PREDET_HOST_DEVICE int64_t slot_of(uint64_t key) const {
    int64_t i = 1;
    while (i < leaves_) i = m_.best[2 * i] == key ? 2 * i : 2 * i + 1;
    return i - leaves_;
  }

  template <typename Group>
  PREDET_HOST_DEVICE void take_out(const Group& group, int64_t slot) {
    if (group.leads()) {
      unlink(int32_t(2 * slot));
      unlink(int32_t(2 * slot + 1));
      int64_t i = leaves_ + slot;
      m_.best[i] = 0;
      while (i > 1) play(i /= 2);
    }
    group.sync();
  }

  PREDET_HOST_DEVICE void append(int32_t end, int32_t region, int32_t row) {
    const int32_t last = m_.last[row];
    m_.region[end] = region;
    m_.before[end] = last;
    m_.after[end] = -1;
    (last < 0 ? m_.first[row] : m_.after[last]) = end;
    m_.last[row] = end;
  }

  PREDET_HOST_DEVICE void unlink(int32_t end) {
    const int32_t row = hierarchy_.row(m_.region[end]);
    const int32_t before = m_.before[end], after = m_.after[end];
    (before < 0 ? m_.first[row] : m_.after[before]) = after;
    (after < 0 ? m_.last[row] : m_.before[after]) = before;
  }

  // The pairs of a and of b become those of `merged`, which has a's row.
  PREDET_HOST_DEVICE void join_lists(int32_t a, int32_t b, int32_t merged) {
    int32_t around = 0, freed = 0;
    for (int32_t end = m_.first[hierarchy_.row(a)]; end >= 0; end = m_.after[end]) {
      m_.region[end] = merged;
      m_.seen[hierarchy_.row(m_.region[end ^ 1])] = merged;
      m_.changed[around++] = end / 2;
    }
    const int32_t row = hierarchy_.row(merged);
    for (int32_t end = m_.first[hierarchy_.row(b)], after = -1; end >= 0; end = after) {
      after = m_.after[end];
      if (m_.seen[hierarchy_.row(m_.region[end ^ 1])] == merged) {
        unlink(end ^ 1);
        m_.best[leaves_ + end / 2] = 0;
        m_.changed[pairs_ - ++freed] = end / 2;
      } else {
        append(end, merged, row);
        m_.changed[around++] = end / 2;
      }
    }
    m_.shared[kAround] = around;
    m_.shared[kFreed] = freed;
  }

  // The similarities of a merged region's pairs.
  template <int kTogether, typename Group>
  PREDET_HOST_DEVICE void rate(const Group& group, int32_t merged) {
    const int32_t around = m_.shared[kAround], freed = m_.shared[kFreed];
    for (int32_t i = kTogether * group.lane(); i < around; i += kTogether * group.lanes()) {
      const int32_t count = around - i < kTogether ? around - i : kTogether;
      int32_t others[kTogether];
      float similarity[kTogether];
      for (int32_t n = 0; n < count; ++n) {
        const int32_t end = 2 * m_.changed[i + n];
        others[n] = m_.region[end] == merged ? m_.region[end + 1] : m_.region[end];
      }
      hierarchy_.compare(merged, others, count, similarity);
      for (int32_t n = 0; n < count; ++n) {
        m_.best[leaves_ + m_.changed[i + n]] = key_of(similarity[n], found_ + uint32_t(i + n));
      }
    }
    found_ += uint32_t(around);
    group.sync();
    int32_t up = 1;
    for (int64_t level = leaves_ / 2; level > 0; level /= 2, ++up) {
      for (int32_t i = group.lane(); i < around + freed; i += group.lanes()) {
        const int32_t slot = m_.changed[i < around ? i : pairs_ - 1 - (i - around)];
        play((leaves_ + slot) >> up);
      }
      group.sync();
    }
  }

  const Memory m_;
  Hierarchy& hierarchy_;
  const Touching* touching_;
  const int32_t pairs_, regions_;
  const int64_t leaves_;
  uint32_t found_ = 0;
};

}  // namespace selective_search
}  // namespace predet
