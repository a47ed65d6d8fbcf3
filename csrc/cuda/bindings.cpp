// The module divse_cuda: launches the kernels of this folder on memory that the caller names.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <tuple>

#include "launch.h"

namespace py = pybind11;
namespace divse::hopper {
namespace {

using Strides = std::tuple<std::int64_t, std::int64_t>;
using SetsTuple = std::tuple<std::uintptr_t, std::int64_t, std::int64_t, std::int64_t,
                             std::int64_t, std::int64_t>;

const void* pointer(std::uintptr_t address) { return reinterpret_cast<const void*>(address); }

Sets sets_of(const SetsTuple& side) {
    const auto [values, count, size, dims, set_stride, element_stride] = side;
    const bool aligned = values % 16 == 0 && set_stride % 8 == 0 && element_stride % 8 == 0;
    constexpr std::int64_t most = INT32_MAX - cluster * tile;  // positions in tiles are ints
    if (!aligned || count < 1 || count > most || dims < 8 || dims % 8 != 0) {
        throw std::invalid_argument(
            "sets must be 1 to 2^31 - 257, 16-byte aligned, D and strides multiples of 8");
    }
    if (size != 2 && size != 4 && size != 8 && size != 16 && size != 32) {
        throw std::invalid_argument("sets must have 2, 4, 8, 16 or 32 elements");
    }
    return {count, size, dims, set_stride, element_stride};
}

void smooth_chamfer(const SetsTuple& rows, const SetsTuple& columns, bool half,
                    std::uintptr_t scores, const Strides& strides, float alpha, bool log_mean,
                    std::uintptr_t stream) {
    const Launch to{pointer(std::get<0>(rows)),
                    pointer(std::get<0>(columns)),
                    half,
                    sets_of(rows),
                    sets_of(columns),
                    reinterpret_cast<float*>(scores),
                    std::get<0>(strides),
                    std::get<1>(strides),
                    alpha,
                    log_mean,
                    reinterpret_cast<void*>(stream)};
    if (to.rows.size != to.columns.size || to.rows.dims != to.columns.dims) {
        throw std::invalid_argument("both sides need sets of one size, and as many dimensions");
    }
    if (!(alpha > 0 && alpha <= largest_alpha)) {
        throw std::invalid_argument("alpha must be in (0, 80]");
    }
    score(to);
}

}  // namespace

PYBIND11_MODULE(divse_cuda, m) {
    m.doc() = "CUDA kernels of divse for Hopper (compute capability 9.0).";
    m.def("smooth_chamfer", &smooth_chamfer, py::arg("rows"), py::arg("columns"), py::arg("half"),
          py::arg("scores"), py::arg("strides"), py::arg("alpha"), py::arg("log_mean"),
          py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
          "Enqueue Smooth-Chamfer scores of all pairs on a stream of the current device.\n\n"
          "A side is (address, sets, elements of a set, D, strides of sets and elements in values);\n"
          "scores are float32 at an address, with strides in values. RuntimeError says what CUDA says.");
}

}  // namespace divse::hopper
