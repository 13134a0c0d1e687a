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

// log(sum(exp(row))), as PyTorch has it for rows that are not finite.
template <typename T>
float log_sum_exp(const T* row, int64_t classes) {
  float last[kSums];  // what does not fill all partial sums
  const int64_t whole = classes / kSums * kSums;
  for (int64_t i = 0; i < kSums; ++i) {
    last[i] = whole + i < classes ? widen(row[whole + i]) : -infinity<float>();
  }
  float most[kSums];
  for (int32_t i = 0; i < kSums; ++i) most[i] = last[i];
  for (int64_t k = 0; k < whole; k += kSums) {
    for (int32_t i = 0; i < kSums; ++i) {
      const float x = widen(row[k + i]);
      most[i] = (x > most[i]) | (x != x) ? x : most[i];  // NaN wins and stays
    }
  }
  float highest = most[0];
  for (int32_t i = 1; i < kSums; ++i) {
    highest = (most[i] > highest) | (most[i] != most[i]) ? most[i] : highest;
  }
  if (!is_finite(highest)) return highest;
  float sum[kSums] = {};
  for (int64_t k = 0; k < whole; k += kSums) {
    for (int32_t i = 0; i < kSums; ++i) sum[i] += exponential(widen(row[k + i]) - highest);
  }
  for (int32_t i = 0; i < kSums; ++i) sum[i] += exponential(last[i] - highest);
  for (int32_t half = kSums / 2; half > 0; half /= 2) {
    for (int32_t i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return highest + logarithm(sum[0]);
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

// The class part of the cost of class `k`, for each query of the tile.
template <typename T>
PREDET_ALWAYS_INLINE void class_costs(const CostWeights& weights, const T* logits, int64_t stride,
                                      int64_t k, const Tile& tile, float* to) {
  float logit[kBlock];
  for (int32_t i = 0; i < kBlock; ++i) {
    logit[i] = widen(logits[(i < tile.count ? i : tile.count - 1) * stride + k]);
  }
  if (weights.softmax) {
    for (int32_t i = 0; i < kBlock; ++i) to[i] = softmax_cost(logit[i], tile.normalizer[i]);
  } else if (weights.gamma == 2.0f) {
    for (int32_t i = 0; i < kBlock; ++i) {
      to[i] = focal_cost<true>(logit[i], weights.alpha, weights.gamma);
    }
  } else {
    for (int32_t i = 0; i < kBlock; ++i) {
      to[i] = focal_cost<false>(logit[i], weights.alpha, weights.gamma);
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

template <typename T>
void match_problem(const Match& m, int64_t layer, int64_t image, const ClassSlots& classes,
                   void* memory) {
  const int32_t targets = m.targets_of(image);
  const int64_t queries = m.queries;
  const Workspace<float> workspace(memory, targets, queries, m.copies);
  float* cost = reinterpret_cast<float*>(static_cast<char*>(memory) + workspace.bytes);
  float* class_part = cost + padded(targets * queries);  // (distinct classes, kBlock)
  const bool bounded = int64_t(targets) * m.copies <= queries;
  if (bounded) {
    for (int64_t i = 0; i < workspace.rows * workspace.bound_stride; ++i) {
      workspace.bound[i] = infinity<float>();
    }
  }
  const T* logits = static_cast<const T*>(m.logits) + layer * m.logits_stride.layer +
                    image * m.logits_stride.image;
  const float* boxes = m.boxes + layer * m.boxes_stride.layer + image * m.boxes_stride.image;
  const float* target_boxes = m.target_boxes + int64_t(m.first[image]) * 4;
  int64_t bad = 0;
  Tile tile;
  for (int64_t first = 0; first < queries; first += kBlock) {
    tile.count = queries - first < kBlock ? int32_t(queries - first) : kBlock;
    load_boxes(boxes + first * m.boxes_stride.query, m.boxes_stride.query, tile);
    const T* tile_logits = logits + first * m.logits_stride.query;
    if (m.weights.softmax) {
      for (int32_t i = 0; i < kBlock; ++i) {
        tile.normalizer[i] =
            i < tile.count ? log_sum_exp(tile_logits + i * m.logits_stride.query, m.classes) : 0;
      }
    }
    for (int32_t c = 0; c < classes.count; ++c) {
      class_costs(m.weights, tile_logits, m.logits_stride.query, classes.class_of[c], tile,
                  class_part + c * kBlock);
    }
    for (int32_t t = 0; t < targets; ++t) {
      const float* box = target_boxes + t * 4;
      float least;
      bad += target_costs(m.weights, box_of(box[0], box[1], box[2], box[3]),
                          class_part + classes.of_target[t] * kBlock, tile,
                          cost + t * queries + first, least);
      if (bounded) workspace.bound[t * workspace.bound_stride + first / kBlock] = least;
    }
  }
  m.bad[layer * m.images + image] = bad;
  const int64_t row = layer * m.first[m.images] + m.first[image];
  assign(OneThread(), workspace, cost, queries, targets, int32_t(queries), m.copies, bounded,
         m.query_of_target + row * m.copies);
}

inline int64_t match_bytes(const Match& m, int64_t targets, int64_t distinct_classes) {
  const int64_t numbers = padded(targets * m.queries) + distinct_classes * kBlock;
  return Workspace<float>(nullptr, targets, m.queries, m.copies).bytes +
         numbers * int64_t(sizeof(float));
}

inline void match_any(const Match& m, int64_t layer, int64_t image, const ClassSlots& classes,
                      void* memory) {
  switch (m.logits_type) {
    case DType::bfloat16: return match_problem<BFloat16>(m, layer, image, classes, memory);
    case DType::float16: return match_problem<Half>(m, layer, image, classes, memory);
    default: return match_problem<float>(m, layer, image, classes, memory);
  }
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
             a.query_of_target + layer * a.first[a.images] + first);
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

inline Kernels kernels() { return {match_bytes, match_any, assign_bytes, assign_any}; }

}  // namespace PREDET_ISA
}  // namespace hungarian
}  // namespace predet
