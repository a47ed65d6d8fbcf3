// Any CPU that GCC or Clang compiles for, by their vector extension: 4 floats (SSE2, NEON, ...).
// In an unnamed namespace: every file that includes this is compiled with its own flags.
#pragma once

#include <cstring>

#include "kernel.h"

namespace divse {
namespace {

struct Baseline {
    typedef float F __attribute__((vector_size(16)));
    typedef std::int32_t Mask __attribute__((vector_size(16)));  // -1 or 0 per lane
    static constexpr int width = 4, panel = 2, rows = 4;

    static F zero() { return F{}; }
    static F broadcast(float x) { return F{x, x, x, x}; }
    static F load(const float* p) {
        F x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    // fp16: shift the fields in place and let a multiplication by 2^112 move the exponent, which
    // serves subnormal numbers too; infinity and NaN get the largest exponent back.
    static F load_shared(const float* p) { return load(p); }
    static F load(const Half* p) {
        const Mask wide = widened(p);
        const Mask magnitude = (wide & 0x7fff) << 13;
        const Mask infinite = (magnitude >= 0x0f800000) & 0x7f800000;
        const Mask finite = (Mask)((F)magnitude * 0x1p112f);
        return (F)(finite | infinite | (wide & 0x8000) << 16);
    }
    static F load(const Brain* p) { return (F)(widened(p) << 16); }
    template <class T>
    static F load_first(const T* p, int count) {
        T tail[width] = {};
        for (int i = 0; i < count; ++i) tail[i] = p[i];
        return load(tail);
    }
    static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
    // Lane i of the results is p[i], and p[0].
    static F spread(const float* p) { return load(p); }
    static F cycle(const float* p) { return broadcast(*p); }

    static F add(F a, F b) { return a + b; }
    static F sub(F a, F b) { return a - b; }
    static F mul(F a, F b) { return a * b; }
    static F div(F a, F b) { return a / b; }
    static F fma(F a, F b, F c) { return a * b + c; }  // fused where the target has it
    static F fms(F a, F b, F c) { return a * b - c; }
    static F min(F a, F b) { return select(a < b, a, b); }
    static F max(F a, F b) { return select(a > b, a, b); }
    // Adding 1.5 * 2^23 leaves no bit for a fraction; |x| < 2^22 here.
    static F round(F x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

    static Mask less(F a, F b) { return a < b; }
    static Mask both(Mask a, Mask b) { return a & b; }
    static bool any(Mask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
    static bool all(Mask m) { return (m[0] & m[1] & m[2] & m[3]) != 0; }
    static F select(Mask m, F yes, F no) { return (F)(((Mask)yes & m) | ((Mask)no & ~m)); }

    // Normal results only: exp2 keeps n in -125..127.
    static F times_power_of_two(F x, F n) {
        return (F)((Mask)x + (__builtin_convertvector(n, Mask) << 23));
    }
    static F exponent(F x) { return __builtin_convertvector(((Mask)x >> 23) - 127, F); }
    static F mantissa(F x) { return (F)(((Mask)x & 0x007fffff) | 0x3f800000); }

    // Lane i of the result is the sum over the lanes of sums[i].
    static F sum_each(const F* s) {
        F total;
        for (int i = 0; i < width; ++i) total[i] = (s[i][0] + s[i][2]) + (s[i][1] + s[i][3]);
        return total;
    }

    // columns[i] = (rows[0][i], rows[1][i], ...), `rows` being 4 x 4 lanes of any kind.
    static void transpose(const float* rows, F* columns) {
        float turned[width * width];
        for (int r = 0; r < width; ++r) {
            for (int c = 0; c < width; ++c) {
                __builtin_memcpy(turned + c * width + r, rows + r * width + c, sizeof *rows);
            }
        }
        for (int c = 0; c < width; ++c) columns[c] = load(turned + c * width);
    }

private:
    static Mask widened(const void* p) {
        typedef std::uint16_t Bits __attribute__((vector_size(8)));
        Bits bits;
        std::memcpy(&bits, p, sizeof bits);
        return __builtin_convertvector(bits, Mask);
    }
};

}  // namespace
}  // namespace divse
