// Outer-product kernel: c[row][lane] = sum_t a[row][t] * b[t][lane], a broadcast, b in registers.
// Serves cosines (a = gallery elements, b = packed queries) and both gradients (a = weights).
#pragma once

#include "kernel.h"

namespace divse {

// b[panel][t][vector of the panel]: strides in floats.
struct Panels {
    const float* values;
    std::int64_t step_stride, panel_stride;
};

// 96 steps of a panel are 24 KiB with AVX-512: they stay in L1 while the rows pass. Sums of blocks
// are added, so an error grows with the depth of a block and the number of blocks, not with D.
constexpr std::int64_t depth_block = 96;

template <class V, int Rows, int Vectors>
void micro_tile(const float* const* rows, std::int64_t start, std::int64_t step, const float* b,
                std::int64_t b_stride, std::int64_t depth, float* c, std::int64_t c_stride,
                bool accumulate) {
    using F = typename V::F;
    F sums[Rows][Vectors];
    const float* a[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
        a[r] = rows[r] + start * step;
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sums[r][v] = V::zero();
    }
    for (std::int64_t t = 0; t < depth; ++t, b += b_stride) {
        F lanes[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) lanes[v] = V::load(b + v * V::width);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const F scalar = V::broadcast(a[r][t * step]);
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sums[r][v] = V::fma(scalar, lanes[v], sums[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            float* out = c + r * c_stride + v * V::width;
            V::store(out, accumulate ? V::add(V::load(out), sums[r][v]) : sums[r][v]);
        }
    }
}

using MicroTile = void (*)(const float* const*, std::int64_t, std::int64_t, const float*,
                           std::int64_t, std::int64_t, float*, std::int64_t, bool);

// The kernel for a tile of `count` rows (at most V::rows) by Vectors vectors.
template <class V, int Vectors, int Rows = V::rows>
MicroTile tile_of(std::int64_t count) {
    if constexpr (Rows > 1) {
        if (count < Rows) return tile_of<V, Vectors, Rows - 1>(count);
    }
    return micro_tile<V, Rows, Vectors>;
}

template <class V, int Vectors = V::panel>
MicroTile tile_of(std::int64_t count, std::int64_t vectors) {
    if constexpr (Vectors > 1) {
        if (vectors < Vectors) return tile_of<V, Vectors - 1>(count, vectors);
    }
    return tile_of<V, Vectors>(count);
}

template <class V>
void gemm(const float* const* rows, std::int64_t count, std::int64_t step, const Panels& b,
          std::int64_t vectors, std::int64_t depth, float* c, std::int64_t c_stride,
          bool accumulate) {
    for (std::int64_t start = 0; start < depth; start += depth_block) {
        const std::int64_t steps = depth - start < depth_block ? depth - start : depth_block;
        for (std::int64_t v = 0; v < vectors; v += V::panel) {
            const float* panel =
                b.values + v / V::panel * b.panel_stride + start * b.step_stride;
            for (std::int64_t r = 0; r < count; r += V::rows) {
                tile_of<V>(count - r, vectors - v)(rows + r, start, step, panel, b.step_stride,
                                                   steps, c + r * c_stride + v * V::width, c_stride,
                                                   accumulate || start > 0);
            }
        }
    }
}

}  // namespace divse
