// Hierarchical grouping: the two most similar neighbours are merged until nothing touches.
#pragma once

#include <cstdint>
#include <vector>

#include "hierarchy.h"
#include "statistics.h"

namespace predet {
namespace selective_search {

struct Grouping {
  std::vector<Box> boxes;       // the regions in order, then every merged one
  std::vector<int32_t> levels;  // 1; one more than the higher of the two that were merged
  int32_t ties = 0;             // how often the most similar pair was not the only one
};

// With OpenCV's rule for ties, a grouping in which one comes up is done again its slow way.
Grouping group(const Regions& regions, const Strategy& strategy, TieRule rule);

}  // namespace selective_search
}  // namespace predet
