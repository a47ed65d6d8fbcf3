// Backward: the derivative of every score by every cosine, times the incoming gradient.
#pragma once

#include "fold.h"
#include "kernel.h"

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
                         typename V::F grad, Path path, const Exp2<V>& exp2) {
    using F = typename V::F;
    F moment = V::zero();
    for (std::int64_t b = 0; b < grid.b_count; ++b) {
        const F column = V::load(sums.b + b * V::width);
        F part = V::zero();  // short sums lose fewer digits
        for (std::int64_t a = 0; a < grid.a_count; ++a) {
            float* at = tile + a * grid.a_stride + b * grid.b_stride;
            const F c = V::load(at), row = V::load(sums.a + a * V::width);
            F w;
            if (path == Path::shifted) {
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

// Keeps one axis' maxima that count for the similarity; an infinite one is never reached by a cosine.
template <class V>
void drop_maxima(float* maxima, std::int64_t count) {
    fill<V>(maxima, count, __builtin_inff());
}

template <class V>
void keep_first_largest(float* maxima, std::int64_t count, typename V::F lengths) {
    using F = typename V::F;
    const F lowest = V::broadcast(-__builtin_inff()), never = V::broadcast(__builtin_inff());
    F largest = lowest;
    for (std::int64_t i = 0; i < count; ++i) {
        const F x = V::load(maxima + i * V::width);
        largest = V::max(largest, V::select(present<V>(i, lengths), x, lowest));
    }
    for (std::int64_t i = 0; i < count; ++i) {
        const F x = V::select(present<V>(i, lengths), V::load(maxima + i * V::width), lowest);
        const auto less = V::less(x, largest);
        V::store(maxima + i * V::width, V::select(less, never, x));
        largest = V::select(less, largest, never);
    }
}

// Derivatives by the maxima of both axes, on whose first cosine they fall.
template <class V>
struct Shares {
    typename V::F a, b;
};

template <class V>
Shares<V> shares_of(const Folded<V>& folded, const Terms& terms) {
    using F = typename V::F;
    const F b_lengths = V::broadcast(static_cast<float>(folded.b)), one = V::broadcast(1.0f);
    const F half = V::broadcast(0.5f);
    if (terms.measure == Measure::chamfer) {
        return {V::div(half, folded.a_lengths), V::div(half, b_lengths)};
    }
    drop_maxima<V>(folded.a_is_query ? folded.sums.b : folded.sums.a,
                   folded.a_is_query ? folded.b : folded.a);
    const F lengths = folded.a_is_query ? folded.a_lengths : b_lengths;
    if (terms.measure == Measure::mil) {
        keep_first_largest<V>(folded.a_is_query ? folded.sums.a : folded.sums.b,
                              folded.a_is_query ? folded.a : folded.b, lengths);
    }
    const F share = terms.measure == Measure::maxsim_mean ? V::div(one, lengths) : one;
    return {share, share};
}

// Overwrites the cosines of one set pair per lane by grad times the shares of the maxima they are.
template <class V>
void to_shares(float* tile, const Grid& grid, const Folded<V>& folded, const Shares<V>& shares,
               typename V::F grad) {
    using F = typename V::F;
    const F lowest = V::broadcast(-__builtin_inff()), never = V::broadcast(__builtin_inff());
    const auto share_of = [&](float* maximum, F cosine, F share) {
        const F most = V::load(maximum);
        const auto below = V::less(cosine, most);
        V::store(maximum, V::select(below, most, never));  // the next equal one is not the first
        return V::select(below, V::zero(), share);
    };
    for (std::int64_t b = 0; b < grid.b_count; ++b) {
        for (std::int64_t a = 0; a < grid.a_count; ++a) {
            float* at = tile + a * grid.a_stride + b * grid.b_stride;
            const auto real = present<V>(a, folded.a_lengths);
            const F c = V::select(real, V::load(at), lowest);
            const F w = V::add(share_of(folded.sums.a + a * V::width, c, shares.a),
                               share_of(folded.sums.b + b * V::width, c, shares.b));
            V::store(at, V::mul(V::select(real, w, V::zero()), grad));
        }
    }
}

// Smooth-Chamfer: one y set with one group; returns sum over lanes of grad * (moment - SC).
template <class V>
double weigh_smooth(float* tile, const Grid& grid, const Folded<V>& folded, bool ragged,
                    const Terms& terms, const float* grads, const Exp2<V>& exp2) {
    using F = typename V::F;
    const Sums& sums = folded.sums;
    F score = V::zero();
    Path path = terms.path;
    for (bool sound = false; !sound;) {
        begin<V>(sums, grid.a_count, grid.b_count, path);
        fold<V>(grid, folded.a_lengths, ragged, path, sums, exp2);
        score = score_of<V>(folded, terms, path);
        sound = path == Path::shifted || V::all(V::less(V::broadcast(-__builtin_inff()), score));
        if (!sound) path = Path::shifted;
    }
    to_inverse<V>(sums.a, grid.a_count, folded.a_lengths);
    to_inverse<V>(sums.b, grid.b_count, V::broadcast(static_cast<float>(grid.b_count)));
    const F grad = V::load(grads);
    const F moment = to_weights<V>(tile, grid, sums, folded.a_lengths, grad, path, exp2);
    float change[V::width];
    V::store(change, V::sub(moment, score));
    double total = 0;
    for (int lane = 0; lane < V::width; ++lane) {
        if (grads[lane] != 0) total += static_cast<double>(grads[lane]) * change[lane];
    }
    return total;
}

template <class V>
double weigh_best(float* tile, const Grid& grid, const Folded<V>& folded, bool ragged,
                  const Terms& terms, const float* grads, const Exp2<V>& exp2) {
    begin<V>(folded.sums, grid.a_count, grid.b_count, terms.path);
    fold<V>(grid, folded.a_lengths, ragged, terms.path, folded.sums, exp2);
    to_shares<V>(tile, grid, folded, shares_of<V>(folded, terms), V::load(grads));
    return 0;
}

template <class V>
double weigh(const QueryBlock& block, const DenseSets& gallery, const Terms& terms,
             const float* grads, float* tile, std::int64_t stride, const Scratch& scratch) {
    const std::int64_t k = block.elements;
    const Exp2<V> exp2(terms.scale);
    const auto weigh_pair = terms.path == Path::maxima ? weigh_best<V> : weigh_smooth<V>;
    double total = 0;
    for (std::int64_t n = 0; n < gallery.sets; tile += gallery.counts[n++] * stride) {
        const std::int64_t count = gallery.counts[n];
        for (std::int64_t g = 0; g < block.groups; ++g, grads += V::width) {
            const auto lengths = V::load(block.lengths + g * V::width);
            const bool ragged = V::any(V::less(lengths, V::broadcast(static_cast<float>(k))));
            float* cosines = tile + g * k * V::width;
            const Grid grid{cosines, V::width, stride, 0, 0, k, count};
            const Sums sums = sums_at(scratch.sums, k, count, V::width);
            const Folded<V> folded{sums, k, count, lengths, block.of_queries};
            total += weigh_pair(cosines, grid, folded, ragged, terms, grads, exp2);
        }
    }
    return total;
}

}  // namespace divse
