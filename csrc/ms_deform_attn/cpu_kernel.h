// The CPU loops, compiled once for each instruction set (cpu_<set>.cpp).
//
// A query's points are prepared 16 at a time, one point a lane (softmax, where it lies, what its
// four pixels weigh); then each point's pixels are mixed, one channel a lane.
#pragma once

#include "../common/simd.h"
#include "cpu.h"
#include "sampling.h"

namespace predet {
namespace ms_deform_attn {
inline namespace PREDET_ISA {

constexpr int kLanes = 16;
// Queries prepared together. Numbers just written 16 at a time cannot be read one by one until they
// have reached the cache, so the mixing must not follow at once.
#ifndef KQ
#define KQ 16
#endif
constexpr int kQueries = KQ;

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
    const Span<A> x = span_of(at.base_x[i] + at.scale_x[i] * at.given_x[i], lanes.columns[i]);
    const Span<A> y = span_of(at.base_y[i] + at.scale_y[i] * at.given_y[i], lanes.rows[i]);
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

// Calls body(V(), number of vectors V as a type, first channel) until all channels are done.
template <int N>
struct Count {
  static constexpr int value = N;
};

template <typename A, typename Body>
PREDET_ALWAYS_INLINE void for_channels(int64_t channels, Body&& body) {
  using V = typename Widest<A>::type;
  constexpr int kMany = 32 / V::width;
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32) body(V(), Count<kMany>(), c);
  for (; c + V::width <= channels; c += V::width) body(V(), Count<1>(), c);
  if constexpr (V::width > 8) {
    for (; c + 8 <= channels; c += 8) body(Vector<A, 8>(), Count<1>(), c);
  }
  if constexpr (V::width > 4) {
    for (; c + 4 <= channels; c += 4) body(Vector<A, 4>(), Count<1>(), c);
  }
  for (; c < channels; ++c) body(Vector<A, 1>(), Count<1>(), c);
}

// sums[q] += what the points of one level give to query q, for N * width channels
template <typename V, int N, typename A, typename T>
PREDET_ALWAYS_INLINE void mix_level(const Workspace<A>& work, int64_t first_point,
                                    int64_t last_point, int64_t queries, const T* value,
                                    A (*sums)[N * V::width]) {
  for (int64_t q = 0; q < queries; ++q) {
    // Two sums, so that additions need not wait for one another.
    V upper[N], lower[N];
    for (int j = 0; j < N; ++j) {
      upper[j] = V::load(&sums[q][j * V::width]);
      lower[j] = V::broadcast(A(0));
    }
    const Points<A>* points = work.points + q * work.blocks;
    for (int64_t point = first_point; point < last_point; ++point) {
      const Points<A>& block = points[point / kLanes];
      const int64_t i = point % kLanes;
      if (!block.inside[i]) continue;
      for (int k = 0; k < 2; ++k) {
        const T* above = value + block.offset[k][i];
        const T* below = value + block.offset[k + 2][i];
        const V share_above = V::broadcast(block.share[k][i]);
        const V share_below = V::broadcast(block.share[k + 2][i]);
        for (int j = 0; j < N; ++j) {
          upper[j] = multiply_add(share_above, V::load(above + j * V::width), upper[j]);
          lower[j] = multiply_add(share_below, V::load(below + j * V::width), lower[j]);
        }
      }
    }
    for (int j = 0; j < N; ++j) (upper[j] + lower[j]).store(&sums[q][j * V::width]);
  }
}

// Calls body(first query, number of queries) after preparing these queries.
template <bool kBackward, typename A, typename Body>
PREDET_ALWAYS_INLINE void for_queries(const Problem& p, const HeadTask& task,
                                      const Workspace<A>& work, Body&& body) {
  for (int64_t first = task.first_query; first < task.last_query; first += kQueries) {
    const int64_t left = task.last_query - first, count = left < kQueries ? left : kQueries;
    prepare_weights(p, task, first, count, work);
    for (int64_t i = 0; i < count; ++i) {
      prepare_locations<kBackward>(p, task, first + i, work, work.points + i * work.blocks);
    }
    body(first, count);
  }
}

template <typename A, typename T, typename O>
void forward(const Problem& p, const HeadTask& task) {
  const Workspace<A> work = open_workspace<A>(p, task);
  const T* value = static_cast<const T*>(task.value);
  for_queries<false>(p, task, work, [&](int64_t first, int64_t queries) PREDET_INLINE_LAMBDA {
    const int64_t row = (task.image * p.queries + first) * p.heads + task.head;
    O* output = static_cast<O*>(p.output) + row * p.channels;
    for_channels<A>(p.channels, [&](auto vector, auto count, int64_t c) PREDET_INLINE_LAMBDA {
      using V = decltype(vector);
      constexpr int kWidth = V::width * decltype(count)::value;
      alignas(64) A sums[kQueries][kWidth] = {};
      for (int64_t l = 0; l < p.levels; ++l) {
        mix_level<V, decltype(count)::value>(work, l * p.points, (l + 1) * p.points, queries,
                                             value + c, sums);
      }
      for (int64_t q = 0; q < queries; ++q) {
        O* to = output + q * p.heads * p.channels + c;
        for (int j = 0; j < kWidth; j += V::width) V::load(&sums[q][j]).store(to + j);
      }
    });
  });
}

// points.dot += products of the output's gradient with the pixels, over N * width channels. Points
// outside take part, with a pixel of the border.
template <typename V, int N, typename A, typename O>
PREDET_ALWAYS_INLINE void multiply_pixels(const Lanes<A>& lanes, Points<A>& points, const A* value,
                                          const O* grad_output) {
  V grad[N];
  for (int j = 0; j < N; ++j) grad[j] = V::load(grad_output + j * V::width);
  for (int k = 0; k < 4; ++k) {
    for (int first = 0; first < lanes.count; first += V::width) {
      V products[V::width];
      PREDET_UNROLL(16)
      for (int i = 0; i < V::width; ++i) {
        const A* pixel = value + points.offset[k][first + i];
        products[i] = grad[0] * V::load(pixel);
        for (int j = 1; j < N; ++j) {
          products[i] = multiply_add(grad[j], V::load(pixel + j * V::width), products[i]);
        }
      }
      A* dot = &points.dot[k][first];
      (V::load(dot) + sums_of(products)).store(dot);
    }
  }
}

// grad_value += what these points give to N * width channels of their pixels
template <typename V, int N, typename A, typename O>
PREDET_ALWAYS_INLINE void scatter(const Lanes<A>& lanes, const Points<A>& points,
                                  const O* grad_output, A* grad_value) {
  V grad[N];
  for (int j = 0; j < N; ++j) grad[j] = V::load(grad_output + j * V::width);
  for (int i = 0; i < lanes.count; ++i) {
    if (!points.inside[i]) continue;
    for (int k = 0; k < 4; ++k) {
      A* pixel = grad_value + points.offset[k][i];
      const V share = V::broadcast(points.share[k][i]);
      for (int j = 0; j < N; ++j) {
        multiply_add(share, grad[j], V::load(pixel + j * V::width)).store(pixel + j * V::width);
      }
    }
  }
}

template <typename A>
PREDET_ALWAYS_INLINE void differentiate_points(Points<A>& points) {
  for (int i = 0; i < kLanes; ++i) {
    Span<A> x, y;
    x.low_share = points.x_share[0][i];
    x.high_share = points.x_share[1][i];
    y.low_share = points.y_share[0][i];
    y.high_share = points.y_share[1][i];
    x.low_mask = points.x_mask[0][i];
    x.high_mask = points.x_mask[1][i];
    y.low_mask = points.y_mask[0][i];
    y.high_mask = points.y_mask[1][i];
    A dot[4];
    for (int k = 0; k < 4; ++k) dot[k] = points.inside[i] ? points.dot[k][i] : A(0);
    const PointGradient<A> g = differentiate(x, y, points.weight[i], dot);
    points.grad_weight[i] = g.weight;
    points.grad_x[i] = g.x;
    points.grad_y[i] = g.y;
  }
}

template <typename A>
PREDET_ALWAYS_INLINE void store_grad_given(const Workspace<A>& work, const Points<A>* points,
                                           A* to) {
  for (int64_t b = 0; b < work.blocks; ++b, to += 2 * kLanes) {
    A x[kLanes], y[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      x[i] = points[b].grad_x[i] * points[b].scale_x[i];
      y[i] = points[b].grad_y[i] * points[b].scale_y[i];
    }
    if (work.lanes[b].count == kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        to[2 * i] = x[i];
        to[2 * i + 1] = y[i];
      }
    } else {
      for (int i = 0; i < work.lanes[b].count; ++i) {
        to[2 * i] = x[i];
        to[2 * i + 1] = y[i];
      }
    }
  }
}

// Through the softmax when fused.
template <typename A, typename T>
PREDET_ALWAYS_INLINE void store_grad_weights(bool fused, const Workspace<A>& work,
                                             const Points<A>* points, T* to) {
  A mean = A(0);
  for (int64_t b = 0; fused && b < work.blocks; ++b) {
    A product[kLanes];
    for (int i = 0; i < kLanes; ++i) product[i] = points[b].weight[i] * points[b].grad_weight[i];
    mean += sum_of<kLanes>(product);
  }
  for (int64_t b = 0; b < work.blocks; ++b, to += kLanes) {
    A gradient[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const A through_softmax = points[b].weight[i] * (points[b].grad_weight[i] - mean);
      gradient[i] = fused ? through_softmax : points[b].grad_weight[i];
    }
    if (work.lanes[b].count == kLanes) {
      for (int i = 0; i < kLanes; ++i) narrow(gradient[i], to[i]);
    } else {
      for (int i = 0; i < work.lanes[b].count; ++i) narrow(gradient[i], to[i]);
    }
  }
}

// This head's part of the gradient of one query's reference points, (L, reference_size).
template <typename A>
void store_grad_reference(const Problem& p, const Workspace<A>& work, const Points<A>* points,
                          A* to) {
  const int64_t size = p.reference_size;
  for (int64_t i = 0; i < p.levels * size; ++i) to[i] = A(0);
  for (int64_t b = 0; b < work.blocks; ++b) {
    const Lanes<A>& lanes = work.lanes[b];
    for (int i = 0; i < lanes.count; ++i) {
      A* gradient = to + lanes.reference[i];
      const A x = points[b].grad_x[i] * lanes.width[i], y = points[b].grad_y[i] * lanes.height[i];
      gradient[0] += x;
      gradient[1] += y;
      if (size == 4) {
        gradient[2] += x * points[b].given_x[i] * (A(0.5) / A(p.points));
        gradient[3] += y * points[b].given_y[i] * (A(0.5) / A(p.points));
      }
    }
  }
}

template <typename A>
PREDET_ALWAYS_INLINE void store_point_gradients(const Problem& p, const HeadTask& task,
                                                int64_t query, const Workspace<A>& work,
                                                const Points<A>* points) {
  const int64_t row = (task.image * p.queries + query) * p.heads + task.head;
  const int64_t first = row * p.points_of_head();
  if (p.grad_given != nullptr) {
    store_grad_given(work, points, static_cast<A*>(p.grad_given) + 2 * first);
  }
  if (p.grad_weights != nullptr) {
    with_type<A>(p.weights_type, [&](auto type) PREDET_INLINE_LAMBDA {
      store_grad_weights(p.reference_size > 0, work, points,
                         static_cast<decltype(type)*>(p.grad_weights) + first);
    });
  }
  if (task.grad_reference != nullptr) {
    const int64_t own = (task.image * p.heads + task.head) * p.queries + query;
    store_grad_reference(p, work, points, static_cast<A*>(task.grad_reference) +
                                              own * p.levels * p.reference_size);
  }
}

template <bool kDots, bool kScatter, typename A, typename O>
void backward_loop(const Problem& p, const HeadTask& task) {
  const Workspace<A> work = open_workspace<A>(p, task);
  const A* value = static_cast<const A*>(task.value);
  A* grad_value = static_cast<A*>(task.grad_value);
  for_queries<true>(p, task, work, [&](int64_t first, int64_t queries) PREDET_INLINE_LAMBDA {
    for (int64_t query=first;query<first+queries;query++) {
    Points<A>* points=work.points+(query-first)*work.blocks;
    const int64_t row = (task.image * p.queries + query) * p.heads + task.head;
    const O* grad_output = static_cast<const O*>(p.grad_output) + row * p.channels;
    for (int64_t b = 0; b < work.blocks; ++b) {
      const Lanes<A>& lanes = work.lanes[b];
      if (task.only_level >= 0) {
        for (int i = 0; i < kLanes; ++i) points[b].inside[i] &= lanes.level[i] == task.only_level;
      }
      if (kDots) {
        for (int k = 0; k < 4; ++k) {
          for (int i = 0; i < kLanes; ++i) points[b].dot[k][i] = A(0);
        }
      }
      for_channels<A>(p.channels, [&](auto vector, auto count, int64_t c) PREDET_INLINE_LAMBDA {
        using V = decltype(vector);
        constexpr int N = decltype(count)::value;
        if (kDots) multiply_pixels<V, N>(lanes, points[b], value + c, grad_output + c);
        if (kScatter) scatter<V, N>(lanes, points[b], grad_output + c, grad_value + c);
      });
      if (kDots) differentiate_points(points[b]);
    }
    if (kDots) store_point_gradients(p, task, query, work, points);
    }
  });
}

template <typename A, typename O>
void backward(const Problem& p, const HeadTask& task) {
  if (task.grad_points && task.grad_value != nullptr) {
    backward_loop<true, true, A, O>(p, task);
  } else if (task.grad_points) {
    backward_loop<true, false, A, O>(p, task);
  } else if (task.grad_value != nullptr) {
    backward_loop<false, true, A, O>(p, task);
  }
}

template <typename A, typename T>
void pack(const Problem& p, int64_t image, int64_t head, int64_t first_pixel, int64_t last_pixel,
          void* packed) {
  const T* from = static_cast<const T*>(p.value);
  A* to = static_cast<A*>(packed) + first_pixel * p.channels;
  for (int64_t s = first_pixel; s < last_pixel; ++s, to += p.channels) {
    const T* pixel = from + ((image * p.pixels + s) * p.heads + head) * p.channels;
    for_channels<A>(p.channels, [&](auto vector, auto count, int64_t c) PREDET_INLINE_LAMBDA {
      using V = decltype(vector);
      for (int j = 0; j < decltype(count)::value; ++j) {
        V::load(pixel + c + j * V::width).store(to + c + j * V::width);
      }
    });
  }
}

template <typename A, typename T>
void unpack(const Problem& p, int64_t image, int64_t head, int64_t first_pixel, int64_t last_pixel,
            const void* packed) {
  const A* from = static_cast<const A*>(packed) + first_pixel * p.channels;
  T* to = static_cast<T*>(p.grad_value);
  for (int64_t s = first_pixel; s < last_pixel; ++s, from += p.channels) {
    T* pixel = to + ((image * p.pixels + s) * p.heads + head) * p.channels;
    for_channels<A>(p.channels, [&](auto vector, auto count, int64_t c) PREDET_INLINE_LAMBDA {
      using V = decltype(vector);
      for (int j = 0; j < decltype(count)::value; ++j) {
        V::load(from + c + j * V::width).store(pixel + c + j * V::width);
      }
    });
  }
}

template <typename A, typename T>
Kernels kernels_of() {
  return {int64_t(sizeof(A)), scratch_bytes<A>, pack<A, T>,    unpack<A, T>,
          forward<A, T, T>,   forward<A, A, T>, backward<A, T>};
}

inline Kernels kernels(DType type) {
  switch (type) {
    case DType::bfloat16: return kernels_of<float, BFloat16>();
    case DType::float16: return kernels_of<float, Half>();
    case DType::float64: return kernels_of<double, double>();
    default: return kernels_of<float, float>();
  }
}

}  // namespace PREDET_ISA
}  // namespace ms_deform_attn
}  // namespace predet
