// Python's door to matching: addresses and sizes, checked as far as they can be. Whoever passes an
// address answers for what lies there; predet/ops/matching_native.py does.
#include "bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "../common/checks.h"
#include "cpu.h"
#if defined(PREDET_WITH_CUDA)
#include "cuda.h"
#endif

namespace py = pybind11;

namespace predet {
namespace hungarian {
namespace {

using Counts = std::vector<int64_t>;  // targets of each image
using Addresses = std::vector<uintptr_t>;
// Where the work is done: device index (-1: CPU), CUDA stream, number of CPU threads.
using Place = std::array<int64_t, 3>;
// Numbers from one layer, image, query to the next: of logits, then of boxes.
using MatchStrides = std::array<int64_t, 6>;

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

template <typename T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);  // NOLINT: addresses come from Python as integers
}

void require_address(const void* pointer, int64_t numbers, const char* name) {
  require(pointer != nullptr || numbers == 0, std::string(name) + " has no memory");
}

void require_cpu_or_cuda(const Place& place) {
#if defined(PREDET_WITH_CUDA)
  require(place[0] >= -1, "unknown device");
#else
  require(place[0] == -1, "predet._C was built without CUDA");
#endif
}

// Where each image's targets begin, and where the last one's end.
std::vector<int32_t> starts_of(const Counts& counts, int64_t images, int64_t copies) {
  require(int64_t(counts.size()) == images, std::to_string(images) + " images, but " +
                                                std::to_string(counts.size()) + " target counts");
  std::vector<int32_t> first{0};
  for (const int64_t count : counts) {
    require(count >= 0, "an image cannot have " + std::to_string(count) + " targets");
    require(count <= kMost / copies - first.back(),
            "2^31 targets and more, copies counted, are not supported");
    first.push_back(first.back() + int32_t(count));
  }
  return first;
}

// L, B, Q, K, copies
using MatchSizes = std::array<int64_t, 5>;

void require_sizes(const MatchSizes& sizes) {
  for (const int64_t size : sizes) require(size >= 0, "sizes must not be negative");
  require(sizes[2] <= kMost && sizes[3] <= kMost,
          "2^31 queries or classes and more are not supported");
  require(sizes[4] >= 1, "a target must be wanted at least once");
  checked_product({sizes[0], sizes[1], sizes[2], sizes[3], 8});
}

// class_cost, bbox_cost, giou_cost, focal_alpha, focal_gamma
using Weights = std::array<double, 5>;

CostWeights weights_of(const Weights& w, bool softmax) {
  for (const double weight : w) require(std::isfinite(weight), "a cost weight is not finite");
  require(w[4] >= 0, "focal_gamma must not be negative, got " + std::to_string(w[4]));
  return {float(w[0]), float(w[1]), float(w[2]), float(w[3]), float(w[4]), softmax};
}

Match match_of(const MatchSizes& sizes, const std::vector<int32_t>& first) {
  Match m{};
  m.layers = sizes[0];
  m.images = sizes[1];
  m.queries = sizes[2];
  m.classes = sizes[3];
  m.copies = int32_t(sizes[4]);
  m.first = first.data();
  m.total_targets = first.back();
  return m;
}

// addresses: logits, boxes, target classes, target boxes, query_of_target, bad; on CUDA workspace
Match match_of(const MatchSizes& sizes, const std::vector<int32_t>& first, int logits_type,
               const MatchStrides& strides, const Addresses& addresses) {
  require(logits_type >= 0 && logits_type <= 2, "logits must be float32, bfloat16 or float16");
  require(addresses.size() == 7, "seven addresses expected");
  Match m = match_of(sizes, first);
  m.logits_type = DType(logits_type);
  m.logits = address<const void>(addresses[0]);
  m.logits_stride = {strides[0], strides[1], strides[2]};
  m.boxes = address<const float>(addresses[1]);
  m.boxes_stride = {strides[3], strides[4], strides[5]};
  m.target_classes = address<const int64_t>(addresses[2]);
  m.target_boxes = address<const float>(addresses[3]);
  m.query_of_target = address<int64_t>(addresses[4]);
  m.bad = address<int64_t>(addresses[5]);
  const int64_t targets = first.back(), queries = m.layers * m.images * m.queries;
  require_address(m.logits, queries * m.classes, "logits");
  require_address(m.boxes, queries, "boxes");
  require_address(m.target_classes, targets, "target classes");
  require_address(m.target_boxes, targets, "target boxes");
  require_address(m.query_of_target, m.layers * targets, "query_of_target");
  require_address(m.bad, m.layers * m.images, "bad");
  return m;
}

void require_classes(const Match& m) {
  for (int32_t t = 0; t < m.first[m.images]; ++t) {
    const int64_t k = m.target_classes[t];
    require(k >= 0 && k < m.classes, "matching: target " + std::to_string(t) + " has class " +
                                         std::to_string(k) + ", but there are logits for " +
                                         std::to_string(m.classes) + " classes");
  }
}

void match(const Place& place, const MatchSizes& sizes, const Counts& counts, int logits_type,
           const MatchStrides& strides, const Weights& weights, bool softmax,
           const Addresses& addresses) {
  require_sizes(sizes);
  const std::vector<int32_t> first = starts_of(counts, sizes[1], sizes[4]);
  Match m = match_of(sizes, first, logits_type, strides, addresses);
  m.weights = weights_of(weights, softmax);
  require_cpu_or_cuda(place);
  py::gil_scoped_release unlocked;
#if defined(PREDET_WITH_CUDA)
  if (place[0] >= 0) {
    return match_cuda(m, address<void>(addresses[6]), int(place[0]),
                      address<void>(uintptr_t(place[1])));
  }
#endif
  require_classes(m);
  match_cpu(m, thread_count(place[2]));
}

// The costs alone, for tests: they replace query_of_target among the addresses. CPU only.
void costs(const MatchSizes& sizes, const Counts& counts, int logits_type,
           const MatchStrides& strides, const Weights& weights, bool softmax,
           const Addresses& addresses) {
  require_sizes(sizes);
  const std::vector<int32_t> first = starts_of(counts, sizes[1], sizes[4]);
  Match m = match_of(sizes, first, logits_type, strides, addresses);
  m.weights = weights_of(weights, softmax);
  require_classes(m);
  costs_cpu(m, address<float>(addresses[4]), 1);
}

// L, B, Q
using AssignSizes = std::array<int64_t, 3>;

Assignment assignment_of(const AssignSizes& sizes, const std::vector<int32_t>& first,
                         int cost_type) {
  Assignment a{};
  a.cost_type = DType(cost_type);
  require(a.cost_type == DType::float32 || a.cost_type == DType::float64,
          "costs must be float32 or float64");
  a.layers = sizes[0];
  a.images = sizes[1];
  a.queries = sizes[2];
  a.first = first.data();
  a.total_targets = first.back();
  checked_product({a.layers, first.back(), a.queries, 8});
  return a;
}

void require_sizes(const AssignSizes& sizes) {
  for (const int64_t size : sizes) require(size >= 0, "sizes must not be negative");
  require(sizes[2] <= kMost, "2^31 queries and more are not supported");
}

// strides: of layers and of targets. addresses: cost, query_of_target, bad; on CUDA workspace
void assign(const Place& place, const AssignSizes& sizes, const Counts& counts, int cost_type,
            const std::array<int64_t, 2>& strides, const Addresses& addresses) {
  require_sizes(sizes);
  const std::vector<int32_t> first = starts_of(counts, sizes[1], 1);
  Assignment a = assignment_of(sizes, first, cost_type);
  require(addresses.size() == 4, "four addresses expected");
  a.cost = address<const void>(addresses[0]);
  a.layer_stride = strides[0];
  a.target_stride = strides[1];
  a.query_of_target = address<int64_t>(addresses[1]);
  a.bad = address<int64_t>(addresses[2]);
  require_address(a.cost, a.layers * first.back() * a.queries, "cost");
  require_address(a.query_of_target, a.layers * first.back(), "query_of_target");
  require_address(a.bad, a.layers * a.images, "bad");
  require_cpu_or_cuda(place);
  py::gil_scoped_release unlocked;
#if defined(PREDET_WITH_CUDA)
  if (place[0] >= 0) {
    return assign_cuda(a, address<void>(addresses[3]), int(place[0]),
                       address<void>(uintptr_t(place[1])));
  }
#endif
  assign_cpu(a, thread_count(place[2]));
}

// Bytes of device memory that a call on CUDA needs beside its inputs and outputs.
int64_t match_workspace(const MatchSizes& sizes, const Counts& counts) {
  require_sizes(sizes);
  const std::vector<int32_t> first = starts_of(counts, sizes[1], sizes[4]);
#if defined(PREDET_WITH_CUDA)
  return match_cuda_bytes(match_of(sizes, first));
#else
  return 0;
#endif
}

int64_t assign_workspace(const AssignSizes& sizes, const Counts& counts, int cost_type) {
  require_sizes(sizes);
  const std::vector<int32_t> first = starts_of(counts, sizes[1], 1);
#if defined(PREDET_WITH_CUDA)
  return assign_cuda_bytes(assignment_of(sizes, first, cost_type));
#else
  (void)cost_type;
  return 0;
#endif
}

}  // namespace

void bind(py::module_& module) {
  module.def("hungarian_match", &match);
  module.def("hungarian_costs", &costs);
  module.def("hungarian_match_workspace", &match_workspace);
  module.def("hungarian_assign", &assign);
  module.def("hungarian_assign_workspace", &assign_workspace);
}

}  // namespace hungarian
}  // namespace predet
