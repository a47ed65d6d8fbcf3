// The Python module. Arguments are checked with the GIL held, the work runs without it.
#include <string>

#include "arguments.h"
#include "dispatch.h"
#include "smooth_chamfer.h"

namespace py = pybind11;

namespace divse {
namespace {

using FloatArray = py::array_t<float>;

FloatArray python_scores(const py::object& queries, const py::object& gallery, double alpha,
                         bool log_mean, const py::object& query_lengths,
                         const py::object& gallery_lengths, int threads, const std::string& isa) {
    const SetsArgument q("queries", queries, query_lengths, false);
    const SetsArgument g("gallery", gallery, gallery_lengths, true);
    check_dims(q.sets(), g.sets());
    const Similarity similarity = similarity_argument(alpha, log_mean);
    const Kernel& kernel = kernel_argument(isa);
    threads = threads_argument(threads);
    FloatArray out({q.sets().count, g.sets().count});
    float* data = out.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        scores(q.sets(), g.sets(), similarity, kernel, threads, data);
    }
    return out;
}

py::tuple python_search(const py::object& queries, const py::object& gallery, std::int64_t topk,
                        double alpha, bool log_mean, const py::object& query_lengths,
                        const py::object& gallery_lengths, int threads, const std::string& isa) {
    const SetsArgument q("queries", queries, query_lengths, false);
    const SetsArgument g("gallery", gallery, gallery_lengths, true);
    check_dims(q.sets(), g.sets());
    topk = topk_argument(topk, g.sets().count);
    const Similarity similarity = similarity_argument(alpha, log_mean);
    const Kernel& kernel = kernel_argument(isa);
    threads = threads_argument(threads);
    FloatArray best({q.sets().count, topk});
    py::array_t<std::int64_t> ids({q.sets().count, topk});
    float* best_data = best.mutable_data();
    std::int64_t* ids_data = ids.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        search(q.sets(), g.sets(), similarity, kernel, threads, topk, best_data, ids_data);
    }
    return py::make_tuple(best, ids);
}

py::tuple python_backward(const py::object& queries, const py::object& gallery,
                          const py::object& grad_scores, double alpha, bool log_mean,
                          const py::object& query_lengths, const py::object& gallery_lengths,
                          int threads, const std::string& isa) {
    const SetsArgument q("queries", queries, query_lengths, false);
    const SetsArgument g("gallery", gallery, gallery_lengths, false);
    check_dims(q.sets(), g.sets());
    const GradArgument grad(grad_scores, q.sets().count, g.sets().count);
    const Similarity similarity = similarity_argument(alpha, log_mean);
    const Kernel& kernel = kernel_argument(isa);
    threads = threads_argument(threads);
    FloatArray grad_q({q.sets().count, q.sets().elements, q.sets().dim});
    FloatArray grad_g({g.sets().count, g.sets().elements, g.sets().dim});
    float *q_data = grad_q.mutable_data(), *g_data = grad_g.mutable_data();
    double grad_alpha;
    {
        const py::gil_scoped_release unlocked;
        grad_alpha = backward(q.sets(), g.sets(), similarity, kernel, threads, grad.view(), q_data,
                              g_data);
    }
    return py::make_tuple(grad_q, grad_g, grad_alpha);
}

py::list instruction_sets() {
    py::list names;
    for (const Kernel* kernel : usable_kernels()) names.append(kernel->name);
    return names;
}

}  // namespace
}  // namespace divse

PYBIND11_MODULE(divse_native, module) {
    using namespace py::literals;
    module.doc() = "Smooth-Chamfer between sets of vectors on a CPU (divse_native.pyi).";
    module.def("scores", divse::python_scores, "queries"_a, "gallery"_a, py::kw_only(), "alpha"_a,
               "log_mean"_a = false, "query_lengths"_a = py::none(),
               "gallery_lengths"_a = py::none(), "threads"_a = 0, "isa"_a = "auto");
    module.def("search", divse::python_search, "queries"_a, "gallery"_a, "topk"_a, py::kw_only(),
               "alpha"_a, "log_mean"_a = false, "query_lengths"_a = py::none(),
               "gallery_lengths"_a = py::none(), "threads"_a = 0, "isa"_a = "auto");
    module.def("backward", divse::python_backward, "queries"_a, "gallery"_a, "grad_scores"_a,
               py::kw_only(), "alpha"_a, "log_mean"_a = false, "query_lengths"_a = py::none(),
               "gallery_lengths"_a = py::none(), "threads"_a = 0, "isa"_a = "auto");
    module.def("instruction_sets", divse::instruction_sets);
}
