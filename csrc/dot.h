// Inner-product kernel for a few query rows: lanes run along D, the gallery is read in place.
// Width accumulators (Rows x Elements) are reduced together into one register.
#pragma once

#include "kernel.h"

namespace divse {

// Walks through the elements that come next, in the order of memory, a few cache lines at a time.
// A tile reads several elements at once, which hardware prefetchers do not follow; they do follow
// this (measured: a scan of one query at the speed of a plain sum instead of half of it).
template <class T, int Step>
class ReadAhead {
public:
    ReadAhead(const void* const* elements, std::int64_t dim) : elements_(elements), dim_(dim) {}

    void step() {
        const char* address = reinterpret_cast<const char*>(static_cast<const T*>(*elements_) + d_);
#pragma GCC unroll 16
        for (int at = 0; at < bytes; at += 64) __builtin_prefetch(address + at);
        d_ += Step;
        if (d_ >= dim_) {
            d_ = 0;
            ++elements_;
        }
    }

private:
    static constexpr int bytes = Step * static_cast<int>(sizeof(T));
    const void* const* elements_;
    std::int64_t dim_, d_ = 0;
};

// Lane r * Elements + e of the result is <query row r, gallery element e>; the query rows are zero
// padded to a multiple of the width, of the gallery nothing past `dim` is read. The list of
// elements goes on for 2 * Elements more if they are to be prefetched.
template <class V, int Rows, class T>
typename V::F dot_tile(const float* queries, std::int64_t query_stride, const void* const* elements,
                       std::int64_t dim, bool prefetch) {
    using F = typename V::F;
    constexpr int Elements = V::width / Rows;
    ReadAhead<T, Elements * V::width> ahead(elements + 2 * Elements, dim);
    F sums[V::width];
#pragma GCC unroll 16
    for (int i = 0; i < V::width; ++i) sums[i] = V::zero();
    const auto step = [&](std::int64_t d, auto load) {
        if (Elements > 1 && prefetch) ahead.step();
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

// Query rows of one layout, all of which (and three more, zero or not) are readable.
struct Rows {
    const float* values;
    std::int64_t stride, first, count;
};

// Gallery elements and the places of their cosines in a tile.
struct Elements {
    const void* const* addresses;  // what is read next follows, row_padding of them
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
                                                 elements.dim, row == 0));
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
