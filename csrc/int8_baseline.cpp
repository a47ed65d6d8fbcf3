// int8 codes on any CPU that GCC or Clang compiles for: 4 lanes of 32 bits.
#include "baseline.h"
#include "int8_scorer.h"

namespace divse {
namespace {

struct Plain {
    typedef std::int32_t Int __attribute__((vector_size(16)));
    typedef std::int8_t Bytes __attribute__((vector_size(4)));
    static constexpr int width = 4, bytes = 4, locality = codes_locality;

    static Int zero() { return Int{}; }
    static Int load(const std::int8_t* p) {
        Bytes x;
        __builtin_memcpy(&x, p, sizeof x);
        return __builtin_convertvector(x, Int);
    }
    static Int load_first(const std::int8_t* p, int count) {
        std::int8_t tail[bytes] = {};
        for (int i = 0; i < count; ++i) tail[i] = p[i];
        return load(tail);
    }
    using QueryCode = std::int8_t;
    static Int load_query(const std::int8_t* p) { return load(p); }
    static Int dot(Int sum, Int gallery, Int query) { return sum + gallery * query; }
    static void store(std::int32_t* p, Int x) { __builtin_memcpy(p, &x, sizeof x); }
    static Baseline::F floats(const std::int32_t* p, std::int32_t) {
        Int x;
        __builtin_memcpy(&x, p, sizeof x);
        return __builtin_convertvector(x, Baseline::F);
    }
    static Int biases(const std::int32_t*) { return zero(); }
    static Baseline::F floats(Int dots, Int) { return __builtin_convertvector(dots, Baseline::F); }

    using Lanes = Int;
    struct LaneQuery {
        std::int32_t codes[lane_dims];
    };
    static constexpr int lane_elements = 2;

    static Lanes start(std::int32_t) { return zero(); }
    static LaneQuery load_lane_query(const std::int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
    template <int Rows>
    static void add_lanes(Lanes* sums, const std::int8_t* gallery, const LaneQuery* rows) {
        for (int lane = 0; lane < width; ++lane) {
            for (int d = 0; d < lane_dims; ++d) {
                const std::int32_t code = gallery[lane * lane_dims + d];
                for (int r = 0; r < Rows; ++r) sums[r][lane] += code * rows[r].codes[d];
            }
        }
    }
    static Baseline::F lane_floats(Lanes sum) {
        return __builtin_convertvector(sum, Baseline::F);
    }

    // Lane i of the result is the sum over the lanes of sums[i].
    static Int sum_each(const Int* s) {
        Int total;
        for (int i = 0; i < width; ++i) total[i] = (s[i][0] + s[i][2]) + (s[i][1] + s[i][3]);
        return total;
    }
};

}  // namespace

const Int8Kernel& baseline_int8() {
    static constexpr Int8Kernel kernel = int8_kernel_of<Baseline, Plain>("baseline");
    return kernel;
}

}  // namespace divse
