#include "arguments.h"

#include <algorithm>

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

// Numbers of the machine's own byte order, told from the type's own fields: its name is made by
// Python code, which a call that comes after other work finds in no cache.
bool holds(const py::array& array, char kind, py::ssize_t size) {
    const py::dtype type = array.dtype();
    return type.kind() == kind && type.itemsize() == size &&
           (type.byteorder() == '=' || type.byteorder() == '|');
}

bool holds_int64(const py::array& array) { return holds(array, 'i', 8); }
bool holds_float32(const py::array& array) { return holds(array, 'f', 4); }

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

void Options::finish() const {
    for (const auto& item : left_) {
        throw py::type_error("got an unexpected keyword argument '" + text(item.first) + "'");
    }
}

std::string Options::wrong_type(const char* name, const py::object& value) {
    return std::string(name) + ": got " + text(py::type::of(value).attr("__name__")) + " " +
           text(value);
}

SetsArgument::SetsArgument(const std::string& name, const std::string& option,
                           const py::object& values, Options& options, Allowed allowed)
    : name_(name), values_(array_argument(name, values)), sets_{} {
    const auto taken = [&](const char* what) {
        return options.take<py::object>((option + what).c_str(), py::none());
    };
    const py::object lengths = taken("_lengths");
    const py::object offsets = allowed == Allowed::float32_padded ? py::none() : taken("_offsets");
    const py::object type = allowed == Allowed::any_type_any_layout ? taken("_type") : py::none();
    const bool packed = !offsets.is_none();
    const py::ssize_t axes = packed ? 2 : 3;
    sets_.element = read_type(type, allowed);
    if (values_.ndim() != axes || values_.shape(axes - 2) == 0 || values_.shape(axes - 1) == 0) {
        throw py::value_error(name + ": got shape " + shape_of(values_) + ", expected (" +
                              (packed ? "all elements of all sets" : "sets, elements") +
                              ", dims) with at least 1 element and dim");
    }
    values_ = readable(values_);
    const auto size = values_.itemsize();
    sets_.values = values_.data();
    sets_.dim = values_.shape(axes - 1);
    sets_.element_stride = values_.strides(axes - 2) / size;
    if (packed) {
        read_offsets(offsets);
    } else {
        sets_.count = values_.shape(0);
        sets_.elements = values_.shape(1);
        sets_.set_stride = values_.strides(0) / size;
    }
    if (!lengths.is_none()) read_lengths(lengths);
}

Element SetsArgument::read_type(const py::object& given, Allowed allowed) const {
    const std::string type = given.is_none() ? "" : text(given);
    const auto is = [&](const char* name) { return type.empty() || type == name; };
    if (is("float32") && holds_float32(values_)) return Element::f32;
    if (allowed == Allowed::any_type_any_layout) {
        if (is("float16") && holds(values_, 'f', 2)) return Element::f16;
        if (type == "bfloat16" && holds(values_, 'u', 2)) return Element::bf16;
    }
    const std::string stored = text(values_.dtype());
    throw py::value_error(
        name_ + ": got dtype " + stored + (is(stored.c_str()) ? "" : " as " + type) +
        ", expected float32" +
        (allowed == Allowed::any_type_any_layout
             ? ", float16, or uint16 with " + name_ + "_type=\"bfloat16\""
             : "") +
        "; convert with .astype");
}

void SetsArgument::read_lengths(const py::object& lengths) {
    const std::string what = name_ + " lengths: ";
    if (sets_.offsets) {
        throw py::value_error(what + "got lengths and offsets, expected one of them");
    }
    const py::array array = array_argument(name_ + " lengths", lengths);
    if (!holds_int64(array) || array.ndim() != 1 || array.shape(0) != sets_.count) {
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

void SetsArgument::read_offsets(const py::object& offsets) {
    const std::string what = name_ + " offsets: ";
    const std::int64_t total = values_.shape(0);
    const py::array array = array_argument(name_ + " offsets", offsets);
    if (!holds_int64(array) || array.ndim() != 1 || array.shape(0) == 0) {
        throw py::value_error(what + "got dtype " + text(array.dtype()) + ", shape " +
                              shape_of(array) + ", expected int64 (sets + 1,)");
    }
    offsets_ = py::array_t<std::int64_t, py::array::c_style>::ensure(array);
    sets_.offsets = static_cast<const std::int64_t*>(offsets_.data());
    sets_.count = offsets_.shape(0) - 1;
    sets_.elements = 1;
    for (std::int64_t n = 0; n < sets_.count; ++n) {
        const std::int64_t begin = sets_.offsets[n], end = sets_.offsets[n + 1];
        if (begin < 0 || end <= begin || end > total) {
            throw py::value_error(what + "set " + std::to_string(n) + " goes from " +
                                  std::to_string(begin) + " to " + std::to_string(end) +
                                  ", expected ascending positions of " + std::to_string(total) +
                                  " elements, at least 1 a set");
        }
        sets_.elements = std::max(sets_.elements, end - begin);
    }
}

Similarity similarity_argument(Options& options) {
    const auto name = options.take<std::string>("similarity", "smooth_chamfer");
    const auto alpha = options.take<double>("alpha", 16.0);
    const auto log_mean = options.take<bool>("log_mean", false);
    const auto reduction = options.take<std::string>("reduction", "sum");
    if (!(alpha > 0 && alpha <= 1000)) {
        throw py::value_error("alpha: got " + text(py::float_(alpha)) +
                              ", expected above 0 and at most 1000");
    }
    if (reduction != "sum" && reduction != "mean") {
        throw py::value_error("reduction: got " + reduction + ", expected sum or mean");
    }
    if (name == "smooth_chamfer") return {Measure::smooth_chamfer, alpha, log_mean};
    if (name == "chamfer") return {Measure::chamfer, alpha, log_mean};
    if (name == "mil") return {Measure::mil, alpha, log_mean};
    if (name == "maxsim") {
        return {reduction == "sum" ? Measure::maxsim_sum : Measure::maxsim_mean, alpha, log_mean};
    }
    throw py::value_error("similarity: got " + name +
                          ", expected smooth_chamfer, chamfer, maxsim or mil");
}

int threads_argument(Options& options) {
    const int threads = options.take<int>("threads", 0);
    if (threads >= 0) return threads;
    throw py::value_error("threads: got " + std::to_string(threads) +
                          ", expected 1 or more, or 0 for OMP_NUM_THREADS or all CPUs");
}

const Kernel& kernel_argument(Options& options) {
    const auto isa = options.take<std::string>("isa", "auto");
    if (const Kernel* kernel = find_kernel(isa)) return *kernel;
    std::string names = "auto";
    for (const Kernel* kernel : usable_kernels()) names += std::string(", ") + kernel->name;
    throw py::value_error("isa: got " + isa + ", expected one of " + names + " on this CPU");
}

Call::Call(const py::object& queries, const py::object& gallery, Options& options, Allowed allowed)
    : queries_argument("queries", "query", queries, options,
                       std::max(allowed, Allowed::float32_any_layout)),
      gallery_argument("gallery", "gallery", gallery, options, allowed),
      similarity(similarity_argument(options)), kernel(kernel_argument(options)),
      threads(threads_argument(options)) {
    options.finish();
    if (this->queries().dim == this->gallery().dim) return;
    throw py::value_error("queries have " + std::to_string(this->queries().dim) +
                          " dims and the gallery has " + std::to_string(this->gallery().dim) +
                          "; both must come from one model");
}

ExcludedArgument::ExcludedArgument(const py::object& values, std::int64_t gallery) {
    if (values.is_none()) return;
    const py::array array = array_argument("excluded", values);
    const std::int64_t bytes = (gallery + 7) / 8;
    if (!holds(array, 'u', 1) || array.ndim() != 1 || array.shape(0) != bytes) {
        throw py::value_error("excluded: got dtype " + text(array.dtype()) + ", shape " +
                              shape_of(array) + ", expected uint8 (" + std::to_string(bytes) +
                              ",), a bit for each of " + std::to_string(gallery) + " sets");
    }
    values_ = readable(array);
}

CandidatesArgument::CandidatesArgument(const py::object& values, std::int64_t queries,
                                       std::int64_t gallery) {
    const py::array array = array_argument("candidates", values);
    if (!holds_int64(array) || array.ndim() != 2 || array.shape(0) != queries) {
        throw py::value_error("candidates: got dtype " + text(array.dtype()) + ", shape " +
                              shape_of(array) + ", expected int64 (" + std::to_string(queries) +
                              ", M)");
    }
    values_ = py::array_t<std::int64_t, py::array::c_style>::ensure(array);
    for (py::ssize_t i = 0; i < values_.size(); ++i) {
        if (values_.data()[i] >= -1 && values_.data()[i] < gallery) continue;
        throw py::value_error("candidates: got " + std::to_string(values_.data()[i]) +
                              ", expected -1 (none) to " + std::to_string(gallery - 1));
    }
}

GradArgument::GradArgument(const py::object& values, std::int64_t queries, std::int64_t gallery)
    : values_(array_argument("grad_scores", values)), view_{} {
    if (!holds_float32(values_) || values_.ndim() != 2 || values_.shape(0) != queries ||
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

CosinesArgument::CosinesArgument(const py::object& values, const Sets& queries,
                                 const Sets& gallery)
    : values_(values), view_{nullptr, 0} {
    if (values.is_none()) return;
    const py::array array = array_argument("cosines", values);
    const std::int64_t rows = gallery.count * gallery.elements;
    const std::int64_t columns = (queries.count + 15) / 16 * 16 * queries.elements;
    if (!holds_float32(array) || array.ndim() != 2 || array.shape(0) != rows ||
        array.shape(1) != columns || !(array.flags() & py::array::c_style)) {
        throw py::value_error("cosines: got shape " + shape_of(array) + ", expected (" +
                              std::to_string(rows) + ", " + std::to_string(columns) +
                              ") as scores_and_cosines returned them");
    }
    view_ = {static_cast<float*>(const_cast<void*>(array.data())), columns};
}

py::array CosinesArgument::zeros(const Sets& queries, const Sets& gallery) {
    const std::int64_t columns = (queries.count + 15) / 16 * 16 * queries.elements;
    const py::tuple shape = py::make_tuple(gallery.count * gallery.elements, columns);
    return py::module_::import("numpy").attr("zeros")(shape, "float32");
}

std::int64_t count_argument(const char* name, std::int64_t value, std::int64_t most,
                            const char* limit) {
    if (value >= 1 && value <= most) return value;
    throw py::value_error(name + (": got " + std::to_string(value)) + ", expected 1 to " +
                          std::to_string(most) + ", " + limit);
}

std::int64_t topk_argument(std::int64_t topk, std::int64_t sets) {
    return count_argument("topk", topk, sets, "the number of gallery sets");
}

}  // namespace divse
