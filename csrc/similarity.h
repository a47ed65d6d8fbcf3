// Similarities of sets of vectors on a CPU: the contract, and the maths of every file here.
//
// B query sets of K elements, N gallery sets of L elements, D dimensions. With c_ij = <q_i, g_j>,
// E_ij = exp(alpha c_ij), row sums r_i = sum_j E_ij and column sums s_j = sum_i E_ij:
//
//     SC = 1/(2 alpha K) sum_i log r_i + 1/(2 alpha L) sum_j log s_j
//     log_mean:  SC - (ln K + ln L) / (2 alpha)
//     dSC/dc_ij    = E_ij (1/(2 K r_i) + 1/(2 L s_j)) = w_ij,   which sum to 1
//     dSC/dalpha   = (sum_ij w_ij c_ij - SC) / alpha      (with or without log_mean)
//
//     Chamfer = (mean_i max_j c_ij + mean_j max_i c_ij) / 2
//     MaxSim  = sum_i max_j c_ij, or its mean over i                  MIL = max_ij c_ij
//
// and for every similarity S, with w_ij = dS/dc_ij:
//
//     dS/dq_i = sum_j w_ij g_j,   dS/dg_j = sum_i w_ij q_i
//
// The derivative of a maximum goes to the first of several equal cosines (for MIL: the first in the
// order of the query's elements, then the gallery set's). torch's amax shares it among them.
//
// Range. Exponentials are taken unshifted (one per pair of elements) when 1 <= alpha <= 80 and
// 1.01 alpha + ln max(K, L) <= 88, so that unit vectors stay inside fp32; otherwise every row and
// every column is shifted by its own maximum (two per pair; below 1 because an error of a logarithm
// is divided by alpha). Vectors are taken as they are, so a sum that leaves [2^-90, 2^126] all the
// same is seen and its score is computed again, shifted.
// The logarithm of many sums is one: exponents are added and mantissas multiplied, which cannot
// overflow whatever the sums are. A score is NaN if an element of either set holds NaN.
//
// How it runs. The lanes of a register hold different sets, so rows, columns and logarithms need
// no shuffles: lanes are queries when there are enough of them (an outer-product kernel over a
// packed query panel), and gallery sets for a few queries (an inner-product kernel straight from
// the gallery's memory, which is read once). The order of every sum depends on the shapes alone:
// not on threads, nor on where in the gallery a set lies, so equal sets have equal scores.
#pragma once

#include <cstdint>

namespace divse {

struct Half {
    std::uint16_t bits;
};

struct Brain {  // bfloat16: the upper half of a float
    std::uint16_t bits;
};

enum class Element { f32, f16, bf16 };

// A view of sets of at most `elements` elements. The last axis is contiguous, strides count
// elements of the type. Set n is set ids[n] of the array, of which element j lies at
//     padded   n * set_stride + j * element_stride, with lengths[n] of them real
//     packed   (offsets[n] + j) * element_stride, up to offsets[n + 1]
struct Sets {
    const void* values;
    Element element;
    std::int64_t count, elements, dim;
    std::int64_t set_stride, element_stride;
    const std::int64_t* lengths;  // each in 1..elements; null: all sets are full
    const std::int64_t* offsets;  // null: padded
    const std::int64_t* ids;      // (count,); null: all sets in order
};

enum class Measure { smooth_chamfer, chamfer, maxsim_sum, maxsim_mean, mil };

struct Similarity {
    Measure measure;
    double alpha;   // of Smooth-Chamfer alone, as is log_mean
    bool log_mean;
};

struct GradScores {  // (B, N), strides counted in floats
    const float* values;
    std::int64_t query_stride, gallery_stride;
};

// All cosines of a forward pass, kept for the backward pass: row n * L + j (element j of gallery
// set n), column (q / width * K + i) * width + q % width (element i of query q).
struct Cosines {
    float* values;  // null: not kept
    std::int64_t stride;
};

struct Kernel;  // kernel.h: what one instruction set provides

// out (B, N), row-major.
void scores(const Sets& queries, const Sets& gallery, Similarity similarity, const Kernel& kernel,
            int threads, float* out, const Cosines& kept);

// out_scores, out_ids (B, topk), best first, equal scores by lower id; NaN scores come last, and
// after them -inf with id -1 if too few sets are left. Bit n & 7 of byte n >> 3 of `excluded` (may
// be null) leaves set n out.
// Memory grows with B * topk and the number of threads, never with B * N.
void search(const Sets& queries, const Sets& gallery, Similarity similarity, const Kernel& kernel,
            int threads, std::int64_t topk, const std::uint8_t* excluded, float* out_scores,
            std::int64_t* out_ids);

// grad_queries (B, K, D) and grad_gallery (N, L, D), row-major, zero in the padding; returns the
// gradient for alpha. Both inputs are padded and f32; `kept` saves computing the cosines again.
// Same result for any number of threads.
double backward(const Sets& queries, const Sets& gallery, Similarity similarity,
                const Kernel& kernel, int threads, const GradScores& grad_scores,
                const Cosines& kept, float* grad_queries, float* grad_gallery);

// Own candidates of every query: ids (B, M), row-major, -1 for none. out (B, M), -inf for none.
struct Candidates {
    const std::int64_t* ids;
    std::int64_t count;  // M
};

void candidate_scores(const Sets& queries, const Sets& gallery, const Candidates& candidates,
                      Similarity similarity, const Kernel& kernel, int threads, float* out);

// The best of each query's candidates, as `search` gives the best of all sets.
void best_candidates(const Sets& queries, const Sets& gallery, const Candidates& candidates,
                     Similarity similarity, const Kernel& kernel, int threads, std::int64_t topk,
                     float* out_scores, std::int64_t* out_ids);

// As backward; grad_scores (B, M).
double candidate_backward(const Sets& queries, const Sets& gallery, const Candidates& candidates,
                          Similarity similarity, const Kernel& kernel, int threads,
                          const GradScores& grad_scores, float* grad_queries, float* grad_gallery);

}  // namespace divse
