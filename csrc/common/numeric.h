// Storage types of 16 bits, and the arithmetic type that each storage type is computed in.
#pragma once

#include <cstdint>
#include <cstring>

#include "portability.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace predet {

// The codes that the Python side passes; predet/ops/extension.py holds the same table.
enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3 };

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

inline namespace PREDET_ISA {

template <typename T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};

// a * b + c in one rounding where the instruction set has it. Compilers are told not to decide that.
PREDET_HOST_DEVICE float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
PREDET_HOST_DEVICE double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return fma(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

PREDET_HOST_DEVICE float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

PREDET_HOST_DEVICE uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

PREDET_HOST_DEVICE float widen(float x) { return x; }
PREDET_HOST_DEVICE double widen(double x) { return x; }
PREDET_HOST_DEVICE float widen(BFloat16 x) { return float_from_bits(uint32_t(x.bits) << 16); }

PREDET_HOST_DEVICE float widen(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) {  // infinity and NaN
    return float_from_bits(sign | 0x70000000u | magnitude);
  }
  // The exponent is rebased by a multiplication, which is exact and also right for subnormals.
  const float rebased = float_from_bits(magnitude) * float_from_bits(0x77800000u);  // 2^112
  return float_from_bits(sign | bits_from_float(rebased));
#endif
}

PREDET_HOST_DEVICE void narrow(float x, float& out) { out = x; }
PREDET_HOST_DEVICE void narrow(double x, double& out) { out = x; }

PREDET_HOST_DEVICE void narrow(float x, BFloat16& out) {
  const uint32_t bits = bits_from_float(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  out.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

PREDET_HOST_DEVICE void narrow(float x, Half& out) {
#if defined(__CUDA_ARCH__)
  out.bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t bits = bits_from_float(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {  // 2^16 and more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 1/2 moves the bits to where a subnormal has them, and rounds.
    half = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = uint16_t(sign | half);
#endif
}

}  // namespace PREDET_ISA
}  // namespace predet
