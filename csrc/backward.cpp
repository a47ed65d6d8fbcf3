// Gradients. The similarity is symmetric, so the side that fills the lanes better goes in lanes
// (x below), the other is the dense side (y). Blocks of x by blocks of y, one after another; in a
// block all threads first compute the weights W [y element][x vector][lane], then both products:
//
//     grad_x = sum_y W y,   grad_y = sum_x W x
//
// The cosines are computed again, or copied where the forward pass kept them.
// Every element of a result is summed by one thread in one order: no atomics, and the same bits
// for any number of threads. Of all pairs of elements only one block is ever stored.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "dense.h"
#include "parallel.h"
#include "sets_access.h"
#include "similarity.h"
#include "workspace.h"

namespace divse {

namespace {

using Index = std::int64_t;

constexpr Index block_columns = 1024;  // x elements, lanes included, of a block of weights
constexpr Index block_rows = 1024;     // y elements of it; one set and one group at the least

// A run of whole y sets.
struct Run {
    Index first, last, row;  // sets, and the dense row of the first element
};

// One side of the problem and where its gradient goes, (count, elements, dim).
struct Side {
    Sets sets;
    float* grad;
    bool of_queries;
};

class Backward {
public:
    Backward(Side x, Side y, const GradScores& grad_scores, const Cosines& kept,
             const Similarity& similarity, const Kernel& kernel, int threads)
        : x_(x), y_(y), grad_scores_(grad_scores), kept_(kept), kernel_(kernel),
          threads_(threads),
          terms_(terms_of({similarity.measure, similarity.alpha, true},
                          std::max(x.sets.elements, y.sets.elements))),
          dense_y_(number_y_rows(), y.sets.dim, kernel.width) {
        for (Index n = 0; n < y.sets.count; ++n) {
            for (Index j = 0; j < length_of(y.sets, n); ++j) {
                dense_y_.put(y_row_[at(n)] + j, element_at(y.sets, n, j));
            }
        }
    }

    // Returns sum of grad * (sum_ij w_ij c_ij - SC with log_mean).
    double run() {
        const Index groups = std::max<Index>(1, block_columns / (x_.sets.elements * kernel_.width));
        const Index queries = groups * kernel_.width;
        double moment = 0;
        for (Index q = 0; q < x_.sets.count; q += queries) {
            moment += x_block(q, std::min(queries, x_.sets.count - q));
        }
        for (Index n = 0; n < y_.sets.count; ++n) {
            for (Index j = 0; j < length_of(y_.sets, n); ++j) {
                float* out = y_.grad + (n * y_.sets.elements + j) * y_.sets.dim;
                dense_y_.take_grad(y_row_[at(n)] + j, out);
            }
        }
        return moment;
    }

private:
    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

    Index number_y_rows() {
        Index rows = 0;
        for (Index n = 0; n < y_.sets.count; ++n) {
            y_row_.push_back(rows);
            rows += length_of(y_.sets, n);
        }
        y_row_.push_back(rows);
        return rows;
    }

    // Whole sets of first..last in runs of at most `rows` elements, or of one longer set.
    std::vector<Run> runs(Index first, Index last, Index rows) const {
        std::vector<Run> found;
        for (Index n = first; n < last;) {
            const Index row = y_row_[at(n)];
            Index end = n + 1;
            while (end < last && y_row_[at(end + 1)] - row <= rows) ++end;
            found.push_back({n, end, row});
            n = end;
        }
        return found;
    }

    // Column of x element (q, k) in the weights: lanes are queries.
    Index column(Index q, Index k) const {
        return (q / kernel_.width * x_.sets.elements + k) * kernel_.width + q % kernel_.width;
    }

    double x_block(Index first, Index count) {
        const PackedQueries packed(x_.sets, first, count, true, kernel_, x_.of_queries);
        const Index columns = packed.block().groups * x_.sets.elements * kernel_.width;
        Dense dense_x(columns, x_.sets.dim, kernel_.width);
        for (Index q = 0; q < count; ++q) {
            for (Index k = 0; k < length_of(x_.sets, first + q); ++k) {
                dense_x.put(column(q, k), element_at(x_.sets, first + q, k));
            }
        }
        double moment = 0;
        for (const Run& run : runs(0, y_.sets.count, block_rows)) {
            const Weights weights(y_row_[at(run.last)] - run.row, columns);
            moment += weigh(packed.block(), run, weights);
            multiply(weights, dense_x, dense_y_, run.row, kernel_, threads_);
        }
        for (Index q = 0; q < count; ++q) {
            for (Index k = 0; k < x_.sets.elements; ++k) {
                float* out = x_.grad + ((first + q) * x_.sets.elements + k) * x_.sets.dim;
                dense_x.take_grad(column(q, k), out);
            }
        }
        return moment;
    }

    double weigh(const QueryBlock& block, const Run& run, const Weights& weights) const {
        const std::vector<Run> parts = runs(run.first, run.last, tile_elements);
        std::vector<double> moments(parts.size());
        parallel_for(static_cast<Index>(parts.size()), threads_, [&](Index task) {
            const Run& part = parts[at(task)];
            float* out = weights.row(part.row - run.row);
            moments[at(task)] = weigh_part(block, part, out, weights.stride);
        });
        return std::accumulate(moments.begin(), moments.end(), 0.0);
    }

    double weigh_part(const QueryBlock& block, const Run& part, float* out, Index stride) const {
        if (kept_.values) {
            copy_kept(block, part, out, stride);
        } else {
            std::vector<const float*> rows;
            for (Index r = part.row; r < y_row_[at(part.last)]; ++r) {
                rows.push_back(dense_y_.values.data() + r * dense_y_.stride);
            }
            kernel_.multiply(block, rows.data(), static_cast<Index>(rows.size()), out, stride);
        }
        std::vector<Index> counts;
        for (Index n = part.first; n < part.last; ++n) counts.push_back(length_of(y_.sets, n));
        const std::vector<float> grads =
            grads_in_lanes(block, grad_scores_, kernel_.width, part.first, part.last);
        const Workspace workspace(kernel_, 1, block.elements, y_.sets.elements, block.dim);
        const DenseSets sets{counts.data(), part.last - part.first};
        return kernel_.weigh(block, sets, terms_, grads.data(), out, stride, workspace.scratch());
    }

    void copy_kept(const QueryBlock& block, const Run& part, float* out, Index stride) const {
        const Index columns = block.groups * block.elements * kernel_.width;
        for (Index n = part.first; n < part.last; ++n) {
            const float* from = kept_.values + n * y_.sets.elements * kept_.stride +
                                block.first * block.elements;
            for (Index j = 0; j < length_of(y_.sets, n); ++j, out += stride) {
                std::copy_n(from + j * kept_.stride, columns, out);
            }
        }
    }

    const Side x_, y_;
    const GradScores grad_scores_;  // query_stride moves along x
    const Cosines kept_;
    const Kernel& kernel_;
    const int threads_;
    const Terms terms_;
    std::vector<Index> y_row_;  // (sets + 1,) dense row of every set's first element
    Dense dense_y_;
};

// Lanes for each set: 1 if no lane stays empty.
double lanes_a_set(Index count, Index width) {
    return double((count + width - 1) / width * width) / double(count);
}

// sum of grad * (ln K + ln L) / (2 alpha): what log_mean takes off the scores.
double sizes_moment(const Sets& queries, const Sets& gallery, double alpha,
                    const GradScores& grads) {
    std::vector<double> logs;
    for (Index n = 0; n < gallery.count; ++n) logs.push_back(std::log(length_of(gallery, n)));
    double moment = 0;
    for (Index q = 0; q < queries.count; ++q) {
        const double log_k = std::log(length_of(queries, q));
        for (Index n = 0; n < gallery.count; ++n) {
            const float grad = grads.values[q * grads.query_stride + n * grads.gallery_stride];
            moment += grad * (log_k + logs[static_cast<std::size_t>(n)]);
        }
    }
    return moment / (2 * alpha);
}

}  // namespace

double backward(const Sets& queries, const Sets& gallery, Similarity similarity,
                const Kernel& kernel, int threads, const GradScores& grad_scores,
                const Cosines& kept, float* grad_queries, float* grad_gallery) {
    Side x{queries, grad_queries, true}, y{gallery, grad_gallery, false};
    for (const Side& side : {x, y}) {
        std::fill_n(side.grad, side.sets.count * side.sets.elements * side.sets.dim, 0.0f);
    }
    if (queries.count == 0 || gallery.count == 0) return 0;
    GradScores grads = grad_scores;
    const bool gallery_fits_better =
        lanes_a_set(gallery.count, kernel.width) < lanes_a_set(queries.count, kernel.width);
    if (gallery_fits_better && !kept.values) {
        std::swap(grads.query_stride, grads.gallery_stride);
        std::swap(x, y);
    }
    threads = worthwhile_threads(thread_count(threads), 3 * multiply_adds(queries, gallery));
    double moment = Backward(x, y, grads, kept, similarity, kernel, threads).run();
    if (similarity.measure != Measure::smooth_chamfer) return 0;
    if (!similarity.log_mean) {
        moment -= sizes_moment(queries, gallery, similarity.alpha, grad_scores);
    }
    return moment / similarity.alpha;
}

}  // namespace divse
