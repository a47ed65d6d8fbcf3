// Codes of one element: its largest size gives the scale, what rounding leaves gives the residual.
#pragma once

#include "int8_kernel.h"
#include "sets_access.h"

namespace divse {

// The values for which a loop of independent lanes keeps running results; what is past the last
// full step goes to the first lanes. A loop over the lanes becomes vector instructions.
constexpr int encode_lanes = 16;

template <class Visit>
void for_lanes(std::int64_t dim, const Visit& visit) {
    std::int64_t d = 0;
    for (; d + encode_lanes <= dim; d += encode_lanes) {
        for (int lane = 0; lane < encode_lanes; ++lane) visit(d + lane, lane);
    }
    for (int lane = 0; d < dim; ++d, ++lane) visit(d, lane);
}

static inline double sum_lanes(const double* lanes) {
    double total = 0;
    for (int lane = 0; lane < encode_lanes; ++lane) total += lanes[lane];
    return total;
}

// divse/similarity/quantise.py, step for step: differences are exact in double.
template <class V>
bool encode_element(const void* element, Element type, std::int64_t dim, double longest,
                    float* floats, std::int8_t* codes, float* scale, float* residual) {
    const float* values = floats_of<V>(type, element, floats, dim);
    float sizes[encode_lanes] = {}, largest = 0;
    double norms[encode_lanes] = {}, lefts[encode_lanes] = {};
    for_lanes(dim, [&](std::int64_t d, int lane) {
        const float size = __builtin_fabsf(values[d]);
        sizes[lane] = size > sizes[lane] ? size : sizes[lane];
        norms[lane] += static_cast<double>(size) * size;
    });
    for (const float size : sizes) largest = size > largest ? size : largest;
    const float step = largest / 127.0f, divisor = step == 0 ? 1.0f : step;
    for_lanes(dim, [&](std::int64_t d, int lane) {
        // Adding 1.5 * 2^23 rounds half to even, as torch.round does.
        const float rounded = (values[d] / divisor + 0x1.8p23f) - 0x1.8p23f;
        // A subnormal step is so coarse that a quotient may leave the range; NaN ends at -127.
        const float above = rounded >= -127.0f ? rounded : -127.0f;
        const float code = step == 0 ? 0.0f : above <= 127.0f ? above : 127.0f;
        codes[d] = static_cast<std::int8_t>(static_cast<std::int32_t>(code));
        const double left = values[d] - static_cast<double>(step) * code;
        lefts[lane] += left * left;
    });
    const double exact = __builtin_sqrt(sum_lanes(lefts)) * (1 + 0x1p-36);
    *scale = step;
    *residual = static_cast<float>(exact);
    if (*residual < exact) *residual = __builtin_nextafterf(*residual, __builtin_inff());
    return sum_lanes(norms) <= longest * longest;  // false for NaN
}

}  // namespace divse
