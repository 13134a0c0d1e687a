// Multi-scale deformable attention on the CPU.
#pragma once

#include "problem.h"

namespace predet {
namespace ms_deform_attn {

// Results are the same to the bit for any number of threads.
void forward_cpu(const Problem& problem, int threads);
void backward_cpu(const Problem& problem, int threads);

// One head of one image, with the queries [first_query, last_query) that a task takes.
struct HeadTask {
  int64_t image, head;
  int64_t first_query, last_query;
  const void* value;           // pixel 0 of this head
  int64_t value_stride;        // numbers from one pixel to the next; S of them fit in 31 bits
  void* grad_value;            // laid out as value, arithmetic type; null: not wanted
  bool grad_points;            // whether to compute the gradients of all but the value
  int64_t only_level;          // gradient of the value for this level only; -1: all
  void* grad_reference;        // (B, H, Q, L, reference_size), summed over heads later; or null
  void* scratch;               // scratch_bytes()
};

// The loops of one storage type, compiled for one instruction set. "packed" is a copy of one head's
// value, (S, C) in the arithmetic type.
struct Kernels {
  int64_t arithmetic_bytes;
  int64_t (*scratch_bytes)(const Problem&);
  void (*pack)(const Problem&, int64_t image, int64_t head, int64_t first_pixel,
               int64_t last_pixel, void* packed);
  void (*unpack)(const Problem&, int64_t image, int64_t head, int64_t first_pixel,
                 int64_t last_pixel, const void* packed);
  void (*forward)(const Problem&, const HeadTask&);         // value as stored
  void (*forward_packed)(const Problem&, const HeadTask&);  // value packed
  void (*backward)(const Problem&, const HeadTask&);        // value in the arithmetic type
};

Kernels kernels_baseline(DType type);
Kernels kernels_avx2(DType type);
Kernels kernels_avx512(DType type);

}  // namespace ms_deform_attn
}  // namespace predet
