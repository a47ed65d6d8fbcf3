// What one instruction set provides, and the plain data it works on. The files of instruction sets
// are compiled with their own flags, so nothing here may be an inline function of external linkage:
// the linker could keep the AVX-512 copy for everybody.
#pragma once

#include <cstdint>

#include "similarity.h"

namespace divse {

constexpr int tile_vectors = 32;   // query vectors (or query rows) of one tile of cosines
constexpr int tile_elements = 48;  // gallery elements (per lane) of one tile of cosines
constexpr int row_padding = 16;    // valid entries of a list of elements past its end

// Queries ready for a kernel: at most one tile of rows unless it is a single group (or query).
//   in lanes   values [panel][d][vector of the panel][lane]: lane = query of the group, vector =
//              group * K + element; lengths [group][lane] as floats, 1 in lanes without a query
//   in rows    values [query * K + element][dim padded to the width], zero padded
struct QueryBlock {
    bool in_lanes;
    std::int64_t first, count;     // queries
    std::int64_t groups;           // in lanes: ceil(count / width)
    std::int64_t elements, dim, padded_dim;
    const float* values;
    const float* columns;          // in rows: also [panel][d][vector][lane], row = vector * width +
                                   // lane, where rows fill vectors well; null: they do not
    const float* lengths;          // in lanes
    const std::int64_t* counts;    // in rows: (count,) real elements
    bool of_queries;               // false: these are gallery sets (in gradients)
};

// Memory of one worker, allocated by Workspace in workspace.h.
struct Scratch {
    float* tile;           // cosines of one tile
    float* sums;           // row and column sums and maxima
    float* widened;        // gallery elements of one tile in fp32
    float* products;       // cosines of query rows in lanes with them
    const void** rows;     // addresses of gallery elements
    std::int64_t* places;  // where in the tile their cosines go
};

// What a fold accumulates: exponentials, exponentials shifted by running maxima, or maxima alone.
enum class Path { sums, shifted, maxima };

// One call's similarity, made once.
struct Terms {
    Measure measure;
    Path path;
    float scale;    // alpha log2(e): exp(alpha c) = 2^(scale c) and ln(x) / alpha = log2(x) / scale
    bool log_mean;
};

// Elements of the gallery sets of one backward tile, (sets,).
struct DenseSets {
    const std::int64_t* counts;
    std::int64_t sets;
};

struct Kernel {
    const char* name;
    int width;  // floats of a register
    int panel;  // vectors of a query panel

    // out[(q - block.first) * stride + (n - first)] for all queries of the block, n in first..last.
    // Only blocks in lanes keep cosines, of a gallery without ids.
    void (*score)(const QueryBlock& block, const Sets& gallery, std::int64_t first,
                  std::int64_t last, const Terms& terms, float* out, std::int64_t stride,
                  const Cosines& kept, const Scratch& scratch);

    // Cosines [gallery element][query vector][lane] of a block in lanes, `stride` floats a row.
    void (*multiply)(const QueryBlock& block, const float* const* rows, std::int64_t count,
                     float* out, std::int64_t stride);

    // Overwrites such cosines by grad * w_ij (zero in padding); grads [set][group][lane]. Returns
    // the sum of grad * (sum_ij w_ij c_ij - SC), or 0 for a similarity without alpha.
    double (*weigh)(const QueryBlock& block, const DenseSets& gallery, const Terms& terms,
                    const float* grads, float* tile, std::int64_t stride,
                    const Scratch& scratch);

    // c[row][0..vectors * width) += sum_t rows[row][t * step] * b[t * b_stride + ...]
    void (*accumulate)(const float* const* rows, std::int64_t count, std::int64_t step,
                       const float* b, std::int64_t b_stride, std::int64_t vectors,
                       std::int64_t depth, float* c, std::int64_t c_stride);
};

const Kernel& baseline_kernel();
const Kernel& avx2_kernel();
const Kernel& avx512_kernel();

}  // namespace divse
