#pragma once

#include <pybind11/pybind11.h>

namespace predet {
namespace ms_deform_attn {

void bind(pybind11::module_& module);

}  // namespace ms_deform_attn
}  // namespace predet
