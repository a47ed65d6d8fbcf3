// Backward: the derivative of every score by every cosine, times the incoming gradient.
#pragma once

#include "fold.h"
#include "gemm.h"
#include "kernel.h"
#include "sets_access.h"

namespace divse {

// 1 / (2 length sum) per element, in place of the sums; zero where a set has no element.
template <class V>
void to_inverse(float* sums, std::int64_t count, typename V::F lengths) {
    const auto half = V::div(V::broadcast(0.5f), lengths);
    for (std::int64_t i = 0; i < count; ++i) {
        const auto inverse = V::div(half, V::load(sums + i * V::width));
        V::store(sums + i * V::width, V::select(present<V>(i, lengths), inverse, V::zero()));
    }
}

// Overwrites the cosines of one set pair per lane by grad * w_ij; returns sum_ij w_ij c_ij.
template <class V>
typename V::F to_weights(float* tile, const Grid& grid, const Sums& sums, typename V::F a_lengths,
                         typename V::F grad, bool shifted, const Exp2<V>& exp2) {
    using F = typename V::F;
    F moment = V::zero();
    for (std::int64_t b = 0; b < grid.b_count; ++b) {
        const F column = V::load(sums.b + b * V::width);
        F part = V::zero();  // short sums lose fewer digits
        for (std::int64_t a = 0; a < grid.a_count; ++a) {
            float* at = tile + a * grid.a_stride + b * grid.b_stride;
            const F c = V::load(at), row = V::load(sums.a + a * V::width);
            F w;
            if (shifted) {
                w = V::mul(exp2(V::sub(c, V::load(sums.a_max + a * V::width))), row);
                w = V::fma(exp2(V::sub(c, V::load(sums.b_max + b * V::width))), column, w);
            } else {
                w = V::mul(exp2(c), V::add(row, column));
            }
            w = V::select(present<V>(a, a_lengths), w, V::zero());
            part = V::fma(w, c, part);
            V::store(at, V::mul(w, grad));
        }
        moment = V::add(moment, part);
    }
    return moment;
}

// One gallery set with one group of queries; returns sum over lanes of grad * (moment - SC).
template <class V>
double weigh_pair(float* tile, const Grid& grid, typename V::F a_lengths, bool ragged,
                  const Terms& terms, const float* grads, float* memory, const Exp2<V>& exp2) {
    using F = typename V::F;
    const Sums sums = sums_at(memory, grid.a_count, grid.b_count, V::width);
    F score = V::zero();
    bool shifted = terms.shifted, sound = false;
    while (!sound) {
        begin<V>(sums, grid.a_count, grid.b_count, shifted);
        fold<V>(grid, a_lengths, ragged, shifted, sums, exp2);
        score = score_of<V>(sums, grid.a_count, grid.b_count, a_lengths, terms, shifted);
        sound = shifted || V::all(V::less(V::broadcast(-__builtin_inff()), score));
        shifted = shifted || !sound;
    }
    to_inverse<V>(sums.a, grid.a_count, a_lengths);
    to_inverse<V>(sums.b, grid.b_count, V::broadcast(static_cast<float>(grid.b_count)));
    const F grad = V::load(grads);
    const F moment = to_weights<V>(tile, grid, sums, a_lengths, grad, shifted, exp2);
    float change[V::width];
    V::store(change, V::sub(moment, score));
    double total = 0;
    for (int lane = 0; lane < V::width; ++lane) {
        if (grads[lane] != 0) total += static_cast<double>(grads[lane]) * change[lane];
    }
    return total;
}

template <class V>
double weigh(const QueryBlock& block, const DenseSets& gallery, const Terms& terms,
             const float* grads, float* weights, std::int64_t stride, const Scratch& scratch) {
    const std::int64_t k = block.elements, step = V::panel * V::width;
    std::int64_t elements = 0;
    for (std::int64_t n = 0; n < gallery.sets; ++n) elements += gallery.counts[n];
    gemm<V>(gallery.rows, elements, 1, {block.values, step, step * block.dim}, block.groups * k,
            block.dim, weights, stride, false);
    const Exp2<V> exp2(terms.scale);
    double total = 0;
    for (std::int64_t n = 0; n < gallery.sets; weights += gallery.counts[n++] * stride) {
        for (std::int64_t g = 0; g < block.groups; ++g, grads += V::width) {
            const auto lengths = V::load(block.lengths + g * V::width);
            const bool ragged = V::any(V::less(lengths, V::broadcast(static_cast<float>(k))));
            float* tile = weights + g * k * V::width;
            const Grid grid{tile, V::width, stride, 0, 0, k, gallery.counts[n]};
            total += weigh_pair<V>(tile, grid, lengths, ragged, terms, grads, scratch.sums, exp2);
        }
    }
    return total;
}

}  // namespace divse
