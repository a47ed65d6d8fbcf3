// Bounds of the scores of a few gallery sets, one a lane, by the codes of a few queries. V is the
// register type of floats (see avx2.cpp), I that of codes (int8_product.h), both of one width.
#pragma once

#include "int8_encode.h"
#include "int8_fold.h"
#include "int8_lanes.h"
#include "int8_product.h"

namespace divse {

static inline std::int64_t first_element(const Codes& gallery, std::int64_t n) {
    return gallery.offsets ? gallery.offsets[n] : n * gallery.elements;
}

static inline std::int64_t length_of(const Codes& gallery, std::int64_t n) {
    if (gallery.offsets) return gallery.offsets[n + 1] - gallery.offsets[n];
    return gallery.lengths ? gallery.lengths[n] : gallery.elements;
}

template <class V, class I>
class CodeScorer {
    using F = typename V::F;
    static_assert(V::width == I::width);

public:
    CodeScorer(const CodeBlock& block, const Codes& gallery, const CodeLanes& sets, int parts,
               const Terms& terms, const CodeScratch& scratch)
        : block_(block), gallery_(gallery), parts_(parts), scratch_(scratch),
          fold_(block, terms, scratch, find(sets)) {
        adjacent_ = !sets.ids && sets.count == V::width && fold_.is_uniform() &&
                    starts_[V::width - 1] - starts_[0] == (V::width - 1) * fold_.longest();
    }

    void run(float* out, std::int64_t stride) const {
        fold_.run(out, stride, [this](Range elements, Range rows) {
            if (rows.begin == 0) load_scalars(elements);
            multiply(elements, rows);
            raise_cosines(elements, rows);
        });
    }

private:
    // Where the sets begin, and how many elements each has.
    const std::int64_t* find(const CodeLanes& sets) {
        for (int lane = 0; lane < V::width; ++lane) {
            const std::int64_t at = sets.first + least(lane, sets.count - 1);
            const std::int64_t n = sets.ids ? sets.ids[at] : at;
            starts_[lane] = first_element(gallery_, n);
            counts_[lane] = length_of(gallery_, n);
        }
        return counts_;
    }

    // Scales and residuals as [element][lane]; zero where a lane has no such element.
    void load_scalars(Range j) const {
        if (adjacent_) return load_adjacent_scalars(j);
        std::int64_t at = 0;
        for (std::int64_t i = j.begin; i < j.end; ++i, at += V::width) {
            for (int lane = 0; lane < V::width; ++lane) {
                const bool real = i < counts_[lane];
                const std::int64_t from = starts_[lane] + (real ? i : 0);
                const float u = gallery_.scales[from], p = gallery_.residuals[from];
                scratch_.scales[at + lane] = real ? u : 0.0f;
                scratch_.residuals[at + lane] = real ? p : 0.0f;
            }
        }
    }

    void load_adjacent_scalars(Range j) const {
        const float *u = gallery_.scales + starts_[0], *p = gallery_.residuals + starts_[0];
        std::int64_t at = 0;
        for (std::int64_t i = j.begin; i < j.end; ++i, at += V::width) {
#pragma GCC unroll 16
            for (int lane = 0; lane < V::width; ++lane) {
                scratch_.scales[at + lane] = u[lane * fold_.longest() + i];
                scratch_.residuals[at + lane] = p[lane * fold_.longest() + i];
            }
        }
    }

    std::int64_t list_elements(Range j, std::int64_t row) const {
        std::int64_t count = 0;
        for (std::int64_t lane = 0; lane < V::width; ++lane) {
            const std::int64_t end = least(j.end, counts_[lane]);
            for (std::int64_t i = j.begin; i < end; ++i) {
                scratch_.starts[count] = (starts_[lane] + i) * block_.dim;
                scratch_.places[count++] = (i - j.begin) * row + lane;
            }
        }
        return count;
    }

    template <int Rows>
    void multiply_part(Range j, const CodeRows& rows, std::int32_t* tile) const {
        const std::int64_t elements = j.end - j.begin;
        if (adjacent_ && elements % (V::width / Rows) == 0) {
            const std::int8_t* codes = gallery_.codes + (starts_[0] + j.begin) * block_.dim;
            const CodeSets sets{codes, fold_.longest() * block_.dim, block_.dim, elements};
            multiply_sets<V, I, Rows>(rows, sets, tile);
        } else {
            const std::int64_t count = list_elements(j, rows.count * V::width);
            const CodeElements listed{gallery_.codes, scratch_.starts, scratch_.places, count,
                                      block_.dim};
            multiply_listed<I, Rows>(rows, listed, tile);
        }
    }

    void multiply(Range j, Range x) const {
        constexpr int most = V::width < code_rows ? V::width : code_rows;
        for (int part = 0; part < parts_; ++part) {
            const std::int64_t from = x.begin * block_.padded_dim;
            const CodeRows rows{block_.codes[part] + from, block_.wide[part] + from,
                                block_.padded_dim, tile_rows(x)};
            switch (rows.count) {
                case 1: multiply_part<1>(j, rows, scratch_.dots[part]); break;
                case 2: multiply_part<2>(j, rows, scratch_.dots[part]); break;
                default: multiply_part<most>(j, rows, scratch_.dots[part]);
            }
        }
    }

    // cosine + error
    void raise_cosines(Range j, Range x) const {
        const CodeTerms& first = block_.terms[0];
        const CodeTerms& last = block_.terms[parts_ - 1];
        const std::int64_t row = tile_rows(x) * V::width;
        for (std::int64_t i = x.begin; i < x.end; ++i) {
            const F s1 = V::broadcast(first.scales[i]), s2 = V::broadcast(last.scales[i]);
            const F weight = V::broadcast(last.weights[i]);
            const F constant = V::broadcast(last.constants[i]);
            std::int64_t at = (i - x.begin) * V::width;
            for (std::int64_t e = 0; e < j.end - j.begin; ++e, at += row) {
                F value = V::mul(s1, I::floats(scratch_.dots[0] + at, first.sums[i]));
                if (parts_ == 2) {
                    value = V::fma(s2, I::floats(scratch_.dots[1] + at, last.sums[i]), value);
                }
                const F u = V::load(scratch_.scales + e * V::width);
                const F p = V::load(scratch_.residuals + e * V::width);
                V::store(scratch_.cosines + at, V::fma(value, u, V::fma(weight, p, constant)));
            }
        }
    }

    const CodeBlock& block_;
    const Codes& gallery_;
    const int parts_;
    const CodeScratch& scratch_;
    std::int64_t starts_[V::width], counts_[V::width];
    const CodeFold<V> fold_;
    bool adjacent_;  // full lanes of sets of one size that follow one another
};

// Bounds by the first part alone, for full lanes of sets of one size that follow one another.
// Cosines are raised before they are transposed, where a set's scales lie together, and are folded
// as they come, with no tile between.
template <class V, class I>
class UniformScorer {
    using F = typename V::F;
    static constexpr int Rows = code_rows, Elements = V::width / Rows;

public:
    UniformScorer(const CodeBlock& block, const Codes& gallery, const CodeLanes& sets,
                  const Terms& terms, const CodeScratch& scratch)
        : block_(block), gallery_(gallery), size_(gallery.elements), first_(sets.first * size_),
          fold_(block, terms, scratch, size_) {}

    static bool serves(const CodeBlock& block, const Codes& gallery, const CodeLanes& sets,
                       Path path) {
        constexpr std::int64_t first_cache = 1 << 15;  // each query goes over the sets again
        const std::int64_t bytes = V::width * gallery.elements * gallery.dim;
        const bool uniform = !sets.ids && !gallery.lengths && !gallery.offsets;
        bool fits = path != Path::shifted && uniform && sets.count == V::width &&
                    gallery.elements % Elements == 0 && (block.count == 1 || bytes <= first_cache);
        for (std::int64_t q = 0; q < block.count; ++q) fits &= block.counts[q] % Rows == 0;
        return fits;
    }

    // False if a score was left as NaN.
    bool run(float* out, std::int64_t stride) const {
        return fold_.run_uniform(
            out, stride, fold_.exp2(), [this](std::int64_t q, const Sums& sums, auto combine) {
                for (std::int64_t j = 0; j < size_; j += Elements) {
                    for (std::int64_t i = 0; i < block_.counts[q]; i += Rows) {
                        F cosines[V::width];
                        multiply(j, q * block_.elements + i, cosines);
                        add_block<V, Elements, Rows>(cosines, sums.a + j * V::width,
                                                     sums.b + i * V::width, combine);
                    }
                }
            });
    }

private:
    // cosine + error [element][row] of elements j.. with rows x.., one set a lane.
    void multiply(std::int64_t j, std::int64_t x, F* cosines) const {
        const CodeTerms& terms = block_.terms[0];
        const CodeRows rows{block_.codes[0], block_.wide[0], block_.padded_dim, Rows};
        const auto* queries = rows.from<typename I::QueryCode>(x);
        const auto biases = I::biases(terms.sums + x);
        const F scale = V::spread(terms.scales + x), weight = V::spread(terms.weights + x);
        const F constant = V::spread(terms.constants + x);
        float sets[V::width * V::width];
        for (int lane = 0; lane < V::width; ++lane) {
            const std::int64_t element = first_ + lane * size_ + j;
            const std::int8_t* addresses[Elements];
            for (int e = 0; e < Elements; ++e) {
                addresses[e] = gallery_.codes + (element + e) * block_.dim;
            }
            const F value = V::mul(
                scale, I::floats(dot_codes<I, Rows>(queries, rows.stride, addresses, block_.dim),
                                 biases));
            const F error = V::fma(weight, V::cycle(gallery_.residuals + element), constant);
            V::store(sets + lane * V::width,
                     V::fma(value, V::cycle(gallery_.scales + element), error));
        }
        F columns[V::width];
        V::transpose(sets, columns);
#pragma GCC unroll 16
        for (int i = 0; i < V::width; ++i) cosines[i] = columns[i % Rows * Elements + i / Rows];
    }

    const CodeBlock& block_;
    const Codes& gallery_;
    const std::int64_t size_, first_;
    const CodeFold<V> fold_;
};

template <class V, class I>
void bound_sets(const CodeBlock& block, const Codes& gallery, const CodeLanes& sets, int parts,
                const Terms& terms, float* upper, std::int64_t stride,
                const CodeScratch& scratch) {
    using Uniform = UniformScorer<V, I>;
    if (parts != 1 || !Uniform::serves(block, gallery, sets, terms.path) ||
        !Uniform(block, gallery, sets, terms, scratch).run(upper, stride)) {
        CodeScorer<V, I>(block, gallery, sets, parts, terms, scratch).run(upper, stride);
    }
    for (std::int64_t q = 0; q < block.count; ++q) {
        float* bounds = upper + q * stride;
        V::store(bounds, V::add(V::load(bounds), V::broadcast(block.margins[q])));
    }
}

template <class V, class I>
constexpr Int8Kernel int8_kernel_of(const char* name) {
    return {name, V::width, encode_element<V>, bound_sets<V, I>, estimate_sets<V, I>};
}

}  // namespace divse
