#pragma once

#include <pybind11/pybind11.h>

namespace predet {
namespace hungarian {

void bind(pybind11::module_& module);

}  // namespace hungarian
}  // namespace predet
