// The arithmetic of multi-scale deformable attention, for one sampling point or one head of one
// query. CPU loops and CUDA kernels both call it, so tests of one cover the other.
//
// Where a point lies is linear in what the network gave: pixel = base + scale * given, for x and y:
//
//                         given      base               scale
//   classic               location   -1/2               size
//   fused, reference 2-d  offset     ref * size - 1/2   1
//   fused, reference 4-d  offset     ref * size - 1/2   ref_extent * size / (2 * points)
//
// with size the width or height of the level in pixels; pixel i is centred at coordinate i.
#pragma once

#include <cmath>

#include "../common/numeric.h"

namespace predet {
namespace ms_deform_attn {
inline namespace PREDET_ISA {

template <typename A>
PREDET_HOST_DEVICE A clamp(A x, A low, A high) {
  x = x > low ? x : low;  // NaN becomes low
  return x < high ? x : high;
}

PREDET_HOST_DEVICE float round_down(float x) { return floorf(x); }
PREDET_HOST_DEVICE double round_down(double x) { return floor(x); }

// Along one axis: the two pixels that a coordinate lies between.
template <typename A>
struct Span {
  bool inside;                // whether either lies in the level; if not, what is below is unused
  int32_t low, high;          // the pixels, moved to the border where they lie outside
  A low_mask, high_mask;      // 1 in the level, 0 outside
  A low_share, high_share;    // bilinear weights, 0 outside
};

// NaN and infinity lie outside.
template <typename A>
PREDET_HOST_DEVICE Span<A> span_of(A coordinate, int32_t size) {
  Span<A> s;
  s.inside = (coordinate > A(-1)) & (coordinate < A(size));
  const A x = clamp(coordinate, A(-1), A(size));
  const A below = round_down(x);
  const A fraction = x - below;
  const int32_t pixel = int32_t(below);
  const int32_t last = size - 1;
  s.low = pixel > 0 ? pixel : 0;
  s.low = s.low < last ? s.low : last;
  s.high = pixel < last ? pixel + 1 : last;
  s.low_mask = pixel >= 0 ? A(1) : A(0);
  s.high_mask = pixel < last ? A(1) : A(0);
  s.low_share = pixel >= 0 ? A(1) - fraction : A(0);
  s.high_share = pixel < last ? fraction : A(0);
  return s;
}

// Of one point: by its attention weight and by its coordinates.
template <typename A>
struct PointGradient {
  A weight, x, y;
};

// dot[i] is the product of the output's gradient with pixel i: top left, top right, bottom left,
// bottom right. `weight` is the point's attention weight.
template <typename A>
PREDET_HOST_DEVICE PointGradient<A> differentiate(const Span<A>& x, const Span<A>& y, A weight,
                                                  const A (&dot)[4]) {
  PointGradient<A> g;
  const A above = multiply_add(x.low_share, dot[0], x.high_share * dot[1]);
  const A below = multiply_add(x.low_share, dot[2], x.high_share * dot[3]);
  g.weight = multiply_add(y.low_share, above, y.high_share * below);
  const A rise_above = x.high_mask * dot[1] - x.low_mask * dot[0];
  const A rise_below = x.high_mask * dot[3] - x.low_mask * dot[2];
  g.x = weight * multiply_add(y.low_share, rise_above, y.high_share * rise_below);
  const A rise_left = y.high_mask * dot[2] - y.low_mask * dot[0];
  const A rise_right = y.high_mask * dot[3] - y.low_mask * dot[1];
  g.y = weight * multiply_add(x.low_share, rise_left, x.high_share * rise_right);
  return g;
}

// base and scale of the table above; extent is the reference's width or height.
template <typename A>
PREDET_HOST_DEVICE A base_of(A reference, A size) {
  return multiply_add(reference, size, A(-0.5));
}
template <typename A>
PREDET_HOST_DEVICE A scale_of(A extent, A size, int64_t points) {
  return extent * size * (A(0.5) / A(points));
}

PREDET_HOST_DEVICE double exponential(double x) { return exp(x); }

// exp(x) for x <= 0, as the softmax needs it: within 2 units in the last place, 0 below -87.
PREDET_HOST_DEVICE float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  float clamped = x < -88.0f ? -88.0f : x;  // NaN stays NaN
  clamped = clamped > 0.0f ? 0.0f : clamped;
  // Adding 1.5 * 2^23 rounds to an integer, which then lies in the low bits.
  const float shifted = multiply_add(clamped, 1.44269504f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  float r = multiply_add(n, -0.693359375f, clamped);  // log 2 in two parts
  r = multiply_add(n, 2.12194440e-4f, r);
  float p = 1.0f / 5040;
  p = multiply_add(p, r, 1.0f / 720);
  p = multiply_add(p, r, 1.0f / 120);
  p = multiply_add(p, r, 1.0f / 24);
  p = multiply_add(p, r, 1.0f / 6);
  p = multiply_add(p, r, 0.5f);
  p = multiply_add(p, r * r, r) + 1.0f;
  const float power = float_from_bits((bits_from_float(shifted) + 127u) << 23);
  return x < -87.0f ? 0.0f : p * power;
#endif
}

}  // namespace PREDET_ISA
}  // namespace ms_deform_attn
}  // namespace predet
