// Every query with its own candidates; an aligned pair is a query with one candidate.
//
// Gradients: of one query all candidates go in lanes (x) and its elements are the dense side (y), as
// in backward.cpp. A gallery set may be a candidate of many queries, so queries are taken in waves:
// gradients of a wave are computed in parallel into memory of their own, then added, each gallery
// set by one thread in the order of the queries.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "dense.h"
#include "parallel.h"
#include "sets_access.h"
#include "similarity.h"
#include "workspace.h"

namespace divse {

namespace {

using Index = std::int64_t;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// The real candidates of one query: their ids, and where in its row they stand.
struct Listed {
    std::vector<Index> ids, places;

    Listed(const Candidates& candidates, Index query) {
        const Index* row = candidates.ids + query * candidates.count;
        for (Index m = 0; m < candidates.count; ++m) {
            if (row[m] < 0) continue;
            ids.push_back(row[m]);
            places.push_back(m);
        }
    }

    Index count() const { return static_cast<Index>(ids.size()); }

    Sets of(const Sets& gallery) const {
        Sets sets = gallery;
        sets.ids = ids.data();
        sets.count = count();
        return sets;
    }
};

double work_of(const Sets& queries, const Sets& gallery, const Candidates& candidates) {
    Sets each = gallery;
    each.count = candidates.count;
    return multiply_adds(queries, each);
}

}  // namespace

void candidate_scores(const Sets& queries, const Sets& gallery, const Candidates& candidates,
                      Similarity similarity, const Kernel& kernel, int threads, float* out) {
    constexpr Index queries_of_a_task = 16;  // so that short lists share a workspace
    const Terms terms = terms_of(similarity, std::max(queries.elements, gallery.elements));
    threads = worthwhile_threads(thread_count(threads), work_of(queries, gallery, candidates));
    const Index step = candidates.count < 64 ? queries_of_a_task : 1;
    parallel_for((queries.count + step - 1) / step, threads, [&](Index task) {
        const Workspace workspace(kernel, 1, queries.elements, gallery.elements, queries.dim);
        std::vector<float> scores(at(candidates.count));
        for (Index q = task * step; q < std::min((task + 1) * step, queries.count); ++q) {
            const Listed listed(candidates, q);
            float* row = out + q * candidates.count;
            std::fill_n(row, candidates.count, -INFINITY);
            if (listed.count() == 0) continue;
            const PackedQueries packed(queries, q, 1, false, kernel);
            kernel.score(packed.block(), listed.of(gallery), 0, listed.count(), terms,
                         scores.data(), listed.count(), {nullptr, 0}, workspace.scratch());
            for (Index m = 0; m < listed.count(); ++m) row[listed.places[at(m)]] = scores[at(m)];
        }
    });
}

namespace {

// Gradients of one query and its candidates.
class Part {
public:
    Part(const Sets& queries, const Sets& gallery, const Candidates& candidates, Index query,
         const Kernel& kernel)
        : listed_(candidates, query), query_(query), length_(length_of(queries, query)),
          elements_(gallery.elements), width_(kernel.width),
          dense_x_(columns(), gallery.dim, width_), dense_y_(length_, gallery.dim, width_) {
        const Sets sets = listed_.of(gallery);
        for (Index i = 0; i < length_; ++i) dense_y_.put(i, element_at(queries, query, i));
        for (Index m = 0; m < listed_.count(); ++m) {
            for (Index j = 0; j < length_of(sets, m); ++j) {
                dense_x_.put(column(m, j), element_at(sets, m, j));
            }
        }
    }

    // Returns the sum of grad * (sum_ij w_ij c_ij - S with log_mean).
    double run(const Sets& gallery, const Kernel& kernel, const Terms& terms,
               const GradScores& grad_scores) {
        if (listed_.count() == 0) return 0;
        const PackedQueries packed(listed_.of(gallery), 0, listed_.count(), true, kernel, false);
        const Weights weights(length_, columns());
        std::vector<const float*> rows;
        for (Index i = 0; i < length_; ++i) {
            rows.push_back(dense_y_.values.data() + i * dense_y_.stride);
        }
        kernel.multiply(packed.block(), rows.data(), length_, weights.row(0), weights.stride);
        std::vector<float> own(at(listed_.count()));
        for (Index m = 0; m < listed_.count(); ++m) own[at(m)] = grad_of(grad_scores, m);
        const std::vector<float> grads =
            grads_in_lanes(packed.block(), {own.data(), 1, 0}, width_, 0, 1);
        const Workspace workspace(kernel, 1, elements_, length_, gallery.dim);
        const double moment = kernel.weigh(packed.block(), {&length_, 1}, terms, grads.data(),
                                           weights.row(0), weights.stride, workspace.scratch());
        multiply(weights, dense_x_, dense_y_, 0, kernel, 1);
        return moment;
    }

    // sum of grad * (ln K + ln L): what log_mean takes off the scores, times 2 alpha.
    double sizes_moment(const Sets& gallery, const GradScores& grad_scores) const {
        double moment = 0;
        for (Index m = 0; m < listed_.count(); ++m) {
            const double length = double(length_of(gallery, listed_.ids[at(m)]));
            moment += grad_of(grad_scores, m) * std::log(length * double(length_));
        }
        return moment;
    }

    void take_query(float* grad_queries, Index elements) const {
        for (Index i = 0; i < length_; ++i) {
            dense_y_.take_grad(i, grad_queries + (query_ * elements + i) * dense_y_.dim);
        }
    }

    // Adds the gradients of the gallery sets whose id is `remainder` modulo `modulus`.
    void add_gallery(const Sets& gallery, float* grad_gallery, Index modulus,
                     Index remainder) const {
        for (Index m = 0; m < listed_.count(); ++m) {
            const Index n = listed_.ids[at(m)];
            if (n % modulus != remainder) continue;
            for (Index j = 0; j < length_of(gallery, n); ++j) {
                float* out = grad_gallery + (n * elements_ + j) * dense_x_.dim;
                const float* grad = dense_x_.grads.data() + column(m, j) * dense_x_.stride;
                for (Index d = 0; d < dense_x_.dim; ++d) out[d] += grad[d];
            }
        }
    }

private:
    Index columns() const { return (listed_.count() + width_ - 1) / width_ * width_ * elements_; }

    Index column(Index m, Index j) const {
        return (m / width_ * elements_ + j) * width_ + m % width_;
    }

    float grad_of(const GradScores& grads, Index m) const {
        return grads.values[query_ * grads.query_stride +
                            listed_.places[at(m)] * grads.gallery_stride];
    }

    const Listed listed_;
    const Index query_, length_, elements_, width_;
    Dense dense_x_, dense_y_;
};

}  // namespace

double candidate_backward(const Sets& queries, const Sets& gallery, const Candidates& candidates,
                          Similarity similarity, const Kernel& kernel, int threads,
                          const GradScores& grad_scores, float* grad_queries,
                          float* grad_gallery) {
    constexpr Index floats_of_a_wave = 1 << 23;
    std::fill_n(grad_queries, queries.count * queries.elements * queries.dim, 0.0f);
    std::fill_n(grad_gallery, gallery.count * gallery.elements * gallery.dim, 0.0f);
    const Terms terms = terms_of({similarity.measure, similarity.alpha, true},
                                 std::max(queries.elements, gallery.elements));
    threads = worthwhile_threads(thread_count(threads), 3 * work_of(queries, gallery, candidates));
    const Index lanes = (candidates.count + kernel.width - 1) / kernel.width * kernel.width;
    const Index floats = 3 * lanes * gallery.elements * (gallery.dim + kernel.width) + 1;
    const Index wave = std::max<Index>(threads, floats_of_a_wave / floats);
    std::vector<double> moments(at(queries.count)), sizes(at(queries.count));
    for (Index first = 0; first < queries.count; first += wave) {
        const Index count = std::min(wave, queries.count - first);
        std::vector<std::unique_ptr<Part>> parts(at(count));
        parallel_for(count, threads, [&](Index i) {
            const Index q = first + i;
            auto part = std::make_unique<Part>(queries, gallery, candidates, q, kernel);
            moments[at(q)] = part->run(gallery, kernel, terms, grad_scores);
            sizes[at(q)] = part->sizes_moment(gallery, grad_scores);
            part->take_query(grad_queries, queries.elements);
            parts[at(i)] = std::move(part);
        });
        parallel_for(threads, threads, [&](Index thread) {
            for (const auto& part : parts) {
                part->add_gallery(gallery, grad_gallery, threads, thread);
            }
        });
    }
    if (similarity.measure != Measure::smooth_chamfer) return 0;
    double moment = std::accumulate(moments.begin(), moments.end(), 0.0);
    if (!similarity.log_mean) {
        moment -= std::accumulate(sizes.begin(), sizes.end(), 0.0) / (2 * similarity.alpha);
    }
    return moment / similarity.alpha;
}

}  // namespace divse
