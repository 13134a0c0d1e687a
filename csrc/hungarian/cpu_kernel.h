// The CPU loops, compiled once for each instruction set (cpu_<set>.cpp).
//
// Costs are made for tiles of as many queries as one bound of the solver covers, so that bounds and
// the count of non-finite costs come with the numbers still at hand. Loops over a tile have a fixed
// length and become vectors.
#pragma once

#include <cstring>

#include "cpu.h"
#include "one_thread.h"
#include "solver.h"

namespace predet {
namespace hungarian {
inline namespace PREDET_ISA {

// A tile's predictions, one query a lane; lanes beyond the last query repeat it.
struct alignas(64) Tile {
  float cx[kBlock], cy[kBlock], w[kBlock], h[kBlock];
  float x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  float normalizer[kBlock];
  int32_t count;

  PREDET_ALWAYS_INLINE Box box(int32_t i) const {
    return {cx[i], cy[i], w[i], h[i], x1[i], y1[i], x2[i], y2[i], area[i]};
  }
};

PREDET_ALWAYS_INLINE Lanes<float> load_numbers(const float* from) {
  return Lanes<float>::load(from);
}
template <typename T>
PREDET_ALWAYS_INLINE Lanes<float> load_numbers(const T* from) {
  float wide[Lanes<float>::width];
  for (int32_t i = 0; i < Lanes<float>::width; ++i) wide[i] = widen(from[i]);
  return Lanes<float>::load(wide);
}

// The first `count` numbers, which may be none; -inf in the other lanes.
PREDET_ALWAYS_INLINE Lanes<float> load_first(int64_t count, const float* from) {
  return Lanes<float>::load_first(count, from, Lanes<float>(-infinity<float>()));
}
template <typename T>
PREDET_ALWAYS_INLINE Lanes<float> load_first(int64_t count, const T* from) {
  float wide[Lanes<float>::width];
  for (int32_t i = 0; i < Lanes<float>::width; ++i) {
    wide[i] = i < count ? widen(from[i]) : -infinity<float>();
  }
  return Lanes<float>::load(wide);
}

template <typename T>
bool has_nan(const T* row, int64_t classes) {
  for (int64_t k = 0; k < classes; ++k) {
    if (widen(row[k]) != widen(row[k])) return true;
  }
  return false;
}

// log(sum(exp(row))) for the rows of a tile, as PyTorch has it also where it is not finite.
template <typename T>
void normalize(const T* rows, int64_t stride, int64_t classes, Tile& tile) {
  using V = Lanes<float>;
  constexpr int32_t kParts = kSums / V::width;
  const int64_t whole = classes / kSums * kSums;
  float highest[kBlock], sum[kBlock];
  for (int32_t i = 0; i < tile.count; ++i) {
    const T* row = rows + i * stride;
    V last[kParts];
    for (int32_t p = 0; p < kParts; ++p) {
      last[p] = load_first(classes - whole - p * V::width, row + whole + p * V::width);
    }
    V most = last[0];
    for (int32_t p = 1; p < kParts; ++p) most = greater(last[p], most);
    for (int64_t k = 0; k < whole; k += V::width) most = greater(load_numbers(row + k), most);
    highest[i] = most.highest();
    const V offset(highest[i]);
    V sums[kParts];
    for (int32_t p = 0; p < kParts; ++p) sums[p] = V(0.0f);
    for (int64_t k = 0; k < whole; k += kSums) {
      for (int32_t p = 0; p < kParts; ++p) {
        sums[p] = sums[p] + exponential(load_numbers(row + k + p * V::width) - offset);
      }
    }
    if (whole < classes) {
      for (int32_t p = 0; p < kParts; ++p) sums[p] = sums[p] + exponential(last[p] - offset);
    }
    for (int32_t half = kParts / 2; half > 0; half /= 2) {
      for (int32_t p = 0; p < half; ++p) sums[p] = sums[p] + sums[p + half];
    }
    sum[i] = sums[0].total();
    if (!is_finite(highest[i])) {
      sum[i] = 1;
      if (has_nan(row, classes)) highest[i] = not_a_number();
    }
  }
  for (int32_t i = tile.count; i < kBlock; ++i) highest[i] = sum[i] = 1;
  for (int32_t i = 0; i < kBlock; ++i) tile.normalizer[i] = highest[i] + logarithm(sum[i]);
}

PREDET_ALWAYS_INLINE void load_boxes(const float* boxes, int64_t stride, Tile& tile) {
  for (int32_t i = 0; i < kBlock; ++i) {
    const float* from = boxes + (i < tile.count ? i : tile.count - 1) * stride;
    tile.cx[i] = from[0];
    tile.cy[i] = from[1];
    tile.w[i] = from[2];
    tile.h[i] = from[3];
  }
  for (int32_t i = 0; i < kBlock; ++i) {
    const Box box = box_of(tile.cx[i], tile.cy[i], tile.w[i], tile.h[i]);
    tile.x1[i] = box.x1;
    tile.y1[i] = box.y1;
    tile.x2[i] = box.x2;
    tile.y2[i] = box.y2;
    tile.area[i] = box.area;
  }
}

// (distinct classes, kBlock): the class part of the cost of each class for each query of the tile.
template <typename T>
PREDET_ALWAYS_INLINE void class_costs(const CostWeights& weights, const T* logits, int64_t stride,
                                      const ClassSlots& classes, const Tile& tile, float* to) {
  // Row by row, as memory likes it, although a query is a lane afterwards.
  for (int32_t i = 0; i < tile.count; ++i) {
    const T* row = logits + i * stride;
    for (int32_t c = 0; c < classes.count; ++c) to[c * kBlock + i] = widen(row[classes.class_of[c]]);
  }
  for (int32_t c = 0; c < classes.count; ++c, to += kBlock) {
    for (int32_t i = tile.count; i < kBlock; ++i) to[i] = 0;
    if (weights.softmax) {
      for (int32_t i = 0; i < kBlock; ++i) to[i] = softmax_cost(to[i], tile.normalizer[i]);
    } else if (weights.gamma == 2.0f) {
      for (int32_t i = 0; i < kBlock; ++i) {
        to[i] = focal_cost<true>(to[i], weights.alpha, weights.gamma);
      }
    } else {
      for (int32_t i = 0; i < kBlock; ++i) {
        to[i] = focal_cost<false>(to[i], weights.alpha, weights.gamma);
      }
    }
  }
}

// One target against the tile. Writes tile.count costs, returns how many are not finite, and their
// bound through `least`.
PREDET_ALWAYS_INLINE int32_t target_costs(const CostWeights& weights, const Box& target,
                                          const float* class_part, const Tile& tile, float* to,
                                          float& least) {
  alignas(64) float cost[kBlock];
  for (int32_t i = 0; i < kBlock; ++i) {
    cost[i] = cost_of(weights, class_part[i], tile.box(i), target);
  }
  std::memcpy(to, cost, sizeof(float) * tile.count);
  int64_t bad = 0;
  least = OneThread().bound(cost, tile.count, bad);
  return int32_t(bad);
}

// The costs of one problem, (targets, queries), and the solver's bounds of them, (targets,
// bound_stride). Returns how many are not finite. `class_part` has room for (distinct classes,
// kBlock) numbers.
template <typename T>
int64_t make_costs(const Match& m, int64_t layer, int64_t image, const ClassSlots& classes,
                   float* class_part, float* cost, float* bound, int64_t bound_stride) {
  const int32_t targets = m.targets_of(image);
  const T* logits = static_cast<const T*>(m.logits) + layer * m.logits_stride.layer +
                    image * m.logits_stride.image;
  const float* boxes = m.boxes + layer * m.boxes_stride.layer + image * m.boxes_stride.image;
  const float* target_boxes = m.target_boxes + int64_t(m.first[image]) * 4;
  for (int64_t i = 0; i < targets * bound_stride; ++i) bound[i] = infinity<float>();
  int64_t bad = 0;
  Tile tile;
  for (int64_t first = 0; first < m.queries; first += kBlock) {
    tile.count = m.queries - first < kBlock ? int32_t(m.queries - first) : kBlock;
    load_boxes(boxes + first * m.boxes_stride.query, m.boxes_stride.query, tile);
    const T* rows = logits + first * m.logits_stride.query;
    if (m.weights.softmax) normalize(rows, m.logits_stride.query, m.classes, tile);
    class_costs(m.weights, rows, m.logits_stride.query, classes, tile, class_part);
    for (int32_t t = 0; t < targets; ++t) {
      const float* box = target_boxes + t * 4;
      bad += target_costs(m.weights, box_of(box[0], box[1], box[2], box[3]),
                          class_part + classes.of_target[t] * kBlock, tile,
                          cost + t * m.queries + first, bound[t * bound_stride + first / kBlock]);
    }
  }
  return bad;
}

inline int64_t make_costs_any(const Match& m, int64_t layer, int64_t image,
                              const ClassSlots& classes, float* class_part, float* cost,
                              float* bound, int64_t bound_stride) {
  switch (m.logits_type) {
    case DType::bfloat16:
      return make_costs<BFloat16>(m, layer, image, classes, class_part, cost, bound, bound_stride);
    case DType::float16:
      return make_costs<Half>(m, layer, image, classes, class_part, cost, bound, bound_stride);
    default:
      return make_costs<float>(m, layer, image, classes, class_part, cost, bound, bound_stride);
  }
}

// The memory of one problem: the solver's, then room for costs, for bounds that the solver does not
// want, and for class costs.
inline int64_t match_bytes(const Match& m, int64_t targets, int64_t distinct_classes) {
  const int64_t numbers = padded(targets * m.queries) +
                          targets * padded(blocks_of(m.queries)) + distinct_classes * kBlock;
  return Workspace<float>(nullptr, targets, m.queries, m.copies).bytes +
         numbers * int64_t(sizeof(float));
}

inline void match_problem(const Match& m, int64_t layer, int64_t image, const ClassSlots& classes,
                          void* memory) {
  const int32_t targets = m.targets_of(image);
  const Workspace<float> workspace(memory, targets, m.queries, m.copies);
  float* cost = reinterpret_cast<float*>(static_cast<char*>(memory) + workspace.bytes);
  float* other_bound = cost + padded(targets * m.queries);
  const int64_t bound_stride = padded(blocks_of(m.queries));
  const bool bounded = int64_t(targets) * m.copies <= m.queries;
  m.bad[layer * m.images + image] =
      make_costs_any(m, layer, image, classes, other_bound + targets * bound_stride, cost,
                     bounded ? workspace.bound : other_bound, bound_stride);
  const int64_t row = layer * m.total_targets + m.first[image];
  assign(OneThread(), workspace, cost, m.queries, targets, int32_t(m.queries), m.copies, bounded,
         m.query_of_target + row * m.copies);
}

// As match_problem(), but only the costs, to where the caller wants them: (L, M, Q).
inline void cost_problem(const Match& m, int64_t layer, int64_t image, const ClassSlots& classes,
                         void* memory, float* cost) {
  const int64_t targets = m.targets_of(image), bound_stride = padded(blocks_of(m.queries));
  float* bound = static_cast<float*>(memory);
  m.bad[layer * m.images + image] =
      make_costs_any(m, layer, image, classes, bound + targets * bound_stride,
                     cost + (layer * m.total_targets + m.first[image]) * m.queries, bound,
                     bound_stride);
}

template <typename T>
void assign_problem(const Assignment& a, int64_t layer, int64_t image, void* memory) {
  const int64_t first = a.first[image];
  const int32_t targets = a.targets_of(image);
  const Workspace<T> workspace(memory, targets, a.queries, 1);
  const T* cost =
      static_cast<const T*>(a.cost) + layer * a.layer_stride + first * a.target_stride;
  a.bad[layer * a.images + image] =
      assign(OneThread(), workspace, cost, a.target_stride, targets, int32_t(a.queries), 1, false,
             a.query_of_target + layer * a.total_targets + first);
}

inline int64_t assign_bytes(const Assignment& a, int64_t targets) {
  return a.cost_type == DType::float64
             ? Workspace<double>(nullptr, targets, a.queries, 1).bytes
             : Workspace<float>(nullptr, targets, a.queries, 1).bytes;
}

inline void assign_any(const Assignment& a, int64_t layer, int64_t image, void* memory) {
  if (a.cost_type == DType::float64) return assign_problem<double>(a, layer, image, memory);
  assign_problem<float>(a, layer, image, memory);
}

inline Kernels kernels() { return {match_bytes, match_problem, cost_problem, assign_bytes, assign_any}; }

}  // namespace PREDET_ISA
}  // namespace hungarian
}  // namespace predet
