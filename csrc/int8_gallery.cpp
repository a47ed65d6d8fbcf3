// Int8Gallery for Python: what a search by codes alone goes over.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "int8_arguments.h"
#include "int8_bindings.h"
#include "int8_kernel.h"

namespace py = pybind11;

namespace divse {
namespace {

// Codes that lie side by side (LaneCodes) and how many elements each set has, with their order and
// cells (LaneGallery): checked once, and searched as often as the caller likes.
class Int8Gallery {
public:
    Int8Gallery(const py::object& given, const py::object& given_scales, std::int64_t sets,
                std::int64_t dim, const py::object& lengths, const py::object& order,
                const py::object& leaders, const py::object& begins)
        : arrays_{given, given_scales, lengths, order, leaders, begins} {
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
        const std::int64_t taken =
            lengths.is_none() ? take_even(slots) : take_lengths(lengths, slots);
        if (taken != slots) {
            throw py::value_error("scales: got " + std::to_string(slots) + " slots, expected " +
                                  std::to_string(taken) + " for " + std::to_string(sets) +
                                  " sets");
        }
        if (!order.is_none()) take_order(order);
        if (!leaders.is_none() || !begins.is_none()) take_cells(leaders, begins);
    }
    Int8Gallery(const Int8Gallery&) = delete;  // it looks at itself

    py::tuple search(const py::object& queries, std::int64_t topk, const py::kwargs& keywords) {
        Options options(keywords);
        const bool ordered = options.take<bool>("ordered", true);
        const Choice choice(*this, options);
        const SetsArgument asked("queries", "query", queries, options,
                                 Allowed::float32_any_layout);
        const Similarity similarity = similarity_argument(options);
        const Kernel& kernel = kernel_argument(options);
        const int threads = threads_argument(options);
        options.finish();
        if (asked.sets().dim != codes_.dim) {
            throw py::value_error("queries: got D=" + std::to_string(asked.sets().dim) +
                                  ", expected " + std::to_string(codes_.dim));
        }
        topk = topk_argument(topk, codes_.count);
        py::array_t<float> scores({asked.sets().count, topk});
        py::array_t<std::int64_t> ids({asked.sets().count, topk});
        float* scores_data = scores.mutable_data();
        std::int64_t* ids_data = ids.mutable_data();
        {
            const py::gil_scoped_release unlocked;
            int8_search(asked.sets(), choice.view(), similarity, int8_kernel(kernel), threads, topk,
                        ordered, scores_data, ids_data);
        }
        return py::make_tuple(scores, ids);
    }

    py::tuple search_exactly(const py::object& sketches, const py::object& queries,
                             const py::object& gallery, std::int64_t depth, std::int64_t topk,
                             const py::kwargs& keywords) {
        Options options(keywords);
        const Choice choice(*this, options);
        const Call call(queries, gallery, options, Allowed::any_type_any_layout);
        if (call.gallery().count != codes_.count) {
            throw py::value_error("gallery: got " + std::to_string(call.gallery().count) +
                                  " sets, expected " + std::to_string(codes_.count));
        }
        Sets asked = call.queries();
        if (asked.offsets) throw py::value_error("queries: got packed ones, expected (B, K, D)");
        const std::int64_t count = asked.count;
        asked.values = piece<float>("sketches", sketches, {count, asked.elements, codes_.dim});
        asked.element_stride = asked.dim = codes_.dim;
        asked.set_stride = asked.elements * asked.dim;
        depth = count_argument("depth", depth, codes_.count, "the number of gallery sets");
        topk = count_argument("topk", topk, depth, "the depth");
        py::array_t<float> scores({count, topk});
        py::array_t<std::int64_t> ids({count, topk}), found(count);
        float* scores_data = scores.mutable_data();
        std::int64_t *ids_data = ids.mutable_data(), *found_data = found.mutable_data();
        {
            const py::gil_scoped_release unlocked;
            std::vector<std::int64_t> listed(static_cast<std::size_t>(count * depth));
            std::vector<float> all(listed.size());
            int8_search(asked, choice.view(), call.similarity, int8_kernel(call.kernel),
                        call.threads, depth, false, all.data(), listed.data());
            best_candidates(call.queries(), call.gallery(), {listed.data(), depth}, call.similarity,
                            call.kernel, call.threads, topk, scores_data, ids_data);
            for (std::int64_t q = 0; q < count; ++q) {
                const auto* row = listed.data() + q * depth;
                found_data[q] = depth - std::count(row, row + depth, -1);
            }
        }
        return py::make_tuple(scores, ids, found);
    }

private:
    // What a search looks at: the options excluded and probe.
    class Choice {
    public:
        Choice(const Int8Gallery& gallery, Options& options)
            : excluded_(options.take<py::object>("excluded", py::none()), gallery.codes_.count),
              probe_(options.take<std::optional<std::int64_t>>("probe", std::nullopt)),
              cells_(gallery.cells_for(probe_)),
              view_{&gallery.codes_, gallery.order_, probe_ ? &cells_ : nullptr,
                    excluded_.bits()} {}
        Choice(const Choice&) = delete;  // it looks at itself
        const LaneGallery& view() const { return view_; }

    private:
        const ExcludedArgument excluded_;
        const std::optional<std::int64_t> probe_;
        const Cells cells_;
        const LaneGallery view_;
    };

    std::int64_t take_even(std::int64_t slots) {
        const std::int64_t groups = (codes_.count + lane_sets - 1) / lane_sets;
        codes_.elements = std::max<std::int64_t>(1, slots / groups);
        codes_.lengths = codes_.firsts = nullptr;
        return groups * codes_.elements;
    }

    std::int64_t take_lengths(const py::object& lengths, std::int64_t slots) {
        codes_.lengths = piece<std::int64_t>("lengths", lengths, {codes_.count});
        codes_.elements = 1;
        firsts_.push_back(0);
        for (std::int64_t n = 0; n < codes_.count;) {
            std::int64_t longest = 1;
            for (const auto end = std::min(n + lane_sets, codes_.count); n < end; ++n) {
                const std::int64_t length = codes_.lengths[n];
                if (length < 1 || length > slots) {
                    throw py::value_error("lengths: got " + std::to_string(length) + " for set " +
                                          std::to_string(n) + ", expected 1 to " +
                                          std::to_string(slots) + ", the slots");
                }
                longest = std::max(longest, length);
            }
            codes_.elements = std::max(codes_.elements, longest);
            firsts_.push_back(firsts_.back() + longest);
        }
        codes_.firsts = firsts_.data();
        return firsts_.back();
    }

    void take_order(const py::object& order) {
        order_ = piece<std::int32_t>("order", order, {codes_.count});
        std::vector<bool> seen(static_cast<std::size_t>(codes_.count));
        for (std::int64_t n = 0; n < codes_.count; ++n) {
            const std::int64_t id = order_[n];
            if (id < 0 || id >= codes_.count || seen[static_cast<std::size_t>(id)]) {
                throw py::value_error("order: got " + std::to_string(id) + " at place " +
                                      std::to_string(n) + ", expected each of 0 to " +
                                      std::to_string(codes_.count - 1) + " once");
            }
            seen[static_cast<std::size_t>(id)] = true;
        }
    }

    void take_cells(const py::object& leaders, const py::object& begins) {
        if (!py::isinstance<Int8Gallery>(leaders)) {
            throw py::type_error("leaders: got " + text(py::type::of(leaders)) +
                                 ", expected an Int8Gallery");
        }
        const auto& found = leaders.cast<const Int8Gallery&>();
        leaders_ = &found.codes_;
        if (leaders_->dim != codes_.dim) {
            throw py::value_error("leaders: got D=" + std::to_string(leaders_->dim) +
                                  ", expected " + std::to_string(codes_.dim));
        }
        begins_ = piece<std::int64_t>("begins", begins, {leaders_->count + 1});
        bool ascending = begins_[0] == 0 && begins_[leaders_->count] == codes_.count;
        for (std::int64_t cell = 0; ascending && cell < leaders_->count; ++cell) {
            ascending = begins_[cell] <= begins_[cell + 1];
        }
        if (!ascending) {
            throw py::value_error("begins: expected numbers that ascend from 0 to " +
                                  std::to_string(codes_.count));
        }
    }

    Cells cells_for(const std::optional<std::int64_t>& probe) const {
        if (!probe) return {};
        if (!leaders_) throw py::value_error("probe: the gallery has no cells");
        if (*probe < 1) {
            throw py::value_error("probe: got " + std::to_string(*probe) +
                                  ", expected at least 1");
        }
        return {leaders_, begins_, std::min(*probe, leaders_->count)};
    }

    const py::object arrays_[6];  // whose memory this looks at
    std::vector<std::int64_t> firsts_;
    LaneCodes codes_;
    const std::int32_t* order_ = nullptr;
    const LaneCodes* leaders_ = nullptr;
    const std::int64_t* begins_ = nullptr;
};

}  // namespace

void define_int8_gallery(py::module_& module) {
    using namespace py::literals;
    py::class_<Int8Gallery>(module, "Int8Gallery")
        .def(py::init<const py::object&, const py::object&, std::int64_t, std::int64_t,
                      const py::object&, const py::object&, const py::object&,
                      const py::object&>(),
             "codes"_a, "scales"_a, "sets"_a, "dim"_a, "lengths"_a = py::none(),
             "order"_a = py::none(), "leaders"_a = py::none(), "begins"_a = py::none())
        .def("search", &Int8Gallery::search, "queries"_a, "topk"_a)
        .def("search_exactly", &Int8Gallery::search_exactly, "sketches"_a, "queries"_a, "gallery"_a,
             "depth"_a, "topk"_a);
}

}  // namespace divse
