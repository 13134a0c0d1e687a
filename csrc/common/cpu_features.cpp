#include "cpu_features.h"

#include <atomic>

namespace predet {

const std::vector<InstructionSet>& available_instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> found{InstructionSet::baseline};
#if defined(PREDET_WITH_AVX2) || defined(PREDET_WITH_AVX512)
    __builtin_cpu_init();
#endif
#if defined(PREDET_WITH_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      found.push_back(InstructionSet::avx2);
    }
#endif
#if defined(PREDET_WITH_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found.push_back(InstructionSet::avx512);
    }
#endif
    return found;
  }();
  return sets;
}

namespace {
std::atomic<int> chosen_set{-1};
}

InstructionSet instruction_set() {
  const int chosen = chosen_set.load(std::memory_order_relaxed);
  return chosen < 0 ? available_instruction_sets().back() : static_cast<InstructionSet>(chosen);
}

void use_instruction_set(InstructionSet chosen) { chosen_set.store(static_cast<int>(chosen)); }

std::string name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx2: return "avx2";
    case InstructionSet::avx512: return "avx512";
    default: return "baseline";
  }
}

}  // namespace predet
