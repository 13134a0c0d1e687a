// The CPU loops over pixels, one channel a lane; compiled once for each instruction set
// (cpu_<set>.cpp).
#pragma once

#include "cpu_points.h"

namespace predet {
namespace ms_deform_attn {
inline namespace PREDET_ISA {

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

// grad_value += what the points of one level give to N * width channels of their pixels
template <typename V, int N, typename A, typename O>
PREDET_ALWAYS_INLINE void scatter_level(const Workspace<A>& work, int64_t first_point,
                                        int64_t last_point, int64_t queries, int64_t query_stride,
                                        const O* grad_output, A* grad_value) {
  for (int64_t q = 0; q < queries; ++q) {
    V grad[N];
    for (int j = 0; j < N; ++j) grad[j] = V::load(grad_output + q * query_stride + j * V::width);
    const Points<A>* points = work.points + q * work.blocks;
    for (int64_t point = first_point; point < last_point; ++point) {
      const Points<A>& block = points[point / kLanes];
      const int64_t i = point % kLanes;
      if (!block.inside[i]) continue;
      for (int k = 0; k < 4; ++k) {
        A* pixel = grad_value + block.offset[k][i];
        const V share = V::broadcast(block.share[k][i]);
        for (int j = 0; j < N; ++j) {
          multiply_add(share, grad[j], V::load(pixel + j * V::width)).store(pixel + j * V::width);
        }
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

// Gradients of all but the value.
template <typename A, typename O>
PREDET_ALWAYS_INLINE void differentiate_queries(const Problem& p, const HeadTask& task,
                                                int64_t first_query, int64_t queries,
                                                const Workspace<A>& work, const O* grad_output) {
  const A* value = static_cast<const A*>(task.value);
  for (int64_t q = 0; q < queries; ++q, grad_output += p.heads * p.channels) {
    for (int64_t b = 0; b < work.blocks; ++b) {
      Points<A>& points = work.points[q * work.blocks + b];
      for (int k = 0; k < 4; ++k) {
        for (int i = 0; i < kLanes; ++i) points.dot[k][i] = A(0);
      }
      for_channels<A>(p.channels, [&](auto vector, auto count, int64_t c) PREDET_INLINE_LAMBDA {
        multiply_pixels<decltype(vector), decltype(count)::value>(work.lanes[b], points, value + c,
                                                                  grad_output + c);
      });
    }
  }
  for (int64_t i = 0; i < queries * work.blocks; ++i) differentiate_points(work.points[i]);
  for (int64_t q = 0; q < queries; ++q) {
    store_point_gradients(p, task, first_query + q, work, work.points + q * work.blocks);
  }
}

template <typename A, typename O>
PREDET_ALWAYS_INLINE void scatter_queries(const Problem& p, const HeadTask& task, int64_t queries,
                                          const Workspace<A>& work, const O* grad_output) {
  A* grad_value = static_cast<A*>(task.grad_value);
  const int64_t first_level = task.only_level < 0 ? 0 : task.only_level;
  const int64_t last_level = task.only_level < 0 ? p.levels : task.only_level + 1;
  for_channels<A>(p.channels, [&](auto vector, auto count, int64_t c) PREDET_INLINE_LAMBDA {
    for (int64_t l = first_level; l < last_level; ++l) {
      scatter_level<decltype(vector), decltype(count)::value>(
          work, l * p.points, (l + 1) * p.points, queries, p.heads * p.channels, grad_output + c,
          grad_value + c);
    }
  });
}

template <typename A, typename O>
void backward(const Problem& p, const HeadTask& task) {
  const Workspace<A> work = open_workspace<A>(p, task);
  for_queries<true>(p, task, work, [&](int64_t first, int64_t queries) PREDET_INLINE_LAMBDA {
    const int64_t row = (task.image * p.queries + first) * p.heads + task.head;
    const O* grad_output = static_cast<const O*>(p.grad_output) + row * p.channels;
    if (task.grad_points) differentiate_queries(p, task, first, queries, work, grad_output);
    if (task.grad_value != nullptr) scatter_queries(p, task, queries, work, grad_output);
  });
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
