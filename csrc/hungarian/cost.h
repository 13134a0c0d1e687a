// The matching cost of one target and one query (DETR, section 3.1), for CPU loops and CUDA alike:
//
//     class_cost * class + bbox_cost * |box - target|_1 - giou_cost * GIoU(box, target)
//
// with class, for the target's class c, minus the softmax probability of c or the focal cost
// alpha (1-p)^gamma (-log(p + 1e-8)) - (1-alpha) p^gamma (-log(1-p + 1e-8)), p = sigmoid(logit c).
//
// All in fp32. The boxes' part is the reference's to the bit; exp and log below are within 2 units
// in the last place, and 1-p keeps the digits that subtracting p from 1 would lose. Nothing here is
// contracted into fused multiply-adds, so every instruction set and CUDA give the same bits.
#pragma once

#include "../common/numeric.h"
#include "group.h"

namespace predet {
namespace hungarian {

// As predet.ops.matching.matching_cost has them.
struct CostWeights {
  float class_cost, bbox_cost, giou_cost;
  float alpha, gamma;
  bool softmax;  // else focal
};

inline namespace PREDET_ISA {

constexpr int32_t kSums = 16;  // partial sums of a softmax's normaliser: part of its definition

// NaN in `x` is kept.
PREDET_HOST_DEVICE float at_least(float x, float least) { return x < least ? least : x; }

// 2^n of a number that is n + 1.5 * 2^23: there n lies in the low bits.
PREDET_HOST_DEVICE float power_of_two(float shifted) {
  return float_from_bits((bits_from_float(shifted) + 127u) << 23);
}

// exp(x) for x <= 1; from -87 downwards exp(-87), which is 1.6e-38. V: float, or several (lanes.h).
template <typename V>
PREDET_HOST_DEVICE V exponential(V x) {
  const V clamped = at_least(x, V(-87.0f));
  const V shifted = clamped * V(1.44269504f) + V(12582912.0f);  // rounded to an integer
  const V n = shifted - V(12582912.0f);
  const V r = (clamped - n * V(0.693359375f)) - n * V(-2.12194440e-4f);  // ln 2 in two parts
  V sum = V(1.0f / 5040) * r + V(1.0f / 720);  // Taylor's series: |r| < 0.35
  sum = sum * r + V(1.0f / 120);
  sum = sum * r + V(1.0f / 24);
  sum = sum * r + V(1.0f / 6);
  sum = sum * r + V(0.5f);
  sum = sum * r + V(1.0f);
  sum = sum * r + V(1.0f);
  return sum * power_of_two(shifted);
}

// log(x) for normal x > 0.
PREDET_HOST_DEVICE float logarithm(float x) {
  // x = m 2^e with m from sqrt(1/2) to sqrt(2), and log m = 2 artanh((m-1) / (m+1)).
  const uint32_t sqrt_half = 0x3f3504f3u;
  const int32_t e = int32_t(bits_from_float(x) - sqrt_half) >> 23;
  const float m = float_from_bits(bits_from_float(x) - (uint32_t(e) << 23));
  const float f = m - 1.0f;
  const float s = f / (2.0f + f);
  const float z = s * s;
  float sum = 2.0f / 11;
  sum = sum * z + 2.0f / 9;
  sum = sum * z + 2.0f / 7;
  sum = sum * z + 2.0f / 5;
  sum = sum * z + 2.0f / 3;
  // log m = 2s + s z sum, where 2s = f - s f: in this order only the last addition rounds much.
  const float n = float(e);
  const float tail = s * (z * sum - f) + n * -2.12194440e-4f;
  return ((tail + f) + n * 0.693359375f) + (x - x);  // the last term keeps NaN
}

PREDET_HOST_DEVICE float softmax_cost(float logit, float normalizer) {
  return -exponential(logit - normalizer);
}

// x^gamma for x in (0, 1]; kSquare: gamma is 2.
template <bool kSquare>
PREDET_HOST_DEVICE float power(float x, float gamma) {
  return kSquare ? x * x : exponential(gamma * logarithm(x));
}

template <bool kSquare>
PREDET_HOST_DEVICE float focal_cost(float logit, float alpha, float gamma) {
  const float e = exponential(logit < 0 ? logit : -logit);
  const float likely = 1.0f / (1.0f + e), unlikely = e * likely;
  const float p = logit < 0 ? unlikely : likely;
  const float q = logit < 0 ? likely : unlikely;  // 1 - p
  const float positive = alpha * power<kSquare>(q, gamma) * -logarithm(p + 1e-8f);
  const float negative = (1.0f - alpha) * power<kSquare>(p, gamma) * -logarithm(q + 1e-8f);
  return positive - negative;
}

struct Box {
  float cx, cy, w, h, x1, y1, x2, y2, area;
};

PREDET_HOST_DEVICE Box box_of(float cx, float cy, float w, float h) {
  return {cx, cy, w, h, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, w * h};
}

PREDET_HOST_DEVICE float extent(float low1, float low2, float high1, float high2) {
  return at_least((high1 < high2 ? high1 : high2) - (low1 > low2 ? low1 : low2), 0.0f);
}

PREDET_HOST_DEVICE float l1_of(const Box& q, const Box& t) {
  return ((absolute(q.cx - t.cx) + absolute(q.cy - t.cy)) + absolute(q.w - t.w)) +
         absolute(q.h - t.h);
}

PREDET_HOST_DEVICE float minus_giou(const Box& q, const Box& t) {
  const float smallest = 1e-12f;
  const float intersection = extent(q.x1, t.x1, q.x2, t.x2) * extent(q.y1, t.y1, q.y2, t.y2);
  const float united = q.area + t.area - intersection;
  const float width = at_least((q.x2 > t.x2 ? q.x2 : t.x2) - (q.x1 < t.x1 ? q.x1 : t.x1), 0.0f);
  const float height = at_least((q.y2 > t.y2 ? q.y2 : t.y2) - (q.y1 < t.y1 ? q.y1 : t.y1), 0.0f);
  const float enclosing = width * height;
  return -(intersection / at_least(united, smallest) -
           (enclosing - united) / at_least(enclosing, smallest));
}

PREDET_HOST_DEVICE float cost_of(const CostWeights& weights, float class_part, const Box& query,
                                 const Box& target) {
  return weights.class_cost * class_part + weights.bbox_cost * l1_of(query, target) +
         weights.giou_cost * minus_giou(query, target);
}

}  // namespace PREDET_ISA
}  // namespace hungarian
}  // namespace predet
