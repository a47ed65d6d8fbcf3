// Scores with lanes = gallery sets, for a few queries: the gallery is read in place, once.
#pragma once

#include "dot.h"
#include "fold.h"
#include "gemm.h"
#include "kernel.h"
#include "sets_access.h"

namespace divse {

template <class V>
class ScanScorer {
    using F = typename V::F;

public:
    ScanScorer(const QueryBlock& block, const Sets& gallery, const Terms& terms,
               const Scratch& scratch)
        : block_(block), gallery_(gallery), terms_(terms), scratch_(scratch), exp2_(terms.scale),
          query_rows_(block.count * block.elements) {}

    void run(std::int64_t first, std::int64_t last, float* out, std::int64_t stride) const {
        for (std::int64_t n = first; n < last; n += V::width) {
            const Lanes lanes = lanes_of(n, least(V::width, last - n));
            float* scores = out + (n - first);
            const bool sound = score(lanes, terms_.path, scores, stride);
            if (!sound && terms_.path == Path::sums) score(lanes, Path::shifted, scores, stride);
        }
    }

private:
    struct Lanes {
        std::int64_t first, count, longest;
        bool ragged;
        F lengths;
    };

    Lanes lanes_of(std::int64_t first, std::int64_t count) const {
        float lengths[V::width];
        std::int64_t longest = 1, shortest = gallery_.elements;
        for (int lane = 0; lane < V::width; ++lane) {
            const std::int64_t length = lane < count ? length_of(gallery_, first + lane) : 1;
            lengths[lane] = static_cast<float>(length);
            longest = most(longest, length);
            shortest = least(shortest, length);
        }
        return {first, count, longest, shortest < longest, V::load(lengths)};
    }

    // Scores of all queries with the sets in the lanes; false if one was left as NaN.
    bool score(const Lanes& lanes, Path path, float* out, std::int64_t stride) const {
        const std::int64_t longest = lanes.longest;
        for (std::int64_t q = 0; q < block_.count; ++q) {
            begin<V>(sums(q, longest), longest, block_.counts[q], path);
        }
        for (std::int64_t j = 0; j < longest; j += tile_elements) {
            const Range elements{j, least(j + tile_elements, longest)};
            for (std::int64_t x = 0; x < query_rows_; x += tile_vectors) {
                const Range rows{x, least(x + tile_vectors, query_rows_)};
                multiply(lanes, elements, rows);
                fold_all(lanes, elements, rows, path);
            }
        }
        bool sound = true;
        for (std::int64_t q = 0; q < block_.count; ++q) {
            sound &= store(lanes, q, path, out + q * stride);
        }
        return sound;
    }

    struct Range {
        std::int64_t begin, end;
    };

    // Cosines [element of the set][query row][lane].
    void multiply(const Lanes& lanes, Range j, Range x) const {
        const Rows rows{block_.values, block_.padded_dim, x.begin, x.end - x.begin};
        if (even(lanes, x)) {
            const std::int64_t size = gallery_.element == Element::f32 ? 4 : 2;
            return dot(rows, EvenSets{first_of(gallery_, lanes.first), gallery_.set_stride * size,
                                      step_of(gallery_), lanes.longest, block_.dim});
        }
        const std::int64_t count = list(lanes, j, (x.end - x.begin) * V::width);
        if (block_.columns) return multiply_columns(count, x);
        for (int i = 0; i < row_padding; ++i) scratch_.rows[count + i] = scratch_.rows[0];
        dot(rows, Elements{scratch_.rows, scratch_.places, count, block_.dim});
    }

    // Whether small sets fill the lanes, one after another, and tiles of x query rows.
    bool even(const Lanes& lanes, Range x) const {
        const std::int64_t rows = x.end - x.begin, height = rows > 2 ? 4 : rows;
        const bool one_height = height < 4 || rows % 4 == 0 || rows % 4 == 3;
        return one_height && !block_.columns && !gallery_.ids && !gallery_.offsets &&
               !lanes.ragged && lanes.longest <= V::width && lanes.count == V::width &&
               lanes.longest % (V::width / height) == 0;
    }

    template <class Gallery>
    void dot(const Rows& rows, const Gallery& gallery) const {
        switch (gallery_.element) {
            case Element::f32: return dot_products<V, float>(rows, gallery, scratch_.tile);
            case Element::f16: return dot_products<V, Half>(rows, gallery, scratch_.tile);
            case Element::bf16: return dot_products<V, Brain>(rows, gallery, scratch_.tile);
        }
    }

    // Addresses of elements j of every lane, and their places; returns how many there are.
    std::int64_t list(const Lanes& lanes, Range j, std::int64_t row) const {
        const std::int64_t step = step_of(gallery_);
        std::int64_t count = 0;
        for (std::int64_t lane = 0; lane < lanes.count; ++lane) {
            const std::int64_t n = lanes.first + lane, end = least(j.end, length_of(gallery_, n));
            const char* address = first_of(gallery_, n) + j.begin * step;
            std::int64_t place = lane;
            for (std::int64_t i = j.begin; i < end; ++i, ++count, address += step, place += row) {
                scratch_.rows[count] = address;
                scratch_.places[count] = place;
            }
        }
        return count;
    }

    // Query rows in lanes times the listed elements, which are first read in the order of memory.
    void multiply_columns(std::int64_t count, Range x) const {
        const std::int64_t step = V::panel * V::width, dim = block_.dim, rows = x.end - x.begin;
        const std::int64_t vectors = (rows + V::width - 1) / V::width, stride = vectors * V::width;
        const Panels panels{block_.columns + x.begin / step * step * dim + x.begin % step, step,
                            step * dim};
        const float* elements[tile_elements];
        for (std::int64_t first = 0; first < count; first += tile_elements) {
            const std::int64_t some = least(tile_elements, count - first);
            for (std::int64_t e = 0; e < some; ++e) {
                float* copy = scratch_.widened + e * dim;
                copy_floats<V>(gallery_.element, scratch_.rows[first + e], copy, dim);
                elements[e] = copy;
            }
            gemm<V>(elements, some, 1, panels, vectors, dim, scratch_.products, stride, false);
            for (std::int64_t e = 0; e < some; ++e) {
                const float* from = scratch_.products + e * stride;
                float* to = scratch_.tile + scratch_.places[first + e];
                for (std::int64_t row = 0; row < rows; ++row) to[row * V::width] = from[row];
            }
        }
    }

    void fold_all(const Lanes& lanes, Range j, Range x, Path path) const {
        const std::int64_t k = block_.elements, row = (x.end - x.begin) * V::width;
        for (std::int64_t q = x.begin / k; q * k < x.end; ++q) {
            const std::int64_t from = most(q * k, x.begin);
            const std::int64_t to = least(q * k + block_.counts[q], x.end);
            if (to <= from) continue;
            const float* cosines = scratch_.tile + (from - x.begin) * V::width;
            const Grid grid{cosines,      row,               V::width, j.begin,
                            from - q * k, j.end - j.begin, to - from};
            fold<V>(grid, lanes.lengths, lanes.ragged, path, sums(q, lanes.longest), exp2_);
        }
    }

    bool store(const Lanes& lanes, std::int64_t q, Path path, float* out) const {
        float scores[V::width];
        const Folded<V> folded{sums(q, lanes.longest), lanes.longest, block_.counts[q],
                               lanes.lengths, false};
        V::store(scores, score_of<V>(folded, terms_, path));
        bool sound = true;
        for (std::int64_t lane = 0; lane < lanes.count; ++lane) {
            out[lane] = mended(out[lane], scores[lane], path, terms_);
            sound &= out[lane] == out[lane];
        }
        return sound;
    }

    Sums sums(std::int64_t q, std::int64_t longest) const {
        const std::int64_t size = 2 * (longest + block_.elements) * V::width;
        return sums_at(scratch_.sums + q * size, longest, block_.counts[q], V::width);
    }

    const QueryBlock& block_;
    const Sets& gallery_;
    const Terms& terms_;
    const Scratch& scratch_;
    const Exp2<V> exp2_;
    const std::int64_t query_rows_;
};

}  // namespace divse
