// What a call of matching works on: addresses and sizes, nothing of Python.
//
// Legend: L decoder layers, B images, Q queries, K logits, M targets of the whole batch. The targets
// of a batch lie image after image; image b has those from first[b] to first[b + 1].
#pragma once

#include <cstdint>

#include "../common/numeric.h"
#include "cost.h"

namespace predet {
namespace hungarian {

// Numbers from one layer, image or query to the next.
struct Strides {
  int64_t layer, image, query;
};

// Costs are computed here, from what the network gave.
struct Match {
  int64_t layers, images, queries, classes;
  int32_t copies;        // how often each target is wanted
  const int32_t* first;  // (B + 1), in host memory
  int64_t total_targets;     // M, which is first[B]

  DType logits_type;
  const void* logits;  // (L, B, Q, K), the last dimension dense
  Strides logits_stride;
  const float* boxes;  // (L, B, Q, 4) cxcywh, the last dimension dense
  Strides boxes_stride;
  const int64_t* target_classes;  // (M)
  const float* target_boxes;      // (M, 4) cxcywh
  CostWeights weights;

  // (L, copies * M), image after image, and of each image its targets copy after copy; -1: none.
  int64_t* query_of_target;
  int64_t* bad;  // (L, B): costs that were not finite

  int32_t targets_of(int64_t image) const { return first[image + 1] - first[image]; }
};

// Costs are given.
struct Assignment {
  int64_t layers, images, queries;
  const int32_t* first;  // (B + 1), in host memory
  int64_t total_targets;     // M, which is first[B]
  DType cost_type;       // float32 or float64
  const void* cost;      // (L, M, Q)
  int64_t layer_stride, target_stride;

  int64_t* query_of_target;  // (L, M), -1: none
  int64_t* bad;              // (L, B): costs that were not finite

  int32_t targets_of(int64_t image) const { return first[image + 1] - first[image]; }
};

}  // namespace hungarian
}  // namespace predet
