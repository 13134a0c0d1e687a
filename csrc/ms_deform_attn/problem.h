// What a call of multi-scale deformable attention works on: addresses and sizes, nothing of Python.
//
// Legend: B batch, S pixels of all levels, H heads, C channels of a head, Q queries, L levels,
// P points of a level. All arrays are contiguous. "arithmetic type" is double for float64 storage
// and float for every other.
#pragma once

#include <cstdint>

#include "../common/numeric.h"

namespace predet {
namespace ms_deform_attn {

struct Level {
  int32_t height, width;
  int32_t first_pixel;  // of this level among the S
};

struct Problem {
  int64_t batch, pixels, heads, channels, queries, levels, points;
  int64_t reference_size;  // 2 or 4: fused; 0: classic
  const Level* level;      // (L), in host memory

  DType value_type;    // of value, output and their gradients
  DType weights_type;  // of weights and their gradient: value_type or the arithmetic type

  const void* value;      // (B, S, H, C)
  const void* reference;  // (B, Q, L, reference_size), arithmetic type; null when classic
  const void* given;      // (B, Q, H, L, P, 2), arithmetic type: offsets, or locations when classic
  const void* weights;    // (B, Q, H, L, P): logits, or weights when classic
  void* output;           // (B, Q, H * C); unused by backward

  // Backward only; a null gradient is not wanted.
  const void* grad_output;  // (B, Q, H * C)
  void* grad_value;
  void* grad_reference;
  void* grad_given;
  void* grad_weights;

  PREDET_HOST_DEVICE int64_t points_of_head() const { return levels * points; }
};

}  // namespace ms_deform_attn
}  // namespace predet
