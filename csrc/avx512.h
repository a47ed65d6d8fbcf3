// AVX-512 (F, DQ): 16 floats, 32 registers: outer-product tiles of 6 rows x 4 vectors.
// In an unnamed namespace: every file that includes this is compiled with its own flags.
#pragma once

#include <immintrin.h>

#include "kernel.h"

namespace divse {
namespace {

struct Avx512 {
    using F = __m512;
    using Mask = __mmask16;
    static constexpr int width = 16, panel = 4, rows = 6;

    static F zero() { return _mm512_setzero_ps(); }
    static F broadcast(float x) { return _mm512_set1_ps(x); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static F load(const Half* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static F load(const Brain* p) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static F load_shared(const float* p) { return load(p); }
    static F load_first(const float* p, int count) {
        return _mm512_maskz_loadu_ps(first(count), p);
    }
    template <class T>
    static F load_first(const T* p, int count) {
        T tail[width] = {};
        for (int i = 0; i < count; ++i) tail[i] = p[i];
        return load(tail);
    }
    static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
    // Lane i of the results is p[i / 4], and p[i % 4].
    static F spread(const float* p) {
        const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        return _mm512_permutexvar_ps(lane, _mm512_castps128_ps512(_mm_loadu_ps(p)));
    }
    static F cycle(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }

    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }

    static Mask less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
    static Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
    static bool any(Mask m) { return m != 0; }
    static bool all(Mask m) { return m == 0xffff; }
    static F select(Mask m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }

    static F times_power_of_two(F x, F n) { return _mm512_scalef_ps(x, n); }
    static F exponent(F x) { return _mm512_getexp_ps(x); }
    static F mantissa(F x) {
        return _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
    }

    // Lane i of the result is the sum over the lanes of sums[i].
    static F sum_each(const F* s) {
        F q[4];
        for (int m = 0; m < 4; ++m) q[m] = quarters(s[m], s[m + 4], s[m + 8], s[m + 12]);
        const F p = pairs(q[0], q[1]), r = pairs(q[2], q[3]);
        return add(_mm512_shuffle_ps(p, r, 0x88), _mm512_shuffle_ps(p, r, 0xdd));
    }

    // columns[i] = (rows[0][i], rows[1][i], ...), `rows` being 16 x 16 lanes of any kind.
    static void transpose(const float* rows, F* columns) {
        F fours[width];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {  // row i, 4 + i, ... : one 128-bit quarter each
            const F a = row(rows, i), b = row(rows, 4 + i), c = row(rows, 8 + i),
                    d = row(rows, 12 + i);
            const F ab = _mm512_shuffle_f32x4(a, b, 0x44), cd = _mm512_shuffle_f32x4(c, d, 0x44);
            const F AB = _mm512_shuffle_f32x4(a, b, 0xee), CD = _mm512_shuffle_f32x4(c, d, 0xee);
            fours[i] = _mm512_shuffle_f32x4(ab, cd, 0x88);
            fours[4 + i] = _mm512_shuffle_f32x4(ab, cd, 0xdd);
            fours[8 + i] = _mm512_shuffle_f32x4(AB, CD, 0x88);
            fours[12 + i] = _mm512_shuffle_f32x4(AB, CD, 0xdd);
        }
#pragma GCC unroll 4
        for (int q = 0; q < width; q += 4) {
            const F ab = _mm512_unpacklo_ps(fours[q], fours[q + 1]);
            const F AB = _mm512_unpackhi_ps(fours[q], fours[q + 1]);
            const F cd = _mm512_unpacklo_ps(fours[q + 2], fours[q + 3]);
            const F CD = _mm512_unpackhi_ps(fours[q + 2], fours[q + 3]);
            columns[q] = _mm512_shuffle_ps(ab, cd, 0x44);
            columns[q + 1] = _mm512_shuffle_ps(ab, cd, 0xee);
            columns[q + 2] = _mm512_shuffle_ps(AB, CD, 0x44);
            columns[q + 3] = _mm512_shuffle_ps(AB, CD, 0xee);
        }
    }

private:
    static F row(const float* rows, int i) { return _mm512_loadu_ps(rows + i * width); }

    static Mask first(int count) { return static_cast<Mask>((1u << count) - 1); }

    // Four partial sums of each of a, b, c, d, one 128-bit quarter per vector.
    static F quarters(F a, F b, F c, F d) {
        const F ab = halves(a, b), cd = halves(c, d);
        return add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    }
    static F halves(F a, F b) {
        return add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    static F pairs(F a, F b) {
        return add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
};

}  // namespace
}  // namespace divse
