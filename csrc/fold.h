// From cosines to a score, one set pair per lane. Axis a may be ragged over the lanes (elements of
// the sets that the lanes hold), axis b is common to all lanes; either may be the query's.
#pragma once

#include "elementary.h"
#include "kernel.h"

namespace divse {

// Cosines of elements a_first.. by b_first.. of the two sets: cosines[a * a_stride + b * b_stride].
struct Grid {
    const float* cosines;
    std::int64_t a_stride, b_stride, a_first, b_first, a_count, b_count;
};

// Running sums (on the path of maxima: maxima), [element][lane]; a_max and b_max only if shifted.
struct Sums {
    float *a, *b, *a_max, *b_max;
};

static inline Sums sums_at(float* memory, std::int64_t a, std::int64_t b, int width) {
    return {memory, memory + a * width, memory + (a + b) * width, memory + (2 * a + b) * width};
}

template <class V>
void fill(float* values, std::int64_t count, float value) {
    for (std::int64_t i = 0; i < count; ++i) V::store(values + i * V::width, V::broadcast(value));
}

template <class V>
void begin(const Sums& sums, std::int64_t a, std::int64_t b, Path path) {
    constexpr float lowest = -__builtin_inff();
    // a and b are adjacent, so are the maxima.
    fill<V>(sums.a, a + b, path == Path::maxima ? lowest : 0.0f);
    if (path == Path::shifted) fill<V>(sums.a_max, a + b, lowest);
}

// Lanes whose set has an element a.
template <class V>
typename V::Mask present(std::int64_t a, typename V::F a_lengths) {
    return V::less(V::broadcast(static_cast<float>(a)), a_lengths);
}

template <class V, class Exp = Exp2<V>>
struct AddExponentials {
    using F = typename V::F;
    static constexpr float identity = 0.0f;
    const Exp& exp2;

    F value(F cosine) const { return exp2(cosine); }
    static F combine(F total, F x) { return V::add(total, x); }
};

// An element with NaN has only NaN cosines, so the last of its axis is one, and V::max(x, NaN) is
// NaN: it is lost from maxima over other elements, never from its own.
template <class V>
struct KeepLargest {
    using F = typename V::F;
    static constexpr float identity = -__builtin_inff();

    static F value(F cosine) { return cosine; }
    static F combine(F largest, F x) { return V::max(largest, x); }
};

template <class V, bool Ragged, class Combine>
void fold_once(const Grid& grid, typename V::F a_lengths, const Sums& sums, Combine combine) {
    using F = typename V::F;
    for (std::int64_t a = 0; a < grid.a_count; ++a) {
        const auto real = present<V>(grid.a_first + a, a_lengths);
        const float* cosines = grid.cosines + a * grid.a_stride;
        F row = V::broadcast(Combine::identity);
        float* column = sums.b + grid.b_first * V::width;
        for (std::int64_t b = 0; b < grid.b_count; ++b, column += V::width) {
            const F x = combine.value(V::load(cosines + b * grid.b_stride));
            row = combine.combine(row, x);
            const F old = V::load(column), next = combine.combine(old, x);
            V::store(column, Ragged ? V::select(real, next, old) : next);
        }
        float* total = sums.a + (grid.a_first + a) * V::width;
        V::store(total, combine.combine(V::load(total), row));
    }
}

// Raises a running maximum and rescales its sum: sum e^x-max is kept across tiles.
template <class V>
void raise(float* maximum, float* sum, typename V::F value, const Exp2<V>& exp2) {
    const auto old = V::load(maximum);
    const auto risen = V::max(old, value);
    V::store(maximum, risen);
    V::store(sum, V::mul(V::load(sum), exp2(V::sub(old, risen))));
}

template <class V>
void raise_maxima(const Grid& grid, typename V::F a_lengths, const Sums& sums,
                  const Exp2<V>& exp2) {
    using F = typename V::F;
    const F lowest = V::broadcast(-__builtin_inff());
    for (std::int64_t a = 0; a < grid.a_count; ++a) {
        F most = lowest;
        for (std::int64_t b = 0; b < grid.b_count; ++b) {
            most = V::max(most, V::load(grid.cosines + a * grid.a_stride + b * grid.b_stride));
        }
        const std::int64_t at = (grid.a_first + a) * V::width;
        raise<V>(sums.a_max + at, sums.a + at, most, exp2);
    }
    for (std::int64_t b = 0; b < grid.b_count; ++b) {
        F most = lowest;
        for (std::int64_t a = 0; a < grid.a_count; ++a) {
            const F c = V::load(grid.cosines + a * grid.a_stride + b * grid.b_stride);
            most = V::max(most, V::select(present<V>(grid.a_first + a, a_lengths), c, lowest));
        }
        const std::int64_t at = (grid.b_first + b) * V::width;
        raise<V>(sums.b_max + at, sums.b + at, most, exp2);
    }
}

template <class V>
void fold_shifted(const Grid& grid, typename V::F a_lengths, const Sums& sums,
                  const Exp2<V>& exp2) {
    using F = typename V::F;
    raise_maxima<V>(grid, a_lengths, sums, exp2);
    for (std::int64_t a = 0; a < grid.a_count; ++a) {
        const auto real = present<V>(grid.a_first + a, a_lengths);
        const std::int64_t at = (grid.a_first + a) * V::width;
        const F a_max = V::load(sums.a_max + at);
        F row = V::zero();
        for (std::int64_t b = 0; b < grid.b_count; ++b) {
            const F c = V::load(grid.cosines + a * grid.a_stride + b * grid.b_stride);
            const std::int64_t column = (grid.b_first + b) * V::width;
            const F e = exp2(V::sub(c, V::load(sums.b_max + column)));
            row = V::add(row, exp2(V::sub(c, a_max)));
            V::store(sums.b + column,
                     V::add(V::load(sums.b + column), V::select(real, e, V::zero())));
        }
        V::store(sums.a + at, V::add(V::load(sums.a + at), row));
    }
}

// Folds a tile of cosines into the running sums.
template <class V>
void fold(const Grid& grid, typename V::F a_lengths, bool ragged, Path path, const Sums& sums,
          const Exp2<V>& exp2) {
    if (path == Path::shifted) {
        fold_shifted<V>(grid, a_lengths, sums, exp2);
    } else if (path == Path::maxima) {
        (ragged ? fold_once<V, true, KeepLargest<V>> : fold_once<V, false, KeepLargest<V>>)(
            grid, a_lengths, sums, {});
    } else {
        (ragged ? fold_once<V, true, AddExponentials<V>> : fold_once<V, false, AddExponentials<V>>)(
            grid, a_lengths, sums, {exp2});
    }
}

// Mean over one axis of the logarithms of its sums, divided by alpha. The sums are made means over
// `inner` terms first, for a logarithm near zero keeps its digits; `sound` loses the lanes with a
// sum out of range.
template <class V>
typename V::F mean_log(const float* values, const float* maxima, std::int64_t count,
                       typename V::F lengths, typename V::F inner, const Terms& terms, bool shifted,
                       typename V::Mask& sound) {
    using F = typename V::F;
    LogSum<V> logs;
    F best = V::zero();
    const F low = V::broadcast(0x1p-90f), high = V::broadcast(0x1p126f), one = V::broadcast(1.0f);
    const F inverse = V::div(one, inner);
    for (std::int64_t i = 0; i < count; ++i) {
        const auto real = present<V>(i, lengths);
        const F x = V::select(real, V::load(values + i * V::width), one);
        sound = V::both(sound, V::both(V::less(low, x), V::less(x, high)));
        logs.add(V::select(real, V::mul(x, inverse), one));
        if (shifted) {
            const F most = V::load(maxima + i * V::width);
            best = V::add(best, V::select(real, most, V::zero()));
        }
    }
    const F log = V::div(logs.total(), V::broadcast(terms.scale));
    return V::div(V::add(best, log), lengths);
}

// Folded sums of a set pair per lane, and what the axes are.
template <class V>
struct Folded {
    Sums sums;
    std::int64_t a, b;
    typename V::F a_lengths;
    bool a_is_query;
};

template <class V>
typename V::F smooth_score(const Folded<V>& folded, const Terms& terms, bool shifted,
                           typename V::Mask& sound) {
    using F = typename V::F;
    const Sums& sums = folded.sums;
    const F a_length = folded.a_lengths, b_length = V::broadcast(static_cast<float>(folded.b));
    F both = V::add(
        mean_log<V>(sums.a, sums.a_max, folded.a, a_length, b_length, terms, shifted, sound),
        mean_log<V>(sums.b, sums.b_max, folded.b, b_length, a_length, terms, shifted, sound));
    if (!terms.log_mean) {
        const F sizes = V::add(log2<V>(a_length), log2<V>(b_length));
        both = V::add(both, V::div(sizes, V::broadcast(terms.scale)));
    }
    return V::mul(both, V::broadcast(0.5f));
}

// Sum and largest of one axis' maxima.
template <class V>
struct Best {
    using F = typename V::F;
    F sum = V::zero(), largest = V::broadcast(-__builtin_inff());

    Best(const float* maxima, std::int64_t count, F lengths, typename V::Mask& sound) {
        const F lowest = largest;
        for (std::int64_t i = 0; i < count; ++i) {
            const auto real = present<V>(i, lengths);
            const F x = V::load(maxima + i * V::width), kept = V::select(real, x, V::zero());
            sound = V::both(sound, V::less(lowest, kept));
            sum = V::add(sum, kept);
            largest = V::max(largest, V::select(real, x, lowest));
        }
    }
};

template <class V>
typename V::F best_score(const Folded<V>& folded, const Terms& terms, typename V::Mask& sound) {
    using F = typename V::F;
    const F b_lengths = V::broadcast(static_cast<float>(folded.b));
    const Best<V> a(folded.sums.a, folded.a, folded.a_lengths, sound);
    const Best<V> b(folded.sums.b, folded.b, b_lengths, sound);
    if (terms.measure == Measure::mil) return a.largest;
    const F query_sum = folded.a_is_query ? a.sum : b.sum;
    if (terms.measure == Measure::maxsim_sum) return query_sum;
    if (terms.measure == Measure::maxsim_mean) {
        return V::div(query_sum, folded.a_is_query ? folded.a_lengths : b_lengths);
    }
    const F both = V::add(V::div(a.sum, folded.a_lengths), V::div(b.sum, b_lengths));
    return V::mul(both, V::broadcast(0.5f));
}

// Scores of the lanes; NaN where a sum left its range (or the vectors hold NaN).
template <class V>
typename V::F score_of(const Folded<V>& folded, const Terms& terms, Path path) {
    auto sound = V::less(V::zero(), folded.a_lengths);
    const auto score = path == Path::maxima
                           ? best_score<V>(folded, terms, sound)
                           : smooth_score<V>(folded, terms, path == Path::shifted, sound);
    return V::select(sound, score, V::broadcast(__builtin_nanf("")));
}

// A first pass stores every score; the shifted one after it only those that are still open, so a
// score does not depend on its neighbours.
static inline float mended(float stored, float score, Path path, const Terms& terms) {
    return path != terms.path && stored == stored ? stored : score;
}

}  // namespace divse
