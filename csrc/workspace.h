// Memory: aligned buffers, queries packed for a kernel, and the scratch of one worker.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernel.h"

namespace divse {

// Uninitialised floats on a cache line of their own.
class Floats {
public:
    explicit Floats(std::int64_t count);
    float* data() const { return memory_.get(); }

private:
    struct Free {
        void operator()(float* memory) const;
    };
    std::unique_ptr<float, Free> memory_;
};

const float* element_at(const Sets& sets, std::int64_t n, std::int64_t k);  // of f32 sets
double multiply_adds(const Sets& queries, const Sets& gallery);  // of all cosines
Terms terms_of(const Similarity& similarity, std::int64_t largest_set);

// Queries `first`.. (or gallery sets, for gradients) in the layout of QueryBlock.
class PackedQueries {
public:
    PackedQueries(const Sets& queries, std::int64_t first, std::int64_t count, bool in_lanes,
                  const Kernel& kernel, bool of_queries = true);
    const QueryBlock& block() const { return block_; }

private:
    void pack_lanes(const Sets& queries, const Kernel& kernel);
    void pack_rows(const Sets& queries);
    void pack_columns(const Kernel& kernel);

    QueryBlock block_;
    Floats values_;
    std::unique_ptr<Floats> columns_;
    std::vector<float> lengths_;
    std::vector<std::int64_t> counts_;
};

// Scratch for blocks of at most `groups` groups (or queries) of K elements against sets of L.
class Workspace {
public:
    Workspace(const Kernel& kernel, std::int64_t groups, std::int64_t query_elements,
              std::int64_t gallery_elements, std::int64_t dim);
    const Scratch& scratch() const { return scratch_; }

private:
    Floats tile_, sums_, widened_, products_;
    std::vector<const void*> rows_;
    std::vector<std::int64_t> places_;
    Scratch scratch_;
};

}  // namespace divse
