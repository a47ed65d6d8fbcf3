// int8 codes with AVX2: widened to 16 bits first, because the instruction that multiplies bytes
// saturates the sum of two products.
#include "avx2.h"
#include "int8_scorer.h"

namespace divse {
namespace {

struct Madd {
    using Int = __m256i;
    static constexpr int width = 8, bytes = 16;

    static Int zero() { return _mm256_setzero_si256(); }
    static Int load(const std::int8_t* p) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static Int load_first(const std::int8_t* p, int count) {
        std::int8_t tail[bytes] = {};
        for (int i = 0; i < count; ++i) tail[i] = p[i];
        return load(tail);
    }
    static Int load_query(const std::int8_t* p) { return load(p); }
    static Int dot(Int sum, Int gallery, Int query) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(gallery, query));
    }
    static void store(std::int32_t* p, Int x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
    }
    static __m256 floats(const std::int32_t* p, std::int32_t) {
        return _mm256_cvtepi32_ps(load_sums(p));
    }

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
