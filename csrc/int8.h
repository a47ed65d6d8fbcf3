// Certified search over int8 codes: scan, bound, rescore. The contract, and why it is exact.
//
// Codes are those of divse/similarity/quantise.py: element y of a gallery set is u t + what its
// residual p bounds, t int8; element x of a query is s1 q1 + s2 q2 + what `rest` bounds. With x' the
// first part or both, r what it leaves, and |y| <= unit_bound (checked when codes are made):
//
//     |<x, y> - <x', u t>| <= r unit_bound + (|x| + r) p = e_xy
//
// Every similarity here is monotone in each cosine, so the similarity of <x', u t> + e_xy is an
// upper bound of a score. <q, t> is a sum of integers and exact.
//
// Slack. The bounds are of scores as the exact kernels compute them, in fp32, with unit roundoff
// v = 2^-24:
//   cosines  an inner product of D terms, summed in any order, errs by at most 1.01 (D + 2) v |x||y|;
//            <x', u t> + e by less than 8 v (|x| + e). Both are within 4 (D + 8) v |x| unit_bound,
//            which is added to e.
//   scores   exponentials err by a few v, a sum of L of them by L v; logarithms turn that into an
//            absolute error and divide it by alpha; means and sums of K or L values of size at most
//            M err by (K + L + 8) v M. Twice (bound and score), within
//            32 v (K + L + 8) (M + (1 + ln K + ln L) / alpha)   [alpha for Smooth-Chamfer alone],
//            which is added to the score; M is K |x| unit_bound for the sum of MaxSim.
//
// Search. All sets are bounded by the query's first part. Those whose bound reaches the threshold
// wait until there are a few hundred. Then, from the highest bound down, they are bounded again with
// both parts, and if they still reach the threshold, scored by the exact kernels: the threshold is
// the exact score of rank topk so far. A bound that is NaN never loses a set. How many sets are
// scored exactly depends on how the threads meet; what is found does not. Exact kernels sum in an
// order that depends on how many queries come together, so a batch's few best sets are scored again
// in the groups that search makes, and what two orders may differ by is taken off the threshold. So
// the result is search's, bit for bit.
#pragma once

#include <cstdint>

#include "similarity.h"

namespace divse {

constexpr float unit_bound = 1.0f + 0x1p-7f;
constexpr std::int64_t most_code_dims = 1 << 16;  // 255 * 127 * dims stays in 32 bits

// Codes of the elements of a gallery, one after another, and which of them make a set.
struct Codes {
    const std::int8_t* codes;   // (elements of all sets, dim)
    const float* scales;        // (elements of all sets,)
    const float* residuals;     // likewise
    std::int64_t count, elements, dim;
    const std::int64_t* lengths;  // padded to `elements` a set; null: all sets are full
    const std::int64_t* offsets;  // packed, (count + 1,); null: padded
};

// Codes to scan alone, with no bounds. Sets in groups of 16, side by side, and of their elements
// four codes of each in turn: sums of products stay in the lane of their set. A group takes as many
// slots as its largest set has elements.
constexpr std::int64_t lane_sets = 16, lane_dims = 4;

struct LaneCodes {
    const std::int8_t* codes;  // (slots, ceil(dim / 4), 16, 4), zero past dim
    const float* scales;       // (slots, 16)
    std::int64_t count, elements, dim;
    const std::int64_t* lengths;  // (count,); null: all sets have `elements`
    const std::int64_t* firsts;   // slots where groups begin, with lengths
};

// Sets that are alike lie in a cell, and the leaders, one of each cell, tell which cells to look
// into: set n of the leaders stands for the sets begins[n]..begins[n + 1] - 1.
struct Cells {
    const LaneCodes* leaders;
    const std::int64_t* begins;  // (leaders->count + 1,)
    std::int64_t probe;          // cells to look into for each query
};

// What a search by codes alone goes over: all sets, or those in some cells.
struct LaneGallery {
    const LaneCodes* codes;
    const std::int32_t* order;     // (count,) the id of each set; null: its place
    const Cells* cells;            // null: all sets
    const std::uint8_t* excluded;  // a bitmap by id; null: none
};

struct Int8Kernel;  // int8_kernel.h

// Codes, scales and residuals of `sets`, in the layout of Codes; zero in the padding. Returns the
// first set with an element that is longer than unit_bound or not finite, -1 if there is none.
std::int64_t encode(const Sets& sets, const Int8Kernel& kernel, int threads, std::int8_t* codes,
                    float* scales, float* residuals);

// Upper bounds (B, N) of all scores by `parts` (1 or 2) parts of the queries.
void int8_bounds(const Sets& queries, const Codes& codes, Similarity similarity,
                 const Int8Kernel& kernel, int parts, int threads, float* upper);

// The result of search(queries, gallery, ...) with `codes` of that gallery: scores and ids
// (B, topk), and for each query how many sets were scored exactly. Queries are f32.
struct Certified {
    float* scores;
    std::int64_t *ids, *survivors;
};

// The best by the scores of codes, the queries rounded as well: estimates that bound nothing.
// Scores and ids (B, topk) as search gives them (of equal scores that of the lower place is taken),
// or in any order where they need not be `ordered`.
void int8_search(const Sets& queries, const LaneGallery& gallery, Similarity similarity,
                 const Int8Kernel& kernel, int threads, std::int64_t topk, bool ordered,
                 float* scores, std::int64_t* ids);

void certified_search(const Sets& queries, const Sets& gallery, const Codes& codes,
                      Similarity similarity, const Kernel& kernel, const Int8Kernel& int8,
                      int threads, std::int64_t topk, const std::uint8_t* excluded,
                      const Certified& out);

}  // namespace divse
