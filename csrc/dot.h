// Inner-product kernel for a few query rows: lanes run along D, the gallery is read in place.
// Width accumulators (Rows x Elements) are reduced together into one register.
#pragma once

#include "kernel.h"

namespace divse {

// sums[r * spread] = lanes whose sum is <query row r, element>. One element at a time, so that the
// gallery is read strictly in the order of memory: hardware prefetchers do not follow the several
// short streams of a wider tile, which reads from memory at less than half the speed.
template <class V, int Rows, class T>
void dot_element(const float* queries, std::int64_t query_stride, const T* element,
                 std::int64_t dim, typename V::F* sums, int spread) {
    using F = typename V::F;
    constexpr int Chains = Rows == 4 ? 2 : 4;  // independent sums hide the latency of fma
    F parts[Chains][Rows];
#pragma GCC unroll 4
    for (int c = 0; c < Chains; ++c) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) parts[c][r] = V::zero();
    }
    const auto step = [&](F* sum, F lanes, std::int64_t d) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
            sum[r] = V::fma(V::load(queries + r * query_stride + d), lanes, sum[r]);
        }
    };
    std::int64_t d = 0;
    for (; d + Chains * V::width <= dim; d += Chains * V::width) {
#pragma GCC unroll 4
        for (int c = 0; c < Chains; ++c) {
            step(parts[c], V::load(element + d + c * V::width), d + c * V::width);
        }
    }
    for (; d + V::width <= dim; d += V::width) step(parts[0], V::load(element + d), d);
    if (d < dim) step(parts[1], V::load_first(element + d, static_cast<int>(dim - d)), d);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
        F sum = V::add(parts[0][r], parts[1][r]);
        if constexpr (Chains == 4) sum = V::add(sum, V::add(parts[2][r], parts[3][r]));
        sums[r * spread] = sum;
    }
}

// Lane r * Elements + e of the result is <query row r, gallery element e>.
template <class V, int Rows, class T>
typename V::F dot_tile(const float* queries, std::int64_t query_stride, const void* const* elements,
                       std::int64_t dim) {
    constexpr int Elements = V::width / Rows;
    typename V::F sums[V::width];
#pragma GCC unroll 1
    for (int e = 0; e < Elements; ++e) {
        dot_element<V, Rows>(queries, query_stride, static_cast<const T*>(elements[e]), dim,
                             sums + e, Elements);
    }
    return V::sum_each(sums);
}

// Query rows zero padded to a multiple of the width; three rows past the last are readable.
struct Rows {
    const float* values;
    std::int64_t stride, first, count;
};

// Gallery elements and the places of their cosines in a tile; row_padding more addresses are valid.
struct Elements {
    const void* const* addresses;
    const std::int64_t* places;
    std::int64_t count, dim;
};

// tile[place of the element + row * width] for `real` of Height rows from row.
template <class V, int Height, class T>
void dot_rows(const Rows& rows, std::int64_t row, int real, const Elements& elements, float* tile) {
    constexpr int Width = V::width / Height;
    const float* queries = rows.values + (rows.first + row) * rows.stride;
    for (std::int64_t first = 0; first < elements.count; first += Width) {
        float cosines[V::width];
        V::store(cosines, dot_tile<V, Height, T>(queries, rows.stride, elements.addresses + first,
                                                 elements.dim));
        const std::int64_t rest = elements.count - first, left = rest < Width ? rest : Width;
        for (std::int64_t e = 0; e < left; ++e) {
            float* out = tile + elements.places[first + e] + row * V::width;
            for (int r = 0; r < real; ++r) out[r * V::width] = cosines[r * Width + e];
        }
    }
}

template <class V, class T>
void dot_products(const Rows& rows, const Elements& elements, float* tile) {
    for (std::int64_t row = 0; row < rows.count;) {
        const std::int64_t left = rows.count - row;
        const int real = left < 4 ? static_cast<int>(left) : 4;
        if (real > 2) {
            dot_rows<V, 4, T>(rows, row, real, elements, tile);
        } else if (real == 2) {
            dot_rows<V, 2, T>(rows, row, real, elements, tile);
        } else {
            dot_rows<V, 1, T>(rows, row, real, elements, tile);
        }
        row += real;
    }
}

}  // namespace divse
