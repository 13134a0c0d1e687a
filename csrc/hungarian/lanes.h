// A few numbers side by side, with just what the loops here need. There is a form for AVX-512,
// one for AVX2, and one in the compiler's own vectors of 16 bytes (SSE2, NEON, ...).
//
// Comparisons give a Mask and are false for NaN; bits() of one has lane 0 in its lowest bit.
// load_first() reads no more than `count` numbers; the lanes behind them are those of `others`.
// total() adds the upper half of the lanes to the lower one, and so on: the same for all forms.
#pragma once

#include <cstdint>

#include "../common/portability.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace predet {
namespace hungarian {
inline namespace PREDET_ISA {

template <typename T>
struct Lanes;

#if defined(__AVX512F__)

template <>
struct Lanes<float> {
  static constexpr int32_t width = 16;
  using Mask = __mmask16;
  __m512 v;

  Lanes() = default;
  PREDET_ALWAYS_INLINE Lanes(__m512 x) : v(x) {}
  explicit PREDET_ALWAYS_INLINE Lanes(float x) : v(_mm512_set1_ps(x)) {}
  static PREDET_ALWAYS_INLINE Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
  PREDET_ALWAYS_INLINE void store(float* to) const { _mm512_storeu_ps(to, v); }
  PREDET_ALWAYS_INLINE Lanes magnitude() const {
    return {_mm512_and_ps(v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff)))};
  }
  static PREDET_ALWAYS_INLINE Lanes load_first(int64_t count, const float* from, Lanes others) {
    const __mmask16 mask = count >= 16 ? 0xffff : __mmask16((1u << (count > 0 ? count : 0)) - 1);
    return {_mm512_mask_loadu_ps(others.v, mask, from)};
  }
  PREDET_ALWAYS_INLINE float lowest() const { return _mm512_reduce_min_ps(v); }
  PREDET_ALWAYS_INLINE float highest() const { return _mm512_reduce_max_ps(v); }
  PREDET_ALWAYS_INLINE float total() const {
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

template <>
struct Lanes<double> {
  static constexpr int32_t width = 8;
  using Mask = __mmask8;
  __m512d v;

  Lanes() = default;
  PREDET_ALWAYS_INLINE Lanes(__m512d x) : v(x) {}
  explicit PREDET_ALWAYS_INLINE Lanes(double x) : v(_mm512_set1_pd(x)) {}
  static PREDET_ALWAYS_INLINE Lanes load(const double* from) { return {_mm512_loadu_pd(from)}; }
  static PREDET_ALWAYS_INLINE Lanes load(const float* from) {
    return {_mm512_cvtps_pd(_mm256_loadu_ps(from))};
  }
  PREDET_ALWAYS_INLINE void store(double* to) const { _mm512_storeu_pd(to, v); }
  PREDET_ALWAYS_INLINE Lanes magnitude() const {
    return {_mm512_and_pd(v, _mm512_castsi512_pd(_mm512_set1_epi64(0x7fffffffffffffff)))};
  }
  PREDET_ALWAYS_INLINE double lowest() const { return _mm512_reduce_min_pd(v); }
};

PREDET_ALWAYS_INLINE Lanes<double> operator+(Lanes<double> a, Lanes<double> b) {
  return {_mm512_add_pd(a.v, b.v)};
}
PREDET_ALWAYS_INLINE Lanes<float> operator+(Lanes<float> a, Lanes<float> b) {
  return {_mm512_add_ps(a.v, b.v)};
}
PREDET_ALWAYS_INLINE Lanes<float> operator-(Lanes<float> a, Lanes<float> b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
PREDET_ALWAYS_INLINE Lanes<float> operator*(Lanes<float> a, Lanes<float> b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
PREDET_ALWAYS_INLINE Lanes<float> power_of_two(Lanes<float> shifted) {
  const __m512i exponent =
      _mm512_add_epi32(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}
PREDET_ALWAYS_INLINE __mmask16 operator<(Lanes<float> a, Lanes<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ);
}
PREDET_ALWAYS_INLINE __mmask8 operator<(Lanes<double> a, Lanes<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ);
}
PREDET_ALWAYS_INLINE __mmask16 operator<=(Lanes<float> a, Lanes<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ);
}
PREDET_ALWAYS_INLINE __mmask8 operator<=(Lanes<double> a, Lanes<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ);
}
PREDET_ALWAYS_INLINE Lanes<float> pick(__mmask16 mask, Lanes<float> a, Lanes<float> b) {
  return {_mm512_mask_blend_ps(mask, b.v, a.v)};
}
PREDET_ALWAYS_INLINE Lanes<double> pick(__mmask8 mask, Lanes<double> a, Lanes<double> b) {
  return {_mm512_mask_blend_pd(mask, b.v, a.v)};
}
PREDET_ALWAYS_INLINE uint32_t bits(__mmask16 mask) { return mask; }
PREDET_ALWAYS_INLINE uint32_t bits(__mmask8 mask) { return mask; }

// to[i] = x where the mask is set.
PREDET_ALWAYS_INLINE void store_where(__mmask8 mask, int64_t x, int64_t* to) {
  _mm512_mask_storeu_epi64(to, mask, _mm512_set1_epi64(x));
}

#elif defined(__AVX2__)

template <>
struct Lanes<float> {
  static constexpr int32_t width = 8;
  using Mask = __m256;
  __m256 v;

  Lanes() = default;
  PREDET_ALWAYS_INLINE Lanes(__m256 x) : v(x) {}
  explicit PREDET_ALWAYS_INLINE Lanes(float x) : v(_mm256_set1_ps(x)) {}
  static PREDET_ALWAYS_INLINE Lanes load(const float* from) { return {_mm256_loadu_ps(from)}; }
  PREDET_ALWAYS_INLINE void store(float* to) const { _mm256_storeu_ps(to, v); }
  PREDET_ALWAYS_INLINE Lanes magnitude() const {
    return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), v)};
  }
  static PREDET_ALWAYS_INLINE Lanes load_first(int64_t count, const float* from, Lanes others) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(
        _mm256_set1_epi32(int32_t(count < 0 ? 0 : (count > 8 ? 8 : count))), lane);
    return {_mm256_blendv_ps(others.v, _mm256_maskload_ps(from, mask),
                             _mm256_castsi256_ps(mask))};
  }
  PREDET_ALWAYS_INLINE float lowest() const {
    const __m128 four = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
  }
  PREDET_ALWAYS_INLINE float highest() const {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  PREDET_ALWAYS_INLINE float total() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

template <>
struct Lanes<double> {
  static constexpr int32_t width = 4;
  using Mask = __m256d;
  __m256d v;

  Lanes() = default;
  PREDET_ALWAYS_INLINE Lanes(__m256d x) : v(x) {}
  explicit PREDET_ALWAYS_INLINE Lanes(double x) : v(_mm256_set1_pd(x)) {}
  static PREDET_ALWAYS_INLINE Lanes load(const double* from) { return {_mm256_loadu_pd(from)}; }
  static PREDET_ALWAYS_INLINE Lanes load(const float* from) {
    return {_mm256_cvtps_pd(_mm_loadu_ps(from))};
  }
  PREDET_ALWAYS_INLINE void store(double* to) const { _mm256_storeu_pd(to, v); }
  PREDET_ALWAYS_INLINE Lanes magnitude() const {
    return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), v)};
  }
  PREDET_ALWAYS_INLINE double lowest() const {
    const __m128d two = _mm_min_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_min_sd(two, _mm_unpackhi_pd(two, two)));
  }
};

PREDET_ALWAYS_INLINE Lanes<double> operator+(Lanes<double> a, Lanes<double> b) {
  return {_mm256_add_pd(a.v, b.v)};
}
PREDET_ALWAYS_INLINE Lanes<float> operator+(Lanes<float> a, Lanes<float> b) {
  return {_mm256_add_ps(a.v, b.v)};
}
PREDET_ALWAYS_INLINE Lanes<float> operator-(Lanes<float> a, Lanes<float> b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
PREDET_ALWAYS_INLINE Lanes<float> operator*(Lanes<float> a, Lanes<float> b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
PREDET_ALWAYS_INLINE Lanes<float> power_of_two(Lanes<float> shifted) {
  const __m256i exponent =
      _mm256_add_epi32(_mm256_castps_si256(shifted.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
PREDET_ALWAYS_INLINE __m256 operator<(Lanes<float> a, Lanes<float> b) {
  return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ);
}
PREDET_ALWAYS_INLINE __m256d operator<(Lanes<double> a, Lanes<double> b) {
  return _mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ);
}
PREDET_ALWAYS_INLINE __m256 operator<=(Lanes<float> a, Lanes<float> b) {
  return _mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ);
}
PREDET_ALWAYS_INLINE __m256d operator<=(Lanes<double> a, Lanes<double> b) {
  return _mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ);
}
PREDET_ALWAYS_INLINE Lanes<float> pick(__m256 mask, Lanes<float> a, Lanes<float> b) {
  return {_mm256_blendv_ps(b.v, a.v, mask)};
}
PREDET_ALWAYS_INLINE Lanes<double> pick(__m256d mask, Lanes<double> a, Lanes<double> b) {
  return {_mm256_blendv_pd(b.v, a.v, mask)};
}
PREDET_ALWAYS_INLINE uint32_t bits(__m256 mask) { return uint32_t(_mm256_movemask_ps(mask)); }
PREDET_ALWAYS_INLINE uint32_t bits(__m256d mask) { return uint32_t(_mm256_movemask_pd(mask)); }

// to[i] = x where the mask is set.
PREDET_ALWAYS_INLINE void store_where(__m256d mask, int64_t x, int64_t* to) {
  _mm256_maskstore_epi64(reinterpret_cast<long long*>(to), _mm256_castpd_si256(mask),
                         _mm256_set1_epi64x(x));
}

#else

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Numbers __attribute__((vector_size(16)));
  typedef int32_t Mask __attribute__((vector_size(16)));
};
template <>
struct VectorOf<double> {
  typedef double Numbers __attribute__((vector_size(16)));
  typedef int64_t Mask __attribute__((vector_size(16)));
};

template <typename T>
struct Lanes {
  static constexpr int32_t width = 16 / int32_t(sizeof(T));
  using Vector = typename VectorOf<T>::Numbers;
  using Mask = typename VectorOf<T>::Mask;
  Vector v;

  Lanes() = default;
  PREDET_ALWAYS_INLINE Lanes(Vector x) : v(x) {}
  explicit PREDET_ALWAYS_INLINE Lanes(T x) : v(Vector{} + x) {}
  static PREDET_ALWAYS_INLINE Lanes load(const T* from) {
    Vector loaded;
    __builtin_memcpy(&loaded, from, sizeof(Vector));
    return {loaded};
  }
  template <typename U>
  static PREDET_ALWAYS_INLINE Lanes load(const U* from) {
    return {Vector{T(from[0]), T(from[1])}};
  }
  PREDET_ALWAYS_INLINE void store(T* to) const { __builtin_memcpy(to, &v, sizeof(Vector)); }
  PREDET_ALWAYS_INLINE Lanes magnitude() const { return {v < 0 ? -v : v}; }
  static PREDET_ALWAYS_INLINE Lanes load_first(int64_t count, const T* from, Lanes others) {
    for (int32_t i = 0; i < width; ++i) others.v[i] = i < count ? from[i] : others.v[i];
    return others;
  }
  PREDET_ALWAYS_INLINE T lowest() const {
    T least = v[0];
    for (int32_t i = 1; i < width; ++i) least = v[i] < least ? v[i] : least;
    return least;
  }
  PREDET_ALWAYS_INLINE T highest() const {
    T most = v[0];
    for (int32_t i = 1; i < width; ++i) most = v[i] > most ? v[i] : most;
    return most;
  }
  PREDET_ALWAYS_INLINE T total() const {
    T sum[width];
    store(sum);
    for (int32_t half = width / 2; half > 0; half /= 2) {
      for (int32_t i = 0; i < half; ++i) sum[i] += sum[i + half];
    }
    return sum[0];
  }

  friend PREDET_ALWAYS_INLINE Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
  friend PREDET_ALWAYS_INLINE Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
  friend PREDET_ALWAYS_INLINE Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
  friend PREDET_ALWAYS_INLINE Mask operator<(Lanes a, Lanes b) { return a.v < b.v; }
  friend PREDET_ALWAYS_INLINE Mask operator<=(Lanes a, Lanes b) { return a.v <= b.v; }
  friend PREDET_ALWAYS_INLINE Lanes pick(Mask mask, Lanes a, Lanes b) {
    return {mask ? a.v : b.v};
  }
};

template <typename Mask>
PREDET_ALWAYS_INLINE uint32_t bits(Mask mask) {
  uint32_t set = 0;
  for (int32_t i = 0; i < int32_t(sizeof(mask) / sizeof(mask[0])); ++i) {
    set |= (mask[i] != 0 ? 1u : 0u) << i;
  }
  return set;
}

PREDET_ALWAYS_INLINE Lanes<float> power_of_two(Lanes<float> shifted) {
  typedef uint32_t Bits __attribute__((vector_size(16)));
  Bits exponent;
  __builtin_memcpy(&exponent, &shifted.v, sizeof(exponent));
  exponent = (exponent + 127u) << 23;
  Lanes<float>::Vector power;
  __builtin_memcpy(&power, &exponent, sizeof(power));
  return {power};
}

// to[i] = x where the mask is set.
PREDET_ALWAYS_INLINE void store_where(Lanes<double>::Mask mask, int64_t x, int64_t* to) {
  for (int32_t i = 0; i < Lanes<double>::width; ++i) to[i] = mask[i] != 0 ? x : to[i];
}

#endif

// As the functions of the same name for one number.
template <typename T>
PREDET_ALWAYS_INLINE Lanes<T> at_least(Lanes<T> x, Lanes<T> least) {
  return pick(x < least, least, x);
}

// a where a < b, else b.
template <typename T>
PREDET_ALWAYS_INLINE Lanes<T> lesser(Lanes<T> a, Lanes<T> b) {
  return pick(a < b, a, b);
}
template <typename T>
PREDET_ALWAYS_INLINE Lanes<T> greater(Lanes<T> a, Lanes<T> b) {
  return pick(b < a, a, b);
}

}  // namespace PREDET_ISA
}  // namespace hungarian
}  // namespace predet
