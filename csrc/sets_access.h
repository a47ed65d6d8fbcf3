// Small steps shared by the two scorers. Internal linkage throughout: see kernel.h.
#pragma once

#include "kernel.h"

namespace divse {

static inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
static inline std::int64_t most(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

static inline std::int64_t length_of(const Sets& sets, std::int64_t n) {
    return sets.lengths ? sets.lengths[n] : sets.elements;
}

static inline const void* element_of(const Sets& sets, std::int64_t n, std::int64_t j) {
    const std::int64_t at = n * sets.set_stride + j * sets.element_stride;
    if (sets.element == Element::f16) return static_cast<const Half*>(sets.values) + at;
    return static_cast<const float*>(sets.values) + at;
}

// fp16 to fp32; reads nothing past `dim`.
template <class V>
void widen(const Half* half, float* out, std::int64_t dim) {
    std::int64_t d = 0;
    for (; d + V::width <= dim; d += V::width) V::store(out + d, V::load(half + d));
    if (d == dim) return;
    float tail[V::width];
    V::store(tail, V::load_first(half + d, static_cast<int>(dim - d)));
    for (std::int64_t i = d; i < dim; ++i) out[i] = tail[i - d];
}

}  // namespace divse
