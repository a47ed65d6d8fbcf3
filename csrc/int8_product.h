// Integer inner products of query rows and gallery elements, both int8. A register type I offers
//   Int, width lanes of int32, bytes of codes a step, bias added to a gallery code by load
//   zero, load (gallery), load_first, dot(sum, gallery, query address), sum_each, store
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

struct CodeRows {
    const std::int8_t* codes;
    std::int64_t stride, count;
};

// Lane r * Elements + e of the result is <query row r, element e>, with the elements biased.
template <class I, int Rows>
typename I::Int dot_codes(const std::int8_t* queries, std::int64_t stride,
                          const std::int8_t* const* elements, std::int64_t dim) {
    constexpr int Elements = I::width / Rows;
    // Far enough for memory, near enough for the first-level cache.
    constexpr std::int64_t ahead = 8 << 10;
    typename I::Int sums[I::width];
#pragma GCC unroll 16
    for (int i = 0; i < I::width; ++i) sums[i] = I::zero();
    const auto step = [&](std::int64_t d, const auto& load) {
        typename I::Int lanes[Elements];
#pragma GCC unroll 16
        for (int e = 0; e < Elements; ++e) lanes[e] = load(elements[e] + d);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
            const auto row = I::load_query(queries + r * stride + d);
#pragma GCC unroll 16
            for (int e = 0; e < Elements; ++e) {
                sums[r * Elements + e] = I::dot(sums[r * Elements + e], lanes[e], row);
            }
        }
    };
    std::int64_t d = 0;
    for (; d + I::bytes <= dim; d += I::bytes) {
#pragma GCC unroll 16
        for (int e = 0; e < Elements; ++e) __builtin_prefetch(elements[e] + d + ahead);
        step(d, [](const std::int8_t* p) { return I::load(p); });
    }
    if (d < dim) {
        const int rest = static_cast<int>(dim - d);
        step(d, [rest](const std::int8_t* p) { return I::load_first(p, rest); });
    }
    return I::sum_each(sums);
}

// tile[place of the element + row * width] for all rows.
template <class I, int Rows>
void multiply_codes(const CodeRows& rows, const CodeElements& elements, std::int32_t* tile) {
    constexpr int Elements = I::width / Rows;
    for (std::int64_t first = 0; first < elements.count; first += Elements) {
        const std::int64_t rest = elements.count - first;
        const std::int64_t real = rest < Elements ? rest : Elements;
        const std::int8_t* addresses[Elements];
        for (int e = 0; e < Elements; ++e) {
            addresses[e] = elements.codes + elements.starts[first + (e < real ? e : 0)];
        }
        const std::int64_t* places = elements.places + first;
        bool together = real == Elements;
        for (int e = 1; e < real; ++e) together &= places[e] == places[e - 1] + 1;
        for (std::int64_t row = 0; row < rows.count; row += Rows) {
            std::int32_t dots[I::width];
            I::store(dots, dot_codes<I, Rows>(rows.codes + row * rows.stride, rows.stride,
                                              addresses, elements.dim));
            std::int32_t* out = tile + row * I::width;
            for (int r = 0; r < Rows; ++r, out += I::width) {
                if (together) {
                    __builtin_memcpy(out + places[0], dots + r * Elements, 4 * Elements);
                    continue;
                }
                for (int e = 0; e < real; ++e) out[places[e]] = dots[r * Elements + e];
            }
        }
    }
}

template <class I>
void multiply_codes(const CodeRows& rows, const CodeElements& elements, std::int32_t* tile) {
    constexpr int most = I::width < code_rows ? I::width : code_rows;
    if (rows.count == 1) {
        multiply_codes<I, 1>(rows, elements, tile);
    } else if (rows.count == 2) {
        multiply_codes<I, 2>(rows, elements, tile);
    } else {
        multiply_codes<I, most>(rows, elements, tile);
    }
}

}  // namespace divse
