// int8 codes with AVX-512 VNNI: 64 products of an unsigned and a signed byte an instruction.
#include "avx512.h"
#include "int8_scorer.h"

namespace divse {
namespace {

// The gallery's codes are the unsigned ones: 128 more than they are.
struct Vnni {
    using Int = __m512i;
    static constexpr int width = 16, bytes = 64, bias = 128;
    static constexpr int locality = 3;  // the first cache, which was faster (docs/cpu.md)

    static Int zero() { return _mm512_setzero_si512(); }
    static Int load(const std::int8_t* p) { return biased(_mm512_loadu_si512(p)); }
    static Int load_first(const std::int8_t* p, int count) {
        return biased(_mm512_maskz_loadu_epi8(~std::uint64_t{0} >> (64 - count), p));
    }
    using QueryCode = std::int8_t;
    static Int load_query(const std::int8_t* p) { return _mm512_loadu_si512(p); }
    // Around the intrinsic GCC 12 copies every sum to another register and back.
    static Int dot(Int sum, Int gallery, Int query) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(gallery), "v"(query));
        return sum;
    }
    static void store(std::int32_t* p, Int x) { _mm512_storeu_si512(p, x); }
    static __m512 floats(const std::int32_t* p, std::int32_t sum) {
        return _mm512_cvtepi32_ps(
            _mm512_sub_epi32(_mm512_loadu_si512(p), _mm512_set1_epi32(bias * sum)));
    }

    static Int biases(const std::int32_t* sums) {
        const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sums));
        return _mm512_mullo_epi32(_mm512_permutexvar_epi32(lane, _mm512_castsi128_si512(four)),
                                  _mm512_set1_epi32(bias));
    }
    static __m512 floats(Int dots, Int biases) {
        return _mm512_cvtepi32_ps(_mm512_sub_epi32(dots, biases));
    }

    using Lanes = Int;
    using LaneQuery = Int;
    static constexpr int lane_elements = 4;

    static Lanes start(std::int32_t sum) { return _mm512_set1_epi32(-bias * sum); }
    static LaneQuery load_lane_query(const std::int8_t* p) {
        std::int32_t codes;
        __builtin_memcpy(&codes, p, sizeof codes);
        return _mm512_set1_epi32(codes);
    }
    template <int Rows>
    static void add_lanes(Lanes* sums, const std::int8_t* gallery, const LaneQuery* rows) {
        const Int lanes = load(gallery);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) sums[r] = dot(sums[r], lanes, rows[r]);
    }
    static __m512 lane_floats(Lanes sum) { return _mm512_cvtepi32_ps(sum); }

    // Lane i of the result is the sum over the lanes of sums[i].
    static Int sum_each(const Int* s) {
        const Int p = pairs(quarters(s[0], s[4], s[8], s[12]), quarters(s[1], s[5], s[9], s[13]));
        const Int r = pairs(quarters(s[2], s[6], s[10], s[14]), quarters(s[3], s[7], s[11], s[15]));
        return _mm512_add_epi32(shuffle<0x88>(p, r), shuffle<0xdd>(p, r));
    }

private:
    static Int biased(Int x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }

    template <int Order>
    static Int shuffle(Int a, Int b) {
        return _mm512_castps_si512(
            _mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), Order));
    }
    // Four partial sums of each of a, b, c, d, one 128-bit quarter per vector.
    static Int quarters(Int a, Int b, Int c, Int d) {
        const Int ab = halves(a, b), cd = halves(c, d);
        return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88),
                                _mm512_shuffle_i32x4(ab, cd, 0xdd));
    }
    static Int halves(Int a, Int b) {
        return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44),
                                _mm512_shuffle_i32x4(a, b, 0xee));
    }
    static Int pairs(Int a, Int b) {
        return _mm512_add_epi32(shuffle<0x44>(a, b), shuffle<0xee>(a, b));
    }
};

}  // namespace

const Int8Kernel& avx512_vnni() {
    static constexpr Int8Kernel kernel = int8_kernel_of<Avx512, Vnni>("avx512_vnni");
    return kernel;
}

}  // namespace divse
