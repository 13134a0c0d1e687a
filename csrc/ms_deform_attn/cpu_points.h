// What the CPU loops need to know of sampling points: softmax, where they lie, what their four pixels
// count. One point a lane, 16 at a time, some queries at a time.
#pragma once

#include "../common/simd.h"
#include "cpu.h"
#include "sampling.h"

namespace predet {
namespace ms_deform_attn {
inline namespace PREDET_ISA {

constexpr int kLanes = 16;
// Queries prepared together, at most. Numbers just written 16 at a time cannot be read one by one
// until they have reached the cache, so the mixing must not follow at once. And what follows works
// level by level, so that a level's pixels are still near when the next query needs them.
constexpr int kQueries = 32;

// What up to 16 points of a head have in common for all queries, in the order of the weights' (L, P).
template <typename A>
struct alignas(64) Lanes {
  A width[kLanes], height[kLanes];
  A used[kLanes];  // 1, or 0 beyond the last point
  int32_t columns[kLanes], rows[kLanes], level[kLanes];
  int32_t reference[kLanes];  // where the reference of this level begins
  // Where a level and its rows begin in the value, in numbers.
  int32_t level_offset[kLanes], row_stride[kLanes];
  int32_t count;
};

// The same points for one query.
template <typename A>
struct alignas(64) Points {
  A share[4][kLanes];  // what each pixel counts in the output: weight included
  int32_t offset[4][kLanes];  // of each pixel in the value, in numbers
  int32_t inside[kLanes];
  // For the backward pass.
  A weight[kLanes];
  A x_share[2][kLanes], y_share[2][kLanes], x_mask[2][kLanes], y_mask[2][kLanes];
  A given_x[kLanes], given_y[kLanes], scale_x[kLanes], scale_y[kLanes];
  A dot[4][kLanes], grad_weight[kLanes], grad_x[kLanes], grad_y[kLanes];
};

// A task's working memory.
template <typename A>
struct Workspace {
  int64_t blocks;     // of 16 points in a head
  Lanes<A>* lanes;    // (blocks)
  Points<A>* points;  // (kQueries, blocks)
};

inline int64_t block_count(const Problem& p) {
  return (p.points_of_head() + kLanes - 1) / kLanes;
}

template <typename A>
int64_t scratch_bytes(const Problem& p) {
  return block_count(p) * int64_t(sizeof(Lanes<A>) + kQueries * sizeof(Points<A>));
}

template <typename A>
Workspace<A> open_workspace(const Problem& p, const HeadTask& task) {
  Workspace<A> work;
  work.blocks = block_count(p);
  work.lanes = static_cast<Lanes<A>*>(task.scratch);
  work.points = reinterpret_cast<Points<A>*>(work.lanes + work.blocks);
  const int64_t total = p.points_of_head();
  for (int64_t i = 0; i < work.blocks * kLanes; ++i) {
    Lanes<A>& lanes = work.lanes[i / kLanes];
    const int lane = int(i % kLanes);
    const bool used = i < total;
    const int64_t l = used ? i / p.points : 0;
    const Level& level = p.level[l];
    lanes.columns[lane] = level.width;
    lanes.rows[lane] = level.height;
    lanes.width[lane] = A(level.width);
    lanes.height[lane] = A(level.height);
    lanes.level_offset[lane] = int32_t(level.first_pixel * task.value_stride);
    lanes.row_stride[lane] = int32_t(level.width * task.value_stride);
    lanes.level[lane] = int32_t(l);
    lanes.reference[lane] = int32_t(l * p.reference_size);
    lanes.used[lane] = used ? A(1) : A(0);
    lanes.count = int32_t(total - i / kLanes * kLanes < kLanes ? total % kLanes : kLanes);
  }
  return work;
}

// Calls body(T()) with T the storage type that `type` names.
template <typename A, typename Body>
PREDET_ALWAYS_INLINE void with_type(DType type, Body&& body) {
  if (type == DType::bfloat16) {
    body(BFloat16());
  } else if (type == DType::float16) {
    body(Half());
  } else {
    body(A());
  }
}

// Zeros beyond the last point.
template <typename A, typename T>
PREDET_ALWAYS_INLINE void load_weights(const Lanes<A>& lanes, const T* from, A* to) {
  if (lanes.count == kLanes) {
    for (int i = 0; i < kLanes; ++i) to[i] = A(widen(from[i]));
  } else {
    for (int i = 0; i < kLanes; ++i) to[i] = A(0);
    for (int i = 0; i < lanes.count; ++i) to[i] = A(widen(from[i]));
  }
}

template <typename A>
PREDET_ALWAYS_INLINE void load_given(const Lanes<A>& lanes, const A* from, A* x, A* y) {
  if (lanes.count == kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      x[i] = from[2 * i];
      y[i] = from[2 * i + 1];
    }
  } else {
    for (int i = 0; i < kLanes; ++i) x[i] = y[i] = A(0);
    for (int i = 0; i < lanes.count; ++i) {
      x[i] = from[2 * i];
      y[i] = from[2 * i + 1];
    }
  }
}

// Over the points of each query. One step for all queries before the next step: numbers written by
// a step are read by the following one, and would be waited for if it followed at once.
template <typename A>
PREDET_ALWAYS_INLINE void softmax(const Workspace<A>& work, int64_t queries) {
  A factor[kQueries];
  for (int64_t q = 0; q < queries; ++q) {
    const Points<A>* points = work.points + q * work.blocks;
    A highest = points[0].weight[0];
    for (int64_t b = 0; b < work.blocks; ++b) {
      if (work.lanes[b].count == kLanes) {
        const A here = highest_of<kLanes>(points[b].weight);
        highest = here > highest ? here : highest;
      } else {
        for (int i = 0; i < work.lanes[b].count; ++i) {
          highest = points[b].weight[i] > highest ? points[b].weight[i] : highest;
        }
      }
    }
    factor[q] = highest;
  }
  for (int64_t q = 0; q < queries; ++q) {
    for (int64_t b = 0; b < work.blocks; ++b) {
      Points<A>& PREDET_RESTRICT points = work.points[q * work.blocks + b];
      const Lanes<A>& PREDET_RESTRICT lanes = work.lanes[b];
      for (int i = 0; i < kLanes; ++i) {
        points.weight[i] = exponential(points.weight[i] - factor[q]) * lanes.used[i];
      }
    }
  }
  for (int64_t q = 0; q < queries; ++q) {
    A sum = A(0);
    for (int64_t b = 0; b < work.blocks; ++b) {
      sum += sum_of<kLanes>(work.points[q * work.blocks + b].weight);
    }
    factor[q] = A(1) / sum;
  }
  for (int64_t q = 0; q < queries; ++q) {
    for (int64_t b = 0; b < work.blocks; ++b) {
      A* weight = work.points[q * work.blocks + b].weight;
      for (int i = 0; i < kLanes; ++i) weight[i] *= factor[q];
    }
  }
}

// The columns of the table in sampling.h.
template <typename A>
struct alignas(64) Placement {
  A given_x[kLanes], given_y[kLanes];
  A base_x[kLanes], base_y[kLanes], scale_x[kLanes], scale_y[kLanes];
};

template <typename A>
PREDET_ALWAYS_INLINE void place(const Problem& p, const Lanes<A>& lanes, const A* reference,
                                Placement<A>& at) {
  const int64_t size = p.reference_size, count = p.levels * size;
  if (size == 0) {
    for (int i = 0; i < kLanes; ++i) {
      at.base_x[i] = at.base_y[i] = A(-0.5);
      at.scale_x[i] = lanes.width[i];
      at.scale_y[i] = lanes.height[i];
    }
    return;
  }
  A x[kLanes], y[kLanes];
  look_up<kLanes>(reference, count, lanes.reference, x);
  look_up<kLanes>(reference + 1, count - 1, lanes.reference, y);
  for (int i = 0; i < kLanes; ++i) {
    at.base_x[i] = base_of(x[i], lanes.width[i]);
    at.base_y[i] = base_of(y[i], lanes.height[i]);
    at.scale_x[i] = at.scale_y[i] = A(1);
  }
  if (size == 2) return;
  look_up<kLanes>(reference + 2, count - 2, lanes.reference, x);
  look_up<kLanes>(reference + 3, count - 3, lanes.reference, y);
  for (int i = 0; i < kLanes; ++i) {
    at.scale_x[i] = scale_of(x[i], lanes.width[i], p.points);
    at.scale_y[i] = scale_of(y[i], lanes.height[i], p.points);
  }
}

// Everything that the mixing needs to know of 16 points whose weights are known.
template <bool kBackward, typename A>
PREDET_ALWAYS_INLINE void locate_points(const Lanes<A>& PREDET_RESTRICT lanes,
                                        const Placement<A>& PREDET_RESTRICT at, int32_t stride,
                                        Points<A>& PREDET_RESTRICT points) {
  for (int i = 0; i < kLanes; ++i) {
    const Span<A> x = span_of(
        multiply_add(at.scale_x[i], at.given_x[i], at.base_x[i]), lanes.columns[i]);
    const Span<A> y = span_of(
        multiply_add(at.scale_y[i], at.given_y[i], at.base_y[i]), lanes.rows[i]);
    points.inside[i] = x.inside & y.inside;
    const A top = points.weight[i] * y.low_share, bottom = points.weight[i] * y.high_share;
    points.share[0][i] = top * x.low_share;
    points.share[1][i] = top * x.high_share;
    points.share[2][i] = bottom * x.low_share;
    points.share[3][i] = bottom * x.high_share;
    const int32_t above = lanes.level_offset[i] + y.low * lanes.row_stride[i];
    const int32_t below = lanes.level_offset[i] + y.high * lanes.row_stride[i];
    points.offset[0][i] = above + x.low * stride;
    points.offset[1][i] = above + x.high * stride;
    points.offset[2][i] = below + x.low * stride;
    points.offset[3][i] = below + x.high * stride;
    if (kBackward) {
      points.x_share[0][i] = x.low_share;
      points.x_share[1][i] = x.high_share;
      points.y_share[0][i] = y.low_share;
      points.y_share[1][i] = y.high_share;
      points.x_mask[0][i] = x.low_mask;
      points.x_mask[1][i] = x.high_mask;
      points.y_mask[0][i] = y.low_mask;
      points.y_mask[1][i] = y.high_mask;
      points.given_x[i] = at.given_x[i];
      points.given_y[i] = at.given_y[i];
      points.scale_x[i] = at.scale_x[i];
      points.scale_y[i] = at.scale_y[i];
    }
  }
}

template <typename A>
PREDET_ALWAYS_INLINE void prepare_weights(const Problem& p, const HeadTask& task,
                                          int64_t first_query, int64_t queries,
                                          const Workspace<A>& work) {
  const int64_t row = (task.image * p.queries + first_query) * p.heads + task.head;
  with_type<A>(p.weights_type, [&](auto type) PREDET_INLINE_LAMBDA {
    const auto* weights = static_cast<const decltype(type)*>(p.weights) + row * p.points_of_head();
    for (int64_t q = 0; q < queries; ++q) {
      for (int64_t b = 0; b < work.blocks; ++b) {
        load_weights(work.lanes[b], weights + b * kLanes, work.points[q * work.blocks + b].weight);
      }
      weights += p.heads * p.points_of_head();
    }
  });
  if (p.reference_size > 0 && work.blocks > 0) softmax(work, queries);
}

template <bool kBackward, typename A>
PREDET_ALWAYS_INLINE void prepare_locations(const Problem& p, const HeadTask& task, int64_t query,
                                            const Workspace<A>& work, Points<A>* points) {
  const int64_t image_query = task.image * p.queries + query;
  const A* reference =
      static_cast<const A*>(p.reference) + image_query * p.levels * p.reference_size;
  const A* given = static_cast<const A*>(p.given) +
                   2 * (image_query * p.heads + task.head) * p.points_of_head();
  for (int64_t b = 0; b < work.blocks; ++b) {
    Placement<A> at;
    place(p, work.lanes[b], reference, at);
    load_given(work.lanes[b], given + 2 * b * kLanes, at.given_x, at.given_y);
    locate_points<kBackward>(work.lanes[b], at, int32_t(task.value_stride), points[b]);
  }
}

template <bool kBackward, typename A>
PREDET_NEVER_INLINE void prepare(const Problem& p, const HeadTask& task, int64_t first_query,
                                 int64_t queries, const Workspace<A>& work) {
  prepare_weights(p, task, first_query, queries, work);
  for (int64_t q = 0; q < queries; ++q) {
    prepare_locations<kBackward>(p, task, first_query + q, work, work.points + q * work.blocks);
  }
}

// Calls body(first query, number of queries) after preparing these queries.
template <bool kBackward, typename A, typename Body>
PREDET_ALWAYS_INLINE void for_queries(const Problem& p, const HeadTask& task,
                                      const Workspace<A>& work, Body&& body) {
  for (int64_t first = task.first_query; first < task.last_query; first += kQueries) {
    const int64_t left = task.last_query - first, count = left < kQueries ? left : kQueries;
    prepare<kBackward>(p, task, first, count, work);
    body(first, count);
  }
}

}  // namespace PREDET_ISA
}  // namespace ms_deform_attn
}  // namespace predet
