// Matching on the CPU.
#pragma once

#include "problem.h"

namespace predet {
namespace hungarian {

// Results are the same to the bit for any number of threads and any instruction set. The classes of
// the targets must be in [0, K).
void match_cpu(const Match& match, int threads);
void costs_cpu(const Match& match, float* cost, int threads);  // (L, M, Q) and `bad` only
void assign_cpu(const Assignment& assignment, int threads);

// Targets of the same class share their class costs.
struct ClassSlots {
  int32_t count;             // distinct classes of the image
  const int32_t* class_of;   // (count)
  const int32_t* of_target;  // (targets of the image): which of them
};

// The loops for one instruction set. `memory` has the bytes that the first function tells.
struct Kernels {
  int64_t (*match_bytes)(const Match&, int64_t targets, int64_t distinct_classes);
  void (*match)(const Match&, int64_t layer, int64_t image, const ClassSlots&, void* memory);
  void (*costs)(const Match&, int64_t layer, int64_t image, const ClassSlots&, void* memory,
                float* cost);
  int64_t (*assign_bytes)(const Assignment&, int64_t targets);
  void (*assign)(const Assignment&, int64_t layer, int64_t image, void* memory);
};

Kernels kernels_baseline();
Kernels kernels_avx2();
Kernels kernels_avx512();

}  // namespace hungarian
}  // namespace predet
