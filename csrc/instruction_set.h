// Fills the kernel table for a register type V; included by one file per instruction set.
#pragma once

#include "panel_scorer.h"
#include "scan_scorer.h"
#include "weigh.h"

namespace divse {

template <class V>
void score_block(const QueryBlock& block, const Sets& gallery, std::int64_t first,
                 std::int64_t last, const Terms& terms, float* out, std::int64_t stride,
                 const Cosines& kept, const Scratch& scratch) {
    if (block.in_lanes) {
        PanelScorer<V>(block, gallery, terms, kept, scratch).run(first, last, out, stride);
    } else {
        ScanScorer<V>(block, gallery, terms, scratch).run(first, last, out, stride);
    }
}

template <class V>
void multiply_block(const QueryBlock& block, const float* const* rows, std::int64_t count,
                    float* out, std::int64_t stride) {
    const std::int64_t step = V::panel * V::width;
    gemm<V>(rows, count, 1, {block.values, step, step * block.dim}, block.groups * block.elements,
            block.dim, out, stride, false);
}

template <class V>
void accumulate(const float* const* rows, std::int64_t count, std::int64_t step, const float* b,
                std::int64_t b_stride, std::int64_t vectors, std::int64_t depth, float* c,
                std::int64_t c_stride) {
    const Panels panels{b, b_stride, V::panel * V::width};
    gemm<V>(rows, count, step, panels, vectors, depth, c, c_stride, true);
}

template <class V>
constexpr Kernel kernel_of(const char* name) {
    return {name, V::width, V::panel, score_block<V>, multiply_block<V>, weigh<V>,
            accumulate<V>};
}

}  // namespace divse
