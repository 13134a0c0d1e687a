// Sums that do not depend on the order of their terms: 64-bit integers of a common unit.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/numeric.h"

namespace predet {
namespace ms_deform_attn {
inline namespace PREDET_ISA {

// The unit in which `terms` numbers, none larger than `highest`, fit into 62 bits together; a power
// of two, so that scaling rounds nothing. NaN if `highest` is not finite.
PREDET_HOST_DEVICE double fixed_point_unit(double highest, int64_t terms) {
  if (!(highest < 1e300)) return highest - highest;  // NaN
  int exponent, extra;
  frexp(highest, &exponent);        // highest <= 2^exponent
  frexp(double(terms), &extra);     // terms <= 2^extra
  return ldexp(1.0, exponent + extra - 62);
}

// A product with a power of two rounds nothing.
PREDET_HOST_DEVICE int64_t to_fixed_point(double x, double units_in_one) {
  return llrint(x * units_in_one);
}
PREDET_HOST_DEVICE double from_fixed_point(int64_t sum, double unit) { return double(sum) * unit; }

}  // namespace PREDET_ISA
}  // namespace ms_deform_attn
}  // namespace predet
