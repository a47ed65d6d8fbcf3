// Integer inner products of query rows and gallery elements, both int8. A register type I offers
//   Int: `width` lanes of int32; `bytes` of codes a step
//   load, load_first(gallery codes, how many are there), load_query(codes of type QueryCode)
//   zero, dot(sum, gallery, query), sum_each, store
//   locality: where codes are fetched to, as of __builtin_prefetch
//   floats(dots, sum of the query's codes): load may add a constant to codes, this takes it off;
//   floats(dots, biases(sums of four rows)) does where lanes are those of four rows in turn
#pragma once

#include "int8_kernel.h"

namespace divse {

// Elements of the gallery: where their codes are and where in the tile their dots go.
struct CodeElements {
    const std::int8_t* codes;
    const std::int64_t* starts;
    const std::int64_t* places;
    std::int64_t count, dim;
};

// Query rows as bytes, and widened once for those that would widen them again for each element.
struct CodeRows {
    const std::int8_t* codes;
    const std::int16_t* wide;
    std::int64_t stride, count;

    template <class Code>
    const Code* from(std::int64_t row) const {
        if constexpr (sizeof(Code) == sizeof *wide) {
            return wide + row * stride;
        } else {
            return codes + row * stride;
        }
    }
};

// Bytes ahead of the elements in work that are fetched (see dot.h).
constexpr std::int64_t fetched_ahead_codes = 8192;
constexpr int codes_locality = 2;  // of __builtin_prefetch: the second cache

// One step of the inner products of Rows query rows and as many elements as fill a register.
// Inlined always, else the sums would not stay in registers.
template <class I, int Rows, class Load>
[[gnu::always_inline]] inline void add_codes(typename I::Int* sums,
                                             const typename I::QueryCode* queries,
                                             std::int64_t stride,
                                             const std::int8_t* const* elements, std::int64_t d,
                                             const Load& load) {
    constexpr int Elements = I::width / Rows;
    typename I::Int lanes[Elements];
#pragma GCC unroll 16
    for (int e = 0; e < Elements; ++e) {
        lanes[e] = load(elements[e] + d);
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
        const auto row = I::load_query(queries + r * stride + d);
#pragma GCC unroll 16
        for (int e = 0; e < Elements; ++e) {
            sums[r * Elements + e] = I::dot(sums[r * Elements + e], lanes[e], row);
        }
    }
}

// Lane r * Elements + e of the result is <query row r, element e>, with the elements biased.
template <class I, int Rows>
[[gnu::always_inline]] inline typename I::Int dot_codes(const typename I::QueryCode* queries,
                                                        std::int64_t stride,
                                                        const std::int8_t* const* elements,
                                                        std::int64_t dim) {
    constexpr std::int64_t line = 64;
    typename I::Int sums[I::width];
#pragma GCC unroll 16
    for (int i = 0; i < I::width; ++i) sums[i] = I::zero();
    std::int64_t d = 0;
    // In the order of memory, which hardware prefetchers follow; they do not follow the elements.
    const std::int8_t* ahead = elements[0] + fetched_ahead_codes;
    for (; d + line <= dim; d += line, ahead += line * (I::width / Rows)) {
#pragma GCC unroll 16
        for (int e = 0; e < I::width / Rows; ++e) {
            __builtin_prefetch(ahead + line * e, 0, I::locality);
        }
#pragma GCC unroll 4
        for (std::int64_t b = 0; b < line; b += I::bytes) {
            add_codes<I, Rows>(sums, queries, stride, elements, d + b, I::load);
        }
    }
    for (; d + I::bytes <= dim; d += I::bytes) {
        add_codes<I, Rows>(sums, queries, stride, elements, d, I::load);
    }
    if (d < dim) {
        const int count = static_cast<int>(dim - d);
        add_codes<I, Rows>(sums, queries, stride, elements, d,
                           [count](const std::int8_t* p) { return I::load_first(p, count); });
    }
    return I::sum_each(sums);
}

// tile[place of the element + row * width] for all rows, from elements anywhere.
template <class I, int Rows>
void multiply_listed(const CodeRows& rows, const CodeElements& elements, std::int32_t* tile) {
    constexpr int Elements = I::width / Rows;
    for (std::int64_t first = 0; first < elements.count; first += Elements) {
        const std::int64_t rest = elements.count - first;
        const std::int64_t real = rest < Elements ? rest : Elements;
        const std::int8_t* addresses[Elements];
        for (int e = 0; e < Elements; ++e) {
            addresses[e] = elements.codes + elements.starts[first + (e < real ? e : 0)];
        }
        for (std::int64_t row = 0; row < rows.count; row += Rows) {
            std::int32_t dots[I::width];
            I::store(dots, dot_codes<I, Rows>(rows.from<typename I::QueryCode>(row), rows.stride,
                                              addresses, elements.dim));
            for (std::int64_t e = 0; e < real; ++e) {
                std::int32_t* out = tile + elements.places[first + e] + row * I::width;
                for (int r = 0; r < Rows; ++r) out[r * I::width] = dots[r * Elements + e];
            }
        }
    }
}

// Full lanes of sets of one size, one after another in memory; `per_set` elements from the first
// of every set are taken, a multiple of those of a tile.
struct CodeSets {
    const std::int8_t* codes;
    std::int64_t set_stride, dim, per_set;
};

// tile[(element * rows + row) * width + lane], read strictly in the order of memory.
template <class V, class I, int Rows>
void multiply_sets(const CodeRows& rows, const CodeSets& sets, std::int32_t* tile) {
    constexpr int Elements = I::width / Rows;
    for (std::int64_t j = 0; j < sets.per_set; j += Elements) {
        const std::int8_t* addresses[Elements];
        for (std::int64_t row = 0; row < rows.count; row += Rows) {
            std::int32_t dots[I::width * I::width];
            for (int lane = 0; lane < I::width; ++lane) {
                const std::int8_t* set = sets.codes + lane * sets.set_stride;
                for (int e = 0; e < Elements; ++e) addresses[e] = set + (j + e) * sets.dim;
                I::store(dots + lane * I::width,
                         dot_codes<I, Rows>(rows.from<typename I::QueryCode>(row), rows.stride,
                                            addresses, sets.dim));
            }
            typename V::F columns[I::width];  // moved as floats, bit for bit
            V::transpose(reinterpret_cast<const float*>(dots), columns);
            for (int r = 0; r < Rows; ++r) {
                for (int e = 0; e < Elements; ++e) {
                    float* out = reinterpret_cast<float*>(tile) +
                                 ((j + e) * rows.count + row + r) * I::width;
                    V::store(out, columns[r * Elements + e]);
                }
            }
        }
    }
}

}  // namespace divse
