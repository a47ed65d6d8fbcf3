// Every query with its own candidates; an aligned pair is a query with one candidate.
//
// Gradients: of one query the candidates are x and its elements y, as in backward.cpp; cosines and
// weights stand in dense columns for the products, and are moved into lanes to be weighed, so that
// a query with one candidate does not pay for a register full of them.
// A gallery set may be a candidate of many queries, so queries are taken in waves:
// gradients of a wave are computed in parallel into memory of their own, then added, each gallery
// set by one thread in the order of the queries.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "dense.h"
#include "parallel.h"
#include "sets_access.h"
#include "similarity.h"
#include "topk.h"
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

// Queries that share a workspace: one each, unless their lists are short.
Index queries_of_a_task(const Candidates& candidates) { return candidates.count < 64 ? 16 : 1; }

// Asks for the elements of the sets first.. of a list. They lie anywhere in the gallery, so that
// nobody else fetches them in time.
void fetch(const Sets& listed, Index first, Index count) {
    constexpr Index line = 64, most_bytes = 4096;  // of a set
    for (Index n = first; n < first + count; ++n) {
        const char* set = first_of(listed, n);
        const Index bytes = std::min(length_of(listed, n) * step_of(listed), most_bytes);
        for (Index i = 0; i < bytes; i += line) __builtin_prefetch(set + i);
    }
}

// One query and its list, and the scores of the list.
class ListedScores {
public:
    ListedScores(const Sets& queries, const Sets& gallery, const Candidates& candidates, Index query,
                 const Terms& terms, const Kernel& kernel)
        : listed_(candidates, query), sets_(listed_.of(gallery)),
          packed_(queries, query, 1, false, kernel), terms_(terms), kernel_(kernel),
          scores_(at(sets_.count)) {}

    Index count() const { return sets_.count; }

    // Those first..last-1 of the list.
    void score(Index first, Index last, const Scratch& scratch) {
        constexpr Index step = 16;  // sets that are fetched while as many are scored
        fetch(sets_, first, std::min(step, last - first));
        for (Index n = first; n < last; n += step) {
            fetch(sets_, n + step, std::min(step, last - n - step));
            kernel_.score(packed_.block(), sets_, n, std::min(n + step, last), terms_,
                          scores_.data() + n, count(), {nullptr, 0}, scratch);
        }
    }

    // All scores, where the candidates stand in their row.
    void write(float* row) const {
        for (Index m = 0; m < count(); ++m) row[listed_.places[at(m)]] = scores_[at(m)];
    }

private:
    const Listed listed_;
    const Sets sets_;
    const PackedQueries packed_;
    const Terms& terms_;
    const Kernel& kernel_;
    std::vector<float> scores_;
};

}  // namespace

void candidate_scores(const Sets& queries, const Sets& gallery, const Candidates& candidates,
                      Similarity similarity, const Kernel& kernel, int threads, float* out) {
    constexpr Index part = 128;  // of a long list, for one thread
    const Terms terms = terms_of(similarity, std::max(queries.elements, gallery.elements));
    threads = worthwhile_threads(thread_count(threads), work_of(queries, gallery, candidates));
    const Index step = queries_of_a_task(candidates), width = candidates.count;
    const Index tasks = (queries.count + step - 1) / step;
    const bool shared = tasks < threads && width > part;  // all threads work on one query
    std::fill_n(out, queries.count * width, -INFINITY);
    const auto workspace = [&] {
        return Workspace(kernel, 1, queries.elements, gallery.elements, queries.dim);
    };
    const auto listed = [&](Index q) {
        return ListedScores(queries, gallery, candidates, q, terms, kernel);
    };
    if (!shared) {
        parallel_for(tasks, threads, [&](Index task) {
            const Workspace own = workspace();
            for (Index q = task * step; q < std::min((task + 1) * step, queries.count); ++q) {
                ListedScores list = listed(q);
                list.score(0, list.count(), own.scratch());
                list.write(out + q * width);
            }
        });
        return;
    }
    for (Index q = 0; q < queries.count; ++q) {
        ListedScores list = listed(q);
        run_workers((list.count() + part - 1) / part, threads, [&](OwnTasks& left) {
            const Workspace own = workspace();
            for (Index task; left.take(task);) {
                list.score(task * part, std::min((task + 1) * part, list.count()), own.scratch());
            }
        });
        list.write(out + q * width);
    }
}

void best_candidates(const Sets& queries, const Sets& gallery, const Candidates& candidates,
                     Similarity similarity, const Kernel& kernel, int threads, Index topk,
                     float* out_scores, Index* out_ids) {
    const Index width = candidates.count;
    std::vector<float> all(at(queries.count * width));
    candidate_scores(queries, gallery, candidates, similarity, kernel, threads, all.data());
    for (Index q = 0; q < queries.count; ++q) {
        TopK best(topk);
        for (Index m = q * width; m < (q + 1) * width; ++m) {
            if (candidates.ids[m] >= 0) best.offer({all[at(m)], candidates.ids[m]});
        }
        best.write(out_scores + q * topk, out_ids + q * topk);
    }
}

namespace {

// Gradients of one query and its candidates.
class Part {
public:
    Part(const Sets& queries, const Sets& gallery, const Candidates& candidates, Index query,
         const Kernel& kernel)
        : listed_(candidates, query), query_(query), length_(length_of(queries, query)),
          elements_(gallery.elements), kernel_(kernel),
          dense_x_(listed_.count() * elements_, gallery.dim, kernel.width),
          dense_y_(length_, gallery.dim, kernel.width) {
        for (Index i = 0; i < length_; ++i) dense_y_.put(i, element_at(queries, query, i));
        for (Index m = 0; m < listed_.count(); ++m) {
            const Index n = listed_.ids[at(m)];
            for (Index j = 0; j < length_of(gallery, n); ++j) {
                dense_x_.put(m * elements_ + j, element_at(gallery, n, j));
            }
        }
    }

    // Returns the sum of grad * (sum_ij w_ij c_ij - S with log_mean).
    double run(const Sets& gallery, const Terms& terms, const GradScores& grad_scores,
               const Scratch& scratch) {
        if (listed_.count() == 0) return 0;
        const Weights weights(length_, listed_.count() * elements_);
        compute_cosines(weights);
        const Index groups = (listed_.count() + kernel_.width - 1) / kernel_.width;
        const Weights lanes(length_, groups * elements_ * kernel_.width);
        std::fill_n(lanes.row(0), lanes.rows * lanes.stride, 0.0f);
        move(weights, lanes, [](float& dense, float& lane) { lane = dense; });
        const double moment = weigh(gallery, terms, grad_scores, lanes, groups, scratch);
        move(weights, lanes, [](float& dense, float& lane) { dense = lane; });
        multiply(weights, dense_x_, dense_y_, 0, kernel_, 1);
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
                const float* grad =
                    dense_x_.grads.data() + (m * elements_ + j) * dense_x_.stride;
                for (Index d = 0; d < dense_x_.dim; ++d) out[d] += grad[d];
            }
        }
    }

private:
    // Cosines [query element][candidate element].
    void compute_cosines(const Weights& out) const {
        const Index width = kernel_.width, step = kernel_.panel * width, dim = dense_x_.dim;
        const Index floats = (out.columns + step - 1) / step * step * dim;
        const Floats panels(floats);
        std::fill_n(panels.data(), floats, 0.0f);
        for (Index c = 0; c < out.columns; ++c) {
            const float* from = dense_x_.values.data() + c * dense_x_.stride;
            float* to = panels.data() + c / step * step * dim + c % step;
            for (Index d = 0; d < dim; ++d) to[d * step] = from[d];
        }
        QueryBlock block{};
        block.groups = (out.columns + width - 1) / width;
        block.elements = 1;
        block.dim = dim;
        block.values = panels.data();
        std::vector<const float*> rows;
        for (Index i = 0; i < length_; ++i) {
            rows.push_back(dense_y_.values.data() + i * dense_y_.stride);
        }
        kernel_.multiply(block, rows.data(), length_, out.row(0), out.stride);
    }

    // move_one(dense, lane) for every cosine: columns are [candidate][element] in `dense` and
    // [group][element][lane] in `lanes`.
    template <class MoveOne>
    void move(const Weights& dense, const Weights& lanes, const MoveOne& move_one) const {
        const Index width = kernel_.width;
        for (Index i = 0; i < length_; ++i) {
            for (Index m = 0; m < listed_.count(); ++m) {
                float* lane = lanes.row(i) + m / width * width * elements_ + m % width;
                float* column = dense.row(i) + m * elements_;
                for (Index j = 0; j < elements_; ++j) move_one(column[j], lane[j * width]);
            }
        }
    }

    double weigh(const Sets& gallery, const Terms& terms, const GradScores& grad_scores,
                 const Weights& lanes, Index groups, const Scratch& scratch) const {
        std::vector<float> lengths(at(groups * kernel_.width), 1.0f), grads(lengths.size(), 0.0f);
        for (Index m = 0; m < listed_.count(); ++m) {
            lengths[at(m)] = static_cast<float>(length_of(gallery, listed_.ids[at(m)]));
            grads[at(m)] = grad_of(grad_scores, m);
        }
        QueryBlock block{};
        block.groups = groups;
        block.elements = elements_;
        block.lengths = lengths.data();
        return kernel_.weigh(block, {&length_, 1}, terms, grads.data(), lanes.row(0), lanes.stride,
                             scratch);
    }

    float grad_of(const GradScores& grads, Index m) const {
        return grads.values[query_ * grads.query_stride +
                            listed_.places[at(m)] * grads.gallery_stride];
    }

    const Listed listed_;
    const Index query_, length_, elements_;
    const Kernel& kernel_;
    Dense dense_x_, dense_y_;
};

}  // namespace

double candidate_backward(const Sets& queries, const Sets& gallery, const Candidates& candidates,
                          Similarity similarity, const Kernel& kernel, int threads,
                          const GradScores& grad_scores, float* grad_queries,
                          float* grad_gallery) {
    constexpr Index floats_of_a_wave = 1 << 17;  // the next wave finds its memory in the cache
    std::fill_n(grad_queries, queries.count * queries.elements * queries.dim, 0.0f);
    std::fill_n(grad_gallery, gallery.count * gallery.elements * gallery.dim, 0.0f);
    const Terms terms = terms_of({similarity.measure, similarity.alpha, true},
                                 std::max(queries.elements, gallery.elements));
    threads = worthwhile_threads(thread_count(threads), 3 * work_of(queries, gallery, candidates));
    const Index floats = 2 * candidates.count * gallery.elements * (gallery.dim + 32) + 1;
    const Index step = queries_of_a_task(candidates);
    const Index wave = std::max<Index>(threads * step, floats_of_a_wave / floats);
    std::vector<double> moments(at(queries.count)), sizes(at(queries.count));
    for (Index first = 0; first < queries.count; first += wave) {
        const Index count = std::min(wave, queries.count - first);
        std::vector<std::unique_ptr<Part>> parts(at(count));
        parallel_for((count + step - 1) / step, threads, [&](Index task) {
            const Workspace workspace(kernel, 1, gallery.elements, queries.elements, queries.dim);
            for (Index i = task * step; i < std::min((task + 1) * step, count); ++i) {
                const Index q = first + i;
                auto part = std::make_unique<Part>(queries, gallery, candidates, q, kernel);
                moments[at(q)] = part->run(gallery, terms, grad_scores, workspace.scratch());
                sizes[at(q)] = part->sizes_moment(gallery, grad_scores);
                part->take_query(grad_queries, queries.elements);
                parts[at(i)] = std::move(part);
            }
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
