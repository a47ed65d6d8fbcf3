// Rows of floats for the gradients, and the two products of a block of weights.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel.h"
#include "workspace.h"

namespace divse {

// Elements and their gradients, zero padded to the width of a register.
struct Dense {
    std::int64_t dim, padded, stride;
    Floats values, grads;

    Dense(std::int64_t rows, std::int64_t dim, std::int64_t width);
    void put(std::int64_t row, const float* element);
    void take_grad(std::int64_t row, float* out) const;
};

// grads[set][group][lane] of a block in lanes: count is the number of its sets, zero in other lanes.
std::vector<float> grads_in_lanes(const QueryBlock& block, const GradScores& grads,
                                  std::int64_t width, std::int64_t first, std::int64_t last);

// Weights of a block: a row for each y element, a column for each x element.
struct Weights {
    std::int64_t rows, columns, stride;
    Floats values;

    Weights(std::int64_t rows, std::int64_t columns);
    float* row(std::int64_t r) const { return values.data() + r * stride; }
};

// x.grads += transposed weights * y.values and y.grads += weights * x.values, where the weights'
// first row belongs to row `first` of y.
void multiply(const Weights& weights, const Dense& x, const Dense& y, std::int64_t first,
              const Kernel& kernel, int threads);

}  // namespace divse
