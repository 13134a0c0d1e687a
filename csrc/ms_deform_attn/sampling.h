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

// The four pixels around a sampling point: top left, top right, bottom left, bottom right.
template <typename A>
struct Sample {
  bool inside;        // whether any of the four lies in the level
  int32_t pixel[4];   // row * width + column, moved into the level where it lies outside
  A mask[4];          // 1 in the level, 0 outside
  A right, down;      // fractions: how far from the left and from the top pixel
};

template <typename A>
PREDET_HOST_DEVICE A clamp(A x, A low, A high) {
  x = x > low ? x : low;  // NaN becomes low
  return x < high ? x : high;
}

// The largest integer that is not above x, which must fit in 32 bits.
template <typename A>
PREDET_HOST_DEVICE int32_t round_down(A x) {
  const int32_t toward_zero = int32_t(x);
  return toward_zero - (A(toward_zero) > x ? 1 : 0);
}

// NaN and infinity lie outside.
template <typename A>
PREDET_HOST_DEVICE Sample<A> locate(A x, A y, int32_t width, int32_t height) {
  Sample<A> s;
  const A w = A(width), h = A(height);
  s.inside = (x > A(-1)) & (x < w) & (y > A(-1)) & (y < h);
  x = clamp(x, A(-1), w);
  y = clamp(y, A(-1), h);
  const int32_t x0 = round_down(x), y0 = round_down(y);
  const A column = A(x0), row = A(y0);
  s.right = x - column;
  s.down = y - row;
  const A left = (column >= A(0)) & (column < w) ? A(1) : A(0);
  const A right = column + A(1) < w ? A(1) : A(0);
  const A top = (row >= A(0)) & (row < h) ? A(1) : A(0);
  const A bottom = row + A(1) < h ? A(1) : A(0);
  s.mask[0] = left * top;
  s.mask[1] = right * top;
  s.mask[2] = left * bottom;
  s.mask[3] = right * bottom;
  const int32_t left_column = x0 < 0 ? 0 : (x0 >= width ? width - 1 : x0);
  const int32_t right_column = x0 + 1 >= width ? width - 1 : x0 + 1;
  const int32_t top_row = y0 < 0 ? 0 : (y0 >= height ? height - 1 : y0);
  const int32_t bottom_row = y0 + 1 >= height ? height - 1 : y0 + 1;
  s.pixel[0] = top_row * width + left_column;
  s.pixel[1] = top_row * width + right_column;
  s.pixel[2] = bottom_row * width + left_column;
  s.pixel[3] = bottom_row * width + right_column;
  return s;
}

// How much each of the four pixels counts; they sum to 1 where all lie in the level.
template <typename A>
PREDET_HOST_DEVICE void bilinear(A right, A down, const A (&mask)[4], A (&share)[4]) {
  const A left = A(1) - right, up = A(1) - down;
  share[0] = mask[0] * (up * left);
  share[1] = mask[1] * (up * right);
  share[2] = mask[2] * (down * left);
  share[3] = mask[3] * (down * right);
}

// Gradients of one point. dot[i] is the product of the output's gradient with pixel i, already 0
// where the pixel lies outside; `weight` is the point's attention weight.
template <typename A>
struct PointGradient {
  A weight, x, y;
};

template <typename A>
PREDET_HOST_DEVICE PointGradient<A> differentiate(A right, A down, A weight, const A (&dot)[4]) {
  const A left = A(1) - right, up = A(1) - down;
  PointGradient<A> g;
  g.weight = up * (left * dot[0] + right * dot[1]) + down * (left * dot[2] + right * dot[3]);
  g.x = weight * (up * (dot[1] - dot[0]) + down * (dot[3] - dot[2]));
  g.y = weight * (left * (dot[2] - dot[0]) + right * (dot[3] - dot[1]));
  return g;
}

// base and scale of the table above; extent is the reference's width or height.
template <typename A>
PREDET_HOST_DEVICE A base_of(A reference, A size) {
  return reference * size - A(0.5);
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
  const float shifted = clamped * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  float r = clamped - n * 0.693359375f;  // log 2 in two parts
  r = r + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const float power = float_from_bits((bits_from_float(shifted) + 127u) << 23);
  return x < -87.0f ? 0.0f : p * power;
#endif
}

}  // namespace PREDET_ISA
}  // namespace ms_deform_attn
}  // namespace predet
