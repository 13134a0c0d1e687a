#include "cpu.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "../common/buffer.h"
#include "../common/cpu_features.h"
#include "../common/parallel.h"

namespace predet {
namespace hungarian {
namespace {

Kernels chosen_kernels() {
  switch (instruction_set()) {
#if defined(PREDET_WITH_AVX512)
    case InstructionSet::avx512: return kernels_avx512();
#endif
#if defined(PREDET_WITH_AVX2)
    case InstructionSet::avx2: return kernels_avx2();
#endif
    default: return kernels_baseline();
  }
}

// The distinct classes of each image's targets, in the order in which they come.
class Classes {
 public:
  explicit Classes(const Match& match) : match_(match), of_target_(match.total_targets) {
    std::unordered_map<int64_t, int32_t> slot_of;
    for (int64_t image = 0; image < match.images; ++image) {
      slot_of.clear();
      begin_.push_back(class_of_.size());
      for (int32_t t = match.first[image]; t < match.first[image + 1]; ++t) {
        const int64_t k = match.target_classes[t];
        const auto [slot, is_new] = slot_of.emplace(k, int32_t(slot_of.size()));
        if (is_new) class_of_.push_back(int32_t(k));
        of_target_[t] = slot->second;
      }
    }
    begin_.push_back(class_of_.size());
  }

  ClassSlots of(int64_t image) const {
    return {int32_t(begin_[image + 1] - begin_[image]), class_of_.data() + begin_[image],
            of_target_.data() + match_.first[image]};
  }

 private:
  const Match& match_;
  std::vector<int32_t> class_of_, of_target_;
  std::vector<size_t> begin_;
};

// Runs solve(layer, image, memory) for all layers and all images with targets, large ones first, so
// that no thread is left with a large one at the end.
template <typename Problem, typename Solve>
void solve_all(const Problem& problem, int64_t bytes, int threads, Solve&& solve) {
  std::vector<int64_t> images;
  for (int64_t image = 0; image < problem.images; ++image) {
    if (problem.targets_of(image) > 0) images.push_back(image);
  }
  std::stable_sort(images.begin(), images.end(), [&](int64_t a, int64_t b) {
    return problem.targets_of(a) > problem.targets_of(b);
  });
  const int64_t count = int64_t(images.size()) * problem.layers;
  threads = int(std::min<int64_t>(threads, count));
  if (threads == 0) return;
  bytes = Buffer::round_up(bytes);
  Buffer memory(bytes * threads);
  parallel_for(count, threads, [&](int64_t i, int worker) {
    solve(i % problem.layers, images[i / problem.layers], memory.at(bytes * worker));
  });
}

// The same for problems whose costs are to be made: solve(layer, image, classes, memory).
template <typename Solve>
void solve_matches(const Match& match, const Kernels& kernels, int threads, Solve&& solve) {
  std::fill_n(match.bad, match.layers * match.images, 0);
  const Classes classes(match);
  int64_t bytes = 0;
  for (int64_t image = 0; image < match.images; ++image) {
    const int64_t targets = match.targets_of(image);
    bytes = std::max(bytes, kernels.match_bytes(match, targets, classes.of(image).count));
  }
  solve_all(match, bytes, threads, [&](int64_t layer, int64_t image, void* memory) {
    solve(layer, image, classes.of(image), memory);
  });
}

}  // namespace

void match_cpu(const Match& match, int threads) {
  const Kernels kernels = chosen_kernels();
  solve_matches(match, kernels, threads,
                [&](int64_t layer, int64_t image, const ClassSlots& classes, void* memory) {
                  kernels.match(match, layer, image, classes, memory);
                });
}

void costs_cpu(const Match& match, float* cost, int threads) {
  const Kernels kernels = chosen_kernels();
  solve_matches(match, kernels, threads,
                [&](int64_t layer, int64_t image, const ClassSlots& classes, void* memory) {
                  kernels.costs(match, layer, image, classes, memory, cost);
                });
}

void assign_cpu(const Assignment& assignment, int threads) {
  std::fill_n(assignment.bad, assignment.layers * assignment.images, 0);
  const Kernels kernels = chosen_kernels();
  int64_t bytes = 0;
  for (int64_t image = 0; image < assignment.images; ++image) {
    bytes = std::max(bytes, kernels.assign_bytes(assignment, assignment.targets_of(image)));
  }
  solve_all(assignment, bytes, threads, [&](int64_t layer, int64_t image, void* memory) {
    kernels.assign(assignment, layer, image, memory);
  });
}

}  // namespace hungarian
}  // namespace predet
