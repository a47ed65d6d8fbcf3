// The functions of int8 codes for Python.
#include "int8_bindings.h"

#include <algorithm>
#include <string>
#include <vector>

#include "arguments.h"
#include "int8_arguments.h"
#include "int8_kernel.h"

namespace py = pybind11;

namespace divse {
namespace {

std::vector<py::ssize_t> elements_shape(const Sets& sets, std::int64_t packed_elements) {
    if (sets.offsets) return {packed_elements};
    return {sets.count, sets.elements};
}

// Queries, a gallery and its codes; the arrays belong to the caller for as long as the call lasts.
struct CodedCall : Call {
    Codes codes;

    CodedCall(const py::object& queries, const py::object& gallery, const py::object& given_codes,
              const py::object& scales, const py::object& residuals, Options& options)
        : Call(queries, gallery, options, Allowed::any_type_any_layout) {
        const Sets& sets = this->gallery();
        check_dims(sets.dim);
        const auto elements = py::reinterpret_borrow<py::array>(gallery).shape(0);
        std::vector<py::ssize_t> shape = elements_shape(sets, elements);
        codes.scales = piece<float>("scales", scales, shape);
        codes.residuals = piece<float>("residuals", residuals, shape);
        shape.push_back(sets.dim);
        codes.codes = piece<std::int8_t>("codes", given_codes, shape);
        codes.count = sets.count;
        codes.elements = sets.elements;
        codes.dim = sets.dim;
        codes.lengths = sets.lengths;
        codes.offsets = sets.offsets;
    }
};

py::tuple python_quantise(const py::object& gallery, const py::kwargs& keywords) {
    Options options(keywords);
    const Kernel& kernel = kernel_argument(options);
    const int threads = threads_argument(options);
    const SetsArgument argument("gallery", "gallery", gallery, options,
                                Allowed::any_type_any_layout);
    options.finish();
    const Sets& sets = argument.sets();
    check_dims(sets.dim);
    std::vector<py::ssize_t> shape =
        elements_shape(sets, py::reinterpret_borrow<py::array>(gallery).shape(0));
    py::array_t<float> scales(shape), residuals(shape);
    shape.push_back(sets.dim);
    py::array_t<std::int8_t> codes(shape);
    std::int8_t* codes_data = codes.mutable_data();
    float *scales_data = scales.mutable_data(), *residuals_data = residuals.mutable_data();
    std::int64_t bad;
    {
        const py::gil_scoped_release unlocked;
        bad = encode(sets, int8_kernel(kernel), threads, codes_data, scales_data, residuals_data);
    }
    if (bad >= 0) {
        throw py::value_error("int8 codes: an element of set " + std::to_string(bad) +
                              " is not finite or longer than " + std::to_string(unit_bound) +
                              ", expected unit vectors; normalise with EmbeddingSets.of");
    }
    return py::make_tuple(codes, scales, residuals);
}

py::array_t<float> python_int8_bounds(const py::object& queries, const py::object& gallery,
                             const py::object& codes, const py::object& scales,
                             const py::object& residuals, int parts, const py::kwargs& keywords) {
    Options options(keywords);
    const CodedCall call(queries, gallery, codes, scales, residuals, options);
    if (parts != 1 && parts != 2) {
        throw py::value_error("parts: got " + std::to_string(parts) + ", expected 1 or 2");
    }
    py::array_t<float> upper({call.queries().count, call.gallery().count});
    float* upper_data = upper.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        int8_bounds(call.queries(), call.codes, call.similarity, int8_kernel(call.kernel), parts,
                    call.threads, upper_data);
    }
    return upper;
}

py::tuple python_certified_search(const py::object& queries, const py::object& gallery,
                                  const py::object& codes, const py::object& scales,
                                  const py::object& residuals, std::int64_t topk,
                                  const py::kwargs& keywords) {
    Options options(keywords);
    const py::object excluded = options.take<py::object>("excluded", py::none());
    const CodedCall call(queries, gallery, codes, scales, residuals, options);
    const ExcludedArgument left_out(excluded, call.gallery().count);
    topk = topk_argument(topk, call.gallery().count);
    const std::int64_t count = call.queries().count;
    py::array_t<float> scores({count, topk});
    py::array_t<std::int64_t> ids({count, topk}), survivors(count);
    py::array_t<bool> certified(count);
    const Certified out{scores.mutable_data(), ids.mutable_data(), survivors.mutable_data()};
    bool* certified_data = certified.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        certified_search(call.queries(), call.gallery(), call.codes, call.similarity, call.kernel,
                         int8_kernel(call.kernel), call.threads, topk, left_out.bits(), out);
        std::fill_n(certified_data, count, true);
    }
    return py::make_tuple(scores, ids, certified, survivors);
}

}  // namespace

void define_int8(py::module_& module) {
    using namespace py::literals;
    module.def("quantise", python_quantise, "gallery"_a);
    module.def("int8_bounds", python_int8_bounds, "queries"_a, "gallery"_a, "codes"_a, "scales"_a,
               "residuals"_a, "parts"_a);
    module.def("certified_search", python_certified_search, "queries"_a, "gallery"_a, "codes"_a,
               "scales"_a, "residuals"_a, "topk"_a);
    define_int8_gallery(module);
}

}  // namespace divse
