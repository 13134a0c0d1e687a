#pragma once

#include <pybind11/pybind11.h>

namespace predet {
namespace selective_search {

void bind(pybind11::module_& module);

}  // namespace selective_search
}  // namespace predet
