// The Python module. Arguments are checked with the GIL held, the work runs without it.
#include <string>

#include "arguments.h"
#include "dispatch.h"
#include "int8_bindings.h"
#include "similarity.h"

namespace py = pybind11;

namespace divse {
namespace {

using FloatArray = py::array_t<float>;

FloatArray python_scores(const py::object& queries, const py::object& gallery,
                         const py::kwargs& keywords) {
    Options options(keywords);
    const Call call(queries, gallery, options, Allowed::any_type_any_layout);
    FloatArray out({call.queries().count, call.gallery().count});
    float* data = out.mutable_data();
    const py::gil_scoped_release unlocked;
    scores(call.queries(), call.gallery(), call.similarity, call.kernel, call.threads, data,
           {nullptr, 0});
    return out;
}

py::tuple python_scores_and_cosines(const py::object& queries, const py::object& gallery,
                                    const py::kwargs& keywords) {
    Options options(keywords);
    const Call call(queries, gallery, options, Allowed::float32_padded);
    FloatArray out({call.queries().count, call.gallery().count});
    const py::array cosines = CosinesArgument::zeros(call.queries(), call.gallery());
    const CosinesArgument kept(cosines, call.queries(), call.gallery());
    float* data = out.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        scores(call.queries(), call.gallery(), call.similarity, call.kernel, call.threads, data,
               kept.view());
    }
    return py::make_tuple(out, cosines);
}

py::tuple python_search(const py::object& queries, const py::object& gallery, std::int64_t topk,
                        const py::kwargs& keywords) {
    Options options(keywords);
    const py::object excluded = options.take<py::object>("excluded", py::none());
    const Call call(queries, gallery, options, Allowed::any_type_any_layout);
    const ExcludedArgument left_out(excluded, call.gallery().count);
    topk = topk_argument(topk, call.gallery().count);
    FloatArray best({call.queries().count, topk});
    py::array_t<std::int64_t> ids({call.queries().count, topk});
    float* best_data = best.mutable_data();
    std::int64_t* ids_data = ids.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        search(call.queries(), call.gallery(), call.similarity, call.kernel, call.threads, topk,
               left_out.bits(), best_data, ids_data);
    }
    return py::make_tuple(best, ids);
}

FloatArray python_candidate_scores(const py::object& queries, const py::object& gallery,
                                   const py::object& candidates, const py::kwargs& keywords) {
    Options options(keywords);
    const Call call(queries, gallery, options, Allowed::any_type_any_layout);
    const CandidatesArgument asked(candidates, call.queries().count, call.gallery().count);
    FloatArray out({call.queries().count, asked.view().count});
    float* data = out.mutable_data();
    const py::gil_scoped_release unlocked;
    candidate_scores(call.queries(), call.gallery(), asked.view(), call.similarity, call.kernel,
                     call.threads, data);
    return out;
}

py::tuple python_candidate_search(const py::object& queries, const py::object& gallery,
                                  const py::object& candidates, std::int64_t topk,
                                  const py::kwargs& keywords) {
    Options options(keywords);
    const Call call(queries, gallery, options, Allowed::any_type_any_layout);
    const std::int64_t count = call.queries().count;
    const CandidatesArgument asked(candidates, count, call.gallery().count);
    const Candidates listed = asked.view();
    topk = count_argument("topk", topk, listed.count, "the number of candidates");
    FloatArray best({count, topk});
    py::array_t<std::int64_t> ids({count, topk});
    float* best_data = best.mutable_data();
    std::int64_t* ids_data = ids.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        best_candidates(call.queries(), call.gallery(), listed, call.similarity, call.kernel,
                        call.threads, topk, best_data, ids_data);
    }
    return py::make_tuple(best, ids);
}

FloatArray empty_like(const Sets& sets) {
    return FloatArray({sets.count, sets.elements, sets.dim});
}

// gradients(grad_queries, grad_gallery) -> the gradient for alpha, without the GIL.
template <class Gradients>
py::tuple run_backward(const Call& call, const Gradients& gradients) {
    FloatArray grad_q = empty_like(call.queries()), grad_g = empty_like(call.gallery());
    float *q_data = grad_q.mutable_data(), *g_data = grad_g.mutable_data();
    double grad_alpha;
    {
        const py::gil_scoped_release unlocked;
        grad_alpha = gradients(q_data, g_data);
    }
    return py::make_tuple(grad_q, grad_g, grad_alpha);
}

py::tuple python_backward(const py::object& queries, const py::object& gallery,
                          const py::object& grad_scores, const py::kwargs& keywords) {
    Options options(keywords);
    const py::object cosines = options.take<py::object>("cosines", py::none());
    const Call call(queries, gallery, options, Allowed::float32_padded);
    const GradArgument grad(grad_scores, call.queries().count, call.gallery().count);
    const CosinesArgument kept(cosines, call.queries(), call.gallery());
    return run_backward(call, [&](float* grad_queries, float* grad_gallery) {
        return backward(call.queries(), call.gallery(), call.similarity, call.kernel, call.threads,
                        grad.view(), kept.view(), grad_queries, grad_gallery);
    });
}

py::tuple python_candidate_backward(const py::object& queries, const py::object& gallery,
                                    const py::object& candidates, const py::object& grad_scores,
                                    const py::kwargs& keywords) {
    Options options(keywords);
    const Call call(queries, gallery, options, Allowed::float32_padded);
    const CandidatesArgument asked(candidates, call.queries().count, call.gallery().count);
    const GradArgument grad(grad_scores, call.queries().count, asked.view().count);
    return run_backward(call, [&](float* grad_queries, float* grad_gallery) {
        return candidate_backward(call.queries(), call.gallery(), asked.view(), call.similarity,
                                  call.kernel, call.threads, grad.view(), grad_queries,
                                  grad_gallery);
    });
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
    module.doc() = "Similarities of sets of vectors on a CPU (divse_native.pyi).";
    module.def("scores", divse::python_scores, "queries"_a, "gallery"_a);
    module.def("scores_and_cosines", divse::python_scores_and_cosines, "queries"_a, "gallery"_a);
    module.def("search", divse::python_search, "queries"_a, "gallery"_a, "topk"_a);
    module.def("candidate_scores", divse::python_candidate_scores, "queries"_a, "gallery"_a,
               "candidates"_a);
    module.def("candidate_search", divse::python_candidate_search, "queries"_a, "gallery"_a,
               "candidates"_a, "topk"_a);
    module.def("backward", divse::python_backward, "queries"_a, "gallery"_a, "grad_scores"_a);
    module.def("candidate_backward", divse::python_candidate_backward, "queries"_a, "gallery"_a,
               "candidates"_a, "grad_scores"_a);
    module.def("instruction_sets", divse::instruction_sets);
    divse::define_int8(module);
}
