#include "arguments.h"

#include <cmath>
#include <limits>

#include "dispatch.h"

namespace py = pybind11;

namespace divse {

namespace {

std::string text(const py::handle& object) { return py::str(object).cast<std::string>(); }

std::string shape_of(const py::array& array) { return text(array.attr("shape")); }

py::array array_argument(const std::string& name, const py::object& values) {
    if (py::isinstance<py::array>(values)) return py::reinterpret_borrow<py::array>(values);
    throw py::value_error(name + ": got " + text(py::type::of(values).attr("__name__")) +
                          ", expected a numpy array");
}

bool has_type(const py::array& array, const char* type) {
    return array.dtype().equal(py::dtype(type));
}

// Contiguous along the last axis and aligned; otherwise a copy that is.
py::array readable(const py::array& array) {
    const auto size = array.itemsize();
    bool in_place = reinterpret_cast<std::uintptr_t>(array.data()) % size == 0;
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
        in_place &= array.strides(axis) % size == 0;
    }
    const py::ssize_t last = array.ndim() - 1;
    in_place &= array.shape(last) <= 1 || array.strides(last) == size;
    if (in_place) return array;
    return py::module_::import("numpy").attr("array")(array, py::arg("order") = "C");
}

}  // namespace

SetsArgument::SetsArgument(const std::string& name, const py::object& values,
                           const py::object& lengths, bool half_allowed)
    : values_(array_argument(name, values)), sets_{} {
    const bool half = half_allowed && has_type(values_, "float16");
    if (!half && !has_type(values_, "float32")) {
        throw py::value_error(name + ": got dtype " + text(values_.dtype()) + ", expected float32" +
                              (half_allowed ? " or float16" : "") + "; convert with .astype");
    }
    if (values_.ndim() != 3 || values_.shape(1) == 0 || values_.shape(2) == 0) {
        throw py::value_error(name + ": got shape " + shape_of(values_) +
                              ", expected (sets, elements, dims) with at least 1 element and dim");
    }
    values_ = readable(values_);
    const auto size = values_.itemsize();
    sets_ = {values_.data(),   half ? Element::f16 : Element::f32, values_.shape(0),
             values_.shape(1), values_.shape(2),                   values_.strides(0) / size,
             values_.strides(1) / size, nullptr};
    if (!lengths.is_none()) read_lengths(name, lengths);
}

void SetsArgument::read_lengths(const std::string& name, const py::object& lengths) {
    const std::string what = name + " lengths: ";
    const py::array array = array_argument(name + " lengths", lengths);
    if (!has_type(array, "int64") || array.ndim() != 1 || array.shape(0) != sets_.count) {
        throw py::value_error(what + "got dtype " + text(array.dtype()) + ", shape " +
                              shape_of(array) + ", expected int64, one for each of " +
                              std::to_string(sets_.count) + " sets");
    }
    const auto given = py::array_t<std::int64_t, py::array::c_style>::ensure(array);
    lengths_.assign(given.data(), given.data() + given.size());
    for (std::size_t n = 0; n < lengths_.size(); ++n) {
        if (lengths_[n] >= 1 && lengths_[n] <= sets_.elements) continue;
        throw py::value_error(what + "got " + std::to_string(lengths_[n]) + " for set " +
                              std::to_string(n) + ", expected 1 to " +
                              std::to_string(sets_.elements));
    }
    sets_.lengths = lengths_.data();
}

GradArgument::GradArgument(const py::object& values, std::int64_t queries, std::int64_t gallery)
    : values_(array_argument("grad_scores", values)), view_{} {
    if (!has_type(values_, "float32") || values_.ndim() != 2 || values_.shape(0) != queries ||
        values_.shape(1) != gallery) {
        throw py::value_error("grad_scores: got dtype " + text(values_.dtype()) + ", shape " +
                              shape_of(values_) + ", expected float32 (" +
                              std::to_string(queries) + ", " + std::to_string(gallery) + ")");
    }
    values_ = readable(values_);
    const auto size = values_.itemsize();
    view_ = {static_cast<const float*>(values_.data()), values_.strides(0) / size,
             values_.strides(1) / size};
}

void check_dims(const Sets& queries, const Sets& gallery) {
    if (queries.dim == gallery.dim) return;
    throw py::value_error("queries have " + std::to_string(queries.dim) +
                          " dims and the gallery has " + std::to_string(gallery.dim) +
                          "; both must come from one model");
}

Similarity similarity_argument(double alpha, bool log_mean) {
    if (alpha > 0 && alpha <= 1000) return {alpha, log_mean};
    throw py::value_error("alpha: got " + text(py::float_(alpha)) +
                          ", expected above 0 and at most 1000");
}

int threads_argument(int threads) {
    if (threads >= 0) return threads;
    throw py::value_error("threads: got " + std::to_string(threads) +
                          ", expected 1 or more, or 0 for OMP_NUM_THREADS or all CPUs");
}

const Kernel& kernel_argument(const std::string& isa) {
    if (const Kernel* kernel = find_kernel(isa)) return *kernel;
    std::string names = "auto";
    for (const Kernel* kernel : usable_kernels()) names += std::string(", ") + kernel->name;
    throw py::value_error("isa: got " + isa + ", expected one of " + names + " on this CPU");
}

std::int64_t topk_argument(std::int64_t topk, std::int64_t count) {
    if (topk >= 1 && topk <= count) return topk;
    throw py::value_error("topk: got " + std::to_string(topk) + ", expected 1 to " +
                          std::to_string(count) + ", the number of gallery sets");
}

}  // namespace divse
