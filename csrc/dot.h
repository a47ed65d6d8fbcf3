// Inner-product kernel for a few query rows: lanes run along D, the gallery is read in place.
// Width accumulators (Rows x Elements) are reduced together into one register.
#pragma once

#include "kernel.h"

namespace divse {

// Lane r * Elements + e of the result is <query row r, gallery element e>; the query rows are zero
// padded to a multiple of the width, of the gallery nothing past `dim` is read.
template <class V, int Rows, class T>
typename V::F dot_tile(const float* queries, std::int64_t query_stride, const void* const* elements,
                       std::int64_t dim) {
    using F = typename V::F;
    constexpr int Elements = V::width / Rows;
    F sums[V::width];
#pragma GCC unroll 16
    for (int i = 0; i < V::width; ++i) sums[i] = V::zero();
    const auto step = [&](std::int64_t d, auto load) {
        F lanes[Rows];
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) lanes[r] = V::load(queries + r * query_stride + d);
#pragma GCC unroll 16
        for (int e = 0; e < Elements; ++e) {
            const F element = load(static_cast<const T*>(elements[e]) + d);
#pragma GCC unroll 4
            for (int r = 0; r < Rows; ++r) {
                sums[r * Elements + e] = V::fma(lanes[r], element, sums[r * Elements + e]);
            }
        }
    };
    std::int64_t d = 0;
    for (; d + V::width <= dim; d += V::width) step(d, [](const T* p) { return V::load(p); });
    if (d < dim) step(d, [=](const T* p) { return V::load_first(p, static_cast<int>(dim - d)); });
    return V::sum_each(sums);
}

// Cosines of Rows query rows (the first `real` of which are stored) with `count` elements:
// tile[places[e] + row * width].
template <class V, int Rows, class T>
void dot_rows(const float* queries, std::int64_t query_stride, int real, const void* const* elements,
              const std::int64_t* places, std::int64_t count, std::int64_t dim, float* tile) {
    constexpr int Elements = V::width / Rows;
    for (std::int64_t first = 0; first < count; first += Elements) {
        float cosines[V::width];
        V::store(cosines, dot_tile<V, Rows, T>(queries, query_stride, elements + first, dim));
        const std::int64_t left = count - first < Elements ? count - first : Elements;
        for (std::int64_t e = 0; e < left; ++e) {
            float* out = tile + places[first + e];
            for (int r = 0; r < real; ++r) out[r * V::width] = cosines[r * Elements + e];
        }
    }
}

// All `rows` query rows; the list of elements must be readable (any valid address) up to
// row_padding entries past `count`, and the query rows up to three rows past `rows`.
template <class V, class T>
void dot_products(const float* queries, std::int64_t query_stride, std::int64_t rows,
                  const void* const* elements, const std::int64_t* places, std::int64_t count,
                  std::int64_t dim, float* tile) {
    for (std::int64_t r = 0; r < rows;) {
        const float* query = queries + r * query_stride;
        float* out = tile + r * V::width;
        const std::int64_t left = rows - r;
        if (left >= 3) {
            const int real = left >= 4 ? 4 : 3;
            dot_rows<V, 4, T>(query, query_stride, real, elements, places, count, dim, out);
            r += real;
        } else if (left == 2) {
            dot_rows<V, 2, T>(query, query_stride, 2, elements, places, count, dim, out);
            r += 2;
        } else {
            dot_rows<V, 1, T>(query, query_stride, 1, elements, places, count, dim, out);
            r += 1;
        }
    }
}

}  // namespace divse
