// Python's door to dropout. Whoever passes an address answers for what lies there;
// predet/ops/dropout.py does.
#include "bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <string>

#include "../common/checks.h"
#include "cpu.h"

namespace py = pybind11;

namespace predet {
namespace dropout {
namespace {

// input, base, gate, output; 0: none
using Addresses = std::array<uintptr_t, 4>;

void run(int64_t threads, int64_t count, int type, uint64_t seed, int64_t kept, double scale,
         bool rectify, const Addresses& addresses) {
  require(count >= 0, "the count must not be negative");
  checked_product({count, 8});  // no address below can overflow
  require(type >= 0 && type <= 3, "unknown dtype");
  require(kept >= 0 && kept <= 65536, "kept must be between 0 and 2^16");
  Problem p{};
  p.count = count;
  p.type = DType(type);
  p.input = reinterpret_cast<const void*>(addresses[0]);   // NOLINT: addresses come from Python
  p.base = reinterpret_cast<const void*>(addresses[1]);    // NOLINT
  p.gate = reinterpret_cast<const void*>(addresses[2]);    // NOLINT
  p.output = reinterpret_cast<void*>(addresses[3]);        // NOLINT
  p.seed = seed;
  p.kept = uint32_t(kept);
  p.scale = scale;
  p.rectify = rectify;
  const int options = (p.base != nullptr) + (p.gate != nullptr) + int(rectify);
  require(options <= 1, "of a base, a gate and rectifying there can be only one");
  if (count == 0) return;
  require(p.input != nullptr && p.output != nullptr, "input or output has no memory");
  py::gil_scoped_release unlocked;
  run_cpu(p, thread_count(threads));
}

}  // namespace

void bind(py::module_& module) { module.def("dropout", &run); }

}  // namespace dropout
}  // namespace predet
