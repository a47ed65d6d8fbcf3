// The functions of int8 codes for Python.
#include "int8_bindings.h"

#include <algorithm>
#include <string>
#include <vector>

#include "arguments.h"
#include "int8_kernel.h"

namespace py = pybind11;

namespace divse {
namespace {

std::string text(const py::handle& object) { return py::str(object).cast<std::string>(); }

void check_dims(std::int64_t dims) {
    if (dims <= most_code_dims) return;
    throw py::value_error("int8 codes: got " + std::to_string(dims) + " dims, expected at most " +
                          std::to_string(most_code_dims));
}

std::vector<py::ssize_t> elements_shape(const Sets& sets, std::int64_t packed_elements) {
    if (sets.offsets) return {packed_elements};
    return {sets.count, sets.elements};
}

// An array of codes or of their scalars, which must be in one piece.
template <class T>
const T* piece(const std::string& name, const py::object& values,
               const std::vector<py::ssize_t>& shape) {
    if (py::isinstance<py::array_t<T, py::array::c_style>>(values)) {
        const auto array = py::reinterpret_borrow<py::array>(values);
        bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
        for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
            fits = array.shape(static_cast<py::ssize_t>(axis)) == shape[axis];
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

// Codes that lie side by side (LaneCodes), and how many elements each set has.
class LaneCodesArgument {
public:
    LaneCodesArgument(const py::object& given, const py::object& given_scales, std::int64_t sets,
                      std::int64_t dim, Options& options)
        : lengths_(options.take<py::object>("gallery_lengths", py::none())) {
        check_dims(dim);
        if (sets < 1) {
            throw py::value_error("sets: got " + std::to_string(sets) + ", expected at least 1");
        }
        const std::int64_t slots = py::len(given_scales);
        codes_.count = sets;
        codes_.dim = dim;
        codes_.scales = piece<float>("scales", given_scales, {slots, lane_sets});
        const std::vector<py::ssize_t> shape{slots, (dim + lane_dims - 1) / lane_dims, lane_sets,
                                             lane_dims};
        codes_.codes = piece<std::int8_t>("codes", given, shape);
        const std::int64_t taken = lengths_.is_none() ? take_even(slots) : take_lengths();
        if (taken == slots) return;
        throw py::value_error("scales: got " + std::to_string(slots) + " slots, expected " +
                              std::to_string(taken) + " for " + std::to_string(sets) + " sets");
    }
    const LaneCodes& codes() const { return codes_; }

private:
    std::int64_t take_even(std::int64_t slots) {
        const std::int64_t groups = (codes_.count + lane_sets - 1) / lane_sets;
        codes_.elements = std::max<std::int64_t>(1, slots / groups);
        codes_.lengths = codes_.firsts = nullptr;
        return groups * codes_.elements;
    }

    std::int64_t take_lengths() {
        codes_.lengths = piece<std::int64_t>("gallery_lengths", lengths_, {codes_.count});
        codes_.elements = 1;
        firsts_.push_back(0);
        for (std::int64_t n = 0; n < codes_.count;) {
            std::int64_t longest = 1;
            for (const auto end = std::min(n + lane_sets, codes_.count); n < end; ++n) {
                const std::int64_t length = codes_.lengths[n];
                if (length < 1) {
                    throw py::value_error("gallery_lengths: got " + std::to_string(length) +
                                          " for set " + std::to_string(n) + ", expected 1 or more");
                }
                longest = std::max(longest, length);
            }
            codes_.elements = std::max(codes_.elements, longest);
            firsts_.push_back(firsts_.back() + longest);
        }
        codes_.firsts = firsts_.data();
        return firsts_.back();
    }

    const py::object lengths_;
    std::vector<std::int64_t> firsts_;
    LaneCodes codes_;
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

py::tuple python_int8_search(const py::object& queries, const py::object& codes,
                             const py::object& scales, std::int64_t sets, std::int64_t topk,
                             const py::kwargs& keywords) {
    Options options(keywords);
    const py::object excluded = options.take<py::object>("excluded", py::none());
    const bool ordered = options.take<bool>("ordered", true);
    const SetsArgument asked("queries", "query", queries, options, Allowed::float32_any_layout);
    const LaneCodesArgument gallery(codes, scales, sets, asked.sets().dim, options);
    const Similarity similarity = similarity_argument(options);
    const Kernel& kernel = kernel_argument(options);
    const int threads = threads_argument(options);
    options.finish();
    const ExcludedArgument left_out(excluded, sets);
    topk = topk_argument(topk, sets);
    py::array_t<float> scores({asked.sets().count, topk});
    py::array_t<std::int64_t> ids({asked.sets().count, topk});
    float* scores_data = scores.mutable_data();
    std::int64_t* ids_data = ids.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        int8_search(asked.sets(), gallery.codes(), similarity, int8_kernel(kernel), threads, topk,
                    left_out.bits(), ordered, scores_data, ids_data);
    }
    return py::make_tuple(scores, ids);
}

}  // namespace

void define_int8(py::module_& module) {
    using namespace py::literals;
    module.def("quantise", python_quantise, "gallery"_a);
    module.def("int8_bounds", python_int8_bounds, "queries"_a, "gallery"_a, "codes"_a, "scales"_a,
               "residuals"_a, "parts"_a);
    module.def("certified_search", python_certified_search, "queries"_a, "gallery"_a, "codes"_a,
               "scales"_a, "residuals"_a, "topk"_a);
    module.def("int8_search", python_int8_search, "queries"_a, "codes"_a, "scales"_a, "sets"_a,
               "topk"_a);
}

}  // namespace divse
