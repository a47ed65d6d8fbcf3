// AVX2, FMA, F16C: 8 floats, 16 registers: outer-product tiles of 6 rows x 2 vectors.
// In an unnamed namespace: every file that includes this is compiled with its own flags.
#pragma once

#include <immintrin.h>

#include "kernel.h"

namespace divse {
namespace {

struct Avx2 {
    using F = __m256;
    using Mask = __m256;  // all bits of a lane set or clear
    static constexpr int width = 8, panel = 2, rows = 6;

    static F zero() { return _mm256_setzero_ps(); }
    static F broadcast(float x) { return _mm256_set1_ps(x); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static F load(const Half* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static F load(const Brain* p) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    // For several products: GCC else loads it again for each, and a core starts as many products a
    // cycle as loads.
    static F load_shared(const float* p) {
        F x = load(p);
        asm("" : "+x"(x));
        return x;
    }
    static F load_first(const float* p, int count) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
    }
    template <class T>
    static F load_first(const T* p, int count) {
        T tail[width] = {};
        for (int i = 0; i < count; ++i) tail[i] = p[i];
        return load(tail);
    }
    static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
    // Lane i of the results is p[i / 2], and p[i % 2].
    static F spread(const float* p) {
        const __m256i lane = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
        return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), lane);
    }
    static F cycle(const float* p) {
        double both;
        __builtin_memcpy(&both, p, sizeof both);
        return _mm256_castpd_ps(_mm256_set1_pd(both));
    }

    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F fms(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F round(F x) {
        return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }

    static Mask less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
    static Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
    static bool any(Mask m) { return _mm256_movemask_ps(m) != 0; }
    static bool all(Mask m) { return _mm256_movemask_ps(m) == 0xff; }
    static F select(Mask m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }

    // Normal results only: exp2 keeps n in -125..127.
    static F times_power_of_two(F x, F n) {
        const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shift));
    }
    static F exponent(F x) {
        const __m256i biased = _mm256_srli_epi32(_mm256_castps_si256(x), 23);
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(127)));
    }
    static F mantissa(F x) {
        const __m256i fraction =
            _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x007fffff));
        return _mm256_castsi256_ps(_mm256_or_si256(fraction, _mm256_set1_epi32(0x3f800000)));
    }

    // Lane i of the result is the sum over the lanes of sums[i].
    static F sum_each(const F* s) {
        const F low = fours(s[0], s[1], s[2], s[3]), high = fours(s[4], s[5], s[6], s[7]);
        return add(_mm256_permute2f128_ps(low, high, 0x20),
                   _mm256_permute2f128_ps(low, high, 0x31));
    }

    // columns[i] = (rows[0][i], rows[1][i], ...), `rows` being 8 x 8 lanes of any kind.
    static void transpose(const float* rows, F* columns) {
        for (int c = 0; c < width; c += 4) {
            const F a = halves(rows + c, 0), b = halves(rows + c, 1), d = halves(rows + c, 2),
                    e = halves(rows + c, 3);
            const F ab = _mm256_unpacklo_ps(a, b), AB = _mm256_unpackhi_ps(a, b);
            const F de = _mm256_unpacklo_ps(d, e), DE = _mm256_unpackhi_ps(d, e);
            columns[c] = _mm256_shuffle_ps(ab, de, 0x44);
            columns[c + 1] = _mm256_shuffle_ps(ab, de, 0xee);
            columns[c + 2] = _mm256_shuffle_ps(AB, DE, 0x44);
            columns[c + 3] = _mm256_shuffle_ps(AB, DE, 0xee);
        }
    }

private:
    // Four lanes of row r and of row r + 4.
    static F halves(const float* rows, int r) {
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows + r * width)),
                                    _mm_loadu_ps(rows + (r + 4) * width), 1);
    }
    // Per 128-bit half, the sum of that half of a, b, c, d.
    static F fours(F a, F b, F c, F d) {
        const F ab = pairs(a, b), cd = pairs(c, d);
        return add(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xdd));
    }
    static F pairs(F a, F b) {
        return add(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    }
};

}  // namespace
}  // namespace divse
