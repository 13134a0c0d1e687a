// The CPU's group: one thread whose scans are vectors.
#pragma once

#include "group.h"
#include "lanes.h"

namespace predet {
namespace hungarian {
inline namespace PREDET_ISA {

#if defined(__GNUC__) || defined(__clang__)
PREDET_ALWAYS_INLINE int32_t first_bit(uint32_t set) { return __builtin_ctz(set); }
PREDET_ALWAYS_INLINE int32_t bit_count(uint32_t set) { return __builtin_popcount(set); }
#else
inline int32_t first_bit(uint32_t set) {
  int32_t i = 0;
  for (; (set & 1) == 0; set >>= 1) ++i;
  return i;
}
inline int32_t bit_count(uint32_t set) {
  int32_t count = 0;
  for (; set != 0; set &= set - 1) ++count;
  return count;
}
#endif

template <typename T>
PREDET_ALWAYS_INLINE typename Lanes<T>::Mask finite_lanes(const Lanes<T>& x) {
  return x.magnitude() <= Lanes<T>(largest(T()));
}

template <typename T>
PREDET_ALWAYS_INLINE Lanes<T> usable(const Lanes<T>& cost) {
  return pick(finite_lanes(cost), cost, Lanes<T>(T(kBadCost)));
}

struct OneThread {
  PREDET_ALWAYS_INLINE int32_t lane() const { return 0; }
  PREDET_ALWAYS_INLINE int32_t lanes() const { return 1; }
  PREDET_ALWAYS_INLINE bool leads() const { return true; }
  PREDET_ALWAYS_INLINE void sync() const {}
  PREDET_ALWAYS_INLINE int64_t sum(int64_t own) const { return own; }

  // The least of a padded array and where it first is.
  template <typename T>
  PREDET_ALWAYS_INLINE Found<T> lowest(const T* values, int32_t count) const {
    using V = Lanes<T>;
    V least = V::load(values);
    for (int32_t i = V::width; i < count; i += V::width) {
      least = lesser(V::load(values + i), least);
    }
    return find(values, least.lowest());
  }

  // The least of max(cost, barrier) over `count` <= kBlock columns.
  template <typename T>
  PREDET_ALWAYS_INLINE Found<T> lowest(const T* cost, const T* barrier, int32_t count) const {
    using V = Lanes<T>;
    if (count < V::width) return lowest_of_few(cost, barrier, count);
    T seen[kBlock];
    const int32_t last = count - V::width;  // the last vector overlaps the one before
    V least = V(infinity<T>());
    for (int32_t i = 0;; i += V::width) {
      if (i > last) i = last;
      const V x = greater(usable(V::load(cost + i)), V::load(barrier + i));
      x.store(seen + i);
      least = lesser(x, least);
      if (i == last) break;
    }
    const V wanted = V(least.lowest());
    for (int32_t i = 0;; i += V::width) {
      if (i > last) i = last;
      const uint32_t set = bits(V::load(seen + i) <= wanted);
      if (set != 0) return {seen[i + first_bit(set)], i + first_bit(set)};
      if (i == last) return {infinity<T>(), 0};  // not reached: nothing here is NaN
    }
  }

  // The least of `count` costs; adds to `bad` how many are not finite.
  template <typename T>
  PREDET_ALWAYS_INLINE T bound(const T* cost, int32_t count, int64_t& bad) const {
    using V = Lanes<T>;
    V least = V(infinity<T>());
    int32_t i = 0, finite = 0;
    for (; i + V::width <= count; i += V::width) {
      const V x = V::load(cost + i);
      const auto mask = finite_lanes(x);
      finite += bit_count(bits(mask));
      least = lesser(pick(mask, x, V(T(kBadCost))), least);
    }
    T lowest = least.lowest();
    for (; i < count; ++i) {
      finite += is_finite(cost[i]) ? 1 : 0;
      const T x = usable(cost[i]);
      lowest = x < lowest ? x : lowest;
    }
    bad += count - finite;
    return lowest;
  }

  // Offers each slot the path of length base + near + open through `row`; the least key after it.
  template <typename T>
  PREDET_ALWAYS_INLINE Found<double> relax(const T* near, const double* open, double base,
                                           int64_t row, int32_t count, double* key,
                                           int64_t* from) const {
    using V = Lanes<double>;
    const V start = V(base);
    V least = V(infinity<double>());
    for (int32_t i = 0; i < count; i += V::width) {
      const V length = start + (V::load(near + i) + V::load(open + i));
      const V before = V::load(key + i);
      const auto shorter = length < before;
      const V now = pick(shorter, length, before);
      now.store(key + i);
      store_where(shorter, row, from + i);
      least = lesser(now, least);
    }
    if (count == 0) return {infinity<double>(), 0};
    return find(key, least.lowest());
  }

 private:
  template <typename T>
  PREDET_ALWAYS_INLINE Found<T> find(const T* values, T wanted) const {
    using V = Lanes<T>;
    const V most = V(wanted);
    for (int32_t i = 0;; i += V::width) {
      const uint32_t set = bits(V::load(values + i) <= most);
      if (set != 0) return {wanted, i + first_bit(set)};
    }
  }

  template <typename T>
  Found<T> lowest_of_few(const T* cost, const T* barrier, int32_t count) const {
    Found<T> found{infinity<T>(), 0};
    for (int32_t i = 0; i < count; ++i) {
      const T x = usable(cost[i]);
      const T y = x < barrier[i] ? barrier[i] : x;
      if (y < found.value) found = {y, i};
    }
    return found;
  }
};

}  // namespace PREDET_ISA
}  // namespace hungarian
}  // namespace predet
