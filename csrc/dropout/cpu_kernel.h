// The CPU loops of dropout; compiled once for each instruction set (cpu_<set>.cpp).
//
// Draw i is 16 bits of a hash of the seed and of i / 4: SplitMix64 (Steele, Lea and Flood, 2014),
// whose numbers need not be made in order. So any thread makes its own, and the backward pass makes
// those of the forward pass again.
#pragma once

#include <cstring>

#include "cpu.h"

namespace predet {
namespace dropout {
inline namespace PREDET_ISA {

constexpr int kWords = int(kBlock) / 4;

PREDET_ALWAYS_INLINE void draw(uint64_t seed, uint64_t first_word, uint16_t* draws) {
  uint64_t words[kWords];
  for (int i = 0; i < kWords; ++i) {
    uint64_t z = seed + (first_word + uint64_t(i) + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    words[i] = z ^ (z >> 31);
  }
  std::memcpy(draws, words, sizeof(words));
}

// Comparisons are such that NaN stays NaN.
template <bool kGate, bool kRectify, bool kBase, typename T>
PREDET_ALWAYS_INLINE void apply(const T* input, const T* base, const T* gate, T* output,
                                const uint16_t* draws, uint32_t kept,
                                typename ArithmeticOf<T>::type scale, int count) {
  using A = typename ArithmeticOf<T>::type;
  for (int i = 0; i < count; ++i) {
    A x = widen(input[i]);
    if (kRectify) x = x < A(0) ? A(0) : x;
    bool keep;
    if (kGate) {
      keep = !(widen(gate[i]) <= A(0));
    } else {
      keep = uint32_t(draws[i]) < kept;
    }
    x *= keep ? scale : A(0);
    if (kBase) x += widen(base[i]);
    narrow(x, output[i]);
  }
}

template <bool kGate, bool kRectify, bool kBase, typename T>
PREDET_NEVER_INLINE void loop(const Problem& p, int64_t first, int64_t last) {
  using A = typename ArithmeticOf<T>::type;
  const T* input = static_cast<const T*>(p.input);
  const T* base = static_cast<const T*>(p.base);
  const T* gate = static_cast<const T*>(p.gate);
  T* output = static_cast<T*>(p.output);
  alignas(64) uint16_t draws[kBlock];
  alignas(64) T result[kBlock];
  for (int64_t at = first; at < last; at += kBlock) {
    if (!kGate) draw(p.seed, uint64_t(at / 4), draws);
    const int count = int(last - at < kBlock ? last - at : kBlock);
    const T* own_base = kBase ? base + at : nullptr;
    const T* own_gate = kGate ? gate + at : nullptr;
    // By way of `result`, so that compilers need not fear that arrays overlap.
    if (count == kBlock) {
      apply<kGate, kRectify, kBase>(input + at, own_base, own_gate, result, draws, p.kept,
                                    A(p.scale), int(kBlock));
    } else {
      apply<kGate, kRectify, kBase>(input + at, own_base, own_gate, result, draws, p.kept,
                                    A(p.scale), count);
    }
    std::memcpy(output + at, result, sizeof(T) * count);
  }
}

template <typename T>
void run(const Problem& p, int64_t first, int64_t last) {
  if (p.gate != nullptr) return loop<true, false, false, T>(p, first, last);
  if (p.rectify) return loop<false, true, false, T>(p, first, last);
  if (p.base != nullptr) return loop<false, false, true, T>(p, first, last);
  loop<false, false, false, T>(p, first, last);
}

inline Kernel kernel(DType type) {
  switch (type) {
    case DType::float64: return &run<double>;
    case DType::bfloat16: return &run<BFloat16>;
    case DType::float16: return &run<Half>;
    default: return &run<float>;
  }
}

}  // namespace PREDET_ISA
}  // namespace dropout
}  // namespace predet
