#pragma once

#include <pybind11/pybind11.h>

namespace predet {
namespace dropout {

void bind(pybind11::module_& module);

}  // namespace dropout
}  // namespace predet
