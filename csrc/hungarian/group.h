// Who works on one problem together: one CPU thread with vectors, or (cuda.cu) the threads of a
// warp or block. All members run the same code with the same scalars; arrays are shared, and sync()
// makes what one member wrote known to all. The scans of the solver are members' work, too.
#pragma once

#include <cstdint>

#include "../common/portability.h"

namespace predet {
namespace hungarian {
inline namespace PREDET_ISA {

constexpr double kBadCost = 1e9;  // what is not finite costs this: predet.ops.matching.BAD_COST

// Arrays that are scanned have room up to the next multiple of this many numbers; there lies what
// is never the least: infinity.
constexpr int32_t kBlock = 64;  // columns under one bound (solver.h)
constexpr int32_t kPadding = 16;

PREDET_HOST_DEVICE int64_t padded(int64_t count) {
  return (count + kPadding - 1) / kPadding * kPadding;
}

template <typename T>
PREDET_HOST_DEVICE T infinity() {
  return T(__builtin_huge_val());
}

PREDET_HOST_DEVICE float not_a_number() { return __builtin_nanf(""); }

PREDET_HOST_DEVICE float largest(float) { return 3.4028234663852886e38f; }
PREDET_HOST_DEVICE double largest(double) { return 1.7976931348623157e308; }

PREDET_HOST_DEVICE float absolute(float x) { return __builtin_fabsf(x); }
PREDET_HOST_DEVICE double absolute(double x) { return __builtin_fabs(x); }

// False for NaN, too.
template <typename T>
PREDET_HOST_DEVICE bool is_finite(T x) {
  return absolute(x) <= largest(x);
}

template <typename T>
PREDET_HOST_DEVICE T usable(T cost) {
  return is_finite(cost) ? cost : T(kBadCost);
}

template <typename T>
struct Found {
  T value;
  int32_t index;
};

}  // namespace PREDET_ISA
}  // namespace hungarian
}  // namespace predet
