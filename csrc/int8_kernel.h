// What one instruction set provides for int8 codes, and the plain data it works on. As in kernel.h,
// nothing here may be an inline function of external linkage.
#pragma once

#include "int8.h"
#include "kernel.h"

namespace divse {

constexpr int code_padding = 64;  // bytes that a row of query codes is a multiple of
constexpr int code_rows = 4;      // rows that the number of query rows is padded to

// The scalars of one part of the queries' codes, one entry a row: a cosine is scale * u * dot (of
// both parts: the sum of two) with error at most weight * p + constant.
struct CodeTerms {
    const float *scales, *weights, *constants;
    const std::int32_t* sums;  // of the codes of a row
};

// Queries as rows: row (q - first) * K + i; rows past the last are zero.
struct CodeBlock {
    std::int64_t first, count;  // queries
    std::int64_t elements, dim, padded_dim;
    const std::int64_t* counts;  // (count,) real elements
    const float* margins;        // (count,) what is added to a score's bound
    const std::int8_t* codes[2];  // of both parts, (rows, padded_dim)
    const std::int16_t* wide[2];  // the same codes
    CodeTerms terms[2];           // of the first part alone, and of both together
};

// Sets to bound, at most a register's width of them: ids[0..count), or first.. if ids is null.
struct CodeLanes {
    std::int64_t first, count;
    const std::int64_t* ids;
};

// Memory of one worker, allocated by CodeWorkspace.
struct CodeScratch {
    std::int32_t* dots[2];  // [element of the set][query row][lane]
    float* cosines;         // likewise
    float* sums;            // see Sums
    float* scales;          // [element of the set][lane]
    float* residuals;       // likewise
    std::int64_t* starts;   // of elements: where their codes are, from the first set's
    std::int64_t* places;   // of elements: where their dots go
};

struct Int8Kernel {
    const char* name;
    int width;  // lanes

    // Codes of one element; `floats` has room for dim. False if it is longer than `longest`.
    bool (*encode)(const void* element, Element type, std::int64_t dim, double longest,
                   float* floats, std::int8_t* codes, float* scale, float* residual);

    // Upper bounds of the sets in the lanes by `parts` parts, at (q - block.first) * stride + lane.
    void (*bound)(const CodeBlock& block, const Codes& gallery, const CodeLanes& sets, int parts,
                  const Terms& terms, float* upper, std::int64_t stride,
                  const CodeScratch& scratch);

    // Scores of the sets of the groups first..last-1 by the queries' first part, at
    // (q - block.first) * stride + (n - first * lane_sets), of whole groups.
    void (*estimate)(const CodeBlock& block, const LaneCodes& gallery, std::int64_t first,
                     std::int64_t last, const Terms& terms, float* out, std::int64_t stride,
                     const CodeScratch& scratch);
};

const Int8Kernel& baseline_int8();
const Int8Kernel& avx2_int8();
const Int8Kernel& avx512_vnni();

// The kernel that goes with an exact one: VNNI with AVX-512 where the CPU has both.
const Int8Kernel& int8_kernel(const Kernel& exact);

}  // namespace divse
