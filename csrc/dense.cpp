#include "dense.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace divse {

namespace {

using Index = std::int64_t;

// Floats between rows beyond their end: without them columns a power of two apart would fall into
// the same few sets of the cache.
constexpr Index apart = 16;
constexpr Index most_rows_of_a_task = 192;

Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// Many, so that the other factor is read seldom, but enough tasks for all threads.
Index rows_of_a_task(Index rows, int threads) {
    constexpr Index unit = 24;  // a multiple of every kernel's rows
    const Index tasks = threads == 1 ? 1 : 4 * threads;
    return std::min(ceil_div(rows, tasks * unit) * unit, most_rows_of_a_task);
}

// grads[r] += sum_t weights[r * row_stride + t * step] * values[t]
struct Product {
    Index rows, depth;
    const float* weights;
    Index row_stride, step;
    const float* values;
    float* grads;
};

void multiply_rows(const Product& product, Index first, Index count, const Dense& shape,
                   const Kernel& kernel) {
    count = std::min(count, product.rows - first);
    const float* addresses[most_rows_of_a_task];
    for (Index r = 0; r < count; ++r) {
        addresses[r] = product.weights + (first + r) * product.row_stride;
    }
    kernel.accumulate(addresses, count, product.step, product.values, shape.stride,
                      shape.padded / kernel.width, product.depth,
                      product.grads + first * shape.stride, shape.stride);
}

}  // namespace

Dense::Dense(Index rows, Index d, Index width)
    : dim(d), padded(ceil_div(d, width) * width), stride(padded + apart), values(rows * stride),
      grads(rows * stride) {
    const auto bytes = static_cast<std::size_t>(rows * stride) * sizeof(float);
    std::memset(values.data(), 0, bytes);
    std::memset(grads.data(), 0, bytes);
}

void Dense::put(Index row, const float* element) {
    std::copy_n(element, dim, values.data() + row * stride);
}

void Dense::take_grad(Index row, float* out) const {
    std::copy_n(grads.data() + row * stride, dim, out);
}

std::vector<float> grads_in_lanes(const QueryBlock& block, const GradScores& grads, Index width,
                                  Index first, Index last) {
    const Index lanes = block.groups * width;
    std::vector<float> out(static_cast<std::size_t>((last - first) * lanes));
    for (Index n = first; n < last; ++n) {
        for (Index q = 0; q < block.count; ++q) {
            out[static_cast<std::size_t>((n - first) * lanes + q)] =
                grads.values[(block.first + q) * grads.query_stride + n * grads.gallery_stride];
        }
    }
    return out;
}

Weights::Weights(Index r, Index c)
    : rows(r), columns(c), stride(c + apart), values(rows * stride) {}

void multiply(const Weights& weights, const Dense& x, const Dense& y, Index first,
              const Kernel& kernel, int threads) {
    const Product to_x{weights.columns, weights.rows,
                       weights.row(0),  1,
                       weights.stride,  y.values.data() + first * y.stride,
                       x.grads.data()};
    const Product to_y{weights.rows,   weights.columns,
                       weights.row(0), weights.stride,
                       1,              x.values.data(),
                       y.grads.data() + first * y.stride};
    const Index rows = rows_of_a_task(weights.rows + weights.columns, threads);
    const Index x_tasks = ceil_div(to_x.rows, rows), y_tasks = ceil_div(to_y.rows, rows);
    parallel_for(x_tasks + y_tasks, threads, [&](Index task) {
        const bool is_x = task < x_tasks;
        const Index row = (is_x ? task : task - x_tasks) * rows;
        multiply_rows(is_x ? to_x : to_y, row, rows, x, kernel);
    });
}

}  // namespace divse
