// What a call of dropout works on: addresses and sizes, nothing of Python.
#pragma once

#include <cstdint>

#include "../common/numeric.h"

namespace predet {
namespace dropout {

// output[i] = base[i] + input[i] * (scale if number i is kept, else 0)
struct Problem {
  int64_t count;
  DType type;          // of all arrays
  const void* input;   // may be the output
  const void* base;    // null: zeros
  const void* gate;    // null: numbers are drawn; else kept where gate[i] is not <= 0
  void* output;
  uint64_t seed;
  uint32_t kept;       // a draw, below 2^16, is kept if it is less than this
  double scale;
  bool rectify;        // negative inputs count as 0
};

}  // namespace dropout
}  // namespace predet
