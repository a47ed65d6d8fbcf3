// int8 codes with AVX2. Those of sets one after another are widened to 16 bits, which costs less than
// what the instruction that multiplies bytes asks for where few rows share it.
#include "avx2.h"
#include "int8_scorer.h"

namespace divse {
namespace {

struct Madd {
    using Int = __m256i;
    static constexpr int width = 8, bytes = 16, locality = codes_locality;

    static Int zero() { return _mm256_setzero_si256(); }
    static Int load(const std::int8_t* p) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static Int load_first(const std::int8_t* p, int count) {
        std::int8_t tail[bytes] = {};
        for (int i = 0; i < count; ++i) tail[i] = p[i];
        return load(tail);
    }
    using QueryCode = std::int16_t;
    static Int load_query(const QueryCode* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    // Around the intrinsic GCC 12 copies every sum to another register and back.
    static Int dot(Int sum, Int gallery, Int query) {
        asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(gallery, query)));
        return sum;
    }
    static void store(std::int32_t* p, Int x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
    }
    static __m256 floats(const std::int32_t* p, std::int32_t) {
        return _mm256_cvtepi32_ps(load_sums(p));
    }
    static Int biases(const std::int32_t*) { return zero(); }
    static __m256 floats(Int dots, Int) { return _mm256_cvtepi32_ps(dots); }

    // Lanes take bytes as they are: the instruction wants unsigned ones, so signs of the gallery's
    // codes go to the query's. No code exceeds 127 both times, and two products fit in 16 bits.
    using Lanes = Int;
    using LaneQuery = Int;
    static constexpr int lane_elements = 2;

    static Lanes start(std::int32_t) { return zero(); }
    static LaneQuery load_lane_query(const std::int8_t* p) {
        std::int32_t codes;
        __builtin_memcpy(&codes, p, sizeof codes);
        return _mm256_set1_epi32(codes);
    }
    template <int Rows>
    static void add_lanes(Lanes* sums, const std::int8_t* gallery, const LaneQuery* rows) {
        const Int codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(gallery));
        const Int sizes = _mm256_abs_epi8(codes), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
            const Int pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(rows[r], codes));
            sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(pairs, ones));
        }
    }
    static __m256 lane_floats(Lanes sum) { return _mm256_cvtepi32_ps(sum); }

    // Lane i of the result is the sum over the lanes of sums[i].
    static Int sum_each(const Int* s) {
        const Int a = fours(s), b = fours(s + 4);
        return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                                _mm256_permute2x128_si256(a, b, 0x31));
    }

private:
    static Int load_sums(const std::int32_t* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    // Both halves of four sums, still apart.
    static Int fours(const Int* s) {
        return _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
    }
};

}  // namespace

const Int8Kernel& avx2_int8() {
    static constexpr Int8Kernel kernel = int8_kernel_of<Avx2, Madd>("avx2");
    return kernel;
}

}  // namespace divse
