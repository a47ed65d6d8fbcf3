// Queries as codes, and the scratch of one worker.
#pragma once

#include <vector>

#include "int8_kernel.h"
#include "workspace.h"

namespace divse {

// Queries first.. in both parts, with the errors that the bounds allow for (int8.h).
class CodedQueries {
public:
    CodedQueries(const Sets& queries, std::int64_t first, std::int64_t count,
                 const Similarity& similarity, std::int64_t gallery_elements,
                 const Int8Kernel& kernel);
    const CodeBlock& block() const { return block_; }
    // One query of the block as a block of its own.
    CodeBlock query(std::int64_t q) const;
    // Two exact scores of one pair, summed in different orders, differ by at most this.
    float disagreement(std::int64_t q) const { return disagreements_[static_cast<std::size_t>(q)]; }

private:
    void encode(const float* element, std::int64_t row, const Int8Kernel& kernel);
    void allow(std::int64_t q, double norm, const Similarity& similarity,
               std::int64_t gallery_elements);

    struct Part {
        explicit Part(std::int64_t rows, std::int64_t bytes);
        std::int8_t* row(std::int64_t row) const { return codes + row * bytes; }

        const std::int64_t bytes;  // of a row
        const Floats memory, wide_memory;  // on cache lines of their own: whole lines are loaded
        std::int8_t* const codes;
        std::int16_t* const wide;
        std::vector<float> scales, weights, constants;
        std::vector<std::int32_t> sums;
    };

    CodeBlock block_;
    Part parts_[2];
    std::vector<double> norms_;
    std::vector<std::int64_t> counts_;
    std::vector<float> margins_, disagreements_;
};

// Scratch for blocks of at most `queries` queries of K elements against sets of L.
class CodeWorkspace {
public:
    CodeWorkspace(const Int8Kernel& kernel, std::int64_t queries, std::int64_t query_elements,
                  std::int64_t gallery_elements);
    const CodeScratch& scratch() const { return scratch_; }

private:
    Floats dots_[2];  // as int32
    Floats cosines_, sums_, scalars_;
    std::vector<std::int64_t> starts_, places_;
    CodeScratch scratch_;
};

}  // namespace divse
