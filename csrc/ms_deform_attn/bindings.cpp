// Python's door to multi-scale deformable attention: addresses and sizes, checked as far as they
// can be. Whoever passes an address answers for what lies there; predet/ops/ms_deform_attn.py does.
#include "bindings.h"

#include <pybind11/stl.h>

#include <array>
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
namespace ms_deform_attn {
namespace {

// B, S, H, C, Q, P, reference_size
using Sizes = std::array<int64_t, 7>;
// height, width of each level
using Shapes = std::vector<int64_t>;
// Where the work is done: device index (-1: CPU), CUDA stream, number of CPU threads.
using Place = std::array<int64_t, 3>;
using Addresses = std::vector<uintptr_t>;

std::vector<Level> levels_of(const Shapes& shapes, int64_t pixels) {
  require(shapes.size() % 2 == 0, "spatial shapes must be pairs (height, width)");
  std::vector<Level> levels;
  int64_t first = 0;
  for (size_t i = 0; i < shapes.size(); i += 2) {
    const int64_t height = shapes[i], width = shapes[i + 1];
    require(height > 0 && width > 0, "a level's height and width must be positive, got " +
                                         std::to_string(height) + " x " + std::to_string(width));
    const int64_t area = checked_product({height, width});
    require(area <= std::numeric_limits<int32_t>::max() - first,
            "levels with 2^31 pixels and more are not supported");
    levels.push_back({int32_t(height), int32_t(width), int32_t(first)});
    first += area;
  }
  require(first == pixels, "the levels have " + std::to_string(first) +
                               " pixels, the value has " + std::to_string(pixels));
  return levels;
}

Problem problem_of(const Sizes& sizes, const std::vector<Level>& levels, int value_type,
                   int weights_type) {
  for (const int64_t size : sizes) require(size >= 0, "sizes must not be negative");
  Problem p{};
  p.batch = sizes[0];
  p.pixels = sizes[1];
  p.heads = sizes[2];
  p.channels = sizes[3];
  p.queries = sizes[4];
  p.points = sizes[5];
  p.reference_size = sizes[6];
  p.levels = int64_t(levels.size());
  p.level = levels.data();
  require(p.reference_size == 0 || p.reference_size == 2 || p.reference_size == 4,
          "reference points must have 2 or 4 numbers");
  // With 16 bytes a number, no address below can overflow.
  checked_product({p.batch, p.pixels, p.heads, p.channels, 16});
  checked_product({p.batch, p.queries, p.heads, p.channels, 16});
  checked_product({p.batch, p.queries, p.heads, p.levels, p.points, 32});
  checked_product({p.batch, p.queries, p.heads, p.levels, 64});
  require(checked_product({p.pixels, p.channels}) <= std::numeric_limits<int32_t>::max(),
          "a head with 2^31 numbers and more is not supported");
  require(value_type >= 0 && value_type <= 3, "unknown dtype of the value");
  p.value_type = DType(value_type);
  const DType arithmetic =
      p.value_type == DType::float64 ? DType::float64 : DType::float32;
  p.weights_type = DType(weights_type);
  require(p.weights_type == p.value_type || p.weights_type == arithmetic,
          "the weights must have the dtype of the value or that of its arithmetic");
  return p;
}

template <typename T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);  // NOLINT: addresses come from Python as integers
}

void require_address(const void* pointer, int64_t numbers, const char* name) {
  require(pointer != nullptr || numbers == 0, std::string(name) + " has no memory");
}

void require_inputs(const Problem& p) {
  const int64_t rows = p.batch * p.queries;
  require_address(p.value, p.batch * p.pixels * p.heads * p.channels, "value");
  require_address(p.reference, rows * p.levels * p.reference_size, "reference points");
  require_address(p.given, rows * p.heads * p.points_of_head(), "offsets or locations");
  require_address(p.weights, rows * p.heads * p.points_of_head(), "logits or weights");
}

void require_cpu_or_cuda(const Place& place) {
#if defined(PREDET_WITH_CUDA)
  require(place[0] >= -1, "unknown device");
#else
  require(place[0] == -1, "predet._C was built without CUDA");
#endif
}

// inputs: value, reference, given, weights, output
void forward(const Place& place, const Sizes& sizes, const Shapes& shapes, int value_type,
             int weights_type, const Addresses& addresses) {
  const std::vector<Level> levels = levels_of(shapes, sizes[1]);
  Problem p = problem_of(sizes, levels, value_type, weights_type);
  require(addresses.size() == 5, "five addresses expected");
  p.value = address<const void>(addresses[0]);
  p.reference = address<const void>(addresses[1]);
  p.given = address<const void>(addresses[2]);
  p.weights = address<const void>(addresses[3]);
  p.output = address<void>(addresses[4]);
  require_inputs(p);
  const int64_t outputs = p.batch * p.queries * p.heads * p.channels;
  require_address(p.output, outputs, "output");
  require_cpu_or_cuda(place);
  if (outputs == 0) return;
  py::gil_scoped_release unlocked;
#if defined(PREDET_WITH_CUDA)
  if (place[0] >= 0) return forward_cuda(p, int(place[0]), address<void>(uintptr_t(place[1])));
#endif
  forward_cpu(p, thread_count(place[2]));
}

// inputs: value, reference, given, weights, grad_output, then the gradients of the first four
// (0: not wanted), and workspace on CUDA
void backward(const Place& place, const Sizes& sizes, const Shapes& shapes, int value_type,
              int weights_type, const Addresses& addresses, bool deterministic) {
  const std::vector<Level> levels = levels_of(shapes, sizes[1]);
  Problem p = problem_of(sizes, levels, value_type, weights_type);
  require(addresses.size() == 10, "ten addresses expected");
  p.value = address<const void>(addresses[0]);
  p.reference = address<const void>(addresses[1]);
  p.given = address<const void>(addresses[2]);
  p.weights = address<const void>(addresses[3]);
  p.grad_output = address<const void>(addresses[4]);
  p.grad_value = address<void>(addresses[5]);
  p.grad_reference = address<void>(addresses[6]);
  p.grad_given = address<void>(addresses[7]);
  p.grad_weights = address<void>(addresses[8]);
  require_inputs(p);
  require_address(p.grad_output, p.batch * p.queries * p.heads * p.channels, "grad_output");
  require(p.grad_reference == nullptr || p.reference_size > 0, "no reference points, no gradient");
  require_cpu_or_cuda(place);
  if (p.batch * p.heads == 0) return;
  py::gil_scoped_release unlocked;
#if defined(PREDET_WITH_CUDA)
  if (place[0] >= 0) {
    return backward_cuda(p, int(place[0]), address<void>(uintptr_t(place[1])),
                         address<void>(addresses[9]), deterministic);
  }
#endif
  (void)deterministic;  // the CPU always is
  backward_cpu(p, thread_count(place[2]));
}

}  // namespace

void bind(py::module_& module) {
  module.def("ms_deform_attn_forward", &forward);
  module.def("ms_deform_attn_backward", &backward);
}

}  // namespace ms_deform_attn
}  // namespace predet
