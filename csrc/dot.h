// Inner-product kernel for a few query rows: lanes run along D, the gallery is read in place.
// Width accumulators (Rows x Elements) are reduced together into one register.
#pragma once

#include "kernel.h"

namespace divse {

// How far ahead of the elements in work memory is fetched, line after line, into the second cache:
// hardware prefetchers do not follow the few short streams of a tile, and the first cache can wait
// for too few lines. Measured: docs/cpu.md.
template <class T>
constexpr std::int64_t bytes_ahead = sizeof(T) == 4 ? 28672 : 16384;
constexpr int second_cache = 2;  // of __builtin_prefetch

// sums[r * Elements + e] = lanes whose sum is <query row r, gallery element e>, for Together
// elements from e = 0. A query vector is loaded once for all of them.
template <class V, int Rows, int Elements, int Together, class T>
void dot_elements(const float* queries, std::int64_t query_stride, const void* const* addresses,
                  std::int64_t dim, typename V::F* sums) {
    using F = typename V::F;
    constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
    const T* elements[Together];
    F parts[Together][Rows];
#pragma GCC unroll 4
    for (int e = 0; e < Together; ++e) {
        elements[e] = static_cast<const T*>(addresses[e]);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) parts[e][r] = V::zero();
    }
    const auto step = [&](const F* lanes, std::int64_t d) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
            const F row = V::load_shared(queries + r * query_stride + d);
#pragma GCC unroll 4
            for (int e = 0; e < Together; ++e) parts[e][r] = V::fma(row, lanes[e], parts[e][r]);
        }
    };
    const auto full_step = [&](std::int64_t d) {
        F lanes[Together];
#pragma GCC unroll 4
        for (int e = 0; e < Together; ++e) lanes[e] = V::load(elements[e] + d);
        step(lanes, d);
    };
    const char* ahead = reinterpret_cast<const char*>(elements[0]) + bytes_ahead<T>;
    std::int64_t d = 0;
    for (; d + line <= dim; d += line, ahead += 64 * Together) {
#pragma GCC unroll 4
        for (int e = 0; e < Together; ++e) __builtin_prefetch(ahead + 64 * e, 0, second_cache);
#pragma GCC unroll 8
        for (std::int64_t v = 0; v < line; v += V::width) full_step(d + v);
    }
    for (; d + V::width <= dim; d += V::width) full_step(d);
    if (d < dim) {
        F lanes[Together];
#pragma GCC unroll 4
        for (int e = 0; e < Together; ++e) {
            lanes[e] = V::load_first(elements[e] + d, static_cast<int>(dim - d));
        }
        step(lanes, d);
    }
#pragma GCC unroll 4
    for (int e = 0; e < Together; ++e) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) sums[r * Elements + e] = parts[e][r];
    }
}

// Lane r * Elements + e of the result is <query row r, gallery element e>. Never inlined, else the
// sums would not stay in registers.
template <class V, int Rows, class T>
[[gnu::noinline]] typename V::F dot_tile(const float* queries, std::int64_t query_stride,
                                        const void* const* elements, std::int64_t dim) {
    constexpr int Elements = V::width / Rows, Together = Elements < 4 ? Elements : 4;
    typename V::F sums[V::width];
#pragma GCC unroll 1
    for (int e = 0; e < Elements; e += Together) {
        dot_elements<V, Rows, Elements, Together, T>(queries, query_stride, elements + e, dim,
                                                     sums + e);
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

// Full lanes of sets of one size, evenly spaced; `count` elements of each, a multiple of a tile's.
struct EvenSets {
    const char* first;
    std::int64_t set_bytes, element_bytes, count, dim;
};

// tile[(element * rows + row) * width + lane]: a set's cosines become a lane by a transpose.
template <class V, int Height, class T>
void dot_rows(const Rows& rows, std::int64_t row, int real, const EvenSets& sets, float* tile) {
    constexpr int Width = V::width / Height;
    const float* queries = rows.values + (rows.first + row) * rows.stride;
    for (std::int64_t j = 0; j < sets.count; j += Width) {
        float cosines[V::width * V::width];
        for (int lane = 0; lane < V::width; ++lane) {
            const char* set = sets.first + lane * sets.set_bytes + j * sets.element_bytes;
            const void* addresses[Width];
            for (int e = 0; e < Width; ++e) addresses[e] = set + e * sets.element_bytes;
            V::store(cosines + lane * V::width,
                     dot_tile<V, Height, T>(queries, rows.stride, addresses, sets.dim));
        }
        typename V::F columns[V::width];
        V::transpose(cosines, columns);
        for (int e = 0; e < Width; ++e) {
            float* out = tile + ((j + e) * rows.count + row) * V::width;
            for (int r = 0; r < real; ++r) V::store(out + r * V::width, columns[r * Width + e]);
        }
    }
}

template <class V, class T, class Gallery>
void dot_products(const Rows& rows, const Gallery& gallery, float* tile) {
    for (std::int64_t row = 0; row < rows.count;) {
        const std::int64_t left = rows.count - row;
        const int real = left < 4 ? static_cast<int>(left) : 4;
        if (real > 2) {
            dot_rows<V, 4, T>(rows, row, real, gallery, tile);
        } else if (real == 2) {
            dot_rows<V, 2, T>(rows, row, real, gallery, tile);
        } else {
            dot_rows<V, 1, T>(rows, row, real, gallery, tile);
        }
        row += real;
    }
}

}  // namespace divse
