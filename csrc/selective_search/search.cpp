#include "search.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <utility>

#include "../common/parallel.h"

namespace predet {
namespace selective_search {
namespace {

// An exception (memory ran out) must not leave a thread of the pool; the caller gets the first.
template <typename Function>
void run_all(int64_t count, int threads, Function&& function) {
  std::exception_ptr failed;
  std::mutex guard;
  parallel_for(count, threads, [&](int64_t task, int) {
    try {
      function(task);
    } catch (...) {
      std::lock_guard<std::mutex> lock(guard);
      if (!failed) failed = std::current_exception();
    }
  });
  if (failed) std::rethrow_exception(failed);
}

uint64_t key_of(const Box& box) {
  return uint64_t(box.x1) << 48 | uint64_t(box.y1) << 32 | uint64_t(box.x2) << 16 |
         uint64_t(box.y2);
}

Box box_of(uint64_t key) {
  const auto side = [key](int shift) { return int32_t((key >> shift) & 0xffff); };
  return {side(48), side(32), side(16), side(0)};
}

Boxes distinct(const Grouping* groupings, size_t count) {
  std::vector<std::pair<uint64_t, int32_t>> made;
  Boxes result;
  for (size_t g = 0; g < count; ++g) {
    result.ties += groupings[g].ties;
    for (size_t i = 0; i < groupings[g].boxes.size(); ++i) {
      made.emplace_back(key_of(groupings[g].boxes[i]), groupings[g].levels[i]);
    }
  }
  std::sort(made.begin(), made.end());
  result.levels.reserve(made.size());
  for (size_t i = 0; i < made.size(); ++i) {
    if (i == 0 || made[i].first != made[i - 1].first) {
      result.boxes.push_back(box_of(made[i].first));
      result.first.push_back(int64_t(i));
    }
    result.levels.push_back(made[i].second);
  }
  result.first.push_back(int64_t(made.size()));
  return result;
}

}  // namespace

std::vector<Regions> find_regions(const ColorImage& image, const SegmentSettings& settings,
                                  int threads) {
  Segmentation segmentation;
  TextureBins texture;
  run_all(2, threads, [&](int64_t task) {
    if (task == 0) {
      const SmoothedImage smoothed{image.smoothed, image.height, image.width, image.channels};
      segmentation = segment(smoothed, settings.k, settings.min_size, settings.rule);
    } else if (image.derivatives != nullptr) {
      texture = texture_bins(image, settings.fused);
    }
  });
  std::vector<Regions> regions(settings.k.size());
  run_all(int64_t(settings.k.size()), threads, [&](int64_t k) {
    regions[size_t(k)] = measure(image, texture, segmentation, size_t(k), settings.with_color);
  });
  return regions;
}

std::vector<Boxes> find_boxes(const std::vector<std::vector<const Regions*>>& images,
                              const std::vector<Strategy>& strategies, TieRule rule, int threads) {
  std::vector<const Regions*> all;
  std::vector<size_t> first;
  for (const auto& image : images) {
    first.push_back(all.size() * strategies.size());
    all.insert(all.end(), image.begin(), image.end());
  }
  first.push_back(all.size() * strategies.size());
  std::vector<Grouping> groupings(first.back());
  run_all(int64_t(groupings.size()), threads, [&](int64_t task) {
    const size_t of = size_t(task) / strategies.size(), by = size_t(task) % strategies.size();
    groupings[size_t(task)] = group(*all[of], strategies[by], rule);
  });
  std::vector<Boxes> results(images.size());
  run_all(int64_t(images.size()), threads, [&](int64_t image) {
    const size_t begin = first[size_t(image)], end = first[size_t(image) + 1];
    results[size_t(image)] = distinct(groupings.data() + begin, end - begin);
  });
  return results;
}

}  // namespace selective_search
}  // namespace predet
