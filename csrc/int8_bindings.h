#pragma once

#include <pybind11/pybind11.h>

namespace divse {

void define_int8(pybind11::module_& module);
void define_int8_gallery(pybind11::module_& module);

}  // namespace divse
