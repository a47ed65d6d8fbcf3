// Scores with lanes = queries: packed query panels times gallery elements, folded tile by tile.
#pragma once

#include <cstring>

#include "fold.h"
#include "gemm.h"
#include "kernel.h"
#include "sets_access.h"

namespace divse {

template <class V>
class PanelScorer {
    using F = typename V::F;

public:
    PanelScorer(const QueryBlock& block, const Sets& gallery, const Terms& terms,
                const Cosines& kept, const Scratch& scratch)
        : block_(block), gallery_(gallery), terms_(terms), kept_(kept), scratch_(scratch), exp2_(terms.scale),
          vectors_(block.groups * block.elements),
          rows_(reinterpret_cast<const float**>(scratch.rows)) {}

    void run(std::int64_t first, std::int64_t last, float* out, std::int64_t stride) const {
        for (std::int64_t n = first; n < last;) {
            const std::int64_t end = run_of_sets(n, last);
            float* scores = out + (n - first);
            const bool sound = tile(n, end, terms_.path, scores, stride);
            if (!sound && terms_.path == Path::sums) tile(n, end, Path::shifted, scores, stride);
            n = end;
        }
    }

private:
    // The end of the whole sets from n on that share one tile, or n + 1.
    std::int64_t run_of_sets(std::int64_t n, std::int64_t last) const {
        std::int64_t elements = length_of(gallery_, n++);
        if (vectors_ > tile_vectors) return n;
        while (n < last && (elements += length_of(gallery_, n)) <= tile_elements) ++n;
        return n;
    }

    // Scores of sets first..last; false if one was out of range and left as NaN.
    bool tile(std::int64_t first, std::int64_t last, Path path, float* out,
              std::int64_t stride) const {
        const std::int64_t length = length_of(gallery_, first);
        if (length > tile_elements || vectors_ > tile_vectors) {
            return many_tiles(first, length, path, out, stride);
        }
        std::int64_t rows = 0;
        for (std::int64_t n = first; n < last; ++n) rows = list(n, 0, length_of(gallery_, n), rows);
        multiply(rows, 0, vectors_);
        bool sound = true;
        std::int64_t row = 0;
        for (std::int64_t n = first; n < last; ++n) {
            const std::int64_t count = length_of(gallery_, n);
            begin_all(count, path);
            fold_all(row, {0, count}, {0, vectors_}, count, path);
            sound &= store_all(count, path, out + (n - first), stride);
            row += count;
        }
        return sound;
    }

    bool many_tiles(std::int64_t n, std::int64_t length, Path path, float* out,
                    std::int64_t stride) const {
        begin_all(length, path);
        for (std::int64_t j = 0; j < length; j += tile_elements) {
            const std::int64_t j_end = least(j + tile_elements, length);
            list(n, j, j_end, 0);
            for (std::int64_t v = 0; v < vectors_; v += tile_vectors) {
                const std::int64_t v_end = least(v + tile_vectors, vectors_);
                multiply(j_end - j, v, v_end);
                fold_all(0, {j, j_end}, {v, v_end}, length, path);
            }
        }
        return store_all(length, path, out, stride);
    }

    struct Range {
        std::int64_t begin, end;
    };

    // Lists elements j..j_end of set n, in fp32, from `row` on; returns the next row.
    std::int64_t list(std::int64_t n, std::int64_t j, std::int64_t j_end, std::int64_t row) const {
        for (; j < j_end; ++j, ++row) {
            rows_[row] = floats_of<V>(gallery_.element, element_of(gallery_, n, j),
                                      scratch_.widened + row * block_.dim, block_.dim);
            scratch_.places[row] = n * gallery_.elements + j;
        }
        return row;
    }

    // Cosines [row][vector][lane] of the listed rows with vectors v..v_end; v begins a panel. They
    // are kept where asked.
    void multiply(std::int64_t rows, std::int64_t v, std::int64_t v_end) const {
        const std::int64_t step = V::panel * V::width, panel = step * block_.dim;
        const Panels panels{block_.values + v / V::panel * panel, step, panel};
        const std::int64_t stride = (v_end - v) * V::width;
        gemm<V>(rows_, rows, 1, panels, v_end - v, block_.dim, scratch_.tile, stride, false);
        if (!kept_.values) return;
        const std::int64_t column = block_.first * block_.elements + v * V::width;
        for (std::int64_t r = 0; r < rows; ++r) {
            float* to = kept_.values + scratch_.places[r] * kept_.stride + column;
            std::memcpy(to, scratch_.tile + r * stride, stride * sizeof(float));
        }
    }

    // Folds tile rows from `row` on: elements `j` of one set with vectors `v` of all groups.
    void fold_all(std::int64_t row, Range j, Range v, std::int64_t length, Path path) const {
        const std::int64_t k = block_.elements, stride = (v.end - v.begin) * V::width;
        for (std::int64_t g = v.begin / k; g * k < v.end; ++g) {
            const std::int64_t from = most(g * k, v.begin), to = least((g + 1) * k, v.end);
            const float* cosines = scratch_.tile + row * stride + (from - v.begin) * V::width;
            const Grid grid{cosines,  V::width,  stride,          from - g * k,
                            j.begin, to - from, j.end - j.begin};
            fold<V>(grid, lengths(g), ragged(g), path, sums(g, length), exp2_);
        }
    }

    bool store_all(std::int64_t length, Path path, float* out, std::int64_t stride) const {
        bool sound = true;
        for (std::int64_t g = 0; g < block_.groups; ++g) {
            float scores[V::width];
            const Folded<V> folded{sums(g, length), block_.elements, length, lengths(g), true};
            V::store(scores, score_of<V>(folded, terms_, path));
            const std::int64_t lanes = least(V::width, block_.count - g * V::width);
            for (std::int64_t lane = 0; lane < lanes; ++lane) {
                float& score = out[(g * V::width + lane) * stride];
                score = mended(score, scores[lane], path, terms_);
                sound &= score == score;
            }
        }
        return sound;
    }

    void begin_all(std::int64_t length, Path path) const {
        for (std::int64_t g = 0; g < block_.groups; ++g) {
            begin<V>(sums(g, length), block_.elements, length, path);
        }
    }

    Sums sums(std::int64_t group, std::int64_t length) const {
        const std::int64_t size = 2 * (block_.elements + length) * V::width;
        return sums_at(scratch_.sums + group * size, block_.elements, length, V::width);
    }

    F lengths(std::int64_t group) const { return V::load(block_.lengths + group * V::width); }

    bool ragged(std::int64_t group) const {
        return V::any(V::less(lengths(group), V::broadcast(static_cast<float>(block_.elements))));
    }

    const QueryBlock& block_;
    const Sets& gallery_;
    const Terms& terms_;
    const Cosines& kept_;
    const Scratch& scratch_;
    const Exp2<V> exp2_;
    const std::int64_t vectors_;
    const float** const rows_;
};

}  // namespace divse
