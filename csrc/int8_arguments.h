// What Python may pass as codes.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>
#include <vector>

#include "int8.h"

namespace divse {

inline std::string text(const pybind11::handle& object) {
    return pybind11::str(object).cast<std::string>();
}

inline void check_dims(std::int64_t dims) {
    if (dims >= 1 && dims <= most_code_dims) return;
    throw pybind11::value_error("int8 codes: got " + std::to_string(dims) +
                                " dims, expected 1 to " + std::to_string(most_code_dims));
}

// An array of codes or of their scalars, which must be in one piece, each number at its place.
template <class T>
const T* piece(const std::string& name, const pybind11::object& values,
               const std::vector<pybind11::ssize_t>& shape) {
    namespace py = pybind11;
    if (py::isinstance<py::array_t<T, py::array::c_style>>(values)) {
        const auto array = py::reinterpret_borrow<py::array>(values);
        bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
        for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
            fits = array.shape(static_cast<py::ssize_t>(axis)) == shape[axis];
        }
        if (fits && reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) != 0) {
            throw py::value_error(name + ": its numbers are not aligned; copy it");
        }
        if (fits) return static_cast<const T*>(array.data());
    }
    const auto got = [&](const char* what) { return text(py::getattr(values, what, py::none())); };
    py::list expected;
    for (const py::ssize_t size : shape) expected.append(size);
    throw py::value_error(name + ": got dtype " + got("dtype") + ", shape " + got("shape") +
                          ", expected C-contiguous " + text(py::dtype::of<T>()) + " " +
                          text(py::tuple(expected)));
}

}  // namespace divse
