// Small steps shared by the two scorers. Internal linkage throughout: see kernel.h.
#pragma once

#include "kernel.h"

namespace divse {

static inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
static inline std::int64_t most(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

static inline std::int64_t length_of(const Sets& sets, std::int64_t n) {
    if (sets.ids) n = sets.ids[n];
    if (sets.offsets) return sets.offsets[n + 1] - sets.offsets[n];
    return sets.lengths ? sets.lengths[n] : sets.elements;
}

// Bytes from one element of a set to the next.
static inline std::int64_t step_of(const Sets& sets) {
    return sets.element_stride * (sets.element == Element::f32 ? 4 : 2);
}

static inline const char* first_of(const Sets& sets, std::int64_t n) {
    if (sets.ids) n = sets.ids[n];
    const std::int64_t at = sets.offsets ? sets.offsets[n] * sets.element_stride
                                         : n * sets.set_stride;
    return static_cast<const char*>(sets.values) + at * (sets.element == Element::f32 ? 4 : 2);
}

static inline const void* element_of(const Sets& sets, std::int64_t n, std::int64_t j) {
    return first_of(sets, n) + j * step_of(sets);
}

// To fp32; reads nothing past `dim`.
template <class V, class T>
void widen(const void* element, float* out, std::int64_t dim) {
    const T* from = static_cast<const T*>(element);
    std::int64_t d = 0;
    for (; d + V::width <= dim; d += V::width) V::store(out + d, V::load(from + d));
    if (d == dim) return;
    float tail[V::width];
    V::store(tail, V::load_first(from + d, static_cast<int>(dim - d)));
    for (std::int64_t i = d; i < dim; ++i) out[i] = tail[i - d];
}

template <class V>
void copy_floats(Element type, const void* element, float* out, std::int64_t dim) {
    switch (type) {
        case Element::f32: return widen<V, float>(element, out, dim);
        case Element::f16: return widen<V, Half>(element, out, dim);
        case Element::bf16: return widen<V, Brain>(element, out, dim);
    }
}

// The element in fp32: in place, or widened into `memory` (dim floats).
template <class V>
const float* floats_of(Element type, const void* element, float* memory, std::int64_t dim) {
    if (type == Element::f32) return static_cast<const float*>(element);
    copy_floats<V>(type, element, memory, dim);
    return memory;
}

}  // namespace divse
