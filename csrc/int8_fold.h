// From tiles of cosines to the scores of a few gallery sets, one a lane, with all queries of a
// block. V is the register type of floats (see avx2.cpp).
#pragma once

#include "fold.h"
#include "int8_kernel.h"
#include "sets_access.h"

namespace divse {

struct Range {
    std::int64_t begin, end;
};

// Rows of a tile: what is past the last query row is multiplied, and never read.
static inline std::int64_t tile_rows(Range x) {
    const std::int64_t rows = x.end - x.begin;
    return rows <= 2 ? rows : (rows + code_rows - 1) / code_rows * code_rows;
}

// Smooth-Chamfer of sets that are all of one size, from their sums: constants are made once.
template <class V>
class UniformScore {
    using F = typename V::F;

public:
    UniformScore(const Terms& terms, std::int64_t a, std::int64_t b)
        : a_(a), b_(b), a_share_(0.5f / (terms.scale * static_cast<float>(a))),
          b_share_(0.5f / (terms.scale * static_cast<float>(b))) {
        if (!terms.log_mean) return;
        const double sizes = __builtin_log2(double(a)) + __builtin_log2(double(b));
        constant_ = static_cast<float>(-0.5 * sizes / terms.scale);
    }

    // NaN where a sum left its range.
    F operator()(const Sums& sums) const {
        const F first = V::load(sums.a);
        Logs a{{}, first, first};
        a.add(sums.a, a_);
        F score;
        if (a_ == b_) {  // equal shares: one logarithm for both
            a.add(sums.b, b_);
            score = V::fma(a.sum.total(), V::broadcast(a_share_), V::broadcast(constant_));
        } else {
            Logs b{{}, a.low, a.high};
            b.add(sums.b, b_);
            a.low = b.low, a.high = b.high;
            score = V::fma(a.sum.total(), V::broadcast(a_share_), V::broadcast(constant_));
            score = V::fma(b.sum.total(), V::broadcast(b_share_), score);
        }
        const auto sound = V::both(V::less(V::broadcast(0x1p-90f), a.low),
                                   V::less(a.high, V::broadcast(0x1p126f)));
        return V::select(sound, score, V::broadcast(__builtin_nanf("")));
    }

private:
    struct Logs {
        LogSum<V> sum;
        F low, high;

        void add(const float* values, std::int64_t count) {
            for (std::int64_t i = 0; i < count; ++i) {
                const F x = V::load(values + i * V::width);
                low = V::min(low, x);
                high = V::max(high, x);
                sum.add(x);
            }
        }
    };

    const std::int64_t a_, b_;
    const float a_share_, b_share_;
    float constant_ = 0;
};

// Adds a block of cosines, [element][row] in registers, to the running sums of `Elements` elements
// and `Rows` rows.
template <class V, int Elements, int Rows, class Combine>
[[gnu::always_inline]] inline void add_block(const typename V::F* cosines, float* elements,
                                             float* rows, Combine combine) {
    typename V::F columns[Rows];
#pragma GCC unroll 4
    for (int e = 0; e < Elements; ++e) {
        const auto first = combine.value(cosines[e * Rows]);
        auto total = first;
        columns[0] = e == 0 ? first : combine.combine(columns[0], first);
#pragma GCC unroll 4
        for (int r = 1; r < Rows; ++r) {
            const auto x = combine.value(cosines[e * Rows + r]);
            total = combine.combine(total, x);
            columns[r] = e == 0 ? x : combine.combine(columns[r], x);
        }
        float* sum = elements + e * V::width;
        V::store(sum, combine.combine(V::load(sum), total));
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
        float* sum = rows + r * V::width;
        V::store(sum, combine.combine(V::load(sum), columns[r]));
    }
}

template <class V>
class CodeFold {
public:
    // counts: elements of the sets, one a lane
    CodeFold(const CodeBlock& block, const Terms& terms, const CodeScratch& scratch,
             const std::int64_t* counts)
        : CodeFold(block, terms, scratch, 1) {
        shortest_ = counts[0];
        for (int lane = 0; lane < V::width; ++lane) {
            lengths_[lane] = static_cast<float>(counts[lane]);
            longest_ = most(longest_, counts[lane]);
            shortest_ = least(shortest_, counts[lane]);
        }
    }
    // count: elements of each set
    CodeFold(const CodeBlock& block, const Terms& terms, const CodeScratch& scratch,
             std::int64_t count)
        : block_(block), terms_(terms), scratch_(scratch), exp2_(terms.scale),
          rows_(block.count * block.elements), longest_(count), shortest_(count) {
        V::store(lengths_, V::broadcast(static_cast<float>(count)));
    }

    std::int64_t longest() const { return longest_; }
    bool is_uniform() const { return longest_ == shortest_; }
    const Exp2<V>& exp2() const { return exp2_; }

    // Scores at q * stride + lane. `fill(elements, rows)` puts the cosines of a tile into the
    // scratch, [element][tile_rows(rows)][lane].
    template <class Fill>
    void run(float* out, std::int64_t stride, const Fill& fill) const {
        if (!score(terms_.path, out, stride, fill)) mend(out, stride, fill);
    }

    // Scores the lanes again whose sums left their range.
    template <class Fill>
    void mend(float* out, std::int64_t stride, const Fill& fill) const {
        if (terms_.path == Path::sums) score(Path::shifted, out, stride, fill);
    }

    // Scores where all sets of the lanes are of one size, not for the shifted path: `add(q, sums,
    // combine)` adds all cosines with query q to its sums. False if a score was left as NaN.
    template <class Exp, class Add>
    bool run_uniform(float* out, std::int64_t stride, const Exp& exp2, const Add& add) const {
        bool sound = true;
        for (std::int64_t q = 0; q < block_.count; ++q) {
            const Path path = terms_.path;
            begin<V>(sums(q), longest_, block_.counts[q], path);
            if (path == Path::sums) {
                add(q, sums(q), AddExponentials<V, Exp>{exp2});
                sound &= store_smooth(q, out + q * stride);
            } else {
                add(q, sums(q), KeepLargest<V>{});
                sound &= store(q, path, out + q * stride);
            }
        }
        return sound;
    }

private:
    bool store_smooth(std::int64_t q, float* out) const {
        const auto scores = UniformScore<V>(terms_, longest_, block_.counts[q])(sums(q));
        V::store(out, scores);
        return V::all(V::less(scores, V::broadcast(__builtin_inff())));
    }

    template <class Fill>
    bool score(Path path, float* out, std::int64_t stride, const Fill& fill) const {
        for (std::int64_t q = 0; q < block_.count; ++q) {
            begin<V>(sums(q), longest_, block_.counts[q], path);
        }
        for (std::int64_t j = 0; j < longest_; j += tile_elements) {
            const Range elements{j, least(j + tile_elements, longest_)};
            for (std::int64_t x = 0; x < rows_; x += tile_vectors) {
                const Range rows{x, least(x + tile_vectors, rows_)};
                fill(elements, rows);
                fold_all(elements, rows, path);
            }
        }
        bool sound = true;
        for (std::int64_t q = 0; q < block_.count; ++q) sound &= store(q, path, out + q * stride);
        return sound;
    }

    void fold_all(Range j, Range x, Path path) const {
        const std::int64_t k = block_.elements, row = tile_rows(x) * V::width;
        for (std::int64_t q = x.begin / k; q * k < x.end; ++q) {
            const std::int64_t from = most(q * k, x.begin);
            const std::int64_t to = least(q * k + block_.counts[q], x.end);
            if (to <= from) continue;
            const float* cosines = scratch_.cosines + (from - x.begin) * V::width;
            const Grid grid{cosines,      row,             V::width, j.begin,
                            from - q * k, j.end - j.begin, to - from};
            fold<V>(grid, V::load(lengths_), shortest_ < longest_, path, sums(q), exp2_);
        }
    }

    bool store(std::int64_t q, Path path, float* out) const {
        float scores[V::width];
        const Folded<V> folded{sums(q), longest_, block_.counts[q], V::load(lengths_), false};
        V::store(scores, score_of<V>(folded, terms_, path));
        bool sound = true;
        for (int lane = 0; lane < V::width; ++lane) {
            out[lane] = mended(out[lane], scores[lane], path, terms_);
            sound &= out[lane] == out[lane];
        }
        return sound;
    }

    Sums sums(std::int64_t q) const {
        const std::int64_t size = 2 * (longest_ + block_.elements) * V::width;
        return sums_at(scratch_.sums + q * size, longest_, block_.counts[q], V::width);
    }

    const CodeBlock& block_;
    const Terms& terms_;
    const CodeScratch& scratch_;
    const Exp2<V> exp2_;
    const std::int64_t rows_;
    std::int64_t longest_, shortest_;
    float lengths_[V::width];
};

}  // namespace divse
