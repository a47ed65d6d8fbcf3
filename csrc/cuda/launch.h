// What a caller says of a launch, and what the kernel makes of it.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "maps.h"

namespace divse::hopper {

// Largest alpha at which products of 4 sums, and single sums, stay within float32
// (FACTOR_LIMITS in kernels/divse_kernels/problem.py).
constexpr float alpha_of_four_factors = 18.0f, largest_alpha = 80.0f;

struct Launch {
    const void *row_values, *column_values;
    bool half;  // float16, else bfloat16
    Sets rows, columns;
    float* scores;
    std::int64_t row_stride, column_stride;  // of scores
    float alpha;
    bool log_mean;
    void* stream;
};

struct Work {
    float* scores;
    std::int64_t row_stride, column_stride;
    int row_sets, column_sets;
    int row_tiles, column_tiles;  // row_tiles: pairs of tiles, one for each block of a cluster
    int blocks;                   // of `depth` dimensions
    float scale;                  // alpha, for powers of two
    float weight, shift;          // score = weight * (sum of log2 of all sums) + shift
};

inline Work work_of(const Launch& to) {
    const auto tiles = [](std::int64_t count, std::int64_t of) {
        return static_cast<int>((count + of - 1) / of);
    };
    const std::int64_t sets = tile / to.rows.size;
    const std::int64_t steps = ((to.rows.count - 1) / (cluster * sets) + 1) *
                               ((to.columns.count - 1) / sets + 1) *
                               ((to.rows.dims - 1) / depth + 1);
    if (steps > INT32_MAX) throw std::invalid_argument("more tiles than 31 bits count: score parts");
    const double size = static_cast<double>(to.rows.size), alpha = to.alpha, ln2 = std::log(2.0);
    return {to.scores,
            to.row_stride,
            to.column_stride,
            static_cast<int>(to.rows.count),
            static_cast<int>(to.columns.count),
            tiles(to.rows.count, cluster * sets),
            tiles(to.columns.count, sets),
            tiles(to.rows.dims, depth),
            static_cast<float>(alpha / ln2),
            static_cast<float>(ln2 / (2 * alpha * size)),
            to.log_mean ? static_cast<float>(-std::log(size) / alpha) : 0.0f};
}

// Enqueues the kernel; throws std::runtime_error with what CUDA says.
void score(const Launch& to);

}  // namespace divse::hopper
