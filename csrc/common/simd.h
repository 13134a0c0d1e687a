// A vector of W numbers of arithmetic type A, with just what the kernels need.
//
// The general form is plain loops, which compilers turn into whatever the target has; AVX2 and
// AVX-512 have their own. Included by kernels only: everything here belongs to one instruction set.
#pragma once

#include "numeric.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace predet {
inline namespace PREDET_ISA {

template <typename A, int W>
struct Vector {
  static constexpr int width = W;
  A lane[W];

  static PREDET_ALWAYS_INLINE Vector broadcast(A x) {
    Vector v;
    for (int i = 0; i < W; ++i) v.lane[i] = x;
    return v;
  }
  template <typename T>
  static PREDET_ALWAYS_INLINE Vector load(const T* from) {
    Vector v;
    for (int i = 0; i < W; ++i) v.lane[i] = widen(from[i]);
    return v;
  }
  template <typename T>
  PREDET_ALWAYS_INLINE void store(T* to) const {
    for (int i = 0; i < W; ++i) narrow(lane[i], to[i]);
  }
};

template <typename A, int W>
PREDET_ALWAYS_INLINE Vector<A, W> operator+(const Vector<A, W>& a, const Vector<A, W>& b) {
  Vector<A, W> sum;
  for (int i = 0; i < W; ++i) sum.lane[i] = a.lane[i] + b.lane[i];
  return sum;
}

template <typename A, int W>
PREDET_ALWAYS_INLINE Vector<A, W> operator*(const Vector<A, W>& a, const Vector<A, W>& b) {
  Vector<A, W> product;
  for (int i = 0; i < W; ++i) product.lane[i] = a.lane[i] * b.lane[i];
  return product;
}

// a * b + c
template <typename A, int W>
PREDET_ALWAYS_INLINE Vector<A, W> multiply_add(const Vector<A, W>& a, const Vector<A, W>& b,
                                               const Vector<A, W>& c) {
  Vector<A, W> result;
  for (int i = 0; i < W; ++i) {
    result.lane[i] = multiply_add(a.lane[i], b.lane[i], c.lane[i]);
  }
  return result;
}

// Lane r is the sum of rows[r].
template <typename A, int W>
PREDET_ALWAYS_INLINE Vector<A, W> sums_of(const Vector<A, W> (&rows)[W]) {
  Vector<A, W> sums;
  for (int r = 0; r < W; ++r) {
    A half[W];
    for (int i = 0; i < W; ++i) half[i] = rows[r].lane[i];
    for (int width = W / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) half[i] += half[i + width];
    }
    sums.lane[r] = half[0];
  }
  return sums;
}

#if defined(__AVX2__)

template <>
struct Vector<float, 8> {
  static constexpr int width = 8;
  __m256 v;

  static PREDET_ALWAYS_INLINE Vector broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static PREDET_ALWAYS_INLINE Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static PREDET_ALWAYS_INLINE Vector load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static PREDET_ALWAYS_INLINE Vector load(const Half* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  PREDET_ALWAYS_INLINE void store(float* to) const { _mm256_storeu_ps(to, v); }
  PREDET_ALWAYS_INLINE void store(BFloat16* to) const {
    float lane[8];
    store(lane);
    for (int i = 0; i < 8; ++i) narrow(lane[i], to[i]);
  }
  PREDET_ALWAYS_INLINE void store(Half* to) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};

template <>
PREDET_ALWAYS_INLINE Vector<float, 8> operator+(const Vector<float, 8>& a,
                                                const Vector<float, 8>& b) {
  return {_mm256_add_ps(a.v, b.v)};
}

template <>
PREDET_ALWAYS_INLINE Vector<float, 8> operator*(const Vector<float, 8>& a,
                                                 const Vector<float, 8>& b) {
  return {_mm256_mul_ps(a.v, b.v)};
}

template <>
PREDET_ALWAYS_INLINE Vector<float, 8> multiply_add(const Vector<float, 8>& a,
                                                   const Vector<float, 8>& b,
                                                   const Vector<float, 8>& c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}

template <>
PREDET_ALWAYS_INLINE Vector<float, 8> sums_of(const Vector<float, 8> (&rows)[8]) {
  __m256 fours[2];
  for (int i = 0; i < 2; ++i) {
    __m256 pairs[2];
    for (int j = 0; j < 2; ++j) {
      const __m256 a = rows[4 * i + 2 * j].v, b = rows[4 * i + 2 * j + 1].v;
      pairs[j] = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    }
    const __m256d a = _mm256_castps_pd(pairs[0]), b = _mm256_castps_pd(pairs[1]);
    fours[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                             _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  return {_mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                        _mm256_permute2f128_ps(fours[0], fours[1], 0x31))};
}

#endif  // AVX2

#if defined(__AVX512F__)

template <>
struct Vector<float, 16> {
  static constexpr int width = 16;
  __m512 v;

  static PREDET_ALWAYS_INLINE Vector broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static PREDET_ALWAYS_INLINE Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static PREDET_ALWAYS_INLINE Vector load(const BFloat16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static PREDET_ALWAYS_INLINE Vector load(const Half* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  PREDET_ALWAYS_INLINE void store(float* to) const { _mm512_storeu_ps(to, v); }
  PREDET_ALWAYS_INLINE void store(BFloat16* to) const {
    float lane[16];
    store(lane);
    for (int i = 0; i < 16; ++i) narrow(lane[i], to[i]);
  }
  PREDET_ALWAYS_INLINE void store(Half* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};

template <>
PREDET_ALWAYS_INLINE Vector<float, 16> operator+(const Vector<float, 16>& a,
                                                 const Vector<float, 16>& b) {
  return {_mm512_add_ps(a.v, b.v)};
}

template <>
PREDET_ALWAYS_INLINE Vector<float, 16> operator*(const Vector<float, 16>& a,
                                                  const Vector<float, 16>& b) {
  return {_mm512_mul_ps(a.v, b.v)};
}

template <>
PREDET_ALWAYS_INLINE Vector<float, 16> multiply_add(const Vector<float, 16>& a,
                                                    const Vector<float, 16>& b,
                                                    const Vector<float, 16>& c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}

template <>
PREDET_ALWAYS_INLINE Vector<float, 16> sums_of(const Vector<float, 16> (&rows)[16]) {
  __m512 fours[4];
  for (int i = 0; i < 4; ++i) {
    __m512 pairs[2];
    for (int j = 0; j < 2; ++j) {
      const __m512 a = rows[4 * i + 2 * j].v, b = rows[4 * i + 2 * j + 1].v;
      pairs[j] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    const __m512d a = _mm512_castps_pd(pairs[0]), b = _mm512_castps_pd(pairs[1]);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  __m512 eights[2];
  for (int i = 0; i < 2; ++i) {
    eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                              _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
  }
  return {_mm512_add_ps(_mm512_shuffle_f32x4(eights[0], eights[1], 0x88),
                        _mm512_shuffle_f32x4(eights[0], eights[1], 0xdd))};
}

#endif  // AVX-512

// The highest of N numbers; NaN is passed over.
template <int N, typename A>
PREDET_ALWAYS_INLINE A highest_of(const A* from) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4 && N == 16) return _mm512_reduce_max_ps(_mm512_loadu_ps(from));
#endif
  A half[N];
  for (int i = 0; i < N; ++i) half[i] = from[i];
  for (int width = N / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      half[i] = half[i + width] > half[i] ? half[i + width] : half[i];
    }
  }
  return half[0];
}

template <int N, typename A>
PREDET_ALWAYS_INLINE A sum_of(const A* from) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4 && N == 16) return _mm512_reduce_add_ps(_mm512_loadu_ps(from));
#endif
  A half[N];
  for (int i = 0; i < N; ++i) half[i] = from[i];
  for (int width = N / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) half[i] += half[i + width];
  }
  return half[0];
}

// to[i] = table[index[i]], with index below count
template <int N, typename A>
PREDET_ALWAYS_INLINE void look_up(const A* table, int64_t count, const int32_t* index, A* to) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4 && N == 16) {
    if (count <= 16) {
      const __mmask16 present = __mmask16((1u << count) - 1);
      const __m512 all = _mm512_maskz_loadu_ps(present, table);
      _mm512_storeu_ps(to, _mm512_permutexvar_ps(_mm512_loadu_si512(index), all));
      return;
    }
  }
#endif
  (void)count;
  for (int i = 0; i < N; ++i) to[i] = table[index[i]];
}

// The widest vector of the instruction set at hand.
template <typename A>
struct Widest {
#if defined(__AVX512F__)
  using type = Vector<float, 16>;
#elif defined(__AVX2__)
  using type = Vector<float, 8>;
#else
  using type = Vector<float, 4>;
#endif
};
template <>
struct Widest<double> {
  using type = Vector<double, 4>;
};

}  // namespace PREDET_ISA
}  // namespace predet
