// Checks of what Python passed: std::invalid_argument becomes a ValueError.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>

namespace predet {

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// Of factors that are not negative.
inline int64_t checked_product(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (factor == 0) return 0;
  }
  for (const int64_t factor : factors) {
    require(product <= std::numeric_limits<int64_t>::max() / factor, "sizes are too large");
    product *= factor;
  }
  return product;
}

inline int thread_count(int64_t threads) {
  require(threads >= 1, "the number of threads must be positive");
  return threads < 1024 ? static_cast<int>(threads) : 1024;
}

}  // namespace predet
