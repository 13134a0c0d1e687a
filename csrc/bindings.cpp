// The module predet._C. Only predet/ops/extension.py imports it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "common/checks.h"
#include "common/cpu_features.h"
#include "dropout/bindings.h"
#include "hungarian/bindings.h"
#include "ms_deform_attn/bindings.h"
#include "selective_search/bindings.h"
#if defined(PREDET_WITH_CUDA)
#include "common/cuda_devices.h"
#endif

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__) || defined(__GNUC__)
  return __VERSION__;
#elif defined(_MSC_VER)
  return "MSVC " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto set : predet::available_instruction_sets()) {
    names.push_back(predet::name_of(set));
  }
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const auto set : predet::available_instruction_sets()) {
    if (predet::name_of(set) == name) return predet::use_instruction_set(set);
  }
  throw std::invalid_argument("instruction set " + name + " was not compiled or cannot run here");
}

}  // namespace

// Raised when a function here changes what it takes; predet/ops/extension.py expects this number.
constexpr int kInterface = 2;

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native operators of predet; see predet.ops.";
  module.attr("INTERFACE") = kInterface;
  module.attr("compiler") = compiler();
#if defined(PREDET_WITH_CUDA)
  module.attr("cuda_architectures") = PREDET_CUDA_ARCHITECTURES;
  module.def("cuda_device_count", &predet::cuda_device_count);
#else
  module.attr("cuda_architectures") = "";
  module.def("cuda_device_count", [] { return 0; });
#endif
  module.def("instruction_sets", &instruction_sets,
             "Those that were compiled and that this processor runs, slowest first.");
  module.def("instruction_set", [] { return predet::name_of(predet::instruction_set()); });
  module.def("use_instruction_set", &use_instruction_set, "For tests and benchmarks.");
  predet::dropout::bind(module);
  predet::hungarian::bind(module);
  predet::ms_deform_attn::bind(module);
  predet::selective_search::bind(module);
}
